"""``bisect-tool releases PACKAGE RANGE -- MODEL [CKPT] --input SAMPLE``: which release changed the numbers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import check_kept_file, settings_of
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError
from bisect_tool.temporary import temporary_folder

RUN_SECONDS = 1800
_EXIT = {"unchanged": EXIT_AGREES, "changed": EXIT_DIVERGES, "untestable": EXIT_INCONCLUSIVE}


class _WithDashes(click.Command):
    """A ``--`` between the range and the model is allowed, and ends no options: those of the case stand behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            args = [*args[: args.index("--")], *args[args.index("--") + 1 :]]
        return super().parse_args(ctx, args)


@shared.reworded(
    inputs="The sample: .pt .pth .npz .npy .safetensors; one.",
    raw="File given to --preprocess; one.",
    force="Replace a file of --keep-onnx that is there.",
    memory_budget=shared.NO_EFFECT,
    name=shared.NO_EFFECT,
)
@click.command(cls=_WithDashes, context_settings=shared.SETTINGS)
@click.argument("package")
@click.argument("versions", metavar="RANGE")
@shared.loading
@shared.exporting
@click.option(
    "--what",
    type=click.Choice(["graph", "model"]),
    help="Run the ONNX file, or the PyTorch model [default: graph for ONNX Runtime, else model].",
)
@click.option(
    "--with", "also", multiple=True, metavar="REQUIREMENT", help="Also into each environment, as 'numpy<2'. Repeatable."
)
@click.option(
    "--limit",
    type=float,
    metavar="X",
    help="Relative L2 beyond which outputs have changed [default: six noise floors of the outputs].",
)
@click.option("--pre", is_flag=True, help="Also release candidates and nightly versions.")
@click.option("--cache", type=click.Path(), metavar="DIR", help="Where results are kept [default: the user's cache].")
@click.option("--yes", is_flag=True, help="Do not ask before installing.")
@shared.running
@shared.reporting
def releases(
    package: str, versions: str, form: str, force: bool, verbose: bool, quiet: bool, yes: bool, **given: Any
) -> int:
    """Find the release of PACKAGE that changed the numbers, by binary search over RANGE, as 1.18..1.31 or 1.2,1.3,1.5.

    Each version is installed into a throw-away environment, everything else comes from this one; this environment is not
    touched. What is installed is said, and asked, first. Results are kept: a second run goes on where the first ended.
    Exit codes: 0 unchanged, 1 changed, 2 bad usage or unreadable input, 3 fewer than two versions could be tried.
    """
    from bisect_tool.backends.throwaway import released_versions
    from bisect_tool.release_search import choose, search

    own = {name: given.pop(name) for name in ("what", "also", "limit", "pre", "cache")}
    settings = settings_of(given)
    settings["matrix"] = None
    say = progress(quiet, verbose)
    if settings["parts"]:
        raise BisectError("a model in several files cannot be run here", hint="give one of them with --onnx")
    if settings["keep_onnx"]:
        check_kept_file(Path(settings["keep_onnx"]), force, settings)
    what: Literal["graph", "model"] = own["what"] or (
        "graph" if package.startswith(("onnxruntime", "ort-")) else "model"
    )
    if own["limit"] is not None and not own["limit"] >= 0:
        raise BisectError(f"--limit {own['limit']}: a limit is a number from zero up", hint="for example --limit 1e-5")
    # Versions named one by one need no index.
    known = released_versions(package) if ".." in versions else []
    chosen = choose(versions, known, pre=own["pre"])
    from bisect_tool.releases import limit_for

    with temporary_folder() as temporary:
        job, floor = _prepare(settings, what, Path(temporary), say)
        folder = _cache(own["cache"], package, own["also"], job)
        trials = _Trials(package, tuple(own["also"]), job, Path(temporary), folder, say)
        limit = own["limit"] if own["limit"] is not None else limit_for(floor)
        say.close()
        _ask(trials, chosen, yes)
        change = search(chosen, lambda version: trials.changed(version, limit))
    report = trials.report(what, change, chosen, floor, limit)
    say.close()
    if form == "json":
        from bisect_tool.store import record_to_json

        click.echo(json.dumps(record_to_json(report), indent=1, allow_nan=False))
    else:
        from bisect_tool.reporters.releases import print_releases

        print_releases(report)
    return _EXIT[change.status]


@dataclass(frozen=True)
class _Job:
    """What each version runs: the worker's job, and a digest of all that its outputs depend on but the version."""

    data: Mapping[str, Any]
    digest: str


def _prepare(
    settings: dict[str, Any], what: str, folder: Path, say: Callable[[str], None]
) -> tuple[_Job, float | None]:
    """Loads the case here once: the graph with its feeds, and the noise floor."""
    import numpy as np

    from bisect_tool.backends.output_floor import output_floor
    from bisect_tool.backends.samples import bind_sample
    from bisect_tool.cli.loading import load, make_case
    from bisect_tool.cli.process import load_libraries

    load_libraries()
    interrupts.work_begins()
    say("loading the model")
    loaded = load(settings)
    if len(loaded.samples) > 1:
        raise BisectError(f"{len(loaded.samples)} samples given: each release runs one", hint="give one --input")
    case = make_case(settings, loaded, bind_sample(loaded.module, loaded.samples[0]))
    say("measuring the noise floor of the outputs")
    floor = output_floor(case.module, case.args, case.kwargs)
    if what == "model":
        kept = {**settings, "command": "", "inputs": [os.path.abspath(path) for path in settings["inputs"]]}
        kept.update({key: os.path.abspath(kept[key]) for key in ("checkpoint", "entry_args") if kept[key]})
        kept["raw"] = [os.path.abspath(path) for path in settings["raw"]]
        kept["model"] = os.path.abspath(kept["model"]) if Path(kept["model"]).is_file() else kept["model"]
        files = [kept["model"], kept["checkpoint"], kept["entry_args"], *kept["inputs"], *kept["raw"], *_own_sources()]
        text = json.dumps(kept, sort_keys=True, default=str)
        data = {"what": "model", "settings": json.loads(text)}
        return _Job(data, _digest(text.encode(), files)), floor
    from bisect_tool.backends.case import export_case
    from bisect_tool.backends.exporting import ExportSettings, default_exporter
    from bisect_tool.backends.inputs import bind_inputs, sample_tensors
    from bisect_tool.backends.onnx_graph import describe, load_onnx

    graph = Path(settings["onnx"] or settings["keep_onnx"] or folder / "model.onnx")
    if not settings["onnx"]:
        say("exporting")
        exporter = settings["exporter"] or default_exporter()
        exporting = ExportSettings(exporter, settings["opset"], settings["constant_folding"])
        export_case(case, graph, exporting)
    feeds = bind_inputs(describe(load_onnx(graph)), sample_tensors(case.module, case.args, case.kwargs)).feeds
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    data = {
        "what": "graph",
        "graph": str(graph.resolve()),
        "feeds": str(folder / "feeds.npz"),
        "threads": settings["threads"],
    }
    inputs = b"".join(name.encode() + str(a.dtype).encode() + a.tobytes() for name, a in sorted(feeds.items()))
    beside = [path for path in (Path(f"{graph}.data"),) if path.exists()]
    return _Job(data, _digest(inputs + str(settings["threads"]).encode(), [graph, *beside])), floor


def _own_sources() -> list[str]:
    """Files of what was imported beside installed packages and this tool: the user's own code, now that it was loaded."""
    others = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1], *map(Path, site.getsitepackages())]
    files = {str(getattr(module, "__file__", None) or "") for module in [*sys.modules.values()]}
    paths = sorted(Path(file).resolve() for file in files if file.endswith(".py"))
    return [str(path) for path in paths if not any(other.resolve() in path.parents for other in others)]


def _digest(text: bytes, files: Sequence[Any]) -> str:
    digest = hashlib.sha256(text)
    for file in files:
        path = Path(str(file))
        if file and path.is_file():
            digest.update(path.read_bytes())
        elif file and path.is_dir():
            for inner in sorted(item for item in path.rglob("*") if item.is_file()):
                digest.update(inner.name.encode() + inner.read_bytes())
    return digest.hexdigest()


def _cache(given: str | None, package: str, also: Sequence[str], job: _Job) -> Path:
    """The folder for results of this very job, made."""
    base = (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bisect-divergence"
    )
    key = hashlib.sha256(json.dumps([package, sorted(also), sys.version, job.digest]).encode()).hexdigest()[:16]
    folder = base / "releases" / f"{package}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BisectError(f"{folder} cannot be made: {error.strerror or error}", hint="--cache DIR") from error
    return folder


def _ask(trials: _Trials, chosen: Sequence[str], yes: bool) -> None:
    """Says what will be installed, and asks unless told not to.

    Raises:
        BisectError: nobody is there to ask, or the answer is no.
    """
    from bisect_tool.release_search import most_probes

    left = [version for version in chosen if not trials.has(version)]
    if not left:
        return
    most = min(most_probes(len(chosen)), len(left))
    others = f", each with {', '.join(trials.also)}" if trials.also else ""
    click.echo(
        f"{len(chosen)} releases of {trials.package}, {chosen[0]} to {chosen[-1]}; {len(chosen) - len(left)} have results.\n"
        f"Up to {most} of the others will be installed with pip, one after the other, with what they need{others},\n"
        f"into environments under {trials.temporary}, which are removed again. This environment is not touched.\n"
        f"Results are kept in {trials.cache}.",
        err=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise BisectError("installing was not agreed to, and nobody is there to ask", hint="--yes agrees beforehand")
    if not click.confirm("Go on?", err=True):
        raise BisectError("stopped before anything was installed", hint="--yes agrees beforehand")


def _reason(text: str) -> str:
    """The exception that ended a process, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)] or lines
    line = re.sub(r"^bisect_tool\.errors\.\w+: ", "", errors[-1]) if errors else ""
    # What went wrong stands at the end, behind places in the sources.
    return line if len(line) <= 240 else f"{line[:80]} ... {line[-150:]}"


def _is_that(there: str, version: str) -> bool:
    """A build's tag (``+cpu``) is not part of what was asked for, unless it was."""
    from packaging.version import Version

    return bool(there) and (Version(there) == Version(version) or Version(there).public == version)


@dataclass
class _Trials:
    """Runs versions, and keeps their outputs."""

    package: str
    also: tuple[str, ...]
    job: _Job
    temporary: Path
    cache: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.reference: Any = None
        self.found: dict[str, Any] = {}

    def has(self, version: str) -> bool:
        return self._result(version).is_file()

    def _result(self, version: str) -> Path:
        return self.cache / f"{version}.npz"

    def changed(self, version: str, limit: float) -> bool | None:
        """Runs a version, or takes its kept outputs, and compares them with the first one's."""
        import numpy as np

        from bisect_tool.releases import Release, apart

        interrupts.check()
        cached = self.has(version)
        if not cached:
            try:
                self._run(version)
            except BisectError as error:
                self.say(f"{self.package} {version} could not be tried: {error.message}")
                self.found[version] = Release(version, "failed", why=error.message)
                return None
        with np.load(self._result(version), allow_pickle=False) as archive:
            outputs = dict(archive)
        if self.reference is None:
            self.reference = outputs
            self.found[version] = Release(version, "reference", cached=cached)
            return False
        distance = apart(self.reference, outputs)
        state: Literal["changed", "same"] = "changed" if distance.beyond(limit) else "same"
        self.found[version] = Release(version, state, distance.rel_l2, distance.max_abs, distance.why, cached)
        return state == "changed"

    def _run(self, version: str) -> None:
        from bisect_tool.backends.throwaway import installed_version, make_environment

        self.say(f"installing {self.package} {version}")
        folder = self.temporary / f"env-{version}"
        try:
            python = make_environment(folder, f"{self.package}=={version}", self.also)
            there = installed_version(python, self.package)
            if not _is_that(there, version):
                raise BisectError(f"the environment has {there or 'no version'} of it")
            self.say(f"running with {self.package} {version}")
            self._work(python, version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _work(self, python: Path, version: str) -> None:
        job = self.temporary / "job.json"
        job.write_text(json.dumps({**self.job.data, "package": self.package}), encoding="utf-8")
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [str(python), "-m", "bisect_tool.cli.release_worker", str(job), str(self._result(version))]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RUN_SECONDS,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except subprocess.TimeoutExpired as error:
            raise BisectError(f"it ran longer than {RUN_SECONDS} s") from error
        if done.returncode != 0:
            raise BisectError(f"running it fails: {_reason(done.stderr) or f'exit code {done.returncode}'}")

    def report(
        self, what: Literal["graph", "model"], change: Any, chosen: Sequence[str], floor: float | None, limit: float
    ) -> Any:
        """Everything about the search."""
        from bisect_tool.releases import Release, ReleaseReport

        rows = tuple(self.found.get(version) or Release(version, "not tried") for version in chosen)
        return ReleaseReport(self.package, what, change, rows, floor, limit, str(self.cache))

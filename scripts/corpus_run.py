"""Holds healthy networks against their own exports, and writes docs/corpus.md."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPORTERS = ("dynamo", "torchscript")
SHIPPED = "as shipped"
SAME = 1e-4
BASE, OPTIMISED = "ort-cpu-off", "ort-cpu-all"
CASE_SECONDS = 400

INTRODUCTION = """\
# Healthy networks

Written by this command; do not edit by hand.

```console
$ scripts/corpus
```

Nothing is wrong with these networks: whatever is said here against one is a false alarm. Each is exported by both exporters
and held against PyTorch without any tolerance (scripts/corpus_nets.py has their inputs: a photograph, a sound, sentences).

- *stages*: aligned, of those that the graph has; *coverage* is the share of all outputs of stages
- *worst total*: largest relative L2 of any stage's total error, ONNX Runtime without optimisation
- *off*, *all*: the answer without ONNX Runtime's optimisations, and with all of them
- *floors*: stages settled by the cheap bound, measured, unknown; *ratio*: the largest error of either side in units of the
  floor; over 3 would be a fault. See [noise-floor.md](noise-floor.md)
- *seconds*: of everything, the export included

Some packages ship ONNX files beside their PyTorch weights; those are held against each other as they are. Not all are of the
same weights: what the right verdict is was found out without this tool, by plain runs of both sides and by the weights.

{machine}
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the results: a network with an exporter.

    Attributes:
        status: the verdict; ``no export``: the exporter refuses; ``error``: the tool raised.
        off, all: status of each configuration.
        worst: the largest total relative L2.
        settled, measured, unknown: stages by what became of their floor.
        ratio: the largest ratio to the floor.
        reasons: why floors are unknown.
        expected: the right verdict on a shipped file.
        apart: largest relative L2 of the outputs of a shipped file against PyTorch, from plain runs outside of the tool.
        held: how many of the model's weights the file holds too, number for number, outside of the tool.
        why: the summary of a verdict that is not agreement, or the reason for none.
    """

    net: str
    exporter: str
    status: str
    aligned: int = 0
    stages: int = 0
    coverage: float | None = None
    worst: float | None = None
    off: str = ""
    all: str = ""
    settled: int = 0
    measured: int = 0
    unknown: int = 0
    ratio: float | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    why: str = ""
    expected: str = "agrees"
    apart: float | None = None
    held: str = ""

    @property
    def id(self) -> str:
        return f"{self.net}/{self.exporter}"


def main() -> int:
    """Returns 0 if every network that can be exported agrees."""
    options = _options()
    if options.one:
        _append(options.output, _run(*options.one, options.packages))
        return 0
    if not options.table_only:
        provide(options.packages)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            options.output.unlink(missing_ok=True)
        _run_all(options)
    results = read_results(options.output)
    print(summary(list(results.values())))
    if options.docs is not None:
        options.docs.write_text(page(list(results.values())), encoding="utf-8")
    return 0 if all(result.status in (result.expected, "no export") for result in results.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/corpus", description=__doc__)
    parser.add_argument("--packages", type=Path, default=packages_folder(), help="default: %(default)s")
    parser.add_argument("--nets", default="", help="comma-separated; default: all")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="keep the results that are there, and run the rest")
    parser.add_argument("--table-only", action="store_true", help="run nothing, make the table of the results anew")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "reports" / "corpus" / "results.jsonl",
        help="file of results; default: %(default)s",
    )
    parser.add_argument("--docs", type=Path, help="Markdown file; default: docs/corpus.md where nothing is left out")
    parser.add_argument("--one", nargs=2, metavar=("NET", "EXPORTER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    whole = not options.nets and options.exporters == ",".join(EXPORTERS)
    if options.docs is None and (whole or options.table_only):
        options.docs = ROOT / "docs" / "corpus.md"
    options.exporters = options.exporters.split(",")
    for name in options.exporters:
        if name not in EXPORTERS:
            parser.error(f"{name!r} is none of {', '.join(EXPORTERS)}")
    return options


def packages_folder() -> Path:
    """Where the networks' packages are kept: outside of the project."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bisect-corpus" / "packages"


def provide(folder: Path) -> None:
    """Installs what is missing, without what it depends on."""
    from corpus_nets import PACKAGES

    def there(requirement: str) -> bool:
        name, number = requirement.split("==")
        return any(folder.glob(f"{name.replace('-', '_')}-{number}.dist-info"))

    missing = [requirement for requirement in PACKAGES if not there(requirement)]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        call = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*call, "--upgrade", "--target", str(folder), *missing], check=True)


def _run_all(options: argparse.Namespace) -> None:
    from corpus_nets import chosen

    done = read_results(options.output)
    for net in chosen(options.nets.split(",") if options.nets else []):
        for exporter in options.exporters if net.file is None else (SHIPPED,):
            if f"{net.name}/{exporter}" in done:
                continue
            call = [sys.executable, __file__, "--one", net.name, exporter, "-o", str(options.output)]
            # A process for each: a crash takes nothing with it, and nothing that one sets reaches the next.
            try:
                ended = subprocess.run([*call, "--packages", str(options.packages)], timeout=CASE_SECONDS)
                why = f"the process ended with {ended.returncode}" if ended.returncode else ""
            except subprocess.TimeoutExpired:
                why = f"no answer within {CASE_SECONDS} s"
            if why:
                _append(options.output, Result(net.name, exporter, "error", why=why))
            print(f"{net.name} {exporter}: {read_results(options.output)[f'{net.name}/{exporter}'].status}", flush=True)


def _run(name: str, exporter: str, packages: Path) -> Result:
    import torch
    from corpus_nets import NETS, use_packages

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    use_packages(packages)
    net = NETS[name]
    module, args = net.build()
    if net.file is None:
        return judge(name, exporter, module, args)
    apart, held = outside(module, args, net.file())
    if (apart <= SAME) != (net.expected == "agrees"):
        raise ValueError(f"{name}: expected {net.expected}, but outputs are {apart:.1e} apart")
    result = judge(name, exporter, module, args, net.file())
    return dataclasses.replace(result, expected=net.expected, apart=apart, held=held)


def outside(module: Any, args: tuple[Any, ...], file: Path) -> tuple[float, str]:
    """How far a file's outputs lie from the model's, and how many of its weights it holds: by nothing of this tool."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
    feeds = {given.name: named[given.name].numpy() for given in session.get_inputs()}
    with torch.no_grad():
        found = module(*args)
    expected = [tensor.numpy() for tensor in ([found] if isinstance(found, torch.Tensor) else found)]
    pairs = zip(expected, session.run(None, feeds), strict=True)
    apart = max(float(np.linalg.norm(one - other) / np.linalg.norm(one)) for one, other in pairs)
    there = [np.sort(array.ravel()) for array in _arrays(onnx.load(file).graph)]
    weights = [np.sort(weight.detach().numpy().ravel()) for weight in module.parameters() if weight.numel() > 1]
    # Gates of a recurrence may be in another order, and both of its biases in one array; sorted that is no difference.
    held = sum(any(np.array_equal(weight, array) for array in there) for weight in weights)
    return apart, f"{held}/{len(weights)}"


def _arrays(graph: Any) -> list[Any]:
    """Initialisers and constants of a graph, and of the bodies inside."""
    from onnx import numpy_helper

    found = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("t"):
            found.append(numpy_helper.to_array(attribute.t))
        if attribute.HasField("g"):
            found += _arrays(attribute.g)
    return found


def judge(name: str, exporter: str, module: Any, args: tuple[Any, ...], file: Path | None = None) -> Result:
    """The tool's answer, as a user gets it who names no tolerance."""
    from bisect_tool import BisectError, ExportSettings, LoadedCase, Options, bisect, make_tolerance

    blank = Result(name, exporter, "error")
    tolerance = make_tolerance(None, None, None)
    settings = ExportSettings() if file is not None else ExportSettings(exporter=exporter)  # type: ignore[arg-type]
    began = time.perf_counter()
    try:
        report = bisect(
            LoadedCase(name, module, args, {}), Options(tolerance=tolerance, onnx=file, export=settings, threads=2)
        )
    except BisectError as error:
        exports = "exporter failed" in str(error)
        return dataclasses.replace(blank, status="no export" if exports else "error", why=_line(error))
    except Exception as error:  # anything: that is what is being measured
        return dataclasses.replace(blank, why=f"{type(error).__name__}: {_line(error)}")
    seconds = time.perf_counter() - began
    return dataclasses.replace(read(blank, report), seconds=round(seconds, 2))


def read(blank: Result, report: Any) -> Result:
    """Fills in what a report says."""
    from bisect_tool.judging import floor_summary

    found = [row.results[BASE] for row in report.stages if BASE in row.results]
    noises = [result.noise for result in found if result.noise is not None]
    levels = {run.name: run.status for run in report.configs}
    origins = [
        f"origin {origin.ref}" + (f", ratio {origin.noise_ratio:.2g}" if origin.noise_ratio is not None else "")
        for origin in report.verdict.origins
    ]
    agrees = report.verdict.status == "agrees" and not origins
    return dataclasses.replace(
        blank,
        status="agrees" if agrees else report.verdict.status if not origins else "diverges",
        aligned=report.alignment.aligned,
        stages=report.alignment.stages,
        coverage=report.alignment.coverage,
        worst=max((result.total.rel_l2 for result in found), default=None),
        off=levels.get(BASE, ""),
        all=levels.get(OPTIMISED, ""),
        ratio=max((noise.ratio for noise in noises if noise.ratio is not None), default=None),
        reasons=tuple(dict.fromkeys(noise.unknown for noise in noises if noise.unknown)),
        why="" if agrees else "; ".join([*report.verdict.summary[-2:], *origins[:2]]),
        **floor_summary(report.stages, BASE),
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def read_results(file: Path) -> dict[str, Result]:
    """Results by network and exporter; the last of each counts."""
    found: dict[str, Result] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        result = Result(**json.loads(line))
        found[result.id] = result
    return found


def _append(file: Path, result: Result) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dataclasses.asdict(result)) + "\n")


# -- the page ---------------------------------------------------------------------------------------------------------


def page(results: Sequence[Result]) -> str:
    """The whole of docs/corpus.md."""
    from corpus_nets import NETS

    parts = [INTRODUCTION.format(machine=machine()), "## Summary\n", summary(results)]
    for title, trained in (("Real weights", True), ("Random weights", False)):
        parts += [f"\n## {title}\n"]
        if not trained:
            parts += ["Architectures of transformers, built from a small configuration.\n"]
        chosen = [r for r in results if r.net in NETS and NETS[r.net].trained == trained and r.exporter != SHIPPED]
        parts += [_table(chosen, NETS)]
    shipped = [result for result in results if result.exporter == SHIPPED]
    if shipped:
        parts += ["\n## Shipped files\n", _SHIPPED_INTRODUCTION, _shipped_table(shipped)]
    refused = [result for result in results if result.status == "no export"]
    if refused:
        parts += ["\n## Not exported\n", *(f"- {r.net}, {r.exporter}: {_plain(r.why)}" for r in refused)]
    wrong = [result for result in results if result.status not in (result.expected, "no export")]
    parts += [
        "\n## Wrong verdicts\n",
        *([f"- {r.net}, {r.exporter}: {_plain(r.why)}" for r in wrong] or ["Nothing."]),
    ]
    unknown = [result for result in results if result.unknown]
    if unknown:
        parts += ["\n## Unknown floors\n"]
        parts += [f"- {r.net}, {r.exporter}: {_plain('; '.join(r.reasons))}" for r in unknown]
    return "\n".join(parts).rstrip() + "\n"


_SHIPPED_INTRODUCTION = """\
*outputs* and *weights* come from outside of this tool: the largest relative L2 of plain ONNX Runtime's outputs against plain
PyTorch's, and how many of the model's weights the file holds too, number for number.
"""


def _shipped_table(results: Sequence[Result]) -> str:
    heads = ["file", "against the weights in", "outputs", "weights", "right", "verdict", "stages", "coverage"]
    lines = [
        f"| {' | '.join([*heads, 'worst total', 'what it says'])} |",
        "|---|---|---:|---:|---|---|---:|---:|---:|---|",
    ]
    for r in results:
        file, weights = r.net.rsplit("+", 1)
        apart = "" if r.apart is None else f"{r.apart:.1e}"
        coverage = "" if r.coverage is None else f"{r.coverage:.0%}"
        worst = "" if r.worst is None else f"{r.worst:.1e}"
        cells = [file, weights, apart, r.held, r.expected, r.status, f"{r.aligned}/{r.stages}", coverage, worst]
        lines.append(f"| {' | '.join([*cells, _plain(r.why)])} |")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """What it comes to."""
    shipped = [result for result in results if result.exporter == SHIPPED]
    results = [result for result in results if result.exporter != SHIPPED]
    exported = [result for result in results if result.status != "no export"]
    ratios = [result.ratio for result in exported if result.ratio is not None]
    rows = [
        ("networks with exporters", f"{len(results)}"),
        ("exported", f"{len(exported)}"),
        ("agree", f"{sum(result.status == 'agrees' for result in exported)}"),
        ("stages compared", f"{sum(r.settled + r.measured + r.unknown for r in exported)}"),
        ("of these settled by the cheap bound", f"{sum(r.settled for r in exported)}"),
        ("measured", f"{sum(r.measured for r in exported)}"),
        ("unknown", f"{sum(r.unknown for r in exported)}"),
        ("largest ratio", f"{max(ratios):.2f}" if ratios else ""),
        ("shipped files with weights", f"{len(shipped)}"),
        ("of these with the right verdict", f"{sum(r.status == r.expected for r in shipped)}"),
    ]
    return "\n".join(["| measure | found |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def _table(results: Sequence[Result], nets: Mapping[str, Any]) -> str:
    lines = [
        "| network | package | exporter | stages | coverage | worst total | off | all | floors | ratio | seconds |"
    ]
    lines += ["|---|---|---|---:|---:|---:|---|---|---:|---:|---:|"]
    for r in results:
        cells = [r.net, nets[r.net].source, r.exporter]
        if r.status in ("no export", "error"):
            cells += ["", "", "", r.status, "", "", "", ""]
        else:
            coverage = "" if r.coverage is None else f"{r.coverage:.0%}"
            worst = "" if r.worst is None else f"{r.worst:.1e}"
            ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
            cells += [f"{r.aligned}/{r.stages}", coverage, worst, r.off, r.all]
            cells += [f"{r.settled}/{r.measured}/{r.unknown}", ratio, f"{r.seconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    text = re.sub(r"\s*whole log: \S+", "", text)  # a file that is gone
    return text.replace("|", "\\|").replace(str(Path.home()), "~")


def machine() -> str:
    """What the figures were made with."""
    packages = []
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "transformers"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(packages)}; {os.cpu_count()} CPU cores."


if __name__ == "__main__":
    assert importlib.util.find_spec("bisect_tool") is not None, "PYTHONPATH must have the project: use scripts/corpus"
    sys.exit(main())

"""Runs what needs CUDA: matrices, TF32 on either side, choice of algorithms, placement, a hidden provider, tests.

Prints what was asked for, what was really in effect, how far off it is, and the verdict, as Markdown. This process
loads neither torch nor onnxruntime: whatever they do to a process with a GPU stays in those that are started from here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

try:
    from matrix_runs import EXAMPLES, Judged, example, judge, table, with_this_package

    from bisect_tool.records import ConfigRun
    from bisect_tool.reporters.pairs import in_effect_text, requested_texts
except ImportError as error:
    sys.exit(f"this interpreter lacks what bisect-divergence needs ({error}): pip install -e '.[gpu,test]'")

HEAD = ("part", "of", "requested", "in effect", "worst error", "verdict", "time")

OFF = {"matmul_tf32": False, "cudnn_conv_tf32": False, "cudnn_rnn_tf32": False}
ON = dict.fromkeys(OFF, True)

Sides = tuple[Mapping[str, Any], Mapping[str, Any]]
SWITCHES: Mapping[str, Sides] = {
    # One side on CUDA, the other on the CPU: which of them TF32 moves.
    "torch-tf32-off": ({"device": "cuda", **OFF}, {"optimization": "off"}),
    "torch-tf32-on": ({"device": "cuda", **ON}, {"optimization": "off"}),
    "ort-tf32-off": ({}, {"device": "cuda", "optimization": "off", "use_tf32": False}),
    "ort-tf32-on": ({}, {"device": "cuda", "optimization": "off", "use_tf32": True}),
    "both-tf32-off": ({"device": "cuda", **OFF}, {"device": "cuda", "optimization": "off", "use_tf32": False}),
    "both-tf32-on": ({"device": "cuda", **ON}, {"device": "cuda", "optimization": "off", "use_tf32": True}),
    # The choice of algorithms, without TF32 beside it.
    "torch-search-measured": ({"device": "cuda", **OFF, "cudnn_benchmark": True}, {"optimization": "off"}),
    "torch-search-fixed": ({"device": "cuda", **OFF, "cudnn_deterministic": True}, {"optimization": "off"}),
    **{
        f"ort-search-{search.lower()}": (
            {},
            {"device": "cuda", "use_tf32": False, "cudnn_conv_algo_search": search},
        )
        for search in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")
    },
}
SWITCHED = ("centerpoint", "attention")
"""Examples that the switches run on: convolutions, and products with attention."""

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(torch.atan(self.first(x)))

def build_model():
    return Net()
"""
"""ONNX Runtime has no CUDA kernel for Atan: it puts that node on the CPU, with a warning at most."""

ON_CUDA = """
[[pair]]
name = "cpu"
actual.optimization = "off"
[[pair]]
name = "ort-cuda"
gating = false
actual.device = "cuda"
actual.optimization = "off"
"""


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        facts: for the table, by name.
        torch: why PyTorch cannot run on CUDA; ``None`` if it can.
        ort: why ONNX Runtime cannot; likewise.
    """

    facts: Mapping[str, str]
    torch: str | None
    ort: str | None


@dataclass(frozen=True)
class Row:
    """One line of the table. ``wrong``: the program itself did not do what it says it does."""

    part: str
    of: str
    requested: str = "-"
    effective: str = "-"
    error: str = "-"
    verdict: str = "-"
    seconds: float | None = None
    wrong: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        time = "-" if self.seconds is None else f"{self.seconds:.2f} s"
        return self.part, self.of, self.requested, self.effective, self.error, self.verdict, time


def main() -> int:
    """Returns 0 if there is no GPU, or all went as it should; 1 if a check showed the program to be wrong."""
    options = _arguments()
    machine = probe()
    lines = ["# CUDA check", "", "Written by `scripts/gpu-check`.", ""]
    lines += [*table(("what", "found"), machine.facts.items()), ""]
    missing = list(dict.fromkeys(filter(None, (machine.torch, machine.ort))))
    if machine.torch and machine.ort:
        lines += [f"No CUDA run: {'; '.join(missing)}.", ""]
    elif missing:
        lines += [f"Only one side ran on CUDA: {missing[0]}.", ""]
    notes: list[str] = []
    rows: list[Row] = []
    for row in _rows(options, machine, notes):
        if len(missing) < 2:  # it takes a while
            print(" | ".join(row.cells), file=sys.stderr, flush=True)
        rows.append(row)
    lines += [*table(HEAD, (row.cells for row in rows)), ""]
    if notes:
        lines += ["What separates failing pairs from passing ones:", "", *(f"- {note}" for note in notes), ""]
    wrong = [row for row in rows if row.wrong]
    if wrong:
        lines += [f"**{len(wrong)} of {len(rows)} checks failed:** {', '.join(f'{r.part} {r.of}' for r in wrong)}.", ""]
    text = "\n".join(lines)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    return int(bool(wrong))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", default=",".join(EXAMPLES), help="comma-separated; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one command; default: %(default)s")
    parser.add_argument("--output", type=Path, help="Markdown file to write too")
    options = parser.parse_args()
    options.examples = options.examples.split(",")
    for name in options.examples:
        if name not in EXAMPLES:
            parser.error(f"{name!r} is none of {', '.join(EXAMPLES)}")
    return options


# What there is


def probe() -> Machine:
    """Asks PyTorch and ONNX Runtime, in a process of their own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--probe"]
    done = subprocess.run(words, env=with_this_package(), capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"PyTorch or ONNX Runtime cannot be asked: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Machine({**found["facts"], "driver": _driver()}, found["torch"], found["ort"])


def print_probe() -> None:
    """What ``--probe`` does: one line of JSON."""
    import platform

    import onnxruntime
    import torch

    from bisect_tool.backends.ort_options import CUDA, require_provider
    from bisect_tool.backends.torch_switches import require_device
    from bisect_tool.errors import InconclusiveError

    def reason(require: Callable[[str], None], name: str) -> str | None:
        try:
            require(name)
        except InconclusiveError as error:
            return error.message
        return None

    torch_reason, ort_reason = reason(require_device, "cuda"), reason(require_provider, CUDA)
    here = torch_reason is None
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    facts = {
        "device": torch.cuda.get_device_name() if here else "none that PyTorch can use",
        "compute capability": ".".join(map(str, torch.cuda.get_device_capability())) if here else "-",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none: a build without",
        "torch's cuDNN": str(cudnn or "-"),
        "ONNX Runtime": onnxruntime.__version__,
        "ONNX Runtime's CUDA": str(getattr(onnxruntime, "cuda_version", "") or "-"),
        "ONNX Runtime's providers": ", ".join(onnxruntime.get_available_providers()),
    }
    print(json.dumps({"facts": facts, "torch": torch_reason, "ort": ort_reason}))


def _driver() -> str:
    if shutil.which("nvidia-smi"):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8")) if file.exists() else None
    return found[0] if found else "none"


# The parts


def _rows(options: argparse.Namespace, machine: Machine, notes: list[str]) -> Iterator[Row]:
    neither = "; ".join(filter(None, (machine.torch, machine.ort))) if machine.torch and machine.ort else None
    parts: tuple[tuple[str, str | None, Callable[[str], Iterator[Row]]], ...] = (
        ("matrix full", neither, lambda part: _full(part, options, notes)),
        ("TF32", neither, lambda part: _switched(part, "tf32", options, machine, notes)),
        ("algorithm search", neither, lambda part: _switched(part, "search", options, machine, notes)),
        ("placement", machine.ort, lambda part: _placement(part, options)),
        ("hidden provider library", machine.ort, lambda part: _hidden(part, options)),
        ("tests marked gpu", neither, lambda part: _tests(part, options)),
    )
    for part, reason, run in parts:
        if reason is not None:
            yield Row(part, "-", verdict=f"skipped: {reason}")
        else:
            yield from run(part)


def _full(part: str, options: argparse.Namespace, notes: list[str]) -> Iterator[Row]:
    for name in options.examples:
        done = judge([*example(name), "--matrix", "full"], options.timeout)
        yield from _ending(part, name, done)
        chosen = [run for run in done.pairs if _on_cuda(run)]
        yield from _pairs(part, name, done, [run for run in chosen if run.status != "skipped"])
        reasons: dict[str, list[str]] = {}
        for run in chosen:
            if run.status == "skipped":
                reasons.setdefault(str(run.skipped_reason), []).append(run.name)
        for reason, names in reasons.items():
            yield Row(part, f"{name}: {', '.join(names)}", verdict=f"skipped: {reason}")
        notes += _diagnoses(name, done)


def _switched(part: str, kind: str, options: argparse.Namespace, machine: Machine, notes: list[str]) -> Iterator[Row]:
    chosen: dict[str, Sides] = {}
    for name, (expected, actual) in SWITCHES.items():
        needs = [reason for side, reason in ((expected, machine.torch), (actual, machine.ort)) if "device" in side]
        missing = [reason for reason in needs if reason is not None]
        if f"-{kind}-" in f"{name}-" and missing:
            yield Row(part, name, verdict=f"skipped: {missing[0]}")
        elif f"-{kind}-" in f"{name}-":
            chosen[name] = expected, actual
    if not chosen:
        return
    with tempfile.TemporaryDirectory(prefix="bisect-gpu-") as folder:
        file = Path(folder) / "switches.toml"
        file.write_text(_toml({"cpu": ({}, {"optimization": "off"}), **chosen}), encoding="utf-8")
        for name in [name for name in SWITCHED if name in options.examples]:
            done = judge([*example(name), "--matrix", file], options.timeout)
            yield from _ending(part, name, done)
            yield from _pairs(part, name, done, [run for run in done.pairs if run.name in chosen])
            notes += _diagnoses(name, done)


def _placement(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """A session on CUDA with a node on the CPU must not pass."""
    with _small_case() as given:
        done = judge(given, options.timeout)
    run = next((run for run in done.pairs if run.name == "ort-cuda"), None)
    if run is None:
        yield Row(part, "a node without a CUDA kernel", verdict=f"exit {done.code}: {done.error}", wrong=True)
        return
    noticed = run.status == "failed" and "Atan" in str(run.skipped_reason)
    reason = f": {run.skipped_reason}" if run.skipped_reason else ""
    verdict = f"noticed{reason}" if noticed else f"NOT NOTICED, {run.status}{reason}"
    yield Row(part, "a node without a CUDA kernel", *_texts(done, run), verdict, run.seconds, wrong=not noticed)


def _hidden(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """Without its library CUDA cannot be had: that must be said, and no run on the CPU may take its place."""
    what = "libonnxruntime_providers_cuda.so taken away"
    with tempfile.TemporaryDirectory(prefix="bisect-gpu-") as folder:
        try:
            hide_provider(Path(folder))
        except (OSError, RuntimeError) as error:
            yield Row(part, what, verdict=f"could not be done: {error}", wrong=True)
            return
        with _small_case(gating=True) as given:
            done = judge(given, options.timeout, {"PYTHONPATH": folder})
    run = next((run for run in done.pairs if run.name == "ort-cuda"), None)
    reason = (str(run.skipped_reason) if run else done.error).replace(f"{folder}/", "")
    noticed = done.code == 3 and run is not None and run.status == "failed" and "providers_cuda" in reason
    verdict = f"{'noticed' if noticed else 'NOT NOTICED'}: exit {done.code}, {reason}"
    yield Row(part, what, "CUDA", "-", "-", verdict, done.seconds, wrong=not noticed)


def hide_provider(folder: Path) -> None:
    """A copy of onnxruntime's package in ``folder`` without the CUDA provider's library.

    Raises:
        RuntimeError: there is no onnxruntime, or it has no such library.
    """
    words = [sys.executable, "-c", "import onnxruntime; print(onnxruntime.__path__[0])"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("onnxruntime cannot be imported")
    package = Path(done.stdout.strip())
    libraries = {path for path in package.rglob("*providers_cuda*") if path.is_file()}
    if not libraries:
        raise RuntimeError("this onnxruntime has no such library")
    for path in package.rglob("*"):
        target = folder / "onnxruntime" / path.relative_to(package)
        if path.is_dir() or path in libraries or "__pycache__" in path.parts:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Providers are looked for beside the extension module, wherever a link to it leads.
        if "pybind11_state" in path.name or path.suffix == ".py":
            shutil.copy(path, target)
        else:
            target.symlink_to(path)


def _tests(part: str, options: argparse.Namespace) -> Iterator[Row]:
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider", "-rs"]
    # Other tests may need packages that are not here.
    words += ["--continue-on-collection-errors"]
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=with_this_package(), capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        yield Row(part, "pytest -m gpu", verdict=f"stopped after {options.timeout:.0f} s", wrong=True)
        return
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    summary = lines[-1].strip("= ")
    if "No module named pytest" in done.stderr:
        yield Row(part, "pytest -m gpu", verdict="skipped: pytest is not installed")
        return
    failed = bool(re.search(r"\b\d+ failed", summary))
    yield Row(part, "pytest -m gpu", verdict=summary, wrong=failed or "passed" not in summary)
    for line in lines:
        if line.startswith(("SKIPPED", "FAILED")):
            yield Row(part, "pytest -m gpu", verdict=line)


# Rows of a run


def _ending(part: str, name: str, done: Judged) -> Iterator[Row]:
    if done.report is None or done.code not in (0, 1, 3):
        yield Row(part, name, verdict=f"exit {done.code}: {done.error}", seconds=done.seconds, wrong=True)
    else:
        yield Row(part, f"{name}: whole command", verdict=f"exit {done.code}", seconds=done.seconds)


def _pairs(part: str, name: str, done: Judged, runs: Sequence[ConfigRun]) -> Iterator[Row]:
    for run in runs:
        verdict = run.status + (f": {run.skipped_reason}" if run.skipped_reason else "")
        wrong = run.status == "crashed" or (run.status == "agrees" and _left_behind(run))
        yield Row(part, f"{name}: {run.name}", *_texts(done, run), verdict, run.seconds, wrong=wrong)


def _texts(done: Judged, run: ConfigRun) -> tuple[str, str, str]:
    assert done.report is not None
    worst = max(run.outputs, key=lambda output: output.total.rel_l2, default=None)
    largest = max((output.total.max_abs for output in run.outputs), default=0.0)
    error = "-" if worst is None else f"{worst.total.rel_l2:.1e}, largest {largest:.2g}"
    return requested_texts(done.report)[run.name], in_effect_text(run), error


def _on_cuda(run: ConfigRun) -> bool:
    return "cuda" in (run.expected.device, run.actual.device)


def _left_behind(run: ConfigRun) -> bool:
    """Whether a run that was to be on CUDA was not there at all."""
    providers = run.effective.get("actual", {}).get("providers", ["CUDAExecutionProvider"])
    on_cpu = run.actual.device == "cuda" and providers[:1] == ["CPUExecutionProvider"]
    return on_cpu or (run.expected.device == "cuda" and run.effective.get("expected", {}).get("device") != "cuda")


def _diagnoses(name: str, done: Judged) -> list[str]:
    if done.report is None:
        return []
    found = done.report.verdict.diagnoses
    return [f"{name}: {d.title}. {d.evidence[0]}{f' ({d.cost})' if d.cost else ''}" for d in found]


# Cases


class _small_case:
    """The arguments for the little model with a node that has no CUDA kernel, in a folder of its own."""

    def __init__(self, *, gating: bool = False):
        self.matrix = ON_CUDA.replace("gating = false", "gating = true") if gating else ON_CUDA
        self.folder = tempfile.TemporaryDirectory(prefix="bisect-gpu-")

    def __enter__(self) -> list[str]:
        folder = Path(self.folder.__enter__())
        (folder / "model.py").write_text(MODEL, encoding="utf-8")
        (folder / "m.toml").write_text(self.matrix, encoding="utf-8")
        maker = "import numpy, sys; numpy.save(sys.argv[1], numpy.linspace(-2, 2, 128, dtype='float32').reshape(8, 16))"
        subprocess.run([sys.executable, "-c", maker, str(folder / "x.npy")], check=True)
        given = [str(folder / "model.py"), "--input", str(folder / "x.npy"), "--matrix", str(folder / "m.toml")]
        return [*given, "--exporter", "torchscript"]

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def _toml(pairs: Mapping[str, Sides]) -> str:
    lines: list[str] = []
    for name, (expected, actual) in pairs.items():
        lines += ["[[pair]]", f'name = "{name}"', f"gating = {str(name == 'cpu').lower()}"]
        for side, settings in (("expected", expected), ("actual", actual)):
            # JSON's strings, numbers and truth values are TOML's.
            lines += [f"{side}.{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print_probe()
    else:
        sys.exit(main())

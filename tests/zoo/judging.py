"""Puts the tool to a case, and reads of its report only what ``docs/report.md`` promises."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import truth
from causes import right_causes
from families import FAMILIES, built, exported
from faults import Fault
from truth import Healthy

Report = Mapping[str, Any]

LEVELS = ("off", "basic", "extended", "all")
PRECISIONS = ("tf32", "bf16", "fp16")

CASE_SECONDS = 120


@dataclass(frozen=True)
class Result:
    """One line of the results.

    Attributes:
        id: of the case; the same from run to run.
        section: ``fault``, ``two``, ``unhurt`` or ``torch``.
        kind: of the fault; both of two, joined; the precision of PyTorch's side; the seed of unhurt inputs.
        place: the node or nodes that the fault was planted at.
        moved: how far the fault moves its own value; of two, the smaller.
        outputs_moved: how far it moves the final outputs.
        status: the tool's verdict.
        detected: the verdict is ``diverges``.
        top1: the planted node is among the nodes of the first origin; of two, one of them is.
        found: the planted node is among the nodes of some origin; of two, both are.
        named: number of nodes of the first origin.
        origins: number of origins.
        side: of the first origin; of ``torch``, what most origins have.
        cause: code of the diagnosis of the first origin that is explained; ``BD100``: unknown. Of one fault only.
        cause_right: it is one that fits the kind of fault (``causes.py``).
        remedy: it was tried, and only rounding was left.
        stage: of the first origin.
        convolutions, blamed: of ``torch``: convolutions, and how many are origins of side ``expected``.
        wrong_side: of ``torch``: origins of side ``actual``.
        levels: of ``unhurt``: the status of each optimisation level.
        seconds: that the tool took.
        error: what it raised instead of an answer.
        wrong: pairs that are none; only where there is a truth to tell.
    """

    id: str
    section: str
    family: str
    exporter: str
    kind: str
    place: str = ""
    moved: float = 0.0
    outputs_moved: float = 0.0
    status: str = ""
    detected: bool = False
    top1: bool = False
    found: bool = False
    named: int = 0
    origins: int = 0
    side: str | None = None
    cause: str = ""
    cause_right: bool = False
    remedy: bool = False
    stage: str = ""
    convolutions: int = 0
    blamed: int = 0
    wrong_side: int = 0
    levels: Mapping[str, str] | None = None
    seconds: float = 0.0
    error: str | None = None
    wrong: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def base_of(family: str, exporter: str, folder: Path | None = None) -> Healthy:
    """The healthy graph of a family with the values of its own sample."""
    model = onnx.load(exported(family, exporter, folder))
    arrays = [tensor.numpy() for tensor in FAMILIES[family].inputs(0)]
    return truth.healthy(model, truth.feeds_of(model, arrays))


def report_of(family: str, file: Path, seed: int = 0, **options: Any) -> dict[str, Any]:
    """The tool's report on a family's model and an ONNX file, as a user gets it who names no tolerance."""
    from bisect_tool import LoadedCase, Options, bisect, make_tolerance
    from bisect_tool.store import report_to_json

    case = LoadedCase(family, built(family), FAMILIES[family].inputs(seed), {})
    return report_to_json(bisect(case, Options(tolerance=make_tolerance(None, None, None), onnx=file, **options)))


def report_on(family: str, model: onnx.ModelProto, **options: Any) -> dict[str, Any]:
    """The tool's report on a graph that is in no file yet."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        return report_of(family, file, **options)


def judge(blank: Result, run: Callable[[], Report], read: Callable[[Result, Report], Result]) -> Result:
    """Fills in a result. Whatever the tool raises is a miss of its own, and ends nothing."""
    began = time.perf_counter()
    try:
        with _time_limit(CASE_SECONDS):
            report = run()
            seconds = time.perf_counter() - began
            return replace(read(blank, report), seconds=round(seconds, 3))
    except Exception as error:  # anything: that is what is being measured
        text = (str(error).splitlines() or [""])[0][:200]
        return replace(blank, status="error", error=f"{type(error).__name__}: {text}")


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def with_fault(
    family: str,
    exporter: str,
    fault: Fault,
    name: str,
    base: Healthy,
    wrong: Callable[[Report], Sequence[str]] = lambda _: (),
    **options: Any,
) -> Result:
    """The tool's answer on one fault; ``wrong`` tells which of its pairs are none."""
    blank = Result(name, "fault", family, exporter, fault.kind, fault.place, fault.moved)
    blank = replace(blank, outputs_moved=truth.outputs_moved(base, fault.model))

    def read(result: Result, report: Report) -> Result:
        return replace(_read(result, report, [fault]), wrong=tuple(wrong(report)))

    return judge(blank, lambda: report_on(family, fault.model, **options), read)


def with_two(family: str, exporter: str, pair: Sequence[Fault], name: str, base: Healthy, **options: Any) -> Result:
    """The tool's answer on a graph with two faults; the model of the second has both."""
    kinds, places = (" + ".join(parts) for parts in ([f.kind for f in pair], [f.place for f in pair]))
    blank = Result(name, "two", family, exporter, kinds, places, min(fault.moved for fault in pair))
    blank = replace(blank, outputs_moved=truth.outputs_moved(base, pair[-1].model))
    return judge(blank, lambda: report_on(family, pair[-1].model, **options), lambda r, report: _read(r, report, pair))


def _read(blank: Result, report: Report, planted: Sequence[Fault]) -> Result:
    verdict = report["verdict"]
    named = [set(origin["onnx_nodes"]) for origin in verdict["origins"]]
    first = verdict["origins"][0] if named else None
    explained = [each for each in verdict["diagnoses"] if each["origin"] is not None]
    cause = explained[0]["code"] if explained else ""
    return replace(
        blank,
        status=verdict["status"],
        detected=verdict["status"] == "diverges",
        cause=cause,
        cause_right=len(planted) == 1 and cause in right_causes(planted[0].kind),
        remedy=bool(explained) and explained[0]["remedy_verified"] is True,
        top1=bool(named) and any(named[0].intersection(fault.nodes) for fault in planted),
        found=all(any(nodes.intersection(fault.nodes) for nodes in named) for fault in planted),
        named=len(named[0]) if named else 0,
        origins=len(named),
        side=first["side"] if first else None,
        stage=_stage(first) if first else "",
    )


def _stage(origin: Mapping[str, Any]) -> str:
    return f"{origin['stage'] or 'the model'}" + (f" call {origin['call']}" if origin["call"] else "")


def unhurt(family: str, exporter: str, seed: int, name: str, folder: Path | None = None, **options: Any) -> Result:
    """The tool's answer on a graph as exported, at every optimisation level; anything but agreement is a false alarm."""

    def read(blank: Result, report: Report) -> Result:
        verdict = report["verdict"]
        levels = {run["name"].removeprefix("ort-cpu-"): run["status"] for run in report["configs"]}
        first = verdict["origins"][0] if verdict["origins"] else None
        return replace(
            blank,
            status=verdict["status"],
            detected=verdict["status"] != "agrees" or first is not None,
            origins=len(verdict["origins"]),
            stage=_stage(first) if first else "",
            levels=levels,
        )

    file = exported(family, exporter, folder)
    blank = Result(name, "unhurt", family, exporter, f"inputs {seed}")
    return judge(blank, lambda: report_of(family, file, seed, optimizations=LEVELS, **options), read)


def torch_precision(
    family: str, exporter: str, precision: str, name: str, folder: Path | None = None, **options: Any
) -> Result:
    """The tool's answer where PyTorch computes its products in a lower precision: PyTorch's side is off, never ONNX."""

    def run() -> Report:
        from bisect_tool.matrix import read_matrix

        with tempfile.TemporaryDirectory(prefix="zoo-") as place:
            file = Path(place) / "matrix.toml"
            lines = ["[[pair]]", f'name = "{precision}-emulated"', "gating = true"]
            lines += ["[pair.expected]", f'emulate = "{precision}"', "[pair.actual]", 'optimization = "off"']
            file.write_text("\n".join(lines), encoding="utf-8")
            pairs = read_matrix(str(file)).pairs
        return report_of(family, exported(family, exporter, folder), pairs=pairs, **options)

    def read(blank: Result, report: Report) -> Result:
        origins = report["verdict"]["origins"]
        expected = {_named(origin) for origin in origins if origin["side"] == "expected"}
        rows = [row for row in report["stages"] if row["role"] != "group"]
        convolutions = [row for row in rows if _convolves(row["type"])]
        sides = [origin["side"] for origin in origins]
        return replace(
            blank,
            status=report["verdict"]["status"],
            detected=report["verdict"]["status"] == "diverges",
            top1=bool(origins) and sides[0] == "expected",
            origins=len(origins),
            side=max(set(sides), key=sides.count) if sides else None,
            stage=_stage(origins[0]) if origins else "",
            convolutions=len(convolutions),
            blamed=sum(any(_named(row) in expected for row in _told_at(row, rows)) for row in convolutions),
            wrong_side=sides.count("actual"),
        )

    return judge(Result(name, "torch", family, exporter, precision), run, read)


def _named(entry: Mapping[str, Any]) -> tuple[str, int]:
    return entry["stage"], entry["call"]


def _told_at(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Where the error of a stage can show: in itself, or, where it was folded into what reads it, in that."""
    if row["results"]:
        return [row]
    return [other for other in rows if other["index"] > row["index"] and other["results"]][:1]


def _convolves(kind: str) -> bool:
    return kind.lower().startswith("conv") or "convolution" in kind

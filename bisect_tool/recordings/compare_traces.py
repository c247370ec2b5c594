"""Two recordings → a report: the chain link by link, stage by stage, and why they differ. No torch is needed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bisect_tool.compare import input_error
from bisect_tool.environments.snapshot import peak_rss_mb
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.globs import matches
from bisect_tool.metrics import judge, kind_of_name, relative_limit
from bisect_tool.pictures import Camera, with_few
from bisect_tool.recordings.bundles import PROJECTED, Bundle, Recorded, open_bundle
from bisect_tool.recordings.cause_help import remedy_of
from bisect_tool.recordings.chain import NUMERIC, first_cause, provenance_links
from bisect_tool.recordings.comparable import comparable, strangers
from bisect_tool.recordings.trace_floors import floor_lines, floor_of, judged_by_floor, ratio_of, rounding_limit
from bisect_tool.records import (
    Alignment,
    Comparison,
    ConfigRun,
    Difference,
    ErrorMetrics,
    ErrorPicture,
    FirstCause,
    Judgement,
    Link,
    NumericConfig,
    OutputKey,
    OutputResult,
    Pair,
    Report,
    Spread,
    StageRef,
    StageRow,
    Tolerance,
    Unaligned,
    Verdict,
)
from bisect_tool.spread import spread_of
from bisect_tool.tolerances import DEFAULT_REL_L2, make_tolerance
from bisect_tool.verdicts import decide

STEP = 30.0
"""Error that grew by more than this inside a stage was made there; what grew by less came in."""


def compare_traces(
    expected: Bundle,
    actual: Bundle,
    tolerance: Tolerance,
    *,
    level: str = "leaf",
    stages: Sequence[str] = (),
    min_coverage: float = 0.9,
    command: str = "",
) -> Report:
    """Compares two recordings.

    Args:
        expected, actual: opened; the first is the reference.
        tolerance: in force; one of absolute size needs full recordings.
        level: of the stages that are judged.
        stages: globs; these stages instead, at every level.
        min_coverage: under this share of stages found on both sides nothing is called agreeing.
        command: as typed.

    Raises:
        BisectError: a glob that nothing matches.
        InconclusiveError: there is nothing to compare, or not by this tolerance.
    """
    began = time.perf_counter()
    comparer = _Comparer(expected, actual, tolerance)
    config = f"{expected.name}|{actual.name}"
    rows, alignment = _stage_rows(comparer, config, level, stages)
    outputs = _outputs(comparer)
    if not rows and not outputs:
        raise InconclusiveError(
            "the recordings hold no stage and no output", hint="record a model that returns tensors"
        )
    run = _config_run(comparer, config, rows, outputs, time.perf_counter() - began)
    before = provenance_links(
        _with_texts(expected, comparer.sides.expected), _with_texts(actual, comparer.sides.actual), comparer.relative
    )
    stage_link = _stages_link(comparer, rows, config)
    links = [*before, stage_link, _outputs_link(outputs)]
    verdict = decide(rows, [run], alignment, min_coverage, selected=bool(stages))
    apart = strangers(comparer.sides.expected, comparer.sides.actual)
    if apart:
        run = replace(run, status="skipped", skipped_reason="no stage in common")
        verdict = Verdict("inconclusive", apart, None, (), ())
    else:
        cause = _cause(links, rows, config)
        floors = floor_lines(rows, outputs, config)
        summary = _summary(verdict, cause, links, comparer, [*_one_sided(alignment, comparer), *floors])
        verdict = replace(verdict, summary=summary, first_cause=cause)
    return Report(
        case=_case(expected, actual, config, command),
        verdict=verdict,
        tolerance=tolerance,
        alignment=alignment,
        configs=(run,),
        stages=tuple(with_few(rows, verdict)),
        environment={"expected": _environment(expected), "actual": _environment(actual)},
        timings={"compare": time.perf_counter() - began},
        notes=tuple(_notes(comparer)),
        chain=tuple(links),
    )


def compare_recordings(
    expected: str | os.PathLike[str], actual: str | os.PathLike[str], tolerance: Tolerance | None = None, **options: Any
) -> Report:
    """The same from two paths; ``options`` are those of :func:`compare_traces`.

    Raises:
        BisectError: a recording can't be read.
    """
    with open_bundle(expected) as one, open_bundle(actual) as other:
        return compare_traces(one, other, tolerance or make_tolerance(None, None, None), **options)


def _with_texts(bundle: Bundle, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest, with what its steps hold that is no number."""
    names = {entry["tensor"] for entry in manifest["data"]["taps"]}
    texts = {name: bundle.texts(name) for name in names if bundle.tensors[name].dtype == "json"}
    return {**manifest, "texts": {name: text for name, text in texts.items() if text is not None}}


class _Comparer:
    """Tensors of two bundles against each other; in full where both have them, else by their projections."""

    def __init__(self, expected: Bundle, actual: Bundle, tolerance: Tolerance):
        self.expected = expected
        self.actual = actual
        self.sides = comparable(expected.manifest, actual.manifest)
        self.tolerance = tolerance
        self.estimated = 0
        self.spreads: dict[tuple[str, str], Spread | None] = {}
        self.pictures: dict[tuple[str, str], ErrorPicture | None] = {}
        self._camera = Camera()
        self._known: dict[tuple[str, str], tuple[ErrorMetrics, Judgement]] = {}

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are the same bit for bit."""
        return self.expected.tensors[one].sha256 == self.actual.tensors[other].sha256

    def floor(self, entry: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
        """The noise floor of a stage or an output; ``None`` where the sides have it in different dtypes."""
        dtypes = self.expected.tensors[entry["tensor"]].dtype, self.actual.tensors[other["tensor"]].dtype
        return floor_of(entry, other) if dtypes[0] == dtypes[1] else None

    def judged(self, one: str, other: str) -> tuple[ErrorMetrics, Judgement]:
        """The error, and whether it is allowed."""
        key = (one, other)
        if key not in self._known:
            self._known[key] = self._judge(self.expected.tensors[one], self.actual.tensors[other])
        return self._known[key]

    def relative(self, one: str, other: str) -> float | None:
        """Relative L2 of two tensors; ``None`` where they are the same bit for bit, NaN where they can't be compared."""
        if self.same(one, other):
            return None
        infos = self.expected.tensors[one], self.actual.tensors[other]
        if "json" in (infos[0].dtype, infos[1].dtype):
            return math.nan
        if None not in (infos[0].member, infos[1].member):
            metrics = self.judged(one, other)[0]
        else:
            metrics = estimate(*infos)
        return math.nan if metrics.problem or metrics.nonfinite_mismatch else metrics.rel_l2

    def _judge(self, one: Recorded, other: Recorded) -> tuple[ErrorMetrics, Judgement]:
        if one.sha256 != other.sha256 and "json" not in (one.dtype, other.dtype):
            arrays = self.expected.load(one.name), self.actual.load(other.name)
            if arrays[0] is not None and arrays[1] is not None:
                metrics, judgement = judge(arrays[0], arrays[1], self.tolerance)
                if judgement == "fail":
                    self.spreads[one.name, other.name] = spread_of(arrays[0], arrays[1], metrics, self.tolerance)
                    self.pictures[one.name, other.name] = self._camera.take("", "total", arrays[0], arrays[1], metrics)
                return metrics, judgement
        metrics = estimate(one, other)
        if one.sha256 != other.sha256:
            self.estimated += 1
            if self.tolerance.rel_l2 is None and not metrics.problem:
                raise InconclusiveError(
                    "one of the recordings holds no tensors, and a tolerance by absolute difference needs them",
                    hint="leave --max-abs and --atol/--rtol out, or record without --summary",
                )
        return metrics, _judgement(metrics, one.dtype, self.tolerance, one.sha256 == other.sha256)


def estimate(expected: Recorded, actual: Recorded) -> ErrorMetrics:
    """What two projections say about the tensors' difference; exact where the digests are equal.

    The norm of the projected difference is that of the difference within about 9 %. Numbers that a projection does not
    have are NaN, and ``differing`` is then the most that it can be.
    """
    count = math.prod(expected.shape)
    statistics = [info.statistics or {} for info in (expected, actual)]
    nonfinite = [sum(side.get(key, 0) for key in _NONFINITE) for side in statistics]
    if expected.sha256 == actual.sha256:
        return _metrics(count, 0.0, 1.0, nonfinite, 0, differing=0, exact=True)
    problem = None
    if expected.shape != actual.shape:
        problem = f"shape {list(expected.shape)} against {list(actual.shape)}"
    elif kind_of_name(expected.dtype) != kind_of_name(actual.dtype):
        problem = f"dtype {expected.dtype} against {actual.dtype}"
    elif expected.projection is None or actual.projection is None:
        problem = "no numbers"
    if problem is not None:
        return _metrics(count, math.nan, math.nan, nonfinite, 0, differing=0, problem=problem)
    assert expected.projection is not None and actual.projection is not None
    error = float(np.linalg.norm(expected.projection - actual.projection))
    norms = [side.get("norm") for side in statistics]
    if not all(isinstance(norm, float) and math.isfinite(norm) for norm in norms):
        return _metrics(count, math.nan, math.nan, nonfinite, 0, differing=count)
    reference, other = float(norms[0] or 0), float(norms[1] or 0)
    relative = error / reference if reference else (0.0 if error == 0 else math.inf)
    cosine = (reference**2 + other**2 - error**2) / (2 * reference * other) if reference and other else 0.0
    mismatch = sum(abs(statistics[0].get(key, 0) - statistics[1].get(key, 0)) for key in _NONFINITE)
    return _metrics(count, relative, max(-1.0, min(1.0, cosine)), nonfinite, mismatch, differing=count)


_NONFINITE = ("nan", "positive_infinite", "negative_infinite")


def _metrics(
    count: int,
    relative: float,
    cosine: float,
    nonfinite: Sequence[int],
    mismatch: int,
    *,
    differing: int,
    exact: bool = False,
    problem: str | None = None,
) -> ErrorMetrics:
    unknown = 0.0 if exact else math.nan
    sqnr = math.inf if relative == 0 else -20 * math.log10(relative) if 0 < relative < math.inf else -math.inf
    return ErrorMetrics(
        count=count,
        max_abs=unknown,
        mean_abs=unknown,
        rel_l2=relative,
        max_rel=unknown,
        cosine=cosine,
        sqnr_db=math.nan if math.isnan(relative) else sqnr,
        max_ulp=0.0 if exact else None,
        p99_abs=unknown,
        nonfinite_expected=nonfinite[0],
        nonfinite_actual=nonfinite[1],
        nonfinite_mismatch=mismatch,
        differing=differing,
        worst_index=None,
        worst_expected=None,
        worst_actual=None,
        problem=problem,
    )


def _judgement(metrics: ErrorMetrics, dtype: str, tolerance: Tolerance, same: bool) -> Judgement:
    if metrics.problem is not None or metrics.nonfinite_mismatch:
        return "fail"
    if metrics.count == 0:
        return "not compared"
    if same:
        return "pass"
    if kind_of_name(dtype) in ("integer", "other") and tolerance.min_sqnr is None:
        return "fail"
    return "pass" if metrics.rel_l2 <= relative_limit(dtype, tolerance) else "fail"


# -- stages -----------------------------------------------------------------------------------------------------------


def _stage_rows(comparer: _Comparer, config: str, level: str, globs: Sequence[str]) -> tuple[list[StageRow], Alignment]:
    recorded = comparer.sides.expected["stages"]
    chosen = [entry for entry in recorded if _is_chosen(entry, level, globs)]
    if globs and not chosen:
        known = ", ".join(sorted({entry["stage"] for entry in recorded if entry["stage"]})[:3])
        raise BisectError(f"--stages {' '.join(globs)}: no recorded stage matches", hint=f"stages look like: {known}")
    there = {_ref(entry): entry for entry in comparer.sides.actual["stages"]}
    absent = {_ref(entry): str(entry["reason"]) for entry in comparer.actual.manifest.get("absent") or ()}
    by_value: dict[int, dict[str, Any]] = {}
    for entry in recorded:
        if entry["level"] != "container":
            by_value.setdefault(entry["value"], entry)
    entering = _Entering(comparer, by_value, there)
    rows: list[StageRow] = []
    row_of_value: dict[int, int] = {}
    pairs: list[Pair] = []
    lost: list[Unaligned] = []
    for entry in chosen:
        ref = _ref(entry)
        other = there.get(ref)
        feeding = _feeding(entry, by_value, row_of_value)
        results: dict[str, Comparison] = {}
        if other is None:
            reason = absent.get(ref, f"{comparer.actual.name} has no stage of this name")
            lost.append(Unaligned(ref, reason, ref not in absent))
        else:
            pairs.append(Pair(ref, _value_name(other, ref), ("name",), None))
            results[config] = _compared(comparer, entry, other, entering.error(entry))
        info = comparer.expected.tensors[entry["tensor"]]
        alias = StageRef(*entry["alias_of"]) if entry.get("alias_of") else None
        row = StageRow(
            index=len(rows),
            stage=ref.stage,
            call=ref.call,
            output=ref.output,
            level=entry["level"],
            type=entry["type"],
            source=entry["source"],
            shape=info.shape,
            dtype=info.dtype,
            group=ref.stage.rpartition("/" if "/" in ref.stage else ".")[0],
            inputs=tuple(feeding),
            alias_of=alias,
            onnx_value=_value_name(other, ref) if other else None,
            onnx_nodes=(),
            results=results,
        )
        rows.append(row)
        row_of_value.setdefault(entry["value"], row.index)
    shown = {row.ref for row in rows}
    extra = tuple(str(_ref(e)) for e in there.values() if _is_chosen(e, level, globs) and _ref(e) not in shown)
    wanted = len(pairs) + sum(item.in_graph for item in lost)
    coverage = len(pairs) / wanted if wanted else None
    return rows, Alignment(tuple(pairs), tuple(lost), extra, len(chosen), len(pairs), coverage)


def _is_chosen(entry: Mapping[str, Any], level: str, globs: Sequence[str]) -> bool:
    path = entry["stage"]
    if globs:
        return any(matches(path, "" if glob == "(model)" else glob) for glob in globs)
    if level == "op":
        return "#" in path or entry["level"] == "op"
    return bool(entry["level"] == level and path != "")


def _ref(entry: Mapping[str, Any]) -> StageRef:
    return StageRef(entry["stage"], entry["call"], entry["output"])


def _value_name(entry: Mapping[str, Any], ref: StageRef) -> str:
    return str(entry.get("onnx_value") or ref)


def _feeding(
    entry: Mapping[str, Any], by_value: Mapping[int, Mapping[str, Any]], row_of_value: Mapping[int, int]
) -> list[int]:
    """Rows that a stage reads; through stages that have none."""
    found: dict[int, None] = {}
    seen: set[int] = set()
    stack = list(reversed(entry["reads"]))
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in row_of_value:
            found[row_of_value[value]] = None
        elif value in by_value:
            stack.extend(reversed(by_value[value]["reads"]))
    return list(found)


class _Entering:
    """Errors that enter stages, from the values that each one reads, whether these are rows of the report or not."""

    def __init__(
        self,
        comparer: _Comparer,
        by_value: Mapping[int, Mapping[str, Any]],
        there: Mapping[StageRef, Mapping[str, Any]],
    ):
        self._comparer = comparer
        self._by_value = by_value
        self._there = there
        inputs = [
            {entry["key"]: entry["tensor"] for entry in side["data"]["inputs"]}
            for side in (comparer.sides.expected, comparer.sides.actual)
        ]
        self._inputs = {key: (inputs[0][key], inputs[1][key]) for key in inputs[0].keys() & inputs[1].keys()}

    def error(self, entry: Mapping[str, Any]) -> float | None:
        """``None``: it reads nothing that is recorded, or not all of that has a counterpart."""
        errors = [self._of_value(self._by_value[value]) for value in entry["reads"] if value in self._by_value]
        errors += [self._of_pair(self._inputs.get(key)) for key in entry.get("reads_inputs") or ()]
        return input_error(range(len(errors)), lambda place: errors[place]) if errors else None

    def _of_value(self, producer: Mapping[str, Any]) -> float | None:
        other = self._there.get(_ref(producer))
        return None if other is None else self._of_pair((producer["tensor"], other["tensor"]))

    def _of_pair(self, pair: tuple[str, str] | None) -> float | None:
        if pair is None:
            return None
        error = self._comparer.relative(*pair)
        return 0.0 if error is None else error


def _compared(
    comparer: _Comparer, entry: Mapping[str, Any], other: Mapping[str, Any], entering: float | None
) -> Comparison:
    metrics, judgement = comparer.judged(entry["tensor"], other["tensor"])
    floor = comparer.floor(entry, other)
    dtype = comparer.expected.tensors[entry["tensor"]].dtype
    judgement = judged_by_floor(metrics, judgement, floor, dtype, comparer.tolerance)
    growth = None
    if entering and math.isfinite(entering) and not math.isnan(metrics.rel_l2):
        growth = metrics.rel_l2 / entering
    pair = (entry["tensor"], other["tensor"])
    return Comparison(
        metrics,
        None,
        entering,
        growth,
        None,
        floor,
        ratio_of(metrics, floor),
        judgement,
        spread=comparer.spreads.get(pair),
        picture=comparer.pictures.get(pair),
    )


def _outputs(comparer: _Comparer) -> tuple[OutputResult, ...]:
    there = {entry["key"]: entry for entry in comparer.actual.manifest["outputs"]}
    found = []
    for entry in comparer.expected.manifest["outputs"]:
        key: OutputKey = entry["key"]
        if key not in there:
            info = comparer.expected.tensors[entry["tensor"]]
            missing = _metrics(math.prod(info.shape), math.nan, math.nan, (0, 0), 0, differing=0, problem="missing")
            found.append(OutputResult(key, "", missing, "not compared"))
            continue
        metrics, judgement = comparer.judged(entry["tensor"], there[key]["tensor"])
        dtype = comparer.expected.tensors[entry["tensor"]].dtype
        judgement = judged_by_floor(metrics, judgement, comparer.floor(entry, there[key]), dtype, comparer.tolerance)
        if no_number(metrics):
            judgement = "not compared"
        found.append(OutputResult(key, str(key), metrics, judgement))
    return tuple(found)


def no_number(metrics: ErrorMetrics) -> bool:
    """Nothing but NaN and infinities, the same on both sides: no agreement to rely on."""
    return 0 < metrics.count == metrics.nonfinite_expected and not metrics.nonfinite_mismatch and not metrics.problem


def _config_run(
    comparer: _Comparer, config: str, rows: Sequence[StageRow], outputs: tuple[OutputResult, ...], seconds: float
) -> ConfigRun:
    failing = any(result.judgement == "fail" for result in outputs)
    failing = failing or any(row.results[config].judgement == "fail" for row in rows if config in row.results)
    return ConfigRun(
        name=config,
        expected=_numeric(comparer.expected),
        actual=_numeric(comparer.actual),
        effective={},
        gating=True,
        status="diverges" if failing else "agrees",
        observer_effect=None,
        outputs=outputs,
        seconds=seconds,
        peak_rss_mb=peak_rss_mb(),
    )


def _numeric(bundle: Bundle) -> NumericConfig:
    """One side's configuration as far as a report has places for it; all of it is in the chain."""
    chosen = bundle.manifest["provenance"].get("configuration") or {}
    mode = bundle.manifest["provenance"].get("mode") or {}
    backend = chosen.get("backend")
    threads = (mode.get("flags") or {}).get("threads")
    optimization = chosen.get("optimization")
    return NumericConfig(
        backend=backend if backend in ("torch", "onnxruntime", "onnx-reference") else "torch",
        device=str(chosen.get("device") or "cpu"),
        dtype=chosen.get("dtype"),
        # What differs between the sides is in the chain; a graph that is exposed stage by stage is not fused.
        optimization="off" if optimization is None and backend == "onnxruntime" else optimization,
        threads=threads if isinstance(threads, int) else 0,
    )


# -- links and verdict ------------------------------------------------------------------------------------------------


def _stages_link(comparer: _Comparer, rows: Sequence[StageRow], config: str) -> Link:
    compared = [row for row in rows if config in row.results]
    apart = [row for row in compared if _differs(row.results[config])]
    found = []
    alone = _first_alone(comparer, apart)
    if alone is not None:
        found.append(Difference(*alone, "any", (), "on one side only"))
    if apart:
        first = apart[0]
        which = "the only stage that is" if len(apart) == 1 else f"the first of {len(apart)} stages that are"
        found.append(_stage_difference(first, config, f"{which} not bit-identical"))
        failing = next((row for row in apart if row.results[config].judgement == "fail"), None)
        if failing is not None and failing is not first:
            found.append(_stage_difference(failing, config, "the first one over tolerance"))
    checked = f"{len(compared)} stages, {len(compared) - len(apart)} of them bit-identical"
    status: Any = "differs" if found else "same" if compared else "unknown"
    return Link("stages", status, checked, tuple(found))


def _first_alone(comparer: _Comparer, apart: Sequence[StageRow]) -> tuple[str, str | None, str | None] | None:
    """Of two training scripts the first step that one of them leaves out, if it comes before all numbers that differ: a layer
    that is not in the optimiser has neither gradient nor update. What models leave out is a matter of alignment.
    """
    sides = comparer.sides.expected, comparer.sides.actual
    if any(side.get("kind") != "script" for side in sides):
        return None
    order = [[_ref(entry) for entry in side["stages"]] for side in sides]
    first = apart[0].ref if apart else None
    found = []
    for here, (mine, others) in enumerate(((order[0], set(order[1])), (order[1], set(order[0])))):
        for place, ref in enumerate(mine):
            if ref == first:
                break
            if ref not in others:
                found.append((place, here, str(ref)))
                break
    if not found:
        return None
    _, here, name = min(found)
    return (name, "there", None) if here == 0 else (name, None, "there")


def _differs(result: Comparison) -> bool:
    return bool(result.total.problem) or result.total.differing > 0 or result.total.rel_l2 != 0


def _stage_difference(row: StageRow, config: str, note: str) -> Difference:
    total = row.results[config].total
    size = total.problem or f"relative L2 {total.rel_l2:.1e}"
    return Difference(str(row.ref), None, None, "any", (), f"{note}: {size}", None if total.problem else total.rel_l2)


def _outputs_link(outputs: Sequence[OutputResult]) -> Link:
    found = []
    for out in outputs:
        if out.judgement == "not compared" and not out.onnx_value:
            found.append(Difference(f"output {out.output}", "there", None, "any", (), "on one side only"))
        elif out.total.problem or out.total.differing:
            size = out.total.problem or f"relative L2 {out.total.rel_l2:.1e}"
            within = {"pass": "within tolerance", "fail": "over tolerance"}.get(out.judgement, "not compared")
            note = f"{size}, {within}"
            error = None if out.total.problem else out.total.rel_l2
            found.append(Difference(f"output {out.output}", None, None, "any", (), note, error))
    count = len(outputs)
    status: Any = "differs" if found else "same" if outputs else "unknown"
    return Link("outputs", status, f"{count} output{'' if count == 1 else 's'}", tuple(found))


def _cause(links: Sequence[Link], rows: Sequence[StageRow], config: str) -> FirstCause | None:
    by_name = {link.link: link for link in links}
    for place in ("data", "weights"):
        own = [difference for difference in by_name[place].differences if difference.reach != "none"]
        if own:
            text = f"{place}: {own[0].what}" + (f" ({own[0].note})" if own[0].note else "")
            errors = [math.inf if d.error is None or math.isnan(d.error) else d.error for d in own]
            return first_cause(links, place, text, max(errors), 1e-6)
    apart = [row for row in rows if config in row.results and _differs(row.results[config])]
    lead = next(iter(by_name["stages"].differences), None)
    if lead is not None and lead.note == "on one side only":
        return first_cause(links, "stages", f"stages: {lead.what} (on one side only)", math.inf, 0.0)
    if apart:
        first = made = apart[0]
        failing = next((row for row in apart if row.results[config].judgement == "fail"), None)
        # A tolerance may let pass what is more than rounding.
        failing = failing or next((row for row in apart if _error(row, config) > _rounding(row, config)), None)
        if failing is not None and _is_step(failing.results[config]):
            made = failing
        total = made.results[config].total
        text = f"stages: {first.ref} ({_size(first.results[config].total)})"
        if made is not first:
            text += f"; a step at {made.ref} ({_size(total)})"
        return first_cause(links, "stages", text, _error(made, config), _rounding(made, config))
    if by_name["outputs"].differences:
        difference = by_name["outputs"].differences[0]
        error = math.inf if difference.error is None else difference.error
        moved = [
            replace(link, link="stages") if link.link == "outputs" else link for link in links if link.link != "stages"
        ]
        found = first_cause(moved, "stages", f"outputs: {difference.what} ({difference.note})", error, 1e-5)
        return replace(found, link="outputs") if found is not None and found.link == "stages" else found
    return first_cause(links, None, None, 0.0, 0.0)


def _error(row: StageRow, config: str) -> float:
    total = row.results[config].total
    return math.inf if total.problem or math.isnan(total.rel_l2) else total.rel_l2


def _rounding(row: StageRow, config: str) -> float:
    return rounding_limit(row.results[config].floor, DEFAULT_REL_L2.get(row.dtype, 1e-4) / 10)


def _is_step(result: Comparison) -> bool:
    return result.growth is None or not result.growth < STEP


def _size(total: ErrorMetrics) -> str:
    return total.problem or f"relative L2 {total.rel_l2:.1e}"


def _summary(
    verdict: Verdict, cause: FirstCause | None, links: Sequence[Link], comparer: _Comparer, floors: Sequence[str]
) -> tuple[str, ...]:
    lines = []
    if cause is None:
        same = sum(link.status == "same" for link in links)
        lines.append(f"nothing differs: {same} links of the chain are the same, every compared number bit for bit")
    elif cause.numbers is None:
        harmless = (
            "what differs can't have changed one" if cause.difference.reach == "none" else "what differs changed none"
        )
        lines.append(f"no number differs, and {harmless}: {cause.link}: {_told(cause.difference)}")
    else:
        lines.append(f"first cause: {cause.link}: {_told(cause.difference)}")
        lines.append(f"first numbers that differ: {cause.numbers}")
    if cause is not None and cause.numbers is not None and (remedy := remedy_of(cause)):
        lines.append(f"help: {remedy}")
    if cause is not None and cause.others:
        shown = "; ".join(cause.others[:4]) + (f" and {len(cause.others) - 4} more" if len(cause.others) > 4 else "")
        adding = "" if cause.numbers is None else " that may add to it"
        lines.append(f"further differences{adding}: {shown}")
    skipped = ("where the error is made was not measured",)
    said = (line for line in verdict.summary if not line.startswith(skipped))
    # In recordings nothing was exposed: every stage is the run's own.
    said = (line.partition(", and no exposed stage does")[0] for line in said)
    return (*lines, *floors, *said, *comparer.sides.notes)


MOST_ONE_SIDED = 4
"""Stages that only one side has, by name."""


def _one_sided(alignment: Alignment, comparer: _Comparer) -> list[str]:
    """Stages that only one of two models has; of trainings of other lengths that is told already."""
    sides = (comparer.expected, comparer.actual)
    runners = [(side.manifest["provenance"].get("configuration") or {}).get("backend") for side in sides]
    # A graph lacks what was folded into others, and has what an operation is made of.
    if comparer.sides.notes or any(runner not in (None, "torch") for runner in runners):
        return []
    here = [str(each.ref) for each in alignment.unaligned]
    lines = []
    for side, names in (("expected", here), ("actual", list(alignment.unmatched_onnx))):
        if names:
            more = f" and {len(names) - MOST_ONE_SIDED} more" if len(names) > MOST_ONE_SIDED else ""
            what = "stage" if len(names) == 1 else "stages"
            lines.append(f"only {side} has {what} {', '.join(names[:MOST_ONE_SIDED])}{more}")
    return lines


def _told(difference: Difference) -> str:
    text = difference.what
    if difference.expected is not None or difference.actual is not None:
        text += f": {difference.expected or 'not there'} against {difference.actual or 'not there'}"
    return f"{text} ({difference.note})" if difference.note else text


def _notes(comparer: _Comparer) -> list[str]:
    notes = list(comparer.sides.notes)
    for side, bundle in (("expected", comparer.expected), ("actual", comparer.actual)):
        notes += [f"{side}: {note}" for note in bundle.manifest["notes"]]
    if comparer.estimated:
        rest = "1 comparison rests" if comparer.estimated == 1 else f"{comparer.estimated} comparisons rest"
        notes.append(
            f"{rest} on summaries: which tensors are the same is exact, relative errors are "
            f"estimates from {PROJECTED} random sums (about 9 % off), other errors are unknown"
        )
    return notes


def _case(expected: Bundle, actual: Bundle, config: str, command: str) -> dict[str, Any]:
    sides = {}
    for side, bundle in (("expected", expected), ("actual", actual)):
        manifest = bundle.manifest
        sides[side] = {
            "recording": str(bundle.path),
            "content": manifest["content"],
            "created": manifest.get("created"),
            "command": manifest.get("command"),
        }
    return {"name": config, **sides, "command": command}


def _environment(bundle: Bundle) -> dict[str, Any]:
    """What of an environment computes; all of it is in the bundle."""
    whole = dict(bundle.manifest["environment"])
    versions = whole.pop("distributions", None)
    if isinstance(versions, Mapping):
        whole["versions"] = {name: version for name, version in versions.items() if NUMERIC.fullmatch(str(name))}
    return whole

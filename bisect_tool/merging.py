"""Reports of a model's parts → one report of the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from bisect_tool.diagnose.optimiser import with_places
from bisect_tool.drilldown import SHARED, note_shared
from bisect_tool.records import (
    Alignment,
    ConfigRun,
    ConfigStatus,
    Diagnosis,
    NodeDetail,
    Origin,
    OutputResult,
    PartCall,
    PartOutput,
    PartResult,
    Report,
    StageRef,
    StageRow,
    Status,
    Verdict,
)
from bisect_tool.verdicts import decide

HANDED_ON = 10.0
"""A part that agrees by itself, and whose outputs in the chain are off by this many times more, hands on what came in."""


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call of a part, judged by itself on PyTorch's inputs; ``reason``: why there is no report."""

    part: str
    call: int
    report: Report | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """The whole model with the files in its parts' place, under one configuration pair.

    Attributes:
        outputs: of the model, judged.
        calls: by part and call, the relative error of what went in, and the metrics of what came out, by key.
        failed: why it did not run to its end.
        grown: outputs that are over the limit by rounding that grew on its way.
        random: PyTorch itself gives other outputs when it runs once more.
    """

    outputs: tuple[OutputResult, ...]
    calls: Mapping[tuple[str, int], tuple[float | None, Mapping[Any, Any]]]
    failed: str | None = None
    grown: tuple[OutputResult, ...] = ()
    random: bool = False


Rename = Callable[[str, str], str]
"""Part and a name in its graph → the name in the report."""


def renamer(names: Mapping[str, Set[str]]) -> Rename:
    """Puts ``<part>:`` before names that the graphs of several parts have.

    Args:
        names: of the nodes and values of each part's graph.
    """
    counts = Counter(name for own in names.values() for name in own)

    def rename(part: str, name: str) -> str:
        return f"{part}:{name}" if counts[name] > 1 else name

    return rename


def merged_rows(reports: Sequence[CallReport], rename: Rename) -> list[StageRow]:
    """The rows of all parts, in the order of the calls, numbered anew.

    The share of the final error is left out: within a part it would be that of the part's outputs.
    """
    rows: list[StageRow] = []
    for each in reports:
        start = len(rows)
        for row in each.report.stages if each.report is not None else ():
            rows.append(
                replace(
                    row,
                    index=row.index + start,
                    inputs=tuple(index + start for index in row.inputs),
                    onnx_value=None if row.onnx_value is None else rename(each.part, row.onnx_value),
                    onnx_nodes=_renamed(rename, each.part, row.onnx_nodes),
                    onnx_weights=_renamed(rename, each.part, row.onnx_weights),
                    results={name: replace(result, share=None) for name, result in row.results.items()},
                    part=each.part,
                )
            )
    return rows


def merged_origins(reports: Sequence[CallReport], rename: Rename) -> dict[tuple[StageRef, str], Origin]:
    """Origins of all parts, with what was found inside them, by stage and configuration."""
    found = []
    for each in reports:
        for origin in each.report.verdict.origins if each.report is not None else ():
            details = tuple(_renamed_node(rename, each.part, node) for node in origin.onnx_details)
            found.append(
                replace(
                    origin,
                    onnx_value=rename(each.part, origin.onnx_value),
                    onnx_nodes=_renamed(rename, each.part, origin.onnx_nodes),
                    onnx_weights=_renamed(rename, each.part, origin.onnx_weights),
                    onnx_details=details,
                    evidence=tuple(line for line in origin.evidence if not line.endswith(SHARED)),
                    part=each.part,
                )
            )
    return {(origin.ref, origin.config): origin for origin in note_shared(found)}


def _renamed(rename: Rename, part: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(rename(part, name) for name in names)


def _renamed_node(rename: Rename, part: str, node: NodeDetail) -> NodeDetail:
    inputs, outputs = (tuple(name and rename(part, name) for name in names) for names in (node.inputs, node.outputs))
    return replace(node, name=rename(part, node.name), inputs=inputs, outputs=outputs)


def merged_alignment(reports: Sequence[CallReport], rename: Rename) -> Alignment:
    """Pairs and counts of all parts together; a value stands for no stage if it does so in no call."""
    own = [(each, each.report.alignment) for each in reports if each.report is not None]
    lost = sum(item.in_graph for _, alignment in own for item in alignment.unaligned)
    aligned = sum(alignment.aligned for _, alignment in own)
    unmatched: dict[str, list[str]] = {}
    for each, alignment in own:
        before = unmatched.get(each.part, alignment.unmatched_onnx)
        unmatched[each.part] = [name for name in before if name in alignment.unmatched_onnx]
    return Alignment(
        pairs=tuple(
            replace(pair, onnx_value=rename(each.part, pair.onnx_value))
            for each, alignment in own
            for pair in alignment.pairs
        ),
        unaligned=tuple(item for _, alignment in own for item in alignment.unaligned),
        unmatched_onnx=tuple(rename(part, name) for part, names in unmatched.items() for name in names),
        stages=sum(alignment.stages for _, alignment in own),
        aligned=aligned,
        coverage=aligned / (aligned + lost) if aligned + lost else None,
    )


# Configurations


def merged_config(name: str, reports: Sequence[CallReport], chain: Chain) -> ConfigRun:
    """One configuration: it diverges if a part does by itself, or the chain's outputs do."""
    runs = [(each, run) for each in reports if (run := config_of(each, name)) is not None]
    first = runs[0][1]
    statuses = {run.status for _, run in runs}
    reasons = [f"{_label(each)}: {run.skipped_reason}" for each, run in runs if run.skipped_reason]
    reasons += [f"{_label(each)}: {each.reason}" for each in reports if each.reason]
    status: ConfigStatus
    if "diverges" in statuses or (not chain.random and any(out.judgement == "fail" for out in chain.outputs)):
        status = "diverges"
    elif reasons or chain.failed or chain.random or statuses != {"agrees"}:
        status = "failed"
        reasons += [chain.failed] if chain.failed else []
        reasons += (
            ["PyTorch does not repeat itself: its outputs differ from one run to the next"] if chain.random else []
        )
    else:
        status = "agrees"
    exporters = {run.actual.exporter for _, run in runs}
    effective = [(_label(each), run.effective.get("actual", {})) for each, run in runs]
    same = all(actual == effective[0][1] for _, actual in effective)
    return replace(
        first,
        actual=first.actual if len(exporters) == 1 else replace(first.actual, exporter="several"),
        effective={**first.effective, "actual": effective[0][1] if same else dict(effective)},
        status=status,
        observer_effect=max((r.observer_effect for _, r in runs if r.observer_effect is not None), default=None),
        outputs=chain.outputs,
        seconds=sum(run.seconds for _, run in runs),
        peak_rss_mb=max(run.peak_rss_mb for _, run in runs),
        skipped_reason=None if status in ("agrees", "diverges") else "; ".join(dict.fromkeys(reasons)) or None,
    )


def config_of(each: CallReport, name: str) -> ConfigRun | None:
    """A configuration's run in one part."""
    configs = each.report.configs if each.report is not None else ()
    return next((run for run in configs if run.name == name), None)


def _label(each: CallReport) -> str:
    return each.part if each.call == 0 else f"{each.part}@{each.call}"


# Parts


def part_results(
    reports: Sequence[CallReport], files: Mapping[str, str], counts: Mapping[str, int], chains: Mapping[str, Chain]
) -> tuple[PartResult, ...]:
    """What became of each part, in the order of their first calls."""
    found = []
    for part in dict.fromkeys(each.part for each in reports):
        own = [each for each in reports if each.part == part]
        alignment = merged_alignment(own, lambda _, name: name)
        status, reason = _part_status(own)
        found.append(
            PartResult(
                part=part,
                onnx=files[part],
                calls=counts[part],
                compared=len(own),
                status=status,
                reason=reason,
                stages=alignment.stages,
                aligned=alignment.aligned,
                coverage=alignment.coverage,
                runs=tuple(_part_call(each, run, chains) for each in own if each.report for run in each.report.configs),
            )
        )
    return tuple(found)


def _part_status(own: Sequence[CallReport]) -> tuple[Status, str | None]:
    verdicts = [each.report.verdict for each in own if each.report is not None]
    if any(verdict.status == "diverges" for verdict in verdicts):
        return "diverges", None
    reasons = [each.reason for each in own if each.reason]
    reasons += [verdict.summary[0] for verdict in verdicts if verdict.status == "inconclusive"]
    return ("inconclusive", reasons[0]) if reasons else ("agrees", None)


def _part_call(each: CallReport, run: ConfigRun, chains: Mapping[str, Chain]) -> PartCall:
    chain = chains.get(run.name)
    entering, totals = chain.calls.get((each.part, each.call), (None, {})) if chain is not None else (None, {})
    outputs = tuple(
        PartOutput(out.output, out.onnx_value, out.total, out.judgement, totals.get(out.output)) for out in run.outputs
    )
    return PartCall(each.call, run.name, run.status, entering, outputs)


def worst(errors: Iterable[float]) -> float | None:
    """The largest of some errors; NaN is worse than any number. ``None`` if there are none."""
    found = [math.inf if math.isnan(error) else error for error in errors]
    return max(found, default=None)


def local_error(call: PartCall) -> float | None:
    """The largest relative error of a part's outputs on PyTorch's inputs."""
    return worst(out.local.rel_l2 for out in call.outputs)


def total_error(call: PartCall) -> float | None:
    """The largest relative error of a part's outputs in the chain."""
    return worst(out.total.rel_l2 for out in call.outputs if out.total is not None)


# The verdict


def merged_verdict(
    verdict: Verdict,
    reports: Sequence[CallReport],
    runs: Sequence[ConfigRun],
    parts: Sequence[PartResult],
    chains: Mapping[str, Chain],
    rename: Rename,
    min_coverage: float,
    *,
    selected: bool,
) -> Verdict:
    """What all parts and the chain say together; ``verdict``: what all rows and configurations say."""
    drilled = merged_origins(reports, rename)
    origins = tuple(drilled.get((o.ref, o.config), o) for o in verdict.origins)
    # What the optimiser does inside a part shows in no row.
    rewritten = [origin for key, origin in drilled.items() if key not in {(o.ref, o.config) for o in origins}]
    verdict = with_places(replace(verdict, origins=origins), rewritten) if rewritten else verdict
    origins = (*origins, *rewritten)
    lines = list(verdict.summary)
    status = verdict.status
    if status == "diverges":
        names = [run.name for run in runs if run.gating and run.status == "diverges"]
        alone = {part.part for part in parts if part.status == "diverges"}
        if not alone:
            lines = [_chain_line(names, chains)]
        else:
            unfit = _unfit_lines(_of(parts, alone))
            # That no stage is off says nothing then: what leaves a part is in another form than what the stages are.
            lines = unfit if unfit and verdict.first_over_tolerance is None else [*lines, *unfit]
            lines.append("by itself, on PyTorch's inputs, diverges: " + ", ".join(map(_named, _of(parts, alone))))
        lines += _handed_on(parts, names[0])
    else:
        troubled = [part for part in parts if part.status == "inconclusive"]
        if troubled:
            status = "inconclusive"
            lines = [f"{_named(part)}: {part.reason}" for part in troubled]
        elif status == "agrees":
            lines += [line for run in runs if run.gating for line in _grown(run.name, chains[run.name])]
    for part in dict.fromkeys(each.part for each in reports):
        told = [line for each in reports if each.part == part for line in _own_lines(each, min_coverage, selected)]
        lines += [f"{part}: {line}" for line in dict.fromkeys(told)]
    holders = [each.report.verdict for each in reports if each.report is not None and each.report.verdict.origins]
    return replace(
        verdict,
        status=status,
        summary=tuple(dict.fromkeys(lines)),
        origins=origins,
        diagnoses=_diagnoses(reports),
        # Of several faults in several parts, no single place of the whole model mends the outputs.
        hand_over=holders[0].hand_over if len(holders) == 1 else None,
    )


def _of(parts: Sequence[PartResult], names: Set[str]) -> list[PartResult]:
    return [part for part in parts if part.part in names]


def _unfit_lines(parts: Sequence[PartResult]) -> list[str]:
    """Outputs of files that have another shape or another kind of numbers than the submodule's."""
    lines = []
    for part in parts:
        unfit = {
            f"{out.output}: {out.local.problem}" for call in part.runs for out in call.outputs if out.local.problem
        }
        if unfit:
            lines.append(
                f"{_named(part)} does not return what the submodule returns: output {'; output '.join(sorted(unfit))}"
            )
    return lines


def _named(part: PartResult) -> str:
    return f"{part.part} ({PurePath(part.onnx).name})"


def _chain_line(configs: Sequence[str], chains: Mapping[str, Chain]) -> str:
    wrong = [
        f"{out.output} ({out.total.problem or f'relative L2 {out.total.rel_l2:.1e}'})"
        for name in configs
        for out in chains[name].outputs
        if out.judgement == "fail"
    ]
    return (
        f"each part agrees on PyTorch's inputs, and chained together the final outputs diverge under "
        f"{', '.join(configs)}: {', '.join(dict.fromkeys(wrong))}; what PyTorch does with the parts' outputs enlarges "
        "their errors beyond what rounding explains, or does not fit them"
    )


def _handed_on(parts: Sequence[PartResult], config: str) -> list[str]:
    """Parts that are right, and whose outputs are wrong since their inputs are."""
    lines = []
    for part in parts:
        for call in part.runs:
            total, local = total_error(call), local_error(call)
            if call.config != config or call.status != "agrees" or total is None or local is None:
                continue
            if call.input_error and total > HANDED_ON * local:
                number = f" (call {call.call})" if part.calls > 1 else ""
                lines.append(
                    f"{part.part}{number} agrees on PyTorch's inputs and hands on what comes in: "
                    f"relative L2 {call.input_error:.1e} in, {total:.1e} out"
                )
    return lines


def _grown(config: str, chain: Chain) -> list[str]:
    if not chain.grown:
        return []
    out = max(chain.grown, key=lambda each: each.total.rel_l2)
    return [
        f"rounding grows through the chain to {out.total.rel_l2:.1e} at output {out.output} ({config}), and as much where "
        "PyTorch's own parts are given random errors of the same size: no fault"
    ]


def _own_lines(each: CallReport, min_coverage: float, selected: bool) -> list[str]:
    """What a part's verdict says beyond what follows from its rows, which speak for themselves in the merged report."""
    if each.report is None or each.report.verdict.status == "inconclusive":
        return []
    report = each.report
    plain = decide(report.stages, report.configs, report.alignment, min_coverage, selected=selected)
    return [line for line in report.verdict.summary if line not in plain.summary]


def _diagnoses(reports: Sequence[CallReport]) -> tuple[Diagnosis, ...]:
    found = [
        replace(diagnosis, title=f"{diagnosis.title} (part {each.part})")
        for each in reports
        if each.report is not None
        for diagnosis in each.report.verdict.diagnoses
    ]
    return tuple(dict.fromkeys(found))

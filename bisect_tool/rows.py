"""What was measured, as rows of the report's stage table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace

from bisect_tool.align.matches import Match
from bisect_tool.compare import MAIN_LAYER, Ledger, compare_stage, hands_on, lane_name, stage_inputs
from bisect_tool.records import Role, Stage, StageRef, StageRow, TorchTrace
from bisect_tool.selection import Cut, Selection


def build_rows(
    trace: TorchTrace,
    selection: Selection,
    matches: Mapping[int, Match],
    cuts: Mapping[str, Cut],
    ledger: Ledger,
    configs: Iterable[str],
    forced: Set[str],
    nodes_between: Callable[[str, Set[str]], tuple[str, ...]],
) -> list[StageRow]:
    """One row for each stage that is shown, in order of execution.

    Args:
        trace, selection, matches: of the model.
        cuts: by layer of the selection.
        ledger: the measurements.
        configs: names of the configuration pairs that ran.
        forced: those of them that have forced runs.
        nodes_between: nodes of the given graph that make a value from the values of a cut.
    """
    configs = list(configs)
    inputs_of_model = {value for _, value in trace.inputs}
    layer_of = {stage.ref: name for name, stages in selection.layers.items() for stage in stages}
    roles: dict[StageRef, Role] = {stage.ref: "group" for stage in selection.groups}
    roles.update((stage.ref, "judged") for stage in selection.judged)
    rows: list[StageRow] = []
    by_value: dict[int, int] = {}
    measured = set(inputs_of_model)
    for stage in selection.shown:
        layer = layer_of.get(stage.ref, MAIN_LAYER)
        role = roles.get(stage.ref, "output")
        # An output of the model is what came after the judged stages, not the whole model.
        start = replace(stage, inputs=trace.parents.get(stage.value, ())) if role == "output" else stage
        cut = cuts.get(layer)
        inputs = stage_inputs(start, trace.parents, cut.known if cut else inputs_of_model)
        # Views between two stages have no row of their own, and folded stages no numbers.
        feeding = stage_inputs(start, trace.parents, measured)
        outside = [value for value in inputs if value not in inputs_of_model and value not in by_value]
        match = matches.get(stage.value)
        # What hands on an input of the model has no stage before it that its error could be from: the graph makes it there.
        first = stage.value in inputs_of_model and stage.value not in by_value
        computes = first or not hands_on(stage)
        results = {}
        for config in configs:
            local_lane = lane_name(config, layer) if computes and config in forced else None
            result = compare_stage(ledger, stage, config, local_lane, inputs, inputs_of_model)
            if result is not None:
                # What no row stands for was not judged: its error may have been made anywhere before.
                errors = [ledger.totals[config, v][0].rel_l2 for v in outside if (config, v) in ledger.totals]
                results[config] = replace(result, outside_error=max(errors, key=_badness, default=None))
        nodes: tuple[str, ...] = ()
        if match is not None and computes:
            nodes = nodes_between(match.onnx, cut.names if cut else frozenset())
        row = StageRow(
            index=len(rows),
            stage=stage.ref.stage,
            call=stage.ref.call,
            output=stage.ref.output,
            level=stage.level,
            type=stage.type,
            source=from_here(stage.source),
            shape=stage.shape,
            dtype=stage.dtype,
            group=_container_of(stage.ref.stage),
            inputs=tuple(by_value[v] for v in feeding if v in by_value),
            alias_of=stage.alias_of,
            onnx_value=match.onnx if match else None,
            onnx_nodes=nodes,
            results=results,
            role=role,
        )
        rows.append(row)
        if role != "group":
            by_value.setdefault(stage.value, row.index)
            if match is not None:
                measured.add(stage.value)
    return rows


def _badness(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _container_of(path: str) -> str:
    """The container that a stage is listed under."""
    if "/" in path:
        return path.rpartition("/")[0]
    return path.rpartition(".")[0]


def from_here(source: str | None) -> str | None:
    """``file:line`` as one would type it here: relative for files below the working directory."""
    here = os.getcwd() + os.sep
    return source[len(here) :] if source is not None and source.startswith(here) else source


def upstream(trace: TorchTrace, rows: Iterable[StageRow]) -> set[int]:
    """Values that the failing stages and the model's outputs come from, their own included."""
    failing = {row.ref for row in rows if any(result.judgement == "fail" for result in row.results.values())}
    stack = [stage.value for stage in trace.stages if stage.ref in failing]
    stack += [value for _, value in trace.outputs]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        if value not in seen:
            seen.add(value)
            stack.extend(trace.parents.get(value, ()))
    return seen


def used_values(trace: TorchTrace) -> set[int]:
    """Values that an output comes from; all of them where no output is known."""
    return upstream(trace, ()) if trace.outputs else {stage.value for stage in trace.stages} | set(trace.parents)


def output_stages(trace: TorchTrace) -> set[StageRef]:
    """All stages whose value is an output of the model."""
    values = {value for _, value in trace.outputs}
    return {stage.ref for stage in trace.stages if stage.value in values}


def first_stage_by_value(trace: TorchTrace) -> dict[int, Stage]:
    """The first stage that has each value."""
    return {stage.value: stage for stage in reversed(trace.stages)}

"""A graph made ready to run on the sample."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from bisect_tool.backends.case import LoadedCase
from bisect_tool.backends.graph_runs import GraphRuns
from bisect_tool.backends.inputs import BoundInputs, bind_inputs, sample_tensors
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.runners import WholeRun, untouched_run
from bisect_tool.backends.unfold import unfold
from bisect_tool.errors import InconclusiveError
from bisect_tool.pipeline.options import Options
from bisect_tool.pipeline.pairs import base_pair, wanted_pairs
from bisect_tool.records import ConfigPair

Array = NDArray[Any]

_BLOCKED = (
    "the file is in ONNX Runtime's blocked layout, which its optimiser writes for one kind of processor: "
    "values are compared in their plain layout"
)


@dataclass(frozen=True, slots=True)
class Ready:
    """A graph that can be run on the sample.

    Attributes:
        program: with the bodies taken apart that the sample runs through.
        bound: which of the sample's tensors feeds which input.
        configs, base: the pairs to run, and the plain one.
        runs: of the graph without optimisation.
        notes: on what was done to the graph.
        is_fresh: it is an export that was made just now, to lay it beside the job's graph.
    """

    program: OnnxProgram
    bound: BoundInputs
    configs: list[ConfigPair]
    base: ConfigPair
    runs: GraphRuns
    notes: tuple[str, ...]
    is_fresh: bool = False


def ready_to_run(case: LoadedCase, options: Options, program: OnnxProgram, *, is_fresh: bool = False) -> Ready:
    """Binds a graph's inputs to the sample and takes apart what hides values.

    Raises:
        BisectError: the sample does not fit the graph.
    """
    graph = program.graph
    bound = bind_inputs(graph, sample_tensors(case.module, case.args, case.kwargs))
    configs = wanted_pairs(case, options, graph)
    base = base_pair(configs, case, options, graph)
    bound = _that_runs(program, base, bound)
    feeds = dict(bound.feeds)
    program, unfolded = unfold(program, feeds, base.actual)
    program.assume_shapes({name: array.shape for name, array in feeds.items()})
    runs = GraphRuns(program, base.actual, feeds, options.memory_budget)
    notes = (*unfolded, *([_BLOCKED] if program.moving else []))
    return Ready(program, bound, configs, base, runs, notes, is_fresh)


def _that_runs(program: OnnxProgram, base: ConfigPair, bound: BoundInputs) -> BoundInputs:
    """The inputs in the first order that the graph takes, where nothing but their order says which is which.

    Token ids in the place of token types are beyond the end of a table, for one.
    """
    others = bound.exchanges()
    first = next(others, None)
    if first is None:
        return bound
    # What cannot be loaded is told where it is needed.
    with contextlib.suppress(InconclusiveError):
        run = untouched_run(program, base.actual)
        if _runs(run, bound.feeds):
            return bound
        for group, feeds in itertools.chain([first], others):
            if _runs(run, feeds):
                return _in_order(bound, group, feeds)
    return bound


def _in_order(bound: BoundInputs, group: tuple[str, ...], feeds: Mapping[str, Array]) -> BoundInputs:
    note = f"ONNX inputs {', '.join(group)} fit equally; the graph runs with them in another order, which was taken"
    kept = [each for each in bound.notes if not any(f"ONNX input {name} was given" in each for name in group)]
    whose = {name: next(other for other in group if bound.feeds[other] is feeds[name]) for name in group}
    sources = {**bound.sources, **{name: bound.sources[other] for name, other in whose.items()}}
    return replace(bound, feeds=feeds, notes=(*kept, note), sources=sources)


def _runs(run: WholeRun, feeds: Mapping[str, Array]) -> bool:
    try:
        run.run(dict(feeds))
    except InconclusiveError:
        return False
    return True

"""Asks a second runner about an origin: the nodes that hold the fault are computed by it, all others as before."""

from __future__ import annotations

import math
from collections.abc import Set

from bisect_tool.backends.inside import Surroundings, faulty_part
from bisect_tool.backends.ort_runner import PartRuns
from bisect_tool.backends.reference_runner import expected_seconds
from bisect_tool.backends.replay import CannotReplayError
from bisect_tool.backends.runners import Runner, runner_of
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig, Origin, Stage, Witness
from bisect_tool.witnesses import MOST_SECONDS, heard, silent

WITNESS = NumericConfig("onnx-reference", optimization="off")
"""The configuration that is asked."""


def ask(
    around: Surroundings,
    origin: Origin,
    whole: Origin,
    stage: Stage,
    known: Set[int],
    config: NumericConfig,
    floor: float | None,
    runner: Runner | None = None,
) -> Witness | None:
    """What a second runner makes of an origin's nodes, from the same inputs.

    Args:
        around: the run.
        origin: with the fewest nodes that certainly hold the fault.
        whole: the same with all nodes of its stage.
        stage: the origin's.
        known: values that the forced run was cut at; the stage starts from the nearest of them.
        config: of the judged side.
        floor: the stage's noise floor, relative; ``None`` if not measured.
        runner: that is asked; ``None``: ONNX's reference evaluator.

    Returns:
        ``None`` where the judged side is that very runner.
    """
    if config.backend == WITNESS.backend and runner is None:
        return None
    runner = runner or runner_of(WITNESS)
    try:
        return _answer(around, origin, whole, stage, known, config, floor, runner)
    except (CannotReplayError, InconclusiveError) as error:
        return silent(runner.name, runner.version, str(error).splitlines()[0])


def _answer(
    around: Surroundings,
    origin: Origin,
    whole: Origin,
    stage: Stage,
    known: Set[int],
    config: NumericConfig,
    floor: float | None,
    runner: Runner,
) -> Witness:
    program, types = around.program, around.types
    part = faulty_part(around, whole, stage, known)
    nodes = [node for node in program.graph.nodes if node.name in set(origin.onnx_nodes)]
    seconds, slowest = expected_seconds(nodes, lambda name: math.prod(types[name].shape) if name in types else 0)
    if seconds > MOST_SECONDS:
        text = f"not asked: it would take it about {seconds:.0f} s, most of it for {slowest}"
        return silent(runner.name, runner.version, text)
    own = program.part(origin.onnx_nodes)
    judged = PartRuns(program, config, program.part(part.nodes), part.feeds, types)
    inner = [name for name in own.reads if name not in part.feeds]
    values = judged.run({}, [part.output, *inner])
    actual = values[part.output]
    read = {name: part.feeds[name] if name in part.feeds else values[name] for name in own.reads}
    feeds = {name: array for name, array in read.items() if array is not None}
    # What the rest of the stage reads of these nodes.
    rest = [node for node in program.graph.nodes if node.name in set(part.nodes) - set(origin.onnx_nodes)]
    wanted = sorted(own.makes & {part.output, *(name for node in rest for name in node.inputs)})
    made = PartRuns(program, WITNESS, own, feeds, types, runner).run({}, wanted)
    given = {name: array for name, array in made.items() if array is not None}
    value = given.get(part.output)
    if value is None:
        value = judged.run(given, [part.output])[part.output]
    if actual is None or value is None:
        raise InconclusiveError(f"{part.output} was not computed")
    return heard(runner.name, runner.version, part.expected, actual, value, stage.dtype, floor)

"""What may be wrong with an origin, as changes of the graph to try: the most convincing first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from bisect_tool.diagnose.attention import masks
from bisect_tool.diagnose.calls import Call, Edit, Node
from bisect_tool.diagnose.onnx_forms import forms, written_out
from bisect_tool.diagnose.pieces import pieces
from bisect_tool.diagnose.recurrence import recurrence
from bisect_tool.diagnose.sisters import exponents, sisters
from bisect_tool.diagnose.trial import Fit, Trial
from bisect_tool.diagnose.trials.calls import in_doubt, is_part, other_parts, replaced_nodes, towards_calls
from bisect_tool.diagnose.trials.numbers import (
    fitted_numbers,
    named_numbers,
    other_settings,
    other_windows,
    reordered_inputs,
)
from bisect_tool.diagnose.trials.surplus import (
    by_chance,
    inserted_nodes,
    left_out_nodes,
    may_be_chance,
    put_in_front,
)
from bisect_tool.diagnose.trials.weights import all_weights, exchanged_weights, weight_trials, widened_weights
from bisect_tool.diagnose.weight_forms import Static


def propose(
    nodes: Sequence[Node],
    calls: Sequence[Call],
    statics: Sequence[Static],
    opset: int,
    stage: Sequence[Node] = (),
    parameters: frozenset[str] = frozenset(),
) -> Iterator[Trial | Fit]:
    """Trials for an origin, the most convincing first.

    Args:
        nodes: of the origin, in topological order.
        stage: all nodes of the stage, if those are more: which of PyTorch's calls have theirs.
        calls: PyTorch's, of the stage.
        statics: PyTorch's tensors of the stage that do not depend on the inputs, weights among them.
        opset: of the graph.
        parameters: names of the model's parameters and buffers, all of them.
    """
    for node in nodes:
        # Few, and told from the node alone.
        yield from recurrence(node, statics)
    yield from widened_weights(nodes, statics)
    for node in nodes:
        yield from weight_trials(node, nodes, statics, parameters)
    for node in nodes:
        yield from exchanged_weights(node)
    yield from all_weights(nodes, statics)
    yield from _changed_nodes(nodes, calls, opset, stage or nodes)
    for node in nodes:
        yield from put_in_front(node, calls, opset)
    for node in nodes:
        yield from inserted_nodes(node, calls, opset)


def _changed_nodes(
    nodes: Sequence[Node], calls: Sequence[Call], opset: int, stage: Sequence[Node]
) -> Iterator[Trial | Fit]:
    """Nodes left out, exchanged or set otherwise; the arguments are those of :func:`propose`."""
    # An exchange of operands can come to the same as what follows: ``Less`` for ``Greater``, a ``Not`` before ``Where``.
    yield from named_numbers(nodes, calls, stage)
    all_left_out = left_out_nodes(nodes, calls, stage, opset)
    left_out = [each for each in all_left_out if each[1].certain]
    doubtful = [trial for _, trial in all_left_out if not trial.certain]
    yield from (trial for surplus, trial in left_out if surplus)
    known = {form.op for call in calls for form in forms(call, opset)}
    for node in nodes:
        if node.op in _COMPARING and node.op not in known:
            yield from replaced_nodes(node, calls, opset)
    for node in nodes:
        if may_be_chance([node], calls, opset):
            doubtful += map(by_chance, reordered_inputs(node))
        else:
            yield from reordered_inputs(node)
    for node in nodes:
        yield from towards_calls(node, calls, opset)
    for node in nodes:
        yield from pieces(node, calls, opset)
    yield from masks(nodes, stage, calls)
    yield from (trial for surplus, trial in left_out if not surplus)
    for node in nodes:
        for trial in replaced_nodes(node, calls, opset):
            if isinstance(trial.edit, Edit) and is_part(node, trial.edit, stage):
                doubtful.append(in_doubt(trial))
            else:
                yield trial
    yield from _other_numbers(nodes, calls, known, stage)
    yield from doubtful


def _other_numbers(
    nodes: Sequence[Node], calls: Sequence[Call], known: Set[str], stage: Sequence[Node]
) -> Iterator[Trial | Fit]:
    """Constants fitted, and settings that PyTorch's calls do not name. ``known``: operators that write them out."""
    parts = {part for call in calls for listed in written_out(call).values() for part in listed}
    for node in nodes:
        yield from other_parts(node, calls, stage)
    for node in nodes:
        yield from fitted_numbers(node, calls)
    for node in nodes:
        yield from exponents(node)
        if node.op not in known | parts:
            yield from sisters(node, calls)
    for node in nodes:
        yield from other_settings(node)
        yield from other_windows(node)


_COMPARING = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor"}

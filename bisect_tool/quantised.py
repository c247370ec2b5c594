"""Quantised graphs: what in them says so, and where a quantised value is a number again.

In a graph with pairs of ``QuantizeLinear`` and ``DequantizeLinear`` a value is rounded to few bits and turned into a float
again before it is read. What a stage hands on is then the dequantised value: its error has all that the stage's own numbers,
scales and zero points cost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.metrics import HIDING, hidden_groups, relative_difference
from bisect_tool.records import (
    ConfigRun,
    OnnxGraph,
    OnnxNode,
    Origin,
    QuantisedStage,
    Stage,
    StageCost,
    StageRef,
    StageRow,
    Tolerance,
    Verdict,
)

Array = NDArray[Any]

STAGE_SQNR = 20.0
"""Least SQNR in dB of a stage by itself, on PyTorch's inputs. Healthy int8 stages have 27 dB and more; see
docs/quantised.md."""

TOTAL_SQNR = 10.0
"""Least SQNR in dB of a value in the graph's own run, the final outputs among them: errors of all stages before add up."""

JUDGED = "judged by SQNR"
"""The line that says so begins with it."""

LISTED = 3
"""Stages that the summary names as those that cost most."""

BADLY = 9.0
"""How many dB a scale may cost more than one that fits the sample at hand: ranges come from other samples too."""

MOST_COSTS = 20
LEAST_SHARE = 0.001

_FEWEST = 16
_LEAST_APART = 0.05
_KERNELS_APART = 3.0
_MOSTLY = 1.5

_PAIRS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_MARKS = ("Quantize", "QLinear", "MatMulInteger", "ConvInteger", "QGemm", "QAttention", "MatMulNBits")


def is_quantised_node(node: OnnxNode) -> bool:
    """Whether a node reads or makes quantised numbers."""
    return any(mark in node.op_type for mark in _MARKS)


def quantised_counts(graph: OnnxGraph) -> Counter[str]:
    """How many nodes of each quantised kind a graph has; empty for a float graph."""
    found = Counter(node.op_type for node in graph.nodes if is_quantised_node(node))
    return found or _of_weights(graph)


_WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose")


def _of_weights(graph: OnnxGraph) -> Counter[str]:
    """The same of a graph whose weights alone are quantised, if most of its products read such."""
    back = [node for node in graph.nodes if node.op_type == "DequantizeLinear" and node.inputs[0] in graph.initializers]
    made = {name for node in back for name in node.outputs}
    for node in graph.nodes if back else ():
        if node.op_type in ("Transpose", "Reshape", "Cast") and node.inputs[0] in made:
            made.update(node.outputs)
    products = [node for node in graph.nodes if node.op_type in _WEIGHTED]
    read = sum(not made.isdisjoint(node.inputs) for node in products)
    return Counter({"DequantizeLinear": len(back)} if read and 2 * read > len(products) else {})


def counts_text(graph: OnnxGraph) -> str:
    """``17 QuantizeLinear nodes``: the kind that tells most."""
    counts = quantised_counts(graph)
    for kind in ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"):
        if counts[kind]:
            break
    else:
        kind = counts.most_common(1)[0][0]
    return f"{counts[kind]} {kind} {'node' if counts[kind] == 1 else 'nodes'}"


@dataclass(frozen=True, slots=True)
class QuantisedValue:
    """A value that is quantised and dequantised before anything reads it.

    Attributes:
        given: name of the value before.
        end: name of the value after, which all its readers read.
        scale, zero_point: names of the quantising node's inputs; the zero point may be missing.
        back: the same of the node that turns the value back.
        nodes: names of both nodes.
    """

    given: str
    end: str
    scale: str
    zero_point: str | None
    back: tuple[str, str | None]
    nodes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What the aligner has to know of a quantised graph.

    Attributes:
        pairs: by the name of the value before.
        back: name of the value before, by that of the value after; also of bytes that integer operators make.
    """

    pairs: dict[str, QuantisedValue] = field(default_factory=dict)
    back: dict[str, str] = field(default_factory=dict)


def quantisation_of(graph: OnnxGraph) -> Quantisation:
    """The values of a graph that pass a pair of nodes which quantise and dequantise, and that nothing reads elsewhere."""
    readers: dict[str, list[OnnxNode]] = defaultdict(list)
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            if name:
                readers[name].append(node)
    found = Quantisation()
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or not node.outputs or node.inputs[0] in graph.initializers:
            continue
        given = node.inputs[0]
        after = readers[node.outputs[0]]
        if len(after) != 1 or after[0].op_type != "DequantizeLinear" or len(readers[given]) != 1:
            continue
        if given in graph.outputs or node.outputs[0] in graph.outputs:
            continue
        end = after[0].outputs[0]
        back = after[0].inputs[1], _third(after[0])
        nodes = node.name, after[0].name
        found.pairs[given] = QuantisedValue(given, end, node.inputs[1], _third(node), back, nodes)
        found.back[end] = given
    made_by = {name: node for node in graph.nodes for name in node.outputs}
    for node in graph.nodes:
        # A byte that an integer operator made, as a number.
        maker = made_by.get(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.op_type != "QuantizeLinear":
            found.back[node.outputs[0]] = node.inputs[0]
    return found


def _third(node: OnnxNode) -> str | None:
    return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None


_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN")
_WEIGHTS = 0.2
"""Share of the products that have quantised weights, from which on a graph counts as quantised: tools leave some out."""
_INPUTS = 0.5
"""The same of products that read quantised activations, where no weight is quantised."""


def is_quantised(graph: OnnxGraph, stages: Iterable[Stage]) -> bool:
    """Whether a graph is quantised and the model is not: a model trained with fake quantisation has it on both sides.

    Quantising is for products. One value in a float graph that passes a pair of nodes is a fault like any other, and
    the noise floor finds it.
    """
    if not quantised_counts(graph) or any("quantize" in stage.type.lower() for stage in stages):
        return False
    back = {name: node for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.outputs if name}
    made = {name: node for node in graph.nodes for name in node.outputs if name}

    def is_weight(name: str) -> bool:
        """Whether a dequantised value is computed from constants alone."""
        maker = made.get(name)
        if maker is None:
            return name in graph.initializers
        return all(is_weight(each) for each in maker.inputs if each)

    products = weights = inputs = 0
    for node in graph.nodes:
        integer = is_quantised_node(node) and node.op_type not in _PAIRS
        if not integer and node.op_type not in _PRODUCTS:
            continue
        products += 1
        read = [name for name in node.inputs if name in back]
        weights += integer or any(is_weight(name) for name in read)
        inputs += bool(read)
    return products > 0 and (weights >= max(1, _WEIGHTS * products) or inputs > max(1, _INPUTS * products))


def sqnr_db(rel_l2: float) -> float:
    """``-20 log10``; infinite where nothing differs."""
    if math.isnan(rel_l2):
        return math.nan
    return math.inf if rel_l2 == 0 else -math.inf if math.isinf(rel_l2) else -20.0 * math.log10(rel_l2)


# One stage


@dataclass(frozen=True, slots=True)
class Scales:
    """Numbers of a pair that quantises one tensor as a whole: of the node that quantises, and of that which turns back."""

    scale: float
    zero_point: int
    lowest: int
    highest: int
    back_scale: float
    back_zero_point: int


def scales_of(pair: QuantisedValue, constants: Mapping[str, Array | None]) -> Scales | None:
    """A pair's numbers; ``None`` where they are computed, or differ from channel to channel."""

    def single(name: str | None) -> Array | None:
        array = constants.get(name) if name is not None else np.zeros((), np.uint8)
        return array.reshape(-1) if array is not None and array.size == 1 else None

    arrays = [single(name) for name in (pair.scale, pair.zero_point, *pair.back)]
    if any(array is None for array in arrays):
        return None
    scale, zero, back_scale, back_zero = (array for array in arrays if array is not None)
    try:
        limits = np.iinfo(zero.dtype)
    except ValueError:  # float8, and integers of four bits
        return None
    return Scales(
        float(scale[0]), int(zero[0]), int(limits.min), int(limits.max), float(back_scale[0]), int(back_zero[0])
    )


def quantised_stage(expected: Array, forced: Array, norm: float, scales: Scales | None) -> QuantisedStage:
    """What quantisation costs in one stage that works on PyTorch's inputs.

    Args:
        expected: PyTorch's tensor.
        forced: the graph's, of the same shape.
        norm: L2 norm of ``expected``.
        scales: of the pair of nodes that the stage's value passes; ``None`` without one.
    """
    whole = sqnr_db(relative_difference(expected, forced))
    hidden = math.inf
    if forced.shape == expected.shape:
        # Beside a mask's -1e4 the numbers that matter make no difference to a norm over everything.
        groups = [sqnr_db(relative_difference(expected[at], forced[at])) for at in _unheard(expected, norm)]
        hidden = min(groups, default=math.inf)
    pair = best = clipped = None
    if scales is not None and expected.dtype.kind == "f" and expected.size and np.isfinite(expected).all():
        pair, best, clipped = _pair_quality(expected, scales)
    return QuantisedStage(
        limit_db=STAGE_SQNR,
        local_sqnr_db=min(whole, hidden) if not math.isnan(whole) else whole,
        hidden=hidden < whole,
        pair_sqnr_db=pair,
        best_sqnr_db=best,
        clipped=clipped,
    )


def _unheard(expected: Array, norm: float) -> Iterator[NDArray[np.bool_]]:
    """Where a tensor holds numbers that its norm does not see, and that the next stage may well read."""
    yield from hidden_groups(expected, expected, norm)
    if expected.dtype.kind != "f" or expected.size < _FEWEST:
        return
    sizes = np.sort(np.abs(expected.reshape(-1)[:: expected.size // 4096 | 1]).astype(np.float64))
    sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
    # Numbers of two sizes with nothing between them: scores, and scores with a mask's -1e4 added.
    start, stop = int(_LEAST_APART * sizes.size), int((1 - _LEAST_APART) * sizes.size)
    if stop <= start + 1:
        return
    steps = sizes[start + 1 : stop] / sizes[start : stop - 1]
    at = int(steps.argmax())
    if steps[at] >= HIDING:
        yield np.abs(expected) <= sizes[start + at]


def _pair_quality(expected: Array, scales: Scales) -> tuple[float, float, float]:
    """SQNR of the pair alone, that of a scale which fits this tensor, and the share of elements out of range."""
    x = expected.astype(np.float64).reshape(-1)
    places = np.rint(x / scales.scale) + scales.zero_point if scales.scale else np.zeros_like(x)
    kept = np.clip(places, scales.lowest, scales.highest)
    made = (kept - scales.back_zero_point) * scales.back_scale
    norm = float(np.linalg.norm(x))
    if norm == 0:
        return sqnr_db(0.0 if not made.any() else math.inf), math.inf, 0.0
    step = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / (scales.highest - scales.lowest)
    fitting = step / math.sqrt(12.0) * math.sqrt(x.size) / norm
    apart = float(np.linalg.norm(made - x)) / norm
    return sqnr_db(apart), sqnr_db(fitting), float(np.mean(places != kept))


def fails(quality: QuantisedStage) -> bool:
    """Whether a stage by itself costs more than it may."""
    return not quality.local_sqnr_db >= quality.limit_db


# All stages


def judge_quantised(
    rows: Sequence[StageRow], config: str, tolerance: Tolerance, outputs: Set[StageRef]
) -> list[StageRow]:
    """The rows with their judgements, where no tolerance of the user's decides.

    A stage fails by itself. What errors add up to counts at the model's outputs; where these are good enough, a value on the
    way may be far off, as the neighbours are that a top-k chooses.
    """
    if tolerance.source != "quantised":
        return list(rows)
    found = [(row, row.results.get(config)) for row in rows]
    bad = any(
        result is not None and result.judgement == "fail" and (row.ref in outputs or row.alias_of in outputs)
        for row, result in found
    )
    judged = []
    for row, result in found:
        if result is not None:
            alone = result.quantised is not None and fails(result.quantised)
            hopeless = result.total.problem is not None or result.total.nonfinite_mismatch > 0
            if alone:
                result = replace(result, judgement="fail")
            elif result.judgement == "fail" and not bad and not hopeless:
                result = replace(result, judgement="pass")
            row = replace(row, results={**row.results, config: result})
        judged.append(row)
    return judged


def costs(rows: Sequence[StageRow], config: str) -> tuple[StageCost, ...]:
    """Stages by their share of the final error, the dearest first; equal shares by the stage's own SQNR."""
    found = []
    for row in rows:
        result = row.results.get(config)
        if result is None or row.role == "group" or row.alias_of is not None or result.quantised is None:
            continue
        share = result.share
        if (share is None or share < LEAST_SHARE) and not fails(result.quantised):
            continue
        quality = result.quantised
        fitting = quality.best_sqnr_db if _fits_badly(quality) else None
        found.append(StageCost(row.ref, config, share, quality.local_sqnr_db, result.total.sqnr_db, fitting))
    found.sort(key=lambda cost: (-(cost.share or 0.0), cost.local_sqnr_db))
    return tuple(found[:MOST_COSTS])


def _fits_badly(quality: QuantisedStage) -> bool:
    """Whether another scale would cost much less: that one bit more is lost than need be is usual."""
    pair, best = quality.pair_sqnr_db, quality.best_sqnr_db
    return pair is not None and best is not None and pair < best - BADLY


def explained(origin: Origin, quality: QuantisedStage | None, pair: QuantisedValue | None) -> Origin:
    """An origin with what is known of why it costs so much, and the fewest nodes that do."""
    if quality is None:
        return origin
    lines = []
    nodes = origin.onnx_nodes
    if quality.hidden:
        lines.append("the numbers that cost so much stand beside much larger ones (a mask's filling, a loud channel)")
    if pair is not None and quality.pair_sqnr_db is not None and quality.best_sqnr_db is not None:
        alone = f"quantising its value costs {_db(quality.pair_sqnr_db)}"
        if quality.clipped:
            alone += f", {100 * quality.clipped:.2g} % of the values are out of range"
        if quality.pair_sqnr_db < quality.best_sqnr_db - _MOSTLY:
            alone += f"; a scale that fits this value costs {_db(quality.best_sqnr_db)}"
        lines.append(alone)
        if quality.pair_sqnr_db <= quality.local_sqnr_db + _MOSTLY and not quality.hidden:
            nodes = tuple(name for name in nodes if name in pair.nodes) or nodes
            lines.append("that is nearly all of the stage's error: its scale or zero point, not what it computes")
        elif quality.pair_sqnr_db > quality.local_sqnr_db + 2 * _MOSTLY and not quality.hidden:
            nodes = tuple(name for name in nodes if name not in pair.nodes) or nodes
            lines.append("the rest is made before: by the stage's weights, or by how its inputs are quantised")
    return replace(origin, onnx_nodes=nodes, evidence=(*origin.evidence, *lines))


def quality_of(
    known: Quantisation,
    name: str,
    constant: Callable[[str], Array | None],
    expected: Array,
    forced: Array,
    norm: float,
) -> QuantisedStage:
    """What quantisation costs in the stage whose value is ``name`` in the graph.

    Args:
        known: of the graph.
        name: the stage's value.
        constant: a constant of the graph by its name; ``None``: it is none.
        expected, forced, norm: as for :func:`quantised_stage`.
    """
    given = known.back.get(name)
    pair = known.pairs.get(given) if given is not None else None
    if pair is None:
        return quantised_stage(expected, forced, norm, None)
    constants = {part: constant(part) for part in (pair.scale, pair.zero_point, *pair.back) if part}
    return quantised_stage(expected, forced, norm, scales_of(pair, constants))


def with_stage_costs(verdict: Verdict, rows: Sequence[StageRow], known: Quantisation, config: str | None) -> Verdict:
    """The verdict with the stages that cost most under a configuration, and origins with why they do."""
    by_ref = {row.ref: row for row in rows if row.role != "group"}

    def told(origin: Origin) -> Origin:
        row = by_ref.get(origin.ref)
        result = row.results.get(origin.config) if row is not None else None
        pair = known.pairs.get(known.back.get(origin.onnx_value, ""))
        return explained(origin, result.quantised if result is not None else None, pair)

    found = costs(rows, config) if config is not None else ()
    return replace(verdict, costs=found, origins=tuple(map(told, verdict.origins)))


def _db(value: float) -> str:
    return f"{value:.1f} dB"


def summary_lines(
    verdict: Verdict, graph: OnnxGraph, tolerance: Tolerance, runs: Sequence[ConfigRun]
) -> tuple[str, ...]:
    """How the graph was judged, what costs most, and whether the optimised run's integer kernels cost more."""
    by = f"{JUDGED}: the graph is quantised ({counts_text(graph)})"
    if tolerance.source == "quantised":
        by += f"; at least {STAGE_SQNR:g} dB in each stage by itself and {TOTAL_SQNR:g} dB in total, the defaults"
    elif tolerance.min_sqnr is not None:
        by += f"; at least {tolerance.min_sqnr:g} dB in total, given by the user"
    else:
        by = (
            f"the graph is quantised ({counts_text(graph)}): judged by your tolerance; "
            f"where error is made, by SQNR under {STAGE_SQNR:g} dB"
        )
    lines = [by]
    if verdict.costs and not math.isinf(verdict.costs[0].sqnr_db):
        named = ", ".join(_cost_text(cost) for cost in verdict.costs[:LISTED])
        lines.append(f"costs most: {named}")
    kernels = _kernels_line(runs)
    return (*lines, kernels) if kernels else tuple(lines)


def _cost_text(cost: StageCost) -> str:
    share = "" if cost.share is None else f"{100 * cost.share:.3g} % of the final error, "
    fitting = "" if cost.fitting_db is None else f"; a scale that fits its value alone costs {_db(cost.fitting_db)}"
    return f"{cost.ref} ({share}by itself {_db(cost.local_sqnr_db)}{fitting})"


def _kernels_line(runs: Sequence[ConfigRun]) -> str | None:
    """What integer kernels add, which ONNX Runtime puts in place of pairs around float operations."""

    def worst(run: ConfigRun) -> float | None:
        return min((out.total.sqnr_db for out in run.outputs if not math.isnan(out.total.sqnr_db)), default=None)

    plain = next((w for r in runs if r.actual.optimization == "off" and (w := worst(r)) is not None), None)
    for run in runs:
        other = worst(run)
        if run.actual.optimization == "off" or plain is None or other is None or other > plain - _KERNELS_APART:
            continue
        return (
            f"{run.name}: its outputs have {_db(other)}, without optimisation {_db(plain)}: integer kernels cost the "
            "difference; on CPUs without VNNI those for unsigned times signed bytes saturate (quantise with "
            "reduce_range=True)"
        )
    return None

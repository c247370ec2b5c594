"""Which ONNX value stands for which PyTorch value.

Evidence is gathered in this order, and every pair keeps what it rests on:

1. *graph output*: the outputs of both sides, by name or in order; see :mod:`bisect_tool.outputs`.
2. *value*: signatures of both sides agree. Where several fit, *scope* (the exporter's metadata or TorchScript's node
   names) and then *order* (both runs are topological orders of the same computation) decide. Where order is no more than a
   choice, the pair is *ambiguous*, unless a *second input* tells the look-alikes apart.
3. *scope* alone, or *weights* where a file has lost its names, where no value fits: the stage is broken, or it comes after
   a broken one. Such pairs are *unconfirmed* until a forced run, in which each stage works on PyTorch's own inputs, shows
   the value after all.

A value is followed through nodes that the exporter does not know (a ``Cast`` pair put in later): what leaves a stage is
what the next one reads.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from bisect_tool.layouts import axis_order, same_data_order
from bisect_tool.neighbours import LookAlikes, Near, Neighbours, components
from bisect_tool.outputs import bind_outputs, exchanged
from bisect_tool.quantised import quantisation_of, quantised_counts
from bisect_tool.records import Alignment, OnnxGraph, OnnxNode, Pair, Stage, StageRef, TorchTrace, Unaligned
from bisect_tool.signatures import Signature, distance, mark_of

Permuted = Callable[[int, "tuple[int, ...] | None"], Mapping[tuple[int, ...], Signature]]
"""Signatures of a PyTorch value with its axes in other orders; with a shape, those of more or fewer axes that have it."""

VALUE_LIMIT = 1e-3
"""Relative difference up to which two tensors count as the same value; exports are off by 1e-6, TF32 by 1e-3."""

NARROW_VALUE_LIMIT = 3e-2
"""The same where a side computes in half precision or less."""

SecondDraw = tuple[Mapping[int, Signature], Mapping[str, Signature]]
"""Signatures of both sides on another input: by PyTorch value, and by name."""

_SAME_TENSOR = "same tensor as"

SPLIT = "axes split"
"""Evidence of a pair whose PyTorch value has one axis where the graph's has two, or the other way round, in another order."""

SECOND = "second input"
"""Evidence of a pair that another input told from look-alikes."""

STRUCTURE = "structure"
"""Evidence of a pair that stands where a fresh export of the model has the stage's value."""

AMBIGUOUS = "ambiguous"
"""Evidence of a pair whose value others have too, which neither names nor the order of computation tell from it."""

QUANTISED_LIMIT = 0.15
"""The same in a quantised graph, where eight bits cost a few per cent at each stage; scopes and order tell many apart."""

FORCED_VALUE = "forced value"
"""Evidence of a pair whose values agree in a run that reads PyTorch's tensors."""

NEAR_LIMIT = 5e-2
"""Up to which a value still counts as handed on by a node that no exporter tagged."""

_CLAMPS = frozenset(["relu", "clip", "threshold"])
"""Families of operations that quantisation itself may do: what is out of its range is cut off."""

_CLEARLY_NEARER = 4.0
_NEARER_QUANTISED = 2.0
"""The same among values that are all off by a few per cent."""

_SHAPING = frozenset(["Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast"])
"""Operators that hand their input on in another shape or type."""

_ROUNDING = 1e-5
_GROWTH = 10.0
_NARROW = {"float16", "bfloat16"}

_BIASED = frozenset(["addmm", "baddbmm", "addmv", "linear"])

_FAMILIES = {
    "matmul": "bmm mm addmm linear matmul baddbmm gemm mv addmv dot einsum",
    "softmax": "_softmax softmax _safe_softmax special_softmax",
    "logsoftmax": "_log_softmax log_softmax logsoftmax",
    "concat": "cat concat concatenate stack",
    "layernorm": "native_layer_norm layer_norm layernormalization",
    "groupnorm": "native_group_norm group_norm groupnormalization",
    "batchnorm": "native_batch_norm batch_norm batchnormalization _native_batch_norm_legit_no_training cudnn_batch_norm",
    "mean": "mean reducemean",
    "sum": "sum reducesum",
    "max": "amax max reducemax",
    "min": "amin min reducemin",
    "conv": "convolution conv2d conv1d conv3d conv convtranspose conv_transpose2d _convolution",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu attention "
    "_scaled_dot_product_attention_math _native_multi_head_attention",
    "cast": "_to_copy to cast type_as",
    "maxpool": "max_pool2d_with_indices max_pool2d maxpool max_pool1d max_pool3d_with_indices",
    "avgpool": "avg_pool2d avg_pool1d averagepool",
    "resize": "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_nearest1d resize "
    "_upsample_bilinear2d_aa interpolate upsample_nearest3d upsample_trilinear3d",
    "clip": "hardtanh clip clamp relu6 clamp_min clamp_max",
    "power": "pow square",
    "where": "where masked_fill",
    "pad": "constant_pad_nd reflection_pad2d replication_pad2d pad",
    "embedding": "embedding gather index_select index gathernd",
    "scatter": "scatter scatter_add index_put scatternd scatterelements index_add scatter_reduce index_copy select_scatter "
    "slice_scatter",
    "not": "logical_not bitwise_not not",
    "and": "logical_and bitwise_and and",
    "or": "logical_or bitwise_or or",
    "less": "lt less",
    "greater": "gt greater",
    "equal": "eq equal",
    "subtract": "sub rsub",
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}

_Scope = tuple[str, str | None]
"""Path of a module; with the family of an operation that is directly in it."""


@dataclass(frozen=True, slots=True)
class Match:
    """A PyTorch value, its ONNX value, the evidence, and whether a run showed the two to be the same tensor.

    ``permutation``: the ONNX value is the PyTorch tensor with its axes in this order; ``None``: in the same order.
    """

    value: int
    onnx: str
    evidence: tuple[str, ...]
    confirmed: bool
    permutation: tuple[int, ...] | None = None


def is_narrow(graph: OnnxGraph) -> bool:
    """Whether anything in a graph is computed in half precision."""
    return any(graph.dtypes.get(name) in _NARROW for node in graph.nodes for name in node.outputs)


def value_limit(dtype: str, *, narrow: bool) -> float:
    """Relative difference up to which a value of this dtype counts as the same; ``narrow``: :func:`is_narrow`."""
    return NARROW_VALUE_LIMIT if narrow or dtype in _NARROW else VALUE_LIMIT


def family(name: str) -> str:
    """One name for an operation under its aten and its ONNX names: ``addmm`` and ``MatMul`` are both ``matmul``."""
    return _FAMILY.get(name.lower(), name.lower())


def resolve_scope(components: Sequence[str], modules: Mapping[str, str]) -> str | None:
    """Module path from a TorchScript node name's parts; ``None`` if they name no module.

    ``("features", "features.1", "conv", "conv.0")`` → ``features.1.conv.0``: a child of a ``Sequential`` is written with
    its parent's name before it. A second call of ``fc`` is written ``fc_1``, unless there is a module of that name.
    """
    path = ""
    for part in components:
        tail = part.rsplit(".", 1)[-1]
        bare = part.rpartition("_")[0] if part.rpartition("_")[2].isdigit() else ""
        options = [part, tail, *([bare, bare.rsplit(".", 1)[-1]] if bare else [])]
        for option in options:
            candidate = f"{path}.{option}" if path else option
            if candidate in modules:
                path = candidate
                break
        else:
            return None
    return modules[path] if path else modules.get("", "")


class _Scopes:
    """Module paths of the graph's nodes, and which values leave a scope."""

    def __init__(self, graph: OnnxGraph, trace: TorchTrace, modules: Mapping[str, str]):
        self.graph = graph
        cache: dict[tuple[str, ...], str | None] = {}

        def path_of(node: OnnxNode) -> str | None:
            if not node.scopes:
                return None
            if node.scopes not in cache:
                if node.call is not None:
                    last = node.scopes[-1]
                    cache[node.scopes] = trace.modules.get(last)
                else:
                    cache[node.scopes] = resolve_scope(node.scopes[1:], trace.modules)
            return cache[node.scopes]

        self.paths = [path_of(node) for node in graph.nodes]
        self.makers = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(graph.nodes):
            for name in node.inputs:
                if name:
                    self.readers[name].append(i)
        self.by_path: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(self.paths):
            if path is not None:
                self.by_path[path].append(i)
        self.outputs = set(graph.outputs)
        self.back = quantisation_of(graph).back
        self.any = bool(self.by_path)
        self._named: dict[str, list[str]] | None = None
        # What weights tell is less than an exporter's scopes: nodes without weights have none.
        self.by_weights: set[str] = set()
        for i, node in enumerate(graph.nodes):
            path = trace.modules.get(modules.get(node.name, ""))
            if self.paths[i] is None and path:
                self.paths[i] = path
                self.by_path[path].append(i)
                self.by_weights.update(node.outputs)

    def maker_of(self, value: str) -> int | None:
        """The node that computed a value, quantising and turning back left out."""
        return self.makers.get(self.back.get(value, value))

    def path_of(self, value: str) -> str | None:
        maker = self.maker_of(value)
        return None if maker is None else self.paths[maker]

    def named(self, path: str) -> list[str]:
        """All values that carry exactly this scope, in topological order."""
        if self._named is None:
            self._named = defaultdict(list)
            for node in self.graph.nodes:
                for name in node.outputs:
                    if name and (own := self.path_of(name)) is not None:
                        self._named[own].append(name)
        return self._named.get(path, [])

    def leaving(self, path: str) -> list[str]:
        """Values made in exactly this scope that nodes of other scopes read, in topological order."""
        return [
            name
            for i in self.by_path.get(path, ())
            for name in self.graph.nodes[i].outputs
            if name and (name in self.outputs or any(self.paths[r] != path for r in self.readers[name]))
        ]

    def leaving_tree(self, path: str) -> list[str]:
        """Values made in a scope or in one inside it that nodes outside of it read, in topological order."""

        def inside(place: int) -> bool:
            own = self.paths[place]
            return own is not None and f"{own}.".startswith(f"{path}.")

        return [
            name
            for i, node in enumerate(self.graph.nodes)
            if inside(i)
            for name in node.outputs
            if name and (name in self.outputs or not all(map(inside, self.readers[name])))
        ]

    def calls(self, path: str, kind: str) -> list[str]:
        """Values of the operations of one family directly in a scope, in topological order."""
        found: dict[str, str] = {}
        for i in self.by_path.get(path, ()):
            node = self.graph.nodes[i]
            if node.call is not None:
                # Several nodes may come from one aten call; the value named like the call is its result.
                if node.target is not None and family(node.target) == kind and node.outputs:
                    name = node.call if node.call in node.outputs else node.outputs[0]
                    found[node.call] = name
            elif family(node.op_type) == kind and node.outputs and node.outputs[0]:
                found[node.name] = node.outputs[0]
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a run, whose values are to be paired.

    Attributes:
        trace, graph: their structure.
        torch: signatures by value; a value without one can't be paired.
        onnx: signatures by name, from a chained run, or from a forced one.
        permuted: signatures of a PyTorch value with its axes in other orders; asked only where nothing else fits.
    """

    trace: TorchTrace
    graph: OnnxGraph
    torch: Mapping[int, Signature]
    onnx: Mapping[str, Signature]
    permuted: Permuted


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known beside the values.

    Attributes:
        known: confirmed pairs of an earlier pass, kept as they are.
        fed: pairs at which the forced run was given PyTorch's values, confirmed or not; ``None`` for a chained run.
        chained: signatures from the chained run, where the side's own are from a forced one.
        second: signatures of both sides on another input, which tell look-alikes apart.
        modules: module path by node name, for nodes that no exporter tagged: those that read a module's weights.
        placed: pairs by structure, for values that no value of the graph's fits.
    """

    known: Mapping[int, Match] = field(default_factory=dict)
    fed: Mapping[int, Match] | None = None
    chained: Mapping[str, Signature] | None = None
    second: SecondDraw | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    placed: Mapping[int, Match] = field(default_factory=dict)


_NO_HINTS = Hints()


def match_values(sides: Sides, hints: Hints = _NO_HINTS) -> dict[int, Match]:
    """Pairs PyTorch values with ONNX values.

    Returns:
        All pairs, the known ones included, by PyTorch value.
    """
    matcher = _Matcher(sides, hints)
    for match in hints.known.values():
        matcher.take(match)
    matcher.match_outputs(sides.permuted)
    matcher.match_by_value()
    matcher.match_permuted(sides.permuted)
    matcher.match_placed(hints.placed)
    matcher.match_by_scope()
    return matcher.matches


def trusted(trace: TorchTrace, matches: Mapping[int, Match]) -> dict[int, Match]:
    """Pairs at which a forced run may hand over PyTorch's values: all but operations by name alone behind broken ones.

    A wrong pair, once it is fed, hides the place where the graph has the value. So an operation without a confirmed pair
    is fed when what it reads is right, and what is behind it gets another chance first.
    """
    operations = {stage.value for stage in trace.stages if "#" in stage.ref.stage}
    doubtful = {v for v, match in matches.items() if not match.confirmed and v in operations}
    behind: set[int] = set()
    for value in sorted(trace.parents):
        if any(p in behind or p in doubtful for p in trace.parents[value]) and not (
            value in matches and matches[value].confirmed
        ):
            behind.add(value)
    found = {v: match for v, match in matches.items() if v not in doubtful or v not in behind}
    return found if len(found) > sum(m.confirmed for m in matches.values()) else dict(matches)


class _Matcher:
    def __init__(self, sides: Sides, hints: Hints):
        trace, graph, fed = sides.trace, sides.graph, hints.fed
        self.second = hints.second
        self.trace = trace
        self.graph = graph
        self.torch = sides.torch
        self.onnx = sides.onnx
        self.chained = hints.chained or sides.onnx
        self.value_evidence = "value" if fed is None else FORCED_VALUE
        self.scopes = _Scopes(graph, trace, hints.modules)
        self.place = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
        self.matches: dict[int, Match] = {}
        self.quantised = bool(quantised_counts(graph))
        self.quantisation = quantisation_of(graph)
        pairs = self.quantisation.pairs
        self.integer_made = {name for name in self.quantisation.back.values() if name not in pairs}
        self.clearly_nearer = _NEARER_QUANTISED if self.quantised else _CLEARLY_NEARER
        self.narrow_graph = is_narrow(graph)
        self.widest = QUANTISED_LIMIT if self.quantised else NARROW_VALUE_LIMIT
        self.taken: set[str] = set()
        # What stands in the graph at these names is PyTorch's own for all that comes behind.
        self.given = {match.onnx: match.value for match in (fed or {}).values()}
        self.taken_by: dict[str, set[str]] = defaultdict(set)
        self.first_stage: dict[int, Stage] = {}
        self.stages_of: dict[int, list[Stage]] = defaultdict(list)
        self.children = _children(trace)
        self.by_second: set[int] = set()
        self.operations: dict[tuple[str, str], dict[int, str]] = {}
        self._by_call: dict[tuple[str, str], list[int]] | None = None
        self.calls = Counter((stage.ref.stage, stage.ref.output) for stage in trace.stages)
        for stage in trace.stages:
            self.first_stage.setdefault(stage.value, stage)
            self.stages_of[stage.value].append(stage)

    def take(self, match: Match) -> None:
        self.matches[match.value] = match
        self.taken.add(match.onnx)
        if self.scopes.back.get(match.onnx) in self.integer_made:
            # A byte and the number that it stands for are one value.
            self.taken.add(self.scopes.back[match.onnx])
        self.taken_by[self.first_stage[match.value].ref.stage].add(match.onnx)

    def limit(self, value: int) -> float:
        if self.quantised:
            return QUANTISED_LIMIT
        return value_limit(self.first_stage[value].dtype, narrow=self.narrow_graph)

    def agrees(self, value: int, name: str) -> bool:
        first, second = self.torch.get(value), self.onnx.get(name)
        return first is not None and second is not None and distance(first, second) <= self.limit(value)

    def fits(self, value: int, name: str) -> bool:
        """The same shape, or one that merging neighbouring axes explains, as far as known."""
        signature = self.torch.get(value)
        other = self.onnx.get(name)
        if signature is not None and other is not None and signature.kind != other.kind:
            return False
        shape = other.shape if other is not None else self.graph.shapes.get(name)
        return shape is None or same_data_order(self.first_stage[value].shape, shape)

    # -- outputs ------------------------------------------------------------------------------------------------------

    def match_outputs(self, permuted: Permuted) -> None:
        outputs = [(key, value) for key, value in self.trace.outputs if value in self.first_stage]
        names = [name for name in self.graph.outputs if name in self.place]
        if len(self.trace.outputs) != len(self.graph.outputs):
            by_name = dict(zip(self.graph.outputs, self.graph.outputs, strict=True))
            pairs = [(value, by_name[str(key)]) for key, value in outputs if str(key) in by_name]
        else:
            known = {value for _, value in outputs}
            values = [value for _, value in self.trace.outputs]

            def alike(place: int, name: str) -> bool:
                # A constant has no stage, and a value that no node makes is none of its; they stay where they are.
                if values[place] not in known or name not in names:
                    return self.graph.outputs[place] == name
                return self.agrees(values[place], name)

            bound = bind_outputs([key for key, _ in self.trace.outputs], self.graph.outputs, alike).names
            swapped = exchanged(bound, alike)
            pairs = [
                (values[place], name)
                for place, name in enumerate(bound)
                # That outputs have changed places is no fault of the stages that make them: these go by value.
                if values[place] in known and name in names and place not in swapped
            ]
        for value, name in pairs:
            if value in self.matches or name in self.taken:
                continue
            if self.fits(value, name):
                agrees = self.agrees(value, name)
                evidence = ("graph output", self.value_evidence) if agrees else ("graph output",)
                self.take(Match(value, name, evidence, agrees))
            elif (order := self._order_of(value, name, permuted)) is not None:
                self.take(Match(value, name, ("graph output", self.value_evidence, "permuted"), True, order))

    def _order_of(self, value: int, name: str, permuted: Permuted) -> tuple[int, ...] | None:
        """The order of axes in which a name holds a value."""
        other = self.onnx.get(name)
        if other is None or other.shape == self.first_stage[value].shape or value not in self.torch:
            return None
        for order, signature in permuted(value, None).items():
            if signature.shape == other.shape and distance(signature, other) <= self.limit(value):
                return order
        return None

    # -- values -------------------------------------------------------------------------------------------------------

    def match_by_value(self) -> None:
        candidates = self._told_apart(self._value_candidates())
        others = Neighbours((value, self.torch[value]) for value in candidates)
        for values, names in components(candidates):
            for value, name, evidence in self._resolve(values, names, candidates):
                agreed = (self.value_evidence, *evidence, *((SECOND,) if value in self.by_second else ()))
                self.take(self._to_the_end(self._follow(Match(value, name, agreed, True)), others))

    def _told_apart(self, candidates: Mapping[int, LookAlikes]) -> Mapping[int, LookAlikes]:
        """Without the look-alikes that another input tells from the value. Behind an error nothing has the right value."""
        if self.second is None:
            return candidates
        expected, actual = self.second
        there: dict[int, Neighbours[str]] = {}
        known: dict[tuple[int, object, float], LookAlikes] = {}
        found = {}
        for value, names in candidates.items():
            found[value] = names
            first, limit = expected.get(value), self.limit(value)
            if first is None:
                continue
            # Values that look alike share their names, and are asked for once.
            key = (id(names), mark_of(first), limit)
            if key not in known:
                if id(names) not in there:
                    there[id(names)] = Neighbours((name, actual[name]) for name in names.names if name in actual)
                same = there[id(names)].near(first, limit)
                known[key] = names if len(same) in (0, len(names.names)) else LookAlikes.of(same, self.place)
            if known[key] is not names:
                found[value] = known[key]
                self.by_second.add(value)
        return found

    def match_permuted(self, permuted: Permuted) -> None:
        """Values whose axes the exporter put in another order, as for recurrences, or split as well, as for heads."""
        free: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
        for name, signature in self.onnx.items():
            if name not in self.taken and name in self.place and signature.size > 1 and math.isfinite(signature.total):
                free[signature.kind, signature.size].append((signature.total, name))
        for bucket in free.values():
            bucket.sort()
        for value in self.first_stage:
            own = self.torch.get(value)
            if value in self.matches or own is None or not 0 < own.total < math.inf:
                continue
            # The order of axes leaves the norm of the whole as it is, though not that of a sample.
            near = self._of_norm(value, own.total, free.get((own.kind, own.size), []))
            names = [n for n in sorted(near, key=lambda n: self.place[n]) if n not in self.taken]
            if not names or self._take_permuted(value, names, permuted(value, None), ()):
                continue
            by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
            for name in names:
                by_shape[self.onnx[name].shape].append(name)
            any(self._take_permuted(value, some, permuted(value, shape), (SPLIT,)) for shape, some in by_shape.items())

    def _take_permuted(
        self, value: int, names: Sequence[str], orders: Mapping[tuple[int, ...], Signature], tag: tuple[str, ...]
    ) -> bool:
        """Pairs a value with the last of the names that has it in one of some orders, those of its scope first."""
        for order, signature in orders.items():
            hits = [
                n
                for n in names
                if distance(signature, self.onnx[n]) <= self.limit(value) and not self._circular(value, n)
            ]
            scoped = [n for n in hits if self._same_scope(value, n)]
            if hits:
                chosen = max(scoped or hits, key=lambda n: self.place[n])
                named = (self._named(chosen),) if scoped else ()
                self.take(Match(value, chosen, (self.value_evidence, "permuted", *tag, *named), True, order))
                return True
        return False

    def _value_candidates(self) -> dict[int, LookAlikes]:
        free = ((n, s) for n, s in self.onnx.items() if n not in self.taken and n in self.place)
        there = Neighbours(free)
        producers = {self._folded_scope(stage) for stage in self.first_stage.values()}
        found: dict[int, Near] = {}
        known: dict[tuple[object, float], Near] = {}
        for value in self.first_stage:
            wanted = self.torch.get(value)
            if wanted is None or value in self.matches or wanted.size == 0:
                continue
            # Values that are equal, as in a saturated chain, have one table of what is near.
            key = (mark_of(wanted), self.limit(value))
            if key not in known:
                known[key] = there.near(wanted, self.limit(value))
            near = known[key]
            # A fresh BatchNorm scales by 0.999995: behind an error its value and its producer's are equally near.
            folded = self.first_stage[value].ref.stage in producers
            if self.given or folded:
                near = {
                    name: apart
                    for name, apart in near.items()
                    if not self._circular(value, name) and not (folded and self._same_scope(value, name))
                }
            if near:
                found[value] = near
        plain = {id(near): self._dequantised(near) for near in found.values()} if self.quantisation.pairs else {}
        return self._nearest_on_both_sides({value: plain.get(id(near), near) for value, near in found.items()})

    def _dequantised(self, near: Near) -> Near:
        """Without values that are near once they are quantised too: that is what the next stage reads."""
        pairs = self.quantisation.pairs
        return {name: apart for name, apart in near.items() if name not in pairs or pairs[name].end not in near}

    def _circular(self, value: int, name: str) -> bool:
        """Whether a forced value is what it is because PyTorch handed over something that comes from ``value`` itself.

        Attention's result, transposed, is given to the graph; what the graph transposes back is no result of its own.
        """
        if not self.given:
            return False
        seen: set[str] = set()
        stack = list(self.graph.nodes[self.place[name]].inputs)
        while stack:
            at = stack.pop()
            if at in seen or at not in self.place:
                continue
            seen.add(at)
            given = self.given.get(at)
            if given is None:
                stack.extend(self.graph.nodes[self.place[at]].inputs)
            elif self._comes_from(given, value):
                return True
        return False

    def _comes_from(self, value: int, ancestor: int) -> bool:
        """Whether PyTorch computed a value from another. Values are numbered in the order in which they were made."""
        seen: set[int] = set()
        stack = [value]
        while stack:
            at = stack.pop()
            if at == ancestor:
                return True
            if at not in seen and at > ancestor:
                seen.add(at)
                stack.extend(self.trace.parents.get(at, ()))
        return False

    def _nearest_on_both_sides(self, found: Mapping[int, Near]) -> dict[int, LookAlikes]:
        """Drops what is clearly further off than the best, seen from either side.

        A fresh BatchNorm scales by 0.9995: the convolution before it is near the folded value too, but its norm is nearer.
        """
        tables = {id(near): near for near in found.values()}
        best: dict[str, float] = {}
        for near in tables.values():
            for name, apart in near.items():
                best[name] = min(apart, best.get(name, math.inf))
        kept: dict[int, LookAlikes] = {}
        for key, near in tables.items():
            clear = max(min(near.values()) * self.clearly_nearer, 1e-6)
            names = [n for n, apart in near.items() if apart <= clear]
            names = [n for n in names if near[n] <= max(best[n] * self.clearly_nearer, 1e-6)]
            kept[key] = LookAlikes.of(names, self.place)
        return {value: kept[id(near)] for value, near in found.items() if kept[id(near)].names}

    def _of_norm(self, value: int, norm: float, bucket: Sequence[tuple[float, str]]) -> list[str]:
        """Names in a bucket, sorted by norms, whose norm is near that of a value."""
        width = 2 * self.limit(value) * max(norm, 1e-30)
        low = bisect.bisect_left(bucket, (norm - width, ""))
        high = bisect.bisect_right(bucket, (norm + width, "\U0010ffff"))
        return [name for _, name in bucket[low:high]]

    def _resolve(
        self, values: list[int], names: list[str], candidates: Mapping[int, LookAlikes]
    ) -> list[tuple[int, str, tuple[str, ...]]]:
        """Pairs inside a group of values that all look alike: by scope, then by order."""
        values = sorted(values, key=lambda v: (self.first_stage[v].order, v))
        at = {value: place for place, value in enumerate(values)}
        free = dict.fromkeys(sorted(names, key=lambda n: (self.place[n], n)))
        pairs: list[tuple[int, str, tuple[str, ...]]] = []
        alone = len(values) == 1 and len(free) == 1
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        # In a saturated chain all values have the same candidates and the same scope.
        scoped_names: dict[tuple[int, frozenset[_Scope]], tuple[str, ...]] = {}
        for value in values:
            key = id(candidates[value]), self._scopes_of(value)
            if key not in scoped_names:
                scoped_names[key] = tuple(self._in_scope(key[1], candidates[value]))
            groups[scoped_names[key]].append(value)
        rest = []
        for scoped, members in groups.items():
            options = [n for n in scoped if n in free]
            if not options:
                rest += members
                continue
            # The last value of a scope is the one that leaves it.
            chosen = options if len(options) <= len(members) else options[len(options) - len(members) :]
            if len(members) == 1 and (counted := self._counted(members[0])) in options:
                chosen = [counted]
            for value, name in zip(members, chosen, strict=False):
                named = self._named(name)
                pairs.append((value, name, (named,) if alone or len(options) == 1 else (named, "order")))
                del free[name]
            rest += members[len(chosen) :]
        for value, name, tag in self._by_order(sorted(rest, key=lambda v: at[v]), list(free), candidates):
            pairs.append((value, name, tag if not alone else ()))
        pairs = self._in_order(pairs, candidates)
        if any(tag == ("order",) for *_, tag in pairs) and not self._orders(values, names):
            pairs = [(v, n, (*tag, AMBIGUOUS) if tag == ("order",) else tag) for v, n, tag in pairs]
        return pairs

    def _in_scope(self, scopes: frozenset[_Scope], names: LookAlikes) -> list[str]:
        """Those of some names that carry one of some scopes, in topological order."""
        if len(names.names) == 1:
            return [n for n in names.names if self._carries(n, scopes)]
        # From the scope to its names: of the names there may be as many as there are values.
        paths = {path for path, _ in scopes}
        found = {n for path in paths for n in self.scopes.named(path) if n in names and self._carries(n, scopes)}
        return sorted(found, key=lambda n: (self.place[n], n))

    def _orders(self, values: list[int], names: list[str]) -> bool:
        """Whether both sides of a group of look-alikes are chains of one length: then their order says which is which."""
        ordered = sorted(names, key=lambda n: self.place[n])
        roots = list({self._made_as(self._root(name)): name for name in ordered}.values())
        values = list({self._computed_as(value): value for value in values}.values())
        if len(roots) != len(values):
            return False
        chain = itertools.pairwise(roots)
        return all(self._made_from(later, earlier) for earlier, later in chain) and all(
            self._comes_from(later, earlier) for earlier, later in itertools.pairwise(values)
        )

    def _computed_as(self, value: int) -> tuple[object, ...]:
        """How PyTorch makes a value, in the same sense; two modules have weights of their own."""
        stage = self.first_stage[value]
        return (stage.type, self.trace.parents.get(value, ())) if "#" in stage.ref.stage else (value,)

    def _made_as(self, name: str) -> tuple[str, ...]:
        """How a value is made: what is computed twice in one way is one value."""
        node = self.graph.nodes[self.place[name]]
        read = (self._root(other) if other in self.place else other for other in node.inputs)
        return (node.op_type, str(node.outputs.index(name)), *read)

    def _root(self, name: str) -> str:
        """The value that a name hands on in another shape or type."""
        while True:
            node = self.graph.nodes[self.place[name]]
            if node.op_type not in _SHAPING or node.inputs[0] not in self.place:
                return name
            name = node.inputs[0]

    def _counted(self, value: int) -> str | None:
        """The value of an operation by its number among those of its kind in its scope, if both sides have as many.

        Behind a dropped operand an addition hands on what another one made.
        """
        ref = self.first_stage[value].ref.stage
        path, separator, _ = ref.rpartition("/")
        if not separator or "#" not in ref:
            return None
        kind = family(self.first_stage[value].type)
        if (path, kind) not in self.operations:
            names = self._dequantised_names(self.scopes.calls(path, kind))
            values = sorted(self._operations_of(path, kind), key=lambda v: self.first_stage[v].order)
            equal = len(names) == len(values)
            self.operations[path, kind] = dict(zip(values, names, strict=True)) if equal else {}
        return self.operations[path, kind].get(value)

    def _operations_of(self, path: str, kind: str) -> list[int]:
        """PyTorch's values of the operations of one family directly in a scope."""
        if self._by_call is None:
            self._by_call = defaultdict(list)
            for value, stage in self.first_stage.items():
                scope, separator, name = stage.ref.stage.rpartition("/")
                if separator and "#" in name:
                    self._by_call[scope, family(stage.type)].append(value)
        return self._by_call.get((path, kind), [])

    def _dequantised_names(self, names: Iterable[str]) -> list[str]:
        """The same values as the next stage reads them."""
        pairs = self.quantisation.pairs
        return [pairs[name].end if name in pairs else name for name in names]

    def _in_order(
        self, pairs: list[tuple[int, str, tuple[str, ...]]], candidates: Mapping[int, LookAlikes]
    ) -> list[tuple[int, str, tuple[str, ...]]]:
        """Exchanges the names of two values where one is made from the other, here and there the other way round.

        A product and its sum with zeros are alike, and exporters tag the sum with the whole operation.
        """
        pairs = sorted(pairs, key=lambda pair: pair[0])
        places = [self.place[name] for _, name, _ in pairs]
        if all(one <= other for one, other in itertools.pairwise(places)):
            return pairs
        for first, second in itertools.combinations(range(len(pairs)), 2):
            (value, name, tag), (later, other, later_tag) = pairs[first], pairs[second]
            turned = self.place[other] < self.place[name] and self._reads(name, other)
            if turned and other in candidates[value] and name in candidates[later] and self._comes_from(later, value):
                pairs[first], pairs[second] = (value, other, tag), (later, name, later_tag)
        return pairs

    def _by_order(
        self, values: list[int], names: list[str], candidates: Mapping[int, LookAlikes]
    ) -> Iterable[tuple[int, str, tuple[str, ...]]]:
        # Values tagged with another stage's scope are that stage's, unless nobody else is left to claim them.
        names = [n for n in names if not self._foreign(n)] or names
        at = 0
        for number, value in enumerate(values):
            later = len(values) - number - 1
            chosen = next((i for i in range(at, len(names)) if names[i] in candidates[value]), None)
            if chosen is None:
                continue
            name = names[chosen]
            if later == 0 and not self._is_scoped(name):
                # What bears a scope of its own is no handing on: a sum that has lost an operand is one.
                # Without any scopes the same goes for what may have been a sum.
                options = [n for n in names[chosen:] if n in candidates[value]]
                untagged = (n for n in reversed(options) if not self._is_scoped(n) and self._may_hand_on(n))
                name = next((n for n in untagged if self._reads(n, name)), name)
                chosen = names.index(name)
            at = chosen + 1
            yield value, name, ("order",)

    def _may_hand_on(self, name: str) -> bool:
        return self.scopes.any or self.graph.nodes[self.place[name]].op_type != "Identity"

    def _reads(self, later: str, earlier: str) -> bool:
        """Whether ``later`` is handed on from ``earlier`` by a chain of single readers."""
        at = earlier
        while at != later:
            readers = self.scopes.readers[at]
            if len(readers) != 1 or at in self.scopes.outputs or not self.graph.nodes[readers[0]].outputs:
                return False
            at = self.graph.nodes[readers[0]].outputs[0]
        return True

    def _named(self, name: str) -> str:
        """What says which module a value belongs to."""
        return "weights" if name in self.scopes.by_weights else "scope"

    def _is_scoped(self, name: str) -> bool:
        return self.scopes.path_of(name) is not None

    def _foreign(self, name: str) -> bool:
        """Whether a value carries the scope of a leaf module whose own value is matched elsewhere already."""
        path = self.scopes.path_of(name)
        return path is not None and bool(self.taken_by.get(path, set()) - {name})

    def _same_scope(self, value: int, name: str) -> bool:
        return self._carries(name, self._scopes_of(value))

    def _scopes_of(self, value: int) -> frozenset[_Scope]:
        """Scopes that nodes of a value's stages carry."""
        found: set[_Scope] = set()
        for stage in self.stages_of[value]:
            if stage.level == "container":
                continue
            if "#" in stage.ref.stage:
                found.add((stage.ref.stage.rpartition("/")[0], family(stage.type)))
            elif stage.alias_of is None:
                found.add((stage.ref.stage, None))
        return frozenset(found)

    def _carries(self, name: str, scopes: frozenset[_Scope]) -> bool:
        path = self.scopes.path_of(name)
        if path is None:
            return False
        if (path, None) in scopes:
            return True
        maker = self.scopes.maker_of(name)
        assert maker is not None
        node = self.graph.nodes[maker]
        return (path, family(node.target or node.op_type)) in scopes

    def _follow(self, match: Match, signature: Signature | None = None) -> Match:
        """Moves a pair down through untagged nodes that hand the value on, so that it is what the next stage reads.

        ``signature``: what is handed on; PyTorch's value unless another is given.
        """
        signature = signature or self.torch[match.value]
        name = match.onnx
        if name in self.quantisation.pairs:
            return self._to_dequantised(match)
        while self.scopes.any and name not in self.scopes.outputs:
            readers = self.scopes.readers[name]
            if len(readers) != 1 or self.scopes.paths[readers[0]] is not None:
                break
            node = self.graph.nodes[readers[0]]
            if node.scopes or node.call is not None or len(node.outputs) != 1:
                break
            following = node.outputs[0]
            other = self.onnx.get(following)
            if following in self.taken or other is None or distance(signature, other) > NEAR_LIMIT:
                break
            name = following
        if name == match.onnx:
            return match
        return replace(match, onnx=name, evidence=(*match.evidence, "handed on"))

    def _to_dequantised(self, match: Match) -> Match:
        """Moves a pair behind the nodes that quantise its value and turn it back: their error is the stage's own.

        Quantising may stand for an activation as well, which then has the value behind it: zero and less becomes zero.
        """
        end = self.quantisation.pairs[match.onnx].end
        if end in self.taken or end not in self.onnx or self._has_clamp_behind(match):
            return match
        agrees = self.agrees(match.value, end)
        return replace(match, onnx=end, evidence=(*match.evidence, "dequantised"), confirmed=agrees)

    def _has_clamp_behind(self, match: Match) -> bool:
        """Whether PyTorch cuts a value off in the next stage, and the graph has no node for that."""
        after = self._stages_after(match.value)
        clamps = [stage for stage in after if family(stage.type) in _CLAMPS]
        if len(after) != 1 or not clamps or clamps[0].value in self.matches:
            return False
        end = self.quantisation.pairs[match.onnx].end
        return not any(family(self.graph.nodes[reader].op_type) in _CLAMPS for reader in self.scopes.readers[end])

    def _to_the_end(self, match: Match, others: Neighbours[int]) -> Match:
        """A module's value is what leaves its scope, though a step before that has the same numbers.

        A bias of zeros and a scale of ones change nothing; if theirs is the fault, only the value before it agrees.
        """
        stage = next((s for s in self.stages_of[match.value] if s.level == "leaf" and "#" not in s.ref.stage), None)
        path = self.scopes.path_of(match.onnx)
        if stage is None or stage.alias_of is not None or path is None:
            return match
        if path not in (stage.ref.stage, self._folded_scope(stage)):
            return match
        called_once = path is not None and self.calls[path, stage.ref.output] == 1
        name = match.onnx
        first = self.graph.nodes[self.place[name]]
        while name not in self.scopes.outputs:
            readers = set(self.scopes.readers[name])
            if len(readers) != 1 or self.scopes.paths[reader := readers.pop()] != path:
                break
            node = self.graph.nodes[reader]
            # A second call may bear the same scope, but not the same call.
            if len(node.outputs) != 1 or not (called_once or (node.scopes, node.call) == (first.scopes, first.call)):
                break
            name = node.outputs[0]
        if name == match.onnx or name in self.taken or not self.fits(match.value, name):
            return match
        own = self.onnx.get(name)
        if own is not None and any(
            value != match.value and self.agrees(value, name) for value in others.around(own, self.widest)
        ):
            return match
        return replace(match, onnx=name, evidence=(self._named(name),), confirmed=self.agrees(match.value, name))

    # -- structure ----------------------------------------------------------------------------------------------------

    def match_placed(self, placed: Mapping[int, Match]) -> None:
        """Stages whose place a fresh export tells, as far as no value says otherwise."""
        for value, match in placed.items():
            if value in self.matches or match.onnx in self.taken or not self._lies_right(value, match.onnx):
                continue
            agrees = (
                match.permutation is None and self.agrees(value, match.onnx) and not self._circular(value, match.onnx)
            )
            evidence = (STRUCTURE, self.value_evidence) if agrees else (STRUCTURE,)
            self.take(replace(match, evidence=evidence, confirmed=agrees))

    # -- scopes -------------------------------------------------------------------------------------------------------

    def match_by_scope(self) -> None:
        """Stages that no value fits: the name is all there is, so the pair stays unconfirmed."""
        leaves: dict[str, list[int]] = defaultdict(list)
        calls: dict[tuple[str, str], list[int]] = defaultdict(list)
        for value, stage in self.first_stage.items():
            if stage.level == "container" or value in self.matches or value not in self.torch:
                continue
            path, separator, _ = stage.ref.stage.rpartition("/")
            if separator and "#" in stage.ref.stage:
                calls[path, family(stage.type)].append(value)
            else:
                leaves[stage.ref.stage].append(value)
        folded = self._folded_into(leaves)
        # The producer's node holds the normalisation's value: nothing in its scope is the producer's own.
        taken = {self._folded_scope(self.first_stage[value]) for value in self.matches}
        for path, values in leaves.items():
            if path in folded.values() or path in taken:
                continue
            self._match_group(values, self.scopes.leaving(folded.get(path, path)))
        for (path, kind), values in calls.items():
            names = self.scopes.calls(path, kind)
            if all(self.first_stage[value].type in _BIASED for value in values):
                following = {family(stage.type) for v in values for stage in self._stages_after(v)}
                names = [self._with_bias(name, following) for name in names]
            self._match_group(values, names, operations=True)
        for value, stages in self.stages_of.items():
            if value in self.matches or value not in self.torch:
                continue
            # One operation of PyTorch's may be all of a module, as in attention's fast path, and many nodes.
            for path in {s.ref.stage for s in stages if s.level == "container" and s.alias_of is not None}:
                names = [n for n in self.scopes.leaving_tree(path) if self._lies_right(value, n)]
                if value not in self.matches and not self.scopes.calls(path, family(self.first_stage[value].type)):
                    self._match_group([value], names)

    def _with_bias(self, name: str, following: Set[str]) -> str:
        """The sum behind a product: one operation in PyTorch, two nodes here, or three with a factor.

        ``following``: kinds of the operations that come next in PyTorch; a node of their kind is theirs.
        """
        if self.graph.nodes[self.place[name]].op_type != "MatMul":
            return name
        at, path = name, self.scopes.path_of(name)
        while len(readers := set(self.scopes.readers[at])) == 1 and at not in self.scopes.outputs:
            node = self.graph.nodes[readers.pop()]
            if node.op_type not in ("Mul", "Add", "Identity") or family(node.op_type) in following:
                break
            if self.scopes.path_of(node.outputs[0]) != path or node.outputs[0] in self.taken:
                break
            at = node.outputs[0]
            if node.op_type == "Add":
                return at
        return at if self.graph.nodes[self.place[at]].op_type == "Identity" else name

    def _stages_after(self, value: int) -> list[Stage]:
        return [self.first_stage[child] for child in self.children.get(value, ()) if child in self.first_stage]

    def _match_group(self, values: list[int], names: list[str], *, operations: bool = False) -> None:
        """Pairs what a scope has in PyTorch with what it has in the graph, where the numbers on both sides are equal.

        A module's value is the last of its scope; ``operations`` of one kind are told apart by what they read.
        """
        values = sorted(values, key=lambda v: self.first_stage[v].order)
        if operations:
            values = [v for v in values if not self._computed_otherwise(v)]
        free = [n for n in names if n not in self.taken and any(self._lies_right(v, n) for v in values)]
        sizes = {math.prod(self.first_stage[v].shape) for v in values}
        for size in sizes:
            members = [v for v in values if math.prod(self.first_stage[v].shape) == size]
            read = set().union(*map(self._parents, members)) if operations else set()
            usable = [n for n in free if not read or read & self._read_by(n)]
            options = [n for n in usable if self.fits(members[0], n)]
            # Optimisers sort graphs anew: of several operations of one kind the order alone does not tell which is which.
            if operations and len(options) >= max(len(members), 2):
                options = self._most_alike(members, options)
            if len(members) == 1 and len(options) > 1:
                options = options[-1:]
            if not options and len(members) == 1:
                self._match_by_axes(members[0], usable)
            if len(options) != len(members):
                continue
            for value, name in zip(members, options, strict=True):
                agrees = self.agrees(value, name) and not self._circular(value, name)
                named = self._named(name)
                evidence = (named, self.value_evidence) if agrees else (named,)
                self.take(self._follow_unconfirmed(Match(value, name, evidence, agrees)))

    def _most_alike(self, values: list[int], names: list[str]) -> list[str]:
        """As many names as values, in their order, if reading and numbers tell; all names otherwise."""
        chosen: list[str] = []
        for value in values:
            parents = self._parents(value)
            reading = [n for n in names if parents <= self._read_by(n)] if parents else []
            near = {n: self._apart(value, n) for n in reading or names}
            clear = min(near.values()) * self.clearly_nearer
            found = [n for n, apart in near.items() if apart <= clear]
            if len(found) != 1 or found[0] in chosen:
                return reading if len(values) == 1 and reading else names
            chosen += found
        return chosen

    def _computed_otherwise(self, value: int) -> bool:
        """Whether the graph gets to what is made of an operation without it, and nothing that it reads has a pair."""
        return not self._parents(value) and _is_passed_by(
            value, self.trace, self.children, self.matches, self.torch, self.chained
        )

    def _lies_right(self, value: int, name: str) -> bool:
        """Whether a name lies behind what its value is made from, and before what is made from it."""
        at = self.place[name]
        for other in _nearest(value, self.trace.parents, self.matches):
            source = self.matches[other].onnx
            if self.place[source] >= at and self._made_from(source, name):
                return False
        for other in _nearest(value, self.children, self.matches):
            target = self.matches[other].onnx
            if self.place[target] <= at and self._made_from(name, target):
                return False
        return True

    def _made_from(self, name: str, source: str) -> bool:
        """Whether the graph computes one value from another."""
        first = self.place[source]
        seen: set[str] = set()
        stack = [name]
        while stack:
            at = stack.pop()
            if at == source:
                return True
            if at not in seen and self.place.get(at, -1) > first:
                seen.add(at)
                stack.extend(self.graph.nodes[self.place[at]].inputs)
        return False

    def _parents(self, value: int) -> set[str]:
        return {self.matches[v].onnx for v in self.trace.parents.get(value, ()) if v in self.matches}

    def _apart(self, value: int, name: str) -> float:
        first, second = self.torch.get(value), self.onnx.get(name)
        return distance(first, second) if first is not None and second is not None else math.inf

    def _read_by(self, name: str) -> set[str]:
        """Paired values that a node reads, itself or by way of nodes that belong to nobody."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = list(self.graph.nodes[self.place[name]].inputs)
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if at in self.taken:
                found.add(at)
            elif at in self.place:
                stack.extend(self.graph.nodes[self.place[at]].inputs)
        return found

    def _match_by_axes(self, value: int, names: list[str]) -> None:
        shape = self.first_stage[value].shape
        for name in reversed(names):
            signature = self.onnx.get(name)
            own = self.torch.get(value)
            if signature is None or (own is not None and own.kind != signature.kind):
                continue
            order = axis_order(shape, signature.shape)
            if order is not None and name not in self.taken:
                self.take(Match(value, name, ("scope", "permuted"), False, order))
                return

    def _follow_unconfirmed(self, match: Match) -> Match:
        """Untagged nodes behind a broken stage that hand *its* value on belong to it too."""
        own = self.onnx.get(match.onnx)
        return self._follow(match, own) if own is not None and own.norm else match

    def _folded_into(self, leaves: Mapping[str, list[int]]) -> dict[str, str]:
        """Normalisations that have no node while their producer has one: the exporter folded them into it.

        The producer's node then holds the normalisation's value, under the producer's name.
        """
        result: dict[str, str] = {}
        for path, values in leaves.items():
            producer = self._folded_scope(self.first_stage[values[0]])
            if producer is not None:
                result[path] = producer
        return result

    def _folded_scope(self, stage: Stage) -> str | None:
        """The scope of the producer that a normalisation without nodes of its own is folded into."""
        if "BatchNorm" not in stage.type or self.scopes.by_path.get(stage.ref.stage):
            return None
        producers = {self.first_stage[i].ref.stage for i in stage.inputs if i in self.first_stage}
        producer = producers.pop() if len(producers) == 1 else None
        return producer if producer is not None and self.scopes.by_path.get(producer) else None


def _children(trace: TorchTrace) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for value, parents in trace.parents.items():
        for parent in parents:
            found[parent].append(value)
    return found


def _nearest(value: int, step: Mapping[int, Sequence[int]], matches: Mapping[int, Match]) -> list[int]:
    """Values with a confirmed pair that are next in one direction."""
    found: list[int] = []
    seen: set[int] = set()
    stack = list(step.get(value, ()))
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at in matches and matches[at].confirmed:
            found.append(at)
        else:
            stack.extend(step.get(at, ()))
    return found


def _is_passed_by(
    value: int,
    trace: TorchTrace,
    children: Mapping[int, Sequence[int]],
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> bool:
    """Whether all that is made of a value comes out right in the graph's own run, while nothing there equals the value.

    Cosine similarity: an exporter multiplies first and divides then. *Right* is no further off than what it is made from
    is, but for rounding; a fault may well be small at the model's outputs.
    """

    def apart(matched: int) -> float:
        first, second = torch_signatures.get(matched), chained.get(matches[matched].onnx)
        usable = first is not None and second is not None and matches[matched].permutation is None
        return distance(first, second) if usable else math.inf  # type: ignore[arg-type]

    after = _nearest(value, children, matches)
    if not after or not all("value" in matches[v].evidence for v in after):
        return False
    before = [apart(v) for v in _nearest(value, trace.parents, matches)]
    limit = max([_ROUNDING, *(_GROWTH * by for by in before if math.isfinite(by))])
    return all(apart(v) <= limit for v in after)


def summarize(
    trace: TorchTrace,
    graph: OnnxGraph,
    matches: Mapping[int, Match],
    torch_signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
    counts: Callable[[Stage], bool],
) -> Alignment:
    """The public view of an alignment: pairs of all stages; left-overs and coverage of those that ``counts``.

    Coverage is aligned outputs over outputs that have a value in the graph at all; the folded ones are left out of both
    and listed with their reason.
    """
    scopes, children = _Scopes(graph, trace, {}), _children(trace)
    taken = {match.onnx for match in matches.values()}
    taken |= {back for name, back in scopes.back.items() if name in taken}
    pairs, unaligned = [], []
    counted = aligned = 0
    for stage in trace.stages:
        match = matches.get(stage.value)
        if match is not None:
            evidence = match.evidence
            if stage.alias_of is not None:
                evidence = (*evidence, f"{_SAME_TENSOR} {stage.alias_of}")
            pairs.append(Pair(stage.ref, match.onnx, evidence, match.permutation))
        if not counts(stage):
            continue
        counted += 1
        if match is not None:
            aligned += 1
        else:
            left = _reason(stage, trace, scopes, taken, torch_signatures, chained)
            if (
                left.in_graph
                and "#" in stage.ref.stage
                and _is_passed_by(stage.value, trace, children, matches, torch_signatures, chained)
            ):
                left = replace(left, reason="the graph computes what is made of it in another way", in_graph=False)
            unaligned.append(left)
    in_graph = aligned + sum(left.in_graph for left in unaligned)
    inner = [name for node in graph.nodes for name in node.outputs if name and name not in taken]
    return Alignment(
        pairs=tuple(pairs),
        unaligned=tuple(unaligned),
        unmatched_onnx=tuple(inner),
        stages=counted,
        aligned=aligned,
        coverage=aligned / in_graph if in_graph else None,
    )


def _reason(
    stage: Stage,
    trace: TorchTrace,
    scopes: _Scopes,
    taken: set[str],
    signatures: Mapping[int, Signature],
    chained: Mapping[str, Signature],
) -> Unaligned:
    ref = stage.ref
    if stage.alias_of is not None and stage.alias_of.stage == "(input)":
        return Unaligned(ref, "hands an input of the model on unchanged", False)
    if stage.value not in signatures:
        return Unaligned(ref, "its tensor could not be captured", False)
    path, separator, _ = ref.stage.rpartition("/")
    if separator and "#" in ref.stage:
        names = scopes.calls(path, family(stage.type))
        what = f"no value of the graph equals it, and no {stage.type} is left in its scope: fused or computed otherwise"
    else:
        names = scopes.leaving(ref.stage)
        what = "no value of the graph equals it, and no node carries its scope: folded away by the exporter"
    kind = signatures[stage.value].kind
    # Bytes of a quantised graph are no values of a float stage.
    fitting = [name for name in names if name not in chained or chained[name].kind == kind]
    free = [name for name in fitting if not _is_taken(name, scopes, taken)]
    if not free:
        if names and "#" not in ref.stage:
            what = f"no value of the graph equals it; its node's value {names[-1]} is that of a later stage: folded"
        return Unaligned(ref, what, False)
    # What the file leaves open, the run has told.
    size, shapes = math.prod(stage.shape), {**scopes.graph.shapes, **{n: s.shape for n, s in chained.items()}}
    sized = [n for n in free if n not in shapes or math.prod(shapes[n]) == size]
    if not sized:
        return Unaligned(ref, f"the values in its scope ({', '.join(free[:3])}) have other sizes", False)
    return Unaligned(ref, f"several values fit its scope and none fits by value: {', '.join(sized[:4])}", True)


def _is_taken(name: str, scopes: _Scopes, taken: set[str]) -> bool:
    """Whether a value has a pair, or is one that has, in another shape."""
    while name not in taken:
        maker = scopes.makers.get(name)
        if maker is None or scopes.graph.nodes[maker].op_type not in _SHAPING:
            return False
        name = scopes.graph.nodes[maker].inputs[0]
    return True


def ambiguity_lines(alignment: Alignment) -> tuple[str, ...]:
    """Says which stages' pairs are no more than a choice; nothing if there are none."""
    # What hands another stage's tensor on has its pair.
    refs = [
        str(pair.ref)
        for pair in alignment.pairs
        if AMBIGUOUS in pair.evidence and not any(line.startswith(_SAME_TENSOR) for line in pair.evidence)
    ]
    if not refs:
        return ()
    named = ", ".join(refs[:4]) + (" ..." if len(refs) > 4 else "")
    stages = f"{len(refs)} stage{'s' if len(refs) > 1 else ''}"
    return (f"several values of the graph fit {stages} equally, and the order of computation chose: {named}",)


def stage_refs(alignment: Alignment) -> dict[StageRef, str]:
    """ONNX value by stage."""
    return {pair.ref: pair.onnx_value for pair in alignment.pairs}

"""The pairs that were found so far, and what both graphs say about a pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

from bisect_tool.align.bias_elsewhere import without_bias
from bisect_tool.align.families import family
from bisect_tool.align.matches import (
    FORCED_VALUE,
    NARROW_VALUE_LIMIT,
    NEAR_LIMIT,
    QUANTISED_LIMIT,
    Hints,
    Match,
    Sides,
    is_narrow,
    value_limit,
)
from bisect_tool.align.scopes import Scopes
from bisect_tool.align.surroundings import children_of, nearest_paired
from bisect_tool.align.twins import computed_before
from bisect_tool.layouts import same_data_order
from bisect_tool.quantised import quantisation_of, quantised_counts
from bisect_tool.records import Stage
from bisect_tool.rows import used_values
from bisect_tool.signatures import Signature, distance

_CLAMPS = frozenset(["relu", "clip", "threshold"])
"""Families of operations that quantisation itself may do: what is out of its range is cut off."""

_CLEARLY_NEARER = 4.0
"""So many times nearer than another value is clearly the one."""

_NEARER_QUANTISED = 2.0
"""The same among values that are all off by a few per cent."""

Scope = tuple[str, str | None]
"""Path of a module; with the family of an operation that is directly in it."""


class Board:
    """State of one matching: the pairs, and which values of the graph they have taken.

    Kinds of evidence lie in modules of their own, ``by_output``, ``by_value``, ``by_axes`` and ``by_scope``; each looks at
    what is left, and calls :meth:`take` for what it finds.

    Attributes:
        matches: the pairs, by PyTorch value.
        taken: names of the graph's values that have a pair.
        taken_by: the same by the path of the stage that they belong to.
        place: position of the node that makes a value, by the value's name.
        given: PyTorch value by name, where a forced run was fed with it.
        chained: signatures from the graph's own run, where ``onnx`` has those of a forced one.
        first_stage, stages_of: stages that have a PyTorch value: several may have the same one.
        children: PyTorch values that are made from a value.
        used: PyTorch values that an output comes from.
        merged: operations that PyTorch does again and the graph, as the number of its nodes says, does once.
        returned: how many values a call of a module returns, by path and number of the call.
        calls: how often a module is called, by path and output.
    """

    def __init__(self, sides: Sides, hints: Hints):
        trace, graph, fed = sides.trace, sides.graph, hints.fed
        self.trace = trace
        self.graph = graph
        self.torch = sides.torch
        self.onnx = sides.onnx
        self.chained = hints.chained or sides.onnx
        self.value_evidence = "value" if fed is None else FORCED_VALUE
        self.scopes = Scopes(graph, trace, hints.modules)
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
        self.children = children_of(trace)
        self.returned = Counter((stage.ref.stage, stage.ref.call) for stage in trace.stages)
        self.calls = Counter((stage.ref.stage, stage.ref.output) for stage in trace.stages)
        for stage in trace.stages:
            self.first_stage.setdefault(stage.value, stage)
            self.stages_of[stage.value].append(stage)
        self.used = used_values(trace)
        self.merged = self._merged()
        self.biased = sides.biased
        self.without_bias = without_bias(graph) if sides.biased else frozenset()

    def _merged(self) -> frozenset[int]:
        counted: dict[tuple[str, str | None], list[int]] = defaultdict(list)
        for value, stage in self.first_stage.items():
            if value not in self.used:
                continue
            path, separator, name = stage.ref.stage.rpartition("/")
            if separator and "#" in name:
                counted[path, family(stage.type)].append(value)
            elif stage.level != "container":
                counted[stage.ref.stage, None].append(value)
        repeated = computed_before(self.trace, self.torch) if self.scopes.any else {}
        found: set[int] = set()
        for (path, kind), values in counted.items():
            # Another module's value is another layer's, equal or not.
            again = [v for v in values if v in repeated and (kind is not None or repeated[v] in values)]
            names = (self.scopes.leaving(path) if kind is None else self.scopes.calls(path, kind)) if again else []
            if again and len(names) == len(values) - len(again) and not self._has_each(values, repeated, names):
                found.update(again)
        return frozenset(found)

    def _has_each(self, values: list[int], repeated: Mapping[int, int], names: list[str]) -> bool:
        """Whether the graph has as many equal values as PyTorch, of each: then none of them stands for two."""
        equal = Counter(repeated.get(value, value) for value in values)
        return all(sum(self.agrees(first, name) for name in names) >= count for first, count in equal.items())

    def take(self, match: Match) -> None:
        """Enters a pair."""
        self.matches[match.value] = match
        self.taken.add(match.onnx)
        if self.scopes.back.get(match.onnx) in self.integer_made:
            # A byte and the number that it stands for are one value.
            self.taken.add(self.scopes.back[match.onnx])
        self.taken_by[self.first_stage[match.value].ref.stage].add(match.onnx)

    def limit(self, value: int) -> float:
        """Relative difference up to which something in the graph counts as a PyTorch value."""
        if self.quantised:
            return QUANTISED_LIMIT
        return value_limit(self.first_stage[value].dtype, narrow=self.narrow_graph)

    def agrees(self, value: int, name: str) -> bool:
        """Whether both sides hold the same numbers, as far as signatures tell."""
        first, second = self.torch.get(value), self.onnx.get(name)
        return first is not None and second is not None and distance(first, second) <= self.limit(value)

    def fits(self, value: int, name: str) -> bool:
        """The same shape, or one that merging neighbouring axes explains, as far as known."""
        signature = self.torch.get(value)
        other = self.onnx.get(name)
        if signature is not None and other is not None and signature.kind != other.kind:
            return False
        if self._is_other_result(value, name) or self.lacks_bias(value, name):
            return False
        shape = other.shape if other is not None else self.graph.shapes.get(name)
        return shape is None or same_data_order(self.first_stage[value].shape, shape)

    def lacks_bias(self, value: int, name: str) -> bool:
        """Whether a module's bias is added to a product by the node that reads it."""
        return name in self.without_bias and value in self.biased

    def _is_other_result(self, value: int, name: str) -> bool:
        """Whether one is the numbers of an order and the other their places, which may be whole numbers both."""
        node = self.graph.nodes[self.place[name]] if name in self.place else None
        stage = self.first_stage[value]
        if node is None or node.op_type != "TopK" or stage.type not in ("sort", "topk"):
            return False
        return node.outputs.index(name) != stage.ref.output

    def circular(self, value: int, name: str) -> bool:
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
            elif self.comes_from(given, value):
                return True
        return False

    def comes_from(self, value: int, ancestor: int) -> bool:
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

    def made_from(self, name: str, source: str) -> bool:
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

    def named(self, name: str) -> str:
        """What says which module a value belongs to."""
        return "weights" if name in self.scopes.by_weights else "scope"

    def same_scope(self, value: int, name: str) -> bool:
        """Whether a node of one of the value's own stages makes what bears a name."""
        return self.carries(name, self.scopes_of(value))

    def scopes_of(self, value: int) -> frozenset[Scope]:
        """Scopes that nodes of a value's stages carry."""
        found: set[Scope] = set()
        for stage in self.stages_of[value]:
            if stage.level == "container":
                continue
            if "#" in stage.ref.stage:
                found.add((stage.ref.stage.rpartition("/")[0], family(stage.type)))
            elif stage.alias_of is None:
                found.add((stage.ref.stage, None))
        return frozenset(found)

    def carries(self, name: str, scopes: frozenset[Scope]) -> bool:
        """Whether a value was made in one of some scopes."""
        path = self.scopes.path_of(name)
        if path is None:
            return False
        if (path, None) in scopes:
            return True
        maker = self.scopes.maker_of(name)
        assert maker is not None
        node = self.graph.nodes[maker]
        return (path, family(node.target or node.op_type)) in scopes

    def follow(self, match: Match, signature: Signature | None = None) -> Match:
        """Moves a pair down through untagged nodes that hand the value on, so that it is what the next stage reads.

        ``signature``: what is handed on; PyTorch's value unless another is given.
        """
        signature = signature or self.torch[match.value]
        name = match.onnx
        if name in self.quantisation.pairs:
            return self.to_dequantised(match)
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

    def to_dequantised(self, match: Match) -> Match:
        """Moves a pair behind the nodes that quantise its value and turn it back: their error is the stage's own.

        Quantising may stand for an activation as well, which then has the value behind it: zero and less becomes zero.
        """
        end = self.quantisation.pairs[match.onnx].end
        if end in self.taken or end not in self.onnx or self.has_clamp_behind(match):
            return match
        agrees = self.agrees(match.value, end)
        return replace(match, onnx=end, evidence=(*match.evidence, "dequantised"), confirmed=agrees)

    def has_clamp_behind(self, match: Match) -> bool:
        """Whether PyTorch cuts a value off in the next stage, and the graph has no node for that."""
        after = self.stages_after(match.value)
        clamps = [stage for stage in after if family(stage.type) in _CLAMPS]
        if len(after) != 1 or not clamps or clamps[0].value in self.matches:
            return False
        end = self.quantisation.pairs[match.onnx].end
        return not any(family(self.graph.nodes[reader].op_type) in _CLAMPS for reader in self.scopes.readers[end])

    def stages_after(self, value: int) -> list[Stage]:
        """Stages that PyTorch computes from a value at once."""
        return [self.first_stage[child] for child in self.children.get(value, ()) if child in self.first_stage]

    def lies_right(self, value: int, name: str) -> bool:
        """Whether a name lies behind what its value is made from, and before what is made from it."""
        at = self.place[name]
        for other in nearest_paired(value, self.trace.parents, self.matches):
            source = self.matches[other].onnx
            if self.place[source] >= at and self.made_from(source, name):
                return False
        for other in nearest_paired(value, self.children, self.matches):
            target = self.matches[other].onnx
            if self.place[target] <= at and self.made_from(name, target):
                return False
        return True

    def folded_scope(self, stage: Stage) -> str | None:
        """The scope of the producer that a normalisation without nodes of its own is folded into."""
        if "BatchNorm" not in stage.type or self.scopes.by_path.get(stage.ref.stage):
            return None
        if not self.children.get(stage.value) and all(value != stage.value for _, value in self.trace.outputs):
            # Nothing uses it: it was left out.
            return None
        producers = {self.first_stage[i].ref.stage for i in stage.inputs if i in self.first_stage}
        producer = producers.pop() if len(producers) == 1 else None
        return producer if producer is not None and self.scopes.by_path.get(producer) else None

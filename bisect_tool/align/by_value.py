"""Pairs values by their numbers; scope and order tell look-alikes apart."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bisect_tool.align.board import Board, Scope
from bisect_tool.align.counterparts import constant_values
from bisect_tool.align.families import SHAPING, family
from bisect_tool.align.matches import AMBIGUOUS, SECOND, Match, SecondDraw
from bisect_tool.align.neighbours import LookAlikes, Near, Neighbours, components
from bisect_tool.signatures import mark_of

_ROUNDING = 1e-2
"""Share of the limit of values that count as the same up to which two of them differ by no more than rounding."""


class ByValue:
    """Groups of values that look alike on both sides, and who in a group belongs to whom.

    ``second``: signatures of both sides on another input, if there are any.
    """

    def __init__(self, board: Board, second: SecondDraw | None):
        self.board = board
        self.second = second
        self.constants = constant_values(board.graph, board.graph.initializers)
        self._by_second: set[int] = set()
        self._operations: dict[tuple[str, str], dict[int, str]] = {}
        self._by_call: dict[tuple[str, str], list[int]] | None = None
        self._roots: dict[tuple[str, str], frozenset[str]] = {}

    def match(self) -> None:
        """Pairs what looks alike; which of several look-alikes it is, scope, order and another input say."""
        candidates = self._told_apart(self._value_candidates())
        others = Neighbours((value, self.board.torch[value]) for value in candidates)
        for values, names in components(candidates):
            for value, name, evidence in self._resolve(values, names, candidates):
                agreed = (self.board.value_evidence, *evidence, *((SECOND,) if value in self._by_second else ()))
                self.board.take(self._to_the_end(self.board.follow(Match(value, name, agreed, True)), others))

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
            first, limit = expected.get(value), self.board.limit(value)
            if first is None:
                continue
            # Values that look alike share their names, and are asked for once.
            key = (id(names), mark_of(first), limit)
            if key not in known:
                if id(names) not in there:
                    there[id(names)] = Neighbours((name, actual[name]) for name in names.names if name in actual)
                same = there[id(names)].near(first, limit)
                known[key] = names if len(same) in (0, len(names.names)) else LookAlikes.of(same, self.board.place)
            if known[key] is not names:
                found[value] = known[key]
                self._by_second.add(value)
        return found

    def _value_candidates(self) -> dict[int, LookAlikes]:
        free = ((n, s) for n, s in self.board.onnx.items() if n not in self.board.taken and n in self.board.place)
        there = Neighbours(free)
        producers = {self.board.folded_scope(stage) for stage in self.board.first_stage.values()}
        found: dict[int, Near] = {}
        known: dict[tuple[object, float], Near] = {}
        for value in self.board.first_stage:
            wanted = self.board.torch.get(value)
            if wanted is None or value in self.board.matches or value in self.board.merged or wanted.size == 0:
                continue
            # Values that are equal, as in a saturated chain, have one table of what is near.
            key = (mark_of(wanted), self.board.limit(value))
            if key not in known:
                known[key] = there.near(wanted, self.board.limit(value))
            near = known[key]
            # A fresh BatchNorm scales by 0.999995: behind an error its value and its producer's are equally near.
            folded = self.board.first_stage[value].ref.stage in producers
            if self.board.given or folded:
                near = {
                    name: apart
                    for name, apart in near.items()
                    if not self.board.circular(value, name) and not (folded and self.board.same_scope(value, name))
                }
            if value in self.board.biased and self.board.without_bias:
                near = {name: apart for name, apart in near.items() if name not in self.board.without_bias}
            if self.board.trace.parents.get(value) and (wanted.sample == wanted.sample[0]).all():
                # What a run makes of zeros is no constant that happens to be zero.
                near = {name: apart for name, apart in near.items() if name not in self.constants}
            if near:
                found[value] = near
        plain = {id(near): self._dequantised(near) for near in found.values()} if self.board.quantisation.pairs else {}
        found = {value: plain.get(id(near), near) for value, near in found.items()}
        return self._nearest_on_both_sides(self._without_other_calls(found))

    def _without_other_calls(self, found: Mapping[int, Near]) -> dict[int, Near]:
        """Without values of other operations of its kind in a module and its calls, unless they agree to rounding.

        Steps of a loop can be alike to the limit, and behind an error the wrong one be the nearer.
        """
        kept: dict[int, Near] = {}
        for value, near in found.items():
            own = self._counted(value)
            if own is not None and own not in near:
                # A product with one changes nothing: what a broken one is made of has its value.
                read = set(self.board.graph.nodes[self.board.place[own]].inputs)
                near = {name: apart for name, apart in near.items() if name not in read}
            kept[value] = near
            others = self._other_calls(value)
            if others:
                rounding = self.board.limit(value) * _ROUNDING
                left = {n: apart for n, apart in near.items() if apart <= rounding or self._root(n) not in others}
                if len(left) < len(near):
                    kept[value] = left
        return {value: near for value, near in kept.items() if near}

    def _other_calls(self, value: int) -> frozenset[str]:
        """The graph's values of a module's other operations of a kind, in all calls, where both sides count as many."""
        value = self._operation_of(value)
        ref = self.board.first_stage[value].ref
        path, separator, _ = ref.stage.rpartition("/")
        if not separator or "#" not in ref.stage:
            return frozenset()
        kind = family(self.board.first_stage[value].type)
        counted = self._counted_of(path, kind)
        if value not in counted:
            return frozenset()
        if (path, kind) not in self._roots:
            self._roots[path, kind] = frozenset(map(self._root, counted.values()))
        return self._roots[path, kind] - {self._root(counted[value])}

    def _operation_of(self, value: int) -> int:
        """The value that PyTorch hands on as this one in another shape; itself where it hands on none."""
        at = value
        while len(parents := self.board.trace.parents.get(at, ())) == 1 and parents[0] < at:
            own, before = self.board.torch.get(at), self.board.torch.get(parents[0])
            if own is None or before is None or parents[0] not in self.board.first_stage:
                break
            if own.total != before.total or own.sample.tobytes() != before.sample.tobytes():
                break
            at = parents[0]
        return at

    def _dequantised(self, near: Near) -> Near:
        """Without values that are near once they are quantised too: that is what the next stage reads."""
        pairs = self.board.quantisation.pairs
        return {name: apart for name, apart in near.items() if name not in pairs or pairs[name].end not in near}

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
            clear = max(min(near.values()) * self.board.clearly_nearer, 1e-6)
            names = [n for n, apart in near.items() if apart <= clear]
            names = [n for n in names if near[n] <= max(best[n] * self.board.clearly_nearer, 1e-6)]
            kept[key] = LookAlikes.of(names, self.board.place)
        return {value: kept[id(near)] for value, near in found.items() if kept[id(near)].names}

    def _resolve(
        self, values: list[int], names: list[str], candidates: Mapping[int, LookAlikes]
    ) -> list[tuple[int, str, tuple[str, ...]]]:
        """Pairs inside a group of values that all look alike: by scope, then by order."""
        values = sorted(values, key=lambda v: (self.board.first_stage[v].order, v))
        at = {value: place for place, value in enumerate(values)}
        free = dict.fromkeys(sorted(names, key=lambda n: (self.board.place[n], n)))
        pairs: list[tuple[int, str, tuple[str, ...]]] = []
        alone = len(values) == 1 and len(free) == 1
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        # In a saturated chain all values have the same candidates and the same scope.
        scoped_names: dict[tuple[int, frozenset[Scope]], tuple[str, ...]] = {}
        for value in values:
            key = id(candidates[value]), self.board.scopes_of(value)
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
                named = self.board.named(name)
                pairs.append((value, name, (named,) if alone or len(options) == 1 else (named, "order")))
                del free[name]
            rest += members[len(chosen) :]
        for value, name, tag in self._by_order(sorted(rest, key=lambda v: at[v]), list(free), candidates):
            pairs.append((value, name, tag if not alone else ()))
        pairs = self._in_order(pairs, candidates)
        if any(tag == ("order",) for *_, tag in pairs) and not self._orders(values, names):
            pairs = [(v, n, (*tag, AMBIGUOUS) if tag == ("order",) else tag) for v, n, tag in pairs]
        return pairs

    def _in_scope(self, scopes: frozenset[Scope], names: LookAlikes) -> list[str]:
        """Those of some names that carry one of some scopes, in topological order."""
        if len(names.names) == 1:
            return [n for n in names.names if self.board.carries(n, scopes)]
        # From the scope to its names: of the names there may be as many as there are values.
        paths = {path for path, _ in scopes}
        found = {
            n for path in paths for n in self.board.scopes.named(path) if n in names and self.board.carries(n, scopes)
        }
        return sorted(found, key=lambda n: (self.board.place[n], n))

    def _orders(self, values: list[int], names: list[str]) -> bool:
        """Whether both sides of a group of look-alikes are chains of one length: then their order says which is which."""
        ordered = sorted(names, key=lambda n: self.board.place[n])
        roots = list({self._made_as(self._root(name)): name for name in ordered}.values())
        values = list({self._computed_as(value): value for value in values}.values())
        if len(roots) != len(values):
            return False
        chain = itertools.pairwise(roots)
        return all(self.board.made_from(later, earlier) for earlier, later in chain) and all(
            self.board.comes_from(later, earlier) for earlier, later in itertools.pairwise(values)
        )

    def _computed_as(self, value: int) -> tuple[object, ...]:
        """How PyTorch makes a value, in the same sense; two modules have weights of their own."""
        stage = self.board.first_stage[value]
        return (stage.type, self.board.trace.parents.get(value, ())) if "#" in stage.ref.stage else (value,)

    def _made_as(self, name: str) -> tuple[str, ...]:
        """How a value is made: what is computed twice in one way is one value."""
        node = self.board.graph.nodes[self.board.place[name]]
        read = (self._root(other) if other in self.board.place else other for other in node.inputs)
        return (node.op_type, str(node.outputs.index(name)), *read)

    def _root(self, name: str) -> str:
        """The value that a name hands on in another shape or type."""
        while True:
            node = self.board.graph.nodes[self.board.place[name]]
            if node.op_type not in SHAPING or node.inputs[0] not in self.board.place:
                return name
            name = node.inputs[0]

    def _counted(self, value: int) -> str | None:
        """The value of an operation by its number among those of its kind in its scope, if both sides have as many.

        Behind a dropped operand an addition hands on what another one made.
        """
        ref = self.board.first_stage[value].ref.stage
        path, separator, _ = ref.rpartition("/")
        if not separator or "#" not in ref:
            return None
        return self._counted_of(path, family(self.board.first_stage[value].type)).get(value)

    def _counted_of(self, path: str, kind: str) -> dict[int, str]:
        """The operations of one family directly in a scope, one to one; nothing where the sides have other numbers."""
        if (path, kind) not in self._operations:
            names = self._dequantised_names(self.board.scopes.calls(path, kind))
            values = [v for v in self._operations_of(path, kind) if v not in self.board.merged]
            values.sort(key=lambda v: self.board.first_stage[v].order)
            equal = len(names) == len(values)
            self._operations[path, kind] = dict(zip(values, names, strict=True)) if equal else {}
        return self._operations[path, kind]

    def _operations_of(self, path: str, kind: str) -> list[int]:
        """PyTorch's values of the operations of one family directly in a scope."""
        if self._by_call is None:
            self._by_call = defaultdict(list)
            for value, stage in self.board.first_stage.items():
                scope, separator, name = stage.ref.stage.rpartition("/")
                if separator and "#" in name:
                    self._by_call[scope, family(stage.type)].append(value)
        return self._by_call.get((path, kind), [])

    def _dequantised_names(self, names: Iterable[str]) -> list[str]:
        """The same values as the next stage reads them."""
        pairs = self.board.quantisation.pairs
        return [pairs[name].end if name in pairs else name for name in names]

    def _in_order(
        self, pairs: list[tuple[int, str, tuple[str, ...]]], candidates: Mapping[int, LookAlikes]
    ) -> list[tuple[int, str, tuple[str, ...]]]:
        """Exchanges the names of two values where one is made from the other, here and there the other way round.

        A product and its sum with zeros are alike, and exporters tag the sum with the whole operation.
        """
        pairs = sorted(pairs, key=lambda pair: pair[0])
        places = [self.board.place[name] for _, name, _ in pairs]
        if all(one <= other for one, other in itertools.pairwise(places)):
            return pairs
        for first, second in itertools.combinations(range(len(pairs)), 2):
            (value, name, tag), (later, other, later_tag) = pairs[first], pairs[second]
            turned = self.board.place[other] < self.board.place[name] and self._reads(name, other)
            if (
                turned
                and other in candidates[value]
                and name in candidates[later]
                and self.board.comes_from(later, value)
            ):
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
        return self.board.scopes.any or self.board.graph.nodes[self.board.place[name]].op_type != "Identity"

    def _reads(self, later: str, earlier: str) -> bool:
        """Whether ``later`` is handed on from ``earlier`` by a chain of single readers."""
        at = earlier
        while at != later:
            readers = self.board.scopes.readers[at]
            if len(readers) != 1 or at in self.board.scopes.outputs or not self.board.graph.nodes[readers[0]].outputs:
                return False
            at = self.board.graph.nodes[readers[0]].outputs[0]
        return True

    def _is_scoped(self, name: str) -> bool:
        return self.board.scopes.path_of(name) is not None

    def _foreign(self, name: str) -> bool:
        """Whether a value carries the scope of a leaf module whose own value is matched elsewhere already."""
        path = self.board.scopes.path_of(name)
        return path is not None and bool(self.board.taken_by.get(path, set()) - {name})

    def _to_the_end(self, match: Match, others: Neighbours[int]) -> Match:
        """A module's value is what leaves its scope, though a step before that has the same numbers.

        A bias of zeros and a scale of ones change nothing; if theirs is the fault, only the value before it agrees.
        """
        stage = next(
            (s for s in self.board.stages_of[match.value] if s.level == "leaf" and "#" not in s.ref.stage), None
        )
        path = self.board.scopes.path_of(match.onnx)
        if stage is None or stage.alias_of is not None or path is None:
            return match
        if path not in (stage.ref.stage, self.board.folded_scope(stage)):
            return match
        if self.board.returned[stage.ref.stage, stage.ref.call] > 1:
            # What is made of this one in the scope may be the other: a cell's output of its new state.
            return match
        called_once = path is not None and self.board.calls[path, stage.ref.output] == 1
        name = match.onnx
        first = self.board.graph.nodes[self.board.place[name]]
        while name not in self.board.scopes.outputs:
            readers = set(self.board.scopes.readers[name])
            if len(readers) != 1 or self.board.scopes.paths[reader := readers.pop()] != path:
                break
            node = self.board.graph.nodes[reader]
            # A second call may bear the same scope, but not the same call.
            if len(node.outputs) != 1 or not (called_once or (node.scopes, node.call) == (first.scopes, first.call)):
                break
            name = node.outputs[0]
        if name == match.onnx or name in self.board.taken or not self.board.fits(match.value, name):
            return match
        own = self.board.onnx.get(name)
        if own is not None and any(
            value != match.value and self.board.agrees(value, name) for value in others.around(own, self.board.widest)
        ):
            return match
        return replace(
            match, onnx=name, evidence=(self.board.named(name),), confirmed=self.board.agrees(match.value, name)
        )

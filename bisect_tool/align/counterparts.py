"""Which value of a given graph stands where a value of a fresh export of the same model stands.

Both graphs are mostly one structure, with other names. So from values that are known to be one, nodes of one kind that
read the same values and constants are one node, and so are nodes whose results are one; and where a node was exchanged for
another, the value at its place is told from both sides: by what reads it, and by what it is made from.

Nothing is guessed. What two ways lead to different places, or what more than one place would fit, has no counterpart.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from bisect_tool.align.order import longest_rise
from bisect_tool.records import OnnxGraph
from bisect_tool.signatures import Signature, distance

TELLING = 16
"""Elements from which on a weight that only one node of each graph reads says which node that is."""

SAME_CONSTANT = 1e-6
NARROW_CONSTANT = 6e-4
"""Relative difference up to which two constants are one; float16 rounds to half of 1e-3."""

_COMMUTATIVE = frozenset(["Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal"])

_Kind = tuple[object, ...]


@dataclass(frozen=True)
class Outline:
    """One graph, as far as its structure goes.

    Attributes:
        graph: nodes in a topological order.
        attributes: of each node, in full; equal texts mean the same, so defaults are written out.
        signature: of a value: of the run, or of a constant; ``None`` where there is none.
        constants: values that no input of the graph has a part in.
    """

    graph: OnnxGraph
    attributes: Sequence[str]
    signature: Callable[[str], Signature | None]
    constants: Set[str]

    def kinds(self) -> list[_Kind]:
        """What each node does, and which of its inputs are constants."""
        return [
            (node.domain, node.op_type, text, len(node.outputs), tuple(map(self._form, node.inputs)))
            for node, text in zip(self.graph.nodes, self.attributes, strict=True)
        ]

    def _form(self, name: str) -> str:
        return "none" if not name else "constant" if name in self.constants else "computed"


def constant_values(graph: OnnxGraph, initializers: Set[str]) -> frozenset[str]:
    """Values that no input of the graph has a part in: initialisers, and what is computed from nothing else."""
    found = set(initializers)
    for node in graph.nodes:
        if all(not name or name in found for name in node.inputs):
            found.update(name for name in node.outputs if name)
    return frozenset(found)


def likeness(one: Outline, other: Outline) -> tuple[float, int]:
    """Share of nodes that two graphs have in common, 0 to 1, by what they do and nothing else; and how many they have not."""
    first, second = (
        Counter(
            kind for kind, node in zip(side.kinds(), side.graph.nodes, strict=True) if not _idle(side, node.outputs)
        )
        for side in (one, other)
    )
    common, total = sum((first & second).values()), sum((first | second).values())
    return (common / total if total else 0.0), total - common


def _idle(side: Outline, outputs: Sequence[str]) -> bool:
    return all(not name or name in side.constants for name in outputs)


@dataclass(frozen=True, slots=True)
class Laid:
    """Two graphs laid beside each other.

    Attributes:
        pairs: values of the given graph by those of the fresh one, the known ones included.
        left_out: values of the fresh graph that nothing of the given one stands for: the node that should read it, and what
            that reads instead, which is what the value is made of.
    """

    pairs: Mapping[str, str]
    left_out: Mapping[str, tuple[str, str]]


def counterparts(fresh: Outline, given: Outline, known: Mapping[str, str], *, narrow: bool = False) -> Laid:
    """Lays a given graph beside a fresh one.

    Args:
        fresh, given: both sides.
        known: pairs that are certain.
        narrow: the given graph's constants may be rounded to half precision.
    """
    finder = _Finder(fresh, given, narrow)
    for name, other in known.items():
        finder.know(name, other)
    finder.seed()
    finder.spread()
    return Laid(finder.found(), finder.left_out())


class _Side:
    """A graph with what is asked of it again and again."""

    def __init__(self, outline: Outline):
        self.outline = outline
        self.nodes = outline.graph.nodes
        self.kinds = outline.kinds()
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.outputs if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.inputs):
                if name and name not in outline.constants:
                    self.readers[name].append(i)

    def computed(self, node: int) -> list[str]:
        """Inputs that depend on the graph's."""
        return [name for name in self.nodes[node].inputs if name and name not in self.outline.constants]

    def is_chain(self, nodes: Sequence[int]) -> bool:
        """Whether each of some nodes, in their order in the graph, is made from the one before it."""
        return all(self._is_made_from(second, first) for first, second in itertools.pairwise(nodes))

    def _is_made_from(self, node: int, ancestor: int) -> bool:
        seen: set[int] = set()
        stack = [node]
        while stack:
            at = stack.pop()
            if at == ancestor:
                return True
            makers = [self.maker[name] for name in self.computed(at) if name in self.maker]
            # Nodes stand in a topological order.
            stack.extend(maker for maker in makers if maker >= ancestor and maker not in seen)
            seen.update(makers)
        return False

    def fixed(self, node: int) -> list[str]:
        return [name for name in self.nodes[node].inputs if name in self.outline.constants and name]


class _Finder:
    def __init__(self, fresh: Outline, given: Outline, narrow: bool):
        self.fresh, self.given = _Side(fresh), _Side(given)
        self.limit = NARROW_CONSTANT if narrow else SAME_CONSTANT
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}
        self.nodes: dict[int, int] = {}
        self.taken: set[int] = set()
        self.sure: set[str] = set()
        self.doubtful: set[str] = set()
        self.pending: deque[str] = deque()
        self.places: dict[str, set[str]] = defaultdict(set)
        self.alike: dict[tuple[int, int], bool] = {}

    def found(self) -> dict[str, str]:
        return {name: other for name, other in self.there.items() if name not in self.doubtful}

    def left_out(self) -> dict[str, tuple[str, str]]:
        """Values without a place whose readers, all that are known, read one of their operands instead."""
        found: dict[str, tuple[str, str]] = {}
        for i, node in enumerate(self.fresh.nodes):
            name = node.outputs[0] if len(node.outputs) == 1 else ""
            if i in self.nodes or not name or name in self.there:
                continue
            operands = {self.there[n] for n in self.fresh.computed(i) if n in self.there and n not in self.doubtful}
            readers = [self.nodes[r] for r in self.fresh.readers[name] if r in self.nodes]
            read = [operands.intersection(self.given.computed(j)) for j in readers]
            if read and all(read):
                found[name] = (self.given.nodes[readers[0]].name, min(read[0]))
        return found

    # -- values -------------------------------------------------------------------------------------------------------

    def know(self, name: str, other: str) -> None:
        if name not in self.there and other not in self.back:
            self.there[name], self.back[other] = other, name
            self.sure.add(name)
            self.pending.append(name)

    def pair(self, name: str, other: str) -> bool:
        """Takes a pair; false where it contradicts another, and then what is not certain of the two is in doubt."""
        if self.there.get(name) == other:
            return True
        if name in self.there or other in self.back:
            if not self._is_moved(name, other):
                self.doubtful |= {n for n in (name, self.back.get(other)) if n is not None and n not in self.sure}
            return False
        if not self._one_form(name, other):
            return False
        self.there[name], self.back[other] = other, name
        self.pending.append(name)
        return True

    def _is_moved(self, name: str, other: str) -> bool:
        """Whether a node was put behind a value that has its counterpart, or the one that makes a value was left out."""
        known, owner = self.there.get(name), self.back.get(other)
        if known is not None and owner is None:
            return known in self._nearest(self.given, other, self.back)
        return known is None and owner is not None and owner in self._nearest(self.fresh, name, self.there)

    def _one_form(self, name: str, other: str) -> bool:
        first, second = self.fresh.outline.signature(name), self.given.outline.signature(other)
        return first is not None and second is not None and first.shape == second.shape and first.kind == second.kind

    # -- nodes --------------------------------------------------------------------------------------------------------

    def seed(self) -> None:
        """Nodes that read a weight which no other node has, and the steps of a recurrence, which all read the same."""
        first, second = self._by_form(self.fresh), self._by_form(self.given)
        found: dict[int, int] = {}
        for form, nodes in first.items():
            options = second.get(form, [])
            if len(nodes) * len(options) > _MOST_PAIRS:
                continue
            hits = {i: [j for j in options if self.is_like(i, j)] for i in nodes}
            claimed = Counter(j for like in hits.values() for j in like)
            steps: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for i, like in hits.items():
                steps[tuple(like)].append(i)
            for there, here in steps.items():
                single = len(here) == len(there) and all(claimed[j] == len(here) for j in there)
                if single and self.fresh.is_chain(here) and self.given.is_chain(there):
                    found.update(zip(here, there, strict=True))
        exchanged = self._exchanged(found)
        for i, j in found.items():
            if i not in exchanged:
                self.join(i, j)

    def _exchanged(self, found: Mapping[int, int]) -> set[int]:
        """Nodes out of order whose next one says that they are elsewhere: their weights stand in each other's places."""
        kept = dict(longest_rise(sorted(found.items(), key=lambda pair: pair[1])))
        back = {j: i for i, j in found.items()}
        return {i for i, j in found.items() if i not in kept and self._is_elsewhere(i, j, found, back)}

    def _is_elsewhere(self, i: int, j: int, found: Mapping[int, int], back: Mapping[int, int]) -> bool:
        """Whether what makes a node's operand, or what alone reads its result, has another node in its place."""
        for here, there in zip(self._next(self.fresh, i), self._next(self.given, j), strict=True):
            if (
                here is not None
                and there is not None
                and (found.get(here, there) != there or back.get(there, here) != here)
            ):
                return True
        return False

    @staticmethod
    def _next(side: _Side, node: int) -> tuple[int | None, int | None]:
        read, made = side.computed(node), side.nodes[node].outputs
        readers = side.readers[made[0]] if len(made) == 1 else []
        return (side.maker.get(read[0]) if len(read) == 1 else None), (readers[0] if len(readers) == 1 else None)

    def _by_form(self, side: _Side) -> dict[_Kind, list[int]]:
        found: dict[_Kind, list[int]] = defaultdict(list)
        for i, kind in enumerate(side.kinds):
            signatures = [side.outline.signature(name) for name in side.fixed(i)]
            if side.computed(i) and any(s is not None and _is_telling(s) for s in signatures):
                # Axes of length 1 come and go.
                shapes = tuple(s.size if s is not None else None for s in signatures)
                found[kind, shapes].append(i)
        return found

    def is_like(self, i: int, j: int) -> bool:
        """Whether two nodes do the same, with the same constants."""
        if (i, j) not in self.alike:
            self.alike[i, j] = self.fresh.kinds[i] == self.given.kinds[j] and all(
                map(self._same_constant, self.fresh.fixed(i), self.given.fixed(j))
            )
        return self.alike[i, j]

    def _same_constant(self, name: str, other: str) -> bool:
        first, second = self.fresh.outline.signature(name), self.given.outline.signature(other)
        return first is not None and second is not None and distance(first, second) <= self.limit

    def join(self, i: int, j: int) -> None:
        """Two nodes are one: so are what they make, and what they read."""
        if i in self.nodes or j in self.taken:
            return
        made = [
            (n, o) for n, o in zip(self.fresh.nodes[i].outputs, self.given.nodes[j].outputs, strict=True) if n and o
        ]
        fitting = [self.pair(name, other) for name, other in made]
        if all(fitting):
            self.nodes[i] = j
            self.taken.add(j)
            self._join_inputs(i, j)

    def _join_inputs(self, i: int, j: int) -> None:
        names, others = self.fresh.computed(i), self.given.computed(j)
        if len(names) == 1:
            self._place(names[0], others[0])
            return
        for name, other in self._operands(i, names, others):
            self._place(name, other)

    def _operands(self, i: int, names: list[str], others: list[str]) -> list[tuple[str, str]]:
        """Which operand is which; none where that is open, where they seem exchanged, or where one is another's."""
        found = self._aligned_operands(i, names, others)
        if any(self.there.get(n, o) != o or self.back.get(o, n) != n for n, o in found):
            return []
        return [(n, o) for n, o in found if n not in self.there]

    def _aligned_operands(self, i: int, names: list[str], others: list[str]) -> list[tuple[str, str]]:
        straight = list(zip(names, others, strict=True))
        if len(set(names)) < len(names) or len(set(others)) < len(others):
            return straight if [names.index(n) for n in names] == [others.index(o) for o in others] else []
        if sum(self.there.get(n) == o for n, o in straight) == len(names) - 1:
            return straight
        if self.fresh.nodes[i].op_type in _COMMUTATIVE and len(names) == 2:
            crossed = list(zip(names, others[::-1], strict=True))
            if any(self.there.get(n) == o for n, o in crossed):
                return crossed
            one, two = (sum(self._made_alike(n, o) for n, o in pairs) for pairs in (straight, crossed))
            return straight if one > two else crossed if two > one else []
        return [pair for place, pair in enumerate(straight) if self._is_own_place(place, names, others)]

    def _is_own_place(self, place: int, names: Sequence[str], others: Sequence[str]) -> bool:
        """Whether an operand stands where it should: a fault may have exchanged it for another one."""
        for rival in range(len(names)):
            if rival == place or not self._made_alike(names[place], others[rival]):
                continue
            if not self._made_alike(names[place], others[place]):
                if not self._made_alike(names[rival], others[rival]):
                    return False
            elif self._made_alike(names[rival], others[place]) and self._made_alike(names[rival], others[rival]):
                return False
        return True

    def _made_alike(self, name: str, other: str) -> bool:
        """Whether two values come from nodes of one kind, and these from such again."""
        if name in self.there or other in self.back:
            return self.there.get(name) == other
        i, j = self.fresh.maker.get(name), self.given.maker.get(other)
        if i is None or j is None or not self.is_like(i, j):
            return False
        above = zip(self.fresh.computed(i), self.given.computed(j), strict=True)
        makers = [(self.fresh.maker.get(n), self.given.maker.get(o)) for n, o in above]
        return any(a is b is None or (a is not None and b is not None and self.is_like(a, b)) for a, b in makers)

    # -- spreading ----------------------------------------------------------------------------------------------------

    def spread(self) -> None:
        """Follows all that is certain, and only then settles places where another node stands, one after the other."""
        while True:
            while self.pending:
                name = self.pending.popleft()
                if name not in self.doubtful:
                    self._up(name, self.there[name])
                    self._down(name, self.there[name])
            if any(self._settle(name, others) for name, others in self.places.items()):
                continue
            if not any(self._join_readers(name, other) for name, other in list(self.there.items())):
                return

    def _up(self, name: str, other: str) -> None:
        """From a value to the node that makes it."""
        i, j = self.fresh.maker.get(name), self.given.maker.get(other)
        if i is None or j is None or i in self.nodes or j in self.taken:
            return
        if self.fresh.nodes[i].outputs.index(name) == self.given.nodes[j].outputs.index(other) and self.is_like(i, j):
            self.join(i, j)
            return
        # Another node stands there. What it reads is what the fresh one reads, if that comes from like nodes.
        names, others = self.fresh.computed(i), self.given.computed(j)
        if len(names) == len(others) == 1:
            above, beyond = self.fresh.maker.get(names[0]), self.given.maker.get(others[0])
            if above is not None and beyond is not None and self.is_like(above, beyond):
                self.join(above, beyond)

    def _down(self, name: str, other: str) -> None:
        """From a value to the nodes that read it, where all that they read has its counterpart."""
        for i in self.fresh.readers[name]:
            if i in self.nodes:
                # Of two operands that were left open one is known now.
                self._join_inputs(i, self.nodes[i])
                continue
            wanted = [self.there.get(n) for n in self.fresh.computed(i)]
            if any(n is None for n in wanted) or self.doubtful.intersection(self.fresh.computed(i)):
                continue
            options = [
                j
                for j in self.given.readers[other]
                if j not in self.taken and self.is_like(i, j) and self._reads(j, wanted, self.fresh.nodes[i].op_type)
            ]
            twins = [
                k
                for k in self.fresh.readers[name]
                if k != i and self.fresh.kinds[k] == self.fresh.kinds[i] and self._twins(i, k)
            ]
            if len(options) == 1 and not twins:
                self.join(i, options[0])

    def _join_readers(self, name: str, other: str) -> bool:
        """Joins the only nodes that read a value, where the rest of what they read is open; whether that told anything."""
        if name in self.doubtful or len(self.fresh.readers[name]) != 1 or len(self.given.readers[other]) != 1:
            return False
        (i,), (j,) = self.fresh.readers[name], self.given.readers[other]
        if i in self.nodes or j in self.taken or not self.is_like(i, j):
            return False
        names, others = self.fresh.computed(i), self.given.computed(j)
        if names.count(name) != 1 or others.count(other) != 1 or names.index(name) != others.index(other):
            return False
        if any(self.there.get(n, o) != o or self.back.get(o, n) != n for n, o in zip(names, others, strict=True)):
            return False
        self.join(i, j)
        return i in self.nodes

    def _twins(self, i: int, k: int) -> bool:
        """Whether two nodes of the fresh graph read the same, constants as well."""
        if self.fresh.computed(i) != self.fresh.computed(k):
            return False
        signature = self.fresh.outline.signature
        pairs = [(signature(a), signature(b)) for a, b in zip(self.fresh.fixed(i), self.fresh.fixed(k), strict=True)]
        return all(a is not None and b is not None and distance(a, b) <= self.limit for a, b in pairs)

    def _reads(self, j: int, wanted: Sequence[str | None], op_type: str) -> bool:
        own: list[str | None] = list(self.given.computed(j))
        if op_type in _COMMUTATIVE:
            return Counter(own) == Counter(wanted)
        return own == list(wanted)

    # -- a value at a place -------------------------------------------------------------------------------------------

    def _place(self, name: str, other: str) -> None:
        """A value that nodes which are one read in one place."""
        i, j = self.fresh.maker.get(name), self.given.maker.get(other)
        if name in self.there or other in self.back:
            self.pair(name, other)
        elif i is not None and j is not None:
            same_place = self.fresh.nodes[i].outputs.index(name) == self.given.nodes[j].outputs.index(other)
            if same_place and self.is_like(i, j):
                self.pair(name, other)
            else:
                self.places[name].add(other)

    def _settle(self, name: str, others: Set[str]) -> bool:
        """Decides on a place at which another node stands; whether that brought anything new."""
        free = [other for other in others if other not in self.back]
        if name in self.there or name in self.doubtful or len(others) != 1 or not free:
            return False
        (other,) = free
        before = len(self.there)
        i, j = self.fresh.maker[name], self.given.maker[other]
        behind = [k for k in self._chain(self.given, j, self.back) if self.is_like(i, k)]
        if behind:
            # The node is still there, and something was put behind it.
            above = [self.fresh.maker.get(n) for n in self.fresh.computed(i)]
            if not any(k is not None and self.is_like(k, behind[0]) for k in above):
                self.join(i, behind[0])
        elif not any(self.is_like(k, j) for k in self._chain(self.fresh, i, self.there)) and all(
            self._comes_from(name, self.back[n]) for n in self._nearest(self.given, other, self.back)
        ):
            self.pair(name, other)
        return len(self.there) > before

    @staticmethod
    def _chain(side: _Side, node: int, known: Mapping[str, str]) -> Iterator[int]:
        """Nodes above one that hand on what they alone read, up to the first that reads more, or something known."""
        for _ in range(_LONGEST_CHAIN):
            read = set(side.computed(node))
            if len(read) != 1 or not read.isdisjoint(known):
                return
            maker = side.maker.get(read.pop())
            if maker is None:
                return
            yield maker
            node = maker

    @staticmethod
    def _nearest(side: _Side, name: str, known: Mapping[str, str]) -> set[str]:
        """Values with a counterpart from which a value is made, with none in between."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = list(side.computed(side.maker[name])) if name in side.maker else []
        while stack:
            at = stack.pop()
            if at in known:
                found.add(at)
            elif at not in seen:
                seen.add(at)
                stack.extend(side.computed(side.maker[at]) if at in side.maker else ())
        return found

    def _comes_from(self, name: str, ancestor: str) -> bool:
        seen: set[str] = set()
        stack = [name]
        while stack:
            at = stack.pop()
            if at == ancestor:
                return True
            if at not in seen and at in self.fresh.maker:
                seen.add(at)
                stack.extend(self.fresh.computed(self.fresh.maker[at]))
        return False


def _is_telling(signature: Signature) -> bool:
    sample = signature.sample
    return signature.size >= TELLING and bool((sample != sample[0]).any()) and math.isfinite(signature.total)


_MOST_PAIRS = 250_000
"""Comparisons of nodes that read weights of one size."""

_LONGEST_CHAIN = 8
"""Nodes that may have been put behind one."""

"""PyTorch and ONNX Runtime side by side in one go: a value is compared when its second side arrives, and then freed.

Nothing is known yet about which value stands for which, so whatever looks alike is compared; alignment chooses among the
results later. Segments of the graph run while the model is paused in the recorder's callback, just ahead of it, so that
of both sides only a small stretch is in memory at a time: fresh memory is dear, and a disk dearer.

That serves runs that compare each value once. What turns out to be needed again is gone:
:class:`bisect_tool.backends.activations.GoneError`.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Set
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray

from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.ahead import Ahead
from bisect_tool.backends.onnx_program import ValueType, type_of_array
from bisect_tool.errors import InconclusiveError
from bisect_tool.recorder import Value
from bisect_tool.signatures import Signature, distance

Array = NDArray[Any]
T = TypeVar("T")
_Key = tuple[str, int]

LEAST_STRETCH = 32 << 20
"""Bytes that a segment makes at least: below, sessions cost more than fresh memory."""

LEAST_ROOM = 8
"""Times the largest value that the memory budget must hold: operands and results of both sides, and two segments."""

_MOST_ALIKE = 4
"""Look-alikes that one value is compared with; of more, order decides, and that is the alignment's business."""

_MOST_NEAR = 64
"""Values of nearly the same norm that are looked at."""


def stretch(largest: int) -> int:
    """Bytes that a segment makes, by those of the largest value."""
    return LEAST_STRETCH


class _ByNorm:
    """Names or values by kind and size, sorted by norm: neighbours are found without looking at all others."""

    def __init__(self) -> None:
        self._found: dict[_Key, list[tuple[float, Any]]] = defaultdict(list)

    def add(self, signature: Signature, item: Any) -> None:
        bisect.insort(self._found[signature.kind, signature.size], (signature.norm, item))

    def remove(self, signature: Signature, item: Any) -> None:
        bucket = self._found[signature.kind, signature.size]
        del bucket[bisect.bisect_left(bucket, (signature.norm, item))]

    def near(self, signature: Signature, limit: float) -> list[Any]:
        """At most a few more than ``_MOST_NEAR``."""
        bucket = self._found.get((signature.kind, signature.size), [])
        width = 2 * limit * max(signature.norm, 1e-30)
        low = bisect.bisect_left(bucket, signature.norm - width, key=lambda entry: entry[0])
        found = []
        for norm, item in bucket[low : low + _MOST_NEAR + 1]:
            if norm > signature.norm + width:
                break
            found.append(item)
        return found


class Abreast(Generic[T]):
    """Feed it PyTorch's values by ``see`` while the model runs, then call ``finish``.

    Args:
        steps: the graph's segments, with every value exposed.
        store: where PyTorch's values wait; it must not spill.
        compare: measures a pair, ``compare(expected, actual)``, both in PyTorch's shape.
        lost: called with a value that leaves without a partner, its tensor and its signature.
        limit: relative difference up to which two values look alike, by PyTorch's dtype.
        patience: bytes of PyTorch's values without a partner after which the graph is taken to lie behind.
        keep_rest: keep the graph's values that found no partner, in ``arrays``.
        outputs: of the graph; they are always kept.

    Attributes:
        signatures: of the graph's values.
        arrays: of the graph's values, as far as they are kept.
        types: of the graph's values.
        results: by PyTorch value and ONNX name.
        failed: the graph did not run; whatever was found is of no use.
    """

    def __init__(
        self,
        steps: Ahead[Signature],
        store: ActivationStore,
        compare: Callable[[Array, Array], T],
        lost: Callable[[int, Array, Signature], None],
        limit: Callable[[str], float],
        patience: int,
        *,
        keep_rest: bool,
        outputs: Set[str],
    ):
        self._steps = steps
        self._store = store
        self._compare = compare
        self._lost = lost
        self._limit = limit
        self._patience = patience
        self._keep_rest = keep_rest
        self._outputs = outputs
        self.signatures: dict[str, Signature] = {}
        self.arrays: dict[str, Array] = {}
        self.types: dict[str, ValueType] = {}
        self.results: dict[tuple[int, str], T] = {}
        self.failed: InconclusiveError | None = None
        self._window: dict[str, Array] = {}
        self._newest: list[str] = []
        self._names = _ByNorm()
        self._unclaimed: set[str] = set()
        self._claimed: set[str] = set()
        self._dtypes: dict[int, str] = {}
        self._own: dict[int, Signature] = {}
        self._waiting = _ByNorm()
        self._at_the_edge: dict[int, set[str]] = {}
        self._alone = 0
        self._due = False

    def see(self, value: Value, tensor: torch.Tensor, array: Array, signature: Signature) -> None:
        """Takes a value of PyTorch's, compares it with the look-alikes that are there, and keeps it if there are none."""
        if not signature.size or self.failed:
            self._store.keep(value.id, tensor)
            return
        if not self._window and self._steps.ready:
            self._advance()
        self._dtypes[value.id] = value.dtype
        found = self._partners(value.dtype, signature)
        for name in found:
            self._pair(value.id, array, name)
        # What the next segment makes of a carried value may look like it.
        edge = self._steps.carried & found
        if found and not edge:
            self._store.forget(value.id)
        else:
            self._wait(value.id, tensor, array, signature)
            if edge and value.id in self._own:
                self._at_the_edge[value.id] = found
        self._alone = 0 if found else self._alone + array.nbytes
        self._due = (self._due or bool(found)) and not self._unclaimed
        # While the next segment is still running, so does the model.
        if (self._due and self._steps.ready) or self._alone > self._patience:
            self._advance()

    @property
    def seconds(self) -> float:
        """That the graph took."""
        return self._steps.seconds

    def _wait(self, value: int, tensor: torch.Tensor, array: Array, signature: Signature) -> None:
        """Keeps a value for a partner to come; those that have waited longest make room."""
        while self._own and not self._store.has_room(array.nbytes):
            oldest = next(iter(self._own))
            if oldest not in self._at_the_edge:
                self._lost(oldest, self._store.fetch(oldest), self._own[oldest])
            self._let_go(oldest)
        self._store.keep(value, tensor)
        if self._store.is_gone(value):
            self._lost(value, array, signature)
        else:
            self._own[value] = signature
            self._waiting.add(signature, value)

    def _let_go(self, value: int) -> None:
        """Ends a value's waiting."""
        self._waiting.remove(self._own.pop(value), value)
        self._at_the_edge.pop(value, None)
        self._store.forget(value)

    def finish(self) -> None:
        """Runs what is left of the graph, and frees what has been compared."""
        while not self._steps.done and not self.failed:
            self._advance()
        self._steps.close()
        for value in list(self._at_the_edge):
            self._let_go(value)
        self._leave([*self._window])

    def _partners(self, dtype: str, signature: Signature) -> set[str]:
        limit = self._limit(dtype)
        near = self._names.near(signature, limit)
        if len(near) > _MOST_NEAR:
            return set()
        found = {name for name in near if distance(signature, self.signatures[name]) <= limit}
        return found if len(found) <= _MOST_ALIKE else set()

    def _pair(self, value: int, array: Array, name: str) -> None:
        self.results[value, name] = self._compare(array, self._window[name].reshape(array.shape))
        self._unclaimed.discard(name)
        self._claimed.add(name)

    def _advance(self) -> None:
        """Runs the next segment, and more of them while PyTorch has values that waited for what they make."""
        self._alone = 0
        self._due = False
        while not self._steps.done and not self.failed and self._run_next():
            if not self._steps.ready:
                self._due = True
                return

    def _run_next(self) -> bool:
        """Runs one segment, and compares what it makes with PyTorch's values; whether there were any."""
        # PyTorch is past what it has claimed, and what it has not claimed gets one more segment's time. What is made of
        # carried values may look like them.
        waiting = self._unclaimed.intersection(self._newest) | self._steps.carried
        self._leave([name for name in self._window if name not in waiting])
        try:
            made = self._steps.advance()
        except InconclusiveError as error:
            # The model's own code is on the stack: it must not see this.
            self.failed = error
            return False
        self._newest = []
        for name, (array, signature) in made.items():
            self.signatures[name] = signature
            self.types[name] = type_of_array(array.dtype, array.shape)
            self._window[name] = array
            self._newest.append(name)
            self._names.add(signature, name)
            if signature.size:
                self._unclaimed.add(name)
        # Two values of one segment may look like the same one: it goes after all of them.
        claimed = {value for name in self._newest for value in self._claim(name)}
        carried = self._steps.carried
        waited = claimed - self._at_the_edge.keys()
        for value in claimed:
            self._at_the_edge.setdefault(value, set()).update(
                name for name in self._newest if (value, name) in self.results
            )
        for value in [v for v, names in self._at_the_edge.items() if not names & carried]:
            self._let_go(value)
        return bool(waited)

    def _claim(self, name: str) -> list[int]:
        """Compares a new value of the graph's with PyTorch's values that came before it; which of those fit."""
        signature = self.signatures[name]
        # Norms are looked for in the widest limit there is; each value has its own.
        widest = max(map(self._limit, set(self._dtypes.values())), default=0.0)
        near = self._waiting.near(signature, widest)
        if len(near) > _MOST_NEAR or not signature.size:
            return []
        alike = [v for v in near if distance(self._own[v], signature) <= self._limit(self._dtypes[v])]
        if len(alike) > _MOST_ALIKE:
            return []
        for value in alike:
            self._pair(value, self._store.fetch(value), name)
        return alike

    def _leave(self, names: list[str]) -> None:
        for name in names:
            array = self._window.pop(name)
            self._names.remove(self.signatures[name], name)
            if name in self._outputs or (self._keep_rest and name in self._unclaimed):
                self.arrays[name] = array
            self._unclaimed.discard(name)

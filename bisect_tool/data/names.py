"""Arrays of two files under one name each: a checkpoint is saved bare, under ``state_dict``, or from within a wrapper.

Whatever leads to the same names is taken off, on either side; nothing is matched by its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from bisect_tool.data.records import Content

Array = NDArray[Any]

_DEPTH = 4
"""Names that may stand before an array's own, as in ``checkpoint.state_dict.module._orig_mod``."""

_USUAL = ("", "state_dict.", "model_state_dict.", "model.", "module.", "net.", "network.", "weights.", "params.")
"""Where weights lie as a rule, the likeliest first: an average of them may lie beside under another name."""


def under_common_names(expected: Content, actual: Content) -> tuple[Content, Content]:
    """Both files with the names that they share, where something stands before them on one side or both.

    Returns:
        The contents, with a note on what was taken off and on what lies beside it; unchanged where the names fit
        already, or where fewer than half of the shorter list would fit without it.
    """
    if "arrays" not in (expected.kind, actual.kind) or expected.kind != actual.kind:
        return expected, actual
    heads = _common_heads(expected.names, actual.names)
    if heads is None:
        return expected, actual
    first, second = (_without(content, head) for content, head in zip((expected, actual), heads, strict=True))
    return _alone(first, heads[0], second, "first"), _alone(second, heads[1], first, "second")


def _common_heads(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, str] | None:
    ends = (_heads_by_end(one), _heads_by_end(other))
    counts: Counter[tuple[str, str]] = Counter()
    for end in ends[0].keys() & ends[1].keys():
        counts.update((a, b) for a in ends[0][end] for b in ends[1][end])
    if not counts:
        return None
    best = min(counts, key=lambda pair: (-counts[pair], *map(_strangeness, pair), len(pair[0]) + len(pair[1]), pair))
    fits = counts[best] > counts["", ""] and 2 * counts[best] >= min(len(one), len(other))
    return best if fits else None


def _strangeness(head: str) -> int:
    return next(
        (place for place, usual in enumerate(_USUAL) if usual and head.startswith(usual)),
        0 if not head else len(_USUAL),
    )


def _heads_by_end(names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for cut in range(min(_DEPTH, len(parts) - 1) + 1):
            head = "".join(f"{part}." for part in parts[:cut])
            found.setdefault(name[len(head) :], []).append(head)
    return found


class _Renamed(Mapping[str, Array]):
    """Arrays under other names, each read when it is asked for."""

    def __init__(self, arrays: Mapping[str, Array], names: Mapping[str, str]):
        self._arrays = arrays
        self._names = names

    def __getitem__(self, name: str) -> Array:
        return self._arrays[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _without(content: Content, head: str) -> Content:
    """A name that would be there twice then keeps what stands before it."""
    taken = set(content.names)
    names = {}
    for name in content.names:
        short = name[len(head) :] if name.startswith(head) else name
        names[short if short == name or short not in taken else name] = name
    return replace(content, names=tuple(names), arrays=_Renamed(content.arrays, names))


def _alone(content: Content, head: str, other: Content, which: str) -> Content:
    """Without what lies beside the weights on this side only: a number of epochs, an optimiser's state."""
    if not head:
        return content
    arrays = content.arrays
    assert isinstance(arrays, _Renamed)
    beside = [name for name in content.names if not arrays._names[name].startswith(head) and name not in other.names]
    note = f"names of the {which} file were read without {head!r} before them"
    if beside:
        shown = ", ".join(beside[:3]) + (f" and {len(beside) - 3} more" if len(beside) > 3 else "")
        note += f"; beside those it holds {shown}, which nothing was compared with"
    names = {name: arrays._names[name] for name in content.names if name not in beside}
    kept = _Renamed(arrays._arrays, names)
    facts = replace(content.facts, items=len(names))
    return replace(content, facts=facts, names=tuple(names), arrays=kept, notes=(*content.notes, note))

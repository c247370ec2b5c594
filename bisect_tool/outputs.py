"""Which output of the graph is which output of the model.

Names decide where the graph has the model's own: a value that then differs diverges. Elsewhere places decide, as in both
exporters of PyTorch 2.13, which keep the order of a dictionary and invent the names. Other exporters sort a dictionary's
keys: only under invented names, and only where keys tell outputs apart, may they be found by value. Entries of lists and
tuples never change places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bisect_tool.records import OutputKey, OutputResult


@dataclass(frozen=True, slots=True)
class OutputBinding:
    """For each output of the model the graph's; ``by``: what decided."""

    names: tuple[str, ...]
    by: Literal["name", "place", "value"]


def bind_outputs(keys: Sequence[OutputKey], names: Sequence[str], agrees: Callable[[int, str], bool]) -> OutputBinding:
    """Pairs as many outputs of the model as the graph has.

    Args:
        keys: of the model's outputs, nested ones joined with dots.
        names: of the graph's outputs, as many.
        agrees: whether the output at a place of ``keys`` has the value of a graph output.
    """
    named = _by_name(keys, names)
    if named is not None:
        return OutputBinding(named, "name")
    found = list(names)
    wrong = [place for place, name in enumerate(names) if not agrees(place, name)]
    free = [names[place] for place in wrong]
    rest = []
    for place in wrong:
        fitting = [name for name in free if agrees(place, name)]
        if len(fitting) == 1:
            found[place] = fitting[0]
            free.remove(fitting[0])
        else:
            rest.append(place)
    # What fits nowhere is broken; it keeps the order of what is left.
    for place, name in zip(rest, free, strict=True):
        found[place] = name
    if found == list(names) or not _keeps_lists(keys, [names.index(name) for name in found]):
        return OutputBinding(tuple(names), "place")
    return OutputBinding(tuple(found), "value")


def exchanged(bound: Sequence[str], agrees: Callable[[int, str], bool]) -> dict[int, int]:
    """Places whose own graph output is wrong and holds the value of another wrong place, with that other place."""
    wrong = [place for place, name in enumerate(bound) if not agrees(place, name)]
    found = {}
    for place in wrong:
        other = next((at for at in wrong if at != place and agrees(at, bound[place])), None)
        if other is not None:
            found[place] = other
    return found


def _by_name(keys: Sequence[OutputKey], names: Sequence[str]) -> tuple[str, ...] | None:
    """The names that are keys, and the others in order; ``None`` if no name is a key."""
    if all(isinstance(key, int) for key in keys) or len(set(names)) != len(names):
        # Places in a tuple are no names; TorchScript's exporter numbers its values.
        return None
    for form in _forms(keys):
        if set(form) == set(names):
            return tuple(form)
    texts = [key if isinstance(key, str) and key in names else None for key in keys]
    if not any(texts):
        return None
    others = iter([name for name in names if name not in texts])
    return tuple(next(others) if text is None else text for text in texts)


def _forms(keys: Sequence[OutputKey]) -> Iterator[list[str]]:
    """How people write keys as names of outputs; ONNX itself allows any character."""
    texts = [str(key) for key in keys]
    yield texts
    for separator in "_/":
        yield [text.replace(".", separator) for text in texts]
    last = [text.rpartition(".")[2] for text in texts]
    if len(set(last)) == len(last) and not any(part.isdigit() for part in last):
        yield last


def _keeps_lists(keys: Sequence[OutputKey], places: Sequence[int]) -> bool:
    """Whether entries of one list or tuple stay in their order."""
    paths = [str(key).split(".") for key in keys]
    for (first, at), (second, then) in itertools.combinations(zip(paths, places, strict=True), 2):
        apart = next((pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]), None)
        if apart is not None and apart[0].isdigit() and apart[1].isdigit() and at > then:
            return False
    return True


def worst_error(results: Sequence[OutputResult]) -> float | None:
    """Relative L2 of the worst output that was compared; infinite where one has another shape, or NaN on one side."""
    errors = [
        math.inf
        if out.total.problem or out.total.nonfinite_mismatch or math.isnan(out.total.rel_l2)
        else out.total.rel_l2
        for out in results
        if out.judgement != "not compared"
    ]
    return max(errors, default=None)

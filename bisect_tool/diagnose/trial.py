"""A change of the graph that may mend an origin, as it is proposed and before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bisect_tool.diagnose.calls import Edit, Widened


@dataclass(frozen=True, slots=True)
class Trial:
    """A change that may mend a stage.

    Attributes:
        code: of the cause that it would show.
        node: name of the node it changes.
        text: what is wrong if it mends, in words.
        remedy: what to do then.
        edit: the change.
        about: key of the call of PyTorch's that the graph lacks there; ``None``: it is about something else.
        thing: what of the file is wrong, where several nodes or stages may show it: a weight, an attribute of a node;
            empty: the text tells one from another.
        certain: a mend by it says what is wrong; else only that it is mended so.
    """

    code: str
    node: str
    text: str
    remedy: str
    edit: Edit | Widened
    about: int | None = None
    thing: str = ""
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Fit:
    """A number whose right value is looked for: the one that mends the stage.

    Attributes:
        start: the value in the graph.
        trial: what a value other than that makes of it.
        hints: numbers that PyTorch's calls have, and what they are; a fitted value near one of them is taken to be it.
    """

    start: float
    trial: Callable[[float, str | None], Trial]
    hints: tuple[tuple[str, float], ...]

"""Names of an ONNX file, as far as they are needed to find a report's stages in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_ITERATION = re.compile(r"(@\d+)+$")
"""What a report puts behind the names of nodes inside a ``Loop`` or ``Scan``, once for each body."""


_ITERATIONS = re.compile(r"(@\d+)+(_\d+)?(?![\w@])")
"""The same in a text, with the number that keeps a copy's name apart from another node's."""


def without_iterations(text: str) -> str:
    """A text on nodes inside a ``Loop`` or ``Scan``, the same for each time that these run."""
    return _ITERATIONS.sub("", text)


@dataclass(frozen=True, slots=True)
class GraphNames:
    """Nodes are told by the first value that they make: that name alone is unique in a file.

    Attributes:
        makers: value → key of the node that makes it, in the graph and in the bodies inside it.
        keys: name of a node → its key; names as a report has them, invented ones too.
        names: key → name, of the nodes of the graph itself.
    """

    makers: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def of_value(self, value: str | None) -> str | None:
        """Key of the node that makes a value of the report; ``None`` where the file has none."""
        if value is None:
            return None
        return self.makers.get(value) or self.makers.get(_ITERATION.sub("", value))

    def of_node(self, name: str) -> str | None:
        """Key of a node of the report."""
        return self.keys.get(name) or self.keys.get(_ITERATION.sub("", name))

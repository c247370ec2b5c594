"""Which module a node of the graph belongs to, by what its exporter wrote beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bisect_tool.align.families import family
from bisect_tool.quantised import quantisation_of
from bisect_tool.records import OnnxGraph, OnnxNode, TorchTrace


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
            # A module that is registered in two places is written with the name of the first.
            if part not in modules or sum(path == modules[part] for path in modules.values()) < 2:
                return None
            path = part
    return modules[path] if path else modules.get("", "")


_MOST_WRAPPERS = 3
"""Modules around the model, one in the other, that a file may have been exported with."""

_RESOLVED = 2 / 3
"""Share of scopes that must lead to a module, for a way to read them that is not the plain one."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a file's scopes lead to the model's modules: ``dropped`` outer names, and then ``added`` before the rest."""

    dropped: int = 0
    added: str = ""

    def names(self, node: OnnxNode) -> Sequence[str]:
        """What is left of a node's scopes."""
        last = node.scopes[-1]
        parts = (last.split(".") if last else []) if node.call is not None else node.scopes[1:]
        return parts[self.dropped :]

    def path(self, node: OnnxNode, modules: Mapping[str, str]) -> str | None:
        """The module of a node; ``None`` if its scopes name none."""
        names = [*([self.added] if self.added else []), *self.names(node)]
        return modules.get(".".join(names)) if node.call is not None else resolve_scope(names, modules)


def _paths(nodes: Sequence[OnnxNode], modules: Mapping[str, str]) -> list[str | None]:
    """Module path of each node; ``None`` where it carries no scope, or one that names no module.

    A file may have been exported with a module around the model, or of a module inside it.
    """
    first = {node.scopes: node for node in nodes if node.scopes}
    inner = sum(bool(_Reading().names(node)) for node in first.values())

    def read(reading: _Reading) -> dict[tuple[str, ...], str | None]:
        return {scopes: reading.path(node, modules) for scopes, node in first.items()}

    def share(reading: _Reading) -> float:
        """Of the scopes of which something is left, those that lead to a module; none where most have nothing left."""
        left = [node for node in first.values() if reading.names(node)]
        found = sum(reading.path(node, modules) is not None for node in left)
        return found / len(left) if left and len(left) > inner * (1 - _RESOLVED) else 0.0

    plain = _Reading()
    if not inner or share(plain) >= 1 - _RESOLVED:
        best = plain
    else:
        others = [_Reading(dropped=count) for count in range(1, _MOST_WRAPPERS + 1)]
        others += [_Reading(added=name) for name in modules if name and name.count(".") < _MOST_WRAPPERS]
        # The first that will do: with more left out, less is told.
        best = next((each for each in others if share(each) >= _RESOLVED), plain)
    paths = read(best)
    return [paths.get(node.scopes) for node in nodes]


class Scopes:
    """Module paths of the graph's nodes, and which values leave a scope."""

    def __init__(self, graph: OnnxGraph, trace: TorchTrace, modules: Mapping[str, str]):
        self.graph = graph
        self.paths = _paths(graph.nodes, trace.modules)
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

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
            if part not in modules:
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

    def path(self, node: OnnxNode, modules: Mapping[str, str]) -> str | None:
        """The module of a node; ``None`` if its scopes name none."""
        if node.call is not None:
            names = node.scopes[-1].split(".") if node.scopes[-1] else []
            return modules.get(".".join([self.added, *names[self.dropped :]] if self.added else names[self.dropped :]))
        return resolve_scope([*([self.added] if self.added else []), *node.scopes[1 + self.dropped :]], modules)


def _paths(nodes: Sequence[OnnxNode], modules: Mapping[str, str]) -> list[str | None]:
    """Module path of each node; ``None`` where it carries no scope, or one that names no module.

    A file may have been exported with a module around the model, or of a module inside it.
    """
    first = {node.scopes: node for node in nodes if node.scopes}

    def read(reading: _Reading) -> dict[tuple[str, ...], str | None]:
        return {scopes: reading.path(node, modules) for scopes, node in first.items()}

    def share(found: Mapping[tuple[str, ...], str | None]) -> float:
        return sum(path is not None for path in found.values()) / max(len(found), 1)

    plain = best = read(_Reading())
    if share(plain) < 1 - _RESOLVED:
        inner = [name for name in modules if name and name.count(".") < _MOST_WRAPPERS]
        others = [_Reading(dropped=count) for count in range(1, _MOST_WRAPPERS + 1)]
        others += [_Reading(added=name) for name in inner]
        best = max(map(read, others), key=share)
        best = best if share(best) >= _RESOLVED else plain
    return [best.get(node.scopes) for node in nodes]


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

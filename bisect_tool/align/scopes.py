"""Which module a node of the graph belongs to, by what its exporter wrote beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

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
            return None
    return modules[path] if path else modules.get("", "")


class Scopes:
    """Module paths of the graph's nodes, and which values leave a scope."""

    def __init__(self, graph: OnnxGraph, trace: TorchTrace, modules: Mapping[str, str]):
        self.graph = graph
        cache: dict[tuple[str, ...], str | None] = {}

        def path_of(node: OnnxNode) -> str | None:
            if not node.scopes:
                return None
            if node.scopes not in cache:
                if node.call is not None:
                    last = node.scopes[-1]
                    cache[node.scopes] = trace.modules.get(last)
                else:
                    cache[node.scopes] = resolve_scope(node.scopes[1:], trace.modules)
            return cache[node.scopes]

        self.paths = [path_of(node) for node in graph.nodes]
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

"""A copy of an ONNX file whose nodes carry text in their metadata, which viewers show on a click."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model

from bisect_tool.backends.onnx_file import read_without_weights
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.errors import BisectError
from bisect_tool.graph_names import GraphNames
from bisect_tool.whole_files import write_whole

PREFIX = "bisect."
"""Of all keys that are written; what an earlier copy had under it is replaced."""
EMBEDDED = 64 << 20
"""Bytes of weights up to which a copy in another folder holds them itself."""


def read_names(path: Path) -> GraphNames:
    """The names that a report on this file uses.

    Raises:
        BisectError: the file cannot be read.
    """
    graph = load_onnx(path).graph
    names: dict[str, str] = {}
    keys: dict[str, str] = {}
    makers: dict[str, str] = {}
    for node in graph:
        key = _key([value.name or "" for value in node.outputs])
        if key is None:
            continue
        names[key] = node.name or ""
        keys[node.name or ""] = key
        makers.update((value.name, key) for value in node.outputs if value.name)
    # Branches may share names with each other: what two nodes are called tells neither.
    inner = [node for body in graph.subgraphs() for node in body]
    values = Counter(value.name for node in inner for value in node.outputs if value.name)
    called = Counter(node.name for node in inner if node.name)
    for node in inner:
        key = _key([value.name or "" for value in node.outputs])
        if key is None or values[key] > 1 or key in makers:
            continue
        makers.update((v.name, key) for v in node.outputs if v.name and values[v.name] == 1 and v.name not in makers)
        if node.name and called[node.name] == 1:
            keys.setdefault(node.name, key)
    return GraphNames(makers, keys, names)


def _key(outputs: list[str]) -> str | None:
    return next((name for name in outputs if name), None)


def weights_size(path: Path) -> int:
    """Bytes of the weights, wherever they lie."""
    model = ir.from_proto(read_without_weights(path.resolve()))
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def holds_weights(path: Path, target: Path) -> bool:
    """Whether a copy at ``target`` would find the weights of ``path``: beside them, or small enough to have its own."""
    return target.resolve().parent == path.resolve().parent or weights_size(path) <= EMBEDDED


def write_annotated(
    path: Path,
    target: Path,
    notes: Mapping[str, Mapping[str, str]],
    about: Mapping[str, str],
    names: GraphNames,
    *,
    force: bool = False,
) -> None:
    """Writes the copy. The graph, its order and its weights stay; nodes without a name get the one that the report uses.

    In the folder of the original the weights stay where they are, in either file; elsewhere the copy has its own.

    Args:
        path: the file; it is only read.
        target: the copy.
        notes: metadata by key of the node, keys without :data:`PREFIX`.
        about: metadata of the model.
        names: of ``path``.
        force: replace a file that is there, but never ``path`` itself or what holds its weights.

    Raises:
        BisectError: the copy would replace a file, would have weights beyond :data:`EMBEDDED`, or cannot be written.
    """
    path = path.resolve()
    try:
        proto = read_without_weights(path)
    except Exception as error:
        raise BisectError(f"ONNX file {path}: cannot be read ({error})", hint="export or copy it again") from error
    _check_target(proto, path, target, force)
    for node in _nodes(proto.graph):
        key = _key(list(node.output))
        if key is not None and key in names.names:
            node.name = names.names[key]
        _put(node.metadata_props, notes.get(key or "", {}))
    _put(proto.metadata_props, about)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.resolve().parent != path.parent:
            if not holds_weights(path, target):
                raise BisectError(
                    f"{target}: the weights of {path} are too large to be copied",
                    hint=f"-o {path.parent}: beside the file they are shared",
                )
            _embed(proto, path.parent)
        write_whole({target: proto.SerializeToString()})
    except OSError as error:
        raise BisectError(
            f"{target} cannot be written: {error.strerror or error}", hint="choose another folder with -o"
        ) from error


def _embed(proto: onnx.ModelProto, folder: Path) -> None:
    load_external_data_for_model(proto, str(folder))
    for tensor in proto.graph.initializer:
        # What was external is inside now.
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _check_target(proto: onnx.ModelProto, path: Path, target: Path, force: bool) -> None:
    places = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
    taken = {path, *((path.parent / place).resolve() for place in places)}
    if target.resolve() in taken:
        raise BisectError(f"{target} is the file itself, or holds its weights", hint="choose another folder with -o")
    if target.is_dir():
        raise BisectError(f"{target} is a folder, not a file", hint="choose another folder with -o")
    if os.path.lexists(target) and not force:
        raise BisectError(f"{target} is there already", hint="--force replaces it; or choose another folder with -o")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(body)


def _put(properties: object, notes: Mapping[str, str]) -> None:
    """Replaces this tool's own entries of a list of key and value."""
    entries: list[onnx.StringStringEntryProto] = list(properties)  # type: ignore[call-overload]
    others = [entry for entry in entries if not entry.key.startswith(PREFIX)]
    del properties[:]  # type: ignore[attr-defined]
    properties.extend(others)  # type: ignore[attr-defined]
    for key, text in notes.items():
        entry = properties.add()  # type: ignore[attr-defined]
        entry.key, entry.value = PREFIX + key, text

"""Reads an ONNX file: its structure as an :class:`OnnxGraph`, and the onnx_ir model for surgery."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bisect_tool.backends.onnx_file import read_without_weights
from bisect_tool.errors import BisectError
from bisect_tool.records import OnnxGraph, OnnxNode

_TARGET = re.compile(r"target=(?:torch\.ops\.)?([\w.]+?)(?:\.\w+)?\]\(")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# What torch.compile puts around a module is none of the modules that are compared.
_COMPILED = re.compile(r"(^|\.)_orig_mod(?=\.|$)")
_TORCHSCRIPT_NAME = re.compile(r"^/.*")


def load_onnx(path: Path) -> ir.Model:
    """Loads a file, without its weights, names every node, and sorts the nodes topologically.

    Raises:
        BisectError: the file is missing, a folder, no ONNX file, truncated, or its external data is not there.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.onnx"))
        there = f": {', '.join(inside[:3])}{' ...' if len(inside) > 3 else ''}" if inside else ""
        raise BisectError(f"ONNX file {path}: is a folder", hint=f"name the .onnx file in it{there}")
    if not path.is_file():
        raise BisectError(
            f"ONNX file {path}: no such file", hint="give the path of an .onnx file to --onnx, or to --part"
        )
    if path.stat().st_size == 0:
        raise BisectError(f"ONNX file {path}: the file is empty", hint="export it again")
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError as error:
        raise BisectError(
            f"ONNX file {path}: its path is not UTF-8, and ONNX Runtime takes no other",
            hint="rename the file, or the folder that it lies in",
        ) from error
    try:
        model = _load(path)
    except Exception as error:  # protobuf, onnx_ir and the OS each raise their own kinds
        if isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
            raise BisectError(
                f"ONNX file {path}: its graph is not valid: {_first_line(_innermost(error))}",
                hint="the exporter or converter wrote it so: try another one, or another opset",
            ) from error
        raise BisectError(
            f"ONNX file {path}: cannot be read ({_first_line(error)})",
            hint="the file is truncated or no ONNX model; export or copy it again",
        ) from error
    if not len(model.graph) and not model.graph.outputs:
        raise BisectError(f"ONNX file {path}: holds no graph", hint="the file is truncated or no ONNX model")
    for value in model.graph.outputs:
        if value.type is not None and not isinstance(value.type, (ir.TensorType, ir.SparseTensorType)):
            raise BisectError(
                f"ONNX file {path}: its output {value.name} is a sequence or another container, and only tensors can be "
                "compared",
                hint="make each of its tensors an output of its own",
            )
    _check_external_data(model, path)
    try:
        model.graph.sort()
    except ValueError as error:
        raise BisectError(f"ONNX file {path}: {_first_line(error)}", hint="the graph is not a valid DAG") from error
    name_everything(model.graph)
    return model


def _load(path: Path) -> ir.Model:
    # The real file: ONNX Runtime refuses external data behind a symbolic link.
    path = path.resolve()
    model = ir.from_proto(read_without_weights(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def _innermost(error: BaseException) -> BaseException:
    """What a chain of errors began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _check_external_data(model: ir.Model, path: Path) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        data = Path(tensor.base_dir) / tensor.location
        if not data.is_file():
            raise BisectError(
                f"ONNX file {path}: its external data {tensor.location} is missing (wanted by {value.name})",
                hint=f"put {tensor.location} beside the .onnx file",
            )
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if data.stat().st_size < end:
            raise BisectError(
                f"ONNX file {path}: its external data {tensor.location} has {data.stat().st_size} bytes, "
                f"{value.name} ends at {end}",
                hint="the data file is truncated or belongs to another export; copy it again",
            )


def name_everything(graph: ir.Graph) -> None:
    """Gives unnamed nodes the name ``<op>_<place>``; the place in the file makes it stable from run to run."""
    taken = {node.name for node in graph if node.name}
    seen: set[str] = set()
    for place, node in enumerate(graph):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{place}" if not node.name else f"{node.name}_{place}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)
        for number, value in enumerate(node.outputs):
            if not value.name and value.uses():
                value.name = f"{node.name}_output_{number}"


def describe(model: ir.Model) -> OnnxGraph:
    """The structure of a loaded model. Value names are those of the file."""
    graph = model.graph
    initializers = set(graph.initializers)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    nodes = []
    for node in graph:
        outputs = tuple(value.name or "" for value in node.outputs)
        for value in node.outputs:
            _note_type(value, shapes, dtypes)
        nodes.append(_describe_node(node, outputs))
    for value in [*graph.inputs, *graph.initializers.values()]:
        _note_type(value, shapes, dtypes)
    return OnnxGraph(
        inputs=tuple(v.name for v in graph.inputs if v.name and v.name not in initializers),
        outputs=tuple(v.name for v in graph.outputs if v.name),
        nodes=tuple(nodes),
        initializers=frozenset(initializers),
        shapes=shapes,
        dtypes=dtypes,
        exporter=_exporter(model, nodes),
        input_dims={v.name: _dims(v.shape) for v in graph.inputs if v.name and v.shape is not None},
    )


def _dims(shape: ir.Shape) -> tuple[int | str, ...]:
    """Sizes, names of dynamic axes, and "?" for those without one."""
    return tuple(dim if isinstance(dim, int) else dim.value or "?" for dim in shape)


def _note_type(value: ir.Value, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> None:
    if not value.name:
        return
    if value.shape is not None and value.shape.is_static():
        shapes[value.name] = tuple(int(d) for d in value.shape.numpy())
    if value.dtype is not None:
        dtypes[value.name] = dtype_name(value.dtype)


def dtype_name(dtype: ir.DataType) -> str:
    """Short name as numpy and torch write it: ``FLOAT`` → ``float32``, ``BOOL`` → ``bool``."""
    try:
        name = np.dtype(dtype.numpy()).name
    except TypeError:
        return dtype.name.lower()
    return name


def _exporter(model: ir.Model, nodes: Sequence[OnnxNode]) -> str:
    if any(node.call is not None for node in nodes):
        return "dynamo"
    named = sum(bool(_TORCHSCRIPT_NAME.match(node.name)) for node in nodes)
    if model.producer_name == "pytorch" and named:
        return "torchscript"
    return model.producer_name or "unknown"


def _describe_node(node: ir.Node, outputs: tuple[str, ...]) -> OnnxNode:
    metadata = node.metadata_props
    scopes, call = _dynamo_scopes(metadata.get("pkg.torch.onnx.name_scopes"))
    name = node.name or ""
    if not scopes and call is None and _TORCHSCRIPT_NAME.match(name):
        scopes = ("", *name.split("/")[1:-1])
    target = _TARGET.search(metadata.get("pkg.torch.onnx.fx_node", ""))
    frames = _FRAME.findall(metadata.get("pkg.torch.onnx.stack_trace", ""))
    return OnnxNode(
        name=name,
        op_type=node.op_type,
        domain=node.domain,
        inputs=tuple(_inputs(node)),
        outputs=outputs,
        scopes=scopes,
        call=call,
        target=target.group(1).split(".")[-1] if target else None,
        source=f"{frames[-1][0]}:{frames[-1][1]}" if frames else None,
    )


def _dynamo_scopes(text: str | None) -> tuple[tuple[str, ...], str | None]:
    """``"['', 'seq', 'seq.0', 'linear']"`` → scopes (outermost first) and the name of the FX node."""
    if not text:
        return (), None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return (), None
    if not isinstance(names, list) or not names:
        return (), None
    return tuple(_COMPILED.sub("", str(n)).removeprefix(".") for n in names[:-1]), str(names[-1])


def _inputs(node: ir.Node) -> Iterator[str]:
    for value in node.inputs:
        yield value.name or "" if value is not None else ""
    yield from (name for name in captured_values(node))


def captured_values(node: ir.Node) -> list[str]:
    """Names of outer values that the subgraphs of a node read."""
    found: dict[str, None] = {}
    for graph in _subgraphs(node):
        own: set[str] = {v.name for v in graph.inputs if v.name} | set(graph.initializers)
        for inner in graph:
            own.update(v.name for v in inner.outputs if v.name)
        for inner in graph:
            for value in inner.inputs:
                if value is not None and value.name and value.name not in own:
                    found[value.name] = None
            for name in captured_values(inner):
                if name not in own:
                    found[name] = None
        for value in graph.outputs:
            if value.name and value.name not in own:
                found[value.name] = None
    return list(found)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def copy_of(model: ir.Model) -> ir.Model:
    """A model with a graph of its own; weights and local functions are shared with the original."""
    return ir.Model(
        model.graph.clone(),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=list(model.functions.values()),
    )

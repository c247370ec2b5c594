"""Fresh exports of a model, beside which a graph that has lost its names can be laid."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from bisect_tool.align.counterparts import Outline, constant_values, likeness
from bisect_tool.backends import plain_layout
from bisect_tool.backends.exporting import Exporter, ExportSettings, export_onnx
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import make_session
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.metrics import kind_of
from bisect_tool.records import NumericConfig
from bisect_tool.signatures import Signature, signature_of

CLOSE = 0.97
FEW = 4
"""Share of nodes that two graphs have in common from which on no other export is tried, or so few that they have not."""

MOST_EXPORTED = 1 << 30
"""Bytes of weights up to which a model is exported once more."""

USELESS = 0.1
"""The same below which a graph tells nothing about the other."""

_EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")
_LEVELS = ("", "basic", "extended")
_BLOCKED_LEVELS = ("all", "layout")
"""Of a graph in ONNX Runtime's blocked layout: only these write such; the latter exists from 1.22 on."""


@dataclass(frozen=True)
class Fresh:
    """A fresh export.

    Attributes:
        program: its graph.
        how: with which exporter and which optimisation; for the reader.
        alike: share of nodes that it has in common with the given graph.
    """

    program: OnnxProgram
    how: str
    alike: float


def most_alike(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: OnnxProgram,
    folder: Path,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> Fresh | None:
    """The export that is most like a given graph: by either exporter, at its opset, left alone or optimised.

    Args:
        module, args, kwargs: what is exported.
        given: the graph.
        folder: where the files may lie; they are read as long as the result is used.
        axes: of the inputs that vary in the graph, by the input's name in the model.

    Returns:
        ``None`` if no export works, or none is like the graph.
    """
    wanted = outline(given, lambda _: None)
    is_blocked = any(node.domain == plain_layout.DOMAIN for node in given.graph.nodes)
    opset = given.header().opsets.get("ai.onnx")
    best: Fresh | None = None
    close = False
    for exporter in _EXPORTERS:
        # What varies in the graph computes its sizes; where that can't be exported a graph without is next.
        for opset_of_export, varying in itertools.product(dict.fromkeys((opset, None)), (axes, {}) if axes else ({},)):
            path = folder / f"{exporter}-{opset_of_export or 'default'}.onnx"
            try:
                export_onnx(
                    module, args, kwargs, path, ExportSettings(exporter, opset=opset_of_export, axes=varying or {})
                )
            except BisectError:
                continue
            for level in _BLOCKED_LEVELS if is_blocked else _LEVELS:
                found = path.with_suffix(f".{level}.onnx") if level else path
                with contextlib.suppress(BisectError, InconclusiveError):
                    if level:
                        config = NumericConfig("onnxruntime", optimization=level)
                        make_session(path.read_bytes(), config, str(folder), optimized=found)
                    program = OnnxProgram(load_onnx(found), found)
                    alike, others = likeness(outline(program, lambda _: None), wanted)
                    if best is None or alike > best.alike:
                        optimised = f", optimised at level {level}" if level else ""
                        best = Fresh(program, f"{exporter} exporter{optimised}", alike)
                        close = close or alike >= CLOSE or others <= FEW
            break
        if close:
            break
    return best if best is not None and best.alike >= USELESS else None


def outline(program: OnnxProgram, run: Callable[[str], Signature | None]) -> Outline:
    """A graph as :mod:`bisect_tool.align.counterparts` wants it; ``run`` has the signatures of what it computes."""
    known: dict[str, Signature | None] = {}

    def signature(name: str) -> Signature | None:
        if name not in known:
            found = run(name)
            if found is None:
                array = program.constant(name)
                # Words, for one, are no numbers.
                with contextlib.suppress(TypeError, ValueError):
                    found = signature_of(array, kind_of(array.dtype)) if array is not None else None
            known[name] = found
        return known[name]

    opsets = program.header().opsets
    graph, own = (
        program.plain,
        {node.name: text for node, text in zip(program.graph.nodes, program.ir_nodes(), strict=True)},
    )
    texts = [_attributes(own[node.name], opsets) for node in graph.nodes]
    return Outline(graph, texts, signature, constant_values(graph, graph.initializers))


def _attributes(node: ir.Node, opsets: Mapping[str, int]) -> str:
    """All attributes in full, those left out as their defaults."""
    found = {name: _text(attribute) for name, attribute in node.attributes.items()}
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain or "ai.onnx", 1), node.domain)
    except Exception:  # of another domain, or newer than this onnx
        return repr(sorted(found.items()))
    for name, attribute in schema.attributes.items():
        if name not in found and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            found[name] = _text(ir.from_proto(attribute.default_value))
    return repr(sorted(found.items()))


def _text(attribute: Any) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "body"
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return "tensor"
    value = attribute.value
    return repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)

"""Reads an ONNX file without its weights: big initialisers become references into the file itself.

ONNX's *external data* is a file name, an offset and a length, and nothing says that it must be another file: a tensor's
``raw_data`` lies in the model file as one stretch of bytes. So nothing is copied, neither into memory nor into a file
beside it, and every small graph that is cut out of the model maps the weights it needs from where they are.

The wire format is walked by hand only as far as it must be (model → graph → initialisers); protobuf parses the rest.
Field numbers are those of ``onnx.proto``: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx

Span = tuple[int, int]

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_REFER_ABOVE = 1024
"""Bytes from which a tensor stays in the file. Small ones hold shapes and axes, which graph surgery wants to read."""


def read_without_weights(path: Path) -> onnx.ModelProto:
    """The model with every initialiser of more than 1 KiB as external data of ``path`` itself.

    Initialisers whose values are not in ``raw_data`` (typed fields, data that is external already) stay as they are.

    Raises:
        OSError: the file cannot be read.
        google.protobuf.message.DecodeError, ValueError: it is no ONNX model, or it is cut short.
    """
    model = onnx.ModelProto()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        rest, graph = bytearray(), onnx.GraphProto()
        for number, start, (begin, end) in _fields(data, 0, len(data)):
            if number == _MODEL_GRAPH:
                _read_graph(data, (begin, end), path.name, graph)
            else:
                rest += data[start:end]
        model.ParseFromString(bytes(rest))
        model.graph.MergeFrom(graph)
    return model


def _read_graph(data: mmap.mmap, span: Span, location: str, graph: onnx.GraphProto) -> None:
    rest = bytearray()
    weights: list[onnx.TensorProto] = []
    for number, start, (begin, end) in _fields(data, *span):
        if number == _GRAPH_INITIALIZER:
            weights.append(_read_tensor(data, (begin, end), location))
        else:
            rest += data[start:end]
    graph.MergeFromString(bytes(rest))
    graph.initializer.extend(weights)


def _read_tensor(data: mmap.mmap, span: Span, location: str) -> onnx.TensorProto:
    rest = bytearray()
    raw: Span | None = None
    for number, start, (begin, end) in _fields(data, *span):
        if number == _TENSOR_RAW_DATA and end - begin > _REFER_ABOVE:
            raw = (begin, end)
        else:
            rest += data[start:end]
    tensor = onnx.TensorProto()
    tensor.ParseFromString(bytes(rest))
    if raw is not None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", str(raw[0])), ("length", str(raw[1] - raw[0]))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
    return tensor


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int, Span]]:
    """Fields of one message, as ``(number, start of the field, (begin, end) of its content)``."""
    while at < stop:
        start = at
        key, at = _varint(data, at, stop)
        kind = key & 7
        if kind == _LENGTH:
            size, at = _varint(data, at, stop)
        elif kind == _VARINT:
            size = _varint(data, at, stop)[1] - at
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf message: wire type {kind} at byte {start}")
        if at + size > stop:
            raise ValueError(f"cut short: a field at byte {start} ends {at + size - stop} bytes behind the message")
        yield key >> 3, start, (at, at + size)
        at += size


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"cut short: a number at byte {at} does not end")

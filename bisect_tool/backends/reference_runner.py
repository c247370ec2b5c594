"""ONNX's reference evaluator: the operators as ONNX defines them, in numpy, one node after the other.

It is slow, and nobody deploys it; that is what makes it a witness. It computes in the dtypes of the graph, as runtimes do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.onnx_program import OnnxProgram, ValueType
from bisect_tool.errors import InconclusiveError
from bisect_tool.records import NumericConfig, OnnxNode

Array = NDArray[Any]

LONGEST_RUN = 300.0
"""Seconds that a whole graph may be expected to take; beyond, the run is refused before it starts."""

# Microseconds for each element of the result, measured with onnx 1.23: loops in Python, or many small products.
_SLOW = {
    "AveragePool": 25.0,
    "Col2Im": 50.0,
    "ConvTranspose": 13.0,
    "DeformConv": 25_000.0,
    "GRU": 16.0,
    "GridSample": 310.0,
    "LSTM": 16.0,
    "Loop": 100.0,
    "LpPool": 25.0,
    "MaxPool": 6.0,
    "NonMaxSuppression": 100.0,
    "RNN": 16.0,
    "RoiAlign": 5.0,
    "Scan": 100.0,
}
_USUAL = 0.5
if tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 23):
    # Not yet by numpy: 1.2 ms for small images and more for larger ones, with onnx 1.17.
    _SLOW["Resize"] = 10_000.0

# Element types whose bytes in a file are numpy's own; the others are unpacked by onnx.
_PLAIN: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "<f4",
    onnx.TensorProto.DOUBLE: "<f8",
    onnx.TensorProto.FLOAT16: "<f2",
    onnx.TensorProto.INT8: "i1",
    onnx.TensorProto.UINT8: "u1",
    onnx.TensorProto.INT32: "<i4",
    onnx.TensorProto.INT64: "<i8",
}


class ReferenceRunner:
    """``onnx.reference.ReferenceEvaluator`` as a :class:`bisect_tool.backends.runners.Runner`."""

    name = "onnx-reference"
    title = "ONNX reference evaluator"

    @property
    def version(self) -> str:
        return str(onnx.__version__)

    def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> ReferenceGraph:
        """See :class:`bisect_tool.backends.runners.Runner`.

        Raises:
            InconclusiveError: an operator is not defined by ONNX, or the evaluator lacks it.
        """
        proto = onnx.ModelProto.FromString(model)
        _require_known_meaning(proto)
        # Functions and bodies are evaluated by the same class; that is how the folder gets there.
        kind = type("Evaluator", (_Evaluator,), {"weights_folder": Path(weights_folder)})
        try:
            return ReferenceGraph(kind(proto))
        except Exception as error:  # it raises many kinds
            raise InconclusiveError(
                f"the {self.title} cannot load the graph: {_reason(error)}",
                hint="it knows ONNX's own operators only, and no runtime's; --runner onnxruntime runs the others",
            ) from error


class ReferenceGraph:
    """A graph in the evaluator."""

    def __init__(self, evaluator: ReferenceEvaluator):
        self._evaluator = evaluator
        self.output_names: Sequence[str] = tuple(evaluator.output_names)

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, Array],
        types: Mapping[str, ValueType] | None = None,
        buffers: BufferPool | None = None,
    ) -> list[Array | None]:
        """See :class:`bisect_tool.backends.runners.LoadedGraph`.

        Raises:
            InconclusiveError: the evaluator failed; the message names the node.
        """
        if not outputs:
            return []
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = self._evaluator.run(list(outputs), dict(feeds))
        except Exception as error:  # it raises many kinds
            at = _node_of(error.__traceback__)
            raise InconclusiveError(
                f"the {ReferenceRunner.title} failed{f' at {at}' if at else ''}: {_reason(error)}"
            ) from error
        return [_array(value, feeds.values()) for value in results]


class _Evaluator(ReferenceEvaluator):
    """With weights that are mapped from where they lie."""

    weights_folder = Path()

    def retrieve_external_data(self, initializer: onnx.TensorProto) -> Array:
        kind = _PLAIN.get(initializer.data_type)
        where = {entry.key: entry.value for entry in initializer.external_data}
        shape = tuple(initializer.dims)
        if kind is None or not math.prod(shape):
            array: Array = onnx.numpy_helper.to_array(initializer, base_dir=str(self.weights_folder))
            return array
        file, offset = self.weights_folder / where["location"], int(where.get("offset", 0))
        return np.memmap(file, dtype=kind, mode="r", offset=offset, shape=shape or (1,)).reshape(shape)


_FLATTENED = {"Softmax", "LogSoftmax", "Hardmax"}
"""Before opset 13 they work on everything from ``axis`` on; the evaluator knows them along one axis only."""


def _require_known_meaning(model: onnx.ModelProto) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 13)
    for node in model.graph.node if opset < 13 else ():
        last = any(attribute.name == "axis" and attribute.i == -1 for attribute in node.attribute)
        if node.op_type in _FLATTENED and not last:
            raise InconclusiveError(
                f"the {ReferenceRunner.title} knows {node.op_type} as of opset 13 only, and the graph is of opset {opset}",
                hint="convert the graph to a newer opset, or --runner onnxruntime",
            )


def require_affordable(program: OnnxProgram) -> None:
    """Does nothing if the whole graph can be expected to be computed in time.

    Raises:
        InconclusiveError: it would take more than ``LONGEST_RUN``; the node that takes longest is named.
    """
    seconds, slowest = expected_seconds(program.graph.nodes, lambda name: math.prod(program.graph.shapes.get(name, ())))
    if seconds > LONGEST_RUN:
        raise InconclusiveError(
            f"the {ReferenceRunner.title} would take about {seconds / 60:.0f} minutes for this graph, "
            f"most of it in {slowest}",
            hint="use a smaller sample, or --runner onnxruntime",
        )


def expected_seconds(nodes: Iterable[OnnxNode], size_of: Callable[[str], int]) -> tuple[float, str]:
    """About how long the evaluator takes, by the number of elements that nodes make; and the node that takes longest.

    Args:
        nodes: to be computed.
        size_of: elements of a value.
    """
    longest, slowest, total = -1.0, "", 0.0
    for node in nodes:
        elements = max((size_of(name) for name in node.outputs if name), default=0)
        seconds = elements * _SLOW.get(node.op_type, _USUAL) * 1e-6
        total += seconds
        if seconds > longest:
            longest, slowest = seconds, f"{node.name} ({node.op_type})"
    return total, slowest


def _array(value: Any, feeds: Iterable[Array]) -> Array | None:
    """A result with memory of its own: views of what was fed change with it. ``None`` for what is no tensor."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    return array.copy() if any(np.may_share_memory(array, feed) for feed in feeds) else array


def _node_of(trace: TracebackType | None) -> str | None:
    """Name and operator of the outermost node that was being computed; the evaluator's own messages rarely say."""
    while trace is not None:
        node = getattr(trace.tb_frame.f_locals.get("node"), "onnx_node", None)
        if node is not None:
            return f"{node.name} ({node.op_type})" if node.name else str(node.op_type)
        trace = trace.tb_next
    return None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"

"""What a graph, or a model, puts out for one sample: nothing is looked into. Works with any version of the libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def graph_outputs(path: str, feeds: Mapping[str, Array], threads: int = 0) -> dict[str, Array]:
    """Outputs of an ONNX file by name, as ONNX Runtime gives them on the CPU with its default optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    found = session.run(names, {name: array for name, array in feeds.items() if name in wanted})
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True) if isinstance(value, np.ndarray)}


def model_outputs(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs of a PyTorch model by key, without gradients."""
    import torch

    from bisect_tool.backends.torch_runner import to_numpy
    from bisect_tool.recorder import flatten_tensors

    with torch.no_grad():
        output = module(*args, **kwargs)
    return {str(key): to_numpy(tensor).copy() for key, tensor in flatten_tensors(output)}

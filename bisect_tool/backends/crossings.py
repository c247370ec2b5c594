"""A stage on both sides with what it read, and PyTorch's stage on the graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.replay import AS_RUN, CannotReplayError, replay_values, slice_of
from bisect_tool.backends.torch_runner import complex_like
from bisect_tool.diagnose.grown import Crossing
from bisect_tool.recorder import Trace
from bisect_tool.records import Stage

Array = NDArray[Any]


def crossing_of(
    stage: Stage,
    tape: Trace,
    activations: ActivationStore,
    names: Mapping[int, str],
    chained: Mapping[str, Array | None],
) -> Crossing | None:
    """Both sides of a stage; ``None`` where the graph's values were not kept.

    Args:
        stage: the stage.
        tape, activations: of PyTorch's plain run.
        names: ONNX values by PyTorch value, axes in the same order.
        chained: the graph's own values.
    """
    actual = chained.get(names.get(stage.value, ""))
    if actual is None:
        return None
    expected = activations.fetch(stage.value).copy()
    if actual.size != expected.size:
        return None
    theirs: dict[int, Array] = {}
    for value in stage.inputs:
        array = chained.get(names.get(value, ""))
        if array is not None and array.size == activations.fetch(value).size:
            theirs[value] = array.reshape(activations.fetch(value).shape)
    first = next(iter(theirs), None)
    given = None if first is None else (activations.fetch(first).copy(), theirs[first])
    actual = actual.reshape(expected.shape)
    return Crossing(expected, actual, given, _same(stage, tape, activations, theirs, actual))


def _same(
    stage: Stage, tape: Trace, activations: ActivationStore, theirs: Mapping[int, Array], actual: Array
) -> bool | None:
    if not theirs:
        return None

    def fetch(value: int) -> torch.Tensor:
        own = activations.tensor(value)
        if value not in theirs:
            return own
        given = complex_like(torch.from_numpy(np.array(theirs[value])), own)
        return given.to(own.dtype).reshape(own.shape)

    try:
        ops = slice_of(tape, stage.value, set(theirs))
        made = replay_values(tape, {stage.value}, ops, fetch, AS_RUN)[stage.value]
    except (CannotReplayError, KeyError, RuntimeError):
        return None
    if made.dtype.kind != "f":
        return bool(np.array_equal(made, actual.astype(made.dtype)))
    return bool(np.allclose(made, actual, rtol=1e-4, atol=1e-6 * float(np.abs(made).max(initial=0.0)), equal_nan=True))

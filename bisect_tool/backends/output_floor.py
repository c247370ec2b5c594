"""The noise floor of a model's outputs: how far strict float32 lies from float64, from inputs to outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bisect_tool.backends.floors import strict_products
from bisect_tool.backends.replay import EXACT, STRICT, CannotReplayError, replay_values, slice_of
from bisect_tool.backends.torch_runner import TorchRun
from bisect_tool.metrics import relative_difference
from bisect_tool.noise import epsilon


def output_floor(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The greatest floor of all floating outputs, relative L2; None where float64 cannot be had, or all are integers."""
    run = TorchRun(module, args, dict(kwargs), lambda value, tensor: None, tape=True)
    run.start()
    trace = run.recorder.trace
    # What the run started with is held by the recorder.
    starts = set(run.recorder.held_ids())
    floors: list[float] = []
    try:
        for _, value in trace.outputs:
            eps = epsilon(trace.values[value].dtype)
            if not eps or value in starts:
                continue
            ops = slice_of(trace, value, starts)
            with strict_products():
                exact, strict = (
                    replay_values(trace, {value}, ops, run.recorder.held, way)[value] for way in (EXACT, STRICT)
                )
            floors.append(max(relative_difference(exact, strict.astype(np.float64)), eps))
    except (CannotReplayError, KeyError):
        return None
    return max(floors, default=None)

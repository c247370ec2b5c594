"""What one side costs: plain runs after a warm-up, beside nothing of what looking into them needs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.backends.ort_runner import make_session, run_session
from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_switches import applied, placed
from bisect_tool.records import NumericConfig, SideCost

_LONG, _SHORT = 2.0, 0.2
"""Seconds of one run, from which on two, and up to which five, repeats have to do; between them there are three."""

_SAMPLE = 0.005
"""Seconds that a repeat lasts at least: shorter runs are made several times in it, or the clock's jitter is measured."""


def torch_cost(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: NumericConfig
) -> SideCost:
    """Time of the model's own forward, without hooks, under a configuration; on CUDA also the memory of its tensors."""
    module, args, kwargs = placed(module, args, kwargs, config)
    cuda = config.device == "cuda"

    def prepare() -> Callable[[], object]:
        # A model may write into its inputs.
        own_args, own_kwargs = map_tensors(args, torch.Tensor.clone), map_tensors(kwargs, torch.Tensor.clone)
        return lambda: module(*own_args, **own_kwargs)

    with applied(config), torch.no_grad():
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        times = repeat(prepare, torch.cuda.synchronize if cuda else lambda: None)
        return _cost(times, torch.cuda.max_memory_allocated() / 1e6 if cuda else None)


def ort_cost(program: OnnxProgram, config: NumericConfig, feeds: Mapping[str, NDArray[Any]]) -> SideCost:
    """Time of the untouched graph in a session with ONNX Runtime's own settings for memory and threads.

    Inputs and outputs lie on the CPU: on CUDA the time includes their copies, and the memory is what the device has
    less while the session is there.
    """
    cuda = config.device == "cuda" and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if cuda else 0
    session = make_session(program.untouched(), config, str(program.weights_folder), as_deployed=True)
    names = [output.name for output in session.get_outputs()]
    times = repeat(lambda: lambda: run_session(session, names, feeds), lambda: None)
    taken = max(free - torch.cuda.mem_get_info()[0], 0) / 1e6 if cuda else None
    return _cost(times, taken)


def run_cost(run: Callable[[], object]) -> SideCost:
    """Time of something small, such as one stage of a graph, where many are timed: the repeats are short."""
    return _cost(repeat(lambda: run, lambda: None, _SAMPLE / 5), None)


def repeat(
    prepare: Callable[[], Callable[[], object]], finish: Callable[[], object], sample: float = _SAMPLE
) -> list[float]:
    """Seconds of one run, several times over, after a warm-up that is not counted.

    Args:
        prepare: gives what is to be timed, once for each repeat; not timed itself.
        finish: waits for what was started.
        sample: seconds that a repeat lasts at least.
    """

    def timed(count: int) -> float:
        run = prepare()
        began = time.perf_counter()
        for _ in range(count):
            run()
        finish()
        return (time.perf_counter() - began) / count

    once = timed(1)
    repeats = 5 if once < _SHORT else 3 if once < _LONG else 2
    count = max(1, min(50, math.ceil(sample / max(once, 1e-6))))
    return [timed(count) for _ in range(repeats)]


def _cost(times: list[float], device_mb: float | None) -> SideCost:
    return SideCost(statistics.median(times), min(times), max(times), len(times), device_mb)

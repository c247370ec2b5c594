"""Whether a side's error is that of products whose operands were rounded to TF32, bfloat16 or float16 (``BD108``)."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.emulation import Emulation, Format
from bisect_tool.backends.floors import strict_products
from bisect_tool.backends.replay import EXACT, STRICT, CannotReplayError, replay_values, slice_of
from bisect_tool.diagnose.causes import REDUCED
from bisect_tool.diagnose.rules import Clue
from bisect_tool.metrics import relative_error
from bisect_tool.recorder import Trace
from bisect_tool.records import Side

Array = NDArray[Any]

NEARER = 4.0
"""By so much the rounded computation has to lie nearer to the side than float64 does."""

_FORMATS: tuple[tuple[Format, str], ...] = (("tf32", "TF32"), ("bf16", "bfloat16"), ("fp16", "float16"))
_SIDES: dict[Side, str] = {"expected": "PyTorch's side", "actual": "the graph's side"}


def reduced(
    tape: Trace, value: int, known: Set[int], fetch: Callable[[int], torch.Tensor], off: Array, side: Side
) -> Clue | None:
    """Says so where the stage, with its products' operands rounded, gives the value of the side that is off.

    Args:
        tape, value, known, fetch: the stage as PyTorch ran it; see :func:`bisect_tool.backends.replay.replay_values`.
        off: what the side that is off has, in PyTorch's shape.
        side: which one that is.
    """
    if off.dtype.kind != "f" or not np.isfinite(off).all():
        return None
    found: list[tuple[float, str]] = []
    try:
        ops = slice_of(tape, value, known)
        with strict_products():
            exact = relative_error(replay_values(tape, {value}, ops, fetch, EXACT)[value], off)
            for form, name in _FORMATS:
                with Emulation(form) as emulation:
                    made = replay_values(tape, {value}, ops, fetch, STRICT)[value]
                if emulation.rounded:
                    found.append((relative_error(made, off), name))
    except (CannotReplayError, KeyError, RuntimeError):
        return None
    nearest = min(found, default=None)
    if nearest is None or not nearest[0] * NEARER < exact:
        return None
    return Clue(
        REDUCED,
        (
            f"{_SIDES[side]} lies {exact:.1e} from float64, and {nearest[0]:.1e} from the stage with its products' "
            f"operands rounded to {nearest[1]}",
        ),
        'the same precision on both sides: torch.set_float32_matmul_precision("highest"), use_tf32=0 for a CUDA provider',
    )

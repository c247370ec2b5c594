"""Tolerances: the default judgement, and the user's own limits."""

from __future__ import annotations

import math
import numbers
from typing import Literal

from bisect_tool.errors import BisectError
from bisect_tool.records import Tolerance

DEFAULT_REL_L2 = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2, "bfloat16": 2e-2, "complex64": 1e-4}
"""Limits on relative L2 until a stage's noise floor is known."""


def make_tolerance(
    max_abs: float | None, atol: float | None, rtol: float | None, min_sqnr: float | None = None
) -> Tolerance:
    """The tolerance in force: ``max_abs`` alone, ``atol`` and ``rtol`` together, ``min_sqnr`` alone (dB), or the default.

    Raises:
        BisectError: two forms at once, one of ``atol``/``rtol`` alone, or a limit that is negative, NaN or infinite.
    """
    if min_sqnr is not None:
        if not math.isfinite(min_sqnr):
            raise BisectError(f"--min-sqnr {min_sqnr}: a finite number of dB", hint="for example --min-sqnr 25")
        if max_abs is not None or atol is not None or rtol is not None:
            raise BisectError("--min-sqnr and --max-abs, --atol/--rtol exclude each other", hint="give one of them")
        return sqnr_tolerance(min_sqnr, "user")
    for name, limit in (("--max-abs", max_abs), ("--atol", atol), ("--rtol", rtol)):
        if limit is not None and not (isinstance(limit, numbers.Real) and 0 <= limit < math.inf):
            # Everything agrees under an infinite one, NaN and infinities excepted.
            raise BisectError(
                f"{name} {limit}: a tolerance is a finite number not below zero", hint=f"for example {name} 0.01"
            )
    if max_abs is not None and (atol is not None or rtol is not None):
        raise BisectError("--max-abs and --atol/--rtol exclude each other", hint="give one of the two forms")
    if (atol is None) != (rtol is None):
        missing = "--rtol" if rtol is None else "--atol"
        raise BisectError(
            f"--atol and --rtol go together, {missing} is missing", hint=f"add {missing} 0 to use one only"
        )
    if max_abs is not None:
        return Tolerance("user", max_abs=max_abs)
    if atol is not None:
        return Tolerance("user", atol=atol, rtol=rtol)
    return Tolerance("default", rel_l2=DEFAULT_REL_L2)


def sqnr_tolerance(decibels: float, source: Literal["user", "quantised"]) -> Tolerance:
    """A tolerance by SQNR, which is the relative L2 error in another unit."""
    limit = 10.0 ** (-decibels / 20.0)
    names = ("float32", "float64", "float16", "bfloat16", "complex64")
    return Tolerance(source, rel_l2=dict.fromkeys(names, limit), min_sqnr=decibels)

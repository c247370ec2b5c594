"""Configurations, and the limits that judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bisect_tool.records.calibration import TableSource


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is allowed, and where it comes from. Exactly one of the three forms is filled in.

    Attributes:
        source: ``default`` | ``user`` | ``quantised`` (the defaults for a quantised graph) | ``calibrated``: stages that
            the table has are judged by its limits, the others as by default.
        rel_l2: limits by dtype kind (``float32``, ``float16`` …) for the default judgement.
        max_abs: limit on ``max_abs`` alone.
        atol, rtol: as in ``allclose``: ``|actual - expected| <= atol + rtol * |expected|`` for every element.
        min_sqnr: least SQNR in dB, which ``rel_l2`` says in its own unit; it holds for integers too.
        table: what the calibrated limits rest on; ``None`` without them.
    """

    source: Literal["default", "user", "quantised", "calibrated"]
    rel_l2: Mapping[str, float] | None = None
    max_abs: float | None = None
    atol: float | None = None
    rtol: float | None = None
    min_sqnr: float | None = None
    table: TableSource | None = None


@dataclass(frozen=True, slots=True)
class NumericConfig:
    """One side's switches that can change a number.

    Attributes:
        backend: ``torch`` | ``onnxruntime`` | ``onnx-reference`` (ONNX's own evaluator).
        device: ``cpu`` | ``cuda``.
        dtype: the dtype the model is run in, as declared by its weights.
        optimization: ONNX Runtime's graph optimisation level (``off``, ``basic``, ``extended``, ``layout``, ``all``).
        threads: intra-op threads; 0 is the library's default.
        exporter, opset, constant_folding: how the graph was made. For a given file ``exporter`` is what its producer
            entry tells, and the others are ``None`` unless they were asked for.
        switches: everything else that is set, by the names in ``numerics.py``; what is not here is left as it is.
    """

    backend: Literal["torch", "onnxruntime", "onnx-reference"]
    device: str = "cpu"
    dtype: str | None = None
    optimization: str | None = None
    threads: int = 0
    exporter: str | None = None
    opset: int | None = None
    constant_folding: bool | None = None
    switches: Mapping[str, str | int | bool] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ConfigPair:
    """A comparison to make: two sides, and whether it counts for the exit code."""

    name: str
    expected: NumericConfig
    actual: NumericConfig
    gating: bool = True

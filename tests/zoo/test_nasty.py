"""Healthy models at the edges of floating point agree without a tolerance; exporters' real faults beside them do not."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from nasty import FAULTY, NASTY, cases, report_on

QUICK_DYNAMO = (
    "sigmoid, tail",
    "hardswish, edge",
    "expm1 near zero",
    "layer norm, nearly constant",
    "residual sum near zero",
    "single number, cancelled",
)
"""With the exporter that takes a second for each."""

_QUICK = [(name, exporter) for nasty, exporter in cases() for name in [nasty.name] if exporter == "torchscript"]
_QUICK += [(name, "dynamo") for name in QUICK_DYNAMO]
_SLOW = [(nasty.name, exporter) for nasty, exporter in cases() if (nasty.name, exporter) not in _QUICK]


@functools.cache
def _report(name: str, exporter: str) -> Any:
    return report_on(FAULTY.get(name) or NASTY[name], exporter)


def _agrees(name: str, exporter: str) -> None:
    verdict = _report(name, exporter).verdict
    assert ("agrees", ()) == (verdict.status, verdict.origins), verdict.summary


@pytest.mark.parametrize(("name", "exporter"), _QUICK)
def test_nasty_is_healthy(name: str, exporter: str) -> None:
    """What rounding does to a healthy model is no fault, however large it is beside the result."""
    _agrees(name, exporter)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), _SLOW)
def test_nasty_is_healthy_with_the_other_exporter(name: str, exporter: str) -> None:
    """The same for the slow exporter's graphs."""
    _agrees(name, exporter)


@pytest.mark.parametrize("name", sorted(FAULTY))
def test_what_exporters_do_wrong_is_said(name: str) -> None:
    """A floor wide enough for the edges still sees an export that computes something else, on ONNX's side."""
    verdict = _report(name, "torchscript").verdict
    assert "diverges" == verdict.status
    assert ["actual"] == [origin.side for origin in verdict.origins]


@pytest.mark.parametrize("name", sorted(NASTY))
def test_nasty_models_are_frozen(name: str) -> None:
    """Built twice, a model has the same weights and inputs, and its results are numbers."""
    (first, inputs), (second, again) = NASTY[name].build(), NASTY[name].build()
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0, equal_nan=True)
    assert all(bool((one == other).all()) for one, other in zip(inputs, again, strict=True))
    with torch.no_grad():
        result = first(*inputs)
    for output in result if isinstance(result, tuple) else (result,):
        assert np.isfinite(output.double().numpy()).all()

"""Why something fails, in a line."""

from __future__ import annotations

from dataclasses import replace

from report_samples import metrics

from bisect_tool.records import Tolerance
from bisect_tool.reporters.failing import why_metrics


def test_a_number_never_looks_like_its_limit() -> None:
    """As many digits as tell them apart."""
    tolerance = Tolerance("user", max_abs=1e-3)
    near = replace(metrics(1.0), max_abs=1.04e-3)
    assert "max abs 1.04e-03, limit 1.0e-03" == why_metrics(near, "float32", tolerance)
    assert "max abs 2.0e-03, limit 1.0e-03" == why_metrics(replace(near, max_abs=2e-3), "float32", tolerance)

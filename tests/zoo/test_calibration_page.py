"""The page of calibrated tables: what it counts, what it lists as missed, and how faults of any size are planted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import judging
import onnx
import pytest
import truth
from faults import KINDS, Graph

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import calibration_page
import calibration_runs

RATES = (0.05, 0.01)


def results() -> dict[str, dict[str, Any]]:
    """Two families: one alarm in three runs at the higher rate; two faults over 1e-4, of which one is missed."""

    def judged(section: str, over: Any, **more: Any) -> dict[str, Any]:
        return {"section": section, "over": over, **more}

    nothing: dict[str, list[str]] = {"0.05": [], "0.01": []}
    everything = {"0.05": ["fc: rel_l2 x9.0"], "0.01": ["fc: rel_l2 x7.0"]}
    about = {
        "stages": 3, "samples": 40, "runs": 520, "tails": {"0.05": "measured", "0.01": "extrapolated"},
        "median_local_limit": 1e-7, "largest_local_limit": 2e-7, "largest_total_limit": 3e-7,
        "left_out": {"float64: sort draws random numbers": 40},
    }  # fmt: skip
    one = {
        "about": about,
        "held-out/0": judged("held-out", nothing),
        "held-out/1": judged("held-out", {"0.05": ["fc: rel_l2 x1.1"], "0.01": []}),
        "fault/a/0": judged("fault", everything, kind="a", place="Conv_1", moved=0.5),
        "fault/b/0": judged("fault", everything, kind="b", place="Conv_1", moved=5e-5),
    }
    two = {
        "held-out/0": judged("held-out", nothing),
        "fault/a/0": judged("fault", "ValueError: no answer", kind="a", place="Add_2", moved=2e-4),
        "scaled/0/1e-06": judged("scaled", nothing, kind="scaled", place="Add_2", moved=1e-6),
    }
    return {"one": one, "two": two}


def test_page_counts_what_the_results_hold() -> None:
    """Raw alarms and faults, by family and all together; an error of the tool is a miss, and is told."""
    page = calibration_page.page(results(), RATES, "scripts/calibration-table --families one,two")
    for part in (
        "$ scripts/calibration-table --families one,two",
        "| one | 3 | 40 | 520 | measured | extrapolated |",
        "float64: sort draws random numbers (40)",
        "| one | 2 | 1 | 0.10 | 0.975 | 0 | 1.00 | 0.776 | fc: rel_l2 x1.1 |",
        "| **all** | 3 | 1 | 0.14 | 0.865 | 0 |",
        "of 2 faults over 0.0001 1 (50.0 %) are caught, of 2 under it 1 (50.0 %)",
        "- two: a at Add_2, 2.0e-04: ValueError: no answer",
    ):
        assert part in page, part


@pytest.mark.parametrize(("hits", "runs", "bound"), [(0, 300, 0.00994), (3, 300, 0.02564), (5, 5, 1.0), (0, 0, 1.0)])
def test_upper_bound(hits: int, runs: int, bound: float) -> None:
    """Clopper-Pearson, against published numbers; without an alarm nearly three in as many runs."""
    assert calibration_page.upper_bound(hits, runs) == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize("by", [1e-4, 4.8e-7])
def test_a_scaled_result_moves_by_what_is_said(by: float) -> None:
    """By plain ONNX Runtime, at a node in the middle."""
    base = judging.base_of("shared", calibration_runs.EXPORTER)
    graph = Graph(base.model, base.values)
    places = [node for node in base.model.graph.node if KINDS["result: NaN"].applicable(node, graph)]
    node = places[len(places) // 2]
    faulty = calibration_runs.scaled(base, node.name, by)
    onnx.checker.check_model(faulty)
    moved = truth.moved_by(base, faulty, node.output[0], node.output[0])
    assert moved == pytest.approx(by, rel=0.2)

"""A fault planted into a healthy graph is found, and found where it was planted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import planting
import pytest
from commands import EXAMPLES, ROOT, Healthy, Outcome, command
from planting import Fault, holds, judged, number

SITES = {"weight": 2, "activation": 1, "half rewired": 1, "half renamed": 1}
"""Kind of fault → how many places of each graph get one."""

QUICK_HALVES = {("dynamo", "half renamed"), ("torchscript", "half rewired")}
QUICK_CENTERPOINT = {("dynamo", "weight"), ("torchscript", "activation"), *QUICK_HALVES}
"""The largest example has each kind with one exporter, all have each way of a half with one, and no graph has two faults of
a kind, where minutes count."""


def _marks(example: str, exporter: str, kind: str, site: int) -> tuple[pytest.MarkDecorator, ...]:
    once = example == "centerpoint" or kind.startswith("half")
    quick = site == 0 and (not once or (exporter, kind) in QUICK_CENTERPOINT)
    return () if quick else (pytest.mark.slow,)


CASES = [
    pytest.param(
        example,
        exporter,
        kind,
        site,
        id=f"{example}-{exporter}-{kind.replace(' ', '-')}-{site}",
        marks=_marks(example, exporter, kind, site),
    )
    for example in EXAMPLES
    for exporter in ("dynamo", "torchscript")
    for kind, sites in SITES.items()
    for site in range(1 if example == "centerpoint" else sites)
]


@dataclass(frozen=True)
class Planted:
    """A fault, and what the tool says about it."""

    healthy: Healthy
    fault: Fault
    moved: float
    onnx: Path
    outcome: Outcome

    @property
    def rows(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The rows of the stage that holds the fault: one for each of its outputs."""
        return [(row, result) for row, result in judged(self.outcome.report) if holds(row["onnx_nodes"], self.fault)]


@functools.cache
def _loaded(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def _judge(healthy: Healthy, file: Path, folder: Path, *options: str) -> Outcome:
    return command("--config", healthy.config, "--onnx", file, "--format", "json", *options, folder=folder)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes half of the time and is tested elsewhere."""
    from bisect_tool.reporters import plots

    monkeypatch.setattr(plots, "images", lambda *_: plots.Images(b"", "<svg></svg>"))


@pytest.mark.parametrize("example, exporter, kind, site", CASES)
def test_planted_fault_is_found(
    healthy: Callable[..., Healthy],
    small_root: Path,
    tmp_path: Path,
    example: str,
    exporter: str,
    kind: str,
    site: int,
) -> None:
    """The origin is the stage that holds the fault, its error stands out, and it is the first over a fit tolerance."""
    # The README's commands plant one into the full-size CenterPoint.
    root = small_root if example == "centerpoint" else ROOT
    base = healthy(example, exporter, root)
    model = _loaded(base.onnx)
    feeds = planting.feeds_of(root / "examples" / example, model)
    fault = planting.plant(model, kind, base.outcome.report, feeds, f"{example} {exporter} {kind} {site}")
    file = tmp_path / "faulty.onnx"
    onnx.save(fault.model, file)
    outcome = _judge(base, file, tmp_path / "report")
    planted = Planted(base, fault, planting.moved_by(model, fault, feeds), file, outcome)

    assert 1 == outcome.code, (fault.place, planted.moved, outcome.err, outcome.report["verdict"]["summary"])
    _check_origin(planted)
    _check_local_error(planted)
    _check_first_over_tolerance(planted, tmp_path / "tight")


def _check_origin(planted: Planted) -> None:
    origins = planted.outcome.report["verdict"]["origins"]
    assert origins, planted.fault.place
    assert holds(origins[0]["onnx_nodes"], planted.fault), (planted.fault.place, origins[0])


def _check_local_error(planted: Planted) -> None:
    assert planted.rows, planted.fault.place
    own = max(number(result["local"]["rel_l2"]) for _, result in planted.rows)
    others = {
        row["stage"]: number(result["local"]["rel_l2"])
        for row, result in judged(planted.outcome.report)
        if result["local"] is not None and not holds(row["onnx_nodes"], planted.fault)
    }
    worst = max(others, key=others.__getitem__)
    assert own >= 20 * others[worst], (planted.fault.place, own, worst, others[worst])


def _check_first_over_tolerance(planted: Planted, folder: Path) -> None:
    """Where rounding and fault lie far enough apart, a limit between the two names the stage."""
    first = planted.rows[0][0]
    reached = max(number(result["total"]["max_abs"]) for _, result in planted.rows)
    before = [r for row, r in judged(planted.outcome.report) if row["index"] < first["index"]]
    noise = [number(r["total"]["max_abs"]) for r in [*before, *(r for _, r in judged(planted.healthy.outcome.report))]]
    if not 4 * max(noise) <= reached:
        return
    limit = math.sqrt(max(noise) * min(reached, 1e6))
    outcome = _judge(planted.healthy, planted.onnx, folder, "--max-abs", f"{limit:.6g}")
    found = outcome.report["verdict"]["first_over_tolerance"]
    assert 1 == outcome.code
    assert (first["stage"], first["call"]) == (found["stage"], found["call"]), (planted.fault.place, limit)

"""Floors of a recording: they are what float64 says they are, and they decide what is rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bisect_tool.backends.recorded_floors import Floors, put_floors, run_floors
from bisect_tool.recorder import Recording, configuration_of
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.recordings.trace_floors import APART, floor_of
from bisect_tool.records import Report, Tolerance

X = torch.linspace(-1, 1, 64).reshape(2, 32).cos()


class Net(nn.Module):
    """Cancels nearly everything, so that rounding of 1e-7 becomes an error of 1e-3 behind it."""

    def __init__(self, cancels: bool) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 4)
        with torch.no_grad():
            self.register_buffer("anchor", self.first(X) * (0.9999 if cancels else 0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x) - self.anchor)
        return y


def model(cancels: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(cancels).eval()


def recorded(
    net: nn.Module, path: Path, *, floors: bool = True, summary: bool = False, most: float | None = None
) -> Path:
    with Recording(path, summary) as recording:
        for moment in ("start", "built", "sample"):
            recording.moment(moment)
        recording.tape = floors
        recording.run(net, (X,))
        if floors:
            recorder = recording.recorder
            put_floors(recording, recorder, run_floors(recorder, most=most))
        return Path(recording.finish(configuration_of(net, mode="eval")))


def nudged(net: Net, size: float) -> Net:
    """The weights of the first layer off by a relative error."""
    with torch.no_grad():
        noise = torch.randn(net.first.weight.shape, generator=torch.Generator().manual_seed(1))
        net.first.weight.add_(net.first.weight.abs() * noise * size)
    return net


def floors_of(path: Path) -> dict[str, Any]:
    from bisect_tool.recordings.bundles import open_bundle

    with open_bundle(path) as bundle:
        return {entry["stage"]: entry.get("floor") for entry in bundle.manifest["stages"]}


def compared(one: Path, other: Path, tolerance: Tolerance | None = None) -> Report:
    return compare_recordings(one, other, tolerance)


def test_floors_are_errors_against_float64(tmp_path: Path) -> None:
    """Within what a projection is off, and a few units for the made-up rounding."""
    net = model(cancels=True)
    floors = floors_of(recorded(net, tmp_path / "a.trace"))
    with torch.no_grad():
        exact = torch.nn.functional.linear(X.double(), net.first.weight.double(), net.first.bias.double())
        exact = exact - net.anchor.double()
        single = net.first(X) - net.anchor
    measured = float((single.double() - exact).norm() / exact.norm())
    assert measured > 1e-5
    assert measured / 2 < floors["/sub#0"] < 10 * measured
    assert floors["first"] < 1e-6


def test_without_floors_nothing_is_different(tmp_path: Path) -> None:
    """Recordings of the single file have none."""
    path = recorded(model(), tmp_path / "a.trace", floors=False)
    assert {None} == set(floors_of(path).values())
    report = compared(path, recorded(nudged(model(), 1e-5), tmp_path / "b.trace", floors=False))
    assert "agrees" == report.verdict.status
    assert all(result.floor is None for row in report.stages for result in row.results.values())


def test_more_than_rounding_under_the_usual_tolerance(tmp_path: Path) -> None:
    """An error of 1e-5 is no rounding where the floor is 1e-7, though the fixed tolerance is 1e-4."""
    one, other = (
        recorded(model(), tmp_path / "a.trace"),
        recorded(nudged(model(), 1e-5), tmp_path / "b.trace", floors=False),
    )
    for pair in ((one, other), (other, one)):
        report = compared(*pair)
        assert "diverges" == report.verdict.status
        first = report.verdict.first_over_tolerance
        assert first is not None and "first" == first.stage
        assert any(line.startswith("more than rounding: from first on") for line in report.verdict.summary)


def test_rounding_over_the_usual_tolerance(tmp_path: Path) -> None:
    """An error of 1e-3 is rounding where the model cancels nearly everything, and the floor says so."""
    moved = nudged(model(cancels=True), 1e-7)
    one, other = recorded(model(cancels=True), tmp_path / "a.trace"), recorded(moved, tmp_path / "b.trace")
    report = compared(one, other)
    worst = max(result.total.rel_l2 for row in report.stages for result in row.results.values())
    assert worst > 1e-4 and "agrees" == report.verdict.status
    (line,) = [line for line in report.verdict.summary if line.startswith("rounding: ")]
    assert "noise floors" in line
    ratios = [result.noise_ratio for row in report.stages for result in row.results.values()]
    assert all(ratio is not None and ratio <= APART for ratio in ratios)
    plain = compared(
        *(recorded(net, tmp_path / f"{n}.trace", floors=False) for n, net in enumerate((model(True), moved)))
    )
    assert "diverges" == plain.verdict.status


def test_a_tolerance_of_the_users_decides(tmp_path: Path) -> None:
    """The floor is told all the same."""
    pair = recorded(model(), tmp_path / "a.trace"), recorded(nudged(model(), 1e-5), tmp_path / "b.trace")
    report = compared(*pair, Tolerance("user", max_abs=1.0))
    assert "agrees" == report.verdict.status
    assert max(r.noise_ratio or 0 for row in report.stages for r in row.results.values()) > APART
    assert any("more than rounding, and within the tolerance" in line for line in report.verdict.summary)


def test_summaries_hold_floors_too(tmp_path: Path) -> None:
    """And the answer is the same."""
    pair = [recorded(nudged(model(), size), tmp_path / f"{size}.trace", summary=True) for size in (0.0, 1e-5)]
    assert "diverges" == compared(*pair).verdict.status


def test_a_large_run_has_none_unless_asked_for(tmp_path: Path) -> None:
    """The reason is a note of the recording, and of the report."""
    path = recorded(model(), tmp_path / "a.trace", most=10.0)
    assert {None} == set(floors_of(path).values())
    report = compared(path, path)
    assert any("--floor" in note for note in report.notes)


def test_random_numbers_end_the_floors_where_they_are_drawn(tmp_path: Path) -> None:
    """What comes before has a floor, what comes after has none, and the reason is told."""
    net = nn.Sequential(nn.Linear(32, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    path = recorded(net, tmp_path / "a.trace")
    floors = floors_of(path)
    assert floors["0"] is not None and floors["2"] is None
    assert any("draws random numbers" in note for note in compared(path, path).notes)


def test_integers_and_zeros_have_no_floor(tmp_path: Path) -> None:
    """There is nothing that rounding could be relative to."""

    class Places(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.argmax(1), x - x

    floors = floors_of(recorded(Places(), tmp_path / "a.trace"))
    assert {None} == {floors["/argmax#0"], floors["/sub#0"]}


def test_the_smaller_floor_counts() -> None:
    """A run that rounds more does not excuse itself by that."""
    assert 1e-6 == floor_of({"floor": 1e-6}, {"floor": 2e-6})
    assert 1e-6 == floor_of({"floor": 1e-6}, {}) == floor_of({"floor": None}, {"floor": 1e-6})
    assert floor_of({}, {}) is None
    assert Floors().unknown is None and math.isclose(APART, 6.0)


def test_a_run_in_half_precision_excuses_nothing(tmp_path: Path) -> None:
    """Autocast inside of forward: its own floors are those of bfloat16, and the outputs of both sides are float32."""

    class Cast(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y: torch.Tensor = self.first(x)
            return super().forward(x) * 0 + self.second(y.float())

    torch.manual_seed(0)
    one, other = recorded(model(), tmp_path / "a.trace"), recorded(Cast(False).eval(), tmp_path / "b.trace")
    assert floors_of(other)["second"] > 1e-4
    report = compared(one, other)
    assert "diverges" == report.verdict.status
    assert any(line.startswith("more than rounding") for line in report.verdict.summary)

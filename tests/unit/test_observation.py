"""Bisection under observation, on simulated runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bisect_tool.observation import Seen, first_deviating
from bisect_tool.passes import Budget

Inputs = dict[str, tuple[str, ...]]


@st.composite
def graphs(draw: st.DrawFn) -> Inputs:
    """Values ``v0`` ... in a topological order, each of which reads one to three earlier ones; the last is the output."""
    count = draw(st.integers(2, 14))
    found: Inputs = {"v0": ()}
    for place in range(1, count):
        sources = draw(st.sets(st.integers(0, place - 1), min_size=1, max_size=min(3, place)))
        found[f"v{place}"] = tuple(f"v{source}" for source in sorted(sources))
    return found


def before(value: str, inputs: Inputs) -> set[str]:
    found = set(inputs[value])
    for source in inputs[value]:
        found |= before(source, inputs)
    return found


class Run:
    """A run with faults: what is made of a faulty value is wrong, and looking at some values brings the truth back."""

    def __init__(self, inputs: Inputs, faults: set[str], shy: set[str]):
        self.inputs, self.faults, self.shy = inputs, faults, shy
        self.asked: list[str] = []

    def wrong(self, value: str) -> bool:
        return value in self.faults or any(map(self.wrong, self.inputs[value]))

    def probe(self, value: str) -> Seen:
        self.asked.append(value)
        if value in self.shy:
            return Seen(False, False, 0.0, False)
        return Seen(True, True, 1.0 if self.wrong(value) else 0.0, self.wrong(value))

    def search(self, last: str, runs: int = 1000):
        return first_deviating(last, self.inputs, set(self.inputs), self.probe, Budget(runs, 1e9))


@given(graphs(), st.data())
def test_a_single_fault_is_found_or_lies_hidden(inputs: Inputs, data: st.DataObject) -> None:
    """The first deviating value is the fault's, unless looking there changes the result: then it is among the hidden."""
    last = max(inputs, key=lambda name: int(name[1:]))
    fault = data.draw(st.sampled_from(sorted({last} | before(last, inputs))))
    shy = data.draw(st.sets(st.sampled_from(sorted(inputs)))) - {last}
    run = Run(inputs, {fault}, shy)
    found = run.search(last)
    assert found.complete
    assert fault == found.first or fault in found.hidden
    assert set(found.hidden) <= shy
    assert found.hidden == found.healing
    if not shy:
        assert fault == found.first
        assert () == found.hidden
    assert len(run.asked) == len(set(run.asked)) == found.runs


@given(graphs(), st.data())
def test_of_several_faults_one_with_nothing_wrong_before_it(inputs: Inputs, data: st.DataObject) -> None:
    """What is found is a fault, and everything that could be looked at before it is right."""
    last = max(inputs, key=lambda name: int(name[1:]))
    faults = data.draw(st.sets(st.sampled_from(sorted({last} | before(last, inputs))), min_size=1))
    run = Run(inputs, faults, set())
    found = run.search(last)
    assert found.first in faults
    assert not any(map(run.wrong, before(found.first, inputs)))


@pytest.mark.parametrize("count", [2, 17, 100, 1000])
@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_chain_takes_a_logarithm_of_runs(count: int, place: float) -> None:
    """As in any bisection."""
    inputs: Inputs = {f"v{i:04}": (f"v{i - 1:04}",) if i else () for i in range(count)}
    fault = f"v{int(place * (count - 1)):04}"

    def probe(value: str) -> Seen:
        return Seen(True, True, 1.0, value >= fault)

    found = first_deviating(f"v{count - 1:04}", inputs, set(inputs), probe, Budget(1000, 1e9))
    assert fault == found.first
    assert found.runs <= math.ceil(math.log2(count)) + 1


def test_neighbours_serve_where_a_value_must_not_be_looked_at() -> None:
    """The middle of a fused group is skipped, and values on either side close in on it."""
    inputs: Inputs = {f"v{i}": (f"v{i - 1}",) if i else () for i in range(9)}
    run = Run(inputs, {"v4"}, {"v3", "v4", "v5"})
    found = run.search("v8")
    assert "v6" == found.first
    assert {"v3", "v4", "v5"} == set(found.hidden)
    assert "v2" in found.good


def test_a_value_that_does_not_come_out_is_skipped() -> None:
    """The runtime may return nothing for it; that is no answer either way."""
    inputs: Inputs = {"a": (), "b": ("a",), "c": ("b",)}

    def probe(value: str) -> Seen:
        return Seen(True, True, None, False) if value == "b" else Seen(True, True, 0.0, False)

    found = first_deviating("c", inputs, set(inputs), probe, Budget(10, 1e9))
    assert ("c", ("b",), ()) == (found.first, found.hidden, found.healing)
    assert found.seen is None


def test_the_budget_ends_it() -> None:
    """What is known then is told, and that it is not all."""
    inputs: Inputs = {f"v{i}": (f"v{i - 1}",) if i else () for i in range(9)}
    run = Run(inputs, {"v1"}, set())
    found = run.search("v8", runs=2)
    assert (2, False) == (found.runs, found.complete)
    assert run.wrong(found.first)


def test_branches_that_do_not_lead_there_are_left_alone() -> None:
    """Only what the wrong output is made of is looked at."""
    inputs: Inputs = {"x": (), "a": ("x",), "side": ("x",), "out": ("a",)}
    run = Run(inputs, {"a"}, set())
    assert "a" == run.search("out").first
    assert "side" not in run.asked

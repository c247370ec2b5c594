"""``drilldown``: the fewest nodes that certainly hold a fault, and hand-over bisection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bisect_tool.drilldown import Inner, Inside, Narrowed, first_mending, narrow
from bisect_tool.records import OnnxNode

Array = NDArray[np.float64]
X = np.linspace(0.1, 2.0, 17)
STEPS = {
    "cube": lambda x: x**3,
    "root": lambda x: np.sqrt(np.abs(x)),
    "double": lambda x: 2 * x,
    "sine": np.sin,
    "shift": lambda x: x + 1,
}


def chain(faulty: str | None, hidden: Sequence[str] = ()) -> Narrowed:
    """A stage of five steps, one of them 1 % off; PyTorch's values are known but for those of ``hidden`` steps."""
    order = list(STEPS)

    def run(given: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        values, x = {}, X
        for name in order:
            x = STEPS[name](x) * (1.01 if name == faulty else 1)
            values[name + "_out"] = x
            x = given.get(name + "_out", x)
        return {name: values[name] for name in wanted}

    def between(value: str, cuts: Set[str]) -> tuple[str, ...]:
        end = order.index(value.removesuffix("_out"))
        start = max((i for i in range(end) if order[i] + "_out" in cuts), default=-1)
        return tuple(order[start + 1 : end + 1])

    inner, x = [], X
    for name in order:
        x = STEPS[name](x)
        if name not in hidden and name != order[-1]:
            inner.append(Inner(name, f"model.py:{order.index(name)}", x))
    nodes = tuple(OnnxNode(name, name, "", (), (name + "_out",), (), None, None, None) for name in order)
    inside = Inside(nodes, "shift_out", (X,), run, between)
    return narrow(inside, x, inner, lambda a, b: bool(np.allclose(a, b, rtol=1e-9)))


@pytest.mark.parametrize("faulty", STEPS)
def test_one_node_is_left_where_pytorch_has_every_value(faulty: str) -> None:
    assert chain(faulty).nodes == (faulty,)


def test_the_operation_behind_it_is_named() -> None:
    found = chain("double")
    assert found.operation is not None
    assert (found.operation.name, found.operation.source) == ("double", "model.py:2")
    assert len(found.evidence) == 2


def test_nodes_without_a_value_of_pytorchs_between_them_stay_together() -> None:
    assert chain("double", hidden=["double"]).nodes == ("double", "sine")
    assert chain("root", hidden=["cube", "root"]).nodes == ("cube", "root", "double")


def test_nothing_is_dropped_without_inner_values() -> None:
    assert chain("double", hidden=list(STEPS)) == Narrowed(tuple(STEPS), (), None)


@given(st.sets(st.sampled_from(list(STEPS))), st.sampled_from(list(STEPS)))
def test_the_faulty_node_is_never_dropped(hidden: set[str], faulty: str) -> None:
    assert faulty in chain(faulty, list(hidden)).nodes


# -- hand-over --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.data())
def test_hand_over_finds_the_one_step(count: int, data: st.DataObject) -> None:
    """In about log2 of the places many runs."""
    fault = data.draw(st.integers(0, count - 1))
    asked: list[int] = []

    def error_of(place: int) -> float:
        asked.append(place)
        return 1e-7 if place >= fault else 3e-3

    assert first_mending(count, error_of) == (fault, 3e-3, 1e-7)
    assert len(asked) <= 3 + math.ceil(math.log2(count + 1))


@pytest.mark.parametrize(
    ("before", "after"), [(1e-7, 1e-7), (3e-3, 2e-3), (0.0, 0.0), (3e-3, math.nan), (3e-3, math.inf)]
)
def test_where_nothing_mends_the_outputs_no_place_is_named(before: float, after: float) -> None:
    assert first_mending(5, lambda place: before if place < 4 else after) is None


@pytest.mark.parametrize(("before", "after"), [(math.inf, 1e-7), (1e-3, 0.0), (math.inf, 0.0)])
def test_nan_and_perfection_are_steps_too(before: float, after: float) -> None:
    assert first_mending(9, lambda place: before if place < 6 else after) == (6, before, after)


def test_no_places_no_answer() -> None:
    assert first_mending(0, lambda place: 1.0) is None

"""``ahead``: segments in a thread, ahead of whoever takes them, look like segments that run when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Set

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.backends.ahead import Ahead
from bisect_tool.errors import InconclusiveError


def norm(array: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(array))


class Three:
    """Three segments; each hands one value to the next, but for the last."""

    def __init__(self, fails_at: int = -1):
        self.begun = [threading.Event() for _ in range(3)]
        self.threads: list[str] = []
        self.carried: Set[str] = {"input"}
        self.next = 0
        self._fails_at = fails_at

    @property
    def done(self) -> bool:
        return self.next == 3

    def advance(self) -> dict[str, NDArray[np.float64] | None]:
        number, self.next = self.next, self.next + 1
        self.begun[number].set()
        self.threads.append(threading.current_thread().name)
        if number == self._fails_at:
            raise InconclusiveError("no kernel")
        self.carried = set() if self.done else {f"v{number}"}
        return {f"v{number}": np.full(2, float(number))}


@pytest.mark.parametrize("eager", [True, False])
def test_what_is_seen_is_what_was_taken(eager: bool) -> None:
    """Also while a later segment has run already: its values, and what it hands on, are not there yet."""
    steps = Three()
    ahead = Ahead(steps, norm, most=1 if eager else 0)
    seen = [(ahead.done, set(ahead.carried))]
    for number in range(3):
        assert not eager or steps.begun[number].wait(10)
        assert [f"v{number}"] == list(ahead.advance())
        assert not eager or number == 2 or steps.begun[number + 1].wait(10)
        seen.append((ahead.done, set(ahead.carried)))
    ahead.close()
    assert [(False, {"input"}), (False, {"v0"}), (False, {"v1"}), (True, set())] == seen
    assert ahead.seconds > 0
    assert eager == all(name.startswith("segments") for name in steps.threads)


@pytest.mark.parametrize("most", [1, 2])
def test_never_more_ahead_than_was_said(most: int) -> None:
    """Each of them is memory."""
    steps = Three()
    ahead = Ahead(steps, norm, most=most)
    assert steps.begun[most - 1].wait(10)
    assert not steps.begun[most].wait(0.05)
    ahead.close()
    assert not steps.begun[most].is_set()


def test_all_may_run_before_the_first_is_taken() -> None:
    """And more may be allowed than there are; they come one by one all the same."""
    steps = Three()
    ahead = Ahead(steps, norm, most=5)
    assert steps.begun[2].wait(10)
    assert (False, {"input"}) == (ahead.done, set(ahead.carried))
    assert ["v0", "v1", "v2"] == [name for _ in range(3) for name in ahead.advance()]
    assert ahead.done
    ahead.close()


def test_an_error_is_told_to_whoever_asks_for_the_segment() -> None:
    """And not before: the values of the one before it are good. Those behind it do not run."""
    steps = Three(fails_at=1)
    ahead = Ahead(steps, norm, most=3)
    assert ["v0"] == list(ahead.advance())
    with pytest.raises(InconclusiveError, match="no kernel"):
        ahead.advance()
    ahead.close()
    assert not steps.begun[2].is_set()


def test_what_is_to_be_known_of_a_value_is_found_where_it_was_made() -> None:
    """And what the graph gave nothing for is left out."""
    looked: list[str] = []

    def look(array: NDArray[np.float64]) -> float:
        looked.append(threading.current_thread().name)
        return norm(array)

    class One(Three):
        def advance(self) -> dict[str, NDArray[np.float64] | None]:
            return {**super().advance(), "nothing": None}

    ahead = Ahead(One(), look, most=3)
    assert [{"v0": 0.0}, {"v1": 2**0.5}, {"v2": 2 * 2**0.5}] == [
        {name: known for name, (_, known) in ahead.advance().items()} for _ in range(3)
    ]
    ahead.close()
    assert all(name.startswith("segments") for name in looked)


def test_no_thread_is_left() -> None:
    """Also where nobody takes the rest."""
    before = threading.active_count()
    ahead = Ahead(Three(), norm, most=1)
    ahead.close()
    assert before == threading.active_count()

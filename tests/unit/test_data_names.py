"""A checkpoint and the same one in a wrapper are compared weight by weight; other files keep their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bisect_tool.backends.data_reading import read_data
from bisect_tool.data.comparison import compare_files
from bisect_tool.data.files import make_limits
from bisect_tool.data.records import DataComparison

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2), "head.weight": torch.eye(3)}


def compared(folder: Path, one: Any, other: Any) -> DataComparison:
    for name, content in (("a.pt", one), ("b.pt", other)):
        torch.save(content, folder / name)
    return compare_files(read_data(folder / "a.pt"), read_data(folder / "b.pt"), make_limits(None, None, None))


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: list[tuple[str, Any]] = [
    ("state_dict", {"state_dict": STATE}),
    ("module", prefixed("module.", STATE)),
    ("both", {"model": prefixed("module._orig_mod.", STATE)}),
    ("more beside it", {"epoch": 3, "model_state_dict": STATE, "optimizer": {"state": {0: {"step": torch.tensor(4)}}}}),
]


@pytest.mark.parametrize("wrapped", [each for _, each in WRAPPED], ids=[name for name, _ in WRAPPED])
@pytest.mark.parametrize("turned", [False, True], ids=["second", "first"])
def test_a_wrapped_checkpoint_is_the_same(wrapped: Any, turned: bool, tmp_path: Path) -> None:
    """On either side, with a note on how it was read."""
    found = compared(tmp_path, *((wrapped, STATE) if turned else (STATE, wrapped)))
    assert "equal" == found.status
    assert set(STATE) == {item.name for item in found.items}
    assert f"names of the {'first' if turned else 'second'} file were read without" in found.notes[0]


def test_wrappers_on_both_sides(tmp_path: Path) -> None:
    """Different ones."""
    found = compared(tmp_path, {"state_dict": STATE}, {"net": prefixed("module.", STATE)})
    assert "equal" == found.status and 2 == len(found.notes)


def test_a_changed_weight_in_a_wrapper_is_found(tmp_path: Path) -> None:
    """The one that was changed, under its own name."""
    changed = {**STATE, "conv.bias": torch.tensor([1.0, 1.5])}
    found = compared(tmp_path, STATE, {"epoch": 1, "state_dict": changed})
    assert found.first is not None and ("different", "conv.bias") == (found.status, found.first.item)
    assert "beside those it holds epoch" in found.notes[0]


def test_a_weight_that_is_missing_in_a_wrapper_is_told(tmp_path: Path) -> None:
    """Nothing is left out that has a counterpart to miss."""
    fewer = {name: value for name, value in STATE.items() if name != "head.weight"}
    found = compared(tmp_path, STATE, {"state_dict": fewer})
    assert "different" == found.status and "only the first file has the array head.weight" == found.structure[0].text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (STATE, {"x": torch.ones(1), "y": torch.ones(2)}),
        # The names fit as they are, though they would with a part taken off as well.
        ({"a.w": torch.ones(1), "b.w": torch.ones(1)}, {"a.w": torch.ones(1), "b.w": torch.zeros(1)}),
        # One common end in many names is chance.
        (
            {"a.w": torch.ones(1), "p": torch.ones(1), "q": torch.ones(1)},
            {"b.w": torch.ones(1), "r": torch.ones(1), "s": torch.ones(1)},
        ),
    ],
    ids=["nothing in common", "fits already", "by chance"],
)
def test_other_files_keep_their_names(one: Any, other: Any, tmp_path: Path) -> None:
    """What is not plainly a wrapper is told as different names."""
    found = compared(tmp_path, one, other)
    assert "different" == found.status and () == found.notes
    assert {*one, *other} == {item.name for item in found.items}


def test_of_twins_the_wrapped_ones_are_taken(tmp_path: Path) -> None:
    """Weights and their running average in one file: the weights, and the other is told."""
    averaged = {name: value + 1 for name, value in STATE.items()}
    found = compared(tmp_path, STATE, {"ema": averaged, "model": STATE})
    assert "equal" == found.status and "'model.'" in found.notes[0] and "beside those it holds ema." in found.notes[0]

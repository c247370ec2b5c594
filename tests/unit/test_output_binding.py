"""Which output of the graph is which of the model: names before places, values only under invented names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from bisect_tool.outputs import OutputBinding, bind_outputs, exchanged


def bound(keys: Sequence[int | str], names: Sequence[str], holds: Mapping[str, int | str]) -> OutputBinding:
    """The binding, where ``holds`` says which output's value each graph output has."""
    return bind_outputs(keys, names, lambda place, name: holds.get(name) == keys[place])


@pytest.mark.parametrize("names", [("box", "cls"), ("cls", "box")])
@pytest.mark.parametrize("holds", [{"box": "box", "cls": "cls"}, {"box": "cls", "cls": "box"}, {}])
def test_names_decide_whatever_the_order_and_the_values(names: tuple[str, str], holds: dict[str, str]) -> None:
    """An output called ``box`` is box."""
    assert bound(["box", "cls"], names, holds) == OutputBinding(("box", "cls"), "name")


@pytest.mark.parametrize("names", [["b.y", "b.x", "a"], ["b_y", "b_x", "a"], ["b/y", "b/x", "a"], ["y", "x", "a"]])
def test_names_of_nested_keys(names: list[str]) -> None:
    """Nested keys are written in several ways, by their last part too."""
    assert bound(["b.x", "b.y", "a"], names, {}) == OutputBinding((names[1], names[0], names[2]), "name")


def test_invented_names_of_sorted_keys_are_found_by_value() -> None:
    """Exporters may sort a dictionary."""
    assert bound(["z", "a"], ["7", "8"], {"7": "a", "8": "z"}) == OutputBinding(("8", "7"), "value")


def test_a_broken_output_gets_what_is_left() -> None:
    """One of three is wrong; the other two are found."""
    found = bound(["z", "m", "a"], ["7", "8", "9"], {"7": "a", "8": "m"})
    assert found == OutputBinding(("9", "8", "7"), "value")


def test_lists_keep_their_order_inside_a_dictionary_that_does_not() -> None:
    """The keys may be sorted, the entries of a list not."""
    keys = ["z.0", "z.1", "a"]
    assert bound(keys, ["7", "8", "9"], {"7": "a", "8": "z.0", "9": "z.1"}).names == ("8", "9", "7")
    assert bound(keys, ["7", "8", "9"], {"7": "z.1", "8": "z.0", "9": "a"}) == OutputBinding(("7", "8", "9"), "place")


def test_places_of_a_tuple_are_no_names() -> None:
    """TorchScript's exporter calls values 1 and 0."""
    assert bound([0, 1], ["1", "0"], {"1": 1, "0": 0}) == OutputBinding(("1", "0"), "place")


def test_some_names_are_keys() -> None:
    """What has a name keeps it; the rest goes by place."""
    assert bound(["z", "m", "a"], ["7", "z", "8"], {"7": "a"}) == OutputBinding(("z", "7", "8"), "name")


def test_exchanged_outputs_are_told_from_broken_ones() -> None:
    """Wrong in its own place and right in another's; right ones lend their value to nobody."""
    holds = {"a": "b", "b": "a", "c": "x"}
    assert exchanged(["a", "b", "c"], lambda place, name: holds[name] == "abc"[place]) == {0: 1, 1: 0}

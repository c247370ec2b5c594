"""A function written for another opset: what means the same there, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from bisect_tool.backends.opsets import other_meaning


def _node(op_type: str, inputs: int, **attributes: Any) -> ir.Node:
    proto = helper.make_node(op_type, [f"i{place}" for place in range(inputs)], ["y"], "node", **attributes)
    return ir.serde.deserialize_node(proto)


@pytest.mark.parametrize(
    ("node", "was", "now"),
    [
        (_node("Conv", 3), 18, 20),
        (_node("Constant", 0, value=numpy_helper.from_array(np.ones(3, np.float32))), 13, 21),
        (_node("Cast", 1, to=1), 13, 21),
        (_node("Reshape", 2), 13, 20),
        (_node("Reshape", 2), 21, 18),
        (_node("ReduceMax", 1, axes=[1]), 13, 14),
        (_node("LeakyRelu", 1, alpha=0.1), 15, 20),
    ],
)
def test_most_operators_mean_the_same(node: ir.Node, was: int, now: int) -> None:
    """Only types that they take were added, or settings that keep the old meaning; both ways."""
    assert other_meaning([node], was, now) is None


@pytest.mark.parametrize(
    ("node", "was", "now"),
    [
        (_node("ReduceMean", 1, axes=[1]), 13, 20),  # its axes became an input
        (_node("Softmax", 1), 11, 13),  # over one axis, no longer over all from there on
        (_node("Split", 1), 13, 18),  # into how many parts must be said
        (_node("GroupNormalization", 3, num_groups=2), 20, 21),  # scales of channels, no longer of groups
        (_node("Gelu", 1), 20, 18),  # was not there
        (_node("NoSuchOperator", 1), 18, 20),
    ],
)
def test_others_are_named(node: ir.Node, was: int, now: int) -> None:
    """Also beside others that are the same."""
    assert node.op_type == other_meaning([_node("Conv", 3), node], was, now)


def test_operators_of_other_domains_are_not_asked() -> None:
    """Their versions are another matter."""
    assert other_meaning([ir.Node("own", "Gelu", [])], 20, 18) is None

"""``layouts``: orders of axes that converters change between."""

from __future__ import annotations

import numpy as np
import pytest

from bisect_tool.layouts import describe_order, in_layout, layout_change, layout_of


@pytest.mark.parametrize(
    ("shape", "dims", "order"),
    [
        ((1, 3, 32, 32), (1, 32, 32, 3), (0, 2, 3, 1)),
        ((1, 32, 32, 3), (1, 3, 32, 32), (0, 3, 1, 2)),
        ((1, 3, 8, 16), ("n", "h", "w", 3), (0, 2, 3, 1)),
        ((2, 20, 30), (2, 30, 20), (0, 2, 1)),
        ((5, 2, 7), (2, 5, 7), (1, 0, 2)),
        ((2, 3, 4, 5, 6), (2, 4, 5, 6, 3), (0, 2, 3, 4, 1)),
        ((4, 9), (9, 4), (1, 0)),
        ((2, 3, 5), (5, 3, 2), (2, 1, 0)),
        ((2, 3, 5), (5, "?", 2), None),
        ((2, 3, 4, 5), (3, 2, 4, 6), None),
        ((2, 3), (2, 3, 1), None),
    ],
)
def test_layout_change(shape: tuple[int, ...], dims: tuple[int | str, ...], order: tuple[int, ...] | None) -> None:
    """Usual layouts first; others only where sizes leave one order."""
    assert layout_change(shape, dims) == order


def test_among_several_orders_values_decide() -> None:
    """A square image says by its size alone as little as a time axis as long as the batch."""
    tensor = np.random.default_rng(0).normal(size=(4, 4, 4, 4))
    for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
        other = tensor[:, :, :, :3].transpose(order)
        assert layout_of(tensor[:, :, :, :3], other) == (order if other.shape != (4, 4, 4, 3) else None)
    wide = np.random.default_rng(0).normal(size=(5, 5, 7))
    assert layout_of(wide, wide.transpose(0, 2, 1)) == (0, 2, 1)
    assert layout_of(wide, wide) is None


def test_back_in_its_own_order() -> None:
    """What has another shape than it should stays as it is, and fails later."""
    tensor = np.arange(24).reshape(1, 2, 3, 4)
    back = in_layout(tensor.transpose(0, 2, 3, 1), tensor.shape, (0, 2, 3, 1))
    assert back is not None and np.array_equal(back, tensor)
    assert in_layout(tensor, tensor.shape, (0, 2, 3, 1)) is tensor
    assert in_layout(None, tensor.shape, (0, 2, 3, 1)) is None


def test_orders_have_names() -> None:
    """Those that people know."""
    assert describe_order((0, 2, 3, 1)) == "(0, 2, 3, 1), channels last"
    assert describe_order((2, 1, 0)) == "(2, 1, 0)"

"""``fingerprints``: whose weights a graph's initialisers are, by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.align.fingerprints import places_by_weights, weight_owners

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)
CONV = RANDOM.normal(size=(8, 4, 3, 3)).astype(np.float32)
LINEAR = RANDOM.normal(size=(6, 12)).astype(np.float32)
OTHER = RANDOM.normal(size=(6, 12)).astype(np.float32)
BIAS = RANDOM.normal(size=6).astype(np.float32)
MODEL = {"conv.weight": CONV, "fc.weight": LINEAR, "out.weight": OTHER, "fc.bias": BIAS, "norm.weight": np.ones(6)}


def owners(
    initializers: Mapping[str, Array], model: Mapping[str, Array] = MODEL, scales: list[Array] | None = None
) -> dict[str, tuple[str, ...]]:
    return weight_owners(
        {name: lambda a=array: a for name, array in initializers.items()},  # type: ignore[misc]
        {name: array.size for name, array in initializers.items()},
        {name: lambda a=array: a for name, array in model.items()},  # type: ignore[misc]
        {name: array.size for name, array in model.items()},
        scales,
    )


FACTORS = np.array([0.5, -1.5, 2.0, 0.1, 3.0, -0.2, 1.0, 7.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("array", "owner"),
    [
        (CONV, "conv.weight"),
        (CONV * FACTORS[:, None, None, None], "conv.weight"),
        (CONV.transpose(2, 3, 1, 0), "conv.weight"),
        (LINEAR.T.copy(), "fc.weight"),
        (LINEAR.T * FACTORS[:6], "fc.weight"),
        (LINEAR.astype(np.float16), "fc.weight"),
        (LINEAR[None], "fc.weight"),
        (BIAS, "fc.bias"),
    ],
    ids=["copied", "folded", "axes", "transposed", "scaled", "rounded", "unsqueezed", "vector"],
)
def test_what_converters_do_to_weights(array: Array, owner: str) -> None:
    """Folding, transposing and rounding leave a weight its own."""
    assert owners({"1": array}) == {"1": (owner,)}


def test_only_factors_of_the_model_may_be_folded_in() -> None:
    """A scale behind a layer, folded into it, makes the scale's value and not the layer's."""
    folded = {"1": CONV * FACTORS[:, None, None, None]}
    assert owners(folded, scales=[np.ones(3), FACTORS]) == {"1": ("conv.weight",)}
    assert owners(folded, scales=[np.ones(3), 2 * FACTORS]) == {}
    assert owners({"1": CONV}, scales=[]) == {"1": ("conv.weight",)}


def test_what_is_nobodys() -> None:
    """Another weight of the same size, one number all over, one element alone, and one element changed."""
    changed = LINEAR.copy()
    changed[2, 3] += 0.5
    strange = {
        "1": RANDOM.normal(size=(6, 12)).astype(np.float32),
        "2": np.ones(6, dtype=np.float32),
        "3": np.array([BIAS[0]]),
        "4": changed,
    }
    assert owners(strange) == {}


def test_shared_weights_have_several_owners() -> None:
    """Which of them reads it is not said."""
    assert owners({"1": LINEAR}, {"a.weight": LINEAR, "b.weight": LINEAR.copy()}) == {"1": ("a.weight", "b.weight")}


NODES = [
    ("n0", "Transpose", ("w",), ("turned",)),
    ("n1", "MatMul", ("x", "turned"), ("product",)),
    ("n2", "Add", ("product", "wrong bias"), ("sum",)),
    ("n3", "Relu", ("sum",), ("active",)),
    ("n4", "MatMul", ("active", "shared"), ("y",)),
]


def test_nodes_belong_to_the_module_whose_weights_they_read() -> None:
    """Also through a transposition; a bias that is nobody's goes with the product before it, a shared weight to nobody."""
    sizes = {"w": 72, "wrong bias": 6, "shared": 72}
    found = places_by_weights(NODES, {"w": ("fc.weight",), "shared": ("a.weight", "b.weight")}, sizes, ["y"])
    assert found == {"n1": "fc", "n2": "fc"}


def test_a_sum_with_another_modules_weight_is_that_ones() -> None:
    """And a factor that is a single number is no weight."""
    sizes = {"w": 72, "wrong bias": 6, "shared": 72}
    owned = {"w": ("fc.weight",), "wrong bias": ("norm.bias",)}
    assert places_by_weights(NODES, owned, sizes, ["y"]) == {"n1": "fc", "n2": "norm"}
    assert places_by_weights(NODES, {"w": ("fc.weight",)}, {**sizes, "wrong bias": 1}, ["y"]) == {"n1": "fc"}

"""Settings of nodes that change results, seen before the run; and those that are as PyTorch has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bisect_tool.diagnose.suspicions import Described, suspicions

NONE: frozenset[str] = frozenset()
WITH_PLACES = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "return_indices": True}
COUNTED = {"ceil_mode": False, "padding": 1, "count_include_pad": True}


def said(node: Described, opset: int = 17, kinds: frozenset[str] = NONE) -> list[tuple[str, str]]:
    return [(each.code, each.severity) for each in suspicions([node], opset, kinds)]


def described(op: str, kind: str | None = None, settings: dict[str, Any] | None = None, **attributes: Any) -> Described:
    return Described("n", op, attributes, {}, "path" if kind else None, kind, settings, rank=4)


@pytest.mark.parametrize(
    "node",
    [
        described("LeakyRelu", "LeakyReLU", {"negative_slope": 0.01}, alpha=0.02),
        described("BatchNormalization", "BatchNorm2d", {"eps": 1e-3}, epsilon=1e-5),
        described("LayerNormalization", "LayerNorm", {"eps": 1e-5}, epsilon=1e-12),
        described("Gelu", "GELU", {"approximate": "none"}, approximate="tanh"),
        described(
            "AveragePool",
            "AvgPool2d",
            COUNTED,
            count_include_pad=0,
        ),
        described("Conv", "Conv2d", {"groups": 1, "stride": (2, 2), "dilation": (1, 1)}, strides=[1, 1]),
        described("DepthToSpace", "PixelShuffle", {"upscale_factor": 2}, blocksize=2, mode="DCR"),
        described("GRU", "GRU", {}, linear_before_reset=0),
        described("Softmax", "Softmax", {"dim": 1}, axis=-1),
        described(
            "MaxPool",
            "MaxPool2d",
            WITH_PLACES,
            kernel_shape=[3, 3],
            strides=[2, 2],
        ),
        described("Resize", "Upsample", {"mode": "nearest", "align_corners": None}, mode="linear"),
    ],
)
def test_what_the_module_has_otherwise_is_a_fault(node: Described) -> None:
    assert ("BD405", "fault") in said(node)


@pytest.mark.parametrize(
    "node",
    [
        described("LeakyRelu", "LeakyReLU", {"negative_slope": 0.01}, alpha=0.009999999776482582),
        described("BatchNormalization", "BatchNorm2d", {"eps": 1e-3}, epsilon=0.0010000000474974513),
        # No padding: nothing to count.
        described("AveragePool", "AvgPool2d", {**COUNTED, "padding": 0}, count_include_pad=0),
        described("Conv", "Conv1d", {"groups": 1, "stride": (2,), "dilation": (1,)}, strides=[1, 2]),
        described("GRU", "GRU", {}, linear_before_reset=1, activations=["Sigmoid", "Tanh"]),
        described("Softmax", "Softmax", {"dim": -1}, axis=3),
        described("Resize", "Upsample", {"mode": "bilinear", "align_corners": False}, mode="linear",
                  coordinate_transformation_mode="pytorch_half_pixel"),
        # Beside the pool itself, for the places of its maxima.
        described("MaxPool", "MaxPool2d", WITH_PLACES,
                  kernel_shape=[1, 1], strides=[1, 1]),
        # Another operator in the module's place was fused, or rewritten: nothing is said.
        described("Conv", "BatchNorm2d", {"eps": 1e-3}, strides=[1, 1]),
        described("Resize", None, None, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        described("LSTM", None, None, activations=["Sigmoid", "Tanh", "Tanh"] * 2),
    ],
)  # fmt: skip
def test_what_is_as_in_pytorch_is_not_told(node: Described) -> None:
    assert [] == said(node)


@pytest.mark.parametrize(
    "node, opset",
    [
        (described("Softmax", None, None, axis=1), 12),
        (described("Resize", None, None, mode="linear", coordinate_transformation_mode="asymmetric"), 17),
        (described("Upsample", None, None, mode="linear"), 9),
        (described("LSTM", None, None, activations=["HardSigmoid", "Tanh", "Tanh"]), 17),
        (described("RNN", None, None, clip=5.0), 17),
        (described("Conv", None, None, auto_pad="SAME_LOWER"), 17),
    ],
)
def test_what_is_odd_by_itself_is_to_be_looked_at(node: Described, opset: int) -> None:
    assert [("BD405", "suspicion")] == said(node, opset)


def test_training_mode_and_chance() -> None:
    on = {1: np.asarray(0.5, np.float32), 2: np.asarray(True)}
    assert [("BD402", "fault")] == said(Described("d", "Dropout", {}, on))
    assert [] == said(Described("d", "Dropout", {}, {**on, 2: np.asarray(False)}))
    assert [] == said(Described("d", "Dropout", {}, {**on, 1: np.asarray(0.0)}))
    norm = described("BatchNormalization", "BatchNorm2d", {"eps": 1e-5}, training_mode=1)
    assert [("BD402", "fault")] == said(norm)
    # A BatchNorm of the model's own without statistics uses the batch's, and rightly so.
    assert [] == said(norm, kinds=frozenset({"BatchNorm without statistics"}))
    keeping = described(
        "BatchNormalization", "BatchNorm2d", {"eps": 1e-5, "track_running_stats": True}, training_mode=1
    )
    assert [("BD402", "fault")] == said(keeping, kinds=frozenset({"BatchNorm without statistics"}))
    nameless = described("BatchNormalization", None, None, training_mode=1)
    assert [("BD402", "suspicion")] == said(nameless)
    assert [("BD403", "suspicion")] == said(described("RandomUniformLike"))


def test_nodes_of_one_sort_share_a_line() -> None:
    nodes = [Described(f"n{i}", "Bernoulli", {}, {}) for i in range(5)]
    (found,) = suspicions(nodes, 17, NONE)
    assert "n0, n1, n2 and 2 more: Bernoulli" in found.text
    assert 5 == len(found.names)

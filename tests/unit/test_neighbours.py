"""``neighbours``: what is near, without holding each against each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.align import board, by_axes, by_output, by_scope, neighbours, surroundings
from bisect_tool.align.matches import Sides
from bisect_tool.align.matching import match_values
from bisect_tool.align.neighbours import LookAlikes, Neighbours, components
from bisect_tool.records import OnnxGraph, OnnxNode, Stage, StageRef, TorchTrace
from bisect_tool.signatures import Signature, distance, signature_of

Array = NDArray[Any]


def _signatures() -> dict[str, Signature]:
    """Tensors that are equal, near, reshaped, turned round, zero, of other sizes and kinds, and not finite."""
    random = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for number in range(12):
        x = random.standard_normal((4, 30)).astype(np.float32)
        found[f"x{number}"] = x
        for power in (2, 3, 4, 6):
            noise = random.standard_normal(x.shape).astype(np.float32)
            found[f"x{number} off by 1e-{power}"] = x + noise * np.float32(10.0**-power)
        found[f"x{number} flat"] = x.reshape(-1)
        found[f"-x{number}"] = -x
        found[f"x{number} with NaN"] = np.where(x > 1.5, np.float32(np.nan), x)
        found[f"x{number} with inf"] = np.where(x > 1.5, np.float32(np.inf), x)
    found["zeros"], found["more zeros"] = np.zeros((4, 30), np.float32), np.zeros(120, np.float32)
    found["tiny"] = found["x0"] * np.float32(1e-30)
    found["whole"] = np.arange(120)
    found["short"] = found["x0"][:3]
    found["none"] = np.zeros((0, 3), np.float32)
    return {name: signature_of(a, "integer" if a.dtype.kind == "i" else "float") for name, a in found.items()}


@pytest.mark.parametrize("limit", [1e-3, 3e-2, 0.15])
def test_nothing_near_is_missed(limit: float) -> None:
    """What is found, and how far off, is what holding each against each finds."""
    signatures = _signatures()
    there = Neighbours(signatures.items())
    for signature in signatures.values():
        each = {name: distance(signature, other) for name, other in signatures.items()}
        wanted = {name: apart for name, apart in each.items() if apart <= limit}
        assert list(wanted.items()) == list(there.near(signature, limit).items())
        assert wanted.keys() <= set(there.around(signature, limit))


def test_groups_are_connected_by_what_they_claim() -> None:
    """Values that share a name, or a chain of them, are in one group."""
    place = {name: number for number, name in enumerate("abcde")}
    shared = LookAlikes.of("ba", place)
    candidates = {1: shared, 2: shared, 3: LookAlikes.of("bc", place), 4: LookAlikes.of("e", place)}
    found = [(sorted(values), sorted(names)) for values, names in components(candidates)]
    assert [([1, 2, 3], ["a", "b", "c"]), ([4], ["e"])] == found
    assert ("a", "b") == shared.names


def _node(number: int, scopes: tuple[str, ...]) -> OnnxNode:
    return OnnxNode(f"node{number}", "Clip", "", (f"n{number - 1}",), (f"n{number}",), scopes, None, None, None)


def _work(count: int, numbers: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[int, str]]:
    """How often two signatures are held against each other to pair a chain of modules with its graph, and the pairs."""
    calls = 0

    def counted(one: Signature, other: Signature) -> float:
        nonlocal calls
        calls += 1
        return distance(one, other)

    for module in (board, by_axes, by_output, by_scope, neighbours, surroundings):
        monkeypatch.setattr(module, "distance", counted)
    random = np.random.default_rng(0)
    torch_side, onnx_side, stages, nodes = {}, {}, [], []
    for number in range(1, count + 1):
        ours = numbers["ours"](number, random)
        torch_side[number] = signature_of(ours, "float")
        onnx_side[f"n{number}"] = signature_of(numbers["theirs"](number, ours, random), "float")
        ref = StageRef(f"layers.{number}", 0, 0)
        inputs = (number - 1,)
        stages.append(Stage(ref, "leaf", "Hardtanh", None, ours.shape, "float32", number, inputs, number, None))
        scopes = ("Net::", f"layers.{number}") if numbers.get("named", True) else ()
        nodes.append(_node(number, scopes))
    modules = {"": "", "layers": "layers", **{s.ref.stage: s.ref.stage for s in stages}}
    trace = TorchTrace(tuple(stages), {n: (n - 1,) for n in range(1, count + 1)}, ((0, 0),), ((0, count),), modules)
    graph = OnnxGraph(("n0",), (f"n{count}",), tuple(nodes), frozenset(), {}, {}, "torchscript")
    matches = match_values(Sides(trace, graph, torch_side, onnx_side, lambda *_: {}))
    return calls, {value: match.onnx for value, match in matches.items()}


_ONE = np.linspace(-1, 1, 32, dtype=np.float32)
CHAINS: dict[str, dict[str, Any]] = {
    "saturated": {"ours": lambda n, r: _ONE, "theirs": lambda n, ours, r: ours},
    "saturated, without names": {"ours": lambda n, r: _ONE, "theirs": lambda n, ours, r: ours, "named": False},
    "dead": {"ours": lambda n, r: np.zeros(32, np.float32), "theirs": lambda n, ours, r: ours},
    "NaN": {"ours": lambda n, r: np.full(32, np.nan, np.float32), "theirs": lambda n, ours, r: ours},
    "broken": {
        "ours": lambda n, r: r.standard_normal(32).astype(np.float32),
        "theirs": lambda n, ours, r: ours if n < 3 else r.standard_normal(32).astype(np.float32),
    },
    "of one norm": {
        "ours": lambda n, r: np.sign(r.standard_normal(1024)).astype(np.float32),
        "theirs": lambda n, ours, r: ours,
    },
}


@pytest.mark.parametrize("kind", CHAINS)
def test_long_chains_take_work_in_proportion(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many stages are twice the work, also where all values are equal, or none fits."""
    short, _ = _work(150, CHAINS[kind], monkeypatch)
    long, pairs = _work(600, CHAINS[kind], monkeypatch)
    # All against all would be 150 and 600 for each stage.
    assert short <= 8 * 150
    assert long <= 8 * 600
    if kind != "broken":
        assert {n: f"n{n}" for n in range(1, 601)} == pairs

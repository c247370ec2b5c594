"""``align``: which ONNX value stands for which stage, on hand-built runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bisect_tool.align.families import family
from bisect_tool.align.matches import Hints, Match, Sides
from bisect_tool.align.matching import match_values
from bisect_tool.align.scopes import resolve_scope
from bisect_tool.align.summary import summarize
from bisect_tool.layouts import axis_order, same_data_order
from bisect_tool.metrics import kind_of
from bisect_tool.records import OnnxGraph, OnnxNode, OutputKey, Stage, StageRef, TorchTrace
from bisect_tool.signatures import Signature, permuted_signatures, signature_of, split_signatures

Array = NDArray[Any]


def noise(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape or (4, 50)).astype(np.float32)


def stage(
    path: str,
    value: int,
    inputs: Sequence[int] = (),
    *,
    type: str = "Linear",
    call: int = 0,
    level: Any = "leaf",
    shape: tuple[int, ...] = (4, 50),
    dtype: str = "float32",
    alias_of: str | None = None,
) -> Stage:
    """A stage whose value is complete at the moment of its number."""
    alias = StageRef(alias_of, 0, 0) if alias_of is not None else None
    return Stage(StageRef(path, call, 0), level, type, None, shape, dtype, value, tuple(inputs), value, alias)


def node(
    op: str,
    inputs: Sequence[str],
    output: str,
    scope: Sequence[str] = (),
    *,
    call: str | None = None,
    target: str | None = None,
) -> OnnxNode:
    """A node with one output, named after it; TorchScript's way of naming unless ``call`` is given."""
    scopes = ("", *scope) if scope or call else ()
    return OnnxNode(f"n_{output}", op, "", tuple(inputs), (output,), scopes, call, target, None)


class Case:
    """Both sides of a run: stages and nodes with their tensors."""

    def __init__(self, stages: Sequence[Stage], nodes: Sequence[OnnxNode], **options: Any):
        modules = {s.ref.stage: s.ref.stage for s in stages if "#" not in s.ref.stage}
        modules.update(options.get("modules", {}))
        outputs: Sequence[tuple[OutputKey, int]] = options.get("outputs", ())
        self.trace = TorchTrace(tuple(stages), {s.value: s.inputs for s in stages}, ((0, 0),), tuple(outputs), modules)
        graph_outputs = tuple(options.get("graph_outputs", ()))
        self.graph = OnnxGraph(("x",), graph_outputs, tuple(nodes), frozenset({"w"}), {}, {}, "torchscript")
        self.torch: dict[int, Array] = {}
        self.onnx: dict[str, Array] = {}

    def match(
        self,
        known: Mapping[int, Match] | None = None,
        *,
        forced: bool = False,
        second: tuple[Mapping[int, Array], Mapping[str, Array]] | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> dict[int, Match]:
        def permuted(value: int, shape: tuple[int, ...] | None) -> Mapping[tuple[int, ...], Signature]:
            array, kind = self.torch[value], kind_of(self.torch[value].dtype)
            return permuted_signatures(array, kind) if shape is None else split_signatures(array, kind, shape)

        self.signatures = {v: signature_of(a, kind_of(a.dtype)) for v, a in self.torch.items()}
        onnx = {n: signature_of(a, kind_of(a.dtype)) for n, a in self.onnx.items()}
        fed = (known or {}) if forced else None
        draw = None
        if second is not None:
            first, other = second
            draw = (
                {v: signature_of(a, "float") for v, a in first.items()},
                {n: signature_of(a, "float") for n, a in other.items()},
            )
        sides = Sides(self.trace, self.graph, self.signatures, onnx, permuted)
        return match_values(sides, Hints(known or {}, fed=fed, second=draw, modules=weights or {}))


def names(matches: Mapping[int, Match]) -> dict[int, str]:
    return {value: match.onnx for value, match in matches.items()}


# -- scopes -----------------------------------------------------------------------------------------------------------

MODULES = {p: p for p in ("features", "features.1", "features.1.conv", "features.1.conv.0", "fc", "act", "act_1")}


@pytest.mark.parametrize(
    ("components", "path"),
    [
        ((), ""),
        (("fc",), "fc"),
        (("features", "features.1"), "features.1"),
        (("features", "features.1", "conv", "conv.0"), "features.1.conv.0"),
        (("fc_1",), "fc"),
        (("fc_12",), "fc"),
        (("features", "features.1_3", "conv", "conv.0_1"), "features.1.conv.0"),
        (("act_1",), "act_1"),
        (("act_1_1",), "act_1"),
        (("act_2",), "act"),
        (("unknown",), None),
        (("fc", "unknown"), None),
        (("fc_x",), None),
        (("features", "conv"), None),
    ],
)
def test_scopes_of_torchscript_names(components: tuple[str, ...], path: str | None) -> None:
    """Repeated names of a Sequential, suffixes of later calls, and names that only look like such a suffix."""
    assert resolve_scope(components, MODULES) == path


def test_a_shared_module_s_scope_is_its_first_path() -> None:
    """Whatever name the exporter took."""
    assert resolve_scope(("head",), {"body": "body", "head": "body"}) == "body"


# -- shapes and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((2, 4, 8, 8), (8, 64), True),
        ((8, 64), (2, 4, 8, 8), True),
        ((2, 24, 64), (24, 2, 64), False),
        ((6,), (2, 3), True),
        ((2, 3), (3, 2), False),
        ((1, 3, 1), (3,), True),
        ((), (1, 1), True),
        ((2, 3), (2, 4), False),
        ((1, 5, 7), (5, 1, 7), True),
        ((2, 6, 5), (4, 3, 5), False),
    ],
)
def test_merging_axes_keeps_the_order_of_data(first: tuple[int, ...], second: tuple[int, ...], same: bool) -> None:
    """Axes of length 1 do not count; exchanging two others is another order."""
    assert same_data_order(first, second) is same


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        ((2, 3), (3, 2), (1, 0)),
        ((1, 3, 4), (4, 1, 3), (0, 2, 1)),
        ((2, 3, 4), (2, 3, 4), (0, 1, 2)),
        ((3, 3), (3, 3), None),
        ((2, 3), (2, 4), None),
        ((2, 3), (6,), None),
    ],
)
def test_the_order_of_axes_where_there_is_only_one(
    first: tuple[int, ...], second: tuple[int, ...], order: tuple[int, ...] | None
) -> None:
    """Equal lengths leave several, and then there is no answer."""
    assert axis_order(first, second) == order


@pytest.mark.parametrize(
    ("aten", "onnx"),
    [
        ("addmm", "MatMul"),
        ("_softmax", "Softmax"),
        ("convolution", "Conv"),
        ("native_layer_norm", "LayerNormalization"),
        ("cat", "Concat"),
        ("amax", "ReduceMax"),
        ("relu", "Relu"),
        ("_to_copy", "Cast"),
        ("hardtanh", "Clip"),
        ("rsub", "Sub"),
        ("scatter_add", "ScatterElements"),
    ],
)
def test_operations_have_one_family_under_both_names(aten: str, onnx: str) -> None:
    """aten's name and ONNX's."""
    assert family(aten) == family(onnx)


def test_different_operations_have_different_families() -> None:
    """Softmax is no LogSoftmax, a mean no sum."""
    assert len({family(n) for n in ("softmax", "log_softmax", "mean", "sum", "relu", "conv2d", "max_pool2d")}) == 7


# -- by value ---------------------------------------------------------------------------------------------------------


def chain(**options: Any) -> Case:
    """x → a → b → c on both sides, each node under the scope of its module."""
    case = Case(
        [stage("a", 1, [0]), stage("b", 2, [1]), stage("c", 3, [2])],
        [
            node("Gemm", ["x", "w"], "va", ["a"]),
            node("Gemm", ["va", "w"], "vb", ["b"]),
            node("Gemm", ["vb", "w"], "vc", ["c"]),
        ],
        outputs=[(0, 3)],
        graph_outputs=["vc"],
        **options,
    )
    for value, name in ((1, "va"), (2, "vb"), (3, "vc")):
        case.torch[value] = case.onnx[name] = noise(value)
    return case


def test_equal_values_are_paired() -> None:
    """Confirmed, with the evidence named."""
    matches = chain().match()
    assert names(matches) == {1: "va", 2: "vb", 3: "vc"}
    assert all(match.confirmed for match in matches.values())
    assert matches[1].evidence[0] == "value"
    assert matches[3].evidence == ("graph output", "value")


def test_rounding_does_not_part_a_pair() -> None:
    """Errors as exports make them stay under the limit."""
    case = chain()
    case.onnx["vb"] = case.torch[2] * (1 + 1e-5 * noise(9))
    assert case.match()[2].confirmed


def test_values_beat_a_wrong_scope() -> None:
    """Nodes that carry each other's scopes are paired by what they compute."""
    case = chain()
    nodes = case.graph.nodes
    swapped = Case(
        case.trace.stages,
        [node("Gemm", ["x"], "va", ["b"]), node("Gemm", ["va"], "vb", ["a"]), nodes[2]],
        outputs=[(0, 3)],
        graph_outputs=["vc"],
    )
    swapped.torch, swapped.onnx = case.torch, case.onnx
    matches = swapped.match()
    assert names(matches) == {1: "va", 2: "vb", 3: "vc"}
    assert "scope" not in matches[1].evidence


def test_reshaped_values_are_paired() -> None:
    """A linear layer over tokens that the exporter writes as a matrix product."""
    case = chain()
    case.onnx["vb"] = case.torch[2].reshape(2, 2, 50)
    assert names(case.match())[2] == "vb"


def twins(first_scope: Sequence[str], second_scope: Sequence[str]) -> Case:
    """Two branches that compute the same numbers."""
    case = Case(
        [stage("a", 1, [0]), stage("b", 2, [0])],
        [node("Gemm", ["x"], "first", first_scope), node("Gemm", ["x"], "second", second_scope)],
    )
    case.torch = {1: noise(1), 2: noise(1)}
    case.onnx = {"first": noise(1), "second": noise(1)}
    return case


def test_equal_twins_are_told_apart_by_scope() -> None:
    """Also where the graph has them in the other order."""
    matches = twins(["b"], ["a"]).match()
    assert names(matches) == {1: "second", 2: "first"}
    assert matches[1].evidence == ("value", "scope")


def test_equal_twins_without_scopes_go_by_order() -> None:
    """Both runs are topological orders of one computation; that nothing else tells them apart is said."""
    matches = twins([], []).match()
    assert names(matches) == {1: "first", 2: "second"}
    assert matches[1].evidence == ("value", "order", "ambiguous")
    assert matches[2].evidence == ("value", "order", "ambiguous")


def test_another_input_tells_twins_apart() -> None:
    """What is equal on the sample need not be on the next."""
    case = twins([], [])
    case.graph = replace(case.graph, nodes=tuple(replace(n, inputs=("x", f"w_{n.name}")) for n in case.graph.nodes))
    matches = case.match(second=({1: noise(7), 2: noise(8)}, {"first": noise(8), "second": noise(7)}))
    assert names(matches) == {1: "second", 2: "first"}
    assert matches[1].evidence == ("value", "second input")


def test_another_input_behind_an_error_tells_nothing() -> None:
    """Where no look-alike has the right value on it, all remain."""
    matches = twins([], []).match(second=({1: noise(7), 2: noise(8)}, {"first": noise(5), "second": noise(6)}))
    assert names(matches) == {1: "first", 2: "second"}
    assert "second input" not in matches[1].evidence


def test_a_chain_of_look_alikes_goes_by_order() -> None:
    """A clamp that does nothing comes behind what it clamps, on both sides: that leaves no doubt."""
    case = Case(
        [stage("/sum#0", 1, [0], type="sum"), stage("/clamp#0", 2, [1], type="clamp")],
        [node("ReduceSum", ["x"], "sum"), node("Reshape", ["sum"], "flat"), node("Clip", ["flat"], "clip")],
    )
    case.torch = {1: noise(1), 2: noise(1)}
    case.onnx = {"sum": noise(1), "flat": noise(1), "clip": noise(1)}
    matches = case.match()
    assert names(matches) == {1: "sum", 2: "clip"}
    assert matches[1].evidence == matches[2].evidence == ("value", "order")


def test_a_value_is_not_followed_into_another_scope() -> None:
    """A converter's reshape hands a layer's value on; the sum behind it that lost an operand does not, and is the sum's."""
    case = Case(
        [stage("proj", 1, [0]), stage("/add#0", 2, [1, 0], type="add")],
        [
            node("Gemm", ["x"], "made"),
            node("Reshape", ["made"], "flat"),
            node("Identity", ["flat"], "sum", ["outer"]),
            node("Relu", ["sum"], "end"),
        ],
        modules={"outer": "outer"},
    )
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"made": noise(1), "flat": noise(1), "sum": noise(1), "end": noise(3)}
    assert names(case.match())[1] == "flat"


def test_nodes_without_a_name_belong_to_the_module_whose_weights_they_read() -> None:
    """A broken layer has its pair by them, and what is behind it is looked for in a forced run."""
    case = Case(
        [stage("a", 1, [0]), stage("b", 2, [1])],
        [
            node("Gemm", ["x"], "first"),
            node("Relu", ["first"], "between"),
            node("Gemm", ["between"], "second"),
            node("Relu", ["second"], "end"),
        ],
    )
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"first": noise(3), "between": noise(4), "second": noise(5), "end": noise(6)}
    assert case.match() == {}
    matches = case.match(weights={"n_first": "a", "n_second": "b"})
    assert names(matches) == {1: "first", 2: "second"}
    assert [("weights",), ("weights",)] == [matches[value].evidence for value in (1, 2)]
    assert not any(match.confirmed for match in matches.values())


def test_one_scope_is_enough_for_both_twins() -> None:
    """The second goes to what is left."""
    assert names(twins(["b"], []).match()) == {1: "second", 2: "first"}


def test_equal_calls_of_one_module_go_by_scope_and_order() -> None:
    """The second call's nodes are named ``a_1``."""
    case = Case(
        [stage("a", 1, [0]), stage("a", 2, [1], call=1)],
        [node("Relu", ["x"], "first", ["a"]), node("Relu", ["first"], "second", ["a_1"])],
    )
    case.torch = {1: noise(1), 2: noise(1)}
    case.onnx = {"first": noise(1), "second": noise(1)}
    matches = case.match()
    assert names(matches) == {1: "first", 2: "second"}
    assert matches[1].evidence == ("value", "scope", "order")


def steps(wrong: float) -> Case:
    """Three steps of a loop whose values are alike to 1e-4, each an operation and what hands it on in another shape.

    ``wrong``: error of the second and third step, by which each is nearest to another one of PyTorch's.
    """
    stages, nodes = [], []
    for call in range(3):
        stages += [stage("m/_softmax#0", 2 * call + 1, [0], type="_softmax", call=call)]
        stages += [stage("m", 2 * call + 2, [2 * call + 1], type="Step", call=call, shape=(4, 1, 50))]
        scope = [f"m_{call}" if call else "m"]
        nodes += [node("Softmax", ["x"], f"s{call}", scope), node("Unsqueeze", [f"s{call}"], f"u{call}", scope)]
    case = Case(stages, nodes)
    values = [noise(0) + np.float32(1e-4) * noise(call) for call in (1, 2, 3)]
    for call, value in enumerate(values):
        given = value if call == 0 else value + np.float32(wrong) * (values[3 - call] - value)
        case.torch.update({2 * call + 1: value, 2 * call + 2: value[:, None]})
        case.onnx.update({f"s{call}": given, f"u{call}": given[:, None]})
    return case


RIGHT_STEPS = {1: "s0", 2: "u0", 3: "s1", 4: "u1", 5: "s2", 6: "u2"}


def test_a_wrong_step_of_a_loop_is_not_taken_for_the_one_that_it_resembles() -> None:
    """Nor is what hands it on."""
    found = {value: name for value, name in names(steps(0.9).match()).items() if value in (1, 3, 5)}
    assert found == {1: "s0", 3: "s1", 5: "s2"}
    assert not {name for value, name in names(steps(0.9).match()).items() if RIGHT_STEPS[value][1] != name[1]}


def test_steps_of_a_loop_that_an_optimiser_put_in_another_order_go_by_value() -> None:
    """They agree to rounding."""
    assert names(steps(1).match()) == {1: "s0", 2: "u0", 3: "s2", 4: "u2", 5: "s1", 6: "u1"}


def test_dead_values_are_told_apart_by_scope() -> None:
    """ReLUs that let nothing through: all zeros look alike."""
    case = twins(["b"], ["a"])
    case.torch = dict.fromkeys(case.torch, np.zeros((4, 50), np.float32))
    case.onnx = dict.fromkeys(case.onnx, np.zeros((4, 50), np.float32))
    assert names(case.match()) == {1: "second", 2: "first"}


def test_functional_stages_have_their_module_s_scope() -> None:
    """Of two equal values the one made by the same operation in the same scope is taken."""
    case = Case(
        [stage("block/add#0", 1, [0], type="add"), stage("other/add#0", 2, [0], type="add")],
        [node("Add", ["x"], "first", ["other"]), node("Add", ["x"], "second", ["block"])],
        modules={"block": "block", "other": "other"},
    )
    case.torch = {1: noise(1), 2: noise(1)}
    case.onnx = {"first": noise(1), "second": noise(1)}
    assert names(case.match()) == {1: "second", 2: "first"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_limit_goes_by_the_stage_s_dtype(dtype: str) -> None:
    """1 % apart is the same value in half precision, and not in float32."""
    case = Case([stage("a", 1, [0], dtype=dtype)], [node("Gemm", ["x"], "va")])
    case.torch[1] = noise(1).astype(dtype)
    case.onnx["va"] = (noise(1) * (1 + 1e-2 * noise(2))).astype(dtype)
    assert (1 in case.match()) is (dtype == "float16")


def test_other_kinds_are_never_paired() -> None:
    """Equal numbers, one side integers: no pair, by value or by scope."""
    case = Case([stage("a", 1, [0])], [node("Cast", ["x"], "va", ["a"])])
    case.torch[1] = np.arange(200, dtype=np.float32).reshape(4, 50)
    case.onnx["va"] = case.torch[1].astype(np.int64)
    assert case.match() == {}


def test_permuted_values_are_paired_with_their_order() -> None:
    """A recurrence that the exporter runs with time first."""
    case = Case([stage("lstm", 1, [0], type="LSTM", shape=(3, 7, 5))], [node("LSTM", ["x"], "y", ["lstm"])])
    case.torch[1] = noise(1, 3, 7, 5)
    case.onnx["y"] = np.ascontiguousarray(case.torch[1].transpose(1, 0, 2))
    match = case.match()[1]
    assert (match.onnx, match.permutation, match.confirmed) == ("y", (1, 0, 2), True)
    assert "permuted" in match.evidence and "scope" in match.evidence


# -- broken stages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["other", "nan"])
def test_a_broken_stage_is_paired_by_scope_and_unconfirmed(wrong: str) -> None:
    """Its neighbours, which still agree, are confirmed."""
    case = chain()
    case.onnx["vb"] = noise(99) if wrong == "other" else np.full((4, 50), np.nan, np.float32)
    matches = case.match()
    assert names(matches) == {1: "va", 2: "vb", 3: "vc"}
    assert (matches[2].evidence, matches[2].confirmed) == (("scope",), False)
    assert matches[1].confirmed and matches[3].confirmed


def test_everything_behind_a_broken_stage_is_unconfirmed() -> None:
    """Scopes and the graph's output still pair it."""
    case = chain()
    case.onnx["vb"], case.onnx["vc"] = noise(98), noise(99)
    matches = case.match()
    assert names(matches) == {1: "va", 2: "vb", 3: "vc"}
    assert [matches[v].confirmed for v in (1, 2, 3)] == [True, False, False]
    assert matches[3].evidence == ("graph output",)


def test_without_scopes_a_broken_stage_has_no_pair() -> None:
    """Nothing is guessed."""
    case = Case([stage("a", 1, [0])], [node("Gemm", ["x"], "va")])
    case.torch[1], case.onnx["va"] = noise(1), noise(2)
    assert case.match() == {}


def test_a_forced_run_confirms_what_the_chained_one_could_not() -> None:
    """Known pairs stay as they are; new ones say what they rest on."""
    case = chain()
    known = {1: Match(1, "va", ("value", "scope"), True)}
    matches = case.match(known, forced=True)
    assert matches[1] is known[1]
    assert matches[2].evidence[0] == "forced value"
    assert matches[2].confirmed


def test_a_known_value_is_not_given_to_another_stage() -> None:
    """However well it fits."""
    case = twins([], [])
    matches = case.match({2: Match(2, "first", ("value",), True)})
    assert names(matches) == {2: "first", 1: "second"}


def test_broken_calls_of_one_module_go_by_order() -> None:
    """As many values in the scope as calls: first to first."""
    case = Case(
        [stage("a", 1, [0]), stage("a", 2, [1], call=1)],
        [
            node("Gemm", ["x"], "first", ["a"]),
            node("Relu", ["first"], "between"),
            node("Gemm", ["between"], "second", ["a_1"]),
        ],
        graph_outputs=["second"],
    )
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"first": noise(3), "between": noise(5), "second": noise(4)}
    matches = case.match()
    assert names(matches) == {1: "first", 2: "second"}
    assert not matches[1].confirmed and not matches[2].confirmed


def test_a_broken_functional_stage_is_paired_by_its_operation() -> None:
    """The only value of its family in the scope; another operation there is not taken."""
    case = Case(
        [stage("block/add#0", 1, [0], type="add")],
        [
            node("Add", ["x"], "sum", ["block"], call="add_3", target="add"),
            node("Mul", ["sum"], "product", ["block"], call="mul", target="mul"),
        ],
        modules={"block": "block"},
    )
    case.torch[1] = noise(1)
    case.onnx = {"sum": noise(2), "product": noise(3)}
    matches = case.match()
    assert names(matches) == {1: "sum"}
    assert not matches[1].confirmed


def test_another_size_is_not_taken_by_scope() -> None:
    """A value of the right scope and the wrong size is no pair."""
    case = Case([stage("a", 1, [0])], [node("Gemm", ["x"], "va", ["a"]), node("Relu", ["va"], "end")])
    case.torch[1], case.onnx["va"] = noise(1), noise(2, 4, 49)
    assert case.match() == {}


# -- nodes that exporters add and remove ------------------------------------------------------------------------------


def casts(scope: Sequence[str] = ()) -> Case:
    """a → Cast to half → Cast back → b: the pair of casts was put in after the export."""
    case = Case(
        [stage("a", 1, [0]), stage("b", 2, [1])],
        [
            node("Gemm", ["x"], "va", ["a"]),
            node("Cast", ["va"], "half", scope),
            node("Cast", ["half"], "back", scope),
            node("Gemm", ["back"], "vb", ["b"]),
        ],
        outputs=[(0, 2)],
        graph_outputs=["vb"],
    )
    half = noise(1).astype(np.float16)
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"va": noise(1), "half": half, "back": half.astype(np.float32), "vb": noise(2)}
    return case


def test_a_value_is_followed_through_untagged_nodes() -> None:
    """The stage's value is what the next stage reads, so that the casts' error counts as the stage's."""
    match = casts().match()[1]
    assert match.onnx == "back"
    assert match.evidence[-1] == "handed on"
    assert match.confirmed


def test_a_value_is_not_followed_into_another_stage() -> None:
    """Casts that carry a scope belong to it."""
    assert casts(["b"]).match()[1].onnx == "va"


def test_a_value_with_two_readers_is_not_followed() -> None:
    """Which of the two is it?"""
    case = casts()
    more = Case(case.trace.stages, [*case.graph.nodes, node("Relu", ["va"], "side", ["b"])], graph_outputs=["vb"])
    more.torch, more.onnx = case.torch, case.onnx
    assert more.match()[1].onnx == "va"


def test_a_broken_value_is_followed_too() -> None:
    """By its own signature."""
    case = casts()
    half = noise(7).astype(np.float16)
    case.onnx.update(va=noise(7), half=half, back=half.astype(np.float32))
    match = case.match()[1]
    assert (match.onnx, match.confirmed) == ("back", False)


def folded() -> Case:
    """conv → bn → relu, where the exporter folded the norm into the convolution."""
    case = Case(
        [
            stage("conv", 1, [0], type="Conv2d"),
            stage("bn", 2, [1], type="BatchNorm2d"),
            stage("act", 3, [2], type="ReLU"),
        ],
        [node("Conv", ["x", "w"], "vc", ["conv"]), node("Relu", ["vc"], "va", ["act"])],
        outputs=[(0, 3)],
        graph_outputs=["va"],
    )
    case.torch = {1: noise(1), 2: noise(2), 3: np.maximum(noise(2), 0)}
    case.onnx = {"vc": noise(2), "va": np.maximum(noise(2), 0)}
    return case


def test_a_folded_norm_has_the_convolution_s_value() -> None:
    """The convolution has none, and does not count against coverage."""
    case = folded()
    matches = case.match()
    assert names(matches) == {2: "vc", 3: "va"}
    alignment = summarize(case.trace, case.graph, matches, case.signatures, {}, lambda s: s.level == "leaf")
    assert (alignment.stages, alignment.aligned, alignment.coverage) == (3, 2, 1.0)
    (left,) = alignment.unaligned
    assert (left.ref.stage, left.in_graph) == ("conv", False)
    assert "folded" in left.reason


def test_a_broken_folded_convolution_is_the_norm_s() -> None:
    """By scope: the convolution's node holds the norm's value, not the convolution's."""
    case = folded()
    case.onnx["vc"] = noise(50)
    matches = case.match()
    assert names(matches) == {2: "vc", 3: "va"}
    assert not matches[2].confirmed


# -- outputs ----------------------------------------------------------------------------------------------------------


def two_outputs(keys: Sequence[OutputKey], graph_outputs: Sequence[str]) -> Case:
    case = Case(
        [stage("a", 1, [0]), stage("b", 2, [0])],
        [node("Gemm", ["x"], "scores"), node("Gemm", ["x"], "boxes")],
        outputs=[(keys[0], 1), (keys[1], 2)],
        graph_outputs=graph_outputs,
    )
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"scores": noise(1), "boxes": noise(2)}
    return case


@pytest.mark.parametrize("graph_outputs", [("scores", "boxes"), ("boxes", "scores")])
def test_outputs_are_paired_by_value_in_any_order(graph_outputs: tuple[str, str]) -> None:
    """Exporters may sort the keys of a dictionary."""
    matches = two_outputs(["scores", "boxes"], graph_outputs).match()
    assert names(matches) == {1: "scores", 2: "boxes"}
    assert {m.evidence for m in matches.values()} == {("graph output", "value")}


def test_broken_outputs_are_paired_in_order() -> None:
    """Where no value helps, place does; unconfirmed."""
    case = two_outputs([0, 1], ["scores", "boxes"])
    case.onnx = {"scores": noise(8), "boxes": noise(9)}
    matches = case.match()
    assert names(matches) == {1: "scores", 2: "boxes"}
    assert {m.evidence for m in matches.values()} == {("graph output",)}


def test_one_broken_output_among_swapped_ones() -> None:
    """The good one is found by value, the broken one gets what is left."""
    case = two_outputs(["scores", "boxes"], ["boxes", "scores"])
    case.onnx["boxes"] = noise(9)
    assert names(case.match()) == {1: "scores", 2: "boxes"}


def test_outputs_of_another_number_go_by_name() -> None:
    """The graph has one output; the model returns two."""
    case = two_outputs(["scores", "boxes"], ["boxes"])
    case.onnx = {"scores": noise(8), "boxes": noise(9)}
    assert names(case.match()) == {2: "boxes"}


def test_an_output_of_another_size_is_not_paired() -> None:
    """Place alone is no evidence against the shape."""
    case = two_outputs([0, 1], ["scores", "boxes"])
    case.onnx = {"scores": noise(8, 4, 49), "boxes": noise(2)}
    assert names(case.match()) == {2: "boxes"}


# -- the public view --------------------------------------------------------------------------------------------------


def test_the_summary_lists_pairs_aliases_and_left_overs() -> None:
    """Pairs of all stages, left-overs of those that count; values that nobody claims are listed too."""
    case = Case(
        [
            stage("idle", 0, [0], type="Identity", alias_of="(input)"),
            stage("a", 1, [0]),
            stage("drop", 1, [1], type="Dropout", alias_of="a"),
            stage("lost", 2, [1]),
        ],
        [node("Gemm", ["x"], "va", ["a"]), node("Gemm", ["va"], "extra")],
    )
    case.torch = {1: noise(1), 2: noise(2)}
    case.onnx = {"va": noise(1), "extra": noise(5)}
    matches = case.match()
    alignment = summarize(
        case.trace, case.graph, matches, case.signatures, {}, lambda s: s.type in ("Linear", "Identity")
    )
    assert {pair.ref: pair.onnx_value for pair in alignment.pairs} == {
        StageRef("a", 0, 0): "va",
        StageRef("drop", 0, 0): "va",
    }
    assert alignment.pairs[1].evidence[-1] == "same tensor as a"
    assert [(left.ref.stage, left.in_graph) for left in alignment.unaligned] == [("idle", False), ("lost", False)]
    assert "input" in alignment.unaligned[0].reason
    assert alignment.unmatched_onnx == ("extra",)
    assert (alignment.stages, alignment.aligned, alignment.coverage) == (3, 1, 1.0)


def test_a_stage_with_a_likely_value_counts_against_coverage() -> None:
    """Two values of its scope would do, and none fits by value."""
    case = Case(
        [stage("a", 1, [0])],
        [
            node("Gemm", ["x"], "v1", ["a"]),
            node("Gemm", ["x"], "v2", ["a"]),
            node("Add", ["v1", "v2"], "end", ["elsewhere"]),
        ],
        graph_outputs=["end"],
    )
    case.torch[1] = noise(1)
    case.onnx = {"v1": noise(2), "v2": noise(3), "end": noise(4)}
    case.match()
    alignment = summarize(case.trace, case.graph, {}, case.signatures, {}, lambda s: True)
    assert alignment.coverage == 0.0
    assert alignment.unaligned[0].in_graph
    assert "v1, v2" in alignment.unaligned[0].reason


def test_nothing_to_count_has_no_coverage() -> None:
    """``None``, never 100 %."""
    case = chain()
    case.match()
    assert summarize(case.trace, case.graph, {}, case.signatures, {}, lambda s: False).coverage is None


# -- axes in another order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5, 6), (50, 40, 30)])
def test_a_tensor_of_any_size_is_found_in_another_order(shape: tuple[int, ...]) -> None:
    """Of a large one only a sample is looked at, and another order has another sample."""
    case = Case([stage("a", 1, [0], shape=shape)], [node("A", ["x"], "other"), node("B", ["other"], "turned")])
    array = noise(1, *shape)
    case.torch = {1: array}
    case.onnx = {"other": noise(2, *shape), "turned": np.ascontiguousarray(array.transpose(1, 0, 2))}
    assert case.match() == {1: Match(1, "turned", ("value", "permuted"), True, (1, 0, 2))}


def test_a_projection_whose_heads_the_graph_makes_at_once() -> None:
    """Nowhere does the graph have the heads side by side, as PyTorch has them."""
    case = Case([stage("q", 1, [0], shape=(2, 60, 24))], [node("A", ["x"], "stacked"), node("B", ["stacked"], "heads")])
    array = noise(1, 2, 60, 24)
    heads = np.ascontiguousarray(array.reshape(2, 60, 3, 8).transpose(0, 2, 1, 3))
    case.torch = {1: array}
    case.onnx = {"stacked": np.stack([heads, noise(2, 2, 3, 60, 8)]), "heads": heads}
    assert case.match() == {1: Match(1, "heads", ("value", "permuted", "axes split"), True, (0, 2, 1, 3))}


def test_operations_of_one_kind_that_an_optimiser_put_in_another_order() -> None:
    """Behind an error of a per cent no value fits, and still tells which of two products is which."""
    stages = [stage(f"m/mul#{n}", n + 1, [0], type="mul") for n in range(3)]
    nodes = [node("Mul", ["x"], name, ["m"]) for name in ("third", "first", "second")]
    case = Case(stages, nodes, modules={"m": "m"})
    case.torch = {n + 1: noise(n) for n in range(3)}
    case.onnx = {name: noise(n) * np.float32(1.01) for n, name in enumerate(("first", "second", "third"))}
    found = case.match()
    assert names(found) == {1: "first", 2: "second", 3: "third"}
    assert not any(match.confirmed for match in found.values())

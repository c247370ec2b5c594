"""``placing`` and ``backends.fresh``: pairs by structure, where values and names leave a stage open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from anonymous import without_names
from onnx import ModelProto
from test_align import node, stage
from test_counterparts import BLOCK, outlined, with_step
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.align.counterparts import likeness
from bisect_tool.align.matches import AMBIGUOUS, Match
from bisect_tool.align.placing import contradicted, is_certain, is_open, placed_by_structure
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.backends.fresh import most_alike, outline
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.records import OnnxGraph, Report, TorchTrace

# -- pairs ------------------------------------------------------------------------------------------------------------


def sure(value: int, name: str, *evidence: str) -> Match:
    return Match(value, name, evidence or ("value",), True)


VALUES = dict(zip("xabcdey", range(7), strict=True))


def placed(given: list[tuple[str, ...]], matches: Mapping[int, Match], **agreeing: str) -> dict[str, Match]:
    """What structure says of the block, of which a fresh export has every value; by name of the fresh value."""
    found = placed_by_structure(
        outlined(BLOCK),
        outlined(given, "g."),  # type: ignore[arg-type]
        {value: sure(value, name) for name, value in VALUES.items() if name != "x"},
        matches,
        {"x": "g.x"},
        lambda value, name: agreeing.get(next(n for n, v in VALUES.items() if v == value)) == name,
        narrow=False,
    )
    names = {value: name for name, value in VALUES.items()}
    return {names[value]: match for value, match in found.pairs.items()}


def test_a_stage_whose_operator_became_another_is_placed() -> None:
    """The sum that hands on one of its operands; what has a confirmed pair keeps it."""
    known = {VALUES[name]: sure(VALUES[name], f"g.{name}") for name in "abc"}
    known[VALUES["y"]] = Match(VALUES["y"], "g.y", ("graph output",), False)
    found = placed(with_step(3, ("Identity", ["c"], "d")), known)  # type: ignore[arg-type]
    assert {name: match.onnx for name, match in found.items()} == {"d": "g.d", "e": "g.e"}
    assert all(match.evidence == ("structure",) and not match.confirmed for match in found.values())


def test_a_choice_by_order_gives_way() -> None:
    """Both values have the numbers of the product; the second stands where the sum was."""
    known = {VALUES[name]: sure(VALUES[name], f"g.{name}") for name in "ab"}
    known[VALUES["c"]] = sure(VALUES["c"], "g.d", "value", "order")
    known[VALUES["y"]] = Match(VALUES["y"], "g.y", ("graph output",), False)
    given = with_step(3, ("Identity", ["c"], "d"))
    found = placed(given, known, c="g.c")  # type: ignore[arg-type]
    assert found["c"] == Match(VALUES["c"], "g.c", ("value", "structure"), True)
    assert found["d"].onnx == "g.d"
    # Its numbers are others there, but what it took belongs to another value.
    assert placed(given, known)["c"] == Match(VALUES["c"], "g.c", ("structure",), False)  # type: ignore[arg-type]


def test_a_pair_whose_operand_stands_for_something_else_is_in_doubt() -> None:
    """Of two activations behind two products the second has taken the place of the first."""

    def graph(prefix: str) -> OnnxGraph:
        named = [node("Relu", [f"{prefix}{read}"], f"{prefix}{made}") for read, made in ("xa", "bc", "de")]
        return OnnxGraph((), (), tuple(named), frozenset(), {}, {}, "")

    straight = {name: f"g.{name}" for name in "xabcde"}
    assert contradicted(graph(""), graph("g."), straight) == frozenset()
    assert contradicted(graph(""), graph("g."), {"b": "g.b", "d": "g.d", "c": "g.e"}) == {"c"}
    assert contradicted(graph(""), graph("g."), {"d": "g.d", "c": "g.e"}) == {"c"}, "only one operand is known"


def test_what_is_certain() -> None:
    assert is_certain(sure(0, "a"))
    assert not is_certain(sure(0, "a", "value", "order"))
    assert not is_certain(sure(0, "a", "value", AMBIGUOUS))
    assert not is_certain(Match(0, "a", ("weights",), False))


# -- whether to ask ---------------------------------------------------------------------------------------------------

CHAIN = TorchTrace(
    (stage("one", 1, [0]), stage("two", 2, [1]), stage("three", 3, [2])), {1: (0,), 2: (1,), 3: (2,)}, ((0, 0),), (), {}
)
GRAPH = OnnxGraph(
    ("x",), ("c",), (node("A", ["x"], "a"), node("B", ["a"], "b"), node("C", ["b"], "c")), frozenset(), {}, {}, ""
)


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize(
    ("pairs", "between", "asked"),
    [
        ({1: "a", 2: "b", 3: "c"}, 1, (False, False)),
        ({1: "a", 3: "c"}, 2, (True, True)),
        ({1: "a", 3: "c"}, 1, (True, False)),
        ({1: "a", 2: "b", 3: "c"}, 2, (True, False)),
    ],
    ids=["every stage has a pair", "one without", "one without, and no node for it", "nodes that are nobody's"],
)
def test_a_broken_stage_asks_where_more_could_be_told(
    pairs: Mapping[int, str], between: int, asked: tuple[bool, bool], nameless: bool
) -> None:
    """Behind names that tell, only for a stage without a pair among several nodes."""
    matches = {value: sure(value, name) for value, name in pairs.items()}
    nodes = tuple(f"n{i}" for i in range(between))
    assert not is_open(CHAIN, matches, lambda *_: nodes, nameless=nameless), "nothing is broken"
    matches[3] = Match(3, "c", ("graph output",), False)
    assert asked[not nameless] == is_open(CHAIN, matches, lambda *_: nodes, nameless=nameless)


# -- fresh exports ----------------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """Functional code around parameters: no module of its own but the whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Parameter(torch.randn(12, 24)), nn.Parameter(torch.randn(24, 12))
        self.last = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        """x (3, 12) -> (3, 5)."""
        x = x + torch.tanh(x @ self.first) @ self.second
        return (torch.relu(x) * 0.5) @ self.last


X = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))


def exported(folder: Path) -> ModelProto:
    path = folder / "own.onnx"
    export_onnx(Steps(), (X,), {}, path, ExportSettings("torchscript"))
    return onnx.load(path)


def told(model: ModelProto, folder: Path) -> tuple[Report, list[str]]:
    path = folder / "given.onnx"
    onnx.save(model, path)
    steps: list[str] = []
    case = LoadedCase("steps", Steps().eval(), (X,), {})
    return bisect(case, Options(make_tolerance(None, None, None), onnx=path), steps.append), steps


def test_a_residual_dropped_from_a_file_without_names_is_blamed(tmp_path: Path) -> None:
    """The stages behind it are functional, and nothing else says which value is theirs."""
    model = without_names(exported(tmp_path))
    (sum_,) = [each for each in model.graph.node if each.op_type == "Add"]
    sum_.op_type = "Identity"
    del sum_.input[1]
    report, steps = told(model, tmp_path)
    (origin,) = report.verdict.origins
    assert (origin.ref.stage, origin.onnx_value) == ("/add#0", sum_.output[0])
    (pair,) = [pair for pair in report.alignment.pairs if pair.ref == origin.ref]
    assert pair.evidence == ("structure",)
    assert any("exporting the model once more" in step for step in steps)
    assert any("found by structure" in note and "torchscript exporter" in note for note in report.notes)
    assert report.alignment.coverage == 1


def test_a_sum_that_is_gone_is_told(tmp_path: Path) -> None:
    """Simplifiers remove what only hands on: then the next stage is off, and a note says what is missing before it."""
    model = without_names(exported(tmp_path))
    (sum_,) = [each for each in model.graph.node if each.op_type == "Add"]
    (reader,) = [each for each in model.graph.node if sum_.output[0] in each.input]
    reader.input[0] = sum_.input[0]
    model.graph.node.remove(sum_)
    report, _ = told(model, tmp_path)
    (origin,) = report.verdict.origins
    assert origin.ref.stage == "/relu#0"
    (left,) = [item for item in report.alignment.unaligned if item.ref.stage == "/add#0"]
    assert not left.in_graph
    assert left.reason.startswith("nothing stands in its place in the graph: Relu_")
    assert left.reason.endswith(f" reads {sum_.input[0]} directly")
    assert f"/add#0: {left.reason}" in report.notes


def test_a_healthy_file_without_names_needs_no_export(tmp_path: Path) -> None:
    report, steps = told(without_names(exported(tmp_path)), tmp_path)
    assert report.verdict.status == "agrees"
    assert not any("once more" in step for step in steps)


def test_a_model_that_cannot_be_exported_is_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a note says that structure told nothing."""
    model = without_names(exported(tmp_path))
    (sum_,) = [each for each in model.graph.node if each.op_type == "Add"]
    sum_.op_type = "Sub"

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no export today")

    monkeypatch.setattr(torch.onnx, "export", fails)
    report, _ = told(model, tmp_path)
    assert report.verdict.status == "diverges"
    assert any("no fresh export is like the ONNX file" in note for note in report.notes)


def test_the_export_most_like_the_file_is_taken(tmp_path: Path) -> None:
    """Of a file that ONNX Runtime has optimised, an optimised one."""
    given = tmp_path / "given.onnx"
    export_onnx(Steps(), (X,), {}, given, ExportSettings("torchscript"))
    program = OnnxProgram(load_onnx(given), given)
    fresh = most_alike(Steps(), (X,), {}, program, tmp_path)
    assert fresh is not None
    assert (fresh.alike, fresh.how) == (1, "torchscript exporter")


def test_an_unlike_file_is_laid_beside_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(0).sin()

    given = tmp_path / "given.onnx"
    export_onnx(Other(), (X,), {}, given, ExportSettings("torchscript"))
    program = OnnxProgram(load_onnx(given), given)
    monkeypatch.setattr("bisect_tool.backends.fresh._EXPORTERS", ("torchscript",))
    assert most_alike(Steps(), (X,), {}, program, tmp_path) is None


def test_attributes_left_out_are_their_defaults(tmp_path: Path) -> None:
    """Some tools write them out."""
    programs = []
    for alpha in ({}, {"alpha": 0.01}, {"alpha": 0.02}):
        relu = onnx.helper.make_node("LeakyRelu", ["x"], ["y"], **alpha)
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
        path = tmp_path / f"{len(programs)}.onnx"
        graph = onnx.helper.make_graph([relu], "g", values[:1], values[1:])
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
        programs.append(OnnxProgram(load_onnx(path), path))
    plain, written, other = (outline(program, lambda _: None) for program in programs)
    assert likeness(plain, written) == (1, 0)
    assert likeness(plain, other) == (0, 2)

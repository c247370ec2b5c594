"""The quick part of scripts/foreign: other tools' conversions of the zoo keep their pairs, and a wrong pair is seen."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import foreign
import judging
import onnx
import pytest
import torch
from families import EXPORTERS, FAMILIES
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import foreign_run

QUICK = [
    ("speech", "torchscript", "ort extended, scrambled"),
    ("points", "torchscript", "scrambled"),
    ("encoder", "torchscript", "scrambled"),
    ("encoder", "torchscript", "float16"),
    ("convnext", "torchscript", "onnxslim"),
    ("decoder", "torchscript", "onnxsim"),
    ("detector", "torchscript", "ort basic"),
    ("shared", "dynamo", "ort extended"),
]


@pytest.mark.parametrize(("family", "exporter", "conversion"), QUICK)
def test_pairs_are_right_after_a_conversion(family: str, exporter: str, conversion: str) -> None:
    """It agrees, nothing that has a value is left out, and no pair is wrong, by the truth."""
    found = foreign.aligned(family, exporter, conversion)
    assert (found.error, found.wrong, found.missed) == (None, (), ())
    assert ("agrees", 0) == (found.status, found.origins)
    assert found.right


def test_faults_in_nameless_files_are_found_where_they_are() -> None:
    """A planted node is among those of the first origin."""
    hits = [
        foreign.answer(family, "torchscript", conversion, fault).top1
        for family in ("residual", "shared")
        for conversion in ("scrambled", "float16")
        for fault in foreign.planted(family, "torchscript", conversion, 1)
    ]
    assert [True] * 4 == hits


# -- the truth --------------------------------------------------------------------------------------------------------


def test_a_wrong_pair_is_seen() -> None:
    """Two pairs of one shape exchanged, and a pair whose axes are not said to be permuted."""
    model = foreign.converted("speech", "torchscript", "scrambled")
    draws = foreign.draws_of("speech", "torchscript", "scrambled", model)
    report = judging.report_on("speech", model, threads=1)
    assert [] == foreign.wrong_pairs(report, draws)
    broken = copy.deepcopy(report)
    pairs = {pair["stage"]: pair for pair in broken["alignment"]["pairs"]}
    one, other = pairs["blocks.0.glu"], pairs["blocks.1.glu"]
    one["onnx_value"], other["onnx_value"] = other["onnx_value"], one["onnx_value"]
    turned = pairs["blocks.0.conv"]
    turned["permutation"] = [0, 2, 1]
    assert 3 == len(foreign.wrong_pairs(broken, draws))


def test_a_pair_that_is_not_there_is_missed() -> None:
    """Whatever the report says of its own coverage."""
    model = foreign.converted("speech", "torchscript", "scrambled")
    draws = foreign.draws_of("speech", "torchscript", "scrambled", model)
    report = judging.report_on("speech", model, threads=1)
    there, missed = foreign.coverage(report, draws)
    assert [] == missed
    report["alignment"]["pairs"] = [p for p in report["alignment"]["pairs"] if p["stage"] != "blocks.0.glu"]
    again, missed = foreign.coverage(report, draws)
    assert there == again
    assert 1 == len(missed) and "blocks.0.glu" in missed[0]


def test_stages_are_what_plain_hooks_see() -> None:
    """The truth takes PyTorch's tensors from the recorder; where a module is called once, hooks must say the same."""
    model = foreign.other_model("residual", foreign.OTHER_SEEDS[0])
    seen: dict[str, torch.Tensor] = {}
    handles = [
        child.register_forward_hook(lambda _, __, output, path=path: seen.__setitem__(path, output.clone()))
        for path, child in model.named_modules()
        if not list(child.children())
    ]
    with torch.no_grad():
        model(*FAMILIES["residual"].inputs(foreign.OTHER_SEEDS[0]))
    for handle in handles:
        handle.remove()
    stages = foreign.other_stages("residual", foreign.OTHER_SEEDS[0])
    once = [path for path in seen if (path, 0, 0) in stages and (path, 1, 0) not in stages]
    assert len(once) > 15
    for path in once:
        assert (stages[path, 0, 0] == seen[path].numpy()).all(), path


def test_scrambling_leaves_nothing_to_read() -> None:
    """Names are numbers, and the graph computes what it did."""
    model = foreign.scrambled(onnx.load(foreign.exported("shared", "dynamo")))
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    assert all(name.isdigit() for name in names if name)
    assert not any(node.name or node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.graph.value_info and not model.producer_name


# -- inputs -----------------------------------------------------------------------------------------------------------


def channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs and outputs of four axes with the channels last, as converters for phones leave them."""
    graph = model.graph
    for value, perm, ends in ((graph.input[0], (0, 3, 1, 2), "in"), (graph.output[0], (0, 2, 3, 1), "out")):
        inner = f"{value.name}_inner"
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
            node.output[:] = [inner if name == value.name else name for name in node.output]
        names = [value.name, inner] if ends == "in" else [inner, value.name]
        turn = helper.make_node("Transpose", names[:1], names[1:], perm=perm)
        graph.node.insert(0 if ends == "in" else len(graph.node), turn)
        n, c, h, w = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [n, h, w, c]))
    return model


def test_a_graph_in_another_layout_agrees_and_says_so() -> None:
    """Input and output are compared in PyTorch's order of axes."""
    model = channels_last(onnx.load(foreign.exported("unet", "torchscript")))
    report = judging.report_on("unet", model, threads=1)
    assert "agrees" == report["verdict"]["status"]
    assert 2 == sum("channels last" in note for note in report["notes"])
    for run in report["configs"]:
        assert ["pass"] == [output["judgement"] for output in run["outputs"]]


def test_equal_inputs_in_another_order_are_found_by_value() -> None:
    """Sources and targets of edges have one shape, and the file has them the other way round, without names."""
    model = copy.deepcopy(foreign.converted("points", "torchscript", "scrambled"))
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([inputs[0], inputs[2], inputs[1]])
    report = judging.report_on("points", model, threads=1)
    assert "agrees" == report["verdict"]["status"]
    (note,) = [note for note in report["notes"] if "fit equally" in note]
    assert "the outputs agree in one order only, which was taken" in note
    assert not any("targets, by order" in note for note in report["notes"])


def test_an_output_alone_in_another_layout_diverges() -> None:
    """Where the inputs are as PyTorch has them, an output of another shape is a fault for whoever reads it."""
    model = onnx.load(foreign.exported("unet", "torchscript"))
    (value,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["inner" if name == value.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Transpose", ["inner"], [value.name], perm=(0, 2, 3, 1)))
    n, c, h, w = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [n, h, w, c]))
    assert "diverges" == judging.report_on("unet", model, threads=1)["verdict"]["status"]


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_says_what_does_not_hold() -> None:
    """A wrong pair makes a file wrong though it agrees, and a fault elsewhere has its line."""
    right = foreign.Aligned("f", "dynamo", "onnxsim", "agrees", pairs=3, there=100)
    wrong = foreign.Aligned("f", "dynamo", "scrambled", "agrees", pairs=3, there=100, wrong=("a = 7 by value",))
    few = foreign.Aligned("g", "dynamo", "onnxsim", "agrees", pairs=3, there=100, missed=("b is 9",) * 3)
    assert [True, False, False] == [each.right for each in (right, wrong, few)]
    fault = judging.Result("f/dynamo/scrambled/k", "fault", "f", "dynamo", "k", "n", 1e-3, 1e-3, status="agrees")
    found = judging.Result("f/dynamo/onnxsim/k", "fault", "f", "dynamo", "k", "n", top1=True, wrong=("b = 8 by scope",))
    page = foreign_run.page([right, wrong, few], [("scrambled", fault), ("onnxsim", found)], 1)
    assert "; wrong: b = 8 by scope |" in page
    assert "| f dynamo, scrambled | agrees | 100.0% | a = 7 by value |" in page
    assert "| g dynamo, onnxsim | agrees | 97.0% | b is 9; b is 9; b is 9 |" in page
    assert "| f/dynamo/scrambled/k | `n` | 1.0e-03 | 1.0e-03 | agrees |" in page
    assert EXPORTERS[0] in page

"""Reading without weights gives the model that onnx reads, with references to the bytes in the file itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bisect_tool.backends.onnx_file import read_without_weights
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.errors import BisectError

DTYPES = (np.float32, np.float64, np.int64, np.float16, np.bool_)


def model_of(weights: list[TensorProto]) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [w.name], [f"out_{w.name}"], doc_string="x" * 3000) for w in weights]
    outputs = [helper.make_tensor_value_info(f"out_{w.name}", w.data_type, None) for w in weights]
    graph = helper.make_graph(nodes, "g", [], outputs, weights, doc_string="a graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    helper.set_model_props(model, {"key": "value" * 1000})
    return model


def resolved(path: Path) -> onnx.ModelProto:
    """With the references followed, by onnx's own code."""
    model = read_without_weights(path)
    onnx.load_external_data_for_model(model, str(path.parent))
    return model


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=6),
    kinds=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
    typed=st.lists(st.booleans(), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_model_that_onnx_reads(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], kinds: list[type], typed: list[bool]
) -> None:
    """Whatever the initialisers are; those in typed fields stay there."""
    random = np.random.default_rng(0)
    weights = []
    for number, (shape, kind, plain) in enumerate(zip(shapes, kinds, typed, strict=False)):
        array = (random.standard_normal(shape) * 100).astype(kind)
        if plain and kind is np.float32:
            weights.append(helper.make_tensor(f"w{number}", TensorProto.FLOAT, shape, array.ravel().tolist()))
        else:
            weights.append(numpy_helper.from_array(array, f"w{number}"))
    path = tmp_path_factory.mktemp("made") / "m.onnx"
    onnx.save(model_of(weights), path)
    found = read_without_weights(path)
    big = [w.name for w in weights if len(w.raw_data) > 1024]
    assert [w.name for w in found.graph.initializer if w.data_location == TensorProto.EXTERNAL] == big
    assert all(not w.raw_data for w in found.graph.initializer if w.name in big)
    wanted, read = onnx.load(path), resolved(path)
    for tensor in read.graph.initializer:
        tensor.ClearField("data_location")
    assert read.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short(tmp_path: Path, keep: float) -> None:
    """Wherever the end is missing, it is an error and never a smaller model."""
    path = tmp_path / "m.onnx"
    onnx.save(model_of([numpy_helper.from_array(np.ones((100, 100), np.float32), "w")]), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(Exception, match=r"cut short|parsing|wire type"):
        read_without_weights(path)


def test_no_onnx_at_all(tmp_path: Path) -> None:
    """Text, for example."""
    path = tmp_path / "m.onnx"
    path.write_text("import torch\n" * 100)
    with pytest.raises(Exception, match=r"cut short|parsing|wire type|number"):
        read_without_weights(path)


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    """Its elements would be taken for missing, and a healthy graph for a faulty one."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["both"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_value_info("both", kind)],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(BisectError, match="its output both is a sequence") as caught:
        load_onnx(tmp_path / "m.onnx")
    assert "make each of its tensors an output of its own" == caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are Unicode")
@pytest.mark.parametrize("name", [b"m\xf6.onnx", b"m\xf6/m.onnx"], ids=["file", "folder"])
def test_a_path_that_is_no_utf_8_is_said(tmp_path: Path, name: bytes) -> None:
    """ONNX Runtime takes text alone, and the file itself may be whole."""
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model_of([]).SerializeToString())
    with pytest.raises(BisectError, match="its path is not UTF-8"):
        load_onnx(path)


def test_a_value_that_is_made_twice_is_told(tmp_path: Path) -> None:
    """As an exporter may write it: the file is whole, and says nothing that runs."""
    nodes = [helper.make_node("Relu", ["x"], ["mean"]), helper.make_node("Neg", ["mean"], ["mean"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "mean")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "main_graph", ends[:1], ends[1:])), tmp_path / "twice.onnx")
    with pytest.raises(BisectError, match="its graph is not valid: Output 'mean' is redeclared") as caught:
        load_onnx(tmp_path / "twice.onnx")
    assert "another opset" in str(caught.value.hint)

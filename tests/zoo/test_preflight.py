"""The preflight accuses no healthy file, whatever was done to it, and sees what is planted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import foreign
import numpy as np
import onnx
import pytest
from families import EXPORTERS, built, exported
from faults import faults
from judging import base_of
from onnx import numpy_helper

from bisect_tool.backends.before import look_before
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.records import Finding

HEALTHY = ("residual", "unet", "encoder", "recurrent", "speech")
CONVERSIONS = ("as exported", "onnxsim", "ort basic", "ort extended")


def found_in(family: str, model: onnx.ModelProto) -> tuple[Finding, ...]:
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        return look_before(built(family), OnnxProgram(load_onnx(file), file))


@pytest.mark.parametrize(
    "conversion", [name for name in foreign.CONVERSIONS if name in CONVERSIONS or "exported" in name]
)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", HEALTHY)
def test_healthy_files_are_not_accused(family: str, exporter: str, conversion: str) -> None:
    assert () == found_in(family, foreign.converted(family, exporter, conversion))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_half_precision_is_a_fact(exporter: str) -> None:
    found = found_in("encoder", foreign.converted("encoder", exporter, "float16"))
    assert [("BD205", "fact")] == [(each.code, each.severity) for each in found]


@pytest.mark.parametrize(
    "family, kind, code",
    [
        ("residual", "weight: NaN", "BD204"),
        ("residual", "norm: epsilon × 1000", "BD405"),
        ("residual", "statistics: stale", "BD202"),
        ("unet", "weight: one element", "BD202"),
        ("recurrent", "recurrence: reset", "BD405"),
        ("unet", "resize: coordinates", "BD405"),
    ],
)
def test_planted_faults_are_told_before_the_run(family: str, kind: str, code: str) -> None:
    told = []
    for exporter in EXPORTERS:
        for fault in faults(base_of(family, exporter), kind, "preflight", 1):
            told.append({each.code for each in found_in(family, fault.model)})
    assert any(code in codes for codes in told)


def edited(name: str, change: str) -> onnx.ModelProto:
    model = onnx.load(exported("encoder", "torchscript"))
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    if change == "one row":
        array[2] *= 1.5
    elif change == "one element":
        array.reshape(-1)[3] += 1
    else:
        array = array.astype(np.float16).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    "change, code, severity, text",
    [
        ("one row", "BD202", "fault", "all of it at index 2 of axis 0"),
        ("one element", "BD202", "fault", ": 1 of "),
        ("float16", "BD205", "suspicion", "rounded to float16"),
    ],
)
def test_weight_says_how_it_differs(change: str, code: str, severity: str, text: str) -> None:
    (found,) = found_in("encoder", edited("emb.weight", change))
    assert (code, severity) == (found.code, found.severity)
    assert ("emb.weight",) == found.names
    assert text in found.text


def test_folded_weight_is_held_against_the_model_with_the_batchnorm_folded_in() -> None:
    model = onnx.load(exported("residual", "dynamo"))
    tensor = next(each for each in model.graph.initializer if each.name == "layer1.0.conv1.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[5] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    (found,) = found_in("residual", model)
    assert "with a BatchNorm folded in: 144 of 2304 numbers" in found.text
    assert found.text.endswith("all of it at index 5 of axis 0")

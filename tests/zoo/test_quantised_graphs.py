"""Graphs that ONNX Runtime's own quantiser makes: aligned, judged by SQNR, and planted faults ranked first."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import families
import onnx
import pytest
import quantising

from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import Report
from bisect_tool.tolerances import make_tolerance

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def source(name: str, exporter: str) -> Path:
    return families.exported(name, exporter)


def judged(name: str, path: Path, **options: Any) -> Report:
    case = LoadedCase(name, families.built(name), families.FAMILIES[name].inputs(0), {})
    tolerance = make_tolerance(None, None, None, options.pop("min_sqnr", None))
    return bisect(case, Options(tolerance=tolerance, onnx=path, **options))


@functools.cache
def in_float(name: str, exporter: str) -> dict[Any, str]:
    """Which value of the float graph each stage has: what the quantised one is held against."""
    report = judged(name, source(name, exporter), optimizations=("off",))
    return {pair.ref: pair.onnx_value for pair in report.alignment.pairs}


def quantised(name: str, exporter: str, folder: Path, **options: Any) -> Path:
    samples = [[tensor.numpy() for tensor in families.FAMILIES[name].inputs(seed)] for seed in range(3)]
    return quantising.quantised(source(name, exporter), folder / "quantised.onnx", samples, **options)


def base(value: str) -> str:
    """The float graph's name of a value: the quantiser adds to names."""
    for suffix in ("__dequantized", "_DequantizeLinear_Output", "_QuantizeLinear_Input", "_quantized"):
        value = value.removesuffix(suffix)
    return value


CASES = [
    ("residual", "dynamo", {}),
    ("residual", "torchscript", {"per_channel": True, "unsigned": True}),
    ("unet", "torchscript", {}),
    ("vit", "dynamo", {"per_channel": True}),
    ("mixer", "torchscript", {"unsigned": True}),
    ("speech", "torchscript", {}),
]


@pytest.mark.parametrize(("name", "exporter", "options"), CASES)
def test_healthy_graphs_agree(name: str, exporter: str, options: dict[str, bool], tmp_path: Path) -> None:
    """Every pair is that of the float graph, behind its quantisation where it has one, and SQNR says that all is well."""
    path = quantised(name, exporter, tmp_path, **options)
    report = judged(name, path)
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert 1.0 == report.alignment.coverage
    assert ("quantised", 10.0) == (report.tolerance.source, report.tolerance.min_sqnr)
    assert any("judged by SQNR: the graph is quantised" in line for line in report.verdict.summary)
    values = {value for node in onnx.load(str(path)).graph.node for value in node.output}
    pairs = {pair.ref: pair.onnx_value for pair in report.alignment.pairs}
    wrong = [
        (str(ref), known, pairs.get(ref))
        for ref, known in in_float(name, exporter).items()
        # An activation that quantising does as well has no node left; its producer has its name.
        if {known, f"{known}_QuantizeLinear_Input"} & values and base(pairs.get(ref, "")) != known
    ]
    assert [] == wrong
    for row in report.stages:
        result = row.results.get("ort-cpu-off")
        if result is not None and result.local is not None:
            assert result.quantised is not None and result.noise is None
            assert result.quantised.local_sqnr_db >= 25
    shares = [cost.share for cost in report.verdict.costs]
    assert shares and shares == sorted(shares, reverse=True)  # type: ignore[type-var]


FAULTS = {
    "scale too small": lambda model, pair: quantising.scale_by(model, pair[1], 0.25),
    "scale too large": lambda model, pair: quantising.scale_by(model, pair[1], 32.0),
    "zero point": lambda model, pair: quantising.shift_by(model, pair[2], 80),
}


@pytest.mark.parametrize("fault", [*FAULTS, "weight"])
@pytest.mark.parametrize(("name", "exporter"), [("residual", "dynamo"), ("vit", "torchscript")])
def test_a_planted_fault_costs_most(name: str, exporter: str, fault: str, tmp_path: Path) -> None:
    """A wrong scale or zero point of one pair, or a weight set to nought, is an origin, and ranks first."""
    path = quantised(name, exporter, tmp_path)
    model = onnx.load(str(path))
    if fault == "weight":
        stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        weights = [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
        broken = [each for each in weights if len(stored[each]) > 1][3]
        quantising.zero(model, broken)
        nodes = {node.name for node in model.graph.node if broken in node.input}
    else:
        # In the middle, where nothing else shares the scale.
        pairs = [p for p in quantising.activation_pairs(model) if "view" not in p[0] and "Reshape" not in p[0]]
        pair = pairs[len(pairs) // 2]
        FAULTS[fault](model, pair)
        nodes = {node.name for node in model.graph.node if pair[1] in node.input}
    onnx.save(model, str(path))
    report = judged(name, path, optimizations=("off",))
    assert "diverges" == report.verdict.status, report.verdict.summary
    rows = {row.ref: row for row in report.stages if row.role != "group"}
    assert nodes & set(rows[report.verdict.costs[0].ref].onnx_nodes), report.verdict.costs[:3]
    hit = [origin for origin in report.verdict.origins if nodes & set(origin.onnx_nodes)]
    assert hit, report.verdict.origins
    if fault != "weight" and len(hit) == 1:
        assert any("quantising its value costs" in line for line in hit[0].evidence)


@pytest.mark.parametrize(("name", "exporter"), [("residual", "torchscript"), ("points", "torchscript")])
def test_integer_operators(name: str, exporter: str, tmp_path: Path) -> None:
    """QLinearConv and the like hand bytes on; the numbers that these stand for are compared."""
    report = judged(name, quantised(name, exporter, tmp_path, operators=True))
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert 1.0 == report.alignment.coverage
    known = in_float(name, exporter)
    pairs = {pair.ref: pair.onnx_value for pair in report.alignment.pairs}
    compared = [ref for ref in pairs if ref in known and pairs[ref].endswith("__dequantized")]
    assert len(compared) > 5
    given = {node.name for node in onnx.load(str(tmp_path / "quantised.onnx")).graph.node}
    assert all(set(row.onnx_nodes) <= given for row in report.stages)


def test_dynamic_quantisation(tmp_path: Path) -> None:
    """Weights in int8 and activations quantised as they come."""
    path = quantising.quantised_dynamically(source("vit", "torchscript"), tmp_path / "dynamic.onnx")
    report = judged("vit", path)
    assert "agrees" == report.verdict.status, report.verdict.summary
    assert 1.0 == report.alignment.coverage
    assert any("DynamicQuantizeLinear nodes" in line for line in report.verdict.summary)


def test_a_mask_that_takes_all_levels(tmp_path: Path) -> None:
    """-1e4 beside the scores leaves them one level: a norm over all of them does not see it, and it is the origin."""
    report = judged("decoder", quantised("decoder", "torchscript", tmp_path), optimizations=("off",))
    assert "diverges" == report.verdict.status
    assert {"blocks.0/add#2", "blocks.1/add#2"} == {str(origin.ref) for origin in report.verdict.origins}
    assert {"blocks.0/add#2", "blocks.1/add#2"} == {str(cost.ref) for cost in report.verdict.costs[:2]}
    assert any("mask" in line for line in report.verdict.origins[0].evidence)

"""The quick part of the zoo: planting is honest, unhurt models agree, and gross faults are found where they are.

``scripts/zoo`` runs the whole of it; these are the cases that must hold at any time.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import judging
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import truth
from families import EXPORTERS, FAMILIES, built, name_nodes
from faults import KINDS, Edit, Fault, Graph, Kind, apart, faults, places, two_faults
from truth import LEAST_MOVE, Healthy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import zoo_run
import zoo_table

QUICK_FAMILIES = ("residual", "points")
MOST_NAMED = 8
GROSS = ("weight: NaN", "weight: transposed", "weight: stale", "result: saturated", "activation: another")


@functools.cache
def _base(family: str, exporter: str) -> Healthy:
    return judging.base_of(family, exporter)


def _first(family: str, exporter: str, kind: str) -> Fault:
    return next(faults(_base(family, exporter), kind, f"test {family} {exporter}", 1))


@pytest.fixture
def extra_kind() -> Iterator[str]:
    """An edit that changes nothing, entered as if it were a fault."""
    name = "test: nothing"

    def nothing(graph: Graph, node: onnx.NodeProto, order: object) -> Edit:
        return graph.behind(node, [("Identity", [], {})])

    KINDS[name] = Kind(name, KINDS["result: NaN"].applicable, nothing)
    yield name
    del KINDS[name]


# -- families ---------------------------------------------------------------------------------------------------------


def test_enough_families_and_kinds() -> None:
    """The zoo has the breadth that its table promises."""
    assert len(FAMILIES) >= 10
    assert len(KINDS) >= 20


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_activations_stay_alive(family: str) -> None:
    """Outputs are finite, and neither vanish nor explode: relative errors mean something."""
    base = _base(family, "torchscript")
    for output in base.model.graph.output:
        value = base.values[output.name]
        assert np.isfinite(value).all(), output.name
        assert 1e-2 < np.sqrt(np.mean(value**2)) < 1e2, output.name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_models_are_frozen(family: str) -> None:
    """Built twice, a family has the same weights."""
    again = FAMILIES[family].build().state_dict()
    weights = built(family).state_dict()
    assert weights.keys() == again.keys()
    assert all(bool((weights[name] == again[name]).all()) for name in weights)


def test_every_node_has_a_name_of_its_own() -> None:
    """Nodes without a name, and with one that another has, get a new one; others keep theirs."""
    nodes = [onnx.helper.make_node("Relu", ["x"], [f"y{i}"], name=name) for i, name in enumerate(["a", "", "a"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    name_nodes(model)
    assert ["a", "Relu_1", "Relu_2"] == [node.name for node in model.graph.node]


# -- planting ---------------------------------------------------------------------------------------------------------


def test_planting_leaves_the_healthy_model_alone() -> None:
    """Faults of every kind are planted into copies."""
    base = _base("encoder", "torchscript")
    before = base.model.SerializeToString()
    for kind in KINDS:
        list(faults(base, kind, "test", 1))
    assert before == base.model.SerializeToString()


def test_an_edit_without_effect_is_no_fault(extra_kind: str) -> None:
    """What moves nothing does not count, at any node."""
    base = _base("points", "torchscript")
    assert places(base, extra_kind, "test")
    assert [] == list(faults(base, extra_kind, "test", 1))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_place(kind: str) -> None:
    """Each kind moves a value somewhere, by more than the least move, and names nodes that are in the faulty graph."""
    for family in FAMILIES:
        fault = next(faults(_base(family, "torchscript"), kind, "test", 1), None)
        if fault is not None:
            break
    else:
        pytest.fail(f"no place in any family for {kind}")
    assert fault.moved > LEAST_MOVE
    assert set(fault.nodes) <= {node.name for node in fault.model.graph.node}


def test_the_move_is_what_plain_onnx_runtime_says() -> None:
    """The size of a fault is the distance of two runs, not of weights."""
    base = _base("residual", "torchscript")
    fault = _first("residual", "torchscript", "result: × 1.001")
    assert fault.moved == pytest.approx(1e-3, rel=1e-3)
    model = ort.InferenceSession(fault.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (faulty,) = model.run(None, dict(base.feeds))
    (output,) = base.model.graph.output
    assert truth.relative(base.values[output.name], faulty) > LEAST_MOVE


def test_the_same_seed_plants_the_same_fault() -> None:
    """A case keeps its name and its fault from run to run."""
    first = _first("points", "torchscript", "weight: stale")
    again = _first("points", "torchscript", "weight: stale")
    assert first.place == again.place
    assert first.model.SerializeToString() == again.model.SerializeToString()


def test_faults_of_a_kind_lie_at_different_nodes() -> None:
    """Several faults of one kind are several cases."""
    found = [fault.place for fault in faults(_base("residual", "torchscript"), "result: float16", "test", 4)]
    assert 4 == len(found) == len(set(found))


def test_two_faults_lie_in_different_stages() -> None:
    """The graph with both holds the nodes of either, and they lie apart."""
    base = _base("encoder", "torchscript")
    pair = two_faults(base, "test")
    assert pair is not None
    first, second = pair
    assert {*first.nodes, *second.nodes} <= {node.name for node in second.model.graph.node}
    assert apart(base, first.place, second.place)
    assert first.kind != second.kind


def test_relative_of_values_that_are_no_numbers() -> None:
    """A mask's -inf on both sides is no difference; on one side it is an infinite one."""
    mask = np.array([-np.inf, 1.0])
    assert 0.0 == truth.relative(mask, mask)
    assert math.inf == truth.relative(np.array([1.0, 1.0]), mask)
    assert math.inf == truth.relative(mask, np.array([np.nan, 1.0]))
    assert 1.0 == truth.relative(np.array([1.0, 0.0]), np.array([1.0, 1.0]))


# -- the tool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_unhurt_models_agree_at_every_level(family: str, exporter: str) -> None:
    """No false alarm, with optimisation off and on."""
    result = judging.unhurt(family, exporter, 0, "test")
    assert (result.status, result.origins, result.error) == ("agrees", 0, None)
    assert dict.fromkeys(judging.LEVELS, "agrees") == result.levels


@pytest.mark.parametrize("kind", GROSS)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_gross_faults_are_found_where_they_are(family: str, exporter: str, kind: str) -> None:
    """The verdict is a divergence, and the planted node is among those of the first origin."""
    fault = _first(family, exporter, kind)
    result = judging.with_fault(family, exporter, fault, "test", _base(family, exporter))
    assert (result.detected, result.top1, result.error) == (True, True, None), result
    assert "actual" == result.side
    assert result.named <= MOST_NAMED


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_two_faults_are_both_found(family: str, exporter: str) -> None:
    """Each in an origin of its own."""
    base = _base(family, exporter)
    pair = two_faults(base, "test")
    assert pair is not None
    result = judging.with_two(family, exporter, pair, "test", base)
    assert (result.found, result.side, result.error) == (True, "actual", None), result
    assert result.origins >= 2


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_pytorch_in_tf32_is_the_side_that_is_off(exporter: str) -> None:
    """At every convolution, and nothing is blamed on ONNX."""
    result = judging.torch_precision("residual", exporter, "tf32", "test")
    assert (result.side, result.wrong_side, result.error) == ("expected", 0, None), result
    assert result.convolutions == result.blamed > 0


@pytest.mark.parametrize(
    ("family", "exporter", "kind"),
    [
        ("mixer", "torchscript", "constant: 2 %"),
        ("mixer", "torchscript", "reduction: another"),
        ("vit", "dynamo", "residual: dropped"),
        pytest.param("decoder", "dynamo", "residual: dropped", marks=pytest.mark.slow),
        ("convnext", "torchscript", "order: axes"),
        ("mixer", "torchscript", "weight: int8"),
    ],
)
def test_code_outside_modules_is_told_apart(family: str, exporter: str, kind: str) -> None:
    """Operations of one kind in one scope, one of them broken: no other gets its name, and one origin is all."""
    base = _base(family, exporter)
    for fault in faults(base, kind, f"0 {family} {exporter}", 2):
        result = judging.with_fault(family, exporter, fault, "test", base)
        assert (result.top1, result.origins, result.error) == (True, 1, None), result


def test_an_error_of_the_tool_is_a_miss() -> None:
    """Whatever is raised, the run goes on, and the case is in the list."""
    blank = judging.Result("id", "fault", "f", "e", "k")

    def fail() -> judging.Report:
        raise KeyError("broken")

    result = judging.judge(blank, fail, lambda result, _: result)
    assert (False, "KeyError: 'broken'") == (result.detected, result.error)
    assert "KeyError: 'broken'" == zoo_table.missed(result)


# -- the table --------------------------------------------------------------------------------------------------------


def _results() -> list[judging.Result]:
    def fault(number: int, **found: object) -> judging.Result:
        return judging.Result(f"f/e/fault/k/{number}", "fault", "f", "e", "k", "n", 1e-3, 1e-3, **found)  # type: ignore[arg-type]

    right = {"status": "diverges", "detected": True, "top1": True, "found": True, "origins": 1, "side": "actual"}
    return [
        fault(0, named=1, **right),
        fault(1, named=9, **right),
        fault(2, status="agrees"),
        fault(3, status="error", error="KeyError: 'x'"),
    ]


def test_table_counts_what_the_results_hold(tmp_path: Path) -> None:
    """Shares are of all planted faults, sizes of named sets of those that name one, and reasons stand by their misses."""
    reasons = tmp_path / "reasons.toml"
    reasons.write_text('[reasons]\n"*/2" = "too small"\n', encoding="utf-8")
    page = zoo_table.page(_results(), "scripts/zoo", reasons)
    assert "| detected | 50.0% | 97% |" in page
    assert "| named, median | 1 | ≤ 3 |" in page
    assert "| named, 90 % | 9 | ≤ 8 |" in page
    assert "| side | 100.0% | 95% |" in page
    assert "| f/e/fault/k/2 | `n` | 1.0e-03 | 1.0e-03 | agrees | too small |" in page
    assert "| f/e/fault/k/3 | `n` | 1.0e-03 | 1.0e-03 | KeyError: 'x' |  |" in page


def test_results_survive_a_cut_off_line(tmp_path: Path) -> None:
    """What a killed process left half written is run again; the rest is kept."""
    file = tmp_path / "results.jsonl"
    lines = [json.dumps(result.as_dict()) for result in _results()]
    file.write_text("\n".join([*lines[:3], lines[3][:50]]), encoding="utf-8")
    assert ["f/e/fault/k/0", "f/e/fault/k/1", "f/e/fault/k/2"] == list(zoo_run.read_results(file))


def test_a_crash_is_one_miss(tmp_path: Path) -> None:
    """What takes its process with it is in the list under its own name, and the rest is gone on with."""
    options = argparse.Namespace(output=tmp_path / "results.jsonl")
    begun = zoo_run.begun_file(options, "residual", "dynamo")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        group = zoo_run.Group("residual", "dynamo", process, begun)
    begun.write_text("residual/dynamo/fault/weight: NaN/1", encoding="utf-8")
    assert zoo_run.note_crash(options, group, 3)
    (result,) = zoo_run.read_results(options.output).values()
    assert ("weight: NaN", False, "the process ended with 3") == (result.kind, result.detected, result.error)
    begun.unlink()
    assert not zoo_run.note_crash(options, group, 3)


def test_the_page_names_the_call_that_makes_it() -> None:
    """Where the results went, and whether some were there already, does not matter to who repeats it."""
    given = ["--per-kind", "4", "-o", "x.jsonl", "--resume", "--faults", "weight: *"]
    assert "scripts/zoo --per-kind 4 --faults 'weight: *'" == zoo_run.command(given)


@pytest.mark.slow
def test_script_writes_results_and_page(tmp_path: Path) -> None:
    """Each case has a line, the page counts them, and a second run with --resume has nothing left to do."""
    results, page = tmp_path / "results.jsonl", tmp_path / "accuracy.md"
    command = [sys.executable, zoo_run.__file__, "--families", "shared", "--exporters", "torchscript"]
    command += ["--faults", "weight: NaN", "--per-kind", "2", "--two", "1", "-o", str(results), "--docs", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(zoo_run.ROOT)}
    for more in ([], ["--resume"]):
        subprocess.run([*command, *more], check=True, capture_output=True, env=environment)
        lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        assert {"unhurt": 3, "torch": 3, "fault": 2, "two": 1} == Counter(line["section"] for line in lines)
        assert "| planted faults | 2 | |" in page.read_text(encoding="utf-8")

"""Overlays for viewers: the annotated copy, node data, and the command that writes them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from report_samples import ORT_OFF, SCRIPT, comparison, config_run, diverging, healthy, row

from bisect_tool.backends import annotated
from bisect_tool.cli import overlay
from bisect_tool.cli.main import execute
from bisect_tool.cli.progress import Progress
from bisect_tool.cli.tool import tool
from bisect_tool.errors import BisectError
from bisect_tool.graph_names import GraphNames
from bisect_tool.records import Origin, PartResult, Report, Verdict
from bisect_tool.reporters import overlays
from bisect_tool.store import write_report_folder


def graph_of(size: int = 4, *, ir_version: int = 10) -> onnx.ModelProto:
    """Conv-less and small: MatMul, an unnamed Add, Relu, and an If whose branches hold a node each."""
    weight = numpy_helper.from_array(np.eye(size, dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.ones(size, np.float32), "bias")
    branches = []
    for name, op in (("then", "Neg"), ("other", "Abs")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, size])
        branches.append(
            helper.make_graph([helper.make_node(op, ["active"], [f"{name}_out"], f"in_{name}")], name, [], [out])
        )
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], "product_node"),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["active"], "relu_node"),
        helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    nodes[0].metadata_props.add(key="namespace", value="fc")
    shape = [1, size]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(
        nodes, "main", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [weight, bias]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def report_on(path: Path | None) -> Report:
    """A report on that graph: the Add is an origin, and one stage lies in a branch."""
    rows = [
        row(0, "fc", "Linear", {"ort-off": comparison(2e-2, 2e-2, judgement="fail")}),
        row(1, "act", "ReLU", {"ort-off": comparison(float("nan"), 1e-7, judgement="fail")}),
        row(2, "neg", "Neg", {"ort-off": comparison(3e-2, 0.0, judgement="fail")}),
        row(3, "gone", "Linear", {"ort-off": comparison(3e-2, 0.0, judgement="fail")}),
        row(4, "folded", "BatchNorm1d", {}),
    ]
    rows[0] = replace(rows[0], onnx_value="sum", onnx_nodes=("product_node", "Add_1"))
    rows[1] = replace(rows[1], onnx_value="active", onnx_nodes=("relu_node",))
    rows[2] = replace(rows[2], onnx_value="then_out", onnx_nodes=("in_then",))
    rows[3] = replace(rows[3], onnx_value="elsewhere", onnx_nodes=("no_such_node",))
    origin = Origin("fc", 0, 0, "Linear", "model.py:9", "sum", ("Add_1",), "ort-off", 2e-2, 1e5, "actual")
    cause = replace(diverging().verdict.diagnoses[0], origin=origin.ref)
    verdict = Verdict("diverges", ("first diverging stage: fc",), None, (origin,), diagnoses=(cause,))
    case = {"name": "small", "onnx": None if path is None else str(path)}
    configs = (config_run("ort-off", ORT_OFF, 3e-2),)
    return replace(healthy(), case=case, stages=tuple(rows), verdict=verdict, configs=configs)


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    """The graph, in a folder of its own."""
    path = tmp_path / "models" / "small.onnx"
    path.parent.mkdir()
    onnx.save(graph_of(), path)
    return path


def command(*arguments: object) -> tuple[int, str, str]:
    """``bisect-tool overlay ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(tool, "bisect-tool", ["overlay", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def notes_of(path: Path) -> dict[str, dict[str, str]]:
    """Metadata by the node's name, bodies included."""
    model = onnx.load(path, load_external_data=False)
    return {n.name: {e.key: e.value for e in n.metadata_props} for n in annotated._nodes(model.graph)}


def test_errors_stand_at_the_node_that_makes_the_value(file: Path, tmp_path: Path) -> None:
    """The last node of a stage has its errors, the others say that they belong to it, and the rest has nothing."""
    folder = tmp_path / "report"
    write_report_folder(report_on(file), folder)
    code, out, err = command(folder)
    assert (0, "") == (code, err)
    copy = folder / "overlay" / "small.annotated.onnx"
    notes = notes_of(copy)
    assert "FAIL: total 2.0e-02, local 2.0e-02, max abs 1.6e-01, noise 2.0e+05" == notes["Add_1"]["bisect.ort-off"]
    assert "fc (Linear), model.py:20" == notes["Add_1"]["bisect.stage"]
    assert notes["Add_1"]["bisect.origin"].startswith("the error is made here: fc under ort-off, local 2.0e-02; BD103")
    assert {"namespace": "fc", "bisect.inside": "a node of fc; its own value was not compared"} == notes["product_node"]
    assert "neg (Neg), model.py:22" == notes["in_then"]["bisect.stage"]
    assert {} == notes["in_other"] == notes["choice"]
    assert "without a node in the file: gone" in out
    about = {entry.key: entry.value for entry in onnx.load(copy).metadata_props}
    assert ("DIVERGES", "BD103 resize-coordinates") == (about["bisect.verdict"], about["bisect.causes"])


def test_the_copy_is_the_same_graph(file: Path, tmp_path: Path) -> None:
    """It passes ONNX's checker, computes the same, and the original is not touched."""
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    copy = tmp_path / "copy.onnx"
    names = annotated.read_names(file)
    annotated.write_annotated(file, copy, {"sum": {"stage": "fc"}}, {"verdict": "agrees"}, names)
    onnx.checker.check_model(str(copy), full_check=True)
    onnx.checker.check_model(onnx.load(copy), full_check=True)
    feeds = {"x": np.arange(4, dtype=np.float32)[None], "flag": np.array(True)}
    results = [onnxruntime.InferenceSession(str(path)).run(None, feeds)[0] for path in (file, copy)]
    np.testing.assert_array_equal(*results)
    assert before == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [node.op_type for node in onnx.load(file).graph.node] == [
        node.op_type for node in onnx.load(copy).graph.node
    ]


@pytest.mark.parametrize("ir_version", [8, 10])
def test_old_files_can_be_annotated(tmp_path: Path, ir_version: int) -> None:
    """Metadata of nodes is younger than many files; checker and runtime take them all the same."""
    path, copy = tmp_path / "old.onnx", tmp_path / "copy.onnx"
    onnx.save(graph_of(ir_version=ir_version), path)
    annotated.write_annotated(path, copy, {"sum": {"stage": "fc"}}, {}, annotated.read_names(path))
    onnx.checker.check_model(str(copy))
    onnxruntime.InferenceSession(str(copy))
    assert {"bisect.stage": "fc"} == notes_of(copy)["Add_1"]


def test_annotating_again_replaces_what_was_there(file: Path, tmp_path: Path) -> None:
    """Only this tool's own entries go."""
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    annotated.write_annotated(
        file, first, {"product": {"stage": "old"}}, {"verdict": "old"}, annotated.read_names(file)
    )
    annotated.write_annotated(first, second, {"product": {"origin": "new"}}, {}, annotated.read_names(first))
    assert {"namespace": "fc", "bisect.origin": "new"} == notes_of(second)["product_node"]
    assert [] == list(onnx.load(second).metadata_props)


def test_large_weights_are_shared(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy beside the file reads the weights where they lie; one that would have to copy them is put there too."""
    monkeypatch.setattr(annotated, "EMBEDDED", 100)
    onnx.save(graph_of(64), file)
    folder = tmp_path / "report"
    write_report_folder(report_on(file), folder)
    code, out, _ = command(folder)
    copy = file.with_name("small.annotated.onnx")
    assert 0 == code
    assert str(copy) in out and copy.is_file()
    assert copy.stat().st_size < file.stat().st_size / 4
    onnx.checker.check_model(str(copy))
    np.testing.assert_array_equal(np.eye(64), numpy_helper.to_array(onnx.load(copy).graph.initializer[0]))
    with pytest.raises(BisectError, match="too large to be copied"):
        annotated.write_annotated(file, tmp_path / "far.onnx", {}, {}, annotated.read_names(file))
    assert not (tmp_path / "far.onnx").exists()


def test_graphs_that_are_about_to_go_are_kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export whose weights are too large for the copy is moved beside it; a report that replaces this one takes both."""
    monkeypatch.setattr(annotated, "EMBEDDED", 100)
    own = tmp_path / "temporary" / "model.onnx"
    own.parent.mkdir()
    onnx.save(graph_of(64), own, save_as_external_data=True, location="model.onnx.data", size_threshold=16)
    folder = tmp_path / "report"
    write_report_folder(report_on(None), folder)
    [written] = overlay.write_overlays(report_on(None), [overlay.Graph(own)], folder / overlay.FOLDER, own=True)
    assert folder / "overlay" / "model.annotated.onnx" == written.annotated
    onnx.checker.check_model(str(written.annotated))
    np.testing.assert_array_equal(np.eye(64), numpy_helper.to_array(onnx.load(written.annotated).graph.initializer[0]))
    (folder / "overlay" / "mine.txt").write_text("kept")
    write_report_folder(healthy(), folder, force=True)
    assert ["mine.txt"] == [path.name for path in (folder / "overlay").iterdir()]


def test_external_data_is_shared(file: Path, tmp_path: Path) -> None:
    """Data files beside the model serve the copy as well, and are embedded where that is elsewhere."""
    onnx.save(graph_of(64), file, save_as_external_data=True, location="small.data", size_threshold=16)
    names = annotated.read_names(file)
    near, far = file.with_name("near.onnx"), tmp_path / "far.onnx"
    for copy in (near, far):
        annotated.write_annotated(file, copy, {}, {}, names)
        onnx.checker.check_model(str(copy))
        np.testing.assert_array_equal(np.eye(64), numpy_helper.to_array(onnx.load(copy).graph.initializer[0]))
    assert near.stat().st_size < far.stat().st_size
    with pytest.raises(BisectError, match="holds its weights"):
        annotated.write_annotated(file, file.with_name("small.data"), {}, {}, names, force=True)


def test_nothing_is_overwritten(file: Path, tmp_path: Path) -> None:
    """Neither the file itself, whatever is asked for, nor an earlier copy or node data without --force."""
    with pytest.raises(BisectError, match="is the file itself"):
        annotated.write_annotated(file, file.parent / "." / file.name, {}, {}, GraphNames(), force=True)
    folder = tmp_path / "report"
    write_report_folder(report_on(file), folder)
    assert 0 == command(folder, "-o", tmp_path / "out")[0]
    code, _, err = command(folder, "-o", tmp_path / "out")
    assert 2 == code and "is there already" in err and "--force" in err
    assert 0 == command(folder, "-o", tmp_path / "out", "--force")[0]


def test_node_data_is_what_model_explorer_reads(file: Path, tmp_path: Path) -> None:
    """A number for each node by its name in the annotated file, thresholds from small to large, strict JSON."""
    folder = tmp_path / "report"
    write_report_folder(report_on(file), folder)
    command(folder)
    found: dict[str, Any] = json.loads((folder / "overlay" / "ort-off.total.json").read_text(encoding="utf-8"))
    assert {"results", "thresholds"} == found.keys()
    assert {"Add_1", "relu_node"} == found["results"].keys(), "nodes in bodies have no place in a graph's node data"
    assert 2e-2 == found["results"]["Add_1"]["value"]
    assert overlays.ORIGIN_COLOR[0] == found["results"]["Add_1"]["bgColor"]
    assert "nan" == found["results"]["relu_node"]["value"]
    values = [item["value"] for item in found["thresholds"]]
    assert sorted(values) == values
    assert all({"value", "bgColor", "textColor"} == item.keys() for item in found["thresholds"])
    local = json.loads((folder / "overlay" / "ort-off.local.json").read_text(encoding="utf-8"))
    assert 1e-7 == local["results"]["relu_node"]["value"]
    copy = onnx.load(folder / "overlay" / "small.annotated.onnx")
    assert found["results"].keys() <= {node.name for node in copy.graph.node}


def luminance(color: str) -> float:
    """Relative luminance of a colour, 0 to 1."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_shades_of_node_data_read_in_grey() -> None:
    """Each is darker than the one before, and its ink stands out from it."""
    shades = [luminance(paper) for _, paper, _ in overlays.THRESHOLDS]
    assert all(one > other + 0.01 for one, other in zip(shades, shades[1:], strict=False))
    for paper, ink in [*(item[1:] for item in overlays.THRESHOLDS), overlays.ORIGIN_COLOR]:
        high, low = sorted((luminance(paper), luminance(ink)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (paper, ink)


def test_parts_have_files_of_their_own(file: Path, tmp_path: Path) -> None:
    """Each part's file is annotated with its own stages; names that several parts have lose their prefix."""
    report = report_on(None)
    rows = [
        replace(each, part="head", onnx_value=each.onnx_value and f"head:{each.onnx_value}") for each in report.stages
    ]
    part = PartResult("head", str(file), 1, 1, "diverges", None, 4, 4, 1.0, ())
    write_report_folder(replace(report, stages=tuple(rows), parts=(part,)), tmp_path / "report")
    code, _, err = command(tmp_path / "report")
    assert 0 == code, err
    assert (tmp_path / "report" / "overlay" / "head.ort-off.total.json").is_file()
    assert (
        "fc (Linear), model.py:20"
        == notes_of(tmp_path / "report" / "overlay" / "small.annotated.onnx")["Add_1"]["bisect.stage"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"case": {"name": "x", "onnx": None}}, "the graph was exported for that run, and is gone"),
        ({"case": {"name": "x", "onnx": "missing.onnx"}}, "ONNX file missing.onnx: no such file"),
        ({"stages": healthy().stages}, "holds none of the nodes that the report names"),
    ],
)
def test_errors_name_the_remedy(file: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Exit 2, and what to do."""
    write_report_folder(replace(report_on(file), **change), tmp_path / "report")
    code, out, err = command(tmp_path / "report")
    assert (2, "") == (code, out)
    assert words in err and "help: " in err


def test_configurations_of_other_graphs_are_left_out() -> None:
    """Errors of another export stand at no node of this one."""
    report = report_on(None)
    rows = tuple(
        replace(each, results=dict.fromkeys(("ort-off", "ts", "stages kept apart"), each.results["ort-off"]))
        for each in report.stages
        if each.results
    )
    configs = tuple(
        config_run(name, replace(ORT_OFF, exporter=exporter), 3e-2)
        for name, exporter in (("ort-off", "dynamo"), ("ts", "torchscript"), ("stages kept apart", "dynamo"))
    )
    assert ["ort-off"] == [run.name for run in overlays.configs_of(replace(report, stages=rows, configs=configs))]


def test_each_configuration_has_files_of_its_own(file: Path) -> None:
    """Also where names are the same to a file system."""
    names = ("a/b", "a b", "A_B")
    report = report_on(file)
    rows = tuple(
        replace(each, results=dict.fromkeys(names, each.results["ort-off"])) for each in report.stages if each.results
    )
    report = replace(report, stages=rows, configs=tuple(config_run(name, ORT_OFF, 1.0) for name in names))
    graph = annotated.read_names(file)
    files = overlays.node_data_files(report, overlays.find_marks(report, graph), graph)
    assert 6 == len(files) == len({name.lower() for name in files})
    assert {"a_b.total.json", "a_b_.total.json", "A_B__.total.json"} <= files.keys()


def test_hostile_names_are_plain_text(file: Path, tmp_path: Path) -> None:
    """Whatever a module is called is text in the metadata, without what steers a terminal."""
    report = report_on(file)
    rows = (replace(report.stages[0], stage=f"{SCRIPT}\x1b[31m\ud800"), *report.stages[1:])
    names = annotated.read_names(file)
    report = replace(report, stages=rows, verdict=replace(report.verdict, origins=()))
    notes = overlays.node_notes(report, overlays.find_marks(report, names))
    copy = tmp_path / "copy.onnx"
    annotated.write_annotated(file, copy, notes, overlays.model_notes(report), names)
    assert notes_of(copy)["Add_1"]["bisect.stage"].startswith(SCRIPT)
    assert "\x1b" not in notes_of(copy)["Add_1"]["bisect.stage"]


def test_a_run_keeps_its_export_for_the_overlays(file: Path, tmp_path: Path) -> None:
    """Without a file of the user's the export lies in a temporary folder until the overlays are written."""
    settings: dict[str, Any] = {"overlays": True, "onnx": None, "keep_onnx": None, "parts": {}, "matrix": None}
    with overlay.kept_for_overlays(settings) as chosen:
        kept = Path(chosen["keep_onnx"])
        kept.write_bytes(file.read_bytes())
        overlay.overlays_of_run(chosen, report_on(None), tmp_path, False, Progress(quiet=True))
    assert not kept.parent.exists()
    assert {"model.annotated.onnx", "ort-off.total.json", "ort-off.local.json"} == {
        path.name for path in (tmp_path / "overlay").iterdir()
    }
    with overlay.kept_for_overlays({**settings, "onnx": str(file)}) as chosen:
        assert chosen["keep_onnx"] is None


def test_overlays_that_fail_are_no_matter_of_the_verdict(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What went wrong is said in a line, and the run goes on."""
    settings = {"onnx": str(file), "keep_onnx": None, "parts": {}, "own_graph": False}
    overlay.overlays_of_run(settings, healthy(), tmp_path, False, Progress(quiet=False))
    said = capsys.readouterr().err
    assert 1 == said.count("\n") and "no overlays: " in said and "none of the nodes" in said
    assert not (tmp_path / "overlay").exists()


def test_a_matrix_needs_a_graph_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is loaded."""
    from bisect_tool.cli.run import run

    arguments = ["m.py", "--input", "x.pt", "--matrix", "quick", "--overlays", "-o", "no-such-folder"]
    assert 2 == execute(run, "bisect-divergence", arguments)
    assert "--keep-onnx FILE" in capsys.readouterr().err

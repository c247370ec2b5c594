"""``bisect-tool inspect`` and ``--runner``, as a user calls them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from commands import ROOT, Healthy, command
from onnx import helper

from bisect_tool.inspection import Inspection

SCHEMA = json.loads((ROOT / "bisect_tool" / "inspection.schema.json").read_text(encoding="utf-8"))


def inspected(*arguments: object) -> tuple[int, str, str]:
    """``bisect-tool inspect ARGUMENTS -q`` in this process: exit code, stdout, stderr."""
    from bisect_tool.cli.main import execute
    from bisect_tool.cli.tool import tool

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(tool, "bisect-tool", ["inspect", *map(str, arguments), "-q"])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def mobile(healthy: Callable[[str, str], Healthy]) -> Healthy:
    return healthy("mobile", "torchscript")


def config(name: str) -> tuple[object, ...]:
    return "--config", ROOT / "configs" / f"{name}.toml"


def test_the_alignment_is_that_of_a_run(mobile: Healthy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, evidence, left-overs and stages are what a report on the same file has; nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = inspected(*config("mobile"), "--onnx", mobile.onnx, "--format", "json")
    assert 0 == code, err
    found: dict[str, Any] = json.loads(out)
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
    report = mobile.outcome.report
    assert report["alignment"] == found["alignment"]
    # Sources are told as one would type them in the folder where the command ran.
    rows, own = ([{**row, "results": {}, "source": None} for row in each["stages"]] for each in (report, found))
    assert rows == own
    assert ("torchscript", 0) == (found["graph"]["exporter"], found["graph"]["quantized"])
    model = onnx.load(mobile.onnx, load_external_data=False)
    assert (len(model.graph.node), len(model.graph.initializer)) == (found["graph"]["nodes"], found["graph"]["weights"])
    assert [{"output": 0, "onnx_output": model.graph.output[0].name}] == found["outputs"]
    assert ["image"] == [item["fed_by"] for item in found["inputs"]]
    assert [] == list(tmp_path.iterdir())


def test_the_text_fits_and_a_file_is_written_where_asked(
    mobile: Healthy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 columns; ``-o`` writes what ``--format json`` prints, and refuses to replace it."""
    monkeypatch.setenv("COLUMNS", "80")
    arguments = (*config("mobile"), "--onnx", mobile.onnx, "-o", tmp_path / "there")
    code, out, err = inspected(*arguments)
    assert 0 == code, err
    body = out[out.index("stage ") :]
    assert max(map(len, body.splitlines())) <= 80
    assert "coverage  100.0 %" in body and "folded" in body
    written = json.loads((tmp_path / "there" / "inspection.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, SCHEMA, jsonschema.Draft202012Validator)
    assert ["inspection.json"] == [path.name for path in (tmp_path / "there").iterdir()]
    code, out, err = inspected(*arguments)
    assert (2, "") == (code, out)
    assert "already holds" in err and "--force" in err


def test_levels_and_globs_choose_the_stages(mobile: Healthy) -> None:
    """As for a run."""
    code, out, err = inspected(*config("mobile"), "--onnx", mobile.onnx, "--stages", "blocks.*", "--format", "json")
    assert 0 == code, err
    found = json.loads(out)
    judged = [row for row in found["stages"] if row["role"] == "judged"]
    assert {"container"} == {row["level"] for row in judged}
    assert len(judged) == found["alignment"]["stages"] == found["alignment"]["aligned"]


def test_too_little_coverage_exits_3(mobile: Healthy, tmp_path: Path) -> None:
    """A graph of something else has no value for any stage, and says so."""
    model = onnx.load(mobile.onnx)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:], model.graph.output[:]
    fill = helper.make_tensor("fill", onnx.TensorProto.FLOAT, [3], [0.0] * 3)
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [3]))
    model.graph.node.append(helper.make_node("Constant", [], ["other"], value=fill, name="nothing"))
    onnx.save(model, tmp_path / "other.onnx")
    code, out, err = inspected(*config("mobile"), "--onnx", tmp_path / "other.onnx")
    assert 3 == code, out + err
    code, out, err = inspected(*config("mobile"), "--onnx", tmp_path / "other.onnx", "--min-coverage", 2)
    assert 2 == code and "a share from 0 to 1" in err


def test_coverage_decides_on_the_exit_code(mobile: Healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is shown all the same."""
    monkeypatch.setattr(Inspection, "enough", property(lambda self: False))
    code, out, _ = inspected(*config("mobile"), "--onnx", mobile.onnx)
    assert 3 == code
    assert "Under --min-coverage 0.9: a comparison would be inconclusive" in " ".join(out.split())


def test_bad_usage_exits_2(tmp_path: Path) -> None:
    """What is missing is named."""
    assert (2, "") == inspected(ROOT / "examples" / "mobile" / "model.py")[:2]
    code, _, err = inspected(*config("mobile"), "--onnx", tmp_path / "none.onnx")
    assert 2 == code and "no such file" in err
    case = tmp_path / "case.toml"
    case.write_text('[case]\nmodel = "m.py"\ninput = "x.pt"\n[parts]\nneck = "neck.onnx"\n', encoding="utf-8")
    code, _, err = inspected("--config", case)
    assert 2 == code and "inspect looks at one ONNX file, and the case file has [parts]" in err


def test_help_is_light() -> None:
    """The group lists the command, and neither loads torch nor onnxruntime."""
    code = (
        "import sys; from click.testing import CliRunner; from bisect_tool.cli.tool import tool; "
        "out = CliRunner().invoke(tool, ['--help']).output; assert 'inspect' in out, out; "
        "out = CliRunner().invoke(tool, ['inspect', '--help']).output; assert '--min-coverage' in out, out; "
        "assert not {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- --runner ----------------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a model, its sample, and its export."""
    (tmp_path / "small.py").write_text(MODEL, encoding="utf-8")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32))
    code, _, err = inspected(*of(tmp_path, None), "--exporter", "torchscript", "--keep-onnx", tmp_path / "small.onnx")
    assert 0 == code, err
    return tmp_path


def of(folder: Path, file: str | None = "small.onnx") -> tuple[object, ...]:
    """Arguments about the model in a folder, and about an ONNX file there."""
    given = () if file is None else ("--onnx", folder / file)
    return folder / "small.py", "--input", folder / "x.npy", *given


def test_the_reference_evaluator_as_the_whole_actual_side(small: Path) -> None:
    """One configuration, judged stage by stage as ever."""
    outcome = command(*of(small), "--runner", "onnx-reference", "--format", "json", folder=small / "r")
    assert 0 == outcome.code, outcome.err
    (ran,) = outcome.report["configs"]
    assert ("onnx-reference", "onnx-reference", "agrees") == (ran["name"], ran["actual"]["backend"], ran["status"])
    assert {"runner": "onnx-reference", "version": onnx.__version__} == ran["effective"]["actual"]
    rows = outcome.report["stages"]
    assert 3 == len(rows)
    assert all(row["results"]["onnx-reference"]["local"] is not None for row in rows)


def test_a_graph_that_it_does_not_know_is_inconclusive(small: Path) -> None:
    """Exit code 3, with the operator and what runs it; never "agrees"."""
    model = onnx.load(small / "small.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Gelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, small / "own.onnx")
    outcome = command(*of(small, "own.onnx"), "--runner", "onnx-reference", folder=small / "r")
    assert 3 == outcome.code, outcome.out
    assert all(part in outcome.err for part in ("Gelu", "com.microsoft", "--runner onnxruntime"))


def test_a_matrix_names_its_runners_itself(small: Path) -> None:
    """``--runner`` beside ``--matrix`` is refused, and the remedy named."""
    outcome = command(*of(small), "--runner", "onnx-reference", "--matrix", "quick", folder=small / "r")
    assert 2 == outcome.code
    assert 'backend = "onnx-reference"' in outcome.err


def test_a_matrix_with_the_evaluator_beside_onnxruntime(small: Path) -> None:
    """Both agree on a healthy graph, each in a process of its own; the evaluator's cost is not measured."""
    pairs = ["[[pair]]", 'name = "ort"', "[pair.actual]", 'optimization = "off"']
    pairs += ["[[pair]]", 'name = "reference"', "gating = false", "[pair.actual]", 'backend = "onnx-reference"']
    (small / "matrix.toml").write_text("\n".join(pairs), encoding="utf-8")
    outcome = command(*of(small), "--matrix", small / "matrix.toml", "--format", "json", folder=small / "r")
    assert 0 == outcome.code, outcome.err
    ran = {item["name"]: item for item in outcome.report["configs"]}
    assert ["agrees", "agrees"] == [ran[name]["status"] for name in ("ort", "reference")]
    assert ran["ort"]["actual_cost"] is not None and ran["reference"]["actual_cost"] is None
    assert "off" == ran["reference"]["actual"]["optimization"]

"""Pictures of errors in real runs: a wrong border is seen as one, in report.json and on the page."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from commands import Outcome, command
from torch import nn

from bisect_tool import store
from bisect_tool.pictures import TOP, unpacked
from bisect_tool.reporters import html, tensor_pictures

MODEL = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    pad = nn.ReflectionPad2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pad, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A graph whose second convolution reads edges repeated where the model has them reflected."""
    folder = tmp_path_factory.mktemp("border")
    (folder / "model.py").write_text(MODEL)
    names: dict[str, object] = {}
    exec(MODEL, names)
    module: nn.Module = names["build_model"]().eval()  # type: ignore[operator]
    x = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    np.save(folder / "x.npy", x.numpy())
    torch.save(module.state_dict(), folder / "w.pt")
    torch.onnx.export(module, (x,), folder / "m.onnx", dynamo=False, opset_version=17)
    model = onnx.load(folder / "m.onnx")
    (pad,) = [node for node in model.graph.node if node.op_type == "Pad"]
    (mode,) = [attribute for attribute in pad.attribute if attribute.name == "mode"]
    mode.s = b"edge"
    onnx.save(model, folder / "m.onnx")
    given = (folder / "model.py", folder / "w.pt", "--input", folder / "x.npy", "--onnx", folder / "m.onnx")
    return command(*given, "--format", "json", folder=folder / "report")


def test_a_wrong_border_is_seen(ran: Outcome) -> None:
    """The picture of the first diverging stage is dark but for a frame; few stages have one, and the file is valid."""
    assert 1 == ran.code, ran.err
    schema = json.loads((Path(store.__file__).parent / "report.schema.json").read_text())
    jsonschema.validate(ran.report, schema)
    pictured = {
        (row["stage"], name): result["picture"]
        for row in ran.report["stages"]
        for name, result in row["results"].items()
        if result["picture"] is not None
    }
    first = ran.report["verdict"]["first_over_tolerance"]
    picture = pictured[first["stage"], first["config"]]
    assert 1 <= len(pictured) <= 4
    assert ([2, 3], "local") == (picture["axes"], picture["of"])
    cells = unpacked(picture["error"], picture["rows"], picture["columns"])
    assert cells is not None
    counted = sum(picture["histogram"]) + picture["equal"] + picture["nonfinite"]
    inside = cells[2:-2, 2:-2]
    assert cells.max() == TOP and inside.max() < TOP - 120
    assert counted == 4 * cells.size


def test_the_page_comes_from_the_file_again(ran: Outcome) -> None:
    """index.html is what report.json gives, pictures, plot and graph included."""
    report = store.read_report(ran.folder)
    page = (ran.folder / "index.html").read_text(encoding="utf-8")
    assert html.html_text(report) == page
    first = report.verdict.first_over_tolerance
    assert first is not None
    view = tensor_pictures.views(report, first.config)[first.ref, first.config]
    assert "along the border only" in view.text and view.error in page
    assert 'class="around"' in page


def test_nodes_say_what_they_read(ran: Outcome) -> None:
    """Nodes of an origin name their values, so that the graph around it can be drawn."""
    (origin,) = ran.report["verdict"]["origins"]
    nodes = {node["op_type"]: node for node in origin["onnx_details"]}
    made = {name for node in origin["onnx_details"] for name in node["outputs"]}
    assert nodes["Pad"]["inputs"] and nodes["Pad"]["outputs"] and origin["onnx_value"] not in nodes["Pad"]["inputs"]
    assert made.isdisjoint(nodes["Pad"]["inputs"][:1])

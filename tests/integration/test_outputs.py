"""Faults on the graph's own outputs: whatever the inner stages say, these never read as agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from bisect_tool.backends import exporting
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.errors import BisectError
from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import Report
from bisect_tool.tolerances import make_tolerance


class Two(nn.Module):
    """Two outputs of one size, a duplicate and a constant."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.form = form
        self.register_buffer("anchors", torch.arange(4.0))

    def forward(self, x: Tensor) -> object:
        """(B, 6) -> by form."""
        first, second = self.a(x), self.b(torch.relu(x))
        if self.form == "dict":
            return {"scores": first, "boxes": second}
        if self.form == "list":
            return {"scores": [first, second], "anchors": x * 2}
        if self.form == "nested":
            return {"scores": {"left": first, "above": second}, "boxes": x * 2}
        if self.form == "twice":
            return first, first
        if self.form == "some NaN":
            return first, torch.where(second > 0, second, torch.nan)
        if self.form == "all NaN":
            return first, second * torch.nan
        if self.form == "constant":
            return first, self.anchors * 2
        return first, second


def judged(tmp_path: Path, form: str, edit: object, exporter: str = "torchscript") -> Report:
    """The report on an export whose ONNX graph was edited by ``edit(model)``."""
    torch.manual_seed(0)
    module = Two(form).eval()
    x = torch.randn(5, 6)
    path = tmp_path / "model.onnx"
    export_onnx(module, (x,), {}, path, ExportSettings(exporter))  # type: ignore[arg-type]
    model = onnx.load(path)
    edit(model)  # type: ignore[operator]
    onnx.save(model, path)
    options = Options(make_tolerance(None, None, None), onnx=path)
    return bisect(LoadedCase("two", module, (x,), {}), options)


def append(model: onnx.ModelProto, place: int, *nodes: tuple[str, dict[str, object]]) -> None:
    """Puts operators between the value of an output and the output."""
    output = model.graph.output[place]
    name = output.name
    for number, (kind, attributes) in enumerate(nodes):
        following = f"{name}_{number}_edited"
        inputs = [name, *attributes.pop("extra", [])]  # type: ignore[misc]
        model.graph.node.append(helper.make_node(kind, inputs, [following], **attributes))
        name = following
    del model.graph.output[place]
    model.graph.output.insert(place, onnx.ValueInfoProto(name=name))


def nothing(model: onnx.ModelProto) -> None:
    """The healthy control."""


def transposed(model: onnx.ModelProto) -> None:
    append(model, 1, ("Transpose", {}))


def sliced(model: onnx.ModelProto) -> None:
    for name, value in (("from", [0]), ("to", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    append(model, 1, ("Slice", {"extra": ["from", "to"]}))


def negated(model: onnx.ModelProto) -> None:
    append(model, 1, ("Neg", {}))


def dropped(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def swapped(model: onnx.ModelProto) -> None:
    first, second, *others = model.graph.output
    outputs = [second, first, *others]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def renamed(model: onnx.ModelProto, names: list[str]) -> None:
    """Calls the graph's outputs something else."""
    new = dict(zip([output.name for output in model.graph.output], names, strict=True))
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for output in model.graph.output:
        output.name = new[output.name]


def named_alike(model: onnx.ModelProto) -> None:
    """The names of the keys, in another order than the model's."""
    renamed(model, ["scores", "boxes"])
    swapped(model)


def misnamed(model: onnx.ModelProto) -> None:
    renamed(model, ["boxes", "scores"])


@pytest.mark.parametrize("form", ["tuple", "dict", "twice", "constant"])
def test_healthy_outputs_agree(tmp_path: Path, form: str) -> None:
    """Controls: every form agrees unhurt, and each of its outputs was compared."""
    report = judged(tmp_path, form, nothing)
    assert report.verdict.status == "agrees"
    assert all(len(run.outputs) == 2 for run in report.configs)


@pytest.mark.parametrize("form", ["tuple", "dict", "twice", "constant"])
@pytest.mark.parametrize("edit", [transposed, sliced, negated])
def test_a_changed_output_diverges(tmp_path: Path, form: str, edit: object) -> None:
    """A wrong shape or value of any output diverges, also of a duplicate and of a constant."""
    if (form, edit) == ("constant", transposed):
        pytest.skip("a vector has no transpose")
    report = judged(tmp_path, form, edit)
    assert report.verdict.status == "diverges"
    assert report.configs[0].outputs[1].judgement == "fail"


def test_a_missing_output_is_not_agreement(tmp_path: Path) -> None:
    """What the graph does not give can't agree."""
    report = judged(tmp_path, "tuple", dropped)
    assert report.verdict.status == "inconclusive"
    assert "nothing for the model's output 1" in report.verdict.summary[0]


def test_swapped_outputs_diverge_in_a_tuple(tmp_path: Path) -> None:
    """Places of a tuple mean something."""
    assert judged(tmp_path, "tuple", swapped).verdict.status == "diverges"


def test_swapped_outputs_of_a_dictionary_are_found(tmp_path: Path) -> None:
    """A dictionary's keys may be sorted by an exporter; the report says that outputs were found by value."""
    report = judged(tmp_path, "dict", swapped)
    assert report.verdict.status == "agrees"
    assert any("another order" in note for note in report.notes)


class Recurrent(nn.Module):
    """Of an LSTM's outputs only the sequence goes on; its last states are read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 6) -> (B, 3)."""
        return self.head(self.lstm(x)[0].mean(1))


def test_unread_states_make_nothing_of_the_final_error() -> None:
    """What the shares are parts of is the error of the model's outputs."""
    torch.manual_seed(0)
    options = Options(make_tolerance(None, None, None), export=ExportSettings("torchscript"), optimizations=("off",))
    report = bisect(LoadedCase("recurrent", Recurrent().eval(), (torch.randn(4, 7, 6),), {}), options)
    shares = {row.ref: row.results["ort-cpu-off"].share for row in report.stages if row.results}
    states = [share for ref, share in shares.items() if ref.stage == "lstm" and ref.output != 0]
    assert states and set(states) == {0.0}
    assert 1.0 == pytest.approx(sum(share or 0.0 for share in shares.values()))


def test_kept_file_with_external_data_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights lie beside the file under its name, so that two kept files do not share them, and are not written over."""
    monkeypatch.setattr(exporting, "_INLINE_LIMIT", 0)
    case = LoadedCase("one", nn.Linear(600, 600).eval(), (torch.randn(2, 600),), {})
    for name in ("a.onnx", "b.onnx"):
        bisect(case, Options(make_tolerance(None, None, None), keep_onnx=tmp_path / name, optimizations=("off",)))
    assert ["a.onnx", "a.onnx.data", "b.onnx", "b.onnx.data"] == sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "c.onnx.data").write_text("mine")
    with pytest.raises(BisectError, match=r"c\.onnx\.data: the file exists and is not overwritten"):
        bisect(case, Options(make_tolerance(None, None, None), keep_onnx=tmp_path / "c.onnx"))
    assert not (tmp_path / "c.onnx").exists() and "mine" == (tmp_path / "c.onnx.data").read_text()


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("form", ["dict", "nested", "list"])
def test_both_exporters_keep_the_order_of_keys(tmp_path: Path, form: str, exporter: str) -> None:
    """Neither sorts the keys or the inner ones; names are invented, and nothing has to be found by value."""
    report = judged(tmp_path, form, nothing, exporter)
    assert report.verdict.status == "agrees"
    assert not any("another order" in note for note in report.notes)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_name_of_a_key_is_that_output_in_any_order(tmp_path: Path, exporter: str) -> None:
    """Names decide, not places."""
    report = judged(tmp_path, "dict", named_alike, exporter)
    assert report.verdict.status == "agrees"
    assert [(out.output, out.onnx_value) for out in report.configs[0].outputs] == [
        ("scores", "scores"),
        ("boxes", "boxes"),
    ]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(("form", "edit"), [("dict", misnamed), ("list", swapped)])
def test_exchanged_outputs_diverge(tmp_path: Path, form: str, edit: object, exporter: str) -> None:
    """Under each other's name, or in each other's place in a list; no stage is blamed for it."""
    report = judged(tmp_path, form, edit, exporter)
    assert report.verdict.status == "diverges"
    assert report.verdict.origins == ()
    assert sum("are outputs exchanged?" in line for line in report.verdict.summary) == 2


def test_an_output_without_any_number_is_not_agreement(tmp_path: Path) -> None:
    """Both sides give nothing but NaN: nothing was compared."""
    report = judged(tmp_path, "all NaN", nothing)
    assert report.verdict.status == "inconclusive"
    assert report.verdict.summary == (
        "output 1: nothing but NaN or infinite values on both sides, no number to compare",
    )


class Labelled(nn.Module):
    """What it returns beside its tensor has no place in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        """``[N, 8]``; its tensor is ``[N, 4]``."""
        return {"y": self.fc(x), "count": 3, "name": "abc", "share": 0.5, "nothing": None}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_outputs_that_are_no_tensors_are_left_out(exporter: str) -> None:
    options = Options(make_tolerance(None, None, None), export=ExportSettings(exporter))  # type: ignore[arg-type]
    report = bisect(LoadedCase("net", Labelled().eval(), (torch.randn(2, 8),), {}), options)
    assert ("agrees", ["y"]) == (report.verdict.status, [str(out.output) for out in report.configs[0].outputs])


def test_some_nan_on_both_sides_is_said_in_the_verdict(tmp_path: Path) -> None:
    """The rest was compared and agrees; nobody should have to find the note."""
    report = judged(tmp_path, "some NaN", nothing)
    assert report.verdict.status == "agrees"
    assert "output 1 holds" in report.verdict.summary[1] and "of 30, the same" in report.verdict.summary[1]
    assert any("output 1 holds" in note for note in report.notes)


class Chance(nn.Module):
    """Draws other numbers each time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 8)."""
        dropped: Tensor = self.fc(nn.functional.dropout(x, 0.5, training=True))
        return dropped


def test_a_model_that_does_not_repeat_itself_accuses_nothing() -> None:
    """Neither a stage nor a configuration: one run against another says nothing about the graph."""
    torch.manual_seed(0)
    case = LoadedCase("chance", Chance().eval(), (torch.randn(4, 8),), {})
    report = bisect(case, Options(make_tolerance(None, None, None)))
    (line,) = report.verdict.summary
    assert "inconclusive" == report.verdict.status
    assert line.startswith("PyTorch does not repeat itself: /bernoulli")
    assert (None, (), ()) == (
        report.verdict.first_over_tolerance,
        report.verdict.origins,
        report.verdict.amplifiers,
    )
    statuses = {(run.status, run.skipped_reason) for run in report.configs}
    assert {("failed", "PyTorch does not repeat itself")} == statuses

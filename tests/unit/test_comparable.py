"""What two recordings have in common: other models, other names of inputs, other lengths, and where nothing is a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bisect_tool.recorder import Recording, record, record_script
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import Report


class Net(nn.Module):
    def __init__(self, names: str = "abcd") -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def made(folder: Path, name: str, module: nn.Module, sample: Tensor | None = None) -> Path:
    record(module.eval(), torch.ones(2, 3) if sample is None else sample, None, folder / name)
    return folder / name


def compared(folder: Path, one: nn.Module, other: nn.Module, **options: Any) -> Report:
    return compare_recordings(made(folder, "a.trace", one), made(folder, "b.trace", other), **options)


def text(report: Report) -> str:
    return "\n".join(report.verdict.summary)


def test_nothing_but_nan_is_no_agreement(tmp_path: Path) -> None:
    """As in the main command."""
    module = Net()
    nn.init.constant_(module.get_parameter("d.bias"), float("nan"))
    report = compared(tmp_path, module, module)
    assert "inconclusive" == report.verdict.status and "nothing but NaN" in text(report)
    nn.init.constant_(module.get_parameter("d.bias")[:1], 0.0)
    whole = compare_recordings(made(tmp_path, "c.trace", module), tmp_path / "c.trace")
    assert "agrees" == whole.verdict.status


def test_other_models(tmp_path: Path) -> None:
    """No module of one is in the other: no stage can be blamed."""
    report = compared(tmp_path, Net("ab"), Net("cd"))
    assert "inconclusive" == report.verdict.status and report.verdict.first_cause is None
    assert ("skipped", "no stage in common") == (report.configs[0].status, report.configs[0].skipped_reason)
    assert "recordings of different models" in text(report) and "after the last stage" not in text(report)
    related = compare_recordings(tmp_path / "a.trace", made(tmp_path, "c.trace", Net("ac")))
    assert "different models" not in text(related) and "50%" in text(related)


def test_growth_is_over_true_producers(tmp_path: Path) -> None:
    """Whichever stages are selected."""
    other = Net()
    with torch.no_grad():
        other.get_parameter("b.weight").mul_(1.01)
    whole = compared(tmp_path, Net(), other)
    config = whole.configs[0].name
    expected = {str(row.ref): row.results[config].growth for row in whole.stages}
    part = compare_recordings(tmp_path / "a.trace", tmp_path / "b.trace", stages=["b", "d"])
    got = {str(row.ref): row.results[config].growth for row in part.stages}
    assert {"b", "d"} == got.keys() and got["d"] is not None
    assert got == {name: expected[name] for name in got}


def test_weights_are_counted_and_come_in_order(tmp_path: Path) -> None:
    """Every weight that differs is there, the model's first one first, and the largest difference is named."""
    names = [f"l{number}" for number in range(9)]
    one, other = Net(""), Net("")
    for net in (one, other):
        torch.manual_seed(1)
        for name in names:
            net.add_module(name, nn.Linear(3, 3))
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.mul_(1.5 if number == 7 else 1.01)
    link = next(link for link in compared(tmp_path, one, other).chain if link.link == "weights")
    assert 18 == len(link.differences)
    assert "l0.weight" == link.differences[0].what
    note = str(link.differences[0].note)
    assert "18 of 18 weights differ, relative L2 1.0e-02" in note and "the most in l3.bias" in note


def test_what_changed_no_number_adds_nothing(tmp_path: Path) -> None:
    """Circumstances that differ beside equal numbers."""
    paths = made(tmp_path, "a.trace", Net()), tmp_path / "b.trace"
    with Recording(paths[1]) as recording:
        recording.moment("start")
        recording.moment("built")
        recording.moment("sample")
        recording.run(Net().eval(), (torch.ones(2, 3),))
        recording.mode["flags"]["threads"] += 1
        recording.finish({"backend": "torch", "seed": 3, "mode": "eval"})
    report = compare_recordings(*paths)
    assert "agrees" == report.verdict.status
    assert "further differences" in text(report) and "may add to it" not in text(report)


@pytest.mark.parametrize("content", ["same", "other"])
def test_inputs_under_other_names(tmp_path: Path, content: str) -> None:
    """A graph names what a model has by place."""
    sample = torch.ones(2, 3) * (1 if content == "same" else 2)
    made(tmp_path, "a.trace", Net())
    with Recording(tmp_path / "b.trace") as recording:
        for moment in ("start", "built", "sample", "end"):
            recording.moment(moment)
        recording.put_stages(
            [
                {
                    "stage": "/a/Gemm_output_0",
                    "call": 0,
                    "output": 0,
                    "level": "leaf",
                    "type": "Gemm",
                    "source": None,
                    "value": 0,
                    "reads": [],
                    "reads_inputs": ["x"],
                    "alias_of": None,
                    "onnx_value": "/a/Gemm_output_0",
                    "array": np.ones((2, 3), np.float32),
                }
            ],
            [{"key": "y", "array": np.ones((2, 3), np.float32)}],
            [{"key": "x", "array": sample.numpy()}],
        )
        recording.finish({"backend": "onnxruntime"})
    report = compare_recordings(tmp_path / "a.trace", tmp_path / "b.trace")
    links = {link.link: link for link in report.chain}
    assert ("same" if content == "same" else "differs") == links["data"].status
    if content == "other":
        assert ["input 0"] == [each.what for each in links["data"].differences]
        assert "relative L2" in str(links["data"].differences[0].note)
    assert "unknown" == links["code"].status
    assert "inconclusive" == report.verdict.status and "record the ONNX side with MODEL too" in text(report)


SCRIPT = """
import sys
import torch
torch.manual_seed(0)
layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.arange(8.0).reshape(4, 2))
for (batch,) in torch.utils.data.DataLoader(data, batch_size=1):
    optimizer.zero_grad()
    layer(batch).sum().backward()
    optimizer.step()
"""


def trained(folder: Path, name: str, steps: int) -> list[str]:
    (folder / "train.py").write_text(SCRIPT)
    with Recording(folder / name) as recording:
        configuration = record_script(recording, str(folder / "train.py"), [], steps)
        recording.finish(configuration, extra={"kind": "script"})
        return list(recording.notes)


def test_trainings_of_other_lengths(tmp_path: Path) -> None:
    """The common steps are compared, in both directions, and the longer one is named."""
    assert [] == trained(tmp_path, "a.trace", 2)
    assert ["the script ended after 4 of 9 steps"] == trained(tmp_path, "b.trace", 9)
    for one, other, longer in (("a", "b", "actual"), ("b", "a", "expected")):
        report = compare_recordings(tmp_path / f"{one}.trace", tmp_path / f"{other}.trace")
        assert "agrees" == report.verdict.status, text(report)
        assert report.verdict.first_cause is None, text(report)
        assert f"{longer} is longer, 4 steps against 2" in text(report)
        assert {"same"} >= {link.status for link in report.chain if link.link in ("data", "configuration", "stages")}


LEARNS = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

what, value = sys.argv[1:]
torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))


class Samples(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        negated = what == "sample" and value == "b" and i == 5
        return (-x[i] if negated else x[i]), (2 - y[i] if what == "label" and value == "b" else y[i])


momentum = 0.5 if what == "statistics" and value == "b" else 0.1
smoothing = 0.1 if what == "criterion" and value == "b" else 0.0
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 3))
criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for inputs, labels in DataLoader(Samples(), batch_size=8, shuffle=False):
    loss = criterion(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("statistics", "step0.buffer.1.running_mean"),
        ("criterion", "step0.loss"),
        ("sample", "1 sample is another one of 16, the rest stand where they stood: the transform, or other files"),
        ("label", "the same samples in the same order: what else a batch holds, such as labels, or its size"),
    ],
)
def test_what_differs_first_in_training(what: str, first: str, tmp_path: Path) -> None:
    """Statistics are written past the optimiser, criteria are modules too, and samples may change in their place."""
    (tmp_path / "train.py").write_text(LEARNS)
    for value in "ab":
        with Recording(tmp_path / f"{value}.trace") as recording:
            configuration = record_script(recording, str(tmp_path / "train.py"), [what, value], 2)
            recording.finish(configuration, extra={"kind": "script"})
    report = compare_recordings(tmp_path / "a.trace", tmp_path / "b.trace")
    assert "diverges" == report.verdict.status
    differing = [each for link in report.chain for each in link.differences if link.link in ("data", "stages")]
    assert first in f"{differing[0].what} {differing[0].note}", differing
    assert 1 == sum("step0.loss" == row.ref.stage for row in report.stages)


class Scaled(Net):
    """One operation more, in the middle or at the end."""

    def __init__(self, place: str) -> None:
        super().__init__("ab")
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.place == "middle":
            x = x * 1.01
        x = self.b(x)
        return x * 1.01 if self.place == "end" else x


@pytest.mark.parametrize("place", ["middle", "end"])
def test_a_stage_that_only_one_side_has(place: str, tmp_path: Path) -> None:
    for one, other, side in (("", place, "actual"), (place, "", "expected")):
        folder = tmp_path / side
        folder.mkdir()
        report = compared(folder, Scaled(one), Scaled(other))
        assert "diverges" == report.verdict.status
        assert f"only {side} has stage /mul#0" in report.verdict.summary
        assert "exposed" not in text(report), "nothing is exposed in a recording"

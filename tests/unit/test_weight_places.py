"""``weight_places`` and ``fresh_weights``: whose weights the numbered ones of a file are, when they hold something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from anonymous import without_names
from onnx import numpy_helper
from torch import Tensor, nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.align.weight_places import WeightUse, pair_by_place
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.records import Report


def uses(*weights: tuple[str, str, object | None]) -> list[WeightUse]:
    """Name, what reads it, what it holds."""
    return [WeightUse(name, (key,), content) for name, key, content in weights]


FRESH = uses(("a", "conv", 1), ("b", "norm", None), ("c", "matmul", 2), ("d", "matmul", 3))


def test_what_holds_the_same_is_the_same_wherever_it_stands() -> None:
    given = uses(("3", "matmul", 3), ("1", "conv", 1), ("0", "norm", None), ("2", "matmul", 2))
    assert pair_by_place(FRESH, given) == {"3": "d", "1": "a", "0": "b", "2": "c"}


def test_what_holds_something_else_is_told_by_its_place() -> None:
    """One weight, or every one."""
    one = uses(("1", "conv", 1), ("2", "norm", None), ("3", "matmul", 9), ("4", "matmul", 3))
    all_ = uses(("1", "conv", 7), ("2", "norm", 8), ("3", "matmul", 9), ("4", "matmul", 10))
    assert pair_by_place(FRESH, one) == pair_by_place(FRESH, all_) == dict(zip("1234", "abcd", strict=True))


def test_weights_without_a_place_are_nobodys() -> None:
    """A graph that computes otherwise: only what is equal is paired."""
    given = uses(("1", "conv", 1), ("2", "gemm", 8), ("3", "gemm", 9))
    assert pair_by_place(FRESH, given) == {"1": "a"}


def test_twins_are_told_by_their_place_too() -> None:
    """Two weights that hold the same on one side are not told by that."""
    twins = uses(("1", "conv", 1), ("2", "norm", None), ("3", "matmul", 2), ("4", "matmul", 2))
    assert pair_by_place(FRESH, twins) == dict(zip("1234", "abcd", strict=True))


class Net(nn.Module):
    """Convolution with BatchNorm, and functional products."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_mean)
        self.first, self.second = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(16, 3))
        self.out = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        """x (2, 2, 8, 8) -> (2, 5)."""
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.out(torch.tanh(x @ self.first) @ self.second)


X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def nameless(folder: Path, seed: int, changed: Sequence[int] = ()) -> Report:
    """A report on the model with seed 0 and a file of numbers, from another seed or with a weight of that shape changed."""
    path = folder / "given.onnx"
    export_onnx(Net(seed).eval(), (X,), {}, path, ExportSettings("torchscript"))
    model = without_names(onnx.load(path))
    for tensor in model.graph.initializer:
        if changed and list(tensor.dims) == list(changed):
            array = numpy_helper.to_array(tensor).copy()
            array[0] *= 2
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    case = LoadedCase("net", Net(0).eval(), (X,), {})
    return bisect(case, Options(make_tolerance(None, None, None), onnx=path))


def test_another_checkpoint_is_told_in_a_file_without_names(tmp_path: Path) -> None:
    """Each weight is held against the one that stands there in a fresh export, BatchNorm folded in on both sides."""
    report = nameless(tmp_path, seed=7)
    (found,) = [each for each in report.verdict.diagnoses if each.code == "BD201"]
    assert found.evidence[0].startswith("6 of 6 weights in the ONNX file differ from the model's")
    told = " ".join(found.evidence)
    assert all(f"({name})" in told for name in ("first", "second", "out.weight"))
    assert any("another checkpoint?" in line for line in report.verdict.summary)


def test_one_changed_weight_is_no_other_checkpoint(tmp_path: Path) -> None:
    report = nameless(tmp_path, seed=0, changed=(16, 3))
    assert report.verdict.status == "diverges"
    assert not any(each.code == "BD201" for each in report.verdict.diagnoses)
    assert any("second" in line for each in report.verdict.diagnoses for line in each.evidence)


class Fading(nn.Module):
    """Layers behind which an error is small: most of what comes in is added to a number that does not change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.second = nn.Linear(16, 32), nn.Hardswish(), nn.Linear(32, 16)
        self.third, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.third.weight *= 0.01
            self.third.bias += 1

    def forward(self, x: Tensor) -> Tensor:
        """x (8, 16) -> (8, 4)."""
        return self.last(self.third(self.second(self.act(self.first(x)))))


def test_an_error_that_is_small_again_is_found_where_it_is_made(tmp_path: Path) -> None:
    """What lies behind counts as equal, so that only stages without a pair are broken."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "given.onnx"
    export_onnx(Fading().eval(), (x,), {}, path, ExportSettings("torchscript"))
    model = without_names(onnx.load(path))
    weight = next(tensor for tensor in model.graph.initializer if sorted(tensor.dims) == [16, 32])
    array = numpy_helper.to_array(weight).copy()
    array[3] *= 1.3
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    case = LoadedCase("fading", Fading().eval(), (x,), {})
    report = bisect(case, Options(make_tolerance(None, None, None), onnx=path))
    last = next(row for row in report.stages if row.stage == "third")
    error = last.results["ort-cpu-off"].total
    assert error is not None and 1e-5 < error.rel_l2 < 1e-3
    assert ["first"] == [origin.ref.stage for origin in report.verdict.origins]
    assert report.alignment.aligned == report.alignment.stages

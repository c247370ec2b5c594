"""PyTorch's calls changed in one thing: which changes are proposed, and what one that gives ONNX's value says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch.nn import functional as F

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.diagnose.causes import ATTRIBUTE, MISSING, OPERATOR, PRECISION
from bisect_tool.diagnose.otherwise import Calling, Change, Parameter, changes
from bisect_tool.records import Report


def proposed(name: str, *parameters: Parameter, passes: bool = False, whole: bool = False) -> list[Change]:
    return list(changes([Calling(name, parameters, passes, whole, "model.py:7", "pool")]))


def test_an_argument_is_put_back_to_its_default() -> None:
    """The text says what PyTorch would have had to compute, where, and what it had."""
    (change,) = proposed("avg_pool2d", Parameter("divisor_override", "int", True, 5, None))
    assert (ATTRIBUTE, {"divisor_override": None}) == (change.code, change.values)
    assert "with divisor_override left out in avg_pool2d of pool at model.py:7, and not 5" == change.text


def test_an_argument_at_its_default_is_left_alone() -> None:
    """Nothing else is known that it could have been."""
    assert [] == proposed("softplus", Parameter("threshold", "number", False, 20, 20))


def test_arguments_are_left_out_together() -> None:
    """A scale for each axis: none of them alone gives the size's own ratio."""
    scales = [Parameter(f"scales_{axis}", "float", True, 0.6, None) for axis in "hw"]
    last = proposed("_upsample_bilinear2d_aa", *scales)[2]
    assert {"scales_h": None, "scales_w": None} == last.values
    assert "with scales_h and scales_w left out" in last.text


def test_flags_are_turned_and_words_exchanged() -> None:
    """What has few values gets each of the others, once."""
    flags = proposed("sort", Parameter("descending", "bool", False, True, False))
    assert [{"descending": False}] == [each.values for each in flags]
    words = proposed("div", Parameter("rounding_mode", "str", True, "floor", None))
    assert [None, "trunc"] == [each.values["rounding_mode"] for each in words]


def test_each_number_of_a_list_is_made_neutral() -> None:
    """Of two shifts one may have been dropped."""
    lists = [
        each.values["shifts"] for each in proposed("roll", Parameter("shifts", "List[int]", False, [2, 9], [2, 9]))
    ]
    assert [[0, 9], [2, 0]] == lists[:2]


def test_sisters_writes_and_types() -> None:
    """Another function, a write that is left out, and whole numbers that pass through a narrower type."""
    assert [("sister", "fmod", OPERATOR)] == [(c.kind, c.name, c.code) for c in proposed("remainder")]
    (write,) = proposed("masked_fill_", passes=True)
    assert ("without", MISSING) == (write.kind, write.code)
    assert "without masked_fill_ of pool at model.py:7, which writes in place" == write.text
    assert {("through", PRECISION)} == {(c.kind, c.code) for c in proposed("pow", whole=True)}
    # The two underscores belong to the name.
    assert "in place" not in proposed("__rshift__", passes=True)[0].text


def test_sizes_and_closed_kernels_are_left_alone() -> None:
    """A kernel that is told another size than its operands have may write beyond its memory."""
    assert [] == proposed("max_pool2d", Parameter("stride", "List[int]", False, [2, 2], []))
    assert [] == proposed("gru", Parameter("bidirectional", "bool", False, True, False))
    assert [] == proposed("mkldnn_rnn_layer", Parameter("alpha", "float", False, 2.0, 1.0))
    assert [] == proposed("gather", whole=True)


class Net(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Linear(6, 8)
        self.function = function
        self.last = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))  # type: ignore[no-any-return]


def report_on(net: Net, file: Path, exported: Net | None = None) -> Report:
    """The report on ``net`` beside the graph of ``exported``, or of itself."""
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export((exported or net).eval(), (x,), str(file), dynamo=False)
    return bisect(LoadedCase("net", net.eval(), (x,), {}), Options(make_tolerance(None, None, None), onnx=file))


def test_a_lost_argument_is_named_with_its_evidence(tmp_path: Path) -> None:
    """The cause has no remedy that was tried in the graph; the ledger has the change that gives ONNX's value."""
    report = report_on(Net(lambda x: F.softplus(x, 1.0, 0.1)), tmp_path / "model.onnx")
    (told,) = report.verdict.diagnoses
    assert ATTRIBUTE == told.code
    assert told.remedy_verified is None
    assert told.evidence[0].startswith("ONNX's value is what PyTorch gives with threshold 20 in softplus")
    (entry,) = (each for each in report.verdict.ledger if each.conclusion == "cause")
    assert ATTRIBUTE == entry.code
    assert entry.error_after is not None and entry.error_after < 1e-6


def test_a_change_that_mends_the_graph_comes_first(tmp_path: Path) -> None:
    """Where the graph itself can be mended, PyTorch is not asked what it would have to do."""
    report = report_on(
        Net(lambda x: F.leaky_relu(x, 0.2)), tmp_path / "model.onnx", Net(lambda x: F.leaky_relu(x, 0.01))
    )
    (told,) = report.verdict.diagnoses
    assert (ATTRIBUTE, True) == (told.code, told.remedy_verified)
    assert not any("beside ONNX's value" in entry.change for entry in report.verdict.ledger)


def test_what_no_change_gives_stays_unknown(tmp_path: Path) -> None:
    """A sine is nothing that PyTorch would compute with one thing changed."""
    file = tmp_path / "model.onnx"
    net = Net(lambda x: F.softplus(x, 1.0, 0.1))
    report_on(net, file)
    model = onnx.load(file)
    node = next(node for node in model.graph.node if node.op_type == "Softplus")
    node.op_type = "Sin"
    onnx.save(model, file)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    report = bisect(LoadedCase("net", net.eval(), (x,), {}), Options(make_tolerance(None, None, None), onnx=file))
    assert "BD100" in [each.code for each in report.verdict.diagnoses]

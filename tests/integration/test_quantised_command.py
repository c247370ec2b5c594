"""A quantised file on the command line: --min-sqnr, the table in dB, and the page."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from bisect_tool import store

MODEL = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 64, 10))
"""


class Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, arrays: list[np.ndarray]):
        self.rest = iter(arrays)

    def get_next(self) -> dict[str, np.ndarray] | None:
        array = next(self.rest, None)
        return None if array is None else {"x": array}


@pytest.mark.filterwarnings("ignore")
def test_the_command(tmp_path: Path) -> None:
    """Decibels judge a quantised file: the defaults, or --min-sqnr, which excludes other tolerances."""
    (tmp_path / "model.py").write_text(MODEL)
    space: dict[str, object] = {}
    exec(MODEL, space)
    samples = [torch.randn(1, 3, 12, 12) for _ in range(3)]
    torch.save(samples[0], tmp_path / "x.pt")
    plain, path = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    torch.onnx.export(space["build_model"]().eval(), (samples[0],), str(plain), dynamo=False, input_names=["x"])  # type: ignore[operator]
    logging.disable(logging.WARNING)
    try:
        quantize_static(str(plain), str(path), Samples([sample.numpy() for sample in samples]))
    finally:
        logging.disable(logging.NOTSET)
    arguments = (tmp_path / "model.py", "--input", tmp_path / "x.pt", "--onnx", path)
    outcome = command(*arguments, folder=tmp_path / "default")
    words = " ".join(outcome.out.split())
    assert 0 == outcome.code, outcome.err + outcome.out
    assert "judged by SQNR: at least 10 dB in total, and 20 dB in each stage by itself, the defaults" in words
    assert "costs most: " in words and "by itself" in words and "noise" not in words
    report = store.read_report(tmp_path / "default")
    assert "quantised" == report.tolerance.source and report.verdict.costs
    outcome = command(*arguments, "--min-sqnr", 60, folder=tmp_path / "strict")
    words = " ".join(outcome.out.split())
    assert 1 == outcome.code, outcome.err
    assert "SQNR: at least 60 dB, given by the user" in words
    assert "no stage by itself costs more than it may" in words
    assert "What costs most" in (tmp_path / "strict" / "index.html").read_text()
    outcome = command(*arguments, "--min-sqnr", "20", "--max-abs", "1", folder=tmp_path / "both")
    assert 2 == outcome.code and "exclude each other" in outcome.err

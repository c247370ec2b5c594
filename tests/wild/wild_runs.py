"""Exports a case, shows without the tool that both sides differ, and asks the tool about it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from cases import Case, Inputs
from numpy.typing import NDArray
from torch import nn

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.backends.exporting import ExportSettings, export_onnx
from bisect_tool.records import Diagnosis, Report

DIFFERS = 1e-5
"""Relative L2 of the outputs from which a case counts as reproduced."""


@dataclass(frozen=True)
class Found:
    """What became of a case.

    Attributes:
        apart: the outputs' difference by plain ONNX Runtime without optimisation, relative L2; infinite where one side
            has NaN or infinities that the other has not.
        report: the tool's.
        seconds: of processor time that the tool took, the export left out.
    """

    apart: float
    report: Report
    seconds: float

    @property
    def reproduced(self) -> bool:
        return self.apart > DIFFERS

    @property
    def stage(self) -> str | None:
        """Path of the first origin."""
        origins = self.report.verdict.origins
        return str(origins[0].ref) if origins else None

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Of the first origin."""
        origins = self.report.verdict.origins
        told = (each for each in self.report.verdict.diagnoses if origins and each.origin == origins[0].ref)
        return next(told, None)


def _exported(case: Case, exporter: str, folder: Path) -> tuple[nn.Module, Inputs, Path]:
    model, inputs = case.build()
    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(model, inputs, {}, file, ExportSettings(exporter=exporter))  # type: ignore[arg-type]
    return model, inputs, file


def reproduces(case: Case, exporter: str, folder: Path) -> bool:
    """Whether both sides still differ; the tool is not asked."""
    return raw_difference(*_exported(case, exporter, folder)) > DIFFERS


def look(case: Case, exporter: str, folder: Path) -> Found:
    """The whole way: export, both sides plain, the tool on the same file."""
    model, inputs, file = _exported(case, exporter, folder)
    apart = raw_difference(model, inputs, file)
    began = time.process_time()
    report = bisect(
        LoadedCase(case.name, model, inputs, {}), Options(make_tolerance(None, None, None), onnx=file, threads=1)
    )
    return Found(apart, report, time.process_time() - began)


def raw_difference(model: nn.Module, inputs: Inputs, file: Path) -> float:
    """Relative L2 between the outputs of PyTorch and of plain ONNX Runtime; nothing of the tool takes part."""
    with torch.no_grad():
        expected = model(*[each.clone() for each in inputs]).numpy()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return _apart(expected, session.run(None, feeds(session, inputs))[0])


def feeds(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> dict[str, NDArray[np.generic]]:
    """By order; an exporter leaves none of them out here."""
    names = [each.name for each in session.get_inputs()]
    return {name: each.numpy() for name, each in zip(names, inputs, strict=True)}


def _apart(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> float:
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    odd = ~np.isfinite(one) | ~np.isfinite(other)
    if one.shape != other.shape or not np.array_equal(one[odd], other[odd], equal_nan=True):
        return math.inf
    norm = float(np.linalg.norm(one[~odd]))
    return float(np.linalg.norm((one - other)[~odd])) / norm if norm else math.inf

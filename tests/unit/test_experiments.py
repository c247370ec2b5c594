"""Matrix runs: what becomes of a pair that gives no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bisect_tool import experiments
from bisect_tool.backends.isolation import CrashedError
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.records import ConfigPair, NumericConfig


@pytest.mark.parametrize(
    "reason",
    [
        "ONNX Runtime failed while running: BFCArena: Failed to allocate memory for requested buffer",
        "forward failed in the model: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "forward failed in fc: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB for an array",
        "ONNX Runtime cannot load the graph: std::bad_alloc",
        "the dynamo exporter failed: MemoryError",
    ],
)
def test_words_for_no_memory_are_known(reason: str) -> None:
    """Those of Python, numpy, PyTorch and ONNX Runtime; other failures have others."""
    assert experiments._OUT_OF_MEMORY.search(reason)
    assert not experiments._OUT_OF_MEMORY.search("forward failed in memory.attention (MemoryBank): no such key")


@pytest.mark.parametrize(
    ("error", "explores", "counts"),
    [
        (experiments.UnavailableError("no GPU"), "skipped", "skipped"),
        (experiments.RefusedError("fixed every size"), "skipped", "failed"),
        (InconclusiveError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : no such type"), "skipped", "failed"),
        (InconclusiveError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Conv(11)"), "skipped", "failed"),
        (InconclusiveError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad shape"), "failed", "failed"),
        (InconclusiveError("no PyTorch stage could be matched"), "failed", "failed"),
        (BisectError("the dynamo exporter failed"), "failed", "failed"),
        (CrashedError("the process was killed by SIGSEGV"), "crashed", "crashed"),
    ],
)
def test_only_what_is_known_to_be_refused_is_skipped(error: BisectError, explores: str, counts: str) -> None:
    """In a preset; who names a pair is told that it failed."""
    for preset in (True, False):
        matrix: Any = SimpleNamespace(matrix=SimpleNamespace(preset=preset))
        for gating, status in ((False, explores), (True, counts)):
            pair = ConfigPair("one", NumericConfig("torch"), NumericConfig("onnxruntime"), gating)
            found = experiments._Matrix._status_without_answer(matrix, pair, error)
            assert ("failed" if status == "skipped" and not preset else status) == found

"""What to do about the first cause of a difference between two recordings."""

from __future__ import annotations

import pytest

from bisect_tool.recordings.cause_help import remedy_of
from bisect_tool.records import Difference, FirstCause


@pytest.mark.parametrize(
    ("link", "what", "expected", "actual", "told"),
    [
        ("files", "onnx m.onnx", None, "m.onnx, 10 bytes", "one side ran the model"),
        ("files", "onnx m.onnx", "m.onnx, 10 bytes", "m.onnx, 12 bytes", "copy that file"),
        ("configuration", "backend", "torch", "onnxruntime", "one side ran the model"),
        ("configuration", "backend", "onnxruntime", "onnx-reference", "the same value of that option"),
    ],
    ids=["a file on one side", "two files", "a model and a file", "two runners of a file"],
)
def test_a_model_against_its_file_is_sent_to_the_comparison_of_both(
    link: str, what: str, expected: str | None, actual: str, told: str
) -> None:
    """To copy the file to the side that runs the model would change nothing."""
    cause = FirstCause(link, Difference(what, expected, actual, "any"), None)
    assert told in (remedy_of(cause) or "")

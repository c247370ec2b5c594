"""What to do about the first cause of a difference between two recordings, in one line."""

from __future__ import annotations

from bisect_tool.records import FirstCause

_LINKS = {
    "code": "record both sides with the same source; the file that is named is where they part",
    "environment": "make the two environments alike, that difference first (bisect-tool env diff A B), and record again",
    "configuration": "record both sides with the same value of that option",
    "files": "copy that file from one side to the other, and record again",
    "data": "compare what that step reads and how it decodes; the steps before it are the same",
    "weights": "the weights are not what the same checkpoint gives: compare how each side builds the model and loads them",
    "mode and flags": "set it alike on both sides before the run, and record again",
    "random state": "record both sides with the same --seed, or compare in evaluation mode",
}
_OF_A_FILE = (
    "one side ran the model, the other the ONNX file: bisect-divergence --onnx finds where the file leaves the model"
)
_NAMED = {
    ("configuration", "preprocess"): "record both sides with the same --preprocess function",
    ("mode and flags", "threads"): "record both sides with the same number, as --threads 1",
    ("mode and flags", "training mode"): "call model.eval() on both sides, or record both with --mode train",
}


def remedy_of(cause: FirstCause) -> str | None:
    """``None`` where the chain says no more than the stage."""
    what = cause.difference.what
    if cause.link == "files" and what.startswith("checkpoint "):
        return "copy the checkpoint from one side to the other, or record both with the same one"
    sides = cause.difference.expected, cause.difference.actual
    if cause.link == "files" and what.startswith("onnx ") and not all(sides):
        return _OF_A_FILE
    if (cause.link, what) == ("configuration", "backend") and "torch" in sides:
        return _OF_A_FILE
    if cause.link == "data" and what.startswith("input "):
        return "feed both sides with the same sample; no step of preprocessing before it differs"
    return _NAMED.get((cause.link, what)) or _LINKS.get(cause.link)

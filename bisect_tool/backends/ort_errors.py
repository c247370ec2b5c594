"""ONNX Runtime's errors in words that fit a line, and what to do about them."""

from __future__ import annotations

import re

MOST = 600
"""Characters of a reason; of a longer one beginning and end stay, where ONNX Runtime says what and why."""

_PLACE = re.compile(r"/\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ ")
_ANONYMOUS = "(anonymous namespace)"

_CHECK = "python -c \"import onnx; onnx.checker.check_model('FILE', full_check=True)\" says whether the file is valid"

_HINTS = (
    (
        r"No Op registered for|not a registered function/op|Unsupported model IR version|Opset \d+ is under development",
        "a newer onnxruntime may know the operator, the opset or the file's version; or export at a lower --opset. "
        "Operators of a domain of their own need the library that has them",
    ),
    (
        r"NOT_IMPLEMENTED|Could not find an implementation",
        "onnxruntime has no kernel for this operator with these types on this device: convert the file to float32, or try "
        "another device or opset",
    ),
    (r"bad_alloc|[Aa]llocate|out of memory", "there is not enough memory: a smaller sample, or close other programs"),
    (
        r"[Ee]xternal(?:_| )data|[Ee]xternal initializer|No such file",
        "the weights of the file lie in files beside it: keep them together, under their names",
    ),
    (
        r"INVALID_GRAPH|INVALID_ARGUMENT|[Ii]nvalid model|Type Error|Unrecognized attribute|ShapeInferenceError"
        r"|Duplicate definition|INVALID_PROTOBUF",
        f"the file is at fault and not onnxruntime's version: {_CHECK}; export or convert it again",
    ),
)


def reason_of(error: BaseException) -> str:
    """One line, without the place in ONNX Runtime's own source."""
    text = " ".join(str(error).split())
    while (place := _PLACE.search(text)) is not None:
        text = text[: place.start()] + text[_after_signature(text, place.end()) :].lstrip()
    if len(text) <= MOST:
        return text
    half = MOST // 2
    return f"{text[:half].rstrip()} ... {text[-half:].lstrip()}"


def _after_signature(text: str, start: int) -> int:
    """Where a C++ function's name and types end; ``start`` itself if there are none."""
    at = start
    while (opening := text.find("(", at)) >= 0:
        if text.startswith(_ANONYMOUS, opening):
            at = opening + len(_ANONYMOUS)
            continue
        depth = 0
        for end in range(opening, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                return end + 1 + len(" const") * text.startswith(" const", end + 1)
        break
    return start


def hint_for(reason: str) -> str:
    """What to do about a graph that cannot be loaded."""
    for pattern, hint in _HINTS:
        if re.search(pattern, reason):
            return hint
    return "does the file run in ONNX Runtime on its own?"


def hint_while_running(reason: str) -> str | None:
    """What an error of a kernel's comes from, where it says so."""
    if "out of data bounds" in reason or "out of bounds" in reason:
        return (
            "an index leaves its axis: a negative one may have been flattened on export (`bisect-tool explain BD113`), or "
            "the sample is larger than the one of the export"
        )
    return None

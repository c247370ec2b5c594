"""A stage that the graph computes in half precision (``BD107``): casts are one thing, arithmetic between them another."""

from __future__ import annotations

from collections.abc import Iterator

from bisect_tool.diagnose.calls import Widened
from bisect_tool.diagnose.causes import OVERFLOW, PRECISION
from bisect_tool.diagnose.rules.facts import Clue, Facts, place_text, result_of
from bisect_tool.diagnose.rules.nonfinite import first_node
from bisect_tool.diagnose.trial import Trial

HALVES = ("float16", "bfloat16")
_CODES = {"float16": 10, "bfloat16": 16}
_CARRIES = {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split"}


def look(facts: Facts) -> Iterator[Trial | Clue]:
    if facts.expected.dtype.name not in ("float32", "float64"):
        return
    for narrow in HALVES:
        inside = [
            node
            for node in facts.stage
            if node.op not in _CARRIES and (made := result_of(node)) is not None and made.dtype.name == narrow
        ]
        casts = [node for node in facts.stage if node.op == "Cast" and node.attributes.get("to") == _CODES[narrow]]
        # PyTorch may compute in it as well: its results say so.
        theirs = any(call.result is not None and call.result.dtype.name == narrow for call in facts.calls)
        inputs = [
            (node, name)
            for node in facts.stage
            for name in node.inputs
            if name in facts.rounded and (given := node.values.get(name)) is not None and given.dtype.name == narrow
        ]
        if inputs and not inside:
            node, name = inputs[0]
            was = facts.rounded[name].dtype.name
            text = f"the graph's input {name} is {narrow}: the sample's {was} numbers are rounded before anything is computed"
            remedy = f"declare the input {was}; or give PyTorch the numbers that the application rounds, as the sample"
            yield Trial(PRECISION, node.name, text, remedy, Widened(narrow))
        if inside and not theirs:
            names = ", ".join(f"{node.op} {node.name}" for node in inside[:3])
            more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
            text = f"the graph computes {names}{more} in {narrow}, PyTorch in {facts.expected.dtype.name}"
            remedy = "keep these nodes in float32: name them in the converter's block list"
            begin = first_node(facts.stage, wants_nan=False)
            code = PRECISION
            if begin is not None and begin[0] in inside:
                code = OVERFLOW
                text = f"{text}; {begin[0].op} {begin[0].name}{place_text(begin[1])}: {begin[2][0]}"
            yield Trial(code, inside[0].name, text, remedy, Widened(narrow))
        elif len(casts) > 1 and not theirs:
            # Each by itself leaves the others' rounding.
            names = ", ".join(node.name for node in casts[:3])
            text = f"{len(casts)} values pass through {narrow}: {names}"
            yield Trial(PRECISION, casts[0].name, text, "leave these casts out", Widened(narrow))

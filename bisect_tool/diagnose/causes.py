"""The causes that a trial can show, by code. ``bisect-tool explain CODE`` prints the page of each."""

from __future__ import annotations

UNKNOWN = "BD100"
ATTRIBUTE = "BD101"
OPERATOR = "BD102"
MISSING = "BD103"
EXTRA = "BD104"
OPERANDS = "BD105"
CONSTANT = "BD106"
PRECISION = "BD107"
REDUCED = "BD108"
NONFINITE = "BD109"
OVERFLOW = "BD110"
INTEGERS = "BD111"
JUMP = "BD112"
INDICES = "BD113"
MASKED = "BD114"
WEIGHT = "BD202"
LAYOUT = "BD203"
NOT_FINITE = "BD204"
ROUNDED = "BD205"
BAKED = "BD401"
TRAINING = "BD402"
CHANCE = "BD403"
INPUTS = "BD404"
SUSPECT = "BD405"
RUNTIME = "BD501"
PLACEMENT = "BD502"
GROWN = "BD503"

TITLES = {
    UNKNOWN: "cause unknown",
    ATTRIBUTE: "an attribute differs from PyTorch's call",
    OPERATOR: "another operator than PyTorch's",
    MISSING: "an operation of PyTorch's is missing in the graph",
    EXTRA: "the graph computes something that PyTorch does not",
    OPERANDS: "the inputs of a node are in another order",
    CONSTANT: "a constant differs from PyTorch's",
    PRECISION: "a value passes through a narrower type",
    REDUCED: "one side multiplies in lower precision",
    NONFINITE: "NaN or infinities on one side only",
    OVERFLOW: "a number is too large for half precision",
    INTEGERS: "whole numbers overflow, or divide otherwise",
    JUMP: "rounding on the edge of a step: a tie or a threshold",
    INDICES: "indices that come twice or are negative",
    MASKED: "rows that are masked throughout",
    WEIGHT: "a weight differs from the model's",
    LAYOUT: "a weight is laid out otherwise than the operator wants it",
    NOT_FINITE: "weights that are NaN or infinite",
    ROUNDED: "weights are rounded to a narrower type",
    BAKED: "a constant was baked in at trace time",
    TRAINING: "left in training mode",
    CHANCE: "a side differs from itself when it runs twice",
    INPUTS: "inputs or channels are in another order",
    SUSPECT: "an attribute or opset that is known to change results",
    RUNTIME: "the runtime computes a node otherwise than ONNX defines it",
    PLACEMENT: "nodes ran on another device than asked for",
    GROWN: "no fault: rounding that the model makes larger",
}

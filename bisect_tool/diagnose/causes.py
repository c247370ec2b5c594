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
WEIGHT = "BD202"
LAYOUT = "BD203"

TITLES = {
    UNKNOWN: "cause unknown",
    ATTRIBUTE: "an attribute differs from PyTorch's call",
    OPERATOR: "another operator than PyTorch's",
    MISSING: "an operation of PyTorch's is missing in the graph",
    EXTRA: "the graph computes something that PyTorch does not",
    OPERANDS: "the inputs of a node are in another order",
    CONSTANT: "a constant differs from PyTorch's",
    PRECISION: "a value passes through a narrower type",
    WEIGHT: "a weight differs from the model's",
    LAYOUT: "a weight is laid out otherwise than the operator wants it",
}

"""Two data files from reading to conclusion, in the order that every caller needs."""

from __future__ import annotations

from bisect_tool.data.files import compare_contents, conclude
from bisect_tool.data.names import under_common_names
from bisect_tool.data.patterns import find_patterns
from bisect_tool.data.records import Content, DataComparison, Limits


def compare_files(expected: Content, actual: Content, limits: Limits) -> DataComparison:
    """What differs between two files of one kind: names brought together, contents compared, patterns looked for."""
    expected, actual = under_common_names(expected, actual)
    results, kept = compare_contents(expected, actual, limits)
    return conclude(expected, actual, limits, results, kept, find_patterns(expected.kind, results, kept))

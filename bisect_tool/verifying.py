"""Runs a comparison and asks what ``verify`` asks of its final outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bisect_tool.pipeline import LoadedCase, Options, bisect
from bisect_tool.records import Report
from bisect_tool.verification import Outputs, Questions, answered


def verify_case(
    questions: Questions, case: LoadedCase, options: Options, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """The report of :func:`bisect_tool.pipeline.bisect`, with the agreement of outputs and the user's numbers.

    Args:
        questions: what to ask.
        case, options, progress: as for ``bisect``.

    Raises:
        BisectError: unusable input, or the user's function does not do.
        InconclusiveError: nothing could be compared.
    """
    outputs = Outputs()
    report = bisect(case, replace(options, keep_outputs=outputs.keep), progress)
    return answered(report, outputs, questions)

"""The plug-in for pytest: ``assert_onnx_matches``. Loading it imports nothing; the first use of the fixture does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bisect_tool.records import Report


@pytest.fixture(scope="session")
def assert_onnx_matches() -> Callable[..., Report]:
    """Asserts that an ONNX file computes what its PyTorch model does: ``assert_onnx_matches(model, inputs, onnx)``.

    Takes what :func:`bisect_tool.verify` takes, and returns its report; ``model`` and ``inputs`` may be objects or paths,
    without ``onnx`` the model is exported. Fails with the stage that differs first; no verdict fails too.
    """
    return check


def check(model: Any, inputs: Any, onnx: Any = None, tolerances: Any = None, **options: Any) -> Report:
    """See :func:`assert_onnx_matches`.

    Args:
        model, inputs, onnx, tolerances, options: as for :func:`bisect_tool.verify`.

    Returns:
        The report, where the two agree.

    Raises:
        AssertionError: they do not, or there is no verdict.
        BisectError: the model, an input, a file or an option can't be used.
    """
    # Tracebacks end at the test's own line.
    __tracebackhide__ = True
    from bisect_tool.api import verify
    from bisect_tool.errors import BisectError, InconclusiveError

    failure: BaseException | None = None
    try:
        report = verify(model, inputs, onnx, tolerances=tolerances, **options)
    except InconclusiveError as error:
        failure = AssertionError(f"assert the ONNX graph == the model, no verdict: {_text(error)}")
    except BisectError as error:
        failure = BisectError(_text(error), hint=error.hint, exit_code=error.exit_code)
    if failure is not None:
        # Outside of the except block: what happened inside the tool is no part of the test's story.
        raise failure
    if report.verdict.status != "agrees":
        from bisect_tool.reporters.assertion import assertion_text

        raise AssertionError(assertion_text(report))
    return report


def _text(error: Any) -> str:
    return f"{error.message}\nhelp: {error.hint}" if error.hint else str(error.message)

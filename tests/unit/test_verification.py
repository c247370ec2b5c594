"""What is asked of final outputs, what answers it, and what is refused because nothing would."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from report_samples import diverging, empty, healthy, metrics

from bisect_tool.errors import BisectError
from bisect_tool.records import LimitUse, OutputResult, Report, TableSource
from bisect_tool.reporters import wording
from bisect_tool.reporters.verification import print_verification
from bisect_tool.verification import Limit, Outputs, answered, make_questions, metric_line, parse_limit

SCORES = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], dtype=np.float32)


def outputs(actual: Any = SCORES, expected: Any = SCORES, name: str = "0") -> Outputs:
    found = Outputs()
    found.keep("ort-off", {name: expected}, {} if actual is None else {name: actual})
    return found


def asked(report: Report | None = None, actual: Any = SCORES, **given: Any) -> Report:
    return answered(report or healthy(), outputs(actual), make_questions(**given))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("argmax=0.99", Limit("argmax", 0.99, None)),
        ("map >= 0.4", Limit("map", 0.4, True)),
        ("mean error<=1e-3", Limit("mean error", 1e-3, False)),
    ],
)
def test_limits_are_read(text: str, limit: Limit) -> None:
    """The three forms of a limit."""
    assert limit == parse_limit(text)


@pytest.mark.parametrize("text", ["argmax", "=1", "a=b", "a=nan", "a=inf", "a<1", ""])
def test_no_limit(text: str) -> None:
    """What is no limit is refused with the form: one that nothing is ever over would seem to be watched."""
    with pytest.raises(BisectError, match="not of the form") as caught:
        parse_limit(text)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "--top-k 0"),
        ({"class_axes": ["x"]}, "--class-axis 'x'"),
        ({"limits": ["drift=1"]}, "nothing gives a number"),
        ({"limits": ["argmax=1", "argmax>=0.5"]}, "given twice"),
        ({"metric": "nothing"}, "not module:function"),
        ({"metric": "no_such_module_here:f"}, "cannot be imported"),
        ({"metric": "math:no_such_function"}, "has no function"),
    ],
)
def test_questions_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    """Wrong questions are refused before anything runs."""
    with pytest.raises(BisectError, match=message):
        make_questions(**given)


def test_agreement_is_always_told() -> None:
    """Without any limit the agreement is in the report, and decides nothing."""
    report = asked(actual=SCORES[:, ::-1])
    (out,) = report.configs[0].outputs
    assert out.agreement is not None and (0.0, 1) == (out.agreement.argmax, out.agreement.axis)
    assert "agrees" == report.verdict.status and () == report.user_metrics


def test_lost_classes_diverge_under_a_limit() -> None:
    """A share under its limit is a divergence, whatever the errors say; the configuration diverges too."""
    report = asked(actual=SCORES[::-1], limits=["argmax=1"])
    assert "diverges" == report.verdict.status == report.configs[0].status
    assert "argmax 0 is under its limit 1 (ort-off)" == report.verdict.summary[0]
    assert "agrees" == asked(limits={"argmax": 1.0, "top_k": 1.0}).verdict.status


def test_own_metric() -> None:
    """A function's number is judged by its limit: the most by default, the least where it says so; NaN never passes."""

    def drift(expected: dict[str, Any], actual: dict[str, Any]) -> Any:
        return np.abs(expected["0"] - actual["0"]).max()

    def judged(value: float, limit: str) -> str:
        report = asked(metric=lambda e, a: {"m": value}, limits=[limit])
        return report.user_metrics[0].judgement

    report = asked(actual=SCORES + 0.25, metric=drift, limits={"drift": 0.2})
    (metric,) = report.user_metrics
    assert ("drift", 0.25, 0.2, False, "fail") == (
        metric.name, metric.value, metric.limit, metric.least, metric.judgement
    )  # fmt: skip
    assert "diverges" == report.verdict.status
    assert ["pass", "fail", "pass", "fail", "fail", "fail"] == [
        judged(1, "m=1"), judged(2, "m=1"), judged(1, "m>=1"), judged(0, "m>=1"), judged(np.nan, "m=1"),
        judged(np.nan, "m>=1"),
    ]  # fmt: skip
    report = asked(metric=drift)
    assert ["not compared"] == [metric.judgement for metric in report.user_metrics]
    assert "drift 0 (ort-off)" == metric_line(report.user_metrics[0])


def test_metric_from_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """``module:function`` is found from the working directory; what it prints does not mix with the answer."""
    (tmp_path / "own_metrics_here.py").write_text("def f(expected, actual):\n    print('hello')\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    report = asked(metric="own_metrics_here:f")
    assert [("f", "own_metrics_here:f", 1.0)] == [(m.name, m.source, m.value) for m in report.user_metrics]
    assert ("", "hello\n") == capsys.readouterr()


def test_metric_gets_plain_copies() -> None:
    """A function may write into what it gets, and gets bfloat16 as float32: numpy can't compute with it."""
    seen: list[Any] = []

    def spoil(expected: dict[str, Any], actual: dict[str, Any]) -> float:
        seen.append(expected["0"].dtype)
        expected["0"][:] = 0
        return 0.0

    own = SCORES.astype(ml_dtypes.bfloat16)
    kept = outputs(own, own)
    answered(healthy(), kept, make_questions(metric=spoil))
    assert [np.dtype(np.float32)] == seen
    assert own.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": lambda e, a: 1 / 0}, "raised ZeroDivisionError"),
        ({"metric": lambda e, a: "many"}, "is a str, not a number"),
        ({"metric": lambda e, a: {"x": 1}, "limits": ["y=1"]}, "gives no number of that name"),
        ({"metric": lambda e, a: {}, "limits": ["y=1"]}, "gives no number of that name"),
        ({"class_axes": ["1=0"]}, "no such output"),
        ({"class_axes": ["0=7"]}, "has 2 dimensions"),
        ({"class_axes": ["none"], "limits": ["argmax=1"]}, "no output has classes"),
    ],
)
def test_questions_without_an_answer(given: dict[str, Any], message: str) -> None:
    """What nothing answers to is an error, never a silent pass."""
    with pytest.raises(BisectError, match=message) as caught:
        asked(**given)
    assert caught.value.hint is not None


def test_class_axis_by_output() -> None:
    """An axis may be named for all outputs or one; ``none`` leaves an output out."""

    def axis(*texts: str) -> Any:
        found = asked(class_axes=texts).configs[0].outputs[0].agreement
        return None if found is None else found.axis

    assert [1, 0, 0, None, 0] == [axis(), axis("0"), axis("0=0"), axis("0=none"), axis("none", "0=0")]


def test_missing_output_asks_nothing() -> None:
    """Without the graph's value nothing is called; the report is inconclusive by itself."""
    report = answered(healthy(), outputs(None), make_questions(metric=lambda e, a: 1 / 0, limits=["m=1"]))
    assert () == report.user_metrics and report.configs[0].outputs[0].agreement is None


def test_configurations_that_do_not_count_are_not_asked() -> None:
    """What is only explored can't make the verdict."""
    report = healthy()
    report = replace(report, configs=tuple(replace(run, gating=False) for run in report.configs))
    found = answered(report, outputs(SCORES[::-1]), make_questions(metric=lambda e, a: 1.0))
    assert () == found.user_metrics


# -- what is printed --------------------------------------------------------------------------------------------------

TABLE = TableSource("tolerances.toml", "2026-01-01T00:00:00Z", "0.1.0", 0.01, 128, 512, "measured", None, 5)


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    print_verification(report, files=[("report", "out/index.html")], file=stream, width=width)
    return stream.getvalue()


def test_agreement_takes_a_few_lines() -> None:
    """A pipeline's log gets the verdict first, the limits, the outputs, and where the report is."""
    text = printed(asked())
    assert text.startswith("agrees  ckpt against the exported graph\n")
    assert "5 stages and 1 output within limits (ort-off)" in text
    assert "same class at 2 of 2 positions (axis 1, 3 classes)" in " ".join(text.split())
    assert text.endswith("report  out/index.html\n")
    assert len(text.splitlines()) <= 10


@pytest.mark.parametrize("report", [healthy, diverging, empty])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit(report: Callable[[], Report], width: int) -> None:
    """Nothing but paths is wider than the terminal."""
    for line in printed(report(), width).splitlines():
        assert len(line) <= width or "index.html" in line


def test_failing_stages_are_listed_with_their_limits() -> None:
    """Stages over their limits are named with the error, the limit and the line; and how many of how many."""
    report = diverging()
    rows = tuple(
        replace(
            row,
            results={
                name: replace(result, limit=LimitUse("rel_l2", result.total.rel_l2, 1e-5))
                for name, result in row.results.items()
            },
        )
        for row in report.stages
    )
    report = replace(report, stages=rows, tolerance=replace(report.tolerance, source="calibrated", table=TABLE))
    text = printed(report, 120)
    assert text.startswith("DIVERGES  ckpt against")
    assert "over their limits" in text and "limit 1.0e-05 (x" in text and "* error is made here" in text
    assert "limits of 5 stages calibrated on 128 samples (tolerances.toml)" in " ".join(text.split())


def test_nearest_limit_is_told() -> None:
    """Where all is well, the stage that is nearest to its limit is named: the next one to fail."""
    report = healthy()
    first, *rest = report.stages
    near = {name: replace(r, limit=LimitUse("rel_l2", 9e-8, 1e-7)) for name, r in first.results.items()}
    report = replace(report, stages=(replace(first, results=near), *rest))
    assert "nearest to its limit is conv1: rel_l2 9.0e-08, limit 1.0e-07" in " ".join(printed(report).split())


def test_limit_ratio() -> None:
    """Zero limits, NaN and infinities have a ratio too."""
    assert [0.5, 0.0, np.inf, np.inf, np.inf] == [
        LimitUse("rel_l2", value, limit).ratio for value, limit in [(1, 2), (0, 0), (1, 0), (np.nan, 1), (np.inf, 1)]
    ]


def test_table_is_named_as_the_source_of_limits() -> None:
    """The words for a calibrated tolerance say from how many samples, at which rate, and whether that is firm."""
    tolerance = replace(healthy().tolerance, source="calibrated", table=TABLE)
    text = wording.tolerance_text(tolerance)
    assert "calibrated on 128 samples" in text and "one false alarm in 100 samples" in text
    weak = replace(TABLE, tail="too few", samples=3, hardware="cpu x")
    text = wording.tolerance_text(replace(tolerance, table=weak))
    assert "too few to be sure" in text and "this kind of machine" in text


def test_output_result_keeps_its_place() -> None:
    """Old callers give four fields."""
    assert OutputResult(0, "y", metrics(0.0), "pass").agreement is None


def test_a_failing_number_is_told_once() -> None:
    """Its line is in the verdict too; the text has it once, with ``FAIL``."""
    report = asked(actual=SCORES[::-1], limits=["argmax=1"])
    stream = io.StringIO()
    print_verification(report, file=stream, width=100)
    assert 1 == stream.getvalue().count("argmax 0 is under its limit 1 (ort-off)")
    assert "FAIL argmax 0 is under its limit 1 (ort-off)" in stream.getvalue()


def test_nan_is_no_number() -> None:
    """NaN passes no limit, and is neither over nor under it."""
    report = asked(metric=lambda expected, actual: {"drift": float("nan")}, limits=["drift=1"])
    assert ("diverges", "drift is not a number, its limit 1 (ort-off)") == (
        report.verdict.status,
        report.verdict.summary[0],
    )


def test_limits_of_a_table_without_their_metric() -> None:
    """Whoever gave no ``--metric-limit`` reads where the limit comes from."""
    with pytest.raises(BisectError, match="nothing gives a number") as caught:
        make_questions(limits=["drift=1"])
    assert caught.value.hint is not None and "[metrics] of the table" in caught.value.hint

"""JUnit files: valid under what readers agree on, complete, and safe whatever a model calls its stages."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_samples import bare, diverging, empty, healthy, hostile, long, matrix

from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.records import Report, UserMetric
from bisect_tool.reporters import failing
from bisect_tool.reporters.junit import failure_text, junit_text

xmlschema = pytest.importorskip("xmlschema")

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
SAMPLES = {f.__name__: f for f in (bare, diverging, empty, healthy, hostile, long, matrix)}


@pytest.fixture(scope="module")
def schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(Path(__file__).parents[1] / "schemas" / "junit.xsd"))


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.encode())


def suites(*reports: Report) -> ElementTree.Element:
    return parsed(junit_text([(f"sample {n}", report) for n, report in enumerate(reports)], NOW))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_is_valid(name: str, schema: xmlschema.XMLSchema) -> None:
    """Whatever a report holds, its JUnit file follows the schema."""
    text = junit_text([(name, SAMPLES[name]()), ("again", SAMPLES[name]())], NOW)
    schema.validate(text)


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace("<testsuites>", '<testsuites name="x">'),
        lambda text: text.replace(' hostname="localhost"', ""),
        lambda text: text.replace("<failure ", "<error ", 1).replace("</failure>", "</error>", 1),
        lambda text: text.replace('timestamp="2026-01-02T03:04:05"', 'timestamp="2026-01-02T03:04:05Z"'),
        lambda text: text.replace("<properties>", "<properties><other/>"),
    ],
)
def test_schema_refuses_what_is_wrong(broken: object, schema: xmlschema.XMLSchema) -> None:
    """The schema is one that can fail: attributes and elements that a reader would stumble over are refused."""
    good = junit_text([("x", diverging())], NOW)
    bad = broken(good)  # type: ignore[operator]
    assert bad != good
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        schema.validate(bad)


def test_each_stage_is_a_test_case() -> None:
    """Every stage and output of every configuration that counts is there, failing ones with what is over which limit."""
    report = diverging()
    (suite,) = suites(report)
    cases = {(case.get("classname"), case.get("name")): case for case in suite.iter("testcase")}
    assert len(cases) == len(suite.findall("testcase")) == int(suite.get("tests", ""))
    failures = 0
    for run in failing.counting_runs(report):
        for row, result in failing.counting_rows(report, run):
            case = cases["ckpt." + run.name, f"stage {row.ref}"]
            failure = case.find("failure")
            assert (result.judgement == "fail") == (failure is not None)
            if failure is not None:
                failures += 1
                assert failing.why_stage(row, result, report.tolerance) == failure.get("message")
                assert row.source is not None and row.source in (failure.text or "")
        for out in run.outputs:
            failures += out.judgement == "fail"
            assert ("ckpt." + run.name, f"output {out.output}") in cases
    assert failures + 1 == int(suite.get("failures", "")), "one more for the verdict"
    verdict = cases["ckpt", "verdict"].find("failure")
    assert verdict is not None and "diverges" == verdict.get("type")


def test_agreement_has_no_failure() -> None:
    """A report that agrees has no failing test case, and one for the verdict."""
    (suite,) = suites(healthy())
    assert "0" == suite.get("failures") and not [*suite.iter("failure")]
    assert "verdict" in [case.get("name") for case in suite.iter("testcase")]


def test_inconclusive_fails() -> None:
    """No verdict is no green file."""
    (suite,) = suites(empty())
    assert ["inconclusive"] == [f.get("type") for f in suite.iter("failure") if f.get("type") == "inconclusive"]


def test_metrics_are_test_cases(schema: xmlschema.XMLSchema) -> None:
    """A number over its limit fails a test case of its own."""
    metrics = (
        UserMetric("drift", "m:f", "ort-off", 0.5, 0.1, False, "fail"),
        UserMetric("told", "m:f", "ort-off", 0.5, None, False, "not compared"),
    )
    text = junit_text([("x", replace(healthy(), user_metrics=metrics))], NOW)
    schema.validate(text)
    found = {case.get("name"): case.find("failure") for case in parsed(text).iter("testcase")}
    assert found["metric told"] is None
    failure = found["metric drift"]
    assert failure is not None and "drift 0.5 is over its limit 0.1 (ort-off)" == failure.get("message")


def test_samples_are_suites() -> None:
    """Each sample has a suite of its own, numbered from 0."""
    root = suites(healthy(), diverging())
    assert ["0", "1"] == [suite.get("id") for suite in root]
    assert ["sample 0", "sample 1"] == [suite.get("name") for suite in root]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BisectError("broken \x00 file", hint="mend it"), "error"), (InconclusiveError("nothing"), "inconclusive")],
)
def test_run_without_report(error: BisectError, kind: str, schema: xmlschema.XMLSchema) -> None:
    """A run that ended in an error leaves a file that fails with the reason, and the remedy."""
    text = failure_text("net", error, NOW)
    schema.validate(text)
    (failure,) = parsed(text).iter("failure")
    assert kind == failure.get("type")
    assert "\x00" not in text and (error.hint or "") in (failure.text or "")

"""A report as JUnit XML: a test case for each stage, output and number, and one for the verdict.

What test dashboards read has no standard; the two schemas that are handed on (that of Apache Ant's tasks and that of
Jenkins' xUnit plug-in) disagree in places. What is written here is valid under both: no attributes on the root, all of
Ant's required elements, and ``failure`` alone for whatever does not pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from xml.etree import ElementTree

from bisect_tool.errors import EXIT_INCONCLUSIVE, BisectError
from bisect_tool.records import ConfigRun, Origin, Report
from bisect_tool.reporters import failing, wording
from bisect_tool.verification import metric_line

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML file may hold, not even written as references."""


@dataclass(frozen=True, slots=True)
class _Case:
    """``outcome``: ``None``: passed; ``skipped``; or the type of a failure."""

    group: str
    name: str
    outcome: str | None = None
    message: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True)
class _Suite:
    """What one report comes to; ``out`` and ``err`` are shown beside its cases."""

    number: int
    name: str
    package: str
    cases: Sequence[_Case]
    seconds: float = 0.0
    properties: Sequence[tuple[str, str]] = ()
    out: str = ""
    err: str = ""


def junit_text(reports: Sequence[tuple[str, Report]], now: datetime | None = None) -> str:
    """The content of a JUnit file: one suite for each sample.

    Args:
        reports: name of each sample and its report.
        now: time that the file tells; ``None``: that of the clock.
    """
    root = ElementTree.Element("testsuites")
    for number, (name, report) in enumerate(reports):
        suite = _Suite(
            number,
            name,
            str(report.case.get("name") or "model"),
            [*_cases(report)],
            seconds=sum(report.timings.values()),
            properties=[*_properties(report)],
            out="\n".join(report.verdict.summary),
            err="\n".join(report.notes),
        )
        _add(root, suite, _stamp(now))
    return _as_text(root)


def failure_text(name: str, error: BisectError, now: datetime | None = None) -> str:
    """The file of a run that came to no report: one test case, which fails with the reason.

    Args:
        name: of the case.
        error: that ended the run.
        now: as above.
    """
    root = ElementTree.Element("testsuites")
    kind = "inconclusive" if error.exit_code == EXIT_INCONCLUSIVE else "error"
    text = f"{error.message}\n{error.hint}" if error.hint else error.message
    case = _Case(name, "verdict", kind, error.message.splitlines()[0], text)
    _add(root, _Suite(0, name, name, [case]), _stamp(now))
    return _as_text(root)


def _stamp(now: datetime | None) -> str:
    return (now or datetime.now(timezone.utc)).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def _as_text(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(root: ElementTree.Element, suite: _Suite, stamp: str) -> None:
    """One suite, with all that either schema requires."""
    element = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "id": str(suite.number),
            "name": _clean(suite.name),
            "package": _clean(suite.package),
            "timestamp": stamp,
            "hostname": "localhost",
            "tests": str(len(suite.cases)),
            "failures": str(sum(case.outcome not in (None, "skipped") for case in suite.cases)),
            "errors": "0",
            "skipped": str(sum(case.outcome == "skipped" for case in suite.cases)),
            "time": f"{suite.seconds:.3f}",
        },
    )
    listed = ElementTree.SubElement(element, "properties")
    for key, value in suite.properties:
        ElementTree.SubElement(listed, "property", {"name": key, "value": _clean(value)})
    for case in suite.cases:
        _write(element, case)
    ElementTree.SubElement(element, "system-out").text = _clean(suite.out)
    ElementTree.SubElement(element, "system-err").text = _clean(suite.err)


def _write(suite: ElementTree.Element, case: _Case) -> None:
    element = ElementTree.SubElement(
        suite, "testcase", {"classname": _clean(case.group), "name": _clean(case.name), "time": "0"}
    )
    if case.outcome == "skipped":
        ElementTree.SubElement(element, "skipped", {"message": _clean(case.message)})
    elif case.outcome is not None:
        failure = ElementTree.SubElement(element, "failure", {"type": case.outcome, "message": _clean(case.message)})
        failure.text = _clean(case.details or case.message)


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    for key in ("model", "checkpoint", "onnx", "sample"):
        if report.case.get(key):
            yield key, str(report.case[key])
    yield "verdict", report.verdict.status
    yield "judged by", failing.judged_by(report)


def _cases(report: Report) -> Iterator[_Case]:
    name = str(report.case.get("name") or "model")
    runs = failing.counting_runs(report)
    origins = {origin.ref: origin for origin in report.verdict.origins}
    for run in runs:
        group = f"{name}.{run.name}"
        for row, result in failing.counting_rows(report, run):
            if result.judgement == "fail":
                why = failing.why_stage(row, result, report.tolerance)
                origin = origins.get(row.ref)
                lines = [f"{row.ref}: {why}", f"at {row.source}" if row.source else "", f"{row.type}"]
                details = "\n".join(filter(None, [*lines, *_nodes(row.onnx_nodes), *_made(origin, report)]))
                yield _Case(group, f"stage {row.ref}", "divergence", why, details)
            else:
                skipped = result.judgement == "not compared"
                yield _Case(
                    group, f"stage {row.ref}", "skipped" if skipped else None, "nothing to compare: no elements"
                )
        yield from _outputs(report, run, group)
    for item in report.alignment.unaligned:
        yield _Case(f"{name}.alignment", f"stage {item.ref}", "skipped", item.reason)
    for metric in report.user_metrics:
        outcome = "metric" if metric.judgement == "fail" else None
        yield _Case(f"{name}.{metric.config}", f"metric {metric.name}", outcome, metric_line(metric))
    status = report.verdict.status
    yield _Case(
        name,
        "verdict",
        None if status == "agrees" else status,
        report.verdict.summary[0] if report.verdict.summary else status,
        "\n".join(report.verdict.summary),
    )


def _outputs(report: Report, run: ConfigRun, group: str) -> Iterator[_Case]:
    for out in run.outputs:
        why = failing.why_output(out, report) if out.judgement == "fail" else "no value to compare"
        outcome = {"pass": None, "fail": "divergence", "not compared": "skipped"}[out.judgement]
        yield _Case(group, f"output {out.output}", outcome, why)
    if run.status in ("failed", "crashed", "perturbed"):
        yield _Case(group, "configuration", run.status, run.skipped_reason or run.status)


def _nodes(names: Sequence[str]) -> list[str]:
    shown = [*names[:3], *([f"and {len(names) - 3} more"] if len(names) > 3 else [])]
    return [f"ONNX nodes: {', '.join(shown)}"] if names else []


def _made(origin: Origin | None, report: Report) -> Iterator[str]:
    """That error is made here, and why, where that is known."""
    if origin is None:
        return
    yield f"error is made here: {wording.noise_text(origin.noise_ratio, origin.side)}"
    for each in report.verdict.diagnoses:
        if each.origin == origin.ref:
            yield f"{each.code} {each.title}: {each.remedy}"


def _clean(text: str) -> str:
    """What XML can hold; anything else is written as an escape."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)

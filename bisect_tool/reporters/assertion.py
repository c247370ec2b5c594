"""A report that does not agree in the words of a failed assertion, as test runners show them."""

from __future__ import annotations

from collections.abc import Iterator

from bisect_tool.records import Report
from bisect_tool.reporters import failing, wording
from bisect_tool.verification import metric_line

MOST_STAGES = 5
MOST_OUTPUTS = 4


def assertion_text(report: Report) -> str:
    """``assert net.onnx == Net``, the first stage that differs, and what there is to know about it."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    model = str(report.case.get("name") or "the model")
    head = f"assert {failing.graph_name(report)} == {model}"
    stages = failing.failing_stages(report)
    outputs = failing.failing_outputs(report)
    metrics = failing.failing_metrics(report)
    if report.verdict.status == "inconclusive":
        yield f"{head}, no verdict: {_summary(report)}"
        yield from (f"  {line}" for line in report.verdict.summary[1:])
        return
    # The first line is all that a summary of many tests has room for: it names the stage.
    if stages:
        yield f"{head}, first differing stage {stages[0].name} at {stages[0].place}"
        yield from _first(stages[0])
        yield from _others(stages)
    elif outputs:
        run, out = outputs[0]
        yield f"{head}, output {out.output} differs: {failing.why_output(out, report)} ({run.name})"
    elif metrics:
        yield f"{head}, {metric_line(metrics[0])}"
    else:
        yield f"{head}, {_summary(report)}"
    yield from _outputs(report)
    for metric in metrics if stages or outputs else metrics[1:]:
        yield f"  {metric_line(metric)}"
    for diagnosis in report.verdict.diagnoses[:2]:
        remedy = " ".join(diagnosis.remedy.split())
        yield f"  {diagnosis.code} {diagnosis.title}: {remedy}"
    told = {metric_line(metric) for metric in metrics}
    for line in [] if stages else report.verdict.summary:
        if line not in told:
            yield f"  {line}"
    yield f"  judged by: {failing.judged_by(report)}"


def _summary(report: Report) -> str:
    return report.verdict.summary[0] if report.verdict.summary else report.verdict.status


def _first(stage: failing.FailingStage) -> Iterator[str]:
    """The stage that a reader looks at first: what is over its limit, where in the tensor, and whether it made the error."""
    result = stage.row.results[stage.config]
    yield f"  {stage.why}   ({stage.config})"
    for line in wording.worst_element_lines(result.total, result.spread):
        yield f"  {line}"
    if stage.origin is not None:
        yield f"  error is made here: {wording.noise_text(stage.origin.noise_ratio, stage.origin.side)}"
        nodes = [wording.printable(name) for name in stage.origin.onnx_nodes[:3]]
        if nodes:
            yield f"  ONNX nodes: {', '.join(nodes)}"


def _others(stages: list[failing.FailingStage]) -> Iterator[str]:
    rest = stages[1:]
    made = [stage for stage in rest if stage.origin is not None]
    for stage in made[:MOST_STAGES]:
        yield f"  error is made in {stage.name} too, at {stage.place}: {stage.why}"
    if rest:
        names = ", ".join(stage.name for stage in rest[:MOST_STAGES]) + (" ..." if len(rest) > MOST_STAGES else "")
        yield f"  {wording.plural(len(rest), 'later stage')} over their limits: {names}"


def _outputs(report: Report) -> Iterator[str]:
    shown = [(run, out) for run in failing.counting_runs(report) for out in run.outputs]
    for run, out in shown[:MOST_OUTPUTS]:
        failed = out.judgement == "fail"
        words = failing.why_output(out, report) if failed else f"relative L2 {wording.sci(out.total.rel_l2)}"
        agreed = f"; {failing.agreement_text(out.agreement)}" if out.agreement is not None else ""
        yield f"  output {wording.printable(out.output)} ({run.name}): {words}{agreed}"

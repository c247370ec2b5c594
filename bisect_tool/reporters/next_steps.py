"""What to do where no cause was found that says it: one line for each way of having no answer."""

from __future__ import annotations

from bisect_tool.records import OutputResult, Report


def next_step(report: Report) -> str | None:
    """The remedy that stands under the verdict; ``None`` where nothing is to be done, or nothing more is known."""
    if report.verdict.status != "inconclusive":
        return None
    if report.chain:
        # A stage has a shape on both sides, or it is not there.
        if report.stages and all(0 in row.shape for row in report.stages):
            return "record a run whose tensors are not empty"
        return "record the same model on both sides, with the same --level and --stages"
    counting = [run for run in report.configs if run.gating and run.status != "skipped"]
    outputs = [out for run in counting for out in run.outputs if out.judgement == "not compared"]
    if any(not out.onnx_value for out in outputs):
        return "export again with every output of forward, or leave those out of what it returns that nobody needs"
    if any(_holds_no_number(out) for out in outputs):
        return (
            "give a sample on which the model's outputs are numbers: NaN and infinity can't be told apart from a fault"
        )
    if counting and all(run.status == "agrees" for run in counting):
        if any(item.in_graph for item in report.alignment.unaligned):
            return "`bisect-tool inspect` with the same arguments says why stages lack a value; --min-coverage asks for fewer"
        return "give a sample whose tensors are not empty, or ask for other stages"
    if any(run.status == "perturbed" for run in counting):
        return "judge by the final outputs alone: --totals-only"
    if counting:
        return "mend what the reason names; --runner onnx-reference asks whether another runner can compute the graph"
    return "ask for a configuration that can run here: without --matrix both sides run on the CPU"


def _holds_no_number(out: OutputResult) -> bool:
    total = out.total
    return bool(total.count) and total.nonfinite_expected >= total.count

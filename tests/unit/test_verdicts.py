"""``verdicts.decide``: what all runs together say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_samples import diverging, metrics

from bisect_tool.records import (
    Alignment,
    ConfigRun,
    ConfigStatus,
    Judgement,
    Localization,
    NumericConfig,
    OutputResult,
    Verdict,
)
from bisect_tool.verdicts import decide, summarize_verdict

WHOLE = Alignment((), (), (), 1, 1, 1.0)
ACTUAL = NumericConfig("onnxruntime", optimization="off")


def run(name: str, status: ConfigStatus, judgement: Judgement, *, gating: bool, output: str = "y") -> ConfigRun:
    value = "" if judgement == "not compared" else "v"
    outputs = (OutputResult(output, value, metrics(1e-7), judgement),)
    return ConfigRun(name, NumericConfig("torch"), ACTUAL, {}, gating, status, None, outputs, 1.0, 1.0)


def decided(*runs: ConfigRun) -> Verdict:
    return decide((), runs, WHOLE, 0.9)


GOOD = run("good", "agrees", "pass", gating=True)


@pytest.mark.parametrize(("gating", "status"), [(True, "inconclusive"), (False, "agrees")])
def test_output_that_was_not_compared(gating: bool, status: str) -> None:
    """Of a pair that counts it leaves the whole without an answer; of one that does not, it says nothing."""
    verdict = decided(GOOD, run("other", "agrees", "not compared", gating=gating))
    assert status == verdict.status
    assert gating == ("not compared" in verdict.summary[0])


def test_reason_is_that_of_a_pair_that_counts() -> None:
    """An output that only an exploratory pair lacks is not what made the verdict inconclusive."""
    failed = replace(run("counts", "failed", "pass", gating=True), skipped_reason="no device")
    verdict = decided(failed, run("other", "agrees", "not compared", gating=False))
    assert ("inconclusive", ("no configuration gave an answer: counts failed: no device",)) == (
        verdict.status,
        verdict.summary,
    )


def test_pairs_that_agree_are_not_kept_quiet() -> None:
    """Beside one without an answer they are counted."""
    failed = replace(run("f64", "failed", "pass", gating=True), skipped_reason="no kernel")
    others = [replace(GOOD, name=name) for name in ("f32", "f16")]
    explored = run("also", "agrees", "pass", gating=False)
    assert ("2 configurations agree, and not all gave an answer: f64 failed: no kernel",) == (
        decided(*others, failed, explored).summary
    )
    assert decided(GOOD, failed).summary[0].startswith("1 configuration agrees, and not all")


def test_wrong_outputs_are_those_of_pairs_that_count() -> None:
    """The summary of a divergence names no output of an exploratory pair."""
    other = run("other", "diverges", "fail", gating=False, output="theirs")
    verdict = decided(run("bad", "diverges", "fail", gating=True, output="ours"), other)
    assert "diverges" == verdict.status
    assert "ours" in verdict.summary[0] and "theirs" not in verdict.summary[0]


def test_the_strongest_origin_is_named_where_the_list_is_cut() -> None:
    """The first five are in causal order; the strongest one is said even if it comes later."""
    report = diverging()
    origin = report.verdict.origins[0]
    origins = tuple(replace(origin, stage=f"s{n}", local_rel_l2=0.9 if n == 6 else 0.1) for n in range(8))

    def line(*found: object) -> str:
        localization = Localization(report.verdict.first_over_tolerance, found, ())  # type: ignore[arg-type]
        return summarize_verdict("diverges", localization, report.configs, report.alignment, report.stages, 0.9)[1]

    assert line(*origins).endswith("s4 (local 1.0e-01) and 3 more, the strongest of all in s6 (local 9.0e-01)")
    assert line(*origins[:6]).endswith("s4 (local 1.0e-01) and 1 more")


def test_empty_tensors_are_no_agreement() -> None:
    """A batch of none: every stage and output has the right shape, and no number."""
    verdict = decided(
        replace(GOOD, outputs=(replace(GOOD.outputs[0], judgement="not compared", total=metrics(0.0, count=0)),))
    )
    assert verdict.status == "inconclusive"
    assert verdict.summary == ("nothing was compared: every tensor is empty",)


def test_a_model_without_a_stage_in_the_graph_is_judged_by_its_outputs() -> None:
    """All of it may be one operator of ONNX; but whoever asked for a stage has no answer."""
    folded = Alignment((), (), (), 1, 0, None)
    assert decide((), [GOOD], folded, 0.9) == Verdict("agrees", ("the final outputs agree under good",), None, (), ())
    asked = decide((), [GOOD], folded, 0.9, selected=True)
    assert ("inconclusive", True) == (asked.status, "no stage that was asked for" in asked.summary[0])
    failed = replace(GOOD, status="failed", skipped_reason="no kernel")
    assert ("no configuration gave an answer: good failed: no kernel",) == decide((), [failed], folded, 0.9).summary

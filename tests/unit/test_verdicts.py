"""``verdicts.decide``: what all runs together say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_samples import metrics

from bisect_tool.records import Alignment, ConfigRun, ConfigStatus, Judgement, NumericConfig, OutputResult, Verdict
from bisect_tool.verdicts import decide

WHOLE = Alignment((), (), (), 1, 1, 1.0)
ACTUAL = NumericConfig("onnxruntime", optimization="off")


def run(name: str, status: ConfigStatus, judgement: Judgement, *, gating: bool, output: str = "y") -> ConfigRun:
    outputs = (OutputResult(output, "v", metrics(1e-7), judgement),)
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

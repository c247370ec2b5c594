"""A verdict of divergence always says what there is to go by."""

from __future__ import annotations

import math
from dataclasses import replace

from report_samples import diverging

from bisect_tool.diagnose.unexplained import with_what_is_known, without_optimiser_too


def test_no_cause_at_all_is_said_with_the_evidence_there_is() -> None:
    report = diverging()
    bare = replace(report.verdict, diagnoses=(), origins=(), ruled_out=(without_optimiser_too("ort-cpu"),))
    lost = replace(report.stages[1], role="judged", onnx_value=None, shape=(2, 7), results={})
    (found,) = with_what_is_known(bare, (report.stages[0], lost), report.configs).diagnoses
    assert ("BD100", None) == (found.code, found.remedy_verified)
    lines = "\n".join(found.evidence)
    assert "no stage was shown to make the error" in lines
    assert "beside ort-cpu, the unoptimised graph's outputs are wrong too" in lines
    assert f"without a value in the graph is {lost.ref}, {lost.type} of [2, 7]" in lines
    right = replace(report.stages[2], results=report.stages[0].results)
    (folded,) = with_what_is_known(bare, (report.stages[0], lost, right), report.configs).diagnoses
    assert "without a value" not in "\n".join(folded.evidence), "what a right stage comes from was folded into it"


def test_what_is_explained_or_right_is_left_alone() -> None:
    report = diverging()
    known = with_what_is_known(replace(report.verdict, diagnoses=()), report.stages, report.configs)
    assert known is with_what_is_known(known, report.stages, report.configs)
    right = replace(report.verdict, status="agrees", diagnoses=())
    assert right is with_what_is_known(right, report.stages, report.configs)


def test_an_output_that_is_another_tensor_is_said_with_its_shape() -> None:
    """As where a file ends in an ArgMax: no number to name, and no stage to look into."""
    report = diverging()
    run = report.configs[0]
    other = replace(run.outputs[0].total, problem="shape: expected (2, 7), actual (2,)", rel_l2=math.nan)
    runs = (replace(run, outputs=(replace(run.outputs[0], total=other, judgement="fail"),)),)
    bare = replace(report.verdict, diagnoses=(), origins=(), first_over_tolerance=None)
    (found,) = with_what_is_known(bare, report.stages, runs).diagnoses
    assert any("shape: expected (2, 7), actual (2,)" in line for line in found.evidence)
    assert not any("nan" in line for line in found.evidence)
    assert "puts out what the model returns" in found.remedy


def test_a_run_without_optimisation_is_not_asked_for_twice() -> None:
    report = diverging()
    bare = replace(report.verdict, diagnoses=(), origins=())
    asked = {}
    for level in ("off", "all"):
        runs = tuple(replace(run, actual=replace(run.actual, optimization=level)) for run in report.configs)
        asked[level] = "unoptimised" in with_what_is_known(bare, report.stages, runs).diagnoses[0].remedy
    assert asked == {"off": False, "all": True}


def test_a_quick_look_says_how_to_see_more() -> None:
    """Without a forced run there is nothing that tries causes: finer stages would not either."""
    report = diverging()
    bare = replace(report.verdict, diagnoses=(), origins=())
    (found,) = with_what_is_known(bare, report.stages, report.configs, forced=False).diagnoses
    assert found.remedy.startswith("leave --totals-only out")
    assert "--level op" not in found.remedy

"""Findings about switches, in words: diagnoses with the lines to write, and suspects that are ruled out."""

from __future__ import annotations

from collections.abc import Sequence

from bisect_tool.hypotheses import Finding, Suspicion, error_of, pair_of
from bisect_tool.numerics import Step, code_for, text_of
from bisect_tool.records import ConfigRun, Diagnosis, RuledOut, Side

CODE = "BD301"
"""A switch of PyTorch, ONNX Runtime or the exporter separates failing from passing configurations."""

_EMULATED: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "tf32": (
        ("torch", "matmul_tf32", False),
        ("torch", "cudnn_conv_tf32", False),
        ("onnxruntime", "use_tf32", False),
    ),
    "bf16": (("torch", "bf16_reduced_precision_reduction", False),),
    "fp16": (("torch", "fp16_reduced_precision_reduction", False),),
}
"""What on CUDA does what an emulated configuration does on the CPU."""


def describe(
    findings: Sequence[Finding], runs: Sequence[ConfigRun]
) -> tuple[list[Diagnosis], list[RuledOut], dict[str, Side]]:
    """Words for findings.

    Returns:
        Diagnoses; suspects that were ruled out; and by configuration which side is off (``expected`` or ``actual``)
        where a switch of one side alone mends it.
    """
    diagnoses: list[Diagnosis] = []
    ruled_out: dict[str, RuledOut] = {}
    sides: dict[str, Side] = {}
    named = {(step.side, step.name) for finding in findings for step in finding.fix}
    for finding in findings:
        diagnoses.append(_diagnosis(finding, runs))
        where: set[Side] = {"expected" if step.side == "torch" else "actual" for step in finding.fix}
        if len(where) == 1:
            sides[finding.failing.name] = where.pop()
        for suspicion in finding.suspicions:
            step = suspicion.step
            if (step.side, step.name) in named or suspicion.mends or suspicion.breaks:
                continue
            if suspicion.without is None and suspicion.alone is None:
                continue
            ruled_out.setdefault(f"{step.side} {step.name}", _ruled_out(finding, suspicion))
    return diagnoses, list(ruled_out.values()), sides


def _diagnosis(finding: Finding, runs: Sequence[ConfigRun]) -> Diagnosis:
    failing, fixed = finding.failing, finding.fixed
    emulated = [str(step.before) for step in finding.fix if step.name == "emulate" and step.before is not None]
    title = " and ".join(_title(step) for step in finding.fix)
    setting = ", ".join(_setting(step) for step in finding.fix)
    evidence = [f"{failing.name}: {_errors(failing)}; with {setting}: {_errors(fixed)} ({fixed.name})"]
    evidence += _pattern(finding, runs)
    for suspicion in finding.suspicions:
        if len(finding.suspicions) > 1 and suspicion.breaks:
            evidence.append(
                f"{finding.passing.name} with {_setting(suspicion.step, back=True)} alone diverges"
                + (f": relative L2 {suspicion.alone:.1e}" if suspicion.alone is not None else "")
            )
    if emulated:
        lines = [code_for(side, name, value) for kind in emulated for side, name, value in _EMULATED.get(kind, ())]
        evidence.append("emulated on the CPU: says what this precision would do, not that a GPU run used it")
        return Diagnosis(CODE, title, tuple(evidence), "\n".join(lines), None, None)
    lines = [step.code() or f"leave {step.name} unset ({step.side})" for step in finding.fix]
    return Diagnosis(CODE, title, tuple(evidence), "\n".join(lines), fixed.status == "agrees", _cost(failing, fixed))


def _pattern(finding: Finding, runs: Sequence[ConfigRun]) -> list[str]:
    """Whether all failing pairs, and none of the passing ones, have the setting."""
    failing = [run for run in runs if run.status == "diverges"]
    passing = [run for run in runs if run.status == "agrees"]
    found = []
    for step in finding.fix:
        has = [run for run in failing if _value(run, step) == step.before]
        has_not = [run for run in passing if _value(run, step) == step.before]
        if len(failing) > 1 and len(has) == len(failing) and not has_not:
            found.append(f"every failing pair has {_setting(step, back=True)}, and no passing one has")
    return found


def _value(run: ConfigRun, step: Step) -> object:
    pair = pair_of(run)
    config = pair.expected if step.side == "torch" else pair.actual
    return getattr(config, step.name) if hasattr(config, step.name) else config.switches.get(step.name)


def _title(step: Step) -> str:
    if step.name == "emulate":
        return f"{step.before}-emulated operands of products and convolutions in PyTorch"
    return step.title


def _setting(step: Step, *, back: bool = False) -> str:
    value = step.before if back else step.after
    side = {"torch": "PyTorch's", "onnxruntime": "ONNX Runtime's", "export": "the export's"}[step.side]
    return f"{side} {step.name} {'left as it is' if value is None else '= ' + text_of(step.side, step.name, value)}"


def _errors(run: ConfigRun) -> str:
    error = error_of(run)
    if error is None:
        return f"{run.status} ({run.skipped_reason})"
    largest = max((output.total.max_abs for output in run.outputs), default=0.0)
    return f"{run.status}, relative L2 {error:.1e}, largest difference {largest:.2g}"


def _cost(failing: ConfigRun, fixed: ConfigRun) -> str | None:
    if not failing.seconds or not fixed.seconds:
        return None
    time = f"{fixed.seconds / failing.seconds - 1:+.0%} time"
    if not failing.peak_rss_mb or not fixed.peak_rss_mb:
        return time
    return f"{time}, {fixed.peak_rss_mb - failing.peak_rss_mb:+.0f} MB"


def _ruled_out(finding: Finding, suspicion: Suspicion) -> RuledOut:
    evidence = []
    if suspicion.without is not None:
        evidence.append(
            f"{finding.failing.name} with {_setting(suspicion.step)} still diverges: relative L2 {suspicion.without:.1e}"
        )
    if suspicion.alone is not None:
        evidence.append(
            f"{finding.passing.name} with {_setting(suspicion.step, back=True)} still agrees: "
            f"relative L2 {suspicion.alone:.1e}"
        )
    return RuledOut(CODE, suspicion.step.title, tuple(evidence))

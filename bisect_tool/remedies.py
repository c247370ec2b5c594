"""Findings about switches, in words: diagnoses with the lines to write, and suspects that are ruled out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bisect_tool.hypotheses import Finding, Suspicion, concerns_given_graph, error_of, mends, moved_sides
from bisect_tool.numerics import Step, code_for, default_of, lookup, text_of
from bisect_tool.records import Conclusion, ConfigRun, Diagnosis, Hypothesis, RuledOut, Side, SideCost, StageRef
from bisect_tool.switches import Value, literal

CODE = "BD301"
"""A switch of PyTorch, ONNX Runtime or the exporter separates failing from passing configurations."""

NO_SWITCH = "the graph or the model differs, not how it is run"

_EMULATED: dict[str, tuple[tuple[str, str, Value], ...]] = {
    "tf32": (
        ("torch", "matmul_tf32", False),
        ("torch", "cudnn_conv_tf32", False),
        ("onnxruntime", "use_tf32", False),
    ),
    "bf16": (("torch", "autocast", "off"), ("onnxruntime", "trt_bf16_enable", False)),
    "fp16": (("torch", "autocast", "off"), ("onnxruntime", "trt_fp16_enable", False)),
}
"""What on CUDA does what an emulated configuration does on the CPU."""


def describe(
    findings: Sequence[Finding], runs: Sequence[ConfigRun]
) -> tuple[list[Diagnosis], list[RuledOut], dict[str, Side]]:
    """Words for findings.

    Returns:
        Diagnoses, one for all pairs with the same culprit; suspects that were ruled out; and by configuration which
        side is off (``expected`` or ``actual``) where a switch of one side alone mends it.
    """
    alike: dict[tuple[str, str], dict[str, Diagnosis]] = {}
    ruled_out: dict[str, RuledOut] = {}
    sides: dict[str, Side] = {}
    named = {(step.side, step.name) for finding in findings for step in finding.fix}
    for finding in findings:
        diagnosis = _diagnosis(finding, runs)
        alike.setdefault((diagnosis.title, diagnosis.remedy), {})[finding.failing.name] = diagnosis
        side = _side(finding)
        if side is not None:
            sides[finding.failing.name] = side
        for suspicion in finding.suspicions:
            step = suspicion.step
            if (step.side, step.name) in named or suspicion.mends or suspicion.breaks:
                continue
            if suspicion.without is None and suspicion.alone is None:
                continue
            ruled_out.setdefault(f"{step.side} {step.name}", _ruled_out(finding, suspicion))
    return [_together(found) for found in alike.values()], list(ruled_out.values()), sides


def explored(findings: Sequence[Finding], runs: Sequence[ConfigRun], worst: Mapping[str, StageRef | None]) -> list[str]:
    """A few lines for all that diverges without counting, since nobody asks why something does that was made to.

    Args:
        findings: of all pairs.
        runs: the matrix's own pairs.
        worst: by pair where its error comes from.
    """
    failing = [run for run in runs if run.status == "diverges"]
    titles = {_own_name(finding): " and ".join(map(_title, finding.fix)) for finding in findings}
    groups: dict[str, list[str]] = {}
    for run in failing:
        if run.gating:
            continue
        origin = worst.get(run.name)
        same = (other.name for other in failing if other.gating and origin is not None and worst[other.name] == origin)
        first = next(same, None)
        if run.name in titles:
            reason = f"; what separates them ({CODE}): {titles[run.name]}"
        else:
            reason = f": same origin as {first}" if first is not None else ": no switch was found that separates them"
        groups.setdefault(reason, []).append(run.name)
    return [f"explored only, and not counted: {', '.join(names)}{reason}" for reason, names in groups.items()]


def _own_name(finding: Finding) -> str:
    """The pair of the matrix that a finding is about; a fresh export in place of a given file stands for its pair."""
    return re.sub(r"-try-[0-9]+$", "", finding.failing.name)


def hypotheses(findings: Sequence[Finding]) -> tuple[Hypothesis, ...]:
    """Every suspect of every finding with its numbers, culprits first, then as the table of switches has them."""
    order = ("culprit", "contributes", "ruled out", "no answer")
    found = [_hypothesis(finding, suspicion) for finding in findings for suspicion in finding.suspicions]
    places = {finding.failing.name: place for place, finding in enumerate(findings)}
    return tuple(sorted(found, key=lambda h: (places[h.failing], order.index(h.conclusion))))


def _hypothesis(finding: Finding, suspicion: Suspicion) -> Hypothesis:
    step, failing, tried = suspicion.step, finding.failing, suspicion.tried
    conclusion: Conclusion = "ruled out"
    if step in finding.fix:
        conclusion = "culprit"
    elif suspicion.mends or suspicion.breaks:
        conclusion = "contributes"
    elif suspicion.without is None and suspicion.alone is None:
        conclusion = "no answer"
    return Hypothesis(
        side=step.side,
        switch=step.name,
        title=_title(step),
        before=None if step.before is None else literal(step.before),
        after=None if step.after is None else literal(step.after),
        failing=failing.name,
        passing=finding.passing.name,
        tried=tried.name,
        error_before=error_of(failing),
        error_after=suspicion.without,
        error_passing=error_of(finding.passing),
        error_back=suspicion.alone,
        time_cost=None if suspicion.without is None else _time_cost(failing, tried, (step,)),
        conclusion=conclusion,
    )


def no_switch(strict: ConfigRun, fresh: ConfigRun | None = None) -> RuledOut:
    """What it means that even the configuration diverges in which everything known to align both sides is set.

    Args:
        strict: the run of that configuration.
        fresh: of a given file's pair about a fresh export, where that diverges too.
    """
    evidence = [
        f"{strict.name}: {_errors(strict)}, with no optimisation, no TF32 and deterministic kernels on both sides"
    ]
    if fresh is not None:
        evidence.append(f"{fresh.name}: {_errors(fresh)}, with a fresh export in place of the given file")
    return RuledOut(CODE, f"all switches: {NO_SWITCH}", tuple(evidence))


def _side(finding: Finding) -> Side | None:
    """The side that the fix changes, if it is one alone, and if that mends."""
    sides = moved_sides(finding.fix)
    return sides[0] if len(sides) == 1 and mends(finding.failing, finding.fixed) else None


def _diagnosis(finding: Finding, runs: Sequence[ConfigRun]) -> Diagnosis:
    failing, fixed = finding.failing, finding.fixed
    emulated = [str(step.before) for step in finding.fix if step.name == "emulate" and step.before is not None]
    title = " and ".join(_title(step) for step in finding.fix)
    setting = ", ".join(_setting(step) for step in finding.fix)
    evidence = [f"{failing.name}: {_errors(failing)}; with {setting}: {_errors(fixed)} ({fixed.name})"]
    side = _side(finding)
    if side is not None:
        evidence.append(f"the side that is off: {side} ({'PyTorch' if side == 'expected' else 'ONNX Runtime'})")
    evidence += _pattern(finding, runs)
    for suspicion in finding.suspicions:
        if len(finding.suspicions) > 1 and suspicion.breaks:
            evidence.append(
                f"{finding.passing.name} with {_setting(suspicion.step, back=True)} alone diverges"
                + (f": relative L2 {suspicion.alone:.1e}" if suspicion.alone is not None else "")
            )
    lines = [line for step in finding.fix for line in _lines(step, failing)]
    if emulated:
        evidence.append("emulated on the CPU: says what this precision would do, not that a GPU run used it")
        return Diagnosis(CODE, title, tuple(evidence), "\n".join(lines), None, None, failing.gating)
    mended, cost = mends(failing, fixed), _cost(failing, fixed, finding.fix)
    return Diagnosis(CODE, title, tuple(evidence), "\n".join(lines), mended, cost, failing.gating)


def _together(found: Mapping[str, Diagnosis]) -> Diagnosis:
    """One diagnosis in place of several, by pair, that say the same."""
    first = next(iter(found.values()))
    if len(found) == 1:
        return first
    lines = (line for diagnosis in found.values() for line in diagnosis.evidence)
    verified = [diagnosis.remedy_verified for diagnosis in found.values()]
    costs = [f"{name}: {diagnosis.cost}" for name, diagnosis in found.items() if diagnosis.cost is not None]
    return replace(
        first,
        evidence=(f"{len(found)} pairs: {', '.join(found)}", *dict.fromkeys(lines)),
        remedy_verified=None if None in verified else all(verified),
        cost="; ".join(costs) or None,
        gating=any(diagnosis.gating for diagnosis in found.values()),
    )


def _lines(step: Step, run: ConfigRun) -> list[str]:
    """What to write to make a step in the configuration of a run."""
    if step.name == "emulate" and step.before is not None:
        return [code_for(side, name, value, "cuda") for side, name, value in _EMULATED.get(str(step.before), ())]
    if concerns_given_graph(step) and step.after is None:
        return ["take the given graph"]
    device = run.expected.device if step.side == "torch" else run.actual.device
    return [step.code(device) or f"leave {step.name} unset ({step.side})"]


def _pattern(finding: Finding, runs: Sequence[ConfigRun]) -> list[str]:
    """Whether all failing pairs, and none of the passing ones, have the setting."""
    failing = [run for run in runs if run.status == "diverges"]
    passing = [run for run in runs if run.status == "agrees"]
    found = []
    for step in finding.fix:
        if len(failing) > 1 and all(_has(run, step) for run in failing) and not any(_has(run, step) for run in passing):
            found.append(f"every failing pair has {_setting(step, back=True)}, and no passing one has")
    return found


def _has(run: ConfigRun, step: Step) -> bool:
    """Whether a run had what the step changes, said or by default."""
    config = run.expected if step.side == "torch" else run.actual
    value = getattr(config, step.name) if hasattr(config, step.name) else config.switches.get(step.name)
    if concerns_given_graph(step):
        return value == step.before
    switch = lookup(step.side, step.name)
    default = default_of(switch)
    before = default if step.before is None else step.before
    return config.device in switch.devices and (default if value is None else value) == before


def _title(step: Step) -> str:
    if concerns_given_graph(step):
        return "the given graph" if step.before is None else "the exported graph"
    if step.name == "emulate":
        return f"{step.before}-emulated operands of products and convolutions in PyTorch"
    return step.title


def _setting(step: Step, *, back: bool = False) -> str:
    value = step.before if back else step.after
    if concerns_given_graph(step):
        return "the given graph" if value is None else f"an export ({value})"
    side = {"torch": "PyTorch's", "onnxruntime": "ONNX Runtime's", "export": "the export's"}[step.side]
    if value is None:
        return f"{side} {step.name} left as it is"
    # Flags of Python are True and False; arguments of a call are no words for what it does.
    plain = step.side == "export" or (step.side == "torch" and (isinstance(value, bool) or step.name == "autocast"))
    return f"{side} {step.name} = {value if plain else text_of(step.side, step.name, value)}"


def _errors(run: ConfigRun) -> str:
    error = error_of(run)
    if error is None:
        return f"{run.status} ({run.skipped_reason})"
    largest = max((output.total.max_abs for output in run.outputs), default=0.0)
    return f"{run.status}, relative L2 {error:.1e}, largest difference {largest:.2g}"


def _cost(failing: ConfigRun, fixed: ConfigRun, fix: Sequence[Step]) -> str | None:
    """What a fix costs, side by side as far as it changes them; a percentage only beyond the spread of the repeats."""
    words = []
    for side in moved_sides(fix):
        before, after = _side_cost(failing, side), _side_cost(fixed, side)
        if before is None or after is None:
            continue
        name = "PyTorch" if side == "expected" else "ONNX Runtime"
        words.append(time_text(name, before, after))
        if before.device_mb is not None and after.device_mb is not None:
            words.append(f"{after.device_mb - before.device_mb:+.0f} MB on the GPU")
    if words and failing.peak_rss_mb and fixed.peak_rss_mb:
        words.append(f"{fixed.peak_rss_mb - failing.peak_rss_mb:+.0f} MB peak of the whole process")
    return ", ".join(words) or None


def time_text(side: str, before: SideCost, after: SideCost) -> str:
    """What a change costs one side in time, in words."""
    change = _change(before, after)
    if change:
        return f"{side} {change:+.0%} time ({milliseconds(before.seconds)} -> {milliseconds(after.seconds)})"
    return f"{side}: no difference in time beyond the spread of {after.repeats} runs"


def _time_cost(failing: ConfigRun, tried: ConfigRun, steps: Sequence[Step]) -> float | None:
    """Relative difference in time of the sides that steps change; 0 within the spread of the repeats."""
    pairs = [(_side_cost(failing, side), _side_cost(tried, side)) for side in moved_sides(steps)]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not known or len(known) < len(pairs):
        return None
    before, after = (_sum([pair[i] for pair in known]) for i in (0, 1))
    return _change(before, after)


def _side_cost(run: ConfigRun, side: Side) -> SideCost | None:
    return run.expected_cost if side == "expected" else run.actual_cost


def _sum(costs: Sequence[SideCost]) -> SideCost:
    return SideCost(
        sum(cost.seconds for cost in costs),
        sum(cost.fastest for cost in costs),
        sum(cost.slowest for cost in costs),
        min(cost.repeats for cost in costs),
        None,
    )


_LEAST_CHANGE = 0.05
"""Two processes differ by as much, however little the repeats in each of them do."""


def _change(before: SideCost, after: SideCost) -> float:
    """Relative difference in time; 0 where the repeats alone differ by as much, or the processes may."""
    spread = max(before.slowest - before.fastest, after.slowest - after.fastest)
    difference = after.seconds - before.seconds
    if abs(difference) <= max(spread, _LEAST_CHANGE * before.seconds):
        return 0.0
    return difference / before.seconds


def milliseconds(seconds: float) -> str:
    """``0.35 ms``, ``12 ms``, ``3.1 s``."""
    if seconds >= 1:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.2g} ms" if seconds < 9.95e-3 else f"{seconds * 1e3:.0f} ms"


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

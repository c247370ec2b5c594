"""``hypotheses`` and ``remedies``: what separates failing pairs from passing ones, with runs that only pretend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import metrics

from bisect_tool.delta import smallest
from bisect_tool.hypotheses import (
    MOST_STEPS,
    Finding,
    error_of,
    lowers,
    mends,
    nearest_passing,
    pair_of,
    separate,
    suspects,
)
from bisect_tool.numerics import Step, code_for, default_of, take
from bisect_tool.records import ConfigPair, ConfigRun, ConfigStatus, NumericConfig, OutputResult, SideCost, StageRef
from bisect_tool.remedies import describe, explored, hypotheses
from bisect_tool.switches import ONNXRUNTIME, TORCH, Value

# Switches of both sides, each with a value that it has not by itself; the last one is a field of its own.
FLAGS: tuple[tuple[str, str, Value], ...] = (
    ("torch", "mkldnn", False),
    ("torch", "mha_fastpath", False),
    ("torch", "flush_denormal", True),
    ("torch", "channels_last", True),
    ("torch", "mkldnn_deterministic", True),
    ("torch", "sdpa_kernel", "math"),
    ("onnxruntime", "optimization.enable_gelu_approximation", True),
    ("onnxruntime", "optimization.enable_cast_chain_elimination", True),
    ("onnxruntime", "session.disable_prepacking", True),
    ("onnxruntime", "session.disable_quant_qdq", True),
    ("onnxruntime", "use_deterministic_compute", True),
    ("onnxruntime", "optimization", "off"),
)


def pair(on: Iterable[int], name: str = "failing") -> ConfigPair:
    """The pair with some of the flags set."""
    fields: dict[str, dict[str, Value]] = {"torch": {}, "onnxruntime": {}}
    for place in on:
        side, flag, value = FLAGS[place]
        fields[side][flag] = value
    level = str(fields["onnxruntime"].pop("optimization", "all"))
    actual = NumericConfig("onnxruntime", optimization=level, switches=fields["onnxruntime"])
    return ConfigPair(name, NumericConfig("torch", switches=fields["torch"]), actual)


def flags_of(config: ConfigPair | ConfigRun) -> frozenset[int]:
    """Which of the flags are set in a pair."""
    held = {
        **{("torch", name): value for name, value in config.expected.switches.items()},
        **{("onnxruntime", name): value for name, value in config.actual.switches.items()},
        ("onnxruntime", "optimization"): config.actual.optimization,
    }
    return frozenset(i for i, (side, name, value) in enumerate(FLAGS) if held.get((side, name)) == value)


def places(steps: Iterable[Step]) -> set[int]:
    """Which of the flags steps are about."""
    names = [(side, name) for side, name, _ in FLAGS]
    return {names.index((step.side, step.name)) for step in steps}


def run_of(
    config: ConfigPair, status: ConfigStatus, error: float | None = None, *, seconds: float = 1.0, mb: float = 100.0
) -> ConfigRun:
    """A run that came out so."""
    error = {"agrees": 1e-7, "diverges": 1e-2}.get(status) if error is None else error
    outputs = () if error is None else (OutputResult(0, "y", metrics(error), "pass" if status == "agrees" else "fail"),)
    return ConfigRun(
        name=config.name,
        expected=config.expected,
        actual=config.actual,
        effective={},
        gating=config.gating,
        status=status,
        observer_effect=None,
        outputs=outputs,
        seconds=seconds,
        peak_rss_mb=mb,
        skipped_reason=None if outputs else "it could not run",
        expected_cost=SideCost(seconds, seconds, seconds, 5, None) if outputs else None,
        actual_cost=SideCost(seconds, seconds, seconds, 5, None) if outputs else None,
    )


class Machine:
    """Runs pairs as a rule says, and keeps count.

    Args:
        fails: whether a pair with these flags diverges.
        broken: whether a pair with these flags does not run at all.
        seconds: by flags; 1 for all others.
    """

    def __init__(
        self,
        fails: Callable[[frozenset[int]], bool],
        broken: Callable[[frozenset[int]], bool] = lambda on: False,
        seconds: dict[frozenset[int], float] | None = None,
    ):
        self.fails = fails
        self.broken = broken
        self.seconds = seconds or {}
        self.asked: list[frozenset[int]] = []

    def run(self, config: ConfigPair) -> ConfigRun:
        flags = flags_of(config)
        if self.broken(flags):
            return run_of(config, "crashed")
        status: ConfigStatus = "diverges" if self.fails(flags) else "agrees"
        return run_of(config, status, seconds=self.seconds.get(flags, 1.0))

    def attempt(self, config: ConfigPair) -> ConfigRun:
        self.asked.append(flags_of(config))
        return self.run(replace(config, name=f"try-{len(self.asked)}"))

    def separate(self, failing: Iterable[int], passing: Iterable[int] = ()) -> Finding:
        return separate(self.run(pair(failing)), self.run(pair(passing, "passing")), self.attempt)


# One suspect at a time


def test_culprit_is_told_from_bystanders() -> None:
    """The one switch that mends the failing pair is the fix; each suspect has a number with and without it."""
    machine = Machine(lambda on: 6 in on)
    found = machine.separate({0, 6, 8})
    assert {6} == places(found.fix)
    assert ("agrees", frozenset({0, 8})) == (found.fixed.status, flags_of(found.fixed))
    seen = {next(iter(places([s.step]))): (s.without, s.alone, s.mends, s.breaks) for s in found.suspicions}
    assert {
        0: (1e-2, 1e-7, False, False),
        6: (1e-7, 1e-2, True, True),
        8: (1e-2, 1e-7, False, False),
    } == seen
    assert "failing" == found.failing.name and "passing" == found.passing.name


def test_nothing_is_run_twice() -> None:
    """Each attempt costs a process; what is known is not asked again."""
    machine = Machine(lambda on: 6 in on)
    machine.separate({0, 6, 8})
    assert len(machine.asked) == len(set(machine.asked)) == 6
    assert frozenset({0, 6, 8}) not in machine.asked and frozenset() not in machine.asked


def test_single_suspect_needs_no_attempt() -> None:
    """The two runs that are there already are with it and without it."""
    machine = Machine(lambda on: 6 in on)
    found = machine.separate({6})
    assert ([], {6}, "passing") == (machine.asked, places(found.fix), found.fixed.name)


def test_two_culprits_are_both_in_the_fix() -> None:
    """Where either of two switches is enough to fail, both have to go, and nothing else."""
    found = Machine(lambda on: bool(on & {1, 9})).separate({0, 1, 5, 8, 9})
    assert {1, 9} == places(found.fix)
    assert {1, 9} == {next(iter(places([s.step]))) for s in found.suspicions if s.breaks}
    assert not any(s.mends for s in found.suspicions)


def test_either_of_two_that_fail_together() -> None:
    """One is enough; the cheaper run is the fix, and neither is ruled out."""
    machine = Machine(lambda on: {1, 9} <= on, seconds={frozenset({1}): 2.0, frozenset({9}): 3.0})
    found = machine.separate({1, 9})
    assert {9} == places(found.fix)
    assert {1} == flags_of(found.fixed) and 2.0 == found.fixed.seconds
    assert all(s.mends for s in found.suspicions)
    assert [] == describe([found], [found.failing, found.passing])[1]


def test_specific_switch_before_a_whole_level() -> None:
    """Without optimisation GELU is not approximated either; the switch that does it is what is named."""
    cheap_level = {frozenset({6, 11}): 0.1}
    found = Machine(lambda on: 6 in on and 11 not in on, seconds=cheap_level).separate({6}, {11})
    assert {6} == places(found.fix)
    assert {6, 11} == {next(iter(places([s.step]))) for s in found.suspicions if s.mends}


def test_switch_that_breaks_the_passing_pair_is_not_ruled_out() -> None:
    """Switches may take each other back: one that mends nothing, and breaks what agrees, is no bystander."""
    found = Machine(lambda on: 0 in on or (1 in on and 2 not in on)).separate({0, 1, 2})
    assert {0} == places(found.fix)
    seen = {next(iter(places([s.step]))): (s.mends, s.breaks) for s in found.suspicions}
    assert {0: (True, True), 1: (False, True), 2: (False, False)} == seen
    (diagnosis,), ruled_out, _ = describe([found], [found.failing, found.passing])
    assert ["denormals flushed to zero"] == [each.title for each in ruled_out]
    assert "passing with PyTorch's mha_fastpath = False alone diverges: relative L2 1.0e-02" in diagnosis.evidence


def test_run_that_crashes_mends_nothing() -> None:
    """It has no number; what is known from the other way round still counts."""
    machine = Machine(lambda on: 6 in on, broken=lambda on: {3, 6} <= on)
    found = machine.separate({6}, {3})
    assert {6} == places(found.fix)
    seen = {next(iter(places([s.step]))): (s.without, s.alone, s.mends, s.breaks) for s in found.suspicions}
    assert {6: (1e-7, None, True, False), 3: (None, 1e-7, False, False)} == seen
    _, (ruled,), _ = describe([found], [found.failing, found.passing])
    assert ("passing with PyTorch's channels_last left as it is still agrees: relative L2 1.0e-07",) == ruled.evidence


def test_failed_run_with_outputs_has_no_number() -> None:
    """Outputs of nodes that ran on another device say nothing about the switch."""

    def attempt(config: ConfigPair) -> ConfigRun:
        return run_of(config, "failed", 1e-7)

    found = separate(run_of(pair({0, 6}), "diverges"), run_of(pair((), "passing"), "agrees"), attempt)
    assert [(None, None, False, False)] * 2 == [(s.without, s.alone, s.mends, s.breaks) for s in found.suspicions]
    assert {0, 6} == places(found.fix) and "passing" == found.fixed.name
    assert [] == describe([found], [found.failing, found.passing])[1]


@pytest.mark.parametrize(("errors", "expected"), [([1e-3, 2e-2], 2e-2), ([1e-3, math.nan], math.inf), ([], None)])
def test_error_is_that_of_the_worst_output(errors: list[float], expected: float | None) -> None:
    """One that could not be measured is worse than any number; without outputs there is none."""
    run = replace(
        run_of(pair(()), "diverges"),
        outputs=tuple(OutputResult(i, "y", metrics(e), "fail") for i, e in enumerate(errors)),
    )
    assert expected == error_of(run)


# Any rule


@st.composite
def rules(draw: st.DrawFn) -> tuple[frozenset[int], frozenset[int], list[frozenset[int]]]:
    """Flags of a failing pair, those of a passing one, and the combinations of which any one is enough to fail."""
    on = draw(st.sets(st.integers(0, len(FLAGS) - 1), min_size=1, max_size=9))
    culprits = draw(st.lists(st.sets(st.sampled_from(sorted(on)), min_size=1), min_size=1, max_size=3))
    # Flags that only the passing pair has are suspects too, and innocent.
    others = draw(st.sets(st.integers(0, len(FLAGS) - 1), max_size=2)) - on
    return frozenset(on), frozenset(others), [frozenset(each) for each in culprits]


@given(rules())
def test_fix_is_minimal(rule: tuple[frozenset[int], frozenset[int], list[frozenset[int]]]) -> None:
    """With the fix the pair agrees, and with any part of it less it does not; every attempt lies between the two."""
    on, others, culprits = rule
    machine = Machine(lambda flags: any(each <= flags for each in culprits))
    found = machine.separate(on, others)
    start = pair(on)

    def agrees(chosen: Sequence[Step]) -> bool:
        return machine.run(take(start, chosen)).status == "agrees"

    assert "agrees" == found.fixed.status and agrees(found.fix)
    assert flags_of(take(start, found.fix)) == flags_of(found.fixed)
    for step in found.fix:
        assert not agrees([other for other in found.fix if other != step]), "not minimal"
    assert places(found.fix) <= set.union(*map(set, culprits))
    assert len(machine.asked) == len(set(machine.asked))
    assert all(on & others <= flags <= on | others for flags in machine.asked)
    for suspicion in found.suspicions:
        assert suspicion.mends == agrees([suspicion.step])


@given(st.sets(st.integers(0, 40), min_size=1, max_size=6), st.integers(41, 60))
def test_few_of_many_are_found(needed: set[int], count: int) -> None:
    """``smallest`` finds just what is needed, however many are around it."""
    asked = 0

    def agrees(chosen: Sequence[int]) -> bool:
        nonlocal asked
        asked += 1
        return needed <= set(chosen)

    assert needed == set(smallest(list(range(count)), agrees))  # type: ignore[arg-type]
    # Delta debugging's bound; one by one it would be as good, all subsets would be 2**41.
    assert asked <= count**2 + 3 * count


@given(st.integers(1, 8), st.integers(0, 2**30))
def test_smallest_mends_whatever_the_rule(count: int, seed: int) -> None:
    """Where switches take each other back, the set may not be the smallest, but it was seen to mend."""
    everything = frozenset(range(count))

    def agrees(chosen: Sequence[int]) -> bool:
        return frozenset(chosen) == everything or hash((seed, frozenset(chosen))) % 3 == 0

    found = smallest(list(range(count)), agrees)  # type: ignore[arg-type]
    assert set(found) <= everything and agrees(found)  # type: ignore[arg-type]
    assert len(found) == 1 or not any(agrees([s for s in found if s != step]) for step in found)  # type: ignore[misc]


# What to compare with


def test_nearest_passing_differs_in_fewest_switches() -> None:
    """The first of equals; runs that do not agree, and the run itself, are no candidates."""
    failing = run_of(pair({0, 6, 8}), "diverges")
    far, near, same = (
        run_of(pair(on, name), "agrees") for on, name in (((), "far"), ({0, 8}, "near"), ({0, 6}, "as near"))
    )
    assert near == nearest_passing(failing, [far, failing, near, same])
    assert same == nearest_passing(failing, [far, same, near])
    others = [replace(near, status=status) for status in ("failed", "skipped", "crashed", "diverges")]
    assert far == nearest_passing(failing, [*others, far])
    assert None is nearest_passing(failing, [failing, *others])


@pytest.mark.parametrize(("count", "near"), [(MOST_STEPS, True), (MOST_STEPS + 1, False)])
def test_nearest_passing_is_not_too_far(count: int, near: bool) -> None:
    """Beyond ``MOST_STEPS`` it would take too many runs."""
    flags = [s for s in (*TORCH, *ONNXRUNTIME) if s.values.kind == "flag" and "cuda" in s.devices and not s.sticky]
    # Back to what it is by itself must not cost precision.
    flags = [s for s in flags if not Step(s.side, s.name, default_of(s) is not True, None, s.title).coarser]
    switches: dict[str, dict[str, Value]] = {"torch": {}, "onnxruntime": {}}
    for switch in flags[:count]:
        switches[switch.side][switch.name] = default_of(switch) is not True
    set_ = ConfigPair("set", *(NumericConfig(s, "cuda", switches=found) for s, found in switches.items()))  # type: ignore[arg-type]
    plain = run_of(ConfigPair("plain", NumericConfig("torch", "cuda"), NumericConfig("onnxruntime", "cuda")), "agrees")
    assert count == len(suspects(set_, pair_of(plain)))
    assert (plain if near else None) == nearest_passing(run_of(set_, "diverges"), [plain])


def test_run_that_differs_in_nothing_real_is_no_candidate() -> None:
    """A pair that only says what the library does anyway is the same pair: it explains nothing."""
    failing = run_of(pair({6}), "diverges")
    spelt = pair({6}, "spelt")
    spelt = replace(spelt, expected=replace(spelt.expected, switches={"mkldnn": True}))
    assert () == suspects(pair_of(failing), spelt)
    assert None is nearest_passing(failing, [run_of(spelt, "agrees")])


def test_graph_follows_the_dtype_of_the_model() -> None:
    """The precision of the graph is no suspect of its own."""
    half = ConfigPair("half", NumericConfig("torch", dtype="float16"), NumericConfig("onnxruntime", dtype="float16"))
    full = ConfigPair("full", NumericConfig("torch", dtype="float32"), NumericConfig("onnxruntime", dtype="float32"))
    assert [("torch", "dtype")] == [(step.side, step.name) for step in suspects(half, full)]


def test_suspects_of_both_sides_are_told_apart() -> None:
    """Either library has a number of threads."""
    one, more = (
        run_of(ConfigPair(name, NumericConfig("torch", threads=n), NumericConfig("onnxruntime", threads=n)), status)
        for name, n, status in (("one", 1, "diverges"), ("more", 2, "agrees"))  # type: ignore[misc]
    )
    titles = [step.title for step in suspects(pair_of(one), pair_of(more))]
    assert ["PyTorch's number of threads", "ONNX Runtime's number of threads"] == titles
    assert "oneDNN" == suspects(pair({0}), pair(()))[0].title


@pytest.mark.parametrize(("value", "line"), [("off", "enabled=False"), ("bfloat16", "dtype=torch.bfloat16")])
def test_line_of_autocast_can_be_copied(value: str, line: str) -> None:
    """Nothing in it is left to be filled in."""
    assert f'with torch.autocast("cpu", {line}):' == Step("torch", "autocast", None, value, "autocast").code()


# Less precision mends nothing


@pytest.mark.parametrize(
    ("failing", "passing"),
    [
        ({}, {"autocast": "bfloat16"}),
        ({}, {"emulate": "bf16"}),
        ({"emulate": "tf32"}, {"emulate": "bf16"}),
        ({}, {"mkldnn_matmul_fp32_precision": "bf16"}),
        ({"dtype": "float32"}, {"dtype": "float16"}),
        ({"dtype": "float16"}, {"dtype": "bfloat16"}),
    ],
)
def test_less_precision_is_no_cure(failing: dict[str, Value], passing: dict[str, Value]) -> None:
    """More is allowed there, so that a broken graph may agree; the other way round precision is a remedy."""
    less, more = (
        ConfigPair(
            name,
            NumericConfig(
                "torch",
                dtype=str(found["dtype"]) if "dtype" in found else None,
                switches={key: value for key, value in found.items() if key != "dtype"},
            ),
            NumericConfig("onnxruntime"),
        )
        for name, found in (("less", passing), ("more", failing))
    )
    assert not mends(run_of(more, "diverges"), run_of(less, "agrees"))
    assert None is nearest_passing(run_of(more, "diverges"), [run_of(less, "agrees")])
    assert mends(run_of(less, "diverges"), run_of(more, "agrees"))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (3.2e-3, 1.9e-2, False),
        (3e-3, 1.5e-3, False),
        (3e-3, 1e-3, True),
        (math.nan, 1e-7, True),
        (math.nan, math.nan, False),
    ],
)
def test_cure_lowers_the_error(before: float, after: float, expected: bool) -> None:
    """Agreement alone is none: the error has to be markedly smaller."""
    failing, tried = run_of(pair({8}), "diverges", before), run_of(pair((), "passing"), "agrees", after)
    assert expected == mends(failing, tried)
    assert (tried if expected else None) == nearest_passing(failing, [tried])
    assert not mends(failing, replace(tried, status="diverges"))
    # Another output says nothing about this one.
    assert not mends(failing, replace(tried, outputs=(replace(tried.outputs[0], output="other"),)))


def test_step_that_only_agrees_is_not_named() -> None:
    """A fix that is looked for among several switches lowers the error too, and no side is blamed without one."""
    failing, passing = run_of(pair({0, 8}), "diverges", 3e-3), run_of(pair((), "passing"), "agrees")

    def attempt(config: ConfigPair) -> ConfigRun:
        return run_of(config, "agrees", 1e-7 if 8 not in flags_of(config) else 2e-3)

    found = separate(failing, passing, attempt)
    assert {8} == places(found.fix)
    assert {0: False, 8: True} == {next(iter(places([s.step]))): s.mends for s in found.suspicions}
    unmended = replace(found, fixed=run_of(pair({0}), "agrees", 2e-3))
    (diagnosis,), _, sides = describe([unmended], [failing, passing])
    assert (False, {}) == (diagnosis.remedy_verified, sides)


def test_dtype_moves_both_sides() -> None:
    """The graph is exported in the dtype that PyTorch runs in, so that neither side is to blame."""
    half, full = (
        ConfigPair(name, NumericConfig("torch", dtype=name), NumericConfig("onnxruntime", dtype=name))
        for name in ("float16", "float32")
    )
    found = separate(run_of(half, "diverges"), run_of(full, "agrees"), lambda config: run_of(config, "diverges"))
    (diagnosis,), _, sides = describe([found], [found.failing, found.passing])
    assert ({}, True) == (sides, diagnosis.remedy_verified)
    assert not any("side that is off" in line for line in diagnosis.evidence)


# Given and exported graphs


GIVEN = ConfigPair("given", NumericConfig("torch"), NumericConfig("onnxruntime", optimization="all"))
MADE = ConfigPair(
    "made",
    NumericConfig("torch"),
    NumericConfig("onnxruntime", optimization="all", exporter="dynamo", opset=18, constant_folding=True),
)


@pytest.mark.parametrize(("failing", "passing"), [(GIVEN, MADE), (MADE, GIVEN)])
def test_given_graph_is_one_suspect(failing: ConfigPair, passing: ConfigPair) -> None:
    """An export with the exporter's own settings is no more the given graph than any other."""
    found = separate(run_of(failing, "diverges"), run_of(passing, "agrees"), Machine(lambda on: True).attempt)
    assert [("export", "exporter")] == [(step.side, step.name) for step in found.fix]
    (diagnosis,), ruled_out, sides = describe([found], [found.failing, found.passing])
    assert ("the given graph" if failing is GIVEN else "the exported graph") == diagnosis.title
    assert ([], {failing.name: "actual"}, True) == (ruled_out, sides, diagnosis.remedy_verified)
    assert ("torch.onnx.export(..., dynamo=True)" if failing is GIVEN else "take the given graph") == diagnosis.remedy


def test_given_graph_has_nothing_of_an_export() -> None:
    """With a second suspect beside it, the pair that is tried is about the given graph itself."""
    failing = replace(MADE, actual=replace(MADE.actual, switches={"session.disable_prepacking": True}))
    tried: list[ConfigPair] = []

    def attempt(config: ConfigPair) -> ConfigRun:
        tried.append(config)
        return run_of(config, "agrees" if config.actual.exporter is None else "diverges")

    found = separate(run_of(failing, "diverges"), run_of(GIVEN, "agrees"), attempt)
    assert [("export", "exporter")] == [(step.side, step.name) for step in found.fix]
    given = [config.actual for config in tried if config.actual.exporter is None]
    assert [replace(GIVEN.actual, switches={"session.disable_prepacking": True})] == given


# In words


def test_diagnosis_says_what_to_write_and_what_it_costs() -> None:
    """Title and lines of the table, numbers before and after, and that it was tried."""
    machine = Machine(lambda on: 0 in on, seconds={frozenset({8}): 1.5})
    found = machine.separate({0, 8})
    (diagnosis,), (ruled,), sides = describe([found], [found.failing, found.passing, found.fixed])
    assert ("BD301", "oneDNN", "leave mkldnn unset (torch)") == (diagnosis.code, diagnosis.title, diagnosis.remedy)
    assert diagnosis.remedy_verified is True
    assert "PyTorch +50% time (1 s -> 1.5 s), +0 MB peak of the whole process" == diagnosis.cost
    assert "relative L2 1.0e-02" in diagnosis.evidence[0] and "relative L2 1.0e-07" in diagnosis.evidence[0]
    assert {"failing": "expected"} == sides
    assert "weights not packed" == ruled.title
    assert (
        "failing with ONNX Runtime's session.disable_prepacking left as it is still diverges: relative L2 1.0e-02",
    ) == (ruled.evidence[:1])
    assert "passing with ONNX Runtime's session.disable_prepacking = 1 still agrees" in ruled.evidence[1]


def test_cost_within_the_spread_has_no_percentage() -> None:
    """A median that moves by less than the repeats differ among themselves says nothing, nor does the other side's."""
    found = Machine(lambda on: 0 in on).separate({0})
    for seconds, time_cost in ((1.19, 0), (1.25, pytest.approx(0.25))):
        fixed = replace(found.fixed, expected_cost=SideCost(seconds, 1.1, 1.3, 5, None), actual_cost=None)
        tried = replace(found, fixed=fixed, suspicions=tuple(replace(s, tried=fixed) for s in found.suspicions))
        (diagnosis,), _, _ = describe([tried], [found.failing, found.passing])
        (item,) = hypotheses([tried])
        assert time_cost == item.time_cost
        assert bool(item.time_cost) == ("%" in str(diagnosis.cost))


def test_pairs_with_one_culprit_share_a_diagnosis() -> None:
    """It lists them, with the numbers and the cost of each; another culprit has a diagnosis of its own."""
    machine = Machine(lambda on: 0 in on or 6 in on, seconds={frozenset({8}): 1.5})
    passing = run_of(pair((), "passing"), "agrees")
    failing = [run_of(pair(on, name), "diverges") for on, name in (({0}, "a"), ({0, 8}, "b"), ({6}, "c"))]
    findings = [separate(run, passing, machine.attempt) for run in failing]
    (both, other), _, sides = describe(findings, [*failing, passing])
    assert ("oneDNN", "GELU by tanh") == (both.title, other.title)
    assert "2 pairs: a, b" == both.evidence[0]
    assert {"a", "b"} <= {line.partition(": ")[0] for line in both.evidence}
    assert len(both.evidence) == len(set(both.evidence))
    assert both.remedy_verified is True
    assert ["a: PyTorch: no difference", "b: PyTorch +50% time"] == [
        " ".join(part.split()[:4]) for part in str(both.cost).split("; ")
    ]
    assert other.evidence[0].startswith("c: diverges")
    assert {"a": "expected", "b": "expected", "c": "actual"} == sides


def test_every_suspect_is_a_hypothesis() -> None:
    """With what was tried, the numbers of both directions, the time, and the conclusion; culprits come first."""
    machine = Machine(lambda on: 0 in on or (1 in on and 2 not in on), seconds={frozenset({1, 2}): 1.5})
    found = machine.separate({0, 1, 2})
    table = hypotheses([found])
    assert [("mkldnn", "culprit"), ("mha_fastpath", "contributes"), ("flush_denormal", "ruled out")] == [
        (item.switch, item.conclusion) for item in table
    ]
    culprit, _, ruled = table
    assert ("torch", "oneDNN", "false", None) == (culprit.side, culprit.title, culprit.before, culprit.after)
    assert ("failing", "passing", "try-3") == (culprit.failing, culprit.passing, culprit.tried)
    assert (1e-2, 1e-7, 0.5) == (culprit.error_before, culprit.error_after, culprit.time_cost)
    assert (1e-7, 1e-2) == (culprit.error_passing, culprit.error_back)
    assert (1e-2, 1e-7) == (ruled.error_after, ruled.error_back)


def test_hypothesis_without_an_answer() -> None:
    """What could not run is neither culprit nor ruled out, and has no number."""
    machine = Machine(lambda on: 6 in on, broken=lambda on: {3, 6} <= on or on == {3})
    found = machine.separate({6}, {3})
    unknown = replace(found, suspicions=tuple(replace(s, without=None, alone=None) for s in found.suspicions))
    by_name = {item.switch: item for item in hypotheses([unknown])}
    assert ("no answer", None, None) == tuple(
        getattr(by_name["channels_last"], name) for name in ("conclusion", "error_after", "time_cost")
    )
    assert "culprit" == by_name["optimization.enable_gelu_approximation"].conclusion


def test_settings_are_spelt_as_one_writes_them() -> None:
    """``False`` in PyTorch, ``1`` in session keys, the constant of a level, the name of an exporter."""
    start = pair({0, 8, 11})
    start = replace(start, actual=replace(start.actual, exporter="dynamo"))
    goal = replace(pair((), "passing"), actual=NumericConfig("onnxruntime", optimization="all", exporter="torchscript"))
    found = separate(run_of(start, "diverges"), run_of(goal, "agrees"), lambda config: run_of(config, "diverges"))
    ((diagnosis,), _, _) = describe([found], [found.failing, found.passing])
    evidence = "\n".join(diagnosis.evidence)
    assert "the export's exporter = torchscript" in evidence
    assert "ONNX Runtime's optimization = ORT_ENABLE_ALL" in evidence
    assert "passing with PyTorch's mkldnn = False alone diverges" in evidence
    assert "passing with ONNX Runtime's session.disable_prepacking = 1 alone diverges" in evidence


def cuda(name: str, **switches: Value) -> ConfigPair:
    return ConfigPair(name, NumericConfig("torch", "cuda", switches=switches), NumericConfig("onnxruntime", "cuda"))


def test_pattern_counts_defaults() -> None:
    """cuDNN's TF32 is on where nobody sets it; pairs on the CPU have none, whatever they say."""
    plain, benchmarked = (run_of(cuda(n, **s), "diverges") for n, s in (("a", {}), ("b", {"cudnn_benchmark": True})))
    strict = run_of(cuda("c", cudnn_conv_tf32=False), "agrees")
    cpu = run_of(pair((), "cpu"), "agrees")
    found = separate(plain, strict, Machine(lambda on: True).attempt)
    line = "every failing pair has PyTorch's cudnn_conv_tf32 left as it is, and no passing one has"
    runs = [plain, benchmarked, strict, cpu]
    assert line in describe([found], runs)[0][0].evidence
    also = run_of(cuda("d", cudnn_conv_tf32=True), "agrees")
    assert line not in describe([found], [*runs, also])[0][0].evidence
    assert line not in describe([found], [plain, strict, cpu])[0][0].evidence, "one pair is no pattern"


def test_emulated_precision_names_lines_of_both_sides() -> None:
    """They were not tried, since nothing ran on CUDA; another switch of the fix keeps its line."""
    emulated = ConfigPair(
        "tf32-emulated", NumericConfig("torch", switches={"emulate": "tf32"}), NumericConfig("onnxruntime")
    )
    both = replace(emulated, actual=replace(emulated.actual, switches={"session.disable_prepacking": True}))
    plain = ConfigPair("plain", NumericConfig("torch"), NumericConfig("onnxruntime"))

    def attempt(config: ConfigPair) -> ConfigRun:
        return run_of(config, "diverges")

    tf32 = [
        *(code_for("torch", name, False) for name in ("matmul_tf32", "cudnn_conv_tf32")),
        'providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]',
    ]
    for failing, lines in ((emulated, tf32), (both, [*tf32, "leave session.disable_prepacking unset (onnxruntime)"])):
        found = separate(run_of(failing, "diverges"), run_of(plain, "agrees"), attempt)
        ((diagnosis,), _, _) = describe([found], [found.failing, found.passing])
        assert lines == diagnosis.remedy.splitlines()
        assert (None, None) == (diagnosis.remedy_verified, diagnosis.cost)
        assert "tf32-emulated" in diagnosis.title
        assert any("not that a GPU run used it" in line for line in diagnosis.evidence)


@pytest.mark.parametrize(
    ("emulated", "lines"),
    [
        (
            "bf16",
            [
                'with torch.autocast("cuda", enabled=False):',
                'providers=[("TensorrtExecutionProvider", {"trt_bf16_enable": "0"}), "CPUExecutionProvider"]',
            ],
        ),
        (
            "fp16",
            [
                'with torch.autocast("cuda", enabled=False):',
                'providers=[("TensorrtExecutionProvider", {"trt_fp16_enable": "0"}), "CPUExecutionProvider"]',
            ],
        ),
    ],
)
def test_emulated_half_precision_names_lines_of_both_sides(emulated: str, lines: list[str]) -> None:
    """What rounds operands so on CUDA is autocast in PyTorch and an option of TensorRT in ONNX Runtime."""
    name = f"{emulated}-emulated"
    expected = NumericConfig("torch", switches={"emulate": emulated})
    failing = run_of(ConfigPair(name, expected, NumericConfig("onnxruntime")), "diverges")
    passing = run_of(ConfigPair("plain", NumericConfig("torch"), NumericConfig("onnxruntime")), "agrees")
    found = separate(failing, passing, lambda config: run_of(config, "diverges"))
    ((diagnosis,), _, sides) = describe([found], [failing, passing])
    assert lines == diagnosis.remedy.splitlines()
    assert f"{name} operands of products and convolutions in PyTorch" == diagnosis.title
    assert (None, None, {name: "expected"}) == (diagnosis.remedy_verified, diagnosis.cost, sides)


def test_explored_pairs_are_named_with_what_was_found() -> None:
    """A finding is said of its own pair; the others have the origin of a pair that counts, or no reason at all."""
    machine = Machine(lambda on: 0 in on)
    run = replace(run_of(pair({0}, "switched"), "diverges"), gating=False)
    finding = separate(run, run_of(pair((), "plain"), "agrees"), machine.attempt)
    gating = run_of(pair({8}, "counts"), "diverges")
    others = [replace(run_of(pair((), name), "diverges"), gating=False) for name in ("like-it", "other", "too")]
    fc, norm = StageRef("fc", 0, 0), StageRef("norm", 0, 0)
    worst = {"counts": fc, "like-it": fc, "too": fc, "other": norm, "switched": None}
    start = "explored only, and not counted: "
    assert [
        f"{start}switched; what separates them (BD301): oneDNN",
        f"{start}like-it, too: same origin as counts",
        f"{start}other: no switch was found that separates them",
    ] == explored([finding], [gating, run, *others], worst)


def test_fresh_export_that_helps_most_is_no_mending() -> None:
    """A third of the error and less is left, and it still diverges: the file is part of it, and not all."""
    failing = run_of(pair({0}), "diverges", 1e-2)
    assert lowers(failing, run_of(pair((), "fresh"), "diverges", 4e-4))
    assert not lowers(failing, run_of(pair((), "fresh"), "diverges", 9e-3))
    assert not mends(failing, run_of(pair((), "fresh"), "diverges", 4e-4))

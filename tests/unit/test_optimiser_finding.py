"""What the bisection over passes found, in words and in the verdict."""

from __future__ import annotations

import math
from dataclasses import replace

from bisect_tool.diagnose.optimiser import (
    BLOWN_UP,
    CODE,
    NO_PASS,
    TITLE,
    OptimiserFinding,
    Spot,
    diagnosis,
    finding_of,
    ledger,
    line,
    with_finding,
)
from bisect_tool.outputs import worst_error
from bisect_tool.passes import PassRun, PassSearch, PassTrial
from bisect_tool.records import ConfigPair, NumericConfig, Origin, StageRef, Verdict

PAIR = ConfigPair("deployed", NumericConfig("torch"), NumericConfig("onnxruntime", optimization="all"))
NORM, HEAD = StageRef("net.norm", 0, 0), StageRef("net.head", 0, 0)
MENDED = PassRun(1e-7, True, 3)
SEARCH = PassSearch(
    level="all",
    before=0.5,
    first_level="extended",
    best_level="basic",
    found=("BadFusion",),
    mended=MENDED,
    alternatives=("Folding",),
    trials=(
        PassTrial("basic", (), PassRun(1e-7, True), True),
        PassTrial("extended", (), PassRun(0.5, False), False),
        PassTrial("all", ("BadFusion", "Folding", "Innocent", "Idle"), PassRun(2e-7, True), True),
        PassTrial("all", ("BadFusion",), MENDED, True),
        PassTrial("all", ("Folding",), PassRun(2e-7, True, 40), True),
        PassTrial("all", ("Innocent",), PassRun(0.5, False, 2), False),
        PassTrial("all", ("Idle",), PassRun(0.5, False, 0), False),
        PassTrial("all", ("Needed",), PassRun(None, False), False),
    ),
    complete=True,
)
SPOT = Spot(
    value="y",
    error=0.3,
    nodes=("mul_1 (Mul)", "add_2 (Add)"),
    instead=("com.microsoft.Fused",),
    reads=("x",),
    stages=(NORM, HEAD),
    good=4,
    inner=("m",),
    healed=1e-8,
    rewritten=True,
    hidden=(),
    runs=6,
    complete=True,
)
NOTHING = replace(SEARCH, found=(), mended=None, alternatives=(), trials=SEARCH.trials[:2])


def told(search: PassSearch = SEARCH, spot: Spot = SPOT) -> str:
    return "\n".join(diagnosis(PAIR, search, [spot], 5, "options.x()", None).evidence)


def test_a_named_pass() -> None:
    """The title names it; the evidence has numbers, levels, the place and the effort."""
    made = diagnosis(PAIR, SEARCH, [SPOT], 5, "options.x()", "nothing")
    assert (CODE, f"{TITLE}: BadFusion", "options.x()", True) == (
        made.code,
        made.title,
        made.remedy,
        made.remedy_verified,
    )
    assert (HEAD, 0.5, 1e-7, "nothing") == (made.origin, made.error_before, made.error_after, made.cost)
    assert (
        "deployed: final outputs off by 5.0e-01; without BadFusion by 1.0e-07",
        "by level: off is right, basic is right (1.0e-07), extended is wrong (5.0e-01), all is wrong",
        "rewritten there: mul_1 (Mul), add_2 (Add), of net.norm, net.head: com.microsoft.Fused in their place, from x to y",
        "first value that is off while the final outputs stay bit for bit as deployed: y (3.0e-01); "
        "4 values before it are right",
        "looking at m in between mends it: y is off by 1.0e-08 then",
        "in all it makes or changes 5 nodes of this graph",
        "without Folding it is right as well: BadFusion finds nothing to do then",
        "8 runs over levels and passes, 6 under observation",
    ) == made.evidence


def test_hidden_values_and_an_exhausted_budget_are_told() -> None:
    """Nobody should take the search for complete that was not."""
    text = told(replace(SEARCH, complete=False), replace(SPOT, healed=None, hidden=("m", "n")))
    assert "cannot be looked at without changing the final outputs: m, n" in text
    assert text.endswith("under observation; then time or number of runs ended it")


def test_no_pass_is_to_blame() -> None:
    """Then the highest level that is right is the remedy, and the title says that no pass was found."""
    made = diagnosis(PAIR, NOTHING, [SPOT], None, "options.level()", None)
    assert (NO_PASS, True, 1e-7) == (made.title, made.remedy_verified, made.error_after)
    assert made.evidence[0].endswith("no pass changed the graph")
    tried = replace(NOTHING, trials=(*NOTHING.trials, PassTrial("all", ("A", "B"), PassRun(0.5, False), False)))
    assert diagnosis(PAIR, tried, [], None, "", None).evidence[0].endswith("it stays wrong")
    assert diagnosis(PAIR, replace(NOTHING, best_level=None), [], None, "", None).remedy_verified is None


def test_rounding_that_is_blown_up_is_no_faulty_pass() -> None:
    """Where the first value that is off comes from a node that was left as it is, only rounding before it differs."""
    spot = replace(SPOT, rewritten=False, healed=None, inner=())
    made = diagnosis(PAIR, SEARCH, [spot], 5, "options.x()", None)
    assert f"{BLOWN_UP}: BadFusion" == made.title
    assert "not rewritten there: mul_1 (Mul), add_2 (Add), of net.norm, net.head" in told(spot=spot)
    assert "is blown up at net.head" in line(PAIR, SEARCH, [spot])


def test_an_error_without_a_number() -> None:
    """Another shape is no number, and a graph that does not load has no error at all."""
    assert "off by inf (another shape, or NaN on one side)" in told(replace(SEARCH, before=math.inf))
    assert "deployed: does not run; without BadFusion by 1.0e-07" in told(replace(SEARCH, before=None))


def test_ledger() -> None:
    """The culprit, what mends as well, what is ruled out, and what gave no answer; not what had nothing to do."""
    entries = ledger(PAIR, SEARCH, [SPOT], HEAD)
    assert [
        ("optimiser without BadFusion", 1e-7, "cause"),
        ("optimiser without Folding", 2e-7, "contributes"),
        ("optimiser without Innocent", 0.5, "ruled out"),
        ("optimiser without Needed", None, "no answer"),
    ] == [(e.change, e.error_after, e.conclusion) for e in entries]
    assert {(HEAD, "deployed", CODE, "add_2", 0.5)} == {
        (e.ref, e.config, e.code, e.node, e.error_before) for e in entries
    }
    pair = replace(
        SEARCH, found=("BadFusion", "Other"), trials=(PassTrial("all", ("BadFusion", "Other"), MENDED, True),)
    )
    assert ["optimiser without BadFusion and Other"] == [e.change for e in ledger(PAIR, pair, [], HEAD)]


def test_the_line_of_the_verdict() -> None:
    """Passes, configuration and place, in the singular and in the plural."""
    assert ("the optimiser pass BadFusion does it under deployed, the graph unoptimised is right: at net.head") == line(
        PAIR, SEARCH, [SPOT]
    )
    assert line(PAIR, replace(SEARCH, found=("A", "B")), []).startswith("the optimiser passes A and B do it")
    assert line(PAIR, NOTHING, []).startswith("optimisation does it")


def found() -> OptimiserFinding:
    origin = Origin("net.head", 0, 0, "Linear", None, "y", ("add_2",), "deployed", 0.3, None, "actual")
    made = diagnosis(PAIR, SEARCH, [SPOT], 5, "options.x()", None)
    return OptimiserFinding(made, ledger(PAIR, SEARCH, [SPOT], HEAD), (origin,), line(PAIR, SEARCH, [SPOT]))


def test_a_hidden_place_is_where_the_divergence_begins() -> None:
    """No stage diverged while it was looked at: the place is the first, and the line that said so is answered."""
    said = "the final outputs diverge under deployed, and no exposed stage does: exposing values hides what happens"
    verdict = with_finding(Verdict("diverges", (said, "another line"), None, ()), found())
    assert ("the final outputs diverge under deployed", found().line, "another line") == verdict.summary
    assert verdict.first_over_tolerance is not None
    assert HEAD == verdict.first_over_tolerance.ref
    assert ["net.head"] == [origin.stage for origin in verdict.origins]
    assert found() == finding_of(verdict)


def test_a_place_that_is_known_stays_first() -> None:
    """The first diverging stage is not moved; only what was not known is filled in."""
    known = with_finding(Verdict("diverges", ("x",), None, ()), found()).first_over_tolerance
    assert known is not None
    first = replace(known, stage="earlier")
    said = ("first diverging stage: earlier", "where the error is made was not measured under this configuration")
    verdict = with_finding(Verdict("diverges", said, first, ()), found())
    assert ("first diverging stage: earlier", found().line) == verdict.summary
    assert first == verdict.first_over_tolerance


def test_a_verdict_without_a_finding() -> None:
    assert finding_of(Verdict("diverges", ("x",), None, ())) is None
    assert worst_error([]) is None

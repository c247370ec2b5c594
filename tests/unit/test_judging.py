"""``judging``: faults, rounding that grew, and what the user's tolerance leaves alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bisect_tool.judging import (
    floor_summary,
    growth_lines,
    is_explained,
    is_perturbed,
    judge_by_noise,
    makes_error,
    side_off,
)
from bisect_tool.metrics import judge, measure
from bisect_tool.records import Comparison, Judgement, Noise, OutputResult, StageRow
from bisect_tool.tolerances import make_tolerance

DEFAULT = make_tolerance(None, None, None)
CLEAN = Noise(settled=True)
OFF = Noise(1e-7, 0.5, 400.0)
NOISY = Noise(1e-3, 1.0, 2.0)


def row(
    index: int,
    total: float,
    local: float = 1e-7,
    noise: Noise | None = CLEAN,
    inputs: Sequence[int] | None = None,
    dtype: str = "float32",
    kind: str = "Linear",
    entering: float = 1e-8,
) -> StageRow:
    ones = np.ones(100, dtype)
    metrics, judgement = judge(ones, (ones + total).astype(dtype), DEFAULT)
    result = Comparison(
        total=metrics,
        local=measure(ones.astype(float), ones + local),
        input_error=entering,
        growth=None,
        amplification=None,
        floor=noise.floor if noise else None,
        noise_ratio=noise.ratio if noise else None,
        judgement=judgement,
        noise=noise,
    )
    reads = tuple(inputs) if inputs is not None else ((index - 1,) if index else ())
    return StageRow(
        index, f"s{index}", 0, 0, "leaf", kind, None, (100,), dtype, "", reads, None, f"v{index}", (), {"off": result}
    )


def judgements(rows: Sequence[StageRow]) -> list[str]:
    return [row.results["off"].judgement for row in judge_by_noise(rows, "off", DEFAULT)]


def test_a_long_chain_of_healthy_growth_is_no_fault() -> None:
    """The published 0.005, 0.042, 0.38: each step eight times the one before, with local errors at the floor."""
    chain = [row(0, 5e-3, noise=CLEAN), row(1, 4.2e-2, noise=NOISY), row(2, 0.38, noise=CLEAN)]
    assert [r.results["off"].judgement for r in chain] == ["fail"] * 3
    assert judgements(chain) == ["pass"] * 3
    (line,) = growth_lines(judge_by_noise(chain, "off", DEFAULT), "off", DEFAULT)
    assert "rounding grows to 3.8e-01 at s2" in line


def test_a_fault_under_the_limit_fails() -> None:
    """Rounding does not explain 5e-5 of a linear layer."""
    assert judgements([row(0, 1e-7), row(1, 5e-5, 5e-5, OFF), row(2, 6e-5)]) == ["pass", "fail", "pass"]


def test_what_comes_from_a_fault_over_the_limit_fails_too() -> None:
    """On its branch only."""
    rows = [row(0, 1e-2, 1e-2, OFF), row(1, 2e-2), row(2, 2e-2, inputs=()), row(3, 5e-2, inputs=(1, 2))]
    assert judgements(rows) == ["fail", "fail", "pass", "fail"]


def test_a_result_of_a_call_may_be_made_of_another_one() -> None:
    """Attention's context of its weights, which are listed behind it: no row reads the other."""
    context, weights = row(1, 0.7, inputs=[0]), row(2, 1.8, 1.8, OFF, inputs=[0])
    weights = replace(weights, stage=context.stage, output=1)
    rows = [row(0, 1e-8), context, weights, row(3, 0.5, inputs=[1])]
    assert judgements(rows) == ["pass", "fail", "fail", "fail"]
    assert not is_explained(rows[3].results["off"].total, rows, "v3", "off")
    right = replace(weights, results=row(2, 1e-7).results)
    assert judgements([rows[0], context, right, rows[3]]) == ["pass"] * 4


def test_an_error_that_nothing_brings_in_is_no_rounding() -> None:
    """The inputs are PyTorch's, and so is the result on them: the graph reads something else."""
    assert judgements([row(0, 0.4, 1e-7, entering=0.0)]) == ["fail"]
    assert judgements([row(0, 5e-3, 4e-3, NOISY, entering=0.0)]) == ["pass"]


def test_unknown_floors_leave_it_to_the_tolerance() -> None:
    unknown = Noise(unknown="draws random numbers")
    assert judgements([row(0, 1e-2, 1e-2, unknown)]) == ["fail"]
    assert judgements([row(0, 5e-5, 5e-5, unknown)]) == ["pass"]
    assert judgements([row(0, 1e-2, 1e-7, unknown)]) == ["pass"]


def test_the_users_tolerance_decides_alone() -> None:
    rows = [row(0, 5e-5, 5e-5, OFF), row(1, 1e-2)]
    assert judge_by_noise(rows, "off", make_tolerance(0.1, None, None)) == rows


def test_nan_on_one_side_is_never_rounding() -> None:
    broken = row(0, 1e-7)
    ones = np.ones(4)
    metrics, judgement = judge(ones, np.array([1, 1, 1, np.nan]), DEFAULT)
    result = replace(broken.results["off"], total=metrics, judgement=judgement)
    assert judgements([replace(broken, results={"off": result})]) == ["fail"]


@pytest.mark.parametrize(("noise", "side"), [(OFF, "actual"), (Noise(1e-7, 9.0, 1.0), "expected"), (CLEAN, None)])
def test_the_side_comes_from_the_noise(noise: Noise, side: str | None) -> None:
    stage = row(0, 1e-3, 1e-3, noise)
    assert side_off(stage.results["off"]) == side
    assert makes_error(stage, stage.results["off"]) == (side is not None)


def test_an_overflow_on_one_side_is_made_where_it_happens() -> None:
    """Plain float32 overflows as PyTorch does, so that nothing is beyond the floor: still no rounding made it."""
    stage = row(0, 1e-3, noise=Noise(math.inf, 1.0, 0.0))
    result = stage.results["off"]
    local = measure(np.array([1.0, math.inf]), np.array([1.0, 89.0]))
    assert makes_error(stage, replace(result, local=local))
    assert not makes_error(stage, replace(result, local=measure(np.array([1.0, math.inf]), np.array([1.0, math.inf]))))


def test_an_optimised_run_may_round_ten_times_as_much() -> None:
    rows = [row(0, 3e-4, noise=NOISY)]
    total = measure(np.ones(100), np.ones(100) + 2e-3)
    assert is_explained(total, rows, "v0", "off")
    assert not is_explained(measure(np.ones(100), np.ones(100) + 4e-3), rows, "v0", "off")
    assert not is_explained(total, rows, "elsewhere", "off")
    assert not is_explained(total, [row(0, 3e-4, 3e-4, OFF)], "v0", "off")


def test_steps_are_named() -> None:
    """``round`` turns rounding into whole steps; so does every integer that is computed from numbers."""
    rows = [row(0, 1e-6), row(1, 0.2, 0.0, kind="round"), row(2, 1.0, 0.0, dtype="int64", kind="argmax")]
    lines = growth_lines(judge_by_noise(rows, "off", DEFAULT), "off", DEFAULT)
    assert lines == ["not continuous: rounding alone changes the result of s1, s2"]


def test_floors_are_counted() -> None:
    rows = [row(0, 0.0), row(1, 0.0, noise=NOISY), row(2, 0.0, noise=Noise(unknown="x")), row(3, 0.0, noise=None)]
    assert floor_summary(rows, "off") == {"settled": 1, "measured": 1, "unknown": 1}


def outputs_of(*judgement: Judgement) -> list[OutputResult]:
    metrics = measure(np.ones(4), np.ones(4))
    return [OutputResult(number, "v1", metrics, each) for number, each in enumerate(judgement)]


@pytest.mark.parametrize(
    ("judgement", "noise", "effect", "expected"),
    [
        (("pass",), CLEAN, 1e-3, True),
        (("pass", "pass"), NOISY, 1e-1, True),
        # Rounding alone moves the outputs so far.
        (("pass",), CLEAN, 1e-7, False),
        (("pass",), NOISY, 2e-3, False),
        # The outputs fail, looked at or not; or were not compared.
        (("pass", "fail"), CLEAN, 1e-3, False),
        ((), CLEAN, 1e-3, False),
        (("pass",), CLEAN, None, False),
        # A stage makes error on PyTorch's own inputs: that is an answer.
        (("pass",), OFF, 1e-1, False),
    ],
)
def test_a_run_that_only_fails_when_it_is_looked_at(
    judgement: tuple[Judgement, ...], noise: Noise, effect: float | None, expected: bool
) -> None:
    rows = [row(0, 1e-8), row(1, 0.5, noise=noise)]
    assert expected == is_perturbed(outputs_of(*judgement), rows, "off", effect)

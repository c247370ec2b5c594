"""What a calibration found, on a terminal and as JSON: how many runs, how firmly the tail is known, the widest stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from rich.console import Console

from bisect_tool.calibration.limits import CONFIDENCE, samples_needed
from bisect_tool.calibration.table_from_runs import Made
from bisect_tool.calibration.tolerance_table import StageLimits, ToleranceTable
from bisect_tool.reporters import wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row, Span

WIDEST = 8
"""Stages that are shown."""

LEFT_OUT = 5
"""Lines on what was not used."""


def print_calibration(
    made: Made,
    written: Sequence[str],
    failed: Mapping[str, str] | None = None,
    *,
    file: IO[str] | None = None,
    width: int | None = None,
) -> None:
    """Prints to stdout, or to ``file``.

    Args:
        made: the table.
        written: files, the table first.
        failed: samples without runs, and why.
    """
    render(made, written, failed or {}, PipedConsole(file=file, width=width))


def render(made: Made, written: Sequence[str], failed: Mapping[str, str], console: Console) -> None:
    """Prints a calibration."""
    page = Page(console)
    table = made.table
    known = table.calibration
    limited = [stage for stage in table.stages if stage.metrics]
    page.line((written[0] if written else "tolerances", "bold"))
    page.prose(
        f"limits for {wording.plural(len(limited), 'stage')} from {wording.plural(known.samples, 'sample')}, "
        f"{known.runs} known-good runs",
        indent="  ",
    )
    for line in tail_lines(table):
        page.prose(line, indent="  ")
    for machine in table.hardware if len(table.hardware) > 1 else ():
        page.prose(f"{machine.name}: {wording.plural(machine.samples, 'sample')}, tail {machine.tail}", indent="  ")
    page.line()
    _widest(page, limited)
    page.line()
    page.prose("; ".join(known.variations), label=("known good  ", "bold"))
    lines = [
        f"{text} ({count} of {known.samples} samples)" if count > 1 else text
        for text, count in sorted(made.left_out.items(), key=lambda item: -item[1])
    ]
    lines += [f"sample {name}: {reason}" for name, reason in failed.items()]
    for number, text in enumerate(lines[:LEFT_OUT]):
        page.prose(text, label=("left out    " if number == 0 else " " * 12, "bold yellow"))
    if len(lines) > LEFT_OUT:
        page.prose(f"and {len(lines) - LEFT_OUT} more", indent=" " * 12)
    for number, path in enumerate(written[1:]):
        page.line(("plots       " if number == 0 else " " * 12, "bold"), path)


def tail_lines(table: ToleranceTable) -> list[str]:
    """How firmly the limits are known, in words."""
    known = table.calibration
    rate = f"{100 * known.false_alarm:g} %"
    if known.tail == "measured":
        bound = f" (at most {100 * known.rate_bound:.2g} %, confidence {CONFIDENCE:.0%})" if known.rate_bound else ""
        return [f"at most {rate} of correct runs are over any limit{bound}; the tail is measured"]
    needed = samples_needed(known.false_alarm)
    why = (
        "so few samples do not even tell how errors spread, and a usual spread is assumed"
        if known.tail == "too few"
        else "the tail is extrapolated, and the limits are wider for it"
    )
    had = wording.plural(known.samples, "sample")
    return [f"meant for {rate} false alarms a run; {had} cannot show that, {needed} could: {why}"]


def _widest(page: Page, stages: Sequence[StageLimits]) -> None:
    order = sorted(stages, key=lambda stage: -_limit(stage, "rel_l2"))
    columns = [
        Column("widest stages", minimum=16),
        Column("samples", right=True, drop=2),
        Column("usual", right=True, drop=1),
        Column("largest", right=True, drop=3),
        Column("limit", right=True),
        Column("own error, usual", right=True, drop=4),
        Column("limit", right=True, drop=1),
    ]
    rows: list[Row | Span] = []
    for stage in order[:WIDEST]:
        total, own = stage.metrics.get("rel_l2"), stage.metrics.get("local_rel_l2")
        rows.append(
            Row(
                (
                    str(stage.ref),
                    str(stage.n),
                    wording.sci(total.p50 if total else None),
                    wording.sci(total.max if total else None),
                    wording.sci(total.limit if total else None),
                    wording.sci(own.p50 if own else None),
                    wording.sci(own.limit if own else None),
                )
            )
        )
    if len(order) > WIDEST:
        narrow = order[-1]
        rows.append(
            Span(f"and {len(order) - WIDEST} more, down to {wording.sci(_limit(narrow, 'rel_l2'))} at {narrow.ref}")
        )
    page.table(columns, rows)
    page.prose("relative L2 of the total error, and of the error that a stage makes itself", style="dim")


def _limit(stage: StageLimits, metric: str) -> float:
    known = stage.metrics.get(metric)
    return known.limit if known is not None else 0.0


def as_json(made: Made, written: Sequence[str], failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The same as plain values; what the table holds of calibration and hardware, and each stage's limits."""
    table = made.table
    return {
        "tolerances": written[0] if written else None,
        "plots": list(written[1:]),
        "calibration": asdict(table.calibration),
        "samples_needed": samples_needed(table.calibration.false_alarm),
        "hardware": [asdict(machine) for machine in table.hardware],
        "stages": [
            {
                "stage": stage.stage,
                "call": stage.call,
                "output": stage.output,
                "kind": stage.kind,
                "n": stage.n,
                "limits": {name: limit.limit for name, limit in stage.metrics.items()},
            }
            for stage in table.stages
        ],
        "left_out": dict(made.left_out),
        "failed": dict(failed or {}),
    }

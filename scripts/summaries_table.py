"""Summaries against full recordings on every family of the zoo: do both find the same first stage?

usage: summaries_table.py [FAMILY ...]     prints the table of docs/summaries.md
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "zoo")]

from families import FAMILIES  # noqa: E402
from test_summaries import _changed, _firsts  # noqa: E402

from bisect_tool.recorder import record  # noqa: E402
from bisect_tool.recordings.compare_traces import compare_recordings  # noqa: E402

SIZES = (1e-6, 1e-4, 3e-2)
"""Of the change of one weight, in its standard deviation."""


def main() -> int:
    names = sys.argv[1:] or list(FAMILIES)
    print(
        "| family | stages | full, KB | summary, KB | same first differing stage | same first over tolerance | same verdict "
        "| estimates off by at most |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    totals = [0, 0, 0, 0]
    for name in names:
        counts, sizes, stages, off = _family(name)
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        shown = " | ".join(f"{count} of {counts[0]}" for count in counts[1:])
        print(f"| {name} | {stages} | {sizes[0] / 1e3:.0f} | {sizes[1] / 1e3:.0f} | {shown} | {off:.0%} |", flush=True)
    same = ", ".join(
        f"{word} {count}"
        for word, count in zip(
            ("first differing stage", "first stage over tolerance", "verdict"), totals[1:], strict=True
        )
    )
    print(f"\nOf {totals[0]} pairs of recordings in {len(names)} families the same: {same}.")
    return 0 if set(totals) == {totals[0]} else 1


def _family(name: str) -> tuple[list[int], list[int], int, float]:
    family = FAMILIES[name]
    inputs = family.inputs(0)
    counts, off, stages = [0, 0, 0, 0], 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for summary in (False, True):
            record(family.build(), inputs, None, folder / f"a{summary}.trace", summary)
        sizes = [(folder / f"a{summary}.trace").stat().st_size for summary in (False, True)]
        for seed, size in enumerate(SIZES):
            model = family.build()
            _changed(model, size, seed)
            reports = []
            for summary in (False, True):
                record(model, inputs, None, folder / f"b{summary}.trace", summary, force=True)
                reports.append(compare_recordings(folder / f"a{summary}.trace", folder / f"b{summary}.trace"))
            full, short = map(_firsts, reports)
            statuses = [report.verdict.status for report in reports]
            counts = [
                a + b
                for a, b in zip(
                    counts, (1, full[0] == short[0], full[1] == short[1], statuses[0] == statuses[1]), strict=True
                )
            ]
            stages = len(reports[0].stages)
            for row, other in zip(reports[0].stages, reports[1].stages, strict=True):
                errors = [next((r.total.rel_l2 for r in each.results.values()), 0.0) for each in (row, other)]
                if errors[0] > 0 and row.dtype.startswith("float"):
                    off = max(off, abs(errors[1] / errors[0] - 1))
    return counts, sizes, stages, off


if __name__ == "__main__":
    sys.exit(main())

"""``--summary``: kilobytes find the same first differing stage as full recordings, on every family of the zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import nn

from bisect_tool.recorder import record
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import Report

SIZES = (1e-6, 3e-2)
"""Of the change of one weight: one that only shows in the last bits, and one that is over every tolerance."""


def _changed(model: nn.Module, size: float, seed: int) -> str:
    """Changes one of the weights in the middle of the model, which it is by chance."""
    named = [(name, p) for name, p in model.named_parameters() if p.ndim > 1]
    name, weight = named[len(named) // 3 + seed % max(1, len(named) // 3)]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight += noise * weight.std() * size
    return name


def _firsts(report: Report) -> tuple[str | None, str | None, list[str]]:
    """First stage that is not bit-identical, first one over tolerance, and the differing weights."""
    links = {link.link: link for link in report.chain}
    apart = [each.what for each in links["stages"].differences]
    first = report.verdict.first_over_tolerance
    return (
        apart[0] if apart else None,
        str(first.ref) if first else None,
        [d.what for d in links["weights"].differences],
    )


QUICK = ("points", "recurrent")
"""The other families take a minute; scripts/summaries_table.py runs all of them for docs/summaries.md."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_summaries_find_the_same_stage(name: str, tmp_path: Path) -> None:
    """Which tensors are equal is exact; errors are near enough to be judged alike."""
    family = FAMILIES[name]
    inputs = family.inputs(0)
    for summary in (False, True):
        record(family.build(), inputs, None, tmp_path / f"a{summary}.trace", summary)
    for seed, size in enumerate(SIZES):
        model = family.build()
        weight = _changed(model, size, seed)
        reports = []
        for summary in (False, True):
            record(model, inputs, None, tmp_path / f"b{summary}.trace", summary, force=True)
            reports.append(compare_recordings(tmp_path / f"a{summary}.trace", tmp_path / f"b{summary}.trace"))
        full, short = reports
        assert _firsts(full) == _firsts(short)
        assert full.verdict.status == short.verdict.status
        assert _firsts(full)[2] == [weight]
        assert _firsts(full)[0] is not None or size < 1e-3
        (config,) = (run.name for run in full.configs)
        (other,) = (run.name for run in short.configs)
        for row, same in zip(full.stages, short.stages, strict=True):
            if config in row.results and row.results[config].total.rel_l2 > 0 and row.dtype.startswith("float"):
                assert same.results[other].total.rel_l2 == pytest.approx(row.results[config].total.rel_l2, rel=0.6)
    sizes = [(tmp_path / f"a{summary}.trace").stat().st_size for summary in (False, True)]
    assert sizes[1] < 300_000

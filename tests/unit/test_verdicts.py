"""The verdict in words."""

from __future__ import annotations

from dataclasses import replace

from report_samples import diverging

from bisect_tool.records import Localization
from bisect_tool.verdicts import summarize_verdict


def test_the_strongest_origin_is_named_where_the_list_is_cut() -> None:
    """The first five are in causal order; the strongest one is said even if it comes later."""
    report = diverging()
    origin = report.verdict.origins[0]
    origins = tuple(replace(origin, stage=f"s{n}", local_rel_l2=0.9 if n == 6 else 0.1) for n in range(8))

    def line(*found: object) -> str:
        localization = Localization(report.verdict.first_over_tolerance, found, ())  # type: ignore[arg-type]
        return summarize_verdict("diverges", localization, report.configs, report.alignment, report.stages, 0.9)[1]

    assert line(*origins).endswith("s4 (local 1.0e-01) and 3 more, the strongest of all in s6 (local 9.0e-01)")
    assert line(*origins[:6]).endswith("s4 (local 1.0e-01) and 1 more")

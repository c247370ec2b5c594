"""What was tried and what was seen before the run, as every reporter shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bisect_tool.diagnose.explain import codes
from bisect_tool.records import Finding, LedgerEntry, Report
from bisect_tool.reporters import common

_RANK = {"cause": 0, "contributes": 1, "no answer": 2, "ruled out": 3}


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """All changes of one code that were tried for one origin.

    Attributes:
        code: of the cause.
        count: how many were tried; 0: a rule looked, and nothing had to be tried.
        best: the smallest error that one left; ``None``: none ran.
        text: of the entry that says most.
        conclusion: the gravest of theirs.
    """

    code: str
    count: int
    best: float | None
    text: str
    conclusion: str


@dataclass(frozen=True, slots=True)
class Trials:
    """What was tried for one origin; ``before``: its error."""

    where: str
    before: float
    hypotheses: tuple[Hypotheses, ...]
    entries: tuple[LedgerEntry, ...]


def trials(report: Report) -> list[Trials]:
    """The ledger by origin, in the order in which they were looked into."""
    by_origin: dict[tuple[object, str], list[LedgerEntry]] = {}
    for entry in report.verdict.ledger:
        by_origin.setdefault((entry.ref, entry.config), []).append(entry)
    found = []
    for (ref, config), entries in by_origin.items():
        by_code: dict[str, list[LedgerEntry]] = {}
        for entry in entries:
            by_code.setdefault(entry.code, []).append(entry)
        rows = sorted(
            (_hypotheses(code, listed) for code, listed in by_code.items()), key=lambda row: _RANK[row.conclusion]
        )
        found.append(Trials(f"{ref} under {config}", entries[0].error_before, tuple(rows), tuple(entries)))
    return found


def _hypotheses(code: str, entries: Sequence[LedgerEntry]) -> Hypotheses:
    most = min(entries, key=lambda entry: _RANK[entry.conclusion])
    left = [entry.error_after for entry in entries if entry.error_after is not None]
    tried = [entry for entry in entries if entry.tried]
    best = most.error_after if most.conclusion == "cause" else min(left, default=None)
    return Hypotheses(code, len(tried), best, most.change, most.conclusion)


def count_text(row: Hypotheses) -> str:
    """``3 changes``; of what was only looked at, what was seen."""
    return common.plural(row.count, "change") if row.count else "seen"


def findings(report: Report) -> list[Finding]:
    """What the files told before the run, the gravest first."""
    return list(report.preflight)


def title(code: str) -> str:
    """What a code stands for, in a few words; empty for one that has no page."""
    return codes().get(code, "")


SEVERITIES = {"fault": "fault", "suspicion": "look at", "fact": "fact"}

"""What was tried and what was seen before the run, as every reporter shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bisect_tool.diagnose.causes import UNKNOWN
from bisect_tool.diagnose.explain import codes
from bisect_tool.records import Finding, LedgerEntry, Report
from bisect_tool.reporters import selecting, wording

_RANK = {"cause": 0, "contributes": 1, "explored only": 2, "no answer": 3, "ruled out": 4}


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
    return wording.plural(row.count, "change") if row.count else "seen"


def findings(report: Report) -> list[Finding]:
    """What the files told before the run, the gravest first."""
    return list(report.preflight)


def title(code: str) -> str:
    """What a code stands for, in a few words; empty for one that has no page."""
    return codes().get(code, "")


SEVERITIES = {"fault": "fault", "suspicion": "look at", "fact": "fact"}


# Everything that was considered, in one list


@dataclass(frozen=True, slots=True)
class Considered:
    """One thing that may be why, and what became of it.

    Attributes:
        conclusion: ``cause``, ``contributes``, ``explored only`` (the cause of a divergence that does not count),
            ``no answer`` or ``ruled out``.
        where: the stage or the configuration that it is about; empty for the run as a whole.
        how: what was tried or seen.
        before, after: error without and with the change; ``None`` where that was not measured.
    """

    conclusion: str
    code: str
    title: str
    where: str
    how: str
    before: float | None
    after: float | None


def considered(report: Report) -> list[Considered]:
    """Diagnoses, trials in origins, switches, and what was ruled out for the whole run: each once, causes first."""
    verdict = report.verdict
    found = _diagnosed(report)
    found += [
        Considered(row.conclusion, row.code, title(row.code), each.where, row.text, each.before, row.best)
        for each in trials(report)
        for row in each.hypotheses
        if not (row.conclusion == "cause" and any(known.code == row.code for known in found))
    ]
    switches = {item.title for item in verdict.hypotheses}
    counting = {run.name for run in report.configs if run.gating}
    for item in verdict.hypotheses:
        cause = "cause" if item.failing in counting else "explored only"
        conclusion = cause if item.conclusion == "culprit" else item.conclusion
        how = f"{item.switch}: {item.before or 'unset'} -> {item.after or 'unset'}"
        found.append(
            Considered(conclusion, "BD301", item.title, item.failing, how, item.error_before, item.error_after)
        )
    found += [
        Considered("ruled out", item.code, item.title, "", "; ".join(item.evidence), None, None)
        for item in verdict.ruled_out
        if item.title not in switches
    ]
    return sorted(found, key=lambda each: _RANK.get(each.conclusion, _RANK["no answer"]))


def _diagnosed(report: Report) -> list[Considered]:
    """Diagnoses that are no switches, which have rows of their own."""
    verdict = report.verdict
    named = {item.title for item in verdict.hypotheses}
    return [
        Considered(
            "no answer" if each.code == UNKNOWN else "cause" if each.gating else "explored only",
            each.code,
            each.title,
            str(each.origin) if each.origin is not None else "",
            selecting.tried_text(each),
            each.error_before,
            each.error_after,
        )
        for each in verdict.diagnoses
        if each.title not in named
    ]


def counts_text(rows: Sequence[Considered]) -> str:
    """``1 cause, 14 ruled out``."""
    counts = {word: sum(row.conclusion == word for row in rows) for word in _RANK}
    words = {**{word: word for word in _RANK}, "contributes": "contributing", "no answer": "without an answer"}
    plural = {"cause": "causes"}
    return ", ".join(
        f"{count} {plural.get(word, text) if count > 1 else text}"
        for word, text in words.items()
        if (count := counts[word])
    )

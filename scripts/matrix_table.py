"""Runs ``--matrix full`` on the four examples with both exporters, and writes docs/matrix-results.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matrix_runs import EXAMPLES, ROOT, Judged, example, judge, table

from bisect_tool.environments.snapshot import snapshot
from bisect_tool.records import ConfigRun
from bisect_tool.remedies import CODE

EXPORTERS = ("dynamo", "torchscript")

INTRODUCTION = """\
# Results of `--matrix full`

Written by this command; do not edit by hand.

```console
$ {command}
```

Every example with both exporters as the one that pairs take which name none. *Exit* and *wall time* are the whole
command's, exports and attempts at explanation included. What a preset names and the machine lacks is skipped.

{machine}
"""


def main() -> int:
    """Returns 1 if a command ended as none should: neither agreeing, nor diverging, nor inconclusive."""
    parser = argparse.ArgumentParser(prog="scripts/matrix-table", description=__doc__)
    parser.add_argument("--examples", default=",".join(EXAMPLES), help="comma-separated; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one command; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "matrix-results.md", help="Markdown file; default: %(default)s"
    )
    options = parser.parse_args()
    names = options.examples.split(",")
    for name in names:
        if name not in EXAMPLES:
            parser.error(f"{name!r} is none of {', '.join(EXAMPLES)}")
    found: dict[tuple[str, str], Judged] = {}
    for name in names:
        for exporter in EXPORTERS:
            given = [*example(name), "--exporter", exporter, "--matrix", "full"]
            done = found[name, exporter] = judge(given, options.timeout)
            print(
                f"{name} {exporter}: exit {done.code}, {done.seconds:.0f} s {done.error}", file=sys.stderr, flush=True
            )
    shown = "" if tuple(names) == EXAMPLES else f" --examples {options.examples}"
    command = f"scripts/matrix-table{shown}"
    options.output.write_text(
        "\n".join([INTRODUCTION.format(command=command, machine="\n".join(_machine())), *_page(found), ""]),
        encoding="utf-8",
    )
    print(options.output)
    return int(any(done.code not in (0, 1, 3) for done in found.values()))


def _machine() -> list[str]:
    found = snapshot()
    versions = ", ".join(
        f"{name} {version}" for name, version in found["versions"].items() if name != "bisect-divergence"
    )
    return [
        f"- machine: {found['processor'] or found['machine']}, {found['cpus']} cores",
        f"- Python {found['python']}; {versions}",
    ]


def _page(found: dict[tuple[str, str], Judged]) -> list[str]:
    lines = ["## Pairs", ""]
    head = ("example", "exporter", "pairs", "agree", "diverge", "skipped", "failed", "exit", "wall time")
    lines += table(head, (_counts(name, exporter, done) for (name, exporter), done in found.items()))
    lines += ["", "## What diverges", "", "None of these counts for the exit code, unless it says so.", ""]
    columns = (
        "example",
        "exporter",
        "pair",
        "relative L2",
        "largest difference",
        "what separates it from a passing pair",
    )
    lines += table(
        columns, (row for (name, exporter), done in found.items() for row in _diverging(name, exporter, done))
    )
    lines += ["", "## What did not run", ""]
    lines += table(("reason", "pairs", "in"), _not_run(found))
    return lines


def _counts(name: str, exporter: str, done: Judged) -> Sequence[object]:
    status = [run.status for run in done.pairs]
    failed = sum(each in ("failed", "crashed") for each in status)
    counts = [len(status), *(status.count(each) for each in ("agrees", "diverges", "skipped")), failed]
    return name, exporter, *counts, done.code, f"{done.seconds:.0f} s"


def _diverging(name: str, exporter: str, done: Judged) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for run in done.pairs:
        if run.status == "diverges":
            worst = max(run.outputs, key=lambda output: output.total.rel_l2)
            gating = " (counts)" if run.gating else ""
            numbers = f"{worst.total.rel_l2:.1e}", f"{max(o.total.max_abs for o in run.outputs):.2g}"
            rows.append((name, exporter, run.name + gating, *numbers, _why(run, done)))
    return rows


def _why(run: ConfigRun, done: Judged) -> str:
    assert done.report is not None
    for diagnosis in done.report.verdict.diagnoses:
        if diagnosis.code == CODE and any(line.startswith(f"{run.name}: ") for line in diagnosis.evidence):
            return diagnosis.title
    return "not looked for"


def _not_run(found: dict[tuple[str, str], Judged]) -> list[Sequence[object]]:
    """By reason, with the pairs that it stopped; the longest list first."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for (name, exporter), done in found.items():
        if done.report is None:
            reasons.setdefault(done.error, {}).setdefault("all", []).append(f"{name} {exporter}")
        for run in done.pairs:
            if run.status in ("skipped", "failed", "crashed"):
                word = "" if run.status == "skipped" else f"{run.status}: "
                reason = word + str(run.skipped_reason).splitlines()[0]
                reasons.setdefault(reason, {}).setdefault(run.name, []).append(f"{name} {exporter}")
    rows: list[Sequence[object]] = []
    for reason, pairs in sorted(reasons.items(), key=lambda item: -sum(map(len, item[1].values()))):
        places = {place for where in pairs.values() for place in where}
        every = len(places) == len(found)
        rows.append((reason, ", ".join(pairs), "all of them" if every else ", ".join(sorted(places))))
    return rows


if __name__ == "__main__":
    sys.exit(main())

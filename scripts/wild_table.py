"""Runs the cases of tests/wild and writes what the tool says of them as a table."""

from __future__ import annotations

import argparse
import fnmatch
import logging
import math
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "wild"))

from cases import CASES, Case
from wild_runs import Found, look

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")

INTRODUCTION = """\
# Faults that nobody planted

Written by this command; do not edit by hand.

```console
$ scripts/wild{arguments}
```

What today's exporters and runtime get wrong, found by running some 1,300 single operations with unusual arguments through
both exporters, and looked up in the projects' trackers. Each stands in a network of at least ten layers, healthy before and
behind (tests/wild/cases.py); the tool is given the file as exported. tests/wild checks stage and cause, and skips what no
longer differs. Faults of the runtime's optimiser are tested in tests/integration.

- *outputs*: relative L2 between the final outputs of PyTorch and of plain ONNX Runtime without optimisation, without this
  tool; *inf*: NaN or infinities on one side only
- *local*: the first origin's own error
- *stage*: the first origin. A write that was left out leaves `wild` without a value in the graph: it shows at `down`, which
  reads it, and the cause names the module
- *remedy*: *tried*: in the graph, and only rounding is left; *no*: none was, as the graph has nothing that could be set
- *right*: the stage is the one that was built in, and the cause is among those that fit

{versions}.
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default="*", help="globs of names, comma-separated; default: all")
    parser.add_argument("--exporters", default="torchscript,dynamo", help="comma-separated; default: %(default)s")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "wild.md", help="Markdown file; default: %(default)s"
    )
    options = parser.parse_args()
    # torch's exporter lists the packages that it does without.
    logging.disable(logging.WARNING)
    found = [
        (case, exporter, _look(case, exporter))
        for case in CASES.values()
        for exporter in case.exporters
        if exporter in options.exporters.split(",")
        if any(fnmatch.fnmatch(case.name, pattern) for pattern in options.cases.split(","))
    ]
    arguments = "".join(f" {each}" for each in sys.argv[1:])
    introduction = INTRODUCTION.format(arguments=arguments, versions=", ".join(_versions()))
    faults = [each for each in found if each[0].codes]
    harmless = [each for each in found if not each[0].codes]
    right = sum(_right(*each) for each in found if each[2].reproduced)
    reproduced = sum(each[2].reproduced for each in found)
    text = [
        introduction,
        f"{right} of {reproduced} answers are right"
        + (f"; {len(found) - reproduced} cases no longer differ." if reproduced < len(found) else "."),
        "\n## Faults\n",
        _faults(faults),
        "\n## No faults\n\nBoth sides differ, and neither is wrong.\n",
        _harmless(harmless),
        "",
    ]
    options.docs.write_text("\n".join(text), encoding="utf-8")
    return 0 if right == reproduced else 1


def _look(case: Case, exporter: str) -> Found:
    print(f"{case.name}, {exporter}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        return look(case, exporter, Path(folder))


def _right(case: Case, exporter: str, found: Found) -> bool:
    if not case.codes:
        return found.report.verdict.status == "agrees" and found.stage is None
    at = found.stage is not None and found.stage.partition("/")[0] == case.stage
    return at and found.diagnosis is not None and found.diagnosis.code in case.codes


def _faults(faults: list[tuple[Case, str, Found]]) -> str:
    lines = ["| case | what is wrong | report | exporter | outputs | local | stage | cause | remedy | right |"]
    lines.append("|---|---|---|---|---:|---:|---|---|---|---|")
    for case, exporter, found in faults:
        origins, told = found.report.verdict.origins, found.diagnosis
        cells = [case.name, case.about, _issue(case), exporter, _number(found.apart)]
        cells.append(_number(origins[0].local_rel_l2) if origins else "")
        cells.append(found.stage or found.report.verdict.status)
        cells.append(f"{told.code}: {told.evidence[0]}" if told is not None else "")
        cells.append("tried" if told is not None and told.remedy_verified else "no")
        cells.append("yes" if _right(case, exporter, found) else "**no**")
        lines.append(_row(cells if found.reproduced else [*cells[:5], "", "no longer differs", "", "", ""]))
    return "\n".join(lines)


def _harmless(harmless: list[tuple[Case, str, Found]]) -> str:
    lines = ["| case | why | report | exporter | outputs | answer | right |", "|---|---|---|---|---:|---|---|"]
    for case, exporter, found in harmless:
        summary = found.report.verdict.summary
        answer = summary[-1] if found.reproduced else "no longer differs"
        right = "yes" if _right(case, exporter, found) else "**no**"
        lines.append(_row([case.name, case.about, _issue(case), exporter, _number(found.apart), answer, right]))
    return "\n".join(lines)


def _issue(case: Case) -> str:
    if case.issue is None:
        return "none found"
    repository, _, number = case.issue.partition("#")
    return f"[{case.issue}](https://github.com/{repository}/issues/{number})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "inf"


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())

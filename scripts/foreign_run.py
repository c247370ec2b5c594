"""Runs the zoo's files after other tools' conversions: pairs against the truth, and a few planted faults each."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import foreign
import judging
from families import EXPORTERS, FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "onnxsim", "onnxslim")

INTRODUCTION = """\
# Files that others made

Written by this command; do not edit by hand.

```console
$ scripts/foreign{arguments}
```

Small models of {families} families (tests/zoo/families.py) are exported by {exporters}, and the files are converted as other
people's tools do. *scrambled*: every name is a number, and metadata, doc strings and types of inner values are gone.
The truth (tests/zoo/foreign.py) is not the tool's: the same conversion of the same model with other weights gives the same
nodes under the same names, and there, on other inputs, plain ONNX Runtime and PyTorch tell which value is which stage's.
Of float16 the file before the conversion tells, whose names the converter keeps.

- *agrees*: the verdict on the healthy file, at every place
- *wrong pairs*: a stage and a value of the graph that are not one tensor with two other sets of weights and inputs
- *coverage*: stages with a pair, of all those whose value is in the graph by the truth; the least of any file
- *ambiguous*: pairs that the report calls so
- *top-1*: faults of different kinds (tests/zoo/faults.py), from frozen seeds, {count} in turn for each file; the planted
  node is among those of the first origin. As in [accuracy.md](accuracy.md), a fault counts when its own value moved by
  2e-5, whatever becomes of it; before float16 by 5e-2
- *named*: number of nodes of the first origin, 90th percentile
- *wrong pairs there*: the same in the faulty files; values that a fault put in have no truth, and are left out

{machine}
"""


Row = dict[str, Any]
Healthy = Sequence[foreign.Aligned]
Broken = Sequence[tuple[str, judging.Result]]


def main() -> int:
    """Returns 1 if a line of the page does not hold."""
    options = _options()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        if not options.resume:
            options.output.unlink(missing_ok=True)
        _run_all(options)
    healthy, broken = read_results(options.output)
    print(summary(healthy, broken))
    if options.docs is not None:
        options.docs.write_text(page(healthy, broken, options.faults), encoding="utf-8")
    hits = sum(result.top1 for _, result in broken)
    right = all(each.right for each in healthy) and not any(result.wrong for _, result in broken)
    return 0 if right and hits >= 0.9 * len(broken) else 1


def _run_all(options: argparse.Namespace) -> None:
    done = {tuple(row["task"]) for row in _rows(options.output)}
    tasks = [
        (part, family, exporter)
        for part in ("healthy", "faults")
        for family in options.families
        for exporter in options.exporters
        if (part, family, exporter) not in done and (options.faults or part == "healthy")
    ]
    with (
        tempfile.TemporaryDirectory(prefix="foreign-") as folder,
        ProcessPoolExecutor(options.jobs, initializer=_prepare) as pool,
    ):
        place = options.cache or Path(folder)
        running = {pool.submit(_run, *task, options.conversions, options.faults, place): task for task in tasks}
        for number, future in enumerate(as_completed(running), 1):
            rows = [{"task": running[future], **row} for row in future.result()]
            with options.output.open("a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{number}/{len(tasks)} {' '.join(running[future])}", file=sys.stderr)


def _rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def read_results(file: Path) -> tuple[Healthy, Broken]:
    """What a file of results holds, in the order of conversions, families and exporters."""
    order = list(foreign.CONVERSIONS)
    healthy, broken = [], []
    for row in _rows(file):
        part = row.pop("task")[0]
        if part == "healthy":
            row.update(wrong=tuple(row["wrong"]), missed=tuple(row["missed"]))
            healthy.append(foreign.Aligned(**row))
        else:
            row.update(wrong=tuple(row.get("wrong", ())))
            broken.append((row.pop("conversion"), judging.Result(**row)))
    healthy.sort(key=lambda each: (order.index(each.conversion), each.family, each.exporter))
    broken.sort(key=lambda each: (order.index(each[0]), each[1].id))
    return healthy, broken


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/foreign", description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES), help="default: all")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), help="default: %(default)s")
    parser.add_argument("--conversions", default=";".join(foreign.CONVERSIONS), help="separated by ';'; default: all")
    parser.add_argument("--faults", type=int, default=1, help="for each file; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, a thread each; default: %(default)s")
    parser.add_argument("--cache", type=Path, help="folder in which exports are kept from run to run")
    parser.add_argument("--resume", action="store_true", help="keep the results that are there, and run the rest")
    parser.add_argument("--table-only", action="store_true", help="run nothing, make the page of the results anew")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "reports" / "foreign" / "results.jsonl",
        help="file of results; default: %(default)s",
    )
    parser.add_argument("--docs", type=Path, help="Markdown file; default: docs/foreign.md where nothing is left out")
    options = parser.parse_args()
    whole = not {"--families", "--exporters", "--conversions"} & {argument.partition("=")[0] for argument in sys.argv}
    if options.docs is None and whole:
        options.docs = ROOT / "docs" / "foreign.md"
    for name, known, separator in (
        ("families", FAMILIES, ","),
        ("exporters", EXPORTERS, ","),
        ("conversions", foreign.CONVERSIONS, ";"),
    ):
        chosen = getattr(options, name).split(separator)
        setattr(options, name, chosen)
        for each in chosen:
            if each not in known:
                parser.error(f"{each!r} is none of {', '.join(known)}")
    return options


def _prepare() -> None:
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def _run(part: str, family: str, exporter: str, conversions: Sequence[str], count: int, folder: Path) -> list[Row]:
    if part == "healthy":
        return [asdict(foreign.aligned(family, exporter, conversion, folder)) for conversion in conversions]
    return [
        {"conversion": conversion, **foreign.answer(family, exporter, conversion, fault, folder).as_dict()}
        for conversion in conversions
        for fault in foreign.planted(family, exporter, conversion, count, folder)
    ]


def page(healthy: Healthy, broken: Broken, count: int) -> str:
    """The whole page."""
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except ModuleNotFoundError:
            continue
    introduction = INTRODUCTION.format(
        arguments="" if count == 1 else f" --faults {count}",
        families=len({each.family for each in healthy}),
        exporters=" and ".join(dict.fromkeys(each.exporter for each in healthy)),
        count=count,
        machine=f"{', '.join(packages)}; {os.cpu_count()} CPU cores.",
    )
    parts = [introduction, "## By conversion\n", summary(healthy, broken), "\n## By family\n"]
    parts += [_table("family", healthy, broken, lambda each: each.family, lambda _, result: result.family)]
    parts += [
        "\n## What does not hold\n",
        _healthy_misses(healthy),
        "\n## Faults found elsewhere or not at all, or with a wrong pair\n",
    ]
    parts += [_fault_misses(broken)]
    return "\n".join(parts).rstrip() + "\n"


def summary(healthy: Healthy, broken: Broken) -> str:
    """A line for each conversion, and one for all."""
    return _table("conversion", healthy, broken, lambda each: each.conversion, lambda conversion, _: conversion)


def _table(
    title: str,
    healthy: Healthy,
    broken: Broken,
    of_healthy: Callable[[foreign.Aligned], str],
    of_broken: Callable[[str, judging.Result], str],
) -> str:
    lines = [
        f"| {title} | files | agrees | pairs | wrong pairs | coverage | ambiguous | seconds, median "
        "| faults | detected | top-1 | named | wrong pairs there |",
        f"|---|{'---:|' * 12}",
    ]
    for name in [*dict.fromkeys(map(of_healthy, healthy)), "all"]:
        files = [each for each in healthy if name in (of_healthy(each), "all")]
        found = [result for conversion, result in broken if name in (of_broken(conversion, result), "all")]
        cells = [
            name,
            len(files),
            sum(each.status == "agrees" and not each.origins for each in files),
            sum(each.pairs for each in files),
            sum(len(each.wrong) for each in files),
            f"{min(each.coverage for each in files):.1%}",
            sum(each.ambiguous for each in files),
            f"{sorted(each.seconds for each in files)[len(files) // 2]:.2f}",
            len(found),
            _share([result.detected for result in found]),
            _share([result.top1 for result in found]),
            _rank(sorted(result.named for result in found if result.named)),
            sum(len(result.wrong) for result in found),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits) / len(hits):.1%}" if hits else ""


def _rank(numbers: Sequence[int]) -> str:
    return str(numbers[math.ceil(0.9 * len(numbers)) - 1]) if numbers else ""


def _healthy_misses(healthy: Healthy) -> str:
    lines = ["| file | verdict | coverage | what |", "|---|---|---:|---|"]
    for each in healthy:
        if not each.right:
            what = "; ".join([each.error or "", *each.wrong[:3], *each.missed[:3]]).strip("; ").replace("|", "\\|")
            file = f"{each.family} {each.exporter}, {each.conversion}"
            lines.append(f"| {file} | {each.status} | {each.coverage:.1%} | {what} |")
    return "\n".join(lines) if len(lines) > 2 else "Everything holds."


def _fault_misses(broken: Broken) -> str:
    lines = ["| case | at | moved | outputs | answer |", "|---|---|---:|---:|---|"]
    for _, result in broken:
        if not result.top1 or result.wrong:
            told = result.error or f"{result.status} {result.stage}".strip()
            told += "".join(f"; wrong: {each}" for each in result.wrong[:3])
            cells = [result.id, f"`{result.place}`", f"{result.moved:.1e}", f"{result.outputs_moved:.1e}", told]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "None."


if __name__ == "__main__":
    sys.exit(main())

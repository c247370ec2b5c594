"""Runs the zoo: faults of every kind in models of every family, two at once, none at all, and PyTorch in low precision."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import zoo_table
from families import EXPORTERS, FAMILIES
from faults import KINDS, faults, two_faults
from judging import PRECISIONS, Result, base_of, torch_precision, unhurt, with_fault, with_two
from truth import Healthy

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("residual", "encoder", "points")
UNHURT_INPUTS = 3
STUCK_SECONDS = 300

Case = tuple[str, Callable[[], Result]]


def main() -> int:
    """Returns 0 however the tool did: the table tells."""
    options = _options()
    if options.group:
        _run_group(options, *options.group)
        return 0
    if not options.table_only:
        began = time.time()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            options.output.unlink(missing_ok=True)
        _run_groups(options)
        print(f"{len(read_results(options.output))} results in {time.time() - began:.0f} s", file=sys.stderr)
    results = list(read_results(options.output).values())
    page = zoo_table.page(results, command(sys.argv[1:]), ROOT / "scripts" / "zoo_reasons.toml")
    print(zoo_table.summary(results))
    if options.docs is not None:
        options.docs.write_text(page, encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/zoo", description=__doc__)
    parser.add_argument("--families", default="", help=f"comma-separated; default: all of {', '.join(FAMILIES)}")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), help="default: %(default)s")
    parser.add_argument("--faults", default="*", help="globs of kinds, comma-separated; default: all")
    parser.add_argument("--per-kind", type=int, help="nodes that get a fault of a kind, for each graph; default: 3")
    parser.add_argument("--two", type=int, help="graphs with two faults for each family and exporter; default: 6")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, one node for each kind")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, a thread each; default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="keep the results that are there, and run the rest")
    parser.add_argument("--table-only", action="store_true", help="run nothing, make the table of the results anew")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "reports" / "zoo" / "results.jsonl",
        help="file of results; default: %(default)s",
    )
    parser.add_argument("--docs", type=Path, help="Markdown file; default: docs/accuracy.md where nothing is left out")
    parser.add_argument("--group", nargs=2, metavar=("FAMILY", "EXPORTER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    whole = not options.quick and not options.families and options.faults == "*"
    whole = whole and options.exporters == ",".join(EXPORTERS)
    if options.docs is None and (whole or options.table_only):
        options.docs = ROOT / "docs" / "accuracy.md"
    options.families = options.families.split(",") if options.families else list(QUICK if options.quick else FAMILIES)
    options.exporters = options.exporters.split(",")
    options.per_kind = options.per_kind or (1 if options.quick else 3)
    options.two = options.two if options.two is not None else (1 if options.quick else 6)
    for name in options.families:
        if name not in FAMILIES:
            parser.error(f"{name!r} is none of {', '.join(FAMILIES)}")
    for name in options.exporters:
        if name not in EXPORTERS:
            parser.error(f"{name!r} is none of {', '.join(EXPORTERS)}")
    return options


def command(arguments: list[str]) -> str:
    """The call that makes these results anew: without where they go, and how much of them is there already."""
    kept = []
    left = iter(arguments)
    for argument in left:
        if argument in ("-o", "--output", "--docs", "--jobs"):
            next(left, None)
        elif argument not in ("--resume", "--table-only"):
            kept.append(argument)
    return shlex.join(["scripts/zoo", *kept])


def read_results(file: Path) -> dict[str, Result]:
    """Results by case; a line that was cut off by the end of a process is left out."""
    found: dict[str, Result] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.id] = result
    return found


def _append(file: Path, result: Result) -> None:
    # One write for one line: several processes append to this file.
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(result.as_dict()) + "\n")


# -- processes --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Group:
    """A family with an exporter, in a process of its own: a crash takes one case with it."""

    family: str
    exporter: str
    process: subprocess.Popen[bytes]
    begun: Path


def begun_file(options: argparse.Namespace, family: str, exporter: str) -> Path:
    """Holds the case that is running."""
    return Path(options.output.with_suffix(f".{family}-{exporter}.begun"))


def _run_groups(options: argparse.Namespace) -> None:
    waiting = [(family, exporter) for family in options.families for exporter in options.exporters]
    total = len(waiting)
    running: list[Group] = []
    while waiting or running:
        while waiting and len(running) < options.jobs:
            family, exporter = waiting.pop(0)
            begun = begun_file(options, family, exporter)
            begun.unlink(missing_ok=True)
            arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
            call = [sys.executable, __file__, *arguments, "--group", family, exporter]
            running.append(Group(family, exporter, subprocess.Popen(call), begun))
        time.sleep(0.2)
        for group in list(running):
            code = group.process.poll()
            if code is None:
                if group.begun.exists() and time.time() - group.begun.stat().st_mtime > STUCK_SECONDS:
                    group.process.kill()
                continue
            running.remove(group)
            if code and note_crash(options, group, code):
                waiting.insert(0, (group.family, group.exporter))
            else:
                done = total - len(waiting) - len(running)
                print(f"{done}/{total} {group.family} {group.exporter}", file=sys.stderr)
            group.begun.unlink(missing_ok=True)


def note_crash(options: argparse.Namespace, group: Group, code: int) -> bool:
    """Enters the case that took the process with it as a miss; whether there is anything to go on with."""
    section, kind, name = "fault", "?", f"{group.family}/{group.exporter}/export"
    known = group.begun.exists()
    if known:
        name = group.begun.read_text(encoding="utf-8")
        section, kind = name.split("/")[2:4]
    error = f"the process ended with {code}"
    _append(options.output, Result(name, section, group.family, group.exporter, kind, status="crashed", error=error))
    return known


def _run_group(options: argparse.Namespace, family: str, exporter: str) -> None:
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    done = read_results(options.output)
    begun = begun_file(options, family, exporter)
    for name, run in _cases(options, family, exporter):
        if name not in done:
            begun.write_text(name, encoding="utf-8")
            _append(options.output, run())


def _cases(options: argparse.Namespace, family: str, exporter: str) -> Iterator[Case]:
    """Every case of a graph, with a name that stays from run to run."""
    base = base_of(family, exporter)
    start = f"{family}/{exporter}"
    for seed in range(UNHURT_INPUTS):
        name = f"{start}/unhurt/{seed}"
        yield name, lambda seed=seed, name=name: unhurt(family, exporter, seed, name, threads=1)  # type: ignore[misc]
    for precision in PRECISIONS:
        name = f"{start}/torch/{precision}"
        yield name, lambda p=precision, name=name: torch_precision(family, exporter, p, name)  # type: ignore[misc]
    globs = options.faults.split(",")
    for kind in KINDS:
        if any(fnmatch.fnmatch(kind, glob) for glob in globs):
            yield from _faults(options, base, family, exporter, kind)
    for number in range(options.two):
        pair = two_faults(base, f"{family} {exporter} {number}")
        if pair is not None:
            name = f"{start}/two/{number}"
            yield name, lambda p=pair, name=name: with_two(family, exporter, p, name, base, threads=1)  # type: ignore[misc]


def _faults(options: argparse.Namespace, base: Healthy, family: str, exporter: str, kind: str) -> Iterator[Case]:
    for number, fault in enumerate(faults(base, kind, f"{family} {exporter}", options.per_kind)):
        name = f"{family}/{exporter}/fault/{kind}/{number}"
        yield name, lambda f=fault, name=name: with_fault(family, exporter, f, name, base, threads=1)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())

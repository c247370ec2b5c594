"""Calibrates each family, judges held-out samples of the healthy graph, and graphs with one planted fault each."""

from __future__ import annotations

import argparse
import json
import logging
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "zoo"), str(ROOT / "scripts")]

import calibration_page  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
import truth  # noqa: E402
from families import FAMILIES, built, exported  # noqa: E402
from faults import KINDS, Graph, faults  # noqa: E402
from judging import base_of  # noqa: E402

from bisect_tool.calibrate import How, Plan, calibrate  # noqa: E402
from bisect_tool.calibration.table_judging import judge_outputs_by_table, over_limits  # noqa: E402
from bisect_tool.calibration.tolerance_table import ToleranceTable, write_table  # noqa: E402
from bisect_tool.pipeline import LoadedCase, Options, bisect  # noqa: E402
from bisect_tool.records import Report  # noqa: E402
from bisect_tool.tolerances import make_tolerance  # noqa: E402

RATES = (0.05, 0.01)
"""False alarms a run that tables are made for."""

FIRST_KNOWN, FIRST_HELD_OUT = 10_000, 20_000
"""Seeds of samples: those to calibrate with and those to judge have none in common, nor with the planted faults' own."""

SCALES = (2.4e-7, 4.8e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
"""Relative size of the faults that only scale one node's result."""

EXPORTER = "torchscript"
PLAIN, OPTIMISED = "ort-cpu-off", "ort-cpu-all"


def main() -> int:
    """Returns 0 whatever the table tells."""
    options = _options()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.table_only:
        for family in options.families:
            began = time.time()
            _run_family(options, family)
            print(f"{family}: {time.time() - began:.0f} s", file=sys.stderr)
    results = {family: _read(options.output / f"{family}.jsonl") for family in options.families}
    page = calibration_page.page(results, RATES, _command(sys.argv[1:]))
    print(calibration_page.summary(results, RATES))
    if options.docs is not None:
        options.docs.write_text(page, encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/calibration-table", description=__doc__)
    parser.add_argument("--families", default="", help=f"comma-separated; default: all of {', '.join(FAMILIES)}")
    parser.add_argument("--samples", type=int, default=40, help="to calibrate with; default: %(default)s")
    parser.add_argument("--held-out", type=int, default=60, help="to judge; default: %(default)s")
    parser.add_argument(
        "--per-kind", type=int, default=1, help="nodes that get a fault of a kind; default: %(default)s"
    )
    parser.add_argument("--scaled", type=int, default=4, help="nodes whose result is scaled; default: %(default)s")
    parser.add_argument("--table-only", action="store_true", help="run nothing, make the page of the results anew")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "reports" / "calibration",
        help="folder of results; default: %(default)s",
    )
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "calibration.md", help="Markdown file; default: %(default)s"
    )
    options = parser.parse_args()
    options.families = options.families.split(",") if options.families else list(FAMILIES)
    return options


def _command(arguments: Sequence[str]) -> str:
    kept = []
    left = iter(arguments)
    for argument in left:
        if argument in ("-o", "--output", "--docs"):
            next(left, None)
        elif argument != "--table-only":
            kept.append(argument)
    return shlex.join(["scripts/calibration-table", *kept])


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Results by id; a line that was cut off is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            result = json.loads(line)
            found[result["id"]] = result
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _case(family: str, seed: int) -> LoadedCase:
    return LoadedCase(family, built(family), FAMILIES[family].inputs(seed), {})


def _run_family(options: argparse.Namespace, family: str) -> None:
    tables, about = _tables(options, family)
    file = options.output / f"{family}.jsonl"
    done = _read(file)
    with file.open("a", encoding="utf-8") as stream:
        for result in [about, *_held_out(options, family, tables, done), *_faulty(options, family, tables, done)]:
            stream.write(json.dumps(result) + "\n")
            stream.flush()


def _tables(options: argparse.Namespace, family: str) -> tuple[dict[str, ToleranceTable], dict[str, Any]]:
    """A table for each rate, all of the same runs."""
    cases = [_case(family, FIRST_KNOWN + number) for number in range(options.samples)]
    journal = options.output / f"{family}.journal"
    found: dict[str, ToleranceTable] = {}
    for rate in RATES:
        plan = Plan(false_alarm=rate, onnx=exported(family, EXPORTER, _files(options)), threads=1)
        made = calibrate(cases, plan, How(journal=journal)).made
        found[str(rate)] = made.table
        write_table(options.output / f"{family}-{rate}.toml", made.table, force=True)
    known = next(iter(found.values()))
    limits = sorted(stage.metrics["local_rel_l2"].limit for stage in known.stages if "local_rel_l2" in stage.metrics)
    about = {
        "id": "about",
        "stages": len(known.stages),
        "samples": known.calibration.samples,
        "runs": known.calibration.runs,
        "tails": {rate: table.calibration.tail for rate, table in found.items()},
        "median_local_limit": limits[len(limits) // 2],
        "largest_local_limit": limits[-1],
        "largest_total_limit": max(s.metrics["rel_l2"].limit for s in known.stages if "rel_l2" in s.metrics),
        "left_out": made.left_out,
    }
    return found, about


def _files(options: argparse.Namespace) -> Path:
    folder = options.output / "graphs"
    folder.mkdir(exist_ok=True)
    return Path(folder)


def _judged(report: Report, tables: Mapping[str, ToleranceTable]) -> dict[str, list[str]]:
    """What is over its limit by each table: stages of the unoptimised run, and final outputs of every run."""
    found = {}
    for rate, table in tables.items():
        names = [
            f"{ref}: {over[0].metric} x{over[0].factor:.1f}" for ref, over in over_limits(report.stages, PLAIN, table)
        ]
        for run in report.configs:
            outs = judge_outputs_by_table(run.outputs, report.stages, run.name, table, baseline=PLAIN)
            names += [f"{run.name} output {out.output}" for out in outs if out.judgement == "fail"]
        found[rate] = names
    return found


def _held_out(
    options: argparse.Namespace, family: str, tables: Mapping[str, ToleranceTable], done: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    file = exported(family, EXPORTER, _files(options))
    for number in range(options.held_out):
        name = f"held-out/{number}"
        if name in done:
            continue
        settings = Options(make_tolerance(None, None, None), onnx=file, threads=1, explain=False)
        report = bisect(_case(family, FIRST_HELD_OUT + number), settings)
        yield {"id": name, "section": "held-out", "over": _judged(report, tables)}


def _faulty(
    options: argparse.Namespace, family: str, tables: Mapping[str, ToleranceTable], done: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    base = base_of(family, EXPORTER, _files(options))
    for kind in KINDS:
        names = [f"fault/{kind}/{number}" for number in range(options.per_kind)]
        if all(name in done for name in names):
            continue
        for name, fault in zip(
            names, faults(base, kind, f"{family} {EXPORTER} calibration", options.per_kind), strict=False
        ):
            over = _judge_graph(family, fault.model, tables)
            yield {
                "id": name,
                "section": "fault",
                "kind": kind,
                "moved": fault.moved,
                "place": fault.place,
                "over": over,
            }
    order = random.Random(f"{family} scaled")
    graph = Graph(base.model, base.values)
    nodes = [node.name for node in base.model.graph.node if KINDS["result: NaN"].applicable(node, graph)]
    for number, place in enumerate(order.sample(nodes, min(options.scaled, len(nodes)))):
        for scale in SCALES:
            name = f"scaled/{number}/{scale:g}"
            if name in done:
                continue
            over = _judge_graph(family, scaled(base, place, scale), tables)
            yield {"id": name, "section": "scaled", "kind": "scaled", "moved": scale, "place": place, "over": over}


def scaled(base: truth.Healthy, place: str, by: float) -> onnx.ModelProto:
    """The graph with one node's result multiplied by ``1 + by``."""
    model = onnx.ModelProto()
    model.CopyFrom(base.model)
    graph = Graph(model, base.values)
    factor = graph.free("planted_factor")
    value = onnx.helper.make_tensor(factor, onnx.TensorProto.FLOAT, [], [1.0 + by])
    model.graph.initializer.append(value)
    graph.behind(graph.nodes[place], [("Mul", [factor], {})])
    return model


def _judge_graph(
    family: str, model: onnx.ModelProto, tables: Mapping[str, ToleranceTable]
) -> dict[str, list[str]] | str:
    """What is over its limits; a text: the tool's own error, which is a miss."""
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        settings = Options(make_tolerance(None, None, None), onnx=file, threads=1, explain=False)
        try:
            return _judged(bisect(_case(family, 0), settings), tables)
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


if __name__ == "__main__":
    sys.exit(main())

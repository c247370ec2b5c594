"""What the preflight says of healthy files and of faulty ones; see scripts/preflight-check."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "zoo"))

import faults
import foreign
import onnx
import quantising
from families import EXPORTERS, FAMILIES, built, exported
from judging import base_of

from bisect_tool.backends.before import look_before
from bisect_tool.backends.onnx_graph import load_onnx
from bisect_tool.backends.onnx_program import OnnxProgram
from bisect_tool.records import Finding

ROOT = Path(__file__).resolve().parents[1]

PLANTED_IN = ("residual", "unet", "encoder", "recurrent")
STATIC = (
    "weight",
    "bias",
    "statistics",
    "recurrence",
    "norm",
    "activation: slope",
    "gelu",
    "window",
    "resize",
    "softmax",
)
"""Beginnings of the kinds of faults that lie in weights or settings; what lies in the graph's structure shows in a run."""

QUANTISED: dict[str, Callable[[Path, Path, list[list[object]]], object]] = {
    "quantised": lambda source, target, samples: quantising.quantised(source, target, samples),  # type: ignore[arg-type]
    "quantised, dynamic": lambda source, target, samples: quantising.quantised_dynamically(source, target),
}


def told(family: str, file: Path) -> tuple[Finding, ...]:
    return look_before(built(family), OnnxProgram(load_onnx(file), file))


def healthy() -> dict[str, Counter[str]]:
    """By conversion: files, and findings by severity."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="preflight-check-") as folder:
        file = Path(folder) / "model.onnx"
        for family in FAMILIES:
            samples = [[tensor.numpy() for tensor in FAMILIES[family].inputs(seed)] for seed in range(2)]
            for exporter in EXPORTERS:
                for conversion in (*foreign.CONVERSIONS, *QUANTISED):
                    if conversion in QUANTISED:
                        QUANTISED[conversion](exported(family, exporter), file, samples)  # type: ignore[arg-type]
                    else:
                        onnx.save(foreign.converted(family, exporter, conversion), file)
                    count = found.setdefault(conversion, Counter())
                    count["files"] += 1
                    for each in told(family, file):
                        count[each.severity] += 1
                        if each.severity != "fact":
                            print(f"{family} {exporter} {conversion}: {each.code} {each.text}", flush=True)
    return found


def planted() -> dict[str, Counter[str]]:
    """By kind of fault: files, those about which something was said, and the codes."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="preflight-check-") as folder:
        file = Path(folder) / "model.onnx"
        for family in PLANTED_IN:
            for exporter in EXPORTERS:
                base = base_of(family, exporter)
                for kind in (kind for kind in faults.KINDS if kind.startswith(STATIC)):
                    for fault in faults.faults(base, kind, "preflight", 1):
                        onnx.save(fault.model, file)
                        said = [each for each in told(family, file) if each.severity != "fact"]
                        count = found.setdefault(kind, Counter())
                        count["files"] += 1
                        count["told"] += bool(said)
                        count.update({each.code for each in said})
    return found


def page(unhurt: dict[str, Counter[str]], hurt: dict[str, Counter[str]]) -> str:
    lines = [
        "# What is seen before the run",
        "",
        "Written by this command; do not edit by hand.",
        "",
        "```console",
        "$ scripts/preflight-check",
        "```",
        "",
        f"Healthy files: the zoo's {len(FAMILIES)} families by {' and '.join(EXPORTERS)}, as exported and as others convert",
        "them. Any *fault* or *suspicion* is a false statement; a *fact* says that weights are in few bits.",
        "",
        "| conversion | files | faults | suspicions | facts |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, count in [*unhurt.items(), ("all", sum(unhurt.values(), Counter()))]:
        numbers = " | ".join(str(count[each]) for each in ("files", "fault", "suspicion", "fact"))
        lines.append(f"| {name} | {numbers} |")
    lines += [
        "",
        f"One fault of each kind that lies in weights or settings, in {', '.join(PLANTED_IN)}. The preflight is no verdict:",
        "weights that lost their names and are read by no layer of their own, or scaled as a folding would, say nothing",
        "before the run, which finds them all the same ([accuracy.md](accuracy.md)).",
        "",
        "| kind | files | told | codes |",
        "|---|---:|---:|---|",
    ]
    for kind, count in sorted(hurt.items()):
        codes = ", ".join(sorted(code for code in count if code.startswith("BD")))
        lines.append(f"| {kind} | {count['files']} | {count['told']} | {codes} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs" / "preflight.md", help="Markdown file; default: %(default)s"
    )
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    unhurt = healthy()
    chosen.docs.write_text(page(unhurt, planted()), encoding="utf-8")
    return 1 if any(count["fault"] or count["suspicion"] for count in unhurt.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

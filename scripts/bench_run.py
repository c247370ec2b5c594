"""Runs the measurements of bench_worker.py side by side, and hands the results to bench_report.py.

Every measurement is a process of its own, and the sides take turns (A B C A B C …), so that a slow moment of the
machine falls on all of them. This process loads no torch: a child would inherit its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_report
from bench_worker import CHAINS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

MODELS = ("resnet50", "second-fpn", "vit-b16", "bert-base", "gpt2-medium", "resnet50-8x512")
SIDES = ("forward", "ort", "totals", "forced", "floors", "default")
BUDGETED = ("totals-256MiB", "forced-256MiB")
PEERS = ("naive", "onnx-diagnostic", "polygraphy", "verification")

BIG = {"resnet50-8x512": BUDGETED, "gpt2-medium": ()}
"""Models whose intermediates do not fit beside each other in a usual machine, and what is measured of them besides."""

BIG_PEERS = {"gpt2-medium": ("naive", "verification"), "resnet50-8x512": ("naive",)}
"""What of the peers is tried there; the others would take hours, or more memory than the machine has."""

ONCE_ABOVE = 10.0
"""Seconds from which a measurement is not repeated in the later rounds."""

Results = dict[str, Any]


def main() -> None:
    options = _arguments()
    results: Results = {"models": {}}
    if options.results is not None and options.results.exists():
        results = json.loads(options.results.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="bisect-benchmark-") as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        for model in options.models:
            results["models"][model] = _model(model, cache, options)
            _save(results, options.results)
        results["kernel"] = _worker("kernel", "-", cache, options.timeout)
        if not options.without_commands:
            results["commands"] = _commands(options.repeat)
            for count in CHAINS:
                results.setdefault("stages", {})[str(count)] = _worker(f"stages-{count}", "-", cache, options.timeout)
    # A file of results may be put together from several runs, each of other models.
    for model in options.models:
        results.setdefault("arguments_of", {})[model] = options.shown
    _save(results, options.results)
    text = bench_report.render(results)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")
        _say(f"wrote {options.output}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated; default: %(default)s")
    parser.add_argument("--peers", default="all", help="none, all, or a list of: " + ", ".join(PEERS))
    parser.add_argument("--repeat", type=int, default=3, help="rounds; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="resnet50 only")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one process; default: %(default)s")
    parser.add_argument("--output", type=Path, help="Markdown file, as docs/performance.md; default: stdout")
    parser.add_argument("--results", type=Path, help="JSON file to keep raw results in; other models in it stay")
    parser.add_argument("--cache", type=Path, help="folder to keep exported models in; default: a temporary one")
    parser.add_argument("--without-commands", action="store_true", help="leave the command line's own times out")
    options = parser.parse_args()
    # Where things lie on this machine is nobody's business.
    shown = {"--models": ",".join(MODELS), "--peers": "all", "--repeat": 3, "--timeout": 300.0}
    options.shown = ["--quick"] if options.quick else []
    for name, default in shown.items():
        value = getattr(options, name[2:])
        if value != default and not (options.quick and name == "--models"):
            options.shown.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    options.models = ["resnet50"] if options.quick else options.models.split(",")
    chosen = {"none": [], "all": list(PEERS)}
    options.peers = chosen[options.peers] if options.peers in chosen else options.peers.split(",")
    for name, known in [(m, MODELS) for m in options.models] + [(p, PEERS) for p in options.peers]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if options.repeat < 1:
        parser.error("--repeat must be 1 or more")
    return options


def _model(model: str, cache: Path, options: argparse.Namespace) -> dict[str, list[Results]]:
    """All measurements of one model: name → one result per round."""
    prepared = _worker("prepare", model, cache, max(options.timeout, 600))
    found: dict[str, list[Results]] = {"prepare": [prepared]}
    if "error" in prepared:
        return found
    for peer in options.peers:
        if peer not in BIG_PEERS.get(model, PEERS):
            found[peer] = [{"error": "not run: hours, or more memory than a usual machine has"}]
    sides = [*SIDES, *BIG.get(model, ()), *(p for p in options.peers if p not in found)]
    for _ in range(options.repeat):
        for side in sides:
            done = found.setdefault(side, [])
            # The floor is what all ratios are made from: it is measured in every round.
            tired = done and side not in ("forward", "ort") and done[0].get("seconds", [0])[0] > ONCE_ABOVE
            if tired or any("error" in result for result in done):
                continue
            done.append(_worker(side, model, cache, options.timeout))
    return found


def _worker(measurement: str, model: str, cache: Path, timeout: float) -> Results:
    began = time.perf_counter()
    command = [sys.executable, str(HERE / "bench_worker.py"), measurement, model, str(cache)]
    result: Results
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    except subprocess.TimeoutExpired:
        result = {"error": f"stopped after {timeout:.0f} s"}
    else:
        lines = done.stdout.strip().splitlines()
        if done.returncode < 0:
            result = {"error": f"killed by signal {-done.returncode} (9: out of memory)"}
        elif not lines:
            result = {"error": f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"}
        else:
            result = json.loads(lines[-1])
    seconds = result.get("error") or " ".join(f"{s:.3f}" for s in result["seconds"][:4])
    _say(f"{model:15} {measurement:16} {seconds}   [{time.perf_counter() - began:.0f} s in all]")
    return result


def _commands(repeat: int) -> Results:
    """Wall time of ``--help``, and of the CenterPoint example without its export."""
    program = Path(sys.executable).parent / "bisect-divergence"
    if not list((ROOT / "examples/centerpoint").glob("ckpt.*")):
        subprocess.run([sys.executable, "examples/centerpoint/make_data.py"], cwd=ROOT, check=True, capture_output=True)
    shown, examples = [], []
    subprocess.run([program, "--help"], check=True, capture_output=True)
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        shown.append(time.perf_counter() - began)
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report"
            began = time.perf_counter()
            with subprocess.Popen(
                [program, "--config", "configs/centerpoint.toml", "-o", str(report), "-q"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as running:
                assert running.stdout is not None
                # Its first line is the verdict.
                running.stdout.readline()
                verdict = time.perf_counter() - began
                running.stdout.read()
            whole = time.perf_counter() - began
            if not (report / "report.json").exists():
                message = f"CenterPoint example: exit code {running.returncode}"
                return {"help": statistics.median(shown), "error": message}
            timings = json.loads((report / "report.json").read_text(encoding="utf-8"))["timings"]
            examples.append({"verdict": verdict, "whole": whole, "timings": timings, "exit": running.returncode})
            _say(f"centerpoint {verdict:.1f} s, {whole:.1f} s in all, of which export {timings['export']:.1f} s")
    return {"help": statistics.median(shown), "examples": examples}


def _save(results: Results, path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

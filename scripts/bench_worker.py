"""One measurement of scripts/benchmark in a process of its own: the last line on stdout is its result as JSON.

``seconds`` holds one figure per call, the first call of the process first; ``peak_rss_mb`` is read after that first
call, so that it is what a single call costs. Imports, loading and export lie outside of the clock.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]

ENOUGH = 8.0
"""Seconds after which a call is not repeated in the same process."""

KERNEL_ELEMENTS = 1 << 24

WRONG = 1e-2
"""Relative L2 from which the two sides of a pair are not the same value; correct float32 exports stay under 1e-4."""

VERIFIED = 8
VERIFIED_SECONDS = 60.0
"""So many values of torch.onnx.verification are timed, and not longer than this."""


class Case:
    """The files that ``prepare`` leaves in the cache, and what the measurements make of them."""

    def __init__(self, name: str, cache: Path):
        self.name = name
        self.path = cache / f"{name}.onnx"
        self.inputs_path = cache / f"{name}.npz"
        self.program_path = cache / f"{name}.pt2"
        self.tiny_path = cache / "tiny.onnx"

    def inputs(self) -> list[np.ndarray]:
        with np.load(self.inputs_path) as file:
            return [file[key] for key in file.files]

    def build(self) -> tuple[Any, tuple[Any, ...]]:
        from bench_models import build

        return build(self.name)

    def feeds(self, session: Any) -> dict[str, np.ndarray]:
        return dict(zip([i.name for i in session.get_inputs()], self.inputs(), strict=True))


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def timed(call: Callable[[], Any], most: int) -> Result:
    """Calls until ``most`` calls are made or the time is up; the last result is under ``value``."""
    seconds: list[float] = []
    peak = 0.0
    while len(seconds) < most and sum(seconds) < ENOUGH:
        value = None
        gc.collect()
        began = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - began)
        peak = peak or peak_rss_mb()
    return {"seconds": seconds, "peak_rss_mb": peak, "peak_rss_mb_all": peak_rss_mb(), "value": value}


# -- preparing --------------------------------------------------------------------------------------------------------


def prepare(case: Case) -> Result:
    """Exports the model and a tiny one, and saves inputs and exported program; nothing here is compared."""
    import torch

    began = time.perf_counter()
    if not case.tiny_path.exists():
        _export(*tiny(), case.tiny_path)
    if not case.path.exists() or not case.inputs_path.exists():
        model, args = case.build()
        np.savez(case.inputs_path, *[a.numpy() for a in args])
        began = time.perf_counter()
        program = _export(model, args, case.path)
        seconds = time.perf_counter() - began
        # onnx-diagnostic and torch.onnx.verification want it beside the graph.
        torch.export.save(program.exported_program, case.program_path)
        return {"seconds": [seconds], "peak_rss_mb": peak_rss_mb(), "extra": {}}
    return {"seconds": [time.perf_counter() - began], "peak_rss_mb": peak_rss_mb(), "extra": {"cached": True}}


def tiny() -> tuple[Any, tuple[Any, ...]]:
    import torch

    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(), (torch.ones(1, 3, 8, 8),)


def _export(model: Any, args: tuple[Any, ...], path: Path) -> Any:
    """With the default exporter, as the tool itself calls it."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        program = torch.onnx.export(model, args, dynamo=True, verbose=False)
        assert program is not None
        program.save(str(path), external_data=size > 1_500_000_000)
    return program


# -- the floor --------------------------------------------------------------------------------------------------------


def forward(case: Case) -> Result:
    import torch

    model, args = case.build()
    small, small_args = tiny()
    with torch.no_grad():
        small(*small_args)
        result = timed(lambda: model(*args), 5)
    del result["value"]
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    return {**result, "extra": {"threads": torch.get_num_threads(), "weights_mb": weights / 1e6}}


def ort(case: Case) -> Result:
    """Creation and one run, again and again: each comparison makes its session anew."""
    import onnxruntime

    inputs = case.inputs()
    create: list[float] = []
    run: list[float] = []

    onnxruntime.InferenceSession(str(case.tiny_path), providers=["CPUExecutionProvider"])

    def call() -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        began = time.perf_counter()
        session = onnxruntime.InferenceSession(str(case.path), options, providers=["CPUExecutionProvider"])
        create.append(time.perf_counter() - began)
        feeds = dict(zip([i.name for i in session.get_inputs()], inputs, strict=True))
        began = time.perf_counter()
        session.run(None, feeds)
        run.append(time.perf_counter() - began)

    result = timed(call, 4)
    del result["value"]
    return {**result, "extra": {"create": create, "run": run}}


# -- this tool --------------------------------------------------------------------------------------------------------


def tool(case: Case, settings: str, budget: int | None = None) -> Result:
    from bisect_tool.pipeline import LoadedCase, Options, bisect
    from bisect_tool.tolerances import make_tolerance

    chosen: dict[str, Any] = {
        "totals": {"forced": False, "observe": False, "optimizations": ("off",)},
        "forced": {"forced": True, "observe": False, "optimizations": ("off",)},
        "floors": {"forced": True, "observe": False, "optimizations": ("off",)},
        "default": {},
    }[settings]
    if settings == "floors":
        _measure_every_floor()
    if budget is not None:
        chosen["memory_budget"] = budget
    tolerance = make_tolerance(None, None, None)
    bisect(LoadedCase("tiny", *tiny(), {}), Options(tolerance, onnx=case.tiny_path, **chosen))
    model, args = case.build()
    loaded = LoadedCase(case.name, model, args, {})
    result = timed(lambda: bisect(loaded, Options(tolerance, onnx=case.path, **chosen)), 3)
    report = result.pop("value")
    alignment = report.alignment
    extra = {
        "status": report.verdict.status,
        "aligned": alignment.aligned,
        "coverage": alignment.coverage,
        "compared": sum(1 for row in report.stages if row.results),
        # A wrong pair on a correct export shows as an error far over float32's.
        "wrong": sum(any(not r.total.rel_l2 <= WRONG for r in row.results.values()) for row in report.stages),
        "timings": {name: round(seconds, 4) for name, seconds in report.timings.items()},
    }
    return {**result, "extra": extra}


def _measure_every_floor() -> None:
    """As if no local error were small enough to settle a stage: what measuring noise floors costs at most."""
    from bisect_tool.backends import floors

    vars(floors)["is_settled"] = lambda *_: False


# -- cost in stages ---------------------------------------------------------------------------------------------------


def stages(count: int, cache: Path) -> Result:
    """The whole command's comparison of a chain of small layers, and its report's files: what every stage costs."""
    import torch

    from bisect_tool.backends.exporting import ExportSettings, export_onnx
    from bisect_tool.pipeline import LoadedCase, Options, bisect
    from bisect_tool.reporters import csv_table, html, plots
    from bisect_tool.store import report_text
    from bisect_tool.tolerances import make_tolerance

    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 8) if place % 2 == 0 else torch.nn.Tanh() for place in range(count)]
    model, args = torch.nn.Sequential(*layers).eval(), (torch.randn(4, 8),)
    path = cache / f"chain-{count}.onnx"
    if not path.exists():
        export_onnx(model, args, {}, path, ExportSettings("torchscript"))
    tolerance = make_tolerance(None, None, None)
    bisect(LoadedCase("tiny", *tiny(), {}), Options(tolerance, onnx=Case("tiny", cache).tiny_path))
    began = time.perf_counter()
    report = bisect(LoadedCase("chain", model, args, {}), Options(tolerance, onnx=path))
    compared = time.perf_counter() - began
    plots.images(report), report_text(report), csv_table.csv_text(report), html.html_text(report)
    seconds = time.perf_counter() - began
    extra = {"stages": report.alignment.aligned, "status": report.verdict.status, "compared": compared}
    return {"seconds": [seconds], "peak_rss_mb": peak_rss_mb(), "extra": extra}


# -- peers ------------------------------------------------------------------------------------------------------------


def naive(case: Case) -> Result:
    """What one writes in half an hour: hooks that store outputs, all ONNX values exposed, pairs by order and shape."""
    import onnx
    import onnxruntime
    import torch

    model, args = case.build()
    inputs = [a.numpy() for a in args]

    def call() -> list[tuple[np.ndarray, np.ndarray]]:
        outputs: dict[str, torch.Tensor] = {}
        hooks = []
        for name, module in model.named_modules():
            if not list(module.children()):
                hooks.append(
                    module.register_forward_hook(lambda m, i, output, name=name: outputs.__setitem__(name, output))
                )
        with torch.no_grad():
            model(*args)
        for hook in hooks:
            hook.remove()
        proto = onnx.load(case.path)
        names = [name for node in proto.graph.node for name in node.output if name]
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        values = session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))
        pairs = []
        at = 0
        for output in outputs.values():
            if not isinstance(output, torch.Tensor):
                continue
            expected = output.numpy()
            place = next((i for i in range(at, len(values)) if values[i].shape == expected.shape), None)
            if place is not None:
                difference = np.abs(expected - values[place])
                difference.max(), difference.mean()
                pairs.append((expected, values[place]))
                at = place + 1
        return pairs

    result = timed(call, 1)
    pairs = result.pop("value")
    wrong = sum(not _relative(expected, actual) <= WRONG for expected, actual in pairs)
    return {**result, "extra": {"compared": len(pairs), "wrong": wrong}}


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    reference = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(expected.astype(np.float64) - actual.astype(np.float64)))
    return difference / reference if reference else (0.0 if difference == 0 else float("inf"))


def verification(case: Case) -> Result:
    """torch.onnx.verification makes a session per value: an even sample is timed through ``compute_values``, which is
    what ``verify_onnx_program(compare_intermediates=True)`` calls for each value, and the rest is extrapolated.
    """
    import onnx_ir
    import torch
    from torch.onnx.verification import VerificationInfo, verify_onnx_program

    small, small_args = tiny()
    program = torch.onnx.ONNXProgram(onnx_ir.load(case.tiny_path), torch.export.export(small, small_args))
    verify_onnx_program(program, small_args, compare_intermediates=True)
    exported = torch.export.load(case.program_path)
    program = torch.onnx.ONNXProgram(onnx_ir.load(case.path), exported)
    args = tuple(torch.from_numpy(a) for a in case.inputs())
    known = {value.name for node in program.model.graph for value in node.outputs}
    names = [n.name for n in exported.graph.nodes if n.op == "call_function" and n.name in known]

    class Values(torch.fx.Interpreter):
        """Keeps PyTorch's side of the sampled values; the other side is what takes the time."""

        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in sample:
                sample[n.name] = value
            return value

    order = _spread(len(names))
    sample: dict[str, Any] = {names[i]: None for i in order[:VERIFIED]}
    with torch.no_grad():
        began = time.perf_counter()
        Values(exported.module()).run(*args)
        interpreting = time.perf_counter() - began
        spent: list[float] = []
        worst = 0.0
        for name, expected in sample.items():
            began = time.perf_counter()
            (actual,) = program.compute_values([name], args)
            info = VerificationInfo.from_tensors(name, expected, actual)
            spent.append(time.perf_counter() - began)
            worst = max(worst, info.max_abs_diff)
            if sum(spent) > VERIFIED_SECONDS:
                break
    whole = interpreting + statistics.mean(spent) * len(names)
    extra = {"compared": len(names), "measured_values": len(spent), "measured_seconds": sum(spent), "max_abs": worst}
    return {"seconds": [whole], "peak_rss_mb": peak_rss_mb(), "extra": extra}


def _spread(count: int) -> list[int]:
    """Places 0 … count - 1 so ordered that every beginning of the list is spread evenly."""
    order: dict[int, None] = {}
    for number in itertools.count(1):
        place, step, rest = 0.0, 0.5, number
        while rest:
            place, step, rest = place + step * (rest & 1), step / 2, rest >> 1
        order[int(place * count)] = None
        if len(order) == count or number > 16 * count:
            return list(order)
    raise AssertionError


def polygraphy(case: Case) -> Result:
    """All values marked as outputs, two runners (optimisation off and on), the default comparison."""
    import onnxruntime
    from polygraphy import constants
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    levels = onnxruntime.GraphOptimizationLevel

    def run(path: Path, feeds: dict[str, np.ndarray]) -> Any:
        model = BytesFromOnnx(ModifyOutputs(OnnxFromPath(str(path)), outputs=constants.MARK_ALL))
        runners = [
            OnnxrtRunner(SessionFromOnnx(model, graph_optimization_level=level), name=name)
            for name, level in (("off", levels.ORT_DISABLE_ALL), ("all", levels.ORT_ENABLE_ALL))
        ]
        return Comparator.compare_accuracy(Comparator.run(runners, data_loader=[feeds]))

    tiny_session = onnxruntime.InferenceSession(str(case.tiny_path), providers=["CPUExecutionProvider"])
    run(case.tiny_path, {tiny_session.get_inputs()[0].name: np.ones((1, 3, 8, 8), np.float32)})
    session = onnxruntime.InferenceSession(str(case.path), providers=["CPUExecutionProvider"])
    feeds = case.feeds(session)
    del session
    result = timed(lambda: run(case.path, feeds), 1)
    accuracy = result.pop("value")
    outcomes = [
        bool(passed)
        for comparison in accuracy
        for iterations in comparison.values()
        for iteration in iterations
        for passed in iteration.values()
    ]
    return {**result, "extra": {"compared": len(outcomes), "failed": outcomes.count(False)}}


def onnx_diagnostic(case: Case) -> Result:
    """Side by side as its own command line runs it: ONNX Runtime node by node, on torch tensors."""
    import onnx
    import torch
    from onnx_diagnostic.reference import OnnxruntimeEvaluator
    from onnx_diagnostic.torch_onnx.sbs import run_aligned

    def run(program: Any, proto: Any, args: tuple[Any, ...]) -> list[Any]:
        with torch.no_grad():
            return list(run_aligned(program, proto, OnnxruntimeEvaluator, args, use_tensor=True))

    small, small_args = tiny()
    run(torch.export.export(small, small_args), onnx.load(case.tiny_path), small_args)
    program, proto = torch.export.load(case.program_path), onnx.load(case.path)
    args = tuple(torch.from_numpy(a) for a in case.inputs())
    result = timed(lambda: run(program, proto, args), 1)
    records = [r for r in result.pop("value") if r.err_abs is not None and r.onnx_op_type != "initializer"]
    return {**result, "extra": {"compared": len(records), "max_abs": max((r.err_abs for r in records), default=None)}}


# -- the rest ---------------------------------------------------------------------------------------------------------


def kernel(case: Case) -> Result:
    """``metrics.measure`` beside the fastest plain reading of the same two arrays on all cores, turn by turn."""
    from bisect_tool.metrics import measure

    random = np.random.default_rng(0)
    expected = random.standard_normal(KERNEL_ELEMENTS, np.float32)
    actual = expected + random.standard_normal(KERNEL_ELEMENTS, np.float32) * np.float32(1e-5)
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers)
    parts = [part for array in (expected, actual) for part in np.array_split(array, workers)]

    def read() -> list[float]:
        return list(pool.map(_read, parts))

    seconds: list[float] = []
    reading: list[float] = []
    for _ in range(15):
        for call, into in ((lambda: measure(expected, actual), seconds), (read, reading)):
            began = time.perf_counter()
            call()
            into.append(time.perf_counter() - began)
    size = (expected.nbytes + actual.nbytes) / 1e9
    rates = {
        "gb": size,
        "gb_per_s": size / statistics.median(seconds),
        "read_gb_per_s": size / statistics.median(reading),
    }
    return {"seconds": seconds, "peak_rss_mb": peak_rss_mb(), "extra": {**rates, "threads": workers}}


def _read(part: np.ndarray) -> float:
    """In chunks, so that both sides read in the same way."""
    return max(float(part[i : i + (1 << 16)].max()) for i in range(0, part.size, 1 << 16))


OWN = ("totals", "forced", "floors", "default", "totals-256MiB", "forced-256MiB")
CHAINS = (2500, 10000)


def _stages_of(count: int, case: Case) -> Result:
    return stages(count, case.path.parent)


MEASUREMENTS: dict[str, Callable[[Case], Result]] = {
    "prepare": prepare,
    "forward": forward,
    "ort": ort,
    "totals": lambda case: tool(case, "totals"),
    "forced": lambda case: tool(case, "forced"),
    "floors": lambda case: tool(case, "floors"),
    "default": lambda case: tool(case, "default"),
    "totals-256MiB": lambda case: tool(case, "totals", 256 << 20),
    "forced-256MiB": lambda case: tool(case, "forced", 256 << 20),
    "naive": naive,
    "verification": verification,
    "polygraphy": polygraphy,
    "onnx-diagnostic": onnx_diagnostic,
    "kernel": kernel,
    **{f"stages-{count}": functools.partial(_stages_of, count) for count in CHAINS},
}


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[Any]:
    """What libraries print goes to stderr, below Python too; the real stdout is yielded."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        yield own
    finally:
        own.flush()


def main() -> None:
    measurement, name, cache = sys.argv[1:4]
    if measurement in OWN or measurement.startswith("stages-"):
        from bisect_tool.cli.process import let_idle_threads_sleep, load_libraries

        # As the command itself starts its process; torch is not loaded yet.
        let_idle_threads_sleep()
        load_libraries()
    with _quiet_stdout() as stdout:
        try:
            result = MEASUREMENTS[measurement](Case(name, Path(cache)))
        except Exception as error:  # a peer that refuses is a row of the table
            import traceback

            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(result), file=stdout)


if __name__ == "__main__":
    main()

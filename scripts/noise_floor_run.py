"""Measures the noise floor of every stage of healthy models, whether the cheap bound settles it or not."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

EXPORTERS = ("dynamo", "torchscript")
SECTIONS = ("examples", "zoo", "trained", "random", "half", "single", "nasty")
DRAWN = 6
"""Draws of made-up rounding for each stage: twice as many as the tool makes, to see what more of them would do."""

SINGLE_SEEDS = 5

NEAR = 1.4
"""Drawn only where a side lies this many plain floors off: below it no draw decides, whatever the constants are here."""

SECTION_SECONDS = 1500
HALF_FAMILIES = ("residual", "inverted", "mixer", "vit", "decoder", "convnext", "shared")

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("recurrence", ("lstm", "gru", "rnn")),
    ("attention", ("attention", "multi_head")),
    ("convolution", ("conv",)),
    ("matrix product", ("addmm", "bmm", "matmul", "linear", "einsum", "mm", "mv", "dot", "cdist")),
    ("normalisation", ("norm",)),
    ("softmax", ("softmax", "logsumexp")),
    ("resize, sampling", ("upsample", "grid_sampler", "interpolate")),
    ("pooling", ("pool",)),
    ("sum", ("sum", "mean", "var", "std", "prod")),
    ("activation", ("relu", "sigmoid", "silu", "gelu", "elu", "mish", "tanh", "hardswish", "hardtanh", "softplus")),
    ("other function", ("exp", "log", "sin", "cos", "pow", "sqrt", "erf", "acosh", "atanh", "asin", "reciprocal")),
    ("arithmetic", ("add", "sub", "mul", "div", "remainder", "neg", "abs")),
)
"""A stage's kind is the first that one of its operations belongs to: what rounds most comes first."""


@dataclass(frozen=True)
class Stage:
    """One stage of one graph, as far as rounding goes. Errors are norms of differences from the float64 reference.

    Attributes:
        section, model, exporter: where it comes from.
        kind: see ``KINDS``.
        dtype, count: of its value.
        same: both sides have the same bits; nothing else was measured then.
        norm: of the reference.
        local: relative L2 of the local error.
        expected, actual, strict: errors of both sides, and of strict float32.
        draws: errors of made-up rounding; empty where both sides are so near that it decides nothing.
        unknown: why there is no reference.
    """

    section: str
    model: str
    exporter: str
    kind: str
    dtype: str
    count: int
    same: bool = False
    norm: float = 0.0
    local: float = 0.0
    expected: float = 0.0
    actual: float = 0.0
    strict: float = 0.0
    draws: tuple[float, ...] = ()
    unknown: str | None = None


@dataclass(frozen=True)
class Run:
    """One graph: what the tool said, and what optimisation did to its outputs.

    Attributes:
        status: the verdict; ``no export`` and ``error`` beside.
        spread: for each final output, relative L2 of the optimised untouched graph over the unoptimised one's.
        why: of what is not agreement.
    """

    section: str
    model: str
    exporter: str
    status: str
    spread: tuple[float, ...] = ()
    why: str = ""


Case = tuple[str, str, Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]]


def main() -> int:
    """Returns 0: the page tells."""
    options = _options()
    if options.section:
        _run_section(options, options.section)
        return 0
    if not options.table_only:
        from corpus_run import provide

        provide(options.packages)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            options.output.unlink(missing_ok=True)
        for section in options.sections:
            began = time.time()
            call = [sys.executable, __file__, "--section", section, "-o", str(options.output)]
            try:
                ended = subprocess.run([*call, "--packages", str(options.packages)], timeout=SECTION_SECONDS)
                text = f"ended with {ended.returncode}" if ended.returncode else "done"
            except subprocess.TimeoutExpired:
                text = f"cut off after {SECTION_SECONDS} s"
            print(f"{section}: {text}, {time.time() - began:.0f} s", file=sys.stderr, flush=True)
    if options.docs is not None:
        import noise_floor_page

        stages, runs = read(options.output)
        options.docs.write_text(noise_floor_page.page(stages, runs), encoding="utf-8")
        noise_floor_page.plot(stages, options.docs.with_suffix(".svg"))
        print(noise_floor_page.summary(stages, runs))
    return 0


def _options() -> argparse.Namespace:
    from corpus_run import packages_folder

    parser = argparse.ArgumentParser(prog="scripts/noise-floor", description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="default: %(default)s")
    parser.add_argument("--packages", type=Path, default=packages_folder(), help="of the corpus; default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="keep the graphs that are there, and run the rest")
    parser.add_argument("--table-only", action="store_true", help="run nothing, make the page of the results anew")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "reports" / "noise-floor" / "stages.jsonl",
        help="file of results; default: %(default)s",
    )
    parser.add_argument(
        "--docs", type=Path, help="Markdown file; default: docs/noise-floor.md where nothing is left out"
    )
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.docs is None and (options.table_only or options.sections == ",".join(SECTIONS)):
        options.docs = ROOT / "docs" / "noise-floor.md"
    options.sections = options.sections.split(",")
    for section in options.sections:
        if section not in SECTIONS:
            parser.error(f"{section!r} is none of {', '.join(SECTIONS)}")
    return options


def read(file: Path) -> tuple[list[Stage], list[Run]]:
    """Stages and runs; a line that was cut off by the end of a process is left out."""
    stages, runs = [], []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "status" in record:
            runs.append(Run(**{**record, "spread": tuple(record["spread"])}))
        else:
            stages.append(Stage(**{**record, "draws": tuple(record["draws"])}))
    return stages, runs


def kind_of(names: list[str]) -> str:
    """The kind of a stage with these aten operations."""
    for kind, words in KINDS:
        if any(word in name for name in names for word in words):
            return kind
    return "moving numbers"


# -- running ----------------------------------------------------------------------------------------------------------


def _run_section(options: argparse.Namespace, section: str) -> None:
    import torch
    from corpus_nets import use_packages

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    use_packages(options.packages)
    _, runs = read(options.output)
    done = {(run.section, run.model, run.exporter) for run in runs}
    with options.output.open("a", encoding="utf-8") as stream:
        for model, exporter, build in cases(section):
            if (section, model, exporter) in done:
                continue
            stages, run = measure(section, model, exporter, build)
            stream.writelines(json.dumps(asdict(line)) + "\n" for line in [*stages, run])
            stream.flush()


def cases(section: str) -> Iterator[Case]:
    """Models of a section with each exporter."""
    import corpus_nets
    from families import FAMILIES
    from nasty import NASTY

    if section == "examples":
        for name in ("centerpoint", "attention", "recurrent", "mobile"):
            yield from _both(name, functools.partial(_example, name))
    elif section == "zoo":
        for name, family in FAMILIES.items():
            yield from _both(name, lambda family=family: (family.build(), family.inputs(0), {}))  # type: ignore[misc]
    elif section in ("trained", "random"):
        for name, net in corpus_nets.NETS.items():
            if net.trained == (section == "trained"):
                yield from _both(name, lambda net=net: (*net.build(), {}))  # type: ignore[misc]
    elif section == "half":
        for name in HALF_FAMILIES:
            yield from _both(name, functools.partial(_half, FAMILIES[name]))
        for name in ("mtcnn-pnet", "mtcnn-onet", "crepe-tiny", "bert", "vit"):
            yield from _both(name, functools.partial(_half_net, corpus_nets.NETS[name]))
    elif section == "single":
        for seed in range(SINGLE_SEEDS):
            yield from _both(f"heads-{seed}", functools.partial(_heads, seed))
    else:
        for name, nasty in NASTY.items():
            for exporter in nasty.exporters:
                yield name, exporter, lambda nasty=nasty: (*nasty.build(), {})  # type: ignore[misc]


def _both(name: str, build: Callable[[], Any]) -> Iterator[Case]:
    for exporter in EXPORTERS:
        yield name, exporter, build


def _example(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    from bisect_tool.backends.checkpoints import apply_checkpoint, load_checkpoint
    from bisect_tool.backends.models import load_model
    from bisect_tool.backends.samples import bind_sample, load_samples

    folder = ROOT / "examples" / name
    module = load_model(str(folder / "model.py")).module
    checkpoint = next(folder.glob("ckpt.*"))
    apply_checkpoint(module, load_checkpoint(checkpoint), checkpoint)
    (sample,) = load_samples([str(path) for path in folder.glob("sample.*")])
    sample = bind_sample(module.eval(), sample)
    return module, sample.args, sample.kwargs


def _heads(seed: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Many stages of one number each, where luck is all: sums of a hundred products, and functions of one."""
    import torch
    from torch import Tensor, nn

    functions: list[Callable[[Tensor], Tensor]] = [
        torch.tanh,
        torch.sigmoid,
        nn.functional.silu,
        nn.functional.gelu,
        torch.exp,
        nn.functional.softplus,
        lambda x: x * 1.7 - 0.3,
    ]

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(128, 1) for _ in range(4 * len(functions)))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            """(1, 128) -> one number for each head, and a few of the whole."""
            found = [functions[place % len(functions)](head(x)) for place, head in enumerate(self.heads)]
            whole = [x.mean(), x.std(), x.norm(), x.sum(), torch.logsumexp(x, 1), (x * x).mean()]
            return (*found, *whole)

    torch.manual_seed(seed)
    return Heads().eval(), (torch.randn(1, 128),), {}


def _half(family: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return family.build().half(), _halved(family.inputs(0)), {}


def _half_net(net: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    module, args = net.build()
    return module.half(), _halved(args), {}


def _halved(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.half() if x.is_floating_point() else x for x in args)


def measure(section: str, model: str, exporter: str, build: Callable[[], Any]) -> tuple[list[Stage], Run]:
    """Every stage of a graph."""
    from bisect_tool import BisectError, ExportSettings, LoadedCase, Options, bisect, make_tolerance

    blank = Run(section, model, exporter, "error")
    settings = ExportSettings(exporter=exporter)  # type: ignore[arg-type]
    tolerance = make_tolerance(None, None, None)
    try:
        module, args, kwargs = build()
        with every_stage(functools.partial(Stage, section, model, exporter)) as stages:
            case = LoadedCase(model, module, args, kwargs)
            report = bisect(case, Options(tolerance=tolerance, export=settings, threads=2))
    except BisectError as error:
        status = "no export" if "exporter failed" in str(error) else "error"
        return [], Run(section, model, exporter, status, why=_line(error))
    except Exception as error:  # anything: that is what is being measured
        return [], Run(section, model, exporter, "error", why=f"{type(error).__name__}: {_line(error)}")
    for row in report.stages:
        result = row.results.get("ort-cpu-off")
        if result is not None and result.noise is not None and result.noise.settled:
            kind, size = kind_of([row.type.lower()]), math.prod(row.shape)
            stages.append(Stage(section, model, exporter, kind, row.dtype, size, same=True))
    outputs = [{output.output: output.total.rel_l2 for output in run.outputs} for run in report.configs[:2]]
    spread = [outputs[1][key] / error for key, error in outputs[0].items() if error and key in outputs[1]]
    found = tuple(value for value in spread if math.isfinite(value))
    why = "" if report.verdict.status == "agrees" else "; ".join(report.verdict.summary)
    return stages, Run(blank.section, model, exporter, report.verdict.status, found, why)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def every_stage(blank: Callable[..., Stage]) -> Iterator[list[Stage]]:
    """The stages that the tool measures meanwhile: all but those with the same bits on both sides."""
    from bisect_tool.backends import floors
    from bisect_tool.backends.floors import strict_products
    from bisect_tool.backends.replay import EXACT, STRICT, CannotReplayError, replay_values, rounded, slice_of
    from bisect_tool.noise import BEYOND, DRAWS, EPSILONS, epsilon
    from bisect_tool.records import Noise

    found: list[Stage] = []
    settled, original = floors.is_settled, floors.stage_noise

    def stage_noise(taped: Any, value: int, known: Any, expected: Any, actual: Any, aspect: Any = floors.WHOLE) -> Any:
        again = functools.partial(original, taped, value, known, expected, actual, aspect)
        trace = taped.trace
        if aspect.held is not None:
            # Graphs in half precision have a floor of their own, which is not what is measured here.
            return again()

        expected, actual = aspect.of(expected), aspect.of(actual)
        dtype, size = aspect.precision(trace.values[value].dtype), int(expected.size)
        try:
            ops = slice_of(trace, value, known)
            start = functools.partial(blank, kind_of([op.name for op in ops]), dtype, size)
            local = _relative(expected, actual)

            def run(arithmetic: Any) -> Any:
                return aspect.of(replay_values(trace, {value}, ops, taped.fetch, arithmetic)[value])

            with strict_products():
                reference, strict = run(EXACT), run(STRICT)
            norm = _norm(reference)
            unit = max(epsilon(dtype), epsilon("float32")) if epsilon(dtype) else 0.0
            sides = [_apart(reference, side) for side in (expected, actual, strict)]
            draws = []
            if max(sides[:2]) > NEAR * max(sides[2], unit / 2 * norm):
                draws = [_apart(reference, run(rounded(seed, ties=aspect.ties))) for seed in range(DRAWN)]
            floor = max(sides[2], EPSILONS * unit * norm, *draws[:DRAWS])
            noise = Noise(floor / norm if norm else floor, *(_ratio(side, floor) for side in sides[:2]))
            if noise.ratio is not None and noise.ratio > BEYOND:
                noise = again()
                if noise.unknown:
                    raise CannotReplayError(noise.unknown)
            found.append(start(False, norm, local, *sides, tuple(draws)))
        except CannotReplayError as error:
            found.append(blank("unknown", dtype, size, unknown=str(error)))
            noise = Noise(unknown=str(error))
        return noise

    floors.stage_noise = stage_noise  # type: ignore[assignment]
    floors.is_settled = lambda *given: False  # type: ignore[assignment]
    try:
        yield found
    finally:
        floors.stage_noise, floors.is_settled = original, settled


def _wide(array: Any) -> Any:
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _norm(array: Any) -> float:
    wide = _wide(array)
    return float(np.linalg.norm(wide[np.isfinite(wide)]))


def _apart(reference: Any, other: Any) -> float:
    first, second = _wide(reference), _wide(other)
    if first.shape != second.shape:
        return math.inf
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        norm = float(np.linalg.norm(np.where(same, 0, second - first)))
    return norm if math.isfinite(norm) else math.inf


def _ratio(error: float, unit: float) -> float:
    return error / unit if unit else math.inf if error else 0.0


def _relative(expected: Any, actual: Any) -> float:
    apart, norm = _apart(expected, actual), _norm(expected)
    return apart / norm if norm else math.inf if apart else 0.0


if __name__ == "__main__":
    sys.exit(main())

"""How often the tool names the right pass and the right place: faults of ONNX Runtime's optimiser in random networks.

Each network is a row of healthy blocks with one fault among them, and there is the same row without it. Nobody edits a
file: PyTorch exports, ONNX Runtime optimises.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))

from optimiser_faults import Block, Dropped, DroppedRms, InPieces, Quartic, Reversed

from bisect_tool import LoadedCase, Options, bisect, make_tolerance
from bisect_tool.backends.exporting import ExportSettings

CODE = "BD302"
NORMS = frozenset(["LayerNormFusionL1", "LayerNormFusionL2", "SimplifiedLayerNormFusion"])


class PadAndPool(nn.Module):
    """Zeros around what is negative, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sign, self.pad, self.pool = nn.LogSigmoid(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(self.sign(x)))  # type: ignore[no-any-return]


FLAT: dict[str, tuple[Callable[[int], nn.Module], frozenset[str]]] = {
    "fourth moment": (lambda size: Quartic(size), NORMS),
    "fourth moment in pieces": (lambda size: InPieces(size), NORMS),
    "reversed subtraction": (lambda size: Reversed(size), NORMS),
    "axis dropped, mean": (lambda size: Dropped(scale=True, size=size), NORMS),
    "axis dropped, both": (lambda size: Dropped(size=size), NORMS),
    "axis dropped, root mean square": (lambda size: DroppedRms(size), NORMS),
}
MAPS: dict[str, tuple[Callable[[int], nn.Module], frozenset[str]]] = {
    "padding of a pool": (lambda _: PadAndPool(), frozenset(["Pad_Fusion"])),
}


@dataclass(frozen=True)
class Job:
    fault: str
    healthy: bool
    seed: int


@dataclass(frozen=True)
class Result:
    job: Job
    status: str
    named: bool
    placed: bool
    verified: bool
    runs: int
    looks: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--nets", type=int, default=8, help="networks with each fault, and as many without; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first network; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; default: %(default)s")
    arguments = parser.parse_args()
    jobs = [
        Job(fault, healthy, arguments.seed + number)
        for fault in (*FLAT, *MAPS)
        for number in range(arguments.nets)
        for healthy in (False, True)
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(run, jobs))
    print(table(results))


def network(job: Job) -> tuple[nn.Module, Tensor, str]:
    """Healthy blocks, the fault somewhere among them unless there is none, an input, and the fault's path."""
    chance = random.Random(f"{job.fault} {job.seed}")
    torch.manual_seed(job.seed)
    maps = job.fault in MAPS
    make, _ = (MAPS if maps else FLAT)[job.fault]
    size = chance.choice([8, 16, 24])
    count = chance.randint(3, 9)
    blocks = [_block(chance, size, maps) for _ in range(count)]
    place = chance.randint(1, count - 1)
    if not job.healthy:
        blocks.insert(place, make(size))
    blocks.append(nn.Conv2d(size, 3, 1) if maps else nn.Linear(size, 5))
    # Dropped axes only go unnoticed where the numbers of rows and columns are equal.
    x = torch.randn(2, size, 10, 10) if maps else torch.randn(size, size)
    return nn.Sequential(*blocks).eval(), x, str(place)


def _block(chance: random.Random, size: int, maps: bool) -> nn.Module:
    if maps:
        return chance.choice([Block(size), nn.Sequential(nn.Conv2d(size, size, 3, padding=1), nn.ReLU()), nn.Tanh()])
    return chance.choice(
        [
            nn.Linear(size, size),
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)),
            nn.LayerNorm(size),
            nn.Sequential(nn.Linear(size, size), nn.SiLU()),
            nn.Tanh(),
        ]
    )


def run(job: Job) -> Result:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    module, x, place = network(job)
    exporter = "dynamo" if job.seed % 4 == 3 else "torchscript"
    opset = {0: 14, 1: 17}.get(job.seed % 4)
    settings = ExportSettings(exporter=exporter, opset=opset)  # type: ignore[arg-type]
    began = time.perf_counter()
    case = LoadedCase("net", module, (x,), {})
    report = bisect(case, Options(make_tolerance(None, None, None), export=settings, threads=1))
    verdict = report.verdict
    made = next((each for each in verdict.diagnoses if each.code == CODE), None)
    passes = frozenset(made.title.rpartition(": ")[2].split(" and ")) if made is not None else frozenset()
    allowed = (MAPS if job.fault in MAPS else FLAT)[job.fault][1]
    first = verdict.origins[0].stage if verdict.origins else ""
    effort = made.evidence[-1].split() if made is not None else ["0"]
    return Result(
        job=job,
        status=verdict.status,
        named=bool(passes) and passes <= allowed,
        placed=f"{first}.".startswith((f"{place}.", f"{place}/")),
        verified=made is not None and made.remedy_verified is True,
        runs=int(effort[0]),
        looks=int(effort[effort.index("under") - 1]) if "under" in effort else 0,
        seconds=time.perf_counter() - began if made is None else report.timings.get("passes", 0.0),
    )


def table(results: list[Result]) -> str:
    lines = [
        "| fault | networks | diverge | pass named | place found | remedy tried | runs | looks | seconds "
        "| healthy | false alarms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = list(dict.fromkeys(each.job.fault for each in results))
    for name in [*names, None]:
        chosen = [each for each in results if name in (None, each.job.fault)]
        faulty = [each for each in chosen if not each.job.healthy]
        healthy = [each for each in chosen if each.job.healthy]
        shown = [each for each in faulty if each.status == "diverges"]
        numbers = [
            len(faulty),
            len(shown),
            sum(each.named for each in shown),
            sum(each.placed for each in shown),
            sum(each.verified for each in shown),
            _median([each.runs for each in shown]),
            _median([each.looks for each in shown]),
            f"{statistics.median([each.seconds for each in shown]):.1f}" if shown else "-",
            len(healthy),
            sum(each.status != "agrees" or each.runs > 0 for each in healthy),
        ]
        lines.append(f"| {name or 'all'} | " + " | ".join(map(str, numbers)) + " |")
    missed = [each for each in results if not each.job.healthy and each.status == "diverges" and not each.placed]
    lines += [f"not placed: {each.job.fault}, seed {each.job.seed}" for each in missed]
    return "\n".join(lines)


def _median(numbers: list[int]) -> str:
    return f"{statistics.median(numbers):.0f}" if numbers else "-"


if __name__ == "__main__":
    main()

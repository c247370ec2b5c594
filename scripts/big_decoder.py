"""Measures what a model of a given size costs, step by step, each step a process of its own; writes docs/size.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "scripts" / "big_decoder_model.py"
COMMAND = "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"
FAULT = "blocks.{layer}.up.weight"

PAGE = """\
# Size

Written by this command; do not edit by hand.

```console
$ scripts/big-decoder --docs docs/size.md
```

A decoder of GPT's kind ([scripts/big_decoder_model.py](../scripts/big_decoder_model.py)) with random weights, larger than
what an ONNX file can hold (2 GiB): its weights lie in a file beside it. It is exported with `torch.onnx.export(dynamo=True,
external_data=True)`, and then the command is run on the file, as a user does:

```sh
bisect-divergence big_decoder_model.py --input ids.npy --onnx model.onnx
```

Every step is a process of its own. *Peak* is the largest resident set that the process ever had (`ru_maxrss`, as
`/usr/bin/time -v` tells it), in GiB; it counts pages of the weights' file that are mapped, which the system takes back
when it needs them. *Own* is the largest part of it that is not of any file, read ten times a second.
*Load* is the system's average over the last 15 minutes: beyond the number of cores other work made all of this slower.
The fault is one row of one weight in the middle of the model, times 1.5, written into the weights' file.

{machine}

"""


@dataclass(frozen=True)
class Step:
    """What one process cost, in seconds and bytes."""

    name: str
    seconds: float
    peak: int
    own: int
    code: int
    report: dict[str, Any] | None = None


def main() -> int:
    """Returns 0 if the healthy file agrees and the fault is found, both within the limit."""
    options = _options()
    os.environ.update(
        BIG_DECODER_LAYERS=str(options.layers),
        BIG_DECODER_WIDTH=str(options.width),
        BIG_DECODER_VOCABULARY=str(options.vocabulary),
        BIG_DECODER_DTYPE=options.dtype,
    )
    with _folder(options.folder) as folder:
        steps = list(_steps(folder, options))
        size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        rows = [_facts(options, size), "", *_table(steps)]
        found = _found(steps, options)
    print("\n".join(rows))
    if options.docs is not None:
        text = PAGE.format(machine=_machine()) + "\n".join([*rows, "", *_timings(steps), "", *_limits(steps, options)])
        options.docs.write_text(text + "\n", encoding="utf-8")
    return 0 if found and all(step.peak < options.limit << 30 for step in steps) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/big-decoder", description=__doc__)
    parser.add_argument("--layers", type=int, default=20, help="of the decoder; default: %(default)s")
    parser.add_argument("--width", type=int, default=2048, help="of its layers; default: %(default)s")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens that it knows; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=32, help="length of the sample; default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of its weights; default: %(default)s",
    )
    parser.add_argument("--limit", type=int, default=24, help="GiB that no process may go over; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="for the files, which are kept then; default: a temporary one")
    parser.add_argument("--docs", type=Path, help="write the page here, such as docs/size.md")
    return parser.parse_args()


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="big-decoder-") as folder:
        yield Path(folder)


def _steps(folder: Path, options: argparse.Namespace) -> Iterator[Step]:
    import numpy as np

    ids = np.random.default_rng(0).integers(0, options.vocabulary, (1, options.tokens))
    np.save(folder / "ids.npy", ids)
    python = [sys.executable, "-c"]
    start = (
        f"import sys; sys.path.insert(0, {str(MODEL.parent)!r}); import torch, big_decoder_model as b; "
        "m = b.build_model().eval()"
    )
    forward = f"{start}; torch.set_grad_enabled(False); m(torch.arange({options.tokens})[None])"
    yield measured("PyTorch's forward alone", [*python, forward], folder, options.limit)
    model = folder / "model.onnx"
    if not model.exists():
        export = (
            f"{start}; torch.onnx.export(m, (torch.arange({options.tokens})[None],), {str(model)!r}, dynamo=True, "
            "external_data=True, verbose=False)"
        )
        yield measured("export", [*python, export], folder, options.limit)
    run = (
        "import onnxruntime as o, numpy as n; s = o.InferenceSession('model.onnx'); "
        "s.run(None, {s.get_inputs()[0].name: n.load('ids.npy')})"
    )
    yield measured("ONNX Runtime alone", [*python, run], folder, options.limit)
    yield compared("healthy", folder, options.limit)
    with fault(folder, FAULT.format(layer=options.layers // 2)):
        yield compared("one fault", folder, options.limit)


def compared(name: str, folder: Path, limit: int) -> Step:
    """The command on the files in a folder."""
    call = [sys.executable, "-c", COMMAND, str(MODEL), "--input", "ids.npy", "--onnx", "model.onnx"]
    target = folder / "reports"
    step = measured(f"comparison, {name}", [*call, "-o", str(target), "--force"], folder, limit)
    files = sorted(target.rglob("report.json"), key=lambda file: file.stat().st_mtime)
    report = json.loads(files[-1].read_text()) if files and step.code in (0, 1) else None
    shutil.rmtree(target, ignore_errors=True)
    return Step(step.name, step.seconds, step.peak, step.own, step.code, report)


def measured(name: str, call: Sequence[str], folder: Path, limit: int) -> Step:
    """Runs a command to its end, or until it goes over the limit in GiB: then it is ended, and its code is negative."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.perf_counter()
    process = subprocess.Popen(call, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    peak = own = 0
    while True:
        # Not `wait`: what the process used is known only to who reaps it.
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = max(peak, usage.ru_maxrss << 10)
            break
        resident, anonymous = _memory(process.pid)
        peak, own = max(peak, resident), max(own, anonymous)
        if anonymous > limit << 30:
            process.kill()
        time.sleep(0.1)
    step = Step(name, time.perf_counter() - began, peak, own, process.returncode)
    print(
        f"  {step.seconds:.0f} s, peak {_gib(peak)} GiB, own {_gib(own)}, code {step.code}", file=sys.stderr, flush=True
    )
    return step


def _memory(process: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process."""
    found = {"VmRSS": 0, "RssAnon": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0]) << 10
    return found["VmRSS"], found["RssAnon"]


@contextlib.contextmanager
def fault(folder: Path, weight: str) -> Iterator[None]:
    """Multiplies one row of a weight by 1.5 as it lies in its file; afterwards it is as before."""
    import numpy as np

    array = _mapped(folder, weight)
    before = np.array(array[1])
    array[1] = before * np.asarray(1.5, before.dtype)
    array.flush()
    try:
        yield
    finally:
        array[1] = before
        array.flush()


def _mapped(folder: Path, weight: str) -> Any:
    """A weight as it lies in the file beside the model: (outputs, inputs)."""
    import numpy as np
    import onnx
    import torch

    sys.path.insert(0, str(MODEL.parent))
    import big_decoder_model

    with torch.device("meta"):
        shapes = dict(
            big_decoder_model.Decoder(
                big_decoder_model.LAYERS, big_decoder_model.WIDTH, big_decoder_model.VOCABULARY
            ).named_parameters()
        )
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    layer = weight.rpartition(".")[0]
    reading = [
        node
        for node in model.graph.node
        if any(f"'{layer}'" in entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes"))
    ]
    read = {name for node in reading for name in node.input}
    rows, columns = shapes[weight].shape
    for tensor in model.graph.initializer:
        named = tensor.name == weight or tensor.name in read
        if named and sorted(tensor.dims) == sorted((rows, columns)):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            return np.memmap(
                folder / entries["location"],
                dtype,
                "r+",
                int(entries.get("offset", 0)),
                tuple(tensor.dims),
            )
    raise LookupError(f"{weight} is not in the file")


# -- the page ---------------------------------------------------------------------------------------------------------


def _facts(options: argparse.Namespace, size: int) -> str:
    block = 12 * options.width**2 + 13 * options.width
    other = options.width * (2 * options.vocabulary + 256 + 2)
    count = options.layers * block + other
    return (
        f"{options.layers} layers, width {options.width}, {count / 1e9:.2f} · 10⁹ parameters in {options.dtype}, "
        f"{size / (1 << 30):.2f} GiB on disk; sample of 1 × {options.tokens} tokens."
    )


def _table(steps: Sequence[Step]) -> list[str]:
    lines = [
        "| process | seconds | peak GiB | own GiB | stages | coverage | answer |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for step in steps:
        stages = coverage = answer = ""
        if step.report is not None:
            alignment, verdict = step.report["alignment"], step.report["verdict"]
            stages = f"{alignment['aligned']}/{alignment['stages']}"
            coverage = f"{alignment['coverage']:.0%}"
            answer = verdict["status"]
            if verdict["origins"]:
                answer += ", made in " + ", ".join(f"`{origin['stage']}`" for origin in verdict["origins"])
        elif step.code:
            answer = f"ended with {step.code}"
        lines.append(
            f"| {step.name} | {step.seconds:.0f} | {_gib(step.peak)} | {_gib(step.own)} | {stages} | {coverage} | {answer} |"
        )
    return lines


def _timings(steps: Sequence[Step]) -> list[str]:
    compared = [step for step in steps if step.report is not None]
    names = list(dict.fromkeys(name for step in compared for name in (step.report or {})["timings"]))
    lines = ["## Seconds of the comparisons, by step", ""]
    lines += [
        f"| step | {' | '.join(s.name.partition(', ')[2] for s in compared)} |",
        "|---|" + "---:|" * len(compared),
    ]
    for name in names:
        cells = [f"{(step.report or {})['timings'].get(name, 0.0):.1f}" for step in compared]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _limits(steps: Sequence[Step], options: argparse.Namespace) -> list[str]:
    most = max(steps, key=lambda step: step.peak)
    return [f"The largest peak is that of: {most.name}, {_gib(most.peak)} of {options.limit} GiB."]


def _found(steps: Sequence[Step], options: argparse.Namespace) -> bool:
    *_, healthy, faulty = steps
    if healthy.report is None or faulty.report is None:
        return False
    origins = [origin["stage"] for origin in faulty.report["verdict"]["origins"]]
    wanted = FAULT.format(layer=options.layers // 2).rpartition(".")[0]
    return healthy.report["verdict"]["status"] == "agrees" and origins == [wanted]


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript"))
    return f"{packages}; {platform.machine()}, {os.cpu_count()} CPU cores, {memory:.0f} GiB; load {os.getloadavg()[2]:.0f}."


if __name__ == "__main__":
    sys.exit(main())

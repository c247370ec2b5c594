"""Plants one difference at a time between two runs, records both for real, and compares: is it named as the first cause?

usage: planted_differences.py [--only TEXT] [--start N] [--keep FOLDER]     prints the table of docs/planted-differences.md

Every recording is a command, ``bisect-tool record``, in a process of its own, forked from this one where the interpreter need
not start anew; nothing in a recording is edited.
What the answer has to be stands here, beside what is planted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first run under a dispatch mode would load it, in every process anew
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from recording import Project, make_project  # noqa: E402
from test_recordings import TRAIN  # noqa: E402

from bisect_tool.backends import environment_facts, recorded_floors, torch_runner  # noqa: E402, F401
from bisect_tool.cli.main import execute  # noqa: E402
from bisect_tool.cli.tool import tool  # noqa: E402
from bisect_tool.recordings.compare_traces import compare_recordings  # noqa: E402
from bisect_tool.records import Report  # noqa: E402

TOOL = "from bisect_tool.cli.main import bisect_tool; bisect_tool()"
AT_START = ("PYTHONHASHSEED",)
"""Variables that an interpreter reads when it starts."""
Change = Callable[[Project], None]


@dataclass(frozen=True)
class Plant:
    """A difference, and what has to be said about it.

    Attributes:
        name: what is different, for the table.
        link, what: of the first cause; ``what`` is how it begins.
        numbers: how the first numbers that differ are told, ``None`` where none may; ``"*"``: either.
        change: made on the second side.
        both: made on both sides before.
        given: further arguments of both; ``more``: of the second side.
        around: environment variables of the second side; ``around_both``: of both.
        overlay: distributions that lie before the installed ones on the second side.
        checkpoint: given to both.
        script: a training script is recorded.
        first: not among the differences that the recorder and the comparison were written with.
    """

    name: str
    link: str
    what: str
    numbers: str | None
    change: Change = lambda project: None
    both: Change = lambda project: None
    given: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    around: Mapping[str, str] = field(default_factory=dict)
    around_both: Mapping[str, str] = field(default_factory=dict)
    overlay: tuple[str, ...] = ()
    checkpoint: bool = True
    script: bool = False
    first: bool = False


def settings(**values: object) -> Change:
    return lambda project: project.set(**values)


def edit(name: str, old: str, new: str) -> Change:
    return lambda project: project.edit(name, old, new)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def apply(project: Project) -> None:
        state = torch.load(project.folder / "ckpt.pth")
        change(state)
        torch.save(state, project.folder / "ckpt.pth")

    return apply


def repository(project: Project) -> None:
    (project.folder / ".gitignore").write_text("__pycache__\n")
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(project.folder), *name, *arguments], check=True, capture_output=True)


def picture(project: Project, name: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(project.folder / "pictures" / name)


def touch_pixel(project: Project) -> None:
    path = project.folder / "pictures" / "b.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4, 1] ^= 8
    Image.fromarray(pixels).save(path)


def in_a_set(project: Project) -> None:
    for number, name in enumerate(("c.png", "d.png", "e.png")):
        picture(project, name, number + 5)
    project.edit("data.py", "sorted(os.listdir(path))", "list(set(os.listdir(path)))")


def rename_picture(project: Project) -> None:
    (project.folder / "pictures" / "a.png").rename(project.folder / "pictures" / "c.png")


def sample(shift: float) -> Change:
    def apply(project: Project) -> None:
        values = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12).sin()
        values[0, 0, 0, 0] += shift
        torch.save(values, project.folder / "s.pt")

    return apply


def monitor(project: Project) -> None:
    """A watcher that somebody's machine loads as well, and that is not as innocent as it looks."""
    hook = "import torch\ntorch.nn.Linear.register_forward_hook\n"
    hook += "def watch(net):\n    net.act.register_forward_hook(lambda m, i, o: o * 1.001)\n"
    (project.folder / "monitor.py").write_text(hook)
    project.edit("model.py", "    return net.to(", "    import monitor\n    monitor.watch(net)\n    return net.to(")


def windows_line_ends(project: Project) -> None:
    path = project.folder / "ops.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def training(project: Project) -> None:
    (project.folder / "train.py").write_text(TRAIN)


def trained(old: str, new: str) -> Change:
    """A setting in the script that both sides have, read from a file that no recording knows of."""

    def apply(project: Project) -> None:
        training(project)
        project.edit("train.py", old, new)

    return apply


def args_file(project: Project) -> None:
    (project.folder / "args.json").write_text(json.dumps({"slope": 0.2}))


def export(project: Project) -> None:
    """The same file on both sides: names in it must not depend on the process."""
    target = project.folder / "model.onnx"
    code = (
        "import sys, torch, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, '.'); import model;"
        "net = model.build_model(); net.load_state_dict(torch.load('ckpt.pth')); net.eval();"
        "torch.onnx.export(net, (torch.load('s.pt'),), 'model.onnx', dynamo=False)"
    )
    sample(0.0)(project)
    subprocess.run([sys.executable, "-c", code], cwd=project.folder, check=True, capture_output=True)
    assert target.is_file()


PLANTS: tuple[Plant, ...] = (
    Plant(
        "interpolation, in a file read by hand",
        "data",
        "step resized",
        "data: step resized",
        settings(resize="NEAREST"),
    ),
    Plant(
        "interpolation, in the code",
        "code",
        "source file data.py",
        "data: step resized",
        edit("data.py", '"BILINEAR"', '"BICUBIC"'),
    ),
    Plant("channels of the image swapped", "data", "step channels", "data: step channels", settings(bgr=True)),
    Plant("order in the batch", "data", "input 0", "data: input 0", settings(order=[1, 0])),
    Plant("unsorted file list", "data", "step files", "data: step files", settings(reverse_listing=True)),
    Plant(
        "one weight of the checkpoint",
        "files",
        "checkpoint ckpt.pth",
        "weights: head.1.weight",
        weights(lambda state: state["head.1.weight"][1, 5].add_(0.5)),  # type: ignore[arg-type]
    ),
    Plant("dropout left on", "mode and flags", "training mode", "stages: drop", settings(dropout_on=True)),
    Plant("the model in training mode", "configuration", "mode", "stages: norm", more=("--mode", "train")),
    Plant("number of threads", "mode and flags", "threads", "*", more=("--threads", "2")),
    Plant("deterministic algorithms", "mode and flags", "deterministic_algorithms", "*", settings(deterministic=True)),
    Plant("TF32 allowed", "mode and flags", "", "*", settings(tf32=True)),
    Plant(
        "TF32 by a variable", "environment", "variable NVIDIA_TF32_OVERRIDE", "*", around={"NVIDIA_TF32_OVERRIDE": "1"}
    ),
    Plant("dtype", "configuration", "dtype", "weights: ", settings(dtype="bfloat16")),
    Plant(
        "an argument of the entry",
        "configuration",
        "entry_args.slope",
        "stages: act",
        args_file,
        more=("--entry-args", "args.json"),
    ),
    Plant(
        "the seed, without a checkpoint",
        "configuration",
        "seed",
        "weights: ",
        given=("--seed", "1"),
        more=("--seed", "2"),
        checkpoint=False,
    ),
    Plant(
        "a ready sample", "files", "input s.pt", "data: input 0", sample(1e-3), sample(0.0), given=("--input", "s.pt")
    ),
    Plant(
        "a nightly-like version of torch",
        "environment",
        "package torch",
        None,
        overlay=("torch-2.99.0.dev20260101+cpu",),
    ),
    Plant("numpy's major version", "environment", "package numpy", None, overlay=("numpy-1.26.4",)),
    Plant(
        "an uncommitted source file",
        "code",
        "source file ops.py",
        "stages: /mul#0",
        edit("ops.py", "x * 2.0", "x * 2.001"),
        repository,
    ),
    # Not among those that the comparison was written with.
    Plant("one pixel of one picture", "data", "step decoded@1", "data: step decoded@1", touch_pixel, first=True),
    Plant("a picture too many", "data", "step files", "data: step files", lambda p: picture(p, "0.png", 9), first=True),
    Plant("a picture renamed", "data", "step files", "data: step files", rename_picture, first=True),
    Plant(
        "scaled in float64, rounded once more",
        "data",
        "step channels",
        "data: step channels",
        settings(wide=True),
        edit(
            "data.py",
            "np.asarray(image, np.float32) / 255.0",
            "(np.asarray(image, np.float64) / 255.0 * 1.1 / 1.1).astype(np.float32) if FOUND.get('wide') "
            "else np.asarray(image, np.float32) / 255.0 * np.float32(1.1) / np.float32(1.1)",
        ),
        first=True,
    ),
    Plant(
        "noise of the preprocessing, never seeded",
        "random state",
        "numpy's generator",
        "data: ",
        both=edit(
            "data.py",
            "    return torch",
            "    batch[0] = batch[0] + np.random.rand(*batch[0].shape) * 0.01\n    return torch",
        ),
        first=True,
    ),
    Plant(
        "names kept in a set, another hash seed",
        "environment",
        "variable PYTHONHASHSEED",
        "data: step files",
        both=in_a_set,
        around_both={"PYTHONHASHSEED": "0"},
        around={"PYTHONHASHSEED": "3"},
        first=True,
    ),
    Plant(
        "flushed denormals",
        "mode and flags",
        "flush_denormal",
        "*",
        settings(flush=True),
        edit("model.py", "class Drop", "torch.set_flush_denormal(FOUND.get('flush', False))\n\n\nclass Drop"),
        first=True,
    ),
    Plant(
        "oneDNN off",
        "mode and flags",
        "mkldnn.enabled",
        "*",
        settings(plain=True),
        edit("model.py", "class Drop", "torch.backends.mkldnn.enabled = not FOUND.get('plain', False)\n\n\nclass Drop"),
        first=True,
    ),
    Plant(
        "a default dtype set in the code",
        "configuration",
        "dtype",
        "weights: ",
        settings(wide=True),
        edit(
            "model.py",
            "    net = Net(**given)",
            "    if FOUND.get('wide'):\n        torch.set_default_dtype(torch.float64)\n"
            "        FOUND['dtype'] = 'float64'\n    net = Net(**given)",
        ),
        first=True,
    ),
    Plant(
        "statistics of a norm warmed up",
        "weights",
        "norm.running_mean",
        "weights: norm.running_mean",
        settings(seed=1, warm=True),
        settings(seed=1),
        checkpoint=False,
        given=("--seed", "0"),
        first=True,
    ),
    Plant(
        "epsilon of a norm, by a variable of its own",
        "stages",
        "norm",
        "stages: norm",
        both=edit(
            "model.py",
            "nn.BatchNorm2d(8)",
            "nn.BatchNorm2d(8, eps=float(__import__('os').environ.get('OUR_EPS', '1e-5')))",
        ),
        around={"OUR_EPS": "1e-3"},
        first=True,
    ),
    Plant(
        "autocast inside of forward",
        "stages",
        "conv",
        "stages: conv",
        settings(amp=True),
        edit(
            "model.py",
            "        return self.head(",
            "        if FOUND.get('amp'):\n            with torch.autocast('cpu', torch.bfloat16):\n"
            "                x = self.conv(x).float()\n            x = scaled(self.drop(self.act(self.norm(x))))\n"
            "            return self.head(self.pool(x))\n        return self.head(",
        ),
        first=True,
    ),
    Plant(
        "a function of torch replaced",
        "stages",
        "act",
        "stages: act",
        settings(patched=True),
        edit(
            "model.py",
            "class Drop",
            "if FOUND.get('patched'):\n    _own = torch.nn.functional.leaky_relu\n"
            "    torch.nn.functional.leaky_relu = lambda x, *a: _own(x, *a) + 1e-3\n\n\nclass Drop",
        ),
        first=True,
    ),
    Plant("a hook of a module that one side loads", "code", "source file", "stages: ", monitor, first=True),
    Plant(
        "the checkpoint stored in half",
        "files",
        "checkpoint ckpt.pth",
        "weights: conv.weight",
        weights(
            lambda state: state.update({k: v.half().float() if v.is_floating_point() else v for k, v in state.items()})
        ),
        first=True,
    ),
    Plant(
        "two channels of a buffer swapped",
        "files",
        "checkpoint ckpt.pth",
        "weights: norm.running_var",
        weights(lambda state: state.update({"norm.running_var": state["norm.running_var"][[1, 0, 2, 3, 4, 5, 6, 7]]})),
        first=True,
    ),
    Plant(
        "another entry of the same file",
        "configuration",
        "entry",
        "stages: ",
        both=lambda p: p.edit(
            "model.py",
            "def build_model",
            "def other(**given):\n    return build_model(slope=0.3, **given)\n\n\ndef build_model",
        ),
        more=("--entry", "other"),
        first=True,
    ),
    Plant("line ends of a source file", "code", "source file ops.py", None, windows_line_ends, first=True),
    Plant(
        "PyTorch against ONNX Runtime",
        "configuration",
        "backend",
        "*",
        both=export,
        given=("--input", "s.pt"),
        more=("--onnx", "model.onnx"),
        first=True,
    ),
    Plant(
        "ONNX Runtime's optimisation",
        "configuration",
        "optimization",
        "*",
        both=export,
        given=("--input", "s.pt", "--onnx", "model.onnx"),
        more=("--optimization", "all"),
        first=True,
    ),
    # Training scripts.
    Plant(
        "training: order of the data",
        "data",
        "step batch 0/0",
        "data: step batch 0/0",
        settings(order=1),
        training,
        script=True,
    ),
    Plant(
        "training: transform",
        "data",
        "step batch 0/0",
        "data: step batch 0/0",
        settings(scale=1.5),
        training,
        script=True,
    ),
    Plant(
        "training: seed of the weights",
        "random state",
        "torch's generator",
        "weights: 0.weight",
        settings(seed=1),
        training,
        script=True,
    ),
    Plant(
        "training: initial weights", "weights", "0.bias", "weights: 0.bias", settings(bias=True), training, script=True
    ),
    Plant(
        "training: dropout",
        "stages",
        "step0.forward",
        "stages: step0.forward",
        settings(drop=0.5),
        training,
        script=True,
    ),
    Plant("training: loss", "stages", "step0.loss", "stages: step0.loss", settings(smooth=0.1), training, script=True),
    Plant(
        "training: clipped gradients",
        "stages",
        "step0.gradient.0.weight",
        "stages: step0.gradient",
        settings(clip=True),
        training,
        script=True,
    ),
    Plant(
        "training: learning rate",
        "stages",
        "step0.optimizer.0.weight",
        "stages: step0.optimizer",
        settings(lr=0.2),
        training,
        script=True,
    ),
    Plant(
        "training: labels",
        "data",
        "step batch 0/1",
        "data: step batch 0/1",
        settings(flip=True),
        trained("net = nn.Seq", "if FOUND.get('flip'):\n    y = 1 - y\nnet = nn.Seq"),
        script=True,
        first=True,
    ),
    Plant(
        "training: size of the batches",
        "data",
        "step batch 0/0",
        "data: step batch 0/0",
        settings(size=16),
        trained("batch_size=8", "batch_size=FOUND.get('size', 8)"),
        script=True,
        first=True,
    ),
    Plant(
        "training: weight decay",
        "stages",
        "step0.optimizer.0.weight",
        "stages: step0.optimizer",
        settings(decay=0.1),
        trained("momentum=0.9", "momentum=0.9, weight_decay=FOUND.get('decay', 0.0)"),
        script=True,
        first=True,
    ),
    Plant(
        "training: momentum, which shows in the second step",
        "stages",
        "step1.optimizer.0.weight",
        "stages: step1.optimizer",
        settings(momentum=0.8),
        trained("momentum=0.9", "momentum=FOUND.get('momentum', 0.9)"),
        script=True,
        first=True,
    ),
    Plant(
        "training: scheduler, which shows in the second step",
        "stages",
        "step1.optimizer.0.weight",
        "stages: step1.optimizer",
        settings(gamma=0.5),
        trained(
            "    optimizer.step()\n",
            "    optimizer.step()\n    for group in optimizer.param_groups:\n"
            "        group['lr'] *= FOUND.get('gamma', 1.0)\n",
        ),
        script=True,
        first=True,
    ),
    Plant(
        "training: forward in bfloat16",
        "mode and flags",
        "autocast",
        "stages: step0.forward",
        settings(amp=True),
        trained(
            "cross_entropy(net(xb)",
            "cross_entropy((torch.autocast('cpu', torch.bfloat16)(net)(xb).float() if FOUND.get('amp') else net(xb))",
        ),
        script=True,
        first=True,
    ),
    Plant(
        "training: a layer left out of the optimiser",
        "stages",
        "step0.gradient.0.weight",
        "stages: step0.gradient",
        settings(part=True),
        training,
        script=True,
        first=True,
    ),
    Plant(
        "training: files listed in another order",
        "data",
        "step files os.listdir",
        None,
        rename_picture,
        training,
        script=True,
        first=True,
    ),
)


@dataclass(frozen=True)
class Outcome:
    plant: Plant
    report: Report

    @property
    def named(self) -> bool:
        cause = self.report.verdict.first_cause
        plant = self.plant
        if cause is None or cause.link != plant.link or not cause.difference.what.startswith(plant.what):
            return False
        if plant.numbers == "*":
            return True
        return (
            cause.numbers is None
            if plant.numbers is None
            else bool(cause.numbers and cause.numbers.startswith(plant.numbers))
        )


def outcome(plant: Plant, folder: Path) -> Outcome:
    one = make_project(folder / "a" / "project", lambda job: 2)
    plant.both(one)
    shutil.copytree(one.folder, folder / "b" / "project", ignore=shutil.ignore_patterns("__pycache__"))
    other = Project(folder / "b" / "project", one.ask)
    plant.change(other)
    first = record(plant, one, plant.given, dict(plant.around_both), ())
    second = record(plant, other, (*plant.given, *plant.more), {**plant.around_both, **plant.around}, plant.overlay)
    return Outcome(plant, compare_recordings(first, second))


def record(
    plant: Plant, project: Project, more: Sequence[str], around: Mapping[str, str], overlay: Sequence[str]
) -> Path:
    target = project.folder.parent / "run.trace"
    paths = [str(ROOT)]
    for each in overlay:
        name, _, version = each.partition("-")
        place = project.folder.parent / "overlay" / f"{each}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        paths.insert(0, str(place.parent))
    if plant.script:
        argv = ["--script", "train.py", "--steps", "3"]
    else:
        sample_of = [] if "--input" in more else ["--preprocess", "data:load", "--raw", "pictures"]
        argv = ["model.py", *(["ckpt.pth"] if plant.checkpoint else []), *sample_of]
    threads = [] if "--threads" in more else ["--threads", "1"]
    command = ["record", *argv, "-q", "-o", str(target), *threads, *more]
    if not set(around) & set(AT_START):
        code, said = forked(command, project.folder, around, paths)
    else:
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **around}
        done = subprocess.run(
            [sys.executable, "-c", TOOL, *command],
            cwd=project.folder, env=surroundings, capture_output=True, text=True, check=False,
        )  # fmt: skip
        code, said = done.returncode, done.stderr
    if code:
        raise SystemExit(f"{plant.name}: exit {code}\n{said}")
    return target


def forked(command: Sequence[str], place: Path, around: Mapping[str, str], paths: Sequence[str]) -> tuple[int, str]:
    """Runs the command in a process that has torch loaded already; its exit code and what it wrote to stderr."""
    log = place.parent / "stderr.txt"
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()
    code = 70
    try:
        os.chdir(place)
        os.environ.update(around)
        here = str(ROOT / "tests" / "integration")
        sys.path[:] = [*paths, *(path for path in sys.path if path not in (here, str(ROOT), str(ROOT / "scripts")))]
        sys.argv = ["bisect-tool", *command]
        # A process of its own starts from states of its own.
        random.seed()
        np.random.seed()
        torch.seed()
        with open(log, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code = execute(tool, "bisect-tool", list(command))
    finally:
        os._exit(code)


def row(found: Outcome) -> str:
    plant, cause = found.plant, found.report.verdict.first_cause
    text = "-" if cause is None else f"{cause.link}: {cause.difference.what}"
    numbers = "-" if cause is None or cause.numbers is None else cause.numbers.replace("|", "\\|")
    name = f"{plant.name} \\*" if plant.first else plant.name
    return f"| {name} | {text} | {numbers} | {found.report.verdict.status} | {'yes' if found.named else '**no**'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", help="plants whose name holds one of these texts, by commas")
    parser.add_argument("--start", type=int, default=0, help="leave out so many; default: %(default)s")
    parser.add_argument("--keep", type=Path, help="folder for projects and recordings")
    options = parser.parse_args()
    chosen = [
        plant for plant in PLANTS if not options.only or any(text in plant.name for text in options.only.split(","))
    ][options.start :]
    print("| planted | first cause | first numbers that differ | verdict | as it must be |")
    print("|---|---|---|---|---|", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, plant in enumerate(chosen):
            place = (options.keep or Path(temporary)) / str(number)
            shutil.rmtree(place, ignore_errors=True)
            try:
                found.append(outcome(plant, place))
                print(row(found[-1]), flush=True)
            except SystemExit as error:
                print(f"| {plant.name} | {error} | - | - | **no** |".replace("\n", " "), flush=True)
    new = [each for each in found if each.plant.first]
    planted = sum(plant.first for plant in chosen)
    print(
        f"\n{sum(each.named for each in found)} of {len(chosen)} are named as the first cause; "
        f"of the {planted} marked \\*, {sum(each.named for each in new)}."
    )
    return 0 if sum(each.named for each in found) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A small project that tests record on "machine A" and, with one thing changed, on "machine B"."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bisect_tool.recorder import manifest_digest
from bisect_tool.recordings.compare_traces import compare_recordings
from bisect_tool.records import Report

FILES = {
    "ops.py": """
def scaled(x):
    # twice, as it was trained
    return x * 2.0
""",
    "settings.py": """
import json, pathlib
# Read by hand, so that no recording knows of it.
FOUND = json.loads((pathlib.Path(__file__).parent / "settings.json").read_text())
""",
    "model.py": """
import torch
from torch import nn
from ops import scaled
from settings import FOUND

torch.use_deterministic_algorithms(FOUND.get("deterministic", False))
torch.backends.cuda.matmul.allow_tf32 = FOUND.get("tf32", False)
if "precision" in FOUND:
    torch.set_float32_matmul_precision(FOUND["precision"])


class Drop(nn.Dropout):
    def train(self, mode=True):
        return super().train(mode or FOUND.get("dropout_on", False))


class Net(nn.Module):
    def __init__(self, slope=0.1):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.LeakyReLU(slope)
        self.drop = Drop(0.5)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 5))

    def forward(self, x):
        x = x.to(self.conv.weight.dtype)
        return self.head(self.pool(scaled(self.drop(self.act(self.norm(self.conv(x)))))))


def build_model(**given):
    if "seed" in FOUND:
        torch.manual_seed(FOUND["seed"])
    net = Net(**given)
    if FOUND.get("warm"):
        net.train()(torch.ones(2, 3, 12, 12))
    if FOUND.get("poke"):
        net.norm.bias.data[2] += 0.25
    return net.to(getattr(torch, FOUND.get("dtype", "float32")))
""",
    "data.py": """
import os
import numpy as np
import torch
from PIL import Image
from bisect_tool import tap
from settings import FOUND


def load(path):
    names = sorted(os.listdir(path))
    if FOUND.get("reverse_listing"):
        names = names[::-1]
    tap("files", names)
    batch = []
    for name in names:
        image = tap("decoded", Image.open(path / name).convert("RGB"))
        image = tap("resized", image.resize((12, 12), getattr(Image, FOUND.get("resize", "BILINEAR"))))
        array = np.asarray(image, np.float32) / 255.0
        batch.append(tap("channels", array[..., ::-1] if FOUND.get("bgr") else array))
    order = FOUND.get("order", [0, 1])
    return torch.from_numpy(np.stack(batch)[order].transpose(0, 3, 1, 2).copy())
""",
}


class Project:
    """Files in a folder, and the recorder's answers about them."""

    def __init__(self, folder: Path, ask: Callable[[dict[str, Any]], int]):
        self.folder = folder
        self.ask = ask

    def set(self, **settings: Any) -> None:
        (self.folder / "settings.json").write_text(json.dumps(settings))

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def record(
        self, name: str, *more: str, model: str = "model.py", ckpt: str | None = "ckpt.pth", ok: bool = True
    ) -> Path:
        """Makes a recording; returns its path. With other sample options in ``more`` the pictures are left out."""
        target = self.folder.parent / f"{name}.trace"
        sample = [] if "--input" in more else ["--preprocess", "data:load", "--raw", "pictures"]
        argv = [model, *([ckpt] if ckpt else []), *sample, "-o", str(target), "--threads", "1", *more]
        log = self.folder.parent / f"{name}.log"
        code = self.ask({"argv": argv, "cwd": str(self.folder), "log": str(log)})
        self.log = log.read_text()
        assert ok == (code == 0), self.log
        return target


def make_project(folder: Path, ask: Callable[[dict[str, Any]], int]) -> Project:
    """The project as machine A has it."""
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    project = Project(folder, ask)
    project.set()
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / name)
    torch.manual_seed(3)
    state = {
        "conv.weight": torch.randn(8, 3, 3, 3) * 0.3,
        "conv.bias": torch.randn(8),
        "norm.weight": torch.rand(8) + 0.5,
        "norm.bias": torch.randn(8),
        "norm.running_mean": torch.randn(8),
        "norm.running_var": torch.rand(8) + 0.5,
        "norm.num_batches_tracked": torch.tensor(7),
        "head.1.weight": torch.randn(5, 128) * 0.2,
        "head.1.bias": torch.randn(5),
    }
    torch.save(state, folder / "ckpt.pth")
    return project


def copied(project: Project, folder: Path) -> Project:
    """The same project on another machine."""
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return Project(folder, project.ask)


def server() -> Iterator[Callable[[dict[str, Any]], int]]:
    """Starts ``recording_server.py``; jobs go in, exit codes come out."""
    program = Path(__file__).with_name("recording_server.py")
    with subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None

        def ask(job: dict[str, Any]) -> int:
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield ask
        stdin.close()


def altered(bundle: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same recording as if something around the run had been otherwise; ``change`` edits the manifest."""
    import zipfile

    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                manifest = json.loads(data)
                change(manifest)
                manifest["digest"] = manifest_digest(manifest)
                data = json.dumps(manifest).encode()
            made.writestr(name, data)
    return target


def compared(expected: Path, actual: Path, **options: Any) -> Report:
    return compare_recordings(expected, actual, **options)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

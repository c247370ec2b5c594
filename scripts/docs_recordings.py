"""Writes what the examples of docs/recordings.md print into the page; called by ``scripts/docs-recordings``.

A block of the page that begins with ``<!-- output of NAME -->`` is what the scenario NAME prints here, at 80 columns. Lines
that a reader can do without are left out by rules, which are below; ``[...]`` stands for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recordings.md"
TOOL = "from bisect_tool.cli.main import bisect_tool; bisect_tool()"
BLOCK = re.compile(r"<!-- output of ([\w-]+) -->\n```\n(.*?)```\n", re.DOTALL)

TRAIN = """import json
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
inputs = torch.randn(64, 8)
targets = (inputs.sum(1) > 0).long()
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=json.load(open("settings.json"))["rate"])
for batch, wanted in DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(batch), wanted).backward()
    optimizer.step()
"""

NOISY = """import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.dropout(self.first(x), 0.5, training=True))


def build_model():
    torch.manual_seed(0)
    return Net()
"""


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What a command prints."""
    around = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", TOOL, *arguments], cwd=folder, env=around, capture_output=True, text=True, check=False
    )
    if done.returncode != code:
        raise SystemExit(f"bisect-tool {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def record(folder: Path, name: str, *arguments: str) -> None:
    run(folder, "record", *arguments, "-q", "--threads", "1", "-o", name, "--force")


def mobile(folder: Path) -> Path:
    """The example, with a second checkpoint in which one channel of one weight is 5 % off."""
    place = folder / "mobile"
    if not place.exists():
        place.mkdir()
        make = ROOT / "examples" / "mobile" / "make_data.py"
        subprocess.run([sys.executable, str(make), "--out", str(place)], check=True, capture_output=True)
        (place / "model.py").write_text((make.parent / "model.py").read_text())
        content = torch.load(place / "ckpt.pt")
        content["model_state_dict"]["module.blocks.2.depthwise.conv.weight"][3] *= 1.05
        torch.save(content, place / "ckpt-b.pt")
        record(place, "a.trace", "model.py", "ckpt.pt", "--input", "sample.npy")
    return place


def chain(folder: Path) -> str:
    place = mobile(folder)
    record(place, "b.trace", "model.py", "ckpt-b.pt", "--input", "sample.npy")
    return run(place, "compare", "a.trace", "b.trace", "-q", code=1)


def rounding(folder: Path) -> str:
    place = mobile(folder)
    slow = place / "otherwise"
    slow.mkdir(exist_ok=True)
    code = (place / "model.py").read_text()
    (slow / "model.py").write_text(code + "\n\nimport torch\n\ntorch.backends.mkldnn.enabled = False\n")
    for name in ("ckpt.pt", "sample.npy"):
        (slow / name).write_bytes((place / name).read_bytes())
    record(slow, "../c.trace", "model.py", "ckpt.pt", "--input", "sample.npy")
    return run(place, "compare", "a.trace", "c.trace", "-q")


def training(folder: Path) -> str:
    place = folder / "training"
    place.mkdir()
    (place / "train.py").write_text(TRAIN)
    for name, rate in (("check1.trace", 0.1), ("check2.trace", 0.11)):
        (place / "settings.json").write_text(f'{{"rate": {rate}}}')
        record(place, name, "--script", "train.py", "--steps", "3")
    return run(place, "compare", "check1.trace", "check2.trace", "-q", code=1)


def determinism(folder: Path) -> str:
    place = folder / "noisy"
    place.mkdir()
    (place / "model.py").write_text(NOISY)
    torch.save(torch.ones(2, 6), place / "sample.pt")
    return run(place, "determinism", "model.py", "--input", "sample.pt", "--no-onnx", "-q", code=1)


def _around_marks(lines: list[str]) -> Iterator[str]:
    """Of the stage table the rows around the first marked one; everything else as it is."""
    marked = {number for number, line in enumerate(lines) if re.match(r"\s*> ", line)}
    table = [number for number, line in enumerate(lines) if re.match(r"Stages under", line)]
    start = table[0] + 3 if table else len(lines)
    # A table ends with its legend, an empty line or the next heading.
    stop = next(
        (
            n
            for n in range(start, len(lines))
            if not lines[n].strip() or "growth:" in lines[n] or "first diverging stage" in lines[n]
        ),
        len(lines),
    )
    for number, line in enumerate(lines):
        near = any(abs(number - mark) <= 3 for mark in marked)
        yield line if not start <= number < stop or near or not marked else "[...]"


def _beginning_and_end(lines: list[str]) -> Iterator[str]:
    """The links that differ, and the answer."""
    keep = False
    for line in lines:
        if re.match(r"\S", line):
            keep = "DIFFERS" in line or line.startswith(("link", "DIVERGES"))
        yield line if keep else "[...]"


SCENARIOS: dict[str, tuple[Callable[[Path], str], Callable[[list[str]], Iterator[str]]]] = {
    "chain": (chain, _around_marks),
    "rounding": (
        rounding,
        lambda lines: iter(lines[lines.index(next(x for x in lines if x.lower().startswith("agrees"))) :]),
    ),
    "training": (training, _beginning_and_end),
    "determinism": (determinism, iter),
}


def shown(text: str, rule: Callable[[list[str]], Iterator[str]]) -> str:
    """A scenario's output as the page has it."""
    found: list[str] = []
    for line in rule([line.rstrip() for line in text.splitlines()]):
        if line != "[...]" or found[-1:] != ["[...]"]:
            found.append(line)
    return "\n".join(found).strip("\n") + "\n"


def plain(text: str) -> list[str]:
    """Lines with their numbers, their digests and the width of their columns left open."""
    words = re.sub(r"\b[0-9a-f]{12}\b", "#", text)
    words = re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", words)
    # Where a long line is folded depends on the length of its numbers.
    return re.sub(r"-{2,}", "-", words).split()


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    page = PAGE.read_text(encoding="utf-8")
    named = {name for name, _ in BLOCK.findall(page)}
    if named != set(SCENARIOS):
        raise SystemExit(f"{PAGE.name} shows {sorted(named)}, and there are {sorted(SCENARIOS)}")
    with tempfile.TemporaryDirectory() as temporary:
        new = {name: shown(make(Path(temporary)), rule) for name, (make, rule) in SCENARIOS.items()}
    other = [name for name, text in BLOCK.findall(page) if plain(text) != plain(new[name])]
    if check:
        print(
            "\n".join(f"{name} is not what is printed now:\n{new[name]}" for name in other) or "the page is up to date"
        )
        return 1 if other else 0
    page = BLOCK.sub(lambda found: f"<!-- output of {found[1]} -->\n```\n{new[found[1]]}```\n", page)
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(SCENARIOS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

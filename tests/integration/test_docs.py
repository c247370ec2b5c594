"""Every command of the documentation: those that show output do what is shown, the others run on a small model."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from pages import commands_of, execute_line, files_of, listed_commands, missing

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("**/*.md"))}

ELSEWHERE = {"data-files.md", "environments.md"}
"""Pages whose output is compared number by number in test_env_and_data.py."""

OTHER_PROGRAMS = {"pip", "dask", "git"}

NOT_HERE = ("bisect-tool releases ", "dask://HOST", "big_decoder_model.py")
"""What needs an index of packages, a cluster or a billion parameters is read by the command's own parser, and not run."""

MODEL = """import torch
from torch import nn


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
"""


TRAINING = """import argparse
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
net = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(4 * parser.parse_args().epochs):
    optimizer.zero_grad()
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
"""

SLOW = ("determinism", "--matrix")
"""Commands that start many processes; pages that show their output run the like."""


def is_script(line: str) -> bool:
    """Whether a command is a script of the project: most take minutes or hours, and write the page that names them."""
    return "scripts/" in line.split()[0] or line.startswith("python scripts/")


def shown(page: str) -> list[str]:
    """The commands of a page that show output, without the project's scripts."""
    return [command.line for command in commands_of(PAGES[page]) if not is_script(command.line)]


@pytest.fixture
def no_traces() -> Iterator[None]:
    """Modules that a page's scripts import are gone afterwards: the next page has others of the same name."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        place = getattr(sys.modules[name], "__file__", None)
        if place is not None and "site-packages" not in place and not Path(place).is_relative_to(ROOT / "bisect_tool"):
            del sys.modules[name]


LONG = (
    "tutorial.md",
    "how-to/agrees-on-cpu-not-on-cuda.md",
    "how-to/not-the-same-twice.md",
    "how-to/only-when-optimised.md",
)
"""Pages that start many processes, or calibrate; other tests run the like."""


def in_its_time(page: str) -> Any:
    """A page as a parameter, marked as slow if it is."""
    return pytest.param(page, marks=pytest.mark.slow) if page in LONG else page


@pytest.mark.parametrize("page", [in_its_time(page) for page in PAGES if shown(page) and page not in ELSEWHERE])
@pytest.mark.usefixtures("example_data", "no_traces")
def test_commands_do_what_is_shown(
    page: str, tmp_path: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command exits as the page says, and prints every line that it shows, in this order, numbers left open.

    CenterPoint is the small one: shapes are left open too.
    """
    for folder in ("configs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copytree(small_root, tmp_path, dirs_exist_ok=True)
    for name, text in files_of(PAGES[page]).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands_of(PAGES[page]):
        if is_script(command.line) or "make_data.py" in command.line:
            continue
        code, out = execute_line(command.line)
        assert (command.code or 0) == code, f"{command.line}\n{out}"
        assert [] == list(missing(command, out, shapes=False)), f"{command.line}\ndoes not print that, but\n{out}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with all names that the pages use for what is theirs."""
    import numpy as np
    import torch

    folder = tmp_path_factory.mktemp("own")
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    space: dict[str, object] = {}
    exec(MODEL, space)
    module = space["build_model"]()  # type: ignore[operator]
    for name in ("ckpt.pt", "ckpt.pth"):
        torch.save(module.state_dict(), folder / name)
    (folder / "samples").mkdir()
    for number in range(3):
        torch.save(torch.randn(2, 8), folder / "samples" / f"{number}.pt")
    shutil.copy(folder / "samples" / "0.pt", folder / "sample.pt")
    np.save(folder / "sample.npy", torch.load(folder / "sample.pt").numpy())
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        export = "bisect-divergence model.py ckpt.pth --input sample.pt -q --plots none"
        assert 0 == execute_line(f"{export} --keep-onnx model.onnx -o exported")[0]
        assert 0 == execute_line(f"{export} --onnx model.onnx -o reports/model/20260101-120000")[0]
        assert 0 == execute_line("bisect-tool calibrate model.py ckpt.pth --input samples/ -o tolerances.toml -q")[0]
        for name in ("a", "b"):
            assert 0 == execute_line(f"bisect-tool record model.py ckpt.pt --input sample.npy -o {name}.trace -q")[0]
        (folder / "bisect_recorder.py").write_text(execute_line("bisect-tool recorder")[1], encoding="utf-8")
        assert 0 == execute_line("bisect-tool env -o here.json")[0]
    shutil.copy(folder / "model.onnx", folder / "kept.onnx")
    shutil.copytree(folder / "reports" / "model" / "20260101-120000", folder / "report")
    case = '[case]\nmodel = "model.py"\ncheckpoint = "ckpt.pth"\ninput = ["sample.pt"]\n'
    (folder / "case.toml").write_text(case, encoding="utf-8")
    (folder / "train.py").write_text(TRAINING, encoding="utf-8")
    for name in ("clean.csv", "other.csv"):
        (folder / name).write_text("time,x\n0,0.25\n1,0.5\n", encoding="utf-8")
    (folder / "there.txt").write_text("requests==2.31.0\n", encoding="utf-8")
    return folder


README = (ROOT / "README.md").read_text(encoding="utf-8")
LISTED = list(dict.fromkeys(line for page in (README, *PAGES.values()) for line in listed_commands(page)))


def with_speed(line: str) -> Any:
    """A command as a parameter, marked as slow if it is."""
    return pytest.param(line, marks=pytest.mark.slow) if any(text in line for text in SLOW) else line


@pytest.mark.parametrize("line", [with_speed(line) for line in LISTED if not is_script(line)])
@pytest.mark.usefixtures("example_data", "no_traces")
def test_commands_without_output_run(
    line: str, own: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of a shell block is understood, and ends as the comparison of a model with its own export should."""
    if line.split()[0] in OTHER_PROGRAMS:
        return
    shutil.copytree(own, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if any(text in line for text in NOT_HERE):
        assert_is_understood(line)
        return
    if "examples/" in line or "configs/" in line:
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
        shutil.copytree(small_root, tmp_path, dirs_exist_ok=True)
        for page in PAGES.values():
            for name, text in files_of(page).items():
                (tmp_path / name).write_text(text, encoding="utf-8")
    line, _, target = line.partition(" > ")
    for made in re.findall(r"(?<= -o )\S+", line):
        # Nothing that is there is overwritten, nor a table's plots beside it.
        for stale in (Path(made), *tmp_path.glob(f"{Path(made).stem}.*.[ps][nv]g")):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    code, out = execute_line(line)
    if target:
        Path(target).write_text(out, encoding="utf-8")
    # Emulated TF32 is further off than a healthy export may be.
    assert int("tf32" in line) == code, out


def assert_is_understood(line: str) -> None:
    """The command's parser takes all arguments."""
    from bisect_tool.cli.run import run
    from bisect_tool.cli.tool import tool

    arguments = shlex.split(line)[1:]
    if line.startswith("bisect-divergence"):
        assert_parsed(run, arguments)
        return
    with tool.make_context("bisect-tool", arguments[:1], resilient_parsing=True) as context:
        _, command, _ = tool.resolve_command(context, arguments[:1])
        assert command is not None
        assert_parsed(command, arguments[1:])


def assert_parsed(command: Any, arguments: list[str]) -> None:
    command.make_context("command", arguments)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_pages_name_exist(page: str) -> None:
    """They can be run as they stand there."""
    lines = [command.line for command in commands_of(PAGES[page])] + listed_commands(PAGES[page])
    for line in filter(is_script, lines):
        first, second, *_ = [*line.split(), ""]
        path = ROOT / (second if first == "python" else first)
        assert path.is_file(), line
        assert first == "python" or path.stat().st_mode & 0o111, line


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_are_run(page: str) -> None:
    """What looks like a command in another kind of block would be run by nobody."""
    rest = re.sub(r"^```(console|sh)\n.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    fenced = "".join(re.findall(r"^```\w*\n.*?^```$", rest, re.DOTALL | re.MULTILINE))
    found = re.findall(r"^(?:\$ .+|(?:bisect-divergence|bisect-tool) .+)$", fenced, re.MULTILINE)
    assert [] == [line for line in found if "[OPTIONS]" not in line]

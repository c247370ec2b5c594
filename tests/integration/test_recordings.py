"""Two recordings that differ in one planted thing: it is named as the first cause."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Project, altered, compared, copied, make_project, server

from bisect_tool.records import FirstCause, Link, Report


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[[dict[str, Any]], int]]:
    yield from server()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, ask: Callable[[dict[str, Any]], int]) -> Project:
    """Machine A."""
    return make_project(tmp_path_factory.mktemp("a") / "project", ask)


@pytest.fixture(scope="module")
def first(home: Project) -> Path:
    """Machine A's recording."""
    return home.record("a")


@pytest.fixture
def other(home: Project, tmp_path: Path) -> Project:
    """Machine B, where nothing is changed yet."""
    return copied(home, tmp_path / "b" / "project")


def cause_of(report: Report) -> FirstCause:
    assert report.verdict.first_cause is not None
    return report.verdict.first_cause


def link(report: Report, name: str) -> Link:
    return next(each for each in report.chain if each.link == name)


def test_nothing_changed(first: Path, other: Project) -> None:
    """The same project elsewhere, in another process: no link differs, every number is the same."""
    report = compared(first, other.record("b"))
    assert "agrees" == report.verdict.status
    assert {"same"} == {each.status for each in report.chain}, report.chain
    assert report.verdict.first_cause is None
    assert all(result.total.differing == 0 for row in report.stages for result in row.results.values())
    assert ["step files", "step decoded"] == _steps(first)[:2]


def _steps(path: Path) -> list[str]:
    from bisect_tool.recordings.bundles import open_bundle

    with open_bundle(path) as bundle:
        return [f"step {entry['name']}" for entry in bundle.manifest["data"]["taps"]]


# name, what is changed by settings that no recording knows of, link, difference, first numbers
SETTINGS: list[tuple[str, dict[str, Any], str, str, str | None]] = [
    ("interpolation", {"resize": "NEAREST"}, "data", "step resized", "data: step resized"),
    ("channel order", {"bgr": True}, "data", "step channels", "data: step channels"),
    ("batch order", {"order": [1, 0]}, "data", "input 0", "data: input 0"),
    ("unsorted file list", {"reverse_listing": True}, "data", "step files", "data: step files"),
    (
        "one weight of the code",
        {"poke": True, "_no_ckpt": True, "seed": 1},
        "weights",
        "norm.bias",
        "weights: norm.bias",
    ),
    ("dropout left on", {"dropout_on": True}, "mode and flags", "training mode", "stages: drop"),
    ("deterministic flag", {"deterministic": True}, "mode and flags", "deterministic_algorithms", None),
    ("TF32 flag", {"tf32": True}, "mode and flags", "", None),
    ("matmul precision", {"precision": "medium"}, "mode and flags", "", None),
    ("dtype", {"dtype": "bfloat16"}, "configuration", "dtype", "weights: "),
]


@pytest.mark.parametrize(("name", "settings", "where", "what", "numbers"), SETTINGS, ids=[case[0] for case in SETTINGS])
def test_planted_by_settings(
    home: Project,
    first: Path,
    other: Project,
    name: str,
    settings: dict[str, Any],
    where: str,
    what: str,
    numbers: str | None,
) -> None:
    """Nothing tells of the change but what it does."""
    settings = dict(settings)
    ckpt = None if settings.pop("_no_ckpt", False) else "ckpt.pth"
    if ckpt is None:
        home.set(seed=1)
        first = home.record("a-seeded", ckpt=None)
        home.set()
    other.set(**settings)
    report = compared(first, other.record("b", ckpt=ckpt))
    cause = cause_of(report)
    if name == "unsorted file list":
        assert "the same 2 in another order" == cause.difference.note
    assert (where, what or cause.difference.what) == (cause.link, cause.difference.what)
    if numbers is None:
        assert cause.numbers is None or cause.numbers.startswith("stages: ")
    else:
        assert cause.numbers is not None and cause.numbers.startswith(numbers)
    if numbers is not None and not numbers.startswith("weights: norm"):
        assert "diverges" == report.verdict.status


def test_interpolation_in_the_code(first: Path, other: Project) -> None:
    """Where the code says it, the code is the cause, and the step is the first number."""
    other.edit("data.py", '"BILINEAR"', '"BICUBIC"')
    cause = cause_of(compared(first, other.record("b")))
    assert ("code", "source file data.py") == (cause.link, cause.difference.what)
    assert cause.numbers is not None and cause.numbers.startswith("data: step resized")


def test_one_changed_weight(first: Path, other: Project) -> None:
    """The checkpoint is named, and in it the weight, with how far it is off."""
    state = torch.load(other.folder / "ckpt.pth")
    state["head.1.weight"][1, 5] += 0.5
    torch.save(state, other.folder / "ckpt.pth")
    report = compared(first, other.record("b"))
    cause = cause_of(report)
    assert ("files", "checkpoint ckpt.pth") == (cause.link, cause.difference.what)
    assert "1 of 9 weights differs: head.1.weight" in str(cause.difference.note)
    (weight,) = link(report, "weights").differences
    real = 0.5 / float(torch.load(first.parent / "project" / "ckpt.pth")["head.1.weight"].norm())
    assert weight.error == pytest.approx(real, rel=0.3)
    assert "head.1" == report.verdict.first_over_tolerance.stage  # type: ignore[union-attr]


def test_another_checkpoint(first: Path, other: Project) -> None:
    """All weights differ."""
    state = {key: value + 1 for key, value in torch.load(other.folder / "ckpt.pth").items()}
    torch.save(state, other.folder / "other.pth")
    cause = cause_of(compared(first, other.record("b", ckpt="other.pth")))
    assert "files" == cause.link and "8 of 9 weights differ" in str(cause.difference.note)


def test_a_checkpoint_saved_again(first: Path, other: Project) -> None:
    """Other bytes, the same weights: told, and known to be harmless."""
    state = torch.load(other.folder / "ckpt.pth")
    torch.save({"state_dict": state, "epoch": 7}, other.folder / "ckpt.pth")
    report = compared(first, other.record("b"))
    (difference,) = link(report, "files").differences
    assert "none" == difference.reach and "agrees" == report.verdict.status
    assert "same" == link(report, "weights").status


def test_another_input_file(home: Project, other: Project) -> None:
    """A ready sample that is another one."""
    torch.manual_seed(0)
    sample = torch.randn(2, 3, 12, 12)
    torch.save(sample, home.folder / "s.pt")
    sample[0, 0, 0, 0] += 1e-3
    torch.save(sample, other.folder / "s.pt")
    pair = home.record("a-sample", "--input", "s.pt"), other.record("b", "--input", "s.pt")
    cause = cause_of(compared(*pair))
    assert ("files", "input s.pt") == (cause.link, cause.difference.what)
    assert cause.numbers is not None and cause.numbers.startswith("data: input 0")


def test_thread_count(first: Path, other: Project) -> None:
    """Threads, whether a number moved or not."""
    report = compared(first, other.record("b", "--threads", "2"))
    assert ("mode and flags", "threads") == (cause_of(report).link, cause_of(report).difference.what)
    assert "agrees" == report.verdict.status


def test_training_mode(first: Path, other: Project) -> None:
    """The whole model in training: batch statistics come first, then dropout."""
    report = compared(first, other.record("b", "--mode", "train"))
    assert ("configuration", "mode") == (cause_of(report).link, cause_of(report).difference.what)
    assert "differs" == link(report, "mode and flags").status


def test_another_seed_option(home: Project, other: Project) -> None:
    """Weights that the seed makes."""
    pair = home.record("a-seed", "--seed", "1", ckpt=None), other.record("b", "--seed", "2", ckpt=None)
    cause = cause_of(compared(*pair))
    assert ("configuration", "seed") == (cause.link, cause.difference.what)
    assert cause.numbers is not None and cause.numbers.startswith("weights: ")


def test_no_seed_at_all(home: Project, other: Project) -> None:
    """Each process starts from another state, and building draws from it."""
    cause = cause_of(compared(home.record("a-none", ckpt=None), other.record("b", ckpt=None)))
    assert ("random state", "torch's generator") == (cause.link, cause.difference.what)
    assert "building the model" in str(cause.difference.note)


def test_another_seed_in_the_code(home: Project, other: Project) -> None:
    """A seed that nobody told: the state after building says it."""
    home.set(seed=1)
    one = home.record("a-own-seed", "--seed", "0", ckpt=None)
    home.set()
    other.set(seed=2)
    cause = cause_of(compared(one, other.record("b", "--seed", "0", ckpt=None)))
    assert ("random state", "torch's generator") == (cause.link, cause.difference.what)


def test_a_warm_up_is_no_seed(home: Project, other: Project) -> None:
    """It draws numbers too, for its dropout; but what it leaves behind are statistics, and those are named."""
    home.set(seed=1)
    one = home.record("a-cold", "--seed", "0", ckpt=None)
    home.set()
    other.set(seed=1, warm=True)
    cause = cause_of(compared(one, other.record("b", "--seed", "0", ckpt=None)))
    assert ("weights", "norm.running_mean") == (cause.link, cause.difference.what)


def test_entry_arguments(first: Path, other: Project) -> None:
    """The argument is named with both values."""
    (other.folder / "args.json").write_text(json.dumps({"slope": 0.2}))
    report = compared(first, other.record("b", "--entry-args", "args.json"))
    cause = cause_of(report)
    assert ("configuration", "entry_args.slope", "0.2") == (cause.link, cause.difference.what, cause.difference.actual)
    assert "act" == report.verdict.first_over_tolerance.stage  # type: ignore[union-attr]


def test_comments_alone(first: Path, other: Project) -> None:
    """Another comment is another file, and no other code."""
    other.edit("ops.py", "# twice, as it was trained", "# doubled\n")
    report = compared(first, other.record("b"))
    (difference,) = link(report, "code").differences
    assert ("none", "only comments or layout differ") == (difference.reach, difference.note)


# -- scripts ----------------------------------------------------------------------------------------------------------

TRAIN = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from settings import FOUND

names = os.listdir("pictures")
for name in reversed(names) if FOUND.get("reversed") else names:
    pass
torch.manual_seed(FOUND.get("seed", 0))
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(5)) * FOUND.get("scale", 1.0)
y = (x.sum(1) > 0).long()
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(FOUND.get("drop", 0.0)), nn.Linear(16, 2))
if FOUND.get("bias"):
    nn.init.constant_(net[0].bias, 0.1)
order = torch.Generator().manual_seed(FOUND.get("order", 0))
trained = (net[3] if FOUND.get("part") else net).parameters()
optimizer = torch.optim.SGD(trained, lr=FOUND.get("lr", 0.1), momentum=0.9)
for xb, yb in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=order):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(xb), yb, label_smoothing=FOUND.get("smooth", 0.0))
    loss.backward()
    if FOUND.get("clip"):
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    optimizer.step()
raise SystemExit("never reached: three steps are enough")
"""

TRAINED: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("order", {"order": 1}, "data", "step batch 0/0", "the data's order"),
    ("transform", {"scale": 1.5}, "data", "step batch 0/0", "the transform"),
    ("seed", {"seed": 1}, "random state", "torch's generator", "building the model"),
    ("initial weights", {"bias": True}, "weights", "0.bias", "1 of 4 weights differs"),
    ("forward", {"drop": 0.5}, "stages", "step0.forward", ""),
    ("loss", {"smooth": 0.1}, "stages", "step0.loss", ""),
    ("gradient", {"clip": True}, "stages", "step0.gradient.0.weight", ""),
    ("optimiser", {"lr": 0.2}, "stages", "step0.optimizer.0.weight", ""),
    ("a layer left out", {"part": True}, "stages", "step0.gradient.0.weight", "on one side only"),
]


@pytest.fixture(scope="module")
def trained(home: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """Machine A's training, three steps of it."""
    project = copied(home, tmp_path_factory.mktemp("train") / "project")
    (project.folder / "train.py").write_text(TRAIN)
    return project, _train(project, "a")


def _train(project: Project, name: str) -> Path:
    target = project.folder.parent / f"{name}.trace"
    log = project.folder.parent / f"{name}.log"
    argv = ["--script", "train.py", "--steps", "3", "-o", str(target), "--threads", "1"]
    assert 0 == project.ask({"argv": argv, "cwd": str(project.folder), "log": str(log)}), log.read_text()
    return target


@pytest.mark.parametrize(("name", "settings", "where", "what", "note"), TRAINED, ids=[case[0] for case in TRAINED])
def test_planted_in_training(
    trained: tuple[Project, Path], tmp_path: Path, name: str, settings: dict[str, Any], where: str, what: str, note: str
) -> None:
    """Order, transform, initial weights, forward, loss, gradient or optimiser."""
    other = copied(trained[0], tmp_path / "b")
    other.set(**settings)
    cause = cause_of(compared(trained[1], _train(other, "b")))
    assert (where, what) == (cause.link, cause.difference.what)
    assert note in str(cause.difference.note)


def test_training_twice(trained: tuple[Project, Path], tmp_path: Path) -> None:
    """Nothing differs, and what the script patched in torch is back."""
    report = compared(trained[1], _train(copied(trained[0], tmp_path / "b"), "b"))
    assert {"same", "unknown"} >= {each.status for each in report.chain}
    assert "agrees" == report.verdict.status and report.verdict.first_cause is None


# -- repositories -----------------------------------------------------------------------------------------------------


def _git(folder: Path, *arguments: str) -> None:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def cloned(home: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """Machine A's project in a repository, and its recording."""
    project = copied(home, tmp_path_factory.mktemp("git") / "project")
    (project.folder / ".gitignore").write_text("__pycache__\n")
    (project.folder / "notes.txt").write_text("as it was\n")
    _git(project.folder, "init", "-q")
    _git(project.folder, "add", ".")
    _git(project.folder, "commit", "-q", "-m", "first")
    return project, project.record("a-git")


def test_a_dirty_source_file(cloned: tuple[Project, Path], tmp_path: Path) -> None:
    """The file that the model uses, that it is not committed, and the first stage that it changes."""
    other = copied(cloned[0], tmp_path / "b")
    other.edit("ops.py", "x * 2.0", "x * 2.001")
    cause = cause_of(compared(cloned[1], other.record("b")))
    assert ("code", "source file ops.py") == (cause.link, cause.difference.what)
    assert "uncommitted changes in actual" in str(cause.difference.note)
    assert cause.numbers is not None and cause.numbers.startswith("stages: /mul#0")


def test_a_dirty_file_that_is_not_used(cloned: tuple[Project, Path], tmp_path: Path) -> None:
    """Told, and marked: it cannot have changed a number."""
    other = copied(cloned[0], tmp_path / "b")
    (other.folder / "notes.txt").write_text("otherwise\n")
    report = compared(cloned[1], other.record("b"))
    cause = cause_of(report)
    assert ("uncommitted notes.txt", "none", None) == (cause.difference.what, cause.difference.reach, cause.numbers)
    assert "can't have changed one" in report.verdict.summary[0]


def test_another_commit_with_the_same_files(cloned: tuple[Project, Path], tmp_path: Path) -> None:
    """What is used is compared, not the commit's name."""
    other = copied(cloned[0], tmp_path / "b")
    (other.folder / "notes.txt").write_text("otherwise\n")
    _git(other.folder, "commit", "-qam", "second")
    (difference,) = link(compared(cloned[1], other.record("b")), "code").differences
    assert ("git commit", "none") == (difference.what, difference.reach)


# -- surroundings, by manifests that were edited ----------------------------------------------------------------------


def _package(name: str, version: str, *, imported: bool = True) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["environment"]["distributions"][name] = version
        if imported:
            manifest["provenance"]["imported"] = sorted({*manifest["provenance"]["imported"], name})

    return change


def _torch(version: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["provenance"]["torch"]["torch"] = version
        manifest["environment"]["distributions"]["torch"] = version

    return change


def _surroundings(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["environment"].update(values)


def _submodule(manifest: dict[str, Any]) -> None:
    manifest["provenance"]["code"]["git"]["submodules"] = {"third_party/ops": "0123456789ab"}


PLANTED_AROUND: list[tuple[str, Callable[[dict[str, Any]], None], str, str, str]] = [
    ("nightly", _torch("2.14.0.dev20260101+cpu"), "environment", "package torch", "nightly"),
    ("package version", _package("numpy", "1.26.4"), "environment", "package numpy", "2"),
    ("image library", _package("pillow", "9.0.0"), "environment", "package pillow", ""),
    ("Python", _surroundings(python="3.8.10"), "environment", "Python", ""),
    ("processor", _surroundings(processor="Another CPU"), "environment", "processor", "rounding"),
    (
        "TF32 variable",
        _surroundings(variables={"NVIDIA_TF32_OVERRIDE": "1"}),
        "environment",
        "variable NVIDIA_TF32_OVERRIDE",
        "",
    ),
]


@pytest.mark.parametrize(
    ("name", "change", "where", "what", "note"), PLANTED_AROUND, ids=[c[0] for c in PLANTED_AROUND]
)
def test_planted_around_the_run(
    first: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None], where: str, what: str, note: str
) -> None:
    """Numbers are the same, so that only what surrounds them can be named."""
    report = compared(first, altered(first, tmp_path / "b.trace", change))
    cause = cause_of(report)
    assert (where, what, None) == (cause.link, cause.difference.what, cause.numbers)
    assert note in str(cause.difference.note)
    assert "agrees" == report.verdict.status


def test_a_package_that_is_not_used(first: Path, tmp_path: Path) -> None:
    """Of a version that nobody imports no number can come."""
    report = compared(first, altered(first, tmp_path / "b.trace", _package("rich", "1.0", imported=False)))
    assert "none" == cause_of(report).difference.reach


def test_versions_do_not_hide_what_changed_the_numbers(other: Project, first: Path) -> None:
    """On another machine much differs: what explains the size of the difference is named, the rest as further differences."""
    other.set(dropout_on=True)
    made = altered(other.record("b"), other.folder.parent / "c.trace", _torch("2.14.0.dev20260101+cpu"))
    report = compared(first, altered(made, other.folder.parent / "d.trace", _surroundings(processor="Another CPU")))
    cause = cause_of(report)
    assert ("mode and flags", "training mode") == (cause.link, cause.difference.what)
    assert "environment: package torch" in cause.others


def test_rounding_is_put_down_to_what_makes_rounding(home: Project, first: Path, tmp_path: Path) -> None:
    """A stage that differs in its last bits on another processor."""
    other = copied(home, tmp_path / "b")
    other.edit("ops.py", "x * 2.0", "x * 1.9999999")
    made = other.record("b")

    def change(manifest: dict[str, Any]) -> None:
        manifest["environment"]["processor"] = "Another CPU"
        manifest["provenance"]["code"] = json.loads(json.dumps(_manifest(first)["provenance"]["code"]))

    report = compared(first, altered(made, tmp_path / "c.trace", change))
    assert ("environment", "processor") == (cause_of(report).link, cause_of(report).difference.what)
    assert "agrees" == report.verdict.status


def _manifest(path: Path) -> dict[str, Any]:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        found: dict[str, Any] = json.loads(archive.read("manifest.json"))
    return found

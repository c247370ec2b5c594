"""Globs over stages, sizes, case files and tolerances: what a user writes, and what is said when it is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bisect_tool.cli.settings import KEYS, read_case_file
from bisect_tool.errors import EXIT_USAGE, BisectError
from bisect_tool.globs import matches
from bisect_tool.reporters.wording import tolerance_text
from bisect_tool.sizes import parse_size
from bisect_tool.tolerances import DEFAULT_REL_L2, make_tolerance

# -- globs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "hit"),
    [
        ("backbone.blocks.*", "backbone.blocks.0", True),
        ("backbone.blocks.*", "backbone.blocks.0.conv", False),
        ("backbone.blocks.*", "backbone.blocks", False),
        ("backbone.blocks.*", "backbone.blocks.0/add#0", False),
        ("backbone.**", "backbone.blocks.0.conv", True),
        ("backbone.**", "backbone.blocks.0/add#0", True),
        ("backbone**", "backbone", True),
        ("**", "", True),
        ("*", "conv", True),
        ("*", "a.b", False),
        ("**.conv", "a.b.conv", True),
        ("**.conv", "a.b.conv2", False),
        ("a.*.conv", "a.b.conv", True),
        ("a.*.conv", "a.b.c.conv", False),
        ("a.?", "a.1", True),
        ("a.?", "a.12", False),
        ("a?b", "a.b", False),
        ("*/add#*", "block/add#1", True),
        ("conv", "conv1", False),
        ("conv", "xconv", False),
        ("a.b", "a_b", False),
        ("x[0]", "x[0]", True),
        ("x[0]", "x0", False),
        ("a+", "aa", False),
    ],
)
def test_globs(glob: str, path: str, hit: bool) -> None:
    """``*`` and ``?`` stay in one part of the path, ``**`` does not; everything else is meant literally."""
    assert matches(path, glob) is hit


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000", 1000),
        ("10B", 10),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("256MiB", 256 << 20),
        ("256 MiB", 256 << 20),
        (" 2GB ", 2_000_000_000),
        ("1gib", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5 kib", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Decimal and binary units, fractions, spaces, any case."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "-1GiB", "GiB", "1TB", "1 Gi", "one", "1e400", "nan", "inf", "1GiBB", "1,5GiB", "0.1B", "--"],
)
def test_bad_sizes_are_refused(text: str) -> None:
    """With the text as given, and an example."""
    with pytest.raises(BisectError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint is not None and "GiB" in caught.value.hint
    assert caught.value.exit_code == EXIT_USAGE


# -- case files -------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "case.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(path: Path) -> str:
    with pytest.raises(BisectError) as caught:
        read_case_file(path)
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.hint
    assert str(path) in caught.value.message
    return f"{caught.value.message}\n{caught.value.hint}"


def test_keys_become_parameters(tmp_path: Path) -> None:
    """From every section, under the command's names."""
    path = write(
        tmp_path,
        '[case]\nname = "demo"\nallow_pickle = true\n[export]\nopset = 17\n[tolerance]\nmax_abs = 0.01\n'
        '[report]\nlevel = "op"\n[run]\nmemory_budget = "1GiB"\nthreads = 2\n',
    )
    assert read_case_file(path) == {
        "name": "demo",
        "allow_pickle": True,
        "opset": 17,
        "max_abs": 0.01,
        "level": "op",
        "memory_budget": "1GiB",
        "threads": 2,
    }


def test_an_empty_case_file_sets_nothing(tmp_path: Path) -> None:
    """It is no error."""
    assert read_case_file(write(tmp_path, "")) == {}


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs; absolute ones stay."""
    monkeypatch.chdir("/")
    folder = tmp_path / "configs"
    folder.mkdir()
    path = write(
        folder,
        '[case]\nmodel = "../model.py"\ncheckpoint = "ckpt.pth"\ninput = ["a.pt", "/abs/b.pt"]\nonnx = "m.onnx"\n'
        '[report]\noutput = "out"\n',
    )
    found = read_case_file(path)
    assert Path(found["model"]).resolve() == tmp_path / "model.py"
    assert found["checkpoint"] == str(folder / "ckpt.pth")
    assert found["inputs"] == [str(folder / "a.pt"), "/abs/b.pt"]
    assert found["onnx"] == str(folder / "m.onnx")
    assert found["output"] == str(folder / "out")


def test_a_relative_config_path_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a later change of folder does no harm."""
    write(tmp_path, '[case]\ncheckpoint = "ckpt.pth"\n')
    monkeypatch.chdir(tmp_path)
    assert read_case_file(Path("case.toml"))["checkpoint"] == str(tmp_path / "ckpt.pth")


def test_a_model_may_be_an_import_path(tmp_path: Path) -> None:
    """``package.module:NAME`` is no file, and stays as it is."""
    assert read_case_file(write(tmp_path, '[case]\nmodel = "package.module:Net"\n'))["model"] == "package.module:Net"


@pytest.mark.parametrize("key", ["groups", "stages"])
def test_one_glob_is_a_list_of_one(tmp_path: Path, key: str) -> None:
    """A single string does where several may stand."""
    assert read_case_file(write(tmp_path, f'[report]\n{key} = "backbone.*"\n'))[key] == ["backbone.*"]


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    """The known ones are listed."""
    text = message_of(write(tmp_path, "[cases]\nx = 1\n"))
    assert "[cases]" in text
    assert all(section in text for section in KEYS)


def test_a_key_outside_of_sections_is_refused(tmp_path: Path) -> None:
    """Also one that has a section's name."""
    assert "model" in message_of(write(tmp_path, 'model = "model.py"\n'))
    assert "[case]" in message_of(write(tmp_path, "case = 3\n"))


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """The keys of its section are listed."""
    text = message_of(write(tmp_path, "[tolerance]\nmaxabs = 1\n"))
    assert "'maxabs' in [tolerance]" in text
    assert "max_abs, atol, rtol" in text


def test_broken_toml_is_refused(tmp_path: Path) -> None:
    """With the place."""
    text = message_of(write(tmp_path, "[case\n"))
    assert "not valid TOML" in text and "line 1" in text


def test_a_missing_case_file_is_refused(tmp_path: Path) -> None:
    """So is a folder, and a file that is no text."""
    assert "cannot be read" in message_of(tmp_path / "nothing.toml")
    assert "cannot be read" in message_of(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in message_of(binary)


@pytest.mark.parametrize(
    "line", ["checkpoint = 3", "model = 3", "model = [1]", "input = 3", "input = [3]", "onnx = true", "raw = {}"]
)
def test_a_path_of_another_type_is_refused(tmp_path: Path, line: str) -> None:
    """A number where a path belongs is the user's error, not a crash."""
    assert line.split()[0] in message_of(write(tmp_path, f"[case]\n{line}\n"))


@pytest.mark.parametrize("key", ["groups", "stages"])
def test_a_list_of_another_type_is_refused(tmp_path: Path, key: str) -> None:
    """So is a number where globs belong."""
    assert key in message_of(write(tmp_path, f"[report]\n{key} = 3\n"))


# -- tolerances -------------------------------------------------------------------------------------------------------


def test_the_three_forms_of_tolerance() -> None:
    """Default, max_abs alone, atol and rtol together; each says what it is."""
    default = make_tolerance(None, None, None)
    assert (default.source, default.rel_l2, default.max_abs, default.atol) == ("default", DEFAULT_REL_L2, None, None)
    assert "1.0e-04 (float32)" in tolerance_text(default)
    single = make_tolerance(0.01, None, None)
    assert (single.source, single.max_abs, single.rel_l2, single.atol) == ("user", 0.01, None, None)
    assert "max abs 1.0e-02, given by the user" == tolerance_text(single)
    both = make_tolerance(None, 1e-5, 0.0)
    assert (both.source, both.atol, both.rtol, both.max_abs) == ("user", 1e-5, 0.0, None)
    assert tolerance_text(both).startswith("atol 1.0e-05 + rtol 0")


def test_zero_is_a_tolerance() -> None:
    """Not taken for "not given"."""
    assert make_tolerance(0.0, None, None).max_abs == 0.0
    assert make_tolerance(None, 0.0, 0.0).atol == 0.0


@pytest.mark.parametrize("limit", [-1e-9, math.nan, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_negative_and_nan_tolerances_are_refused(limit: float, place: int) -> None:
    """The option is named."""
    given: list[float | None] = [None, 1.0, 1.0] if place else [None, None, None]
    given[place] = limit
    with pytest.raises(BisectError) as caught:
        make_tolerance(*given)
    assert ("--max-abs", "--atol", "--rtol")[place] in caught.value.message


@pytest.mark.parametrize(("given", "missing"), [((None, 1e-3, None), "--rtol"), ((None, None, 1e-3), "--atol")])
def test_atol_and_rtol_go_together(given: tuple[None, float | None, float | None], missing: str) -> None:
    """The missing one is named, and how to leave it out."""
    with pytest.raises(BisectError) as caught:
        make_tolerance(*given)
    assert missing in caught.value.message
    assert caught.value.hint is not None and f"{missing} 0" in caught.value.hint


@pytest.mark.parametrize("given", [(0.1, 0.1, 0.1), (0.1, 0.1, None), (0.1, None, 0.1)])
def test_two_forms_at_once_are_refused(given: tuple[float, float | None, float | None]) -> None:
    """They exclude each other."""
    with pytest.raises(BisectError, match="exclude"):
        make_tolerance(*given)

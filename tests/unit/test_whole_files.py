"""Files are written whole or not at all; a full disk is played by a limit of the size of files."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bisect_tool.backends.case import keep_file
from bisect_tool.errors import BisectError
from bisect_tool.whole_files import write_whole


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may have more than 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_text_bytes_and_copies(tmp_path: Path) -> None:
    """Each kind of content, over what was there, and nothing beside them."""
    (tmp_path / "a").write_text("before")
    (tmp_path / "source").write_bytes(b"copied")
    write_whole({tmp_path / "a": "é\n", tmp_path / "b": b"\x00", tmp_path / "c": tmp_path / "source"})
    assert {"a": "é\n".encode(), "b": b"\x00", "c": b"copied", "source": b"copied"} == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }


def test_nothing_changes_where_one_has_no_room(tmp_path: Path) -> None:
    """Also of those that would have had room."""
    (tmp_path / "small").write_text("before")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole({tmp_path / "small": "after", tmp_path / "large": "x" * 101})
    assert ["small"] == os.listdir(tmp_path)
    assert "before" == (tmp_path / "small").read_text()


def test_an_exported_file_that_has_no_room_leaves_the_earlier_one(tmp_path: Path) -> None:
    """And none that is cut off."""
    made, kept = tmp_path / "export" / "model.onnx", tmp_path / "kept.onnx"
    made.parent.mkdir()
    made.write_bytes(b"x" * 101)
    kept.write_bytes(b"before")
    with full_disk(), pytest.raises(BisectError, match="cannot be kept"):
        keep_file(made, kept, overwrite=True)
    assert b"before" == kept.read_bytes()
    assert {"export", "kept.onnx"} == set(os.listdir(tmp_path))


def test_two_names_of_one_file_leave_nothing_beside_it(tmp_path: Path) -> None:
    """The later content stands, with the rights that the file had."""
    (tmp_path / "real").touch(0o600)
    (tmp_path / "link").symlink_to("real")
    write_whole({tmp_path / "real": "one", tmp_path / "link": "other"})
    assert {"real", "link"} == set(os.listdir(tmp_path))
    assert ("other", 0o600) == ((tmp_path / "real").read_text(), (tmp_path / "real").stat().st_mode & 0o777)


def test_stdout_is_a_place_too(tmp_path: Path) -> None:
    """Its link leads to no path where it is a pipe."""
    script = (
        "import pathlib; from bisect_tool.whole_files import write_whole as w; w({pathlib.Path('/dev/stdout'): 'x'})"
    )
    assert "x" == subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it leads to is replaced."""
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    write_whole({tmp_path / "link": "after"})
    assert (tmp_path / "link").is_symlink()
    assert "after" == (tmp_path / "real").read_text()


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As are devices: a file in the place of /dev/null would break the machine."""
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole({tmp_path / "pipe": "through"})
    reader.join(10)
    assert ["through"] == read
    assert (tmp_path / "pipe").is_fifo()

"""``bisect-tool demo``: the main job on a small model that comes with the package, and an ONNX file with a fault."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from bisect_tool.cli import options as shared
from bisect_tool.cli.run import run
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, BisectError
from bisect_tool.temporary import temporary_folder


@click.command(context_settings=shared.SETTINGS)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="DIR",
    default="bisect-demo",
    help="Folder that is made for the files; one that is there is left alone [default: bisect-demo].",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def demo(output: str, quiet: bool) -> int:
    """Find a fault in a small model that comes with the tool.

    Writes model, checkpoint, sample and two ONNX files into DIR: the model's export, and a copy in which one channel of
    one weight is 10 % too large. Then compares the second with the model, as bisect-divergence does, and says which
    command that was. Exit code 0 if the fault was found.
    """
    folder = Path(output)
    write_files(folder)
    command = [str(folder / "model.py"), str(folder / "ckpt.pt"), "--input", str(folder / "sample.pt")]
    broken = ["--onnx", str(folder / "broken.onnx"), "-o", str(folder / "report")]
    right = ["--onnx", str(folder / "right.onnx"), "-o", str(folder / "report-right")]
    click.echo(f"$ bisect-divergence {shlex.join([*command, *broken])}\n")
    arguments = [*command, *broken, *(["-q"] if quiet else [])]
    with as_command("bisect-divergence", arguments), run.make_context("bisect-divergence", arguments) as context:
        code = run.invoke(context)
    click.echo(
        "\nPlanted was: output channel 5 of blocks.2.pointwise.weight, times 1.1.\n"
        f"The page to look at: {folder / 'report' / 'index.html'}\n"
        "The export without the fault agrees:\n"
        f"  bisect-divergence {shlex.join([*command, *right])}"
    )
    return EXIT_AGREES if code == EXIT_DIVERGES else int(code)


@contextlib.contextmanager
def as_command(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """As if the process had been started so: a report says which command repeats it, and this one refuses its own folder."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def write_files(folder: Path) -> None:
    """Writes the demo's files; the folder appears when all of them are there.

    Raises:
        BisectError: the folder is there already, or can't be made.
    """
    if folder.exists():
        raise BisectError(f"{folder} is there already", hint="choose another folder with -o; nothing is overwritten")
    from bisect_tool.backends.demo import write_demo

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as made:
            inner = Path(made) / "files"
            inner.mkdir()
            write_demo(inner)
            os.replace(inner, folder)
    except OSError as error:
        raise BisectError(f"{folder} cannot be written: {error.strerror}", hint="choose another with -o") from error

"""``bisect-tool determinism MODEL [CKPT] --input SAMPLE``: whether a model repeats itself, and what would make it."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.loading import load_case
from bisect_tool.cli.process import load_libraries
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import settings_of
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, EXIT_INCONCLUSIVE, BisectError
from bisect_tool.temporary import temporary_folder

if TYPE_CHECKING:
    from bisect_tool.determinism import Determinism, Series

_EXIT = {"repeats": EXIT_AGREES, "differs": EXIT_DIVERGES, "inconclusive": EXIT_INCONCLUSIVE}


@shared.reworded(
    inputs="The sample: .pt .pth .npz .npy .safetensors; one.",
    raw="File given to --preprocess; one.",
    memory_budget=shared.NO_EFFECT,
    name=shared.NO_EFFECT,
)
@click.command(context_settings=shared.SETTINGS)
@shared.loading
@click.option("--runs", type=click.IntRange(min=2), metavar="N", default=5, help="Runs in each series [default: 5].")
@click.option("--mode", type=click.Choice(["eval", "train"]), default="eval", help="Mode of the model [default: eval].")
@click.option(
    "--level",
    type=click.Choice(["leaf", "op"]),
    default="leaf",
    help="op: operations inside leaf modules too [default: leaf].",
)
@click.option("--no-onnx", is_flag=True, help="Leave ONNX Runtime out.")
@shared.running
@click.option("--exit-zero", is_flag=True, help="Exit 0 where it does not repeat itself too.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help=shared.FORMAT_HELP)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="bisect-divergence")
def determinism(
    runs: int, mode: str, level: str, no_onnx: bool, exit_zero: bool, form: str, quiet: bool, **given: Any
) -> int:
    """Run a model again and again, and say which stage first differs from run to run, and what makes it stable.

    In one process, in fresh ones, with other numbers of threads, and in ONNX Runtime. Exit codes: 0 every bit repeats, 1 it
    does not, 2 bad usage or unreadable input, 3 no answer.
    """
    defaults = dict.fromkeys(("exporter", "opset", "constant_folding", "keep_onnx", "level"))
    settings = {**settings_of({**defaults, **given}), "matrix": None}
    settings["command"] = shlex.join(["bisect-tool", *sys.argv[1:]])
    say = progress(quiet)
    say("loading libraries")
    load_libraries()
    interrupts.work_begins()
    from bisect_tool.backends.samples import sample_files
    from bisect_tool.determinism import How, examine

    count = len(sample_files(settings["inputs"])) or len(settings["raw"])
    if count > 1:
        raise BisectError(f"{count} samples given: runs of one are compared", hint="give one --input, or one --raw")

    how = How(threads=settings["threads"] or 0, mode=mode, level=level)
    load = functools.partial(load_case, settings, 0)
    onnx = Path(settings["onnx"]) if settings["onnx"] else None
    with temporary_folder() as folder:
        found = examine(load, Path(folder), how, runs, onnx=onnx, with_onnx=not no_onnx, say=say)
    interrupts.check()
    say.close()
    if form == "json":
        from bisect_tool.store import record_to_json

        click.echo(json.dumps(record_to_json(found), indent=1, allow_nan=False))
    else:
        _print(found)
    code = _EXIT[found.status]
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


def _print(found: Determinism) -> None:
    """Folded at the terminal's width."""
    columns = shutil.get_terminal_size().columns
    width = max(len(series.name) for series in [*found.series, *(each.series for each in found.tried)])

    def say(text: str, indent: str = "    ") -> None:
        lines = textwrap.wrap(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        click.echo("\n".join(lines))

    def tell(series: Series) -> None:
        # Under the first line's beginning, unless the names leave too little room for that.
        wide = width + 2 <= columns // 2
        say(f"{series.name:{width if wide else 0}}  {_line(series)}", " " * (width + 2) if wide else "    ")

    for series in found.series:
        tell(series)
    if found.tried:
        click.echo("\ntried")
        for each in found.tried:
            tell(each.series)
    click.echo()
    for line in found.summary:
        say(line)
    for series in found.series:
        if series.counts and series.cause:
            say(f"cause as the recordings tell it ({series.name}): {series.cause}")


def _line(series: Series) -> str:
    if series.stable is None:
        return f"could not run: {series.problem}"
    if series.stable:
        return f"{series.runs} runs, bit-identical"
    first = f"first at {series.first_stage} ({series.first_error:.1e})" if series.first_stage else "no recorded stage"
    return f"{series.runs} runs, {series.differing} DIFFER, {first}, outputs {series.output_error:.1e}"

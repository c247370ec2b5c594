"""``bisect-tool compare A B``: two recordings, or two data files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bisect_tool.cli import options as shared
from bisect_tool.cli.progress import Progress, progress
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, BisectError


@click.command(context_settings=shared.SETTINGS)
@click.argument("expected", type=click.Path())
@click.argument("actual", type=click.Path())
@click.option("--max-abs", type=float, help="Tolerance: largest absolute difference, in the data's own unit.")
@click.option("--atol", type=float, help="Tolerance as in allclose, its absolute part; only together with --rtol.")
@click.option("--rtol", type=float, help="Tolerance as in allclose, relative to EXPECTED; only together with --atol.")
@click.option("--separator", metavar="CHAR", help="Of tables, as `;` [default: found out from the first lines].")
@click.option(
    "--level",
    type=click.Choice(["op", "leaf", "container"]),
    default="leaf",
    help="Of recordings: level of the stages [default: leaf].",
)
@click.option("--stages", multiple=True, metavar="GLOB", help="Of recordings: these stages only. Repeatable.")
@click.option(
    "--min-coverage",
    type=float,
    default=0.9,
    metavar="SHARE",
    help="Of recordings: share of stages that both must have, 0 to 1; below it exit code 3 [default: 0.9].",
)
@click.option("--all-stages", is_flag=True, help="Of recordings: print every row of the stage table.")
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Of recordings: also write a report folder.")
@shared.drawing
@click.option("--force", is_flag=True, help="Of recordings: replace a report that is there.")
@click.option("--all-items", is_flag=True, help="Of data files: print every column or array.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 on a difference too.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help=shared.FORMAT_HELP)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def compare(
    context: click.Context, /, expected: str, actual: str, form: str, exit_zero: bool, quiet: bool, **given: Any
) -> int:
    """Say what differs between EXPECTED and ACTUAL: two recordings of `bisect-tool record`, or two data files.

    Data files: .csv .tsv .npy .npz .pt .safetensors .json and images. Without a tolerance they must be equal. Exit
    codes: 0 equal, 1 different, 2 bad usage or unreadable input, 3 inconclusive (recordings only).
    """
    from bisect_tool.backends.data_reading import read_data
    from bisect_tool.recordings.bundles import is_bundle

    paths = Path(expected), Path(actual)
    bundles = [is_bundle(path) for path in paths]
    if bundles[0] != bundles[1]:
        recording, other = paths if bundles[0] else reversed(paths)
        read_data(other)  # what is missing, empty or damaged is told as such
        raise BisectError(f"{recording} is a recording, {other} is none", hint="compare two of the same kind")
    _check_options(context, recordings=bundles[0])
    say = progress(quiet)
    say(f"comparing {paths[0].name} with {paths[1].name}")
    code = _recordings(*paths, form, given, say) if bundles[0] else _data_files(*paths, form, given, say)
    return EXIT_AGREES if exit_zero and code == EXIT_DIVERGES else code


_OF_RECORDINGS = ("level", "stages", "min_coverage", "all_stages", "output", "force", "plots")
_OF_DATA_FILES = ("separator", "all_items")


def _check_options(context: click.Context, *, recordings: bool) -> None:
    """Raises BisectError where an option was given that means nothing for this kind of file."""
    for parameter in context.command.params:
        if parameter.name not in (_OF_DATA_FILES if recordings else _OF_RECORDINGS):
            continue
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            kind, other = ("recordings", "data files") if recordings else ("data files", "recordings")
            option = max(parameter.opts, key=len)
            raise BisectError(f"{option} has no effect on {kind}, only on {other}", hint="leave it out")


def _recordings(expected: Path, actual: Path, form: str, given: dict[str, Any], say: Progress) -> int:
    from bisect_tool.cli.traces import compare_recordings

    return compare_recordings(expected, actual, form=form, say=say, **given)


def _data_files(expected: Path, actual: Path, form: str, given: dict[str, Any], say: Progress) -> int:
    from bisect_tool.backends.data_reading import read_data
    from bisect_tool.data.comparison import compare_files
    from bisect_tool.data.files import make_limits

    limits = make_limits(given["max_abs"], given["atol"], given["rtol"])
    one, other = (read_data(path, separator=given["separator"]) for path in (expected, actual))
    if one.kind != other.kind:
        raise BisectError(
            f"{expected} holds {_KINDS[one.kind]}, {actual} {_KINDS[other.kind]}",
            hint="compare two files of one kind; .npy, .npz, .pt, .safetensors and .json may be mixed",
        )
    found = compare_files(one, other, limits)
    say.close()
    if form == "json":
        from bisect_tool.store import record_to_json

        click.echo(json.dumps(record_to_json(found), indent=1, allow_nan=False))
    else:
        from bisect_tool.reporters.data_files import print_comparison

        print_comparison(found, all_items=given["all_items"])
    return EXIT_AGREES if found.status == "equal" else EXIT_DIVERGES


_KINDS = {"table": "a table", "arrays": "arrays", "image": "an image"}

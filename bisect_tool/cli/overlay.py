"""``bisect-tool overlay REPORT``: a report's errors as graph viewers show them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bisect_tool.cli import options as shared
from bisect_tool.cli.progress import Progress
from bisect_tool.errors import EXIT_AGREES, BisectError
from bisect_tool.temporary import temporary_folder

if TYPE_CHECKING:
    from bisect_tool.records import Report, SampleResult

FOLDER = "overlay"
"""Of a report folder."""


@click.command(context_settings=shared.SETTINGS)
@click.argument("report", type=click.Path())
@click.option("--onnx", type=click.Path(), help="The ONNX file that the report is about [default: as the report says].")
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Folder to write to [default: REPORT/overlay].")
@click.option("--force", is_flag=True, help="Replace files that are there; never the ONNX file itself.")
def overlay(report: str, onnx: str | None, output: str | None, force: bool) -> int:
    """Put a report's errors where graph viewers show them.

    REPORT is a report folder, or its report.json. Written are a copy of the ONNX file whose nodes carry the errors in
    their metadata, for Netron, and node data for Model Explorer, a file for each configuration and kind of error.
    """
    from bisect_tool.store import read_report

    place = Path(report)
    found = read_report(place)
    folder = Path(output) if output else (place if place.is_dir() else place.parent) / FOLDER
    written = write_overlays(found, graphs_of(found, onnx, place), folder, force=force)
    tell(written)
    return EXIT_AGREES


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file that a report is about; ``part``: of a model in several files."""

    path: Path
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for one graph: the copy, node data, how many nodes carry errors, and stages without a node."""

    annotated: Path
    data: tuple[Path, ...]
    nodes: int
    lost: tuple[str, ...]


def graphs_of(report: Report, onnx: str | Path | None, place: Path) -> list[Graph]:
    """The files that a report is about.

    Raises:
        BisectError: it is about none, or none that is still there is known.
    """
    if report.chain:
        raise BisectError(
            f"report {place}: it compares two recordings, and is about no graph",
            hint="overlay takes reports of bisect-divergence",
        )
    if report.parts:
        if onnx is not None:
            raise BisectError("--onnx: the report is about several files", hint="leave it out: the report names them")
        return [Graph(Path(part.onnx), part.part) for part in report.parts]
    path = onnx or report.case.get("onnx")
    if path is None:
        raise BisectError(
            f"report {place}: the graph was exported for that run, and is gone",
            hint="run again with --overlays; or with --keep-onnx FILE, and name that file here: --onnx FILE",
        )
    return [Graph(Path(str(path)))]


def write_overlays(
    report: Report, graphs: Sequence[Graph], folder: Path, *, force: bool = False, own: bool = False
) -> list[Written]:
    """Writes the copies and the node data.

    Args:
        report: on these graphs.
        graphs: the files.
        folder: where to; copies that share their weights lie beside their original.
        force: replace what is there.
        own: the graphs are nobody's and go soon: where weights are too large for the copy, they are moved to ``folder``.

    Raises:
        BisectError: a file is there already or cannot be read or written, or the graph is not that of the report.
    """
    from bisect_tool.backends import annotated
    from bisect_tool.reporters import overlays

    written = []
    for graph in graphs:
        path = graph.path
        names = annotated.read_names(path)
        marks = overlays.find_marks(report, names, graph.part)
        if not marks.made:
            raise BisectError(
                f"ONNX file {path}: it holds none of the nodes that the report names", hint="name the file of that run"
            )
        target = folder / f"{path.stem}.annotated.onnx"
        if not annotated.holds_weights(path, target):
            path = _moved(path, folder) if own else path
            target = path.parent / target.name
        prefix = f"{overlays.file_name(graph.part)}." if graph.part is not None else ""
        data = {
            folder / f"{prefix}{name}": text for name, text in overlays.node_data_files(report, marks, names).items()
        }
        for file in () if force else data:
            if file.exists():
                raise BisectError(
                    f"{file} is there already", hint="--force replaces it; or choose another folder with -o"
                )
        notes = overlays.node_notes(report, marks)
        annotated.write_annotated(path, target, notes, overlays.model_notes(report), names, force=force)
        _write_texts(data)
        lost = tuple(str(row.ref) for row in marks.lost)
        written.append(Written(target, tuple(data), len(marks.made), lost))
    return written


def _moved(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(path.parent.iterdir()):
        shutil.move(str(file), str(folder / file.name))
    return folder / path.name


def _write_texts(texts: dict[Path, str]) -> None:
    from bisect_tool.cli.env import write_text

    for file, text in texts.items():
        write_text(file, text)


def tell(written: Sequence[Written]) -> None:
    """Says what lies where, and how it is looked at."""
    from bisect_tool.reporters.wording import names_text, plural

    for each in written:
        click.echo(f"annotated   {each.annotated}")
        click.echo(
            f"            {plural(each.nodes, 'node')} with errors; in Netron, click one and look under metadata"
        )
        for number, file in enumerate(each.data):
            click.echo(f"{'node data' if number == 0 else '':<12}{file}")
        if each.data:
            click.echo("            in Model Explorer, open the annotated file, then load one of these as node data")
        if each.lost:
            click.echo(f"            without a node in the file: {names_text(each.lost)}")


@contextlib.contextmanager
def kept_for_overlays(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of a run whose graph is still there when its report is: an export is kept in a temporary folder.

    Raises:
        BisectError: pairs of a matrix have graphs of their own, of which none would be kept.
    """
    settings = {**settings, "own_graph": False}
    if not settings["overlays"] or settings["onnx"] or settings["keep_onnx"] or settings["parts"]:
        yield settings
        return
    if settings["matrix"]:
        raise BisectError(
            "--overlays with --matrix: pairs may have graphs of their own",
            hint="--keep-onnx FILE keeps the one that the report is about; or --onnx FILE",
        )
    with temporary_folder() as folder:
        yield {**settings, "keep_onnx": str(Path(folder) / "model.onnx"), "own_graph": True}


def overlays_of_run(settings: Mapping[str, Any], report: Report, folder: Path, force: bool, say: Progress) -> None:
    """Writes the overlays of a run into its report folder. What goes wrong is said, and is no matter of the verdict."""
    say("writing the overlays")
    path = settings["onnx"] or settings["keep_onnx"]
    shown = _shown(report)
    try:
        if shown is not None and shown.exported_from:
            raise BisectError(f"the graph of sample {shown.exported_from} was not kept", hint="give a file with --onnx")
        graphs = graphs_of(report, None if settings["parts"] else path, folder)
        write_overlays(report, graphs, folder / FOLDER, force=force, own=settings["own_graph"])
    except BisectError as error:
        say.note(f"no overlays: {error.message}" + (f"; {error.hint}" if error.hint else ""))


def _shown(report: Report) -> SampleResult | None:
    from bisect_tool.reporters.selecting import shown_sample

    return shown_sample(report)

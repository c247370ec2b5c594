"""``bisect-tool inspect MODEL [CKPT] --input SAMPLE``: what would be compared with what, and how that was found."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import cases, check_kept_file, settings_of, tell_kept
from bisect_tool.errors import EXIT_AGREES, EXIT_INCONCLUSIVE, BisectError

if TYPE_CHECKING:
    from bisect_tool.inspection import Inspection


@shared.reworded(force="Replace an inspection.json, and a file of --keep-onnx, that is there.")
@click.command(context_settings=shared.SETTINGS)
@shared.loading
@shared.exporting
@shared.selecting
@shared.running
@click.option("-o", "--output", type=click.Path(), metavar="DIR", help="Also write inspection.json into this folder.")
@shared.reporting
def inspect(form: str, force: bool, verbose: bool, quiet: bool, **given: Any) -> int:
    """Show which value of the ONNX graph stands for which stage of the model, and how that was found.

    Nothing is compared and nothing judged. Exit codes: 0 done, 2 bad usage or unreadable input, 3 fewer stages have a
    value in the graph than --min-coverage asks for, or none.
    """
    settings = {**settings_of(given), "matrix": None}
    if settings["parts"]:
        raise BisectError(
            "inspect looks at one ONNX file, and the case file has [parts]",
            hint="name a submodule as the model (--entry) and its file with --onnx, or run the comparison",
        )
    folder = Path(given["output"]) if given["output"] else None
    if folder is not None:
        from bisect_tool.store import check_inspection_folder

        check_inspection_folder(folder, force=force)
    if settings["keep_onnx"]:
        check_kept_file(Path(settings["keep_onnx"]), force, settings)
    say = progress(quiet, verbose)
    detail = functools.partial(click.echo, err=True) if verbose else (lambda _: None)
    found: list[Inspection] = []
    for item in cases(settings, force, say, detail):
        from bisect_tool.pipeline import inspect_case

        # What a model prints is not this command's answer.
        with contextlib.redirect_stdout(sys.stderr):
            inspection = inspect_case(item.case, item.options, say)
        tell_kept(item.options, say)
        found.append(inspection)
        interrupts.check()
        if folder is not None:
            from bisect_tool.store import write_inspection

            target = folder if item.count == 1 else folder / f"{item.number:03d}-{Path(item.source).stem}"
            write_inspection(inspection, target, force=force)
            interrupts.wrote(target)
        say.close()
        if form == "text":
            from bisect_tool.reporters.inspection import print_inspection

            print_inspection(inspection)
        if verbose:
            for step, seconds in inspection.timings.items():
                click.echo(f"{seconds:8.2f} s  {step}", err=True)
    if form == "json":
        from bisect_tool.store import inspection_text

        texts = [inspection_text(inspection) for inspection in found]
        click.echo(
            texts[0] if len(texts) == 1 else json.dumps([json.loads(text) for text in texts], indent=1), nl=False
        )
    return EXIT_AGREES if all(inspection.enough for inspection in found) else EXIT_INCONCLUSIVE

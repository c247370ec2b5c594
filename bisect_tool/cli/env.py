"""``bisect-tool env``: what numbers are made with here; ``env diff A B``: what differs between two places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bisect_tool.cli import options as shared
from bisect_tool.errors import EXIT_AGREES, EXIT_DIVERGES, BisectError
from bisect_tool.whole_files import write_whole

DIFF_FILES = ("diff.json", "requirements.txt", "Dockerfile", "determinism.py")
"""What ``env diff -o DIR`` writes."""


@click.group(context_settings=shared.SETTINGS, invoke_without_command=True)
@click.option(
    "--binary", "binaries", multiple=True, metavar="NAME", help="Also a program's version, as ffmpeg. Repeatable."
)
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="Write the snapshot, as JSON, to this file.")
@click.option("--force", is_flag=True, help="Replace the file of -o if it is there.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help=shared.FORMAT_HELP)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def env(
    context: click.Context, binaries: tuple[str, ...], output: str | None, force: bool, form: str, quiet: bool
) -> int:
    """Say what numbers are made with here: versions, processor, GPU, threads, variables, flags.

    Secrets are never in it: variables are taken from a list, and what looks like a token is withheld.
    """
    if context.invoked_subcommand is not None:
        return EXIT_AGREES
    if output is not None:
        check_free(Path(output), force)
    from bisect_tool.backends.environment_facts import snapshot

    data = snapshot(binaries)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if output is not None:
        write_text(Path(output), text)
    if form == "json":
        click.echo(text, nl=False)
    elif output is None:
        from bisect_tool.reporters.environments import print_snapshot

        print_snapshot(data)
    elif not quiet:
        click.echo(f"wrote {output}", err=True)
    return EXIT_AGREES


@env.command(context_settings=shared.SETTINGS)
@click.argument("expected", type=click.Path())
@click.argument("actual", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="DIR",
    help="Also write diff.json, requirements.txt, Dockerfile (lines of one) and determinism.py.",
)
@click.option("--force", is_flag=True, help="Replace these files in DIR if they are there.")
@click.option("--all", "everything", is_flag=True, help="Print every difference with its reason.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help=shared.FORMAT_HELP)
def diff(expected: str, actual: str, output: str | None, force: bool, everything: bool, form: str) -> int:
    """Say what differs between two environments, ranked by how likely it changes numbers, and what to do.

    EXPECTED and ACTUAL: snapshots of `bisect-tool env`, reports, recordings, pip freeze or pip list, requirements, lock
    files (poetry, uv, pdm, Pipfile, pylock), environment.yml, conda list. Exit codes: 0 nothing that can change numbers
    differs, 1 something does, 2 bad usage or unreadable input.
    """
    from bisect_tool.environments.diff import diff as diff_facts
    from bisect_tool.environments.files import read_facts

    folder = None if output is None else Path(output)
    if folder is not None:
        for name in DIFF_FILES:
            check_free(folder / name, force)
    found = diff_facts(read_facts(Path(expected)), read_facts(Path(actual)))
    data: dict[str, Any] | None = None
    if form == "json" or folder is not None:
        from bisect_tool.store import record_to_json

        data = record_to_json(found)
    if folder is not None:
        remedy = found.remedy
        texts = (
            json.dumps(data, indent=1, allow_nan=False) + "\n",
            "".join(f"{line}\n" for line in remedy.requirements),
            "".join(f"{line}\n" for line in remedy.dockerfile),
            remedy.script,
        )
        for name, text in zip(DIFF_FILES, texts, strict=True):
            write_text(folder / name, text)
    if form == "json":
        click.echo(json.dumps(data, indent=1, allow_nan=False))
    else:
        from bisect_tool.reporters.environments import print_diff

        print_diff(found, all_differences=everything)
    return EXIT_AGREES if found.status == "same" else EXIT_DIVERGES


def check_free(path: Path, force: bool) -> None:
    """Raises BisectError unless a file can be written there without replacing one."""
    if path.is_dir():
        raise BisectError(f"{path} is a folder, not a file", hint="choose a file")
    if path.exists() and not force:
        raise BisectError(f"{path} is there already", hint="--force replaces it; or choose another name")


def write_text(path: Path, text: str) -> None:
    """Writes a file, with the folders above it.

    Raises:
        BisectError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: text})
    except OSError as error:
        raise BisectError(
            f"{path} cannot be written: {error.strerror or error}", hint="choose another place"
        ) from error

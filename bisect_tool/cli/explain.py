"""``bisect-tool explain [CODE]``: the page behind a diagnosis' code."""

from __future__ import annotations

import json
import sys

import click

from bisect_tool.diagnose.explain import codes, page, wrapped

WIDTH = 80
"""Columns of the text where stdout is no terminal."""

MOST_COLUMNS = 100


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("code", required=False)
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="What stdout gets [default: text]."
)
def explain(code: str | None, form: str) -> int:
    """Say what CODE, as BD101, means: how it shows, an example, the remedy. Without CODE: all codes."""
    if code is None:
        known = codes()
        click.echo(
            json.dumps(known, indent=2) if form == "json" else "\n".join(f"{name}  {known[name]}" for name in known)
        )
        return 0
    text = page(code)
    if form == "json":
        click.echo(json.dumps({"code": code.strip().upper(), "text": text}, indent=2))
    elif sys.stdout.isatty():
        _print_rendered(text)
    else:
        click.echo(wrapped(text, WIDTH))
    return 0


def _print_rendered(text: str) -> None:
    """As rich shows Markdown, no wider than is read with ease."""
    from rich.markdown import Markdown

    from bisect_tool.reporters.layout import PipedConsole

    console = PipedConsole()
    console.print(Markdown(text), width=min(console.width, MOST_COLUMNS))

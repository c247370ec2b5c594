"""``bisect-tool explain [CODE]``: the page behind a diagnosis' code."""

from __future__ import annotations

import json

import click

from bisect_tool.diagnose.explain import codes, page


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("code", required=False)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What stdout gets.")
def explain(code: str | None, form: str) -> int:
    """Say what CODE, as BD101, means: how it shows, an example, the remedy. Without CODE: all codes."""
    if code is None:
        known = codes()
        click.echo(
            json.dumps(known, indent=2) if form == "json" else "\n".join(f"{name}  {known[name]}" for name in known)
        )
        return 0
    text = page(code)
    click.echo(json.dumps({"code": code.strip().upper(), "text": text}, indent=2) if form == "json" else text.rstrip())
    return 0

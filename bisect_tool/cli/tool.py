"""``bisect-tool``: the group of commands around the main one."""

from __future__ import annotations

import click

from bisect_tool.cli.calibrate import calibrate
from bisect_tool.cli.compare import compare
from bisect_tool.cli.demo import demo
from bisect_tool.cli.determinism import determinism
from bisect_tool.cli.env import env
from bisect_tool.cli.explain import explain
from bisect_tool.cli.inspect import inspect
from bisect_tool.cli.overlay import overlay
from bisect_tool.cli.record import record, recorder
from bisect_tool.cli.releases import releases
from bisect_tool.cli.run import run
from bisect_tool.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bisect-divergence")
def tool() -> None:
    """Everything around bisect-divergence; `run` is the same command."""


tool.add_command(run, "run")
tool.add_command(verify, "verify")
tool.add_command(explain, "explain")
tool.add_command(inspect, "inspect")
tool.add_command(compare, "compare")
tool.add_command(env, "env")
tool.add_command(record, "record")
tool.add_command(recorder, "recorder")
tool.add_command(determinism, "determinism")
tool.add_command(releases, "releases")
tool.add_command(calibrate, "calibrate")
tool.add_command(overlay, "overlay")
tool.add_command(demo, "demo")

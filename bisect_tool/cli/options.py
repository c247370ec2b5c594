"""Options that several commands have: what to load, how to export, and which stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of each command."""

FORMAT_HELP = "What stdout gets [default: text]."

NO_EFFECT = "Has no effect here."
"""Of an option that belongs to a shared group and means nothing to a command."""


def loading(command: Command) -> Command:
    """MODEL, CHECKPOINT and what says how they are loaded."""
    return _stacked(
        command,
        click.argument("model", required=False),
        click.argument("checkpoint", required=False, type=click.Path()),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="PATH",
            help="Sample: .pt .pth .npz .npy .safetensors, or a folder of them. Repeatable.",
        ),
        click.option("--onnx", type=click.Path(), help="ONNX file to judge; without it the model is exported."),
        click.option(
            "--config", type=click.Path(), help="Case file (TOML) with these options; the command line overrides it."
        ),
        click.option(
            "--entry",
            metavar="NAME",
            help="Function, class or instance in MODEL [default: build_model, else its only module].",
        ),
        click.option("--entry-args", type=click.Path(), help="TOML or JSON file with the entry's keyword arguments."),
        click.option(
            "--preprocess", metavar="MODULE:FUNCTION", help="Makes a sample from each --raw; instead of --input."
        ),
        click.option("--raw", multiple=True, type=click.Path(), help="File given to --preprocess. Repeatable."),
    )


def exporting(command: Command) -> Command:
    """How the model is exported where no ONNX file is given."""
    return _stacked(
        command,
        click.option(
            "--exporter",
            type=click.Choice(["dynamo", "torchscript"]),
            help="Which exporter [default: dynamo, where PyTorch has it; torchscript for archives].",
        ),
        click.option("--opset", type=int, help="Opset version of the export [default: the exporter's]."),
        click.option(
            "--constant-folding/--no-constant-folding",
            default=None,
            help="The exporter's graph optimisation [default: on].",
        ),
        click.option(
            "--keep-onnx",
            type=click.Path(),
            metavar="FILE",
            help="Leave the exported file here; else it is gone at the end.",
        ),
    )


def judging(command: Command) -> Command:
    """What is allowed."""
    return _stacked(
        command,
        click.option(
            "--tolerances",
            type=click.Path(),
            metavar="FILE",
            help="Limits of each stage, from `bisect-tool calibrate`; instead of the other tolerances.",
        ),
        click.option(
            "--max-abs", type=float, help="Tolerance: largest absolute difference, in each tensor's own unit."
        ),
        click.option(
            "--atol", type=float, help="Tolerance as in allclose, its absolute part; only together with --rtol."
        ),
        click.option(
            "--rtol",
            type=float,
            help="Tolerance as in allclose, relative to PyTorch's value; only together with --atol.",
        ),
        click.option("--min-sqnr", type=float, metavar="DB", help="Tolerance: least signal-to-noise ratio, in dB."),
    )


def choosing(command: Command) -> Command:
    """Which stages."""
    return _stacked(
        command,
        click.option(
            "--level",
            type=click.Choice(["op", "leaf", "container"]),
            help="Stages: operations, modules without children, or modules with children [default: leaf].",
        ),
        click.option(
            "--stages",
            multiple=True,
            metavar="GLOB",
            help="These stages only, as `backbone.blocks.*`; ** also crosses dots. Repeatable.",
        ),
    )


def selecting(command: Command) -> Command:
    """Which stages, and how many of them must be found."""
    return _stacked(
        command,
        choosing,
        click.option(
            "--min-coverage",
            type=float,
            metavar="SHARE",
            help="Share of stages that must be aligned, 0 to 1; below it exit code 3 [default: 0.9].",
        ),
    )


def running(command: Command) -> Command:
    """Memory, threads, and what a checkpoint may be."""
    return _stacked(
        command,
        click.option(
            "--memory-budget", metavar="SIZE", help="Activations kept in memory at once, as 512MiB [default: 2GiB]."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            metavar="N",
            help="Threads of both sides; 0: each library's own number [default: 0].",
        ),
        click.option("--allow-pickle", is_flag=True, default=None, help="Unpickle the checkpoint: runs code in it."),
        click.option(
            "--allow-missing", is_flag=True, default=None, help="Accept a checkpoint without some of the keys."
        ),
        click.option(
            "--allow-unexpected", is_flag=True, default=None, help="Accept a checkpoint with keys the model lacks."
        ),
        click.option("--name", help="Name of the case [default: the model file's]."),
    )


def reporting(command: Command) -> Command:
    """Where the answer goes."""
    return _stacked(
        command,
        click.option("--force", is_flag=True, help="Replace a report, and a file of --keep-onnx, that is there."),
        click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help=FORMAT_HELP),
        click.option("-v", "--verbose", is_flag=True, help="Say more on stderr: each step, and its time."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        click.version_option(package_name="bisect-divergence"),
    )


def drawing(command: Command) -> Command:
    """Which picture files the report folder gets."""
    return _stacked(
        command,
        click.option(
            "--plots",
            metavar="FORMATS",
            help="Formats of the plots: png, svg, pdf, with commas, or none [default: png,svg].",
        ),
    )


def reworded(**texts: str) -> Callable[[click.Command], click.Command]:
    """Help texts by parameter, where a shared option means something narrower to a command."""

    def change(command: click.Command) -> click.Command:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name in texts:
                parameter.help = texts[parameter.name]
        return command

    return change


def _stacked(command: Command, *decorators: Callable[[Command], Command]) -> Command:
    """As if they stood above the command one below the other: that is their order in the help."""
    for decorator in reversed(decorators):
        command = decorator(command)
    return command

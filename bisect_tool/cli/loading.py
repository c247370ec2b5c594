"""From settings to what is compared: the model with its weights, and the samples."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bisect_tool.errors import BisectError

if TYPE_CHECKING:
    from bisect_tool.backends.samples import Sample
    from bisect_tool.pipeline import LoadedCase


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its weights, the samples it is to be judged on, and what the report says about them."""

    module: Any
    samples: list[Sample]
    description: Mapping[str, Any]
    notes: tuple[str, ...]


def load(settings: Mapping[str, Any], moment: Callable[[str], None] = lambda _: None) -> Loaded:
    """Loads what the settings name.

    Args:
        settings: of the command.
        moment: told when the model is ``built``, weights included, and when the ``sample`` is there.

    Raises:
        BisectError: something is missing, unreadable or does not fit.
    """
    from bisect_tool.backends.checkpoints import apply_checkpoint, load_checkpoint
    from bisect_tool.backends.models import load_entry_args, load_model
    from bisect_tool.backends.preprocess import make_sample
    from bisect_tool.backends.samples import load_samples

    if settings.get("name"):
        case_name(settings)  # a bad one is the command's fault, and no sample's
    arguments = load_entry_args(settings["entry_args"]) if settings["entry_args"] else None
    if settings["threads"]:
        import torch

        torch.set_num_threads(settings["threads"])
    with _folder_kept():
        loaded = load_model(settings["model"], settings["entry"], arguments)
    notes = loaded.notes
    if settings["checkpoint"]:
        state = load_checkpoint(settings["checkpoint"], allow_pickle=settings["allow_pickle"])
        notes += apply_checkpoint(
            loaded.module,
            state,
            settings["checkpoint"],
            allow_missing=settings["allow_missing"],
            allow_unexpected=settings["allow_unexpected"],
        )
    elif loaded.kind == "python":
        notes += ("no checkpoint given: the model runs with the weights that its entry gave it",)
    moment("built")
    if settings["preprocess"]:
        with _folder_kept():
            samples = [make_sample(settings["preprocess"], raw) for raw in settings["raw"]]
    else:
        samples = load_samples(settings["inputs"])
    moment("sample")
    description = {
        "model": str(settings["model"]),
        "checkpoint": settings["checkpoint"] and str(settings["checkpoint"]),
        "inputs": [str(path) for path in settings["inputs"]],
        "onnx": settings["onnx"] and str(settings["onnx"]),
        "command": shlex.join([_program(), *sys.argv[1:]]),
    }
    return Loaded(loaded.module, samples, description, notes)


@contextlib.contextmanager
def _folder_kept() -> Iterator[None]:
    """Paths on the command line are meant from where it was called, wherever the user's own code goes to."""
    try:
        before = os.getcwd()
    except OSError:  # removed meanwhile
        before = None
    try:
        yield
    finally:
        if before is not None:
            os.chdir(before)


def _program() -> str:
    """The command that was called; within another program the main one."""
    name = Path(sys.argv[0]).stem
    return name if name == "bisect-tool" else "bisect-divergence"


def make_case(settings: Mapping[str, Any], loaded: Loaded, sample: Sample) -> LoadedCase:
    """One bound sample with the model, checked; what the checks found is in the case's notes.

    Raises:
        BisectError: the model can't be judged as it is.
    """
    from bisect_tool.cases import checked_case

    return checked_case(loaded.module, sample, case_name(settings), loaded.description, loaded.notes)


def load_case(settings: Mapping[str, Any], number: int) -> LoadedCase:
    """The case of one of the samples, loaded anew: for processes that share nothing."""
    from bisect_tool.backends.samples import bind_sample

    loaded = load(settings)
    case = make_case(settings, loaded, bind_sample(loaded.module, loaded.samples[number]))
    return replace(case, description={**case.description, "command": settings["command"]})


def case_name(settings: Mapping[str, Any]) -> str:
    """The name given, or that of the model's file, or of its folder where the file is called ``model.py``."""
    if settings["name"]:
        name = str(settings["name"])
        if Path(name).name != name or name in (".", ".."):
            raise BisectError(f"--name {name!r}: a name, not a path", hint="use -o DIR for another folder")
        return name
    path = Path(str(settings["model"]).partition(":")[0])
    return path.parent.resolve().name if path.name == "model.py" else path.stem

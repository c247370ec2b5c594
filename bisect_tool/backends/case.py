"""A case that is ready to run, and the files that its model is exported to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bisect_tool.backends.exporting import ExportError, ExportSettings, export_onnx
from bisect_tool.backends.preflight import explain_forward_error
from bisect_tool.backends.structures import map_tensors
from bisect_tool.errors import BisectError
from bisect_tool.recorder import Recorder, flatten_tensors
from bisect_tool.records import Place
from bisect_tool.whole_files import write_whole


@dataclass(frozen=True, slots=True)
class LoadedCase:
    """A model that is ready to run.

    Attributes:
        name: of the report folder.
        module: with its weights, in eval mode.
        args, kwargs: inputs of ``module.forward``.
        description: what the report says about the case: paths and the command.
        notes: from loading and from the preflight.
        place: of a module that is a part of a larger model, in that model.
    """

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    description: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    place: Place | None = None


def export_case(case: LoadedCase, path: Path, settings: ExportSettings) -> None:
    """Exports a case's model.

    Raises:
        BisectError: the exporter failed, or the model itself does; then it is the model's error that is told.
    """
    try:
        # One of the exporters runs the model on what it is given, and a model may write into its inputs.
        export_onnx(case.module, copies_of(case.args), copies_of(case.kwargs), path, settings)
    except BisectError as error:
        # Exporters run the model too: if it fails on its own, that is the error to tell.
        try:
            check_forward(case)
        except BisectError:
            if isinstance(error, ExportError) and error.log is not None:
                error.log.unlink(missing_ok=True)
            raise
        raise


def check_forward(case: LoadedCase) -> None:
    """Runs the model once, and keeps nothing but which operation failed.

    Raises:
        BisectError: it raised; the message says where. Or it returned no tensor.
    """
    recorder: Recorder = Recorder(case.module)
    try:
        with torch.no_grad(), recorder:
            output = recorder.run(*copies_of(case.args), **copies_of(case.kwargs))
    except (Exception, SystemExit) as error:  # anything may come out of a user's forward
        raise explain_forward_error(error, case.module, case.args, case.kwargs, recorder.failure) from error
    if not any(True for _ in flatten_tensors(output)):
        raise BisectError(
            f"forward returned no tensor ({type(output).__name__}): there is nothing to compare",
            hint="return a tensor, or a tuple, list, dictionary or dataclass with tensors in it",
        )


def check_opset(written: int | None, settings: ExportSettings) -> None:
    """Exporters may write another opset than was asked for, and say so in a log at most.

    Raises:
        BisectError: so it is.
    """
    if settings.opset is not None and written != settings.opset:
        raise BisectError(
            f"--opset {settings.opset}: the {settings.exporter} exporter cannot convert to it, and wrote {written} instead",
            hint=f"leave --opset out for the exporter's default, or ask for one nearer to {written}",
        )


def keep_file(path: Path, target: Path | None, *, overwrite: bool = False) -> None:
    """Copies an exported file, and what lies beside it, to where the user wants it.

    External data is found by its name beside the model: export under the name that the file is to have in the end.

    Args:
        path: what was exported.
        target: ``None``: it is not kept.
        overwrite: replace files that are there.

    Raises:
        BisectError: a file is there already, then nothing is copied; or it cannot be written there.
    """
    if target is None:
        return
    copies = {file: target if file == path else target.parent / file.name for file in sorted(path.parent.iterdir())}
    for there in () if overwrite else copies.values():
        check_free(there)
    try:
        write_whole({there: file for file, there in copies.items()})
    except OSError as error:
        reason = error.strerror or str(error)
        raise BisectError(
            f"the exported file cannot be kept at {target}: {reason}", hint="choose another place with --keep-onnx"
        ) from error


def check_free(target: Path) -> None:
    """Refuses to write an exported file over another.

    Raises:
        BisectError: the file exists.
    """
    if target.exists():
        raise BisectError(
            f"--keep-onnx {target}: the file exists and is not overwritten",
            hint="--force replaces it; or choose another",
        )


def copies_of(value: Any) -> Any:
    """The same structure with tensors of its own: a model may write into its inputs."""
    return map_tensors(value, torch.Tensor.clone)

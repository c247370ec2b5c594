"""PyTorch → ONNX, with either exporter, quietly: what they print goes to a log that an error can point to."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from bisect_tool.backends.compiled import eagerly, original
from bisect_tool.errors import BisectError
from bisect_tool.recorder import flatten_tensors
from bisect_tool.temporary import lasting_file

Exporter = Literal["dynamo", "torchscript"]

_INLINE_LIMIT = 1_500_000_000


def _parameters() -> frozenset[str]:
    """What this torch's ``torch.onnx.export`` takes."""
    return frozenset(inspect.signature(torch.onnx.export).parameters)


def has_dynamo() -> bool:
    """Whether this installation has the exporter that goes through ``torch.export``, with the arguments needed here."""
    return {"dynamo", "optimize"} <= _parameters() and importlib.util.find_spec("onnxscript") is not None


def default_exporter() -> Exporter:
    """``dynamo``, as PyTorch itself has it; ``torchscript`` where there is no other."""
    return "dynamo" if has_dynamo() else "torchscript"


def exporter_note(module: torch.nn.Module) -> tuple[str, ...]:
    """Told where a model is exported otherwise than newer versions would by default; nothing for archives."""
    if has_dynamo() or isinstance(module, torch.jit.ScriptModule):
        return ()
    return (f"PyTorch {torch.__version__} has no dynamo exporter; the model is exported by the torchscript exporter",)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How to export.

    Attributes:
        exporter: ``dynamo`` (through ``torch.export``) or ``torchscript``; ``default_exporter`` if not given.
        opset: ``None`` for the exporter's own default.
        constant_folding: compute constants ahead; for ``dynamo`` this is all of its graph optimisation. Without it
            neither exporter folds BatchNorm.
        batchnorm_folding: let BatchNorm go into the convolution or the matrix product before it.
        keep_stages: neither of the two, and no other optimisation: not what gets deployed, but what shows every stage.
        dynamic_shapes: let every axis of the inputs vary where the exporter can (``dynamo``), or their first axis.
        axes: let these axes vary, by the name of an input that is a tensor; counts where ``dynamic_shapes`` does not.
    """

    exporter: Exporter = field(default_factory=default_exporter)
    opset: int | None = None
    constant_folding: bool = True
    batchnorm_folding: bool = True
    keep_stages: bool = False
    dynamic_shapes: bool = False
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)


def export_onnx(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, settings: ExportSettings
) -> None:
    """Writes ``path``; weights of more than 1.5 GB go to a file beside it.

    Raises:
        BisectError: the exporter failed; its reason is in the message, its whole output in a log file that is named.
    """
    if settings.exporter == "dynamo" and not has_dynamo():
        raise BisectError(
            f"PyTorch {torch.__version__} has no dynamo exporter that can be told what to leave out",
            hint="--exporter torchscript, or export elsewhere and give the file with --onnx",
        )
    module, _, put_back = original(module)
    rules = contextlib.nullcontext() if settings.batchnorm_folding else _without_batchnorm_fusion()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            # In the grad mode that users export in: without gradients nn.TransformerEncoder takes a path of its own,
            # which one of the exporters does not know.
            if settings.exporter == "dynamo":
                with _captured(log), _plain_outputs(module, {}), torch.enable_grad(), rules:
                    _export_dynamo(module, args, kwargs, path, settings)
            else:
                # This exporter would make inputs of numbers and flags, which dynamo takes for constants.
                constants = {name: value for name, value in kwargs.items() if not flatten_tensors(value)}
                tensors = {name: value for name, value in kwargs.items() if name not in constants}
                with _captured(log), _plain_outputs(module, constants), torch.enable_grad(), eagerly():
                    _export_torchscript(module, args, tensors, path, settings)
        except BisectError:
            raise
        except (Exception, SystemExit) as error:  # exporters raise whatever they come across
            log.seek(0)
            raise _export_error(error, log.read(), settings) from error
        finally:
            put_back()


def _export_dynamo(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, settings: ExportSettings
) -> None:
    # A trailing dictionary means keywords here too; given as such, they protect a positional one.
    trailing = bool(args) and isinstance(args[-1], dict)
    program = torch.onnx.export(
        module,
        (*args, kwargs) if trailing else args,
        kwargs=None if trailing else kwargs or None,
        dynamo=True,
        opset_version=settings.opset,
        optimize=settings.constant_folding and not settings.keep_stages,
        dynamic_shapes=_varying_axes(module, args, kwargs, settings),
        verbose=False,
    )
    assert program is not None
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    program.save(str(path), external_data=size > _INLINE_LIMIT)


def _export_torchscript(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, settings: ExportSettings
) -> None:
    # A trailing dictionary means keywords to this exporter; an empty one protects a positional dictionary.
    inputs = (*args, kwargs) if kwargs or (args and isinstance(args[-1], dict)) else args
    names = _flat_names(module, args, kwargs)
    # Versions without another exporter have no such argument.
    which: dict[str, Any] = {"dynamo": False} if "dynamo" in _parameters() else {}
    torch.onnx.export(
        module,
        inputs,
        str(path),
        **which,
        opset_version=settings.opset,
        do_constant_folding=settings.constant_folding and not settings.keep_stages,
        # With EVAL folding constants folds BatchNorm too; PRESERVE takes the module's mode, which is the same, and does not.
        training=torch.onnx.TrainingMode.EVAL
        if settings.batchnorm_folding and not settings.keep_stages
        else torch.onnx.TrainingMode.PRESERVE,
        input_names=names,
        dynamic_axes={
            name: {
                axis: f"{name}_axis{axis or ''}" for axis in ((0,) if settings.dynamic_shapes else settings.axes[name])
            }
            for name in names or ()
            if settings.dynamic_shapes or name in settings.axes
        }
        or None,
    )


@contextlib.contextmanager
def _without_batchnorm_fusion() -> Iterator[None]:
    """Leaves BatchNorm's rules out of onnxscript's optimiser, which has one list of rules and no switch for any.

    Raises:
        BisectError: this version keeps its rules elsewhere.
    """
    from onnxscript import __version__, rewriter

    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", None)
    if rules is None:
        raise BisectError(
            f"batchnorm_folding = false: onnxscript {__version__} does not let its optimiser be told",
            hint='take exporter = "torchscript", or constant_folding = false, which leaves out all optimisation',
        )
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if "BatchNorm" not in str(rule.name))
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _varying_axes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], settings: ExportSettings
) -> Any:
    """``torch.export``'s form: as the inputs are nested, a table of axes in place of each tensor; ``None``: none vary."""
    if not settings.dynamic_shapes and not settings.axes:
        return None
    from torch.export import Dim

    def axes(tensor: torch.Tensor) -> dict[int, Any]:
        return dict.fromkeys(range(tensor.ndim), Dim.AUTO)

    names = positional_names(module, len(args)) or [str(i) for i in range(len(args))]
    given = {**dict(zip(names, args, strict=True)), **kwargs}
    if settings.dynamic_shapes:
        return {name: _leaves(value, axes) for name, value in given.items()}
    return {
        name: dict.fromkeys(settings.axes[name], Dim.AUTO) if name in settings.axes else _leaves(value, lambda _: None)
        for name, value in given.items()
    }


def _leaves(value: Any, axes: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return axes(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_leaves(item, axes) for item in value)
    if isinstance(value, dict):
        return {key: _leaves(item, axes) for key, item in value.items()}
    return None


def _flat_names(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str] | None:
    """Names for the graph's inputs, in ``forward``'s order; without them the exporter invents some."""
    order = positional_names(module, len(args))
    if order is None or not all(isinstance(value, torch.Tensor) for value in [*args, *kwargs.values()]):
        return None
    signature = inspect.signature(module.forward)
    return order + [name for name in signature.parameters if name in kwargs]


def positional_names(module: torch.nn.Module, count: int) -> list[str] | None:
    """Parameter names of ``forward`` for the first ``count`` positional inputs; ``None`` if it has no such names."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named[:count] if len(named) >= count else None


@contextlib.contextmanager
def _plain_outputs(module: torch.nn.Module, constants: dict[str, Any]) -> Iterator[None]:
    """Lets ``forward`` return the tensors of dataclasses, numbers and the like, which exporters refuse, as a flat tuple.

    ``constants``: keyword arguments that are given to ``forward`` beside those of the exporter.
    """
    if isinstance(module, torch.jit.ScriptModule):
        # Scripted modules keep their methods to themselves, and their outputs are plain.
        yield
        return
    forward = module.forward

    @functools.wraps(forward)
    def flat_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **{**constants, **kwargs})
        return output if _is_plain(output) else tuple(tensor for _, tensor in flatten_tensors(output))

    had_own = "forward" in vars(module)
    module.forward = flat_forward
    try:
        yield
    finally:
        if had_own:
            module.forward = forward
        else:
            del module.forward


def _is_plain(output: Any) -> bool:
    """Whether exporters take it: tensors and None in tuples, lists and dictionaries of exactly these types.

    Numbers and strings they take in some places only.
    """
    if output is None or isinstance(output, torch.Tensor):
        return True
    if type(output) in (tuple, list):
        return all(_is_plain(item) for item in output)
    if type(output) is dict:
        return all(_is_plain(item) for item in output.values())
    return False


@contextlib.contextmanager
def _captured(log: TextIO) -> Iterator[None]:
    """Sends to ``log`` what is printed, logged or warned, also from C++, which knows only file descriptors."""
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch")]
    saved = [(logger, logger.propagate, logger.handlers[:]) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = [handler]
            logger.propagate = False
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            _redirected_descriptors(log),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, propagate, handlers in saved:
            logger.propagate = propagate
            logger.handlers = handlers


@contextlib.contextmanager
def _redirected_descriptors(log: TextIO) -> Iterator[None]:
    copies = {}
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            assert stream is not None
            stream.flush()
            copies[stream.fileno()] = os.dup(stream.fileno())
        except (OSError, ValueError, AssertionError):  # a process without these streams has nothing to redirect
            continue
    try:
        for number in copies:
            os.dup2(log.fileno(), number)
        yield
    finally:
        log.flush()
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)


class ExportError(BisectError):
    """The exporter failed; ``log`` is the file that holds all it said, if there is one."""

    log: Path | None = None


def _export_error(error: BaseException, log: str, settings: ExportSettings) -> BisectError:
    full = _no_space(error)
    if full is not None:
        return BisectError(
            f"the export cannot be written: {full.strerror}", hint="make room there, or set TMPDIR to another folder"
        )
    whole = "".join([log, "\n", *traceback.format_exception(error)])
    file = lasting_file("bisect-divergence-export.log", whole)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    message = f"the {settings.exporter} exporter failed: {type(cause).__name__}: {lines[0][:300]}"
    if settings.opset is not None and "opset" in lines[0].lower():
        hint = f"leave --opset {settings.opset} out for the exporter's default, or ask for another"
        return _with_log(message, hint, file)
    other = "torchscript" if settings.exporter == "dynamo" else "dynamo"
    there = other == "torchscript" or has_dynamo()
    first = f"try --exporter {other}, or export yourself" if there else "export with a newer PyTorch"
    return _with_log(message, f"{first} and give the file with --onnx", file)


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""A full disk, a limit of file sizes, a quota."""


def _no_space(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _with_log(message: str, hint: str, log: Path) -> ExportError:
    error = ExportError(f"{message}\n  whole log: {log}", hint=hint)
    error.log = log
    return error

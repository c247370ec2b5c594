"""Reads sample inputs and fits them to what ``forward`` takes."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bisect_tool.backends.files import (
    kind_of_file,
    nearest,
    read_safetensors,
    read_torch,
    reason_of,
    require_file,
    wrong_kind,
)
from bisect_tool.errors import BisectError
from bisect_tool.recorder import dtype_name, flatten_tensors

SUFFIXES = (".pt", ".pth", ".npz", ".npy", ".safetensors")
_FORMS = "a tensor, a tuple of tensors, a dictionary of keyword arguments, or {'args': ..., 'kwargs': ...}"
_NUMBERED = re.compile(r"^ar[gr]_(\d+)$")


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs of one call of ``forward``.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        source: the file it came from.
        notes: what was not taken literally.
        explicit: it was written as ``{'args': ..., 'kwargs': ...}``, so that the keywords are meant as keywords.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str
    notes: tuple[str, ...] = ()
    explicit: bool = False


def load_samples(paths: Sequence[str]) -> list[Sample]:
    """Reads sample files; a folder stands for the sample files in it, sorted by name.

    Args:
        paths: files or folders of ``.pt .pth .npz .npy .safetensors``.

    Returns:
        One sample per file, tensors on the CPU with the shapes and dtypes of the file.

    Raises:
        BisectError: no path is given, or a file is missing, of another kind, damaged, or holds no inputs.
    """
    if not paths:
        raise BisectError("no sample given", hint="--input sample.pt: the tensors that forward is called with")
    return [_load(file) for file in sample_files(paths)]


def sample_files(paths: Sequence[str]) -> list[Path]:
    """The files that these paths stand for: a folder is the sample files in it, sorted by name.

    Raises:
        BisectError: a folder cannot be read, or holds none.
    """
    return [file for path in paths for file in _files(path)]


def sample_of(content: Any, source: str) -> Sample:
    """A sample from an object in memory, in any of the forms that a file may hold; numpy arrays become tensors.

    Raises:
        BisectError: it is of another form, or holds no tensor.
    """
    sample = _from_object(content, source)
    if not flatten_tensors([sample.args, sample.kwargs]):
        raise BisectError(f"sample {source} holds no tensor", hint=f"make {_FORMS}")
    return sample


def _tensors_of(content: Any, source: str) -> Any:
    """The same with tensors for numpy arrays, and without the gradients that the sample was made with."""
    if isinstance(content, torch.Tensor):
        return content.detach() if content.requires_grad else content
    if isinstance(content, np.ndarray):
        return _to_tensor(content, f"sample {source}")
    if isinstance(content, Mapping):
        return {key: _tensors_of(value, source) for key, value in content.items()}
    if isinstance(content, tuple) and hasattr(content, "_make"):
        return type(content)._make(_tensors_of(value, source) for value in content)
    if type(content) in (tuple, list):
        return type(content)(_tensors_of(value, source) for value in content)
    return content


def _files(path: str) -> list[Path]:
    folder = Path(path)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it does not raise for impossible names
        return [folder]
    try:
        found = [f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file() and not f.name.startswith(".")]
    except OSError as error:
        raise BisectError(
            f"sample folder {folder} cannot be read: {reason_of(error)}", hint="check the path"
        ) from error
    if not found:
        raise BisectError(f"sample folder {folder} holds no sample", hint=f"samples end in {' '.join(SUFFIXES)}")
    return sorted(found)


def _load(path: Path) -> Sample:
    file = require_file(path, "sample")
    kind = kind_of_file(file)
    if kind in ("torch", "pickle"):
        sample = _from_object(_read_torch(file), str(file))
    elif kind in ("npz", "npy"):
        sample = Sample(*_from_numpy(file), str(file))
    elif kind == "safetensors" or file.suffix == ".safetensors":
        sample = Sample(*_by_number(read_safetensors(file, "sample"), file), str(file))
    else:
        raise wrong_kind(file, kind, "sample", f"save {_FORMS} as {', '.join(SUFFIXES)}")
    if not flatten_tensors([sample.args, sample.kwargs]):
        raise BisectError(f"sample {file} holds no tensor", hint=f"save {_FORMS}")
    return sample


def _read_torch(file: Path) -> Any:
    try:
        return read_torch(file, "sample")
    except BisectError as error:
        if error.hint is None or "--allow-pickle" not in error.hint:
            raise
        # That option is for checkpoints: a sample never needs more than tensors.
        raise BisectError(error.message, hint=f"save only tensors and plain containers: {_FORMS}") from error


def _from_object(content: Any, source: str) -> Sample:
    try:
        content = _tensors_of(content, source)
    except RecursionError as error:
        raise BisectError(f"sample {source} is nested too deeply, or contains itself", hint=f"save {_FORMS}") from error
    if isinstance(content, torch.Tensor):
        return Sample((content,), {}, source)
    if isinstance(content, (tuple, list)):
        return Sample(tuple(content), {}, source)
    if isinstance(content, Mapping):
        if content and set(content) <= {"args", "kwargs"} and not isinstance(content.get("kwargs"), torch.Tensor):
            return Sample(*_from_call(content, source), source, explicit=True)
        if all(isinstance(key, str) for key in content):
            return Sample((), dict(content), source)
        strange = next(key for key in content if not isinstance(key, str))
        raise BisectError(
            f"sample {source} is a dictionary with the key {strange!r}, which is no argument name",
            hint="name the arguments of forward, or save a tuple",
        )
    raise BisectError(f"sample {source} is of type {type(content).__name__}, which is no input", hint=f"save {_FORMS}")


def _from_call(content: Mapping[str, Any], source: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = content.get("args", ()), content.get("kwargs", {})
    args = (args,) if isinstance(args, torch.Tensor) else args
    args = () if args is None else args
    kwargs = {} if kwargs is None else kwargs
    named = isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    if not isinstance(args, (tuple, list)) or not named:
        wrong = "'kwargs' is no dictionary of names" if not named else "'args' is neither a tuple nor a tensor"
        raise BisectError(f"sample {source}: {wrong}", hint="save {'args': (...), 'kwargs': {'name': ...}}")
    return tuple(args), dict(kwargs)


def _from_numpy(file: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        content: Any = np.load(file, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            with content as archive:
                content = {name: archive[name] for name in archive.files}
    except Exception as error:  # BadZipFile, ValueError, EOFError, zlib.error ...
        raise _numpy_error(file, error) from error
    if isinstance(content, np.ndarray):
        return (_to_tensor(content, f"sample {file}"),), {}
    return _by_number({name: _to_tensor(array, f"{name} in sample {file}") for name, array in content.items()}, file)


def _numpy_error(file: Path, error: Exception) -> BisectError:
    if isinstance(error, ValueError) and "allow_pickle" in str(error):
        reason = "it holds Python objects, or is no numpy file at all"
    else:
        reason = reason_of(error)
    return BisectError(
        f"sample {file} cannot be read by numpy: {reason}", hint="write it with numpy.save or numpy.savez, numbers only"
    )


def _to_tensor(array: Any, what: str) -> torch.Tensor:
    """A tensor with the array's numbers, in memory of its own, contiguous and in this machine's byte order."""
    try:
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        return torch.from_numpy(native)
    except (TypeError, ValueError) as error:
        raise BisectError(
            f"{what} has the dtype {array.dtype}, which torch does not have",
            hint="convert it to a number dtype first; for bfloat16 save a .pt or .safetensors file",
        ) from error


def _by_number(tensors: Mapping[str, torch.Tensor], file: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``arr_0`` (numpy's own names) and ``arg_0`` are positions, all other names keywords."""
    numbered: dict[int, torch.Tensor] = {}
    named: dict[str, Any] = {}
    for name, tensor in tensors.items():
        found = _NUMBERED.match(name)
        if found is None:
            named[name] = tensor
        elif int(found.group(1)) in numbered:
            raise BisectError(f"sample {file} has two inputs for position {found.group(1)}", hint="drop one of them")
        else:
            numbered[int(found.group(1))] = tensor
    if sorted(numbered) != list(range(len(numbered))):
        absent = next(i for i in range(len(numbered)) if i not in numbered)
        raise BisectError(
            f"sample {file} numbers its inputs {sorted(numbered)}: position {absent} is not there",
            hint="number them from 0 without gaps, or name them",
        )
    return tuple(numbered[i] for i in range(len(numbered))), named


# -- binding ----------------------------------------------------------------------------------------------------------


def bind_sample(module: torch.nn.Module, sample: Sample) -> Sample:
    """Checks a sample against ``forward``'s signature, without running it.

    A bare dictionary for a ``forward(self, batch)`` becomes its one argument, unless one of its keys is an argument
    of ``forward`` or ``forward`` takes any keyword. Where the signature says nothing, as for TorchScript archives,
    everything is accepted.

    Returns:
        The sample as it is to be passed.

    Raises:
        BisectError: there is no ``forward``, or it does not take these inputs; both sides are listed.
    """
    require_forward(module, "the model")
    parameters = _forward_parameters(module)
    if parameters is None:
        return sample
    sample = _wrap_batch(parameters, sample)
    problem = _problem(parameters, sample)
    if problem is None:
        return sample
    reason, hint = problem
    raise BisectError(
        f"sample {sample.source} does not fit {_signature_text(parameters)}: {reason}\n"
        f"  sample has: {describe_inputs(sample.args, sample.kwargs)}",
        hint=hint,
    )


def require_forward(module: torch.nn.Module, what: str) -> None:
    """Nothing, if the module can be called.

    Raises:
        BisectError: it has no ``forward`` of its own, as ``ModuleList``; ``what`` names it in the message.
    """
    try:
        forward = module.forward
    except AttributeError:  # a TorchScript archive that only has other methods
        forward = None
    if forward is None or getattr(forward, "__func__", None) is vars(torch.nn.Module)["forward"]:
        raise BisectError(
            f"{what} is a {type(module).__name__} without forward(), which cannot be run",
            hint="name the model itself with --entry",
        )


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """``float32[1, 3], mask=bool[1]``: shapes and dtypes of what is passed to ``forward``."""
    shown = [_describe(value) for value in args] + [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return ", ".join(shown) or "nothing"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    if isinstance(value, Mapping):
        inner = [f"{key}: {_describe(item)}" for key, item in list(value.items())[:8]]
        return "{" + ", ".join(inner) + (", ..." if len(value) > 8 else "") + "}"
    if isinstance(value, (tuple, list)):
        inner = [_describe(item) for item in value[:8]]
        return "(" + ", ".join(inner) + (", ..." if len(value) > 8 else "") + ")"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return type(value).__name__


def _forward_parameters(module: torch.nn.Module) -> list[inspect.Parameter] | None:
    """Parameters of ``forward`` without ``self``; None if they are unknown."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # modules from TorchScript archives have none
        return None


def _signature_text(parameters: Sequence[inspect.Parameter]) -> str:
    return f"forward{inspect.Signature([p.replace(annotation=p.empty) for p in parameters])}"


def _positional(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _required(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in variable]


def _wrap_batch(parameters: Sequence[inspect.Parameter], sample: Sample) -> Sample:
    required = _required(parameters)
    if sample.explicit or sample.args or not sample.kwargs or len(required) != 1:
        return sample
    (only,) = required
    if any(p.name in sample.kwargs or p.kind is p.VAR_KEYWORD for p in parameters):
        return sample
    if only.kind is only.KEYWORD_ONLY or _says_tensor(only.annotation):
        return sample
    note = f"sample {sample.source}: its dictionary was passed whole as {only.name}, forward's only required argument"
    return replace(sample, args=(sample.kwargs,), kwargs={}, notes=(*sample.notes, note))


def _says_tensor(annotation: Any) -> bool:
    return annotation is torch.Tensor or annotation in ("Tensor", "torch.Tensor")


def _problem(parameters: Sequence[inspect.Parameter], sample: Sample) -> tuple[str, str] | None:
    """What does not fit, and the remedy."""
    positional = _positional(parameters)
    given = len(sample.args)
    if given > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return (
            f"{_count(given, 'positional input')} for {len(positional)}",
            "leave out the inputs that forward does not take",
        )
    filled = {p.name for p in positional[:given] if p.kind is not p.POSITIONAL_ONLY}
    twice = [name for name in sample.kwargs if name in filled]
    if twice:
        return f"{twice[0]} is given by position and by name", "give it once"
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [name for name in sample.kwargs if name not in named]
    missing = [p for p in _required(parameters) if p not in positional[:given] and p.name not in sample.kwargs]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        free = [p.name for p in missing] or named
        near = nearest(unknown[0], free)
        remedy = f"did you mean {near!r}?" if near else "name the inputs as forward does, or save a tuple"
        names = ", ".join(map(repr, unknown))
        return f"forward has no {'argument' if len(unknown) == 1 else 'arguments'} {names}", remedy
    if missing:
        names = ", ".join(p.name for p in missing)
        whole = "" if given or len(missing) > 1 else "; to pass a dictionary whole, save it in a tuple"
        return f"no input for {names}", f"add {names} to the sample{whole}"
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

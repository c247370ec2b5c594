"""What can be known to go wrong before the model runs, and what can be said when it did."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bisect_tool.backends.files import reason_of, some
from bisect_tool.backends.samples import describe_inputs
from bisect_tool.backends.structures import map_tensors
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.recorder import dtype_name, flatten_tensors

_LISTED = 5
_MAX_DEPTH = 4
_TORCH_FOLDER = Path(torch.__file__).resolve().parent
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# nn.Module's own bookkeeping, which holds nothing of the user's, or what is asked for by other means.
_BOOKKEEPING = frozenset(vars(torch.nn.Module()))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (``error``: a run is useless) or surprising (``warning``)."""

    severity: Literal["warning", "error"]
    text: str
    certain: bool = True
    """Whether it is so whatever the model's code does: that may convert its inputs itself."""


def preflight(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Finding]:
    """Looks at a model in eval mode and its inputs, without running anything.

    Args:
        module: with its weights, after ``eval()``.
        args, kwargs: inputs of ``forward``.

    Returns:
        Errors first, each naming its modules or tensors; empty if all is well.
    """
    attributes, loose = _plain_attributes(module)
    findings = [
        *_unfit_tensors(module, attributes, args, kwargs),
        *_training(module),
        *_batch_statistics(module),
        *_unregistered(attributes, loose),
        *_non_finite(module),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def errors_of(
    findings: Sequence[Finding], module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Texts of the errors that keep a model from running; where none is certain it is run once to see.

    Args:
        findings: of :func:`preflight`.
        module, args, kwargs: as there.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and not any(finding.certain for finding in errors) and _runs(module, args, kwargs):
        return []
    return [finding.text for finding in errors]


def _runs(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    # A model may write into its inputs.
    own_args, own_kwargs = map_tensors(args, Tensor.clone), map_tensors(dict(kwargs), Tensor.clone)
    try:
        with torch.no_grad():
            module(*own_args, **own_kwargs)
    except (Exception, SystemExit):  # anything may come out of a user's forward
        return False
    return True


def require_one_device(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], device: str) -> None:
    """Does nothing if all tensors of a run are where it is to be.

    What is neither parameter nor buffer stays behind when a model moves.

    Args:
        module, args, kwargs: after they were moved.
        device: where to.

    Raises:
        InconclusiveError: some tensors are elsewhere; they are named.
    """
    weights = [*module.named_parameters(), *module.named_buffers()]
    usable = [(name, tensor) for name, tensor in weights if not torch.nn.parameter.is_lazy(tensor)]
    elsewhere: dict[str, list[str]] = {}
    for name, tensor in [*usable, *_plain_attributes(module)[0], *_named_inputs(args, kwargs)]:
        # Torch lets a bare number on the CPU take part anywhere.
        if tensor.device.type != device and (tensor.ndim or tensor.device.type != "cpu"):
            elsewhere.setdefault(str(tensor.device), []).append(name)
    if elsewhere:
        listed = "; ".join(f"on {where}: {some(names)}" for where, names in sorted(elsewhere.items()))
        raise InconclusiveError(
            f"the model was moved to {device}, and tensors stay behind ({listed})",
            hint="make them buffers, register_buffer(..., persistent=False), so that model.to(device) reaches them",
        )


_CLASH = "convert the model, or the input, so that all of it has one dtype (.float(), .half()); or use autocast"
_OTHER_DTYPE = "convert the sample to the dtype that the model takes"
_ALONE = "check that the model runs on this sample by itself: model(*args, **kwargs) in eval mode"


def explain_forward_error(
    exc: BaseException,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    failure: object = None,
) -> BisectError:
    """What to tell the user when ``forward`` raised.

    Args:
        exc: with its traceback.
        module: the root; paths are those of ``named_modules()``.
        args, kwargs: what ``forward`` was called with.
        failure: what a recorder says of the operation that raised; told if dtypes clash in it.

    Returns:
        An error of two lines: the deepest module that was running with the reason, and the inputs' dtypes and shapes;
        or the operation, with its own, where that tells more.
    """
    paths: dict[int, str] = {}
    for path, child in module.named_modules():
        paths.setdefault(id(child), path)
    deepest, line = module, ""
    traceback = exc.__traceback__
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and id(owner) in paths:
            deepest = owner
        filename = traceback.tb_frame.f_code.co_filename
        if _is_user_code(filename):
            line = f", {Path(filename).name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    path = paths[id(deepest)] or "the model"
    reason = reason_of(exc)
    hint = _forward_hint(exc, reason, module, args, kwargs)
    # What is wrong with the inputs is told first.
    clash = "clash in dtype" in str(failure) and hint in (_OTHER_DTYPE, _ALONE)
    return BisectError(
        f"forward failed in {path} ({type(deepest).__name__}{line}): {reason}\n"
        f"  {failure if clash else f'given: {describe_inputs(args, kwargs)}'}",
        hint=_CLASH if clash else hint,
    )


def _is_user_code(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    parents = Path(filename).parents
    return _TORCH_FOLDER not in parents and _PACKAGE_FOLDER not in parents


def _forward_hint(
    exc: BaseException, reason: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    text = reason.lower()
    unfit = _unfit_tensors(module, _plain_attributes(module)[0], args, kwargs)
    known = next((finding.text for finding in unfit if finding.severity == "error"), None)
    if known is not None:
        return known
    if isinstance(exc, NotImplementedError) and "forward" in text:
        return "the module has no forward(): name the model itself with --entry"
    if "fullgraph" in text and "no compiled frames" in text:
        return (
            "what the model itself compiles as one graph (torch.compile with fullgraph=True, flex_attention) cannot be "
            "recorded: let it run uncompiled"
        )
    if "out of memory" in text or isinstance(exc, MemoryError):
        return "use a smaller sample"
    if isinstance(exc, TypeError) and ("argument" in text or "subscript" in text or "not iterable" in text):
        return _passed_whole(module, args, kwargs) or (
            "check how the sample is built: a tuple is passed by position, a dictionary by name"
        )
    if "scalar types: long" in text:
        return _floating_indices(args, kwargs) or _OTHER_DTYPE
    if any(
        word in text
        for word in (
            "dtype",
            "scalar type",
            "same type",
            "expected input type",
            "should be the same",
            "not implemented for",
        )
    ):
        return _whole_inputs(module, args, kwargs) or _OTHER_DTYPE
    if any(word in text for word in ("shape", "size", "dimension", "channels", "must match", "index out of range")):
        return "check the sample's shapes and values, and the sizes that the model was built with (--entry-args)"
    return _ALONE


def _whole_inputs(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Names inputs of whole numbers, which may well be right, where the model has weights that are none."""
    names = [f"{name} is {dtype_name(t.dtype)}" for name, t in _named_inputs(args, kwargs) if not t.is_floating_point()]
    weights = [(name, w) for name, w in module.named_parameters() if w.is_floating_point()]
    if not names or not weights:
        return None
    name, weight = weights[0]
    return f"{some(names)}, and the weights are {dtype_name(weight.dtype)} (such as {name}); convert the sample"


def _floating_indices(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Names floating inputs, where a table was to be read at them."""
    names = [f"{name} is {dtype_name(t.dtype)}" for name, t in _named_inputs(args, kwargs) if t.is_floating_point()]
    return f"{some(names)}, and indices are whole numbers (int64): convert the sample" if names else None


# -- weights and inputs -----------------------------------------------------------------------------------------------


def _passed_whole(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Says so where a dictionary went into forward as it is, since none of its names is an argument's."""
    if len(args) != 1 or kwargs or not isinstance(args[0], dict) or not args[0]:
        return None
    try:
        takes = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return None
    given = some([str(name) for name in args[0]])
    return (
        f"forward takes {some(takes)}, not {given}: so the dictionary was passed whole; name the inputs as forward does"
    )


def _unfit_tensors(
    module: torch.nn.Module,
    attributes: Sequence[tuple[str, Tensor]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Iterator[Finding]:
    """What keeps the tensors of a run from being computed with one another."""
    weights = [*module.named_parameters(), *module.named_buffers()]
    usable = [(name, tensor) for name, tensor in weights if not torch.nn.parameter.is_lazy(tensor)]
    inputs = _named_inputs(args, kwargs)
    yield from _lazy(weights)
    yield from _devices(usable, attributes, inputs)
    yield from _dtypes(module, inputs)


def _named_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    found = []
    for label, value in [*enumerate(args), *kwargs.items()]:
        name = f"input {label}"
        for key, tensor in flatten_tensors(value):
            found.append((name if isinstance(value, Tensor) else f"{name}.{key}", tensor))
    return found


def _lazy(weights: Sequence[tuple[str, Tensor]]) -> Iterator[Finding]:
    names = [name for name, tensor in weights if torch.nn.parameter.is_lazy(tensor)]
    if names:
        yield Finding(
            "error",
            f"weights without a shape yet: {some(names)}; load a checkpoint, or run the model once in build_model()",
        )


def _devices(
    weights: Sequence[tuple[str, Tensor]],
    attributes: Sequence[tuple[str, Tensor]],
    inputs: Sequence[tuple[str, Tensor]],
) -> Iterator[Finding]:
    by_device: dict[str, list[str]] = {}
    for name, tensor in [*weights, *attributes, *inputs]:
        # Torch lets a bare number on the CPU take part anywhere.
        if tensor.ndim or tensor.device.type != "cpu":
            by_device.setdefault(str(tensor.device), []).append(name)
    if len(by_device) > 1:
        listed = "; ".join(f"{device}: {some(names)}" for device, names in sorted(by_device.items()))
        yield Finding("error", f"tensors lie on different devices ({listed}); move all of them to one")
    elif "meta" in by_device:
        yield Finding("error", f"weights have no data (device meta): {some(by_device['meta'])}; load a checkpoint")


def _dtypes(module: torch.nn.Module, inputs: Sequence[tuple[str, Tensor]]) -> Iterator[Finding]:
    first: dict[torch.dtype, str] = {}
    for name, tensor in module.named_parameters():
        if tensor.is_floating_point():
            first.setdefault(tensor.dtype, name)
    floats = [(name, tensor) for name, tensor in inputs if tensor.is_floating_point()]
    other = [(name, tensor) for name, tensor in floats if tensor.dtype not in first]
    if not first or not other:
        return
    has = ", ".join(f"{name} is {dtype_name(tensor.dtype)}" for name, tensor in other[:_LISTED])
    wants = ", ".join(f"{dtype_name(dtype)} (such as {name})" for dtype, name in first.items())
    # Where another input fits, this one may be meant to differ: a mask, times, coordinates.
    severity: Literal["warning", "error"] = "error" if len(other) == len(floats) else "warning"
    yield Finding(severity, f"{has}, but the weights are {wants}; convert the sample or the model", certain=False)


# -- modules ----------------------------------------------------------------------------------------------------------


def _training(module: torch.nn.Module) -> Iterator[Finding]:
    training = [(path or "the model", child) for path, child in module.named_modules() if child.training]
    dropouts = [path for path, child in training if _is_dropout(child)]
    if dropouts:
        yield Finding(
            "warning",
            f"dropout still active after eval(): {some(dropouts)}; its outputs are random, so no two runs agree. "
            "Let train() of the model reach them",
        )
    others = [path for path, child in training if not _is_dropout(child)]
    if others:
        yield Finding(
            "warning",
            f"still in training mode after eval(): {some(others)}; "
            "the model's train() or eval() leaves them out, or something switched them back",
        )


def _is_dropout(module: torch.nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.p > 0


def _batch_statistics(module: torch.nn.Module) -> Iterator[Finding]:
    names = [
        path or "the model"
        for path, child in module.named_modules()
        if isinstance(child, _BatchNorm) and (child.running_mean is None or child.running_var is None)
    ]
    if names:
        yield Finding(
            "warning",
            f"batch normalization without running statistics: {some(names)}; it uses those of the batch even in eval "
            "mode, so the result depends on the whole batch. Set track_running_stats=True unless that is meant",
        )


def _plain_attributes(module: torch.nn.Module) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """Tensors, and modules with weights, that a module holds without torch knowing."""
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        return [], []  # their constants are torch's own doing
    known = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    modules = {id(child) for child in module.modules()}
    tensors: list[tuple[str, Tensor]] = []
    loose: list[str] = []
    for path, child in module.named_modules():
        if isinstance(child, _MADE_BY_TORCH) or type(child).__module__ == _UNFLATTENED:
            continue
        for name, value in list(vars(child).items()):
            if name in _BOOKKEEPING or _is_derived(child, name):
                continue
            for where, item in _walk(value, f"{path}.{name}" if path else name, _MAX_DEPTH):
                if isinstance(item, Tensor):
                    if id(item) not in known:
                        known.add(id(item))
                        tensors.append((where, item))
                elif id(item) not in modules and next(item.parameters(), None) is not None:
                    modules.add(id(item))
                    loose.append(where)
    return tensors, loose


_MADE_BY_TORCH = (torch.fx.GraphModule, torch.jit.ScriptModule)
"""Their attributes are torch's own doing."""

_UNFLATTENED = "torch.export.unflatten"
"""The modules of an exported program are made there; importing it takes time."""


def _is_derived(module: torch.nn.Module, name: str) -> bool:
    """Tensors that torch itself computes from the parameters and keeps beside them.

    Weight and spectral normalization and pruning leave the computed weight, and recurrent layers a list of their
    weights, in which it then stands.
    """
    if name == "_flat_weights" and isinstance(module, torch.nn.RNNBase):
        return True
    return any(f"{name}{ending}" in module._parameters for ending in ("_g", "_orig"))


def _walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor | torch.nn.Module]]:
    if isinstance(value, (Tensor, torch.nn.Module)):
        yield name, value
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{name}[{key!r}]", depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _walk(item, f"{name}[{place}]", depth - 1)


def _unregistered(attributes: Sequence[tuple[str, Tensor]], loose: Sequence[str]) -> Iterator[Finding]:
    if attributes:
        names = [f"{name} {dtype_name(tensor.dtype)}{list(tensor.shape)}" for name, tensor in attributes]
        yield Finding(
            "warning",
            f"tensors that are neither parameters nor buffers: {some(names)}; they are in no checkpoint and stay "
            "behind when the model moves. Use register_buffer",
        )
    if loose:
        yield Finding(
            "warning",
            f"modules in plain containers: {some(loose)}; their weights are in no checkpoint and eval() does not "
            "reach them. Use ModuleList or ModuleDict",
        )


def _non_finite(module: torch.nn.Module) -> Iterator[Finding]:
    names = [f"{name} ({count})" for name, count in non_finite_weights(module)]
    if names:
        yield Finding("warning", f"weights with values that are not finite, and how many: {some(names)}")


def non_finite_weights(module: torch.nn.Module, finite: Set[str] = frozenset()) -> list[tuple[str, int]]:
    """Parameters and buffers that hold NaN or infinities where these do not belong, and how many.

    ``finite``: those that are known to hold neither; they are not read.
    """
    found = []
    for name, weight in module.named_parameters():
        if name not in finite:
            found.append((name, _count_bad(weight, infinite=True)))
    for name, buffer in module.named_buffers():
        # Masks are buffers of -inf on purpose; statistics never are.
        infinite = name.rpartition(".")[2] in ("running_mean", "running_var")
        if name not in finite:
            found.append((name, _count_bad(buffer, infinite=infinite)))
    return [(name, count) for name, count in found if count]


def _count_bad(tensor: Tensor, *, infinite: bool) -> int:
    floating = tensor.is_floating_point() or tensor.is_complex()
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_quantized or not floating:
        return 0
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()  # float8 has no isnan
    if values.is_floating_point() and values.sum().isfinite():
        return 0  # one pass that makes nothing: what is not finite stays in a sum
    bad = ~values.isfinite() if infinite else values.isnan()
    return int(bad.sum())

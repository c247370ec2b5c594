"""Reads checkpoints and puts them into a model, and says exactly what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bisect_tool import recorder
from bisect_tool.backends.files import (
    kind_of_file,
    nearest,
    read_safetensors,
    read_torch,
    reason_of,
    require_file,
    some,
    wrong_kind,
)
from bisect_tool.errors import BisectError

WRAPPER_KEYS = recorder._WRAPPERS
PREFIXES = recorder._PREFIXES
"""As the recorder has them, which is carried to machines without this package and so keeps its own."""

_LISTED = 5
_MAX_PREFIX_STEPS = 4


class Weights(dict[str, Tensor]):
    """A state dict, and what the user should know about where in the file it came from."""

    notes: tuple[str, ...] = ()
    # Versions of the modules that wrote it, under torch's own name: modules read files of older versions differently.
    _metadata: Any = None


# -- loading ----------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict in a checkpoint: bare, or under one of ``WRAPPER_KEYS``, up to two levels deep.

    Args:
        path: a file of ``torch.save``, or a safetensors file.
        allow_pickle: unpickle anything in it, whole modules too; runs code from the file.

    Returns:
        Name → tensor on the CPU, in the file's dtypes.

    Raises:
        BisectError: the file cannot be read, wants to be unpickled, or holds no state dict.
    """
    file = require_file(path, "checkpoint")
    kind = kind_of_file(file)
    if kind == "safetensors" or file.suffix == ".safetensors":
        state = read_safetensors(file, "checkpoint")
        if not state:
            raise BisectError(f"checkpoint {file} holds no tensors", hint="give the file with the model's weights")
        return Weights(state)
    if kind in ("torchscript", "exported"):
        raise wrong_kind(file, kind, "checkpoint", "it holds a whole model: give it as MODEL")
    content = read_torch(file, "checkpoint", allow_pickle=allow_pickle)
    found = _find_state(content, 2)
    if found is None:
        raise BisectError(
            f"checkpoint {file} holds no state dict: {_describe(content)}",
            hint=f"save model.state_dict(), bare or under one of {', '.join(WRAPPER_KEYS)}",
        )
    return found


def _find_state(content: Any, depth: int) -> Weights | None:
    if isinstance(content, torch.nn.Module):
        weights = _as_state(content.state_dict())
        if weights is None:
            return None
        weights.notes = (f"the checkpoint holds a whole {type(content).__name__}; its state dict was taken",)
        return weights
    if not isinstance(content, Mapping):
        return None
    if depth:
        nested = {key: _find_state(content[key], depth - 1) for key in WRAPPER_KEYS if key in content}
        usable = {key: state for key, state in nested.items() if state}
        if usable:
            first = next(iter(usable))
            weights = usable[first]
            if len(usable) > 1:
                others = ", ".join(key for key in usable if key != first)
                weights.notes = (
                    *weights.notes,
                    f"the checkpoint holds several sets of weights; {first!r} was taken, not {others}",
                )
            return weights
    return _as_state(content)


def _as_state(content: Mapping[Any, Any]) -> Weights | None:
    weights = Weights()
    weights._metadata = getattr(content, "_metadata", None)
    for key, value in content.items():
        if not isinstance(key, str):
            return None
        if isinstance(value, Tensor) or key.endswith("_extra_state"):
            weights[key] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            weights[key] = torch.from_numpy(value)
    return weights if any(isinstance(value, Tensor) for value in weights.values()) else None


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is of type {type(content).__name__}"
    if not content:
        return "it is an empty dictionary"
    return f"found the keys {some([f'{key} ({type(value).__name__})' for key, value in content.items()])}"


# -- applying ---------------------------------------------------------------------------------------------------------


def apply_checkpoint(
    module: torch.nn.Module,
    state: Mapping[str, Tensor],
    path: str | Path,
    *,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> tuple[str, ...]:
    """Copies a state dict into a module, after mending the prefixes that wrappers leave in the keys.

    ``num_batches_tracked`` may be missing or left over, and of the names of tied weights one suffices.

    Args:
        module: changed in place; unspecified weights if an error is raised.
        state: of ``load_checkpoint``.
        path: of the checkpoint, for messages.
        allow_missing: leave weights that the checkpoint lacks as they are.
        allow_unexpected: leave out keys that the module lacks.

    Returns:
        Notes: prefixes that were mended, conversions of dtype, what was left out.

    Raises:
        BisectError: keys are missing or unexpected, or shapes differ.
    """
    expected: dict[str, Any] = dict(module.state_dict())
    notes = list(getattr(state, "notes", ()))
    renamed, how = _match_prefixes(state, expected.keys())
    if not how:
        # It is by module path, so that it only fits unchanged keys.
        renamed._metadata = getattr(state, "_metadata", None)
    else:
        notes.append(f"keys of {path} were matched to the model's after {how}")
    common = [key for key in renamed if key in expected]
    shapes = [
        f"{key}: checkpoint {list(renamed[key].shape)}, model {list(expected[key].shape)}"
        for key in common
        if not _same_shape(renamed[key], expected[key])
    ]
    # Weights without memory are replaced, not written into; versions that cannot do that have no such argument.
    replaced = any(isinstance(value, Tensor) and value.is_meta for value in expected.values())
    options = {"assign": True} if replaced else {}
    try:
        # Torch's own lists count, not ours: modules may rename keys of older versions while they load.
        result = module.load_state_dict(renamed, strict=False, **options)
    except Exception as error:  # RuntimeError for shapes; modules' own hooks may raise anything
        if shapes:
            raise _misfit(path, [], [], shapes, expected) from error
        raise BisectError(
            f"checkpoint {path} cannot be loaded into {type(module).__name__}: {_torch_load_reason(error)}",
            hint="build the model with the settings that the checkpoint was saved with (--entry-args)",
        ) from error
    missing, tied = _really_missing(module, list(result.missing_keys), renamed)
    unexpected = _counted(result.unexpected_keys)
    notes += [f"{key} is tied to another weight and was loaded through it" for key in tied]
    nothing = bool(expected) and not common and len(missing) + len(tied) >= len(_counted(expected))
    if nothing or (missing and not allow_missing) or (unexpected and not allow_unexpected):
        show_missing = missing if nothing or not allow_missing else []
        show_unexpected = unexpected if nothing or not allow_unexpected else []
        raise _misfit(path, show_missing, show_unexpected, [], expected, nothing=nothing)
    if missing:
        notes.append(f"{len(missing)} weights are not in {path} and keep their initial values: {some(missing)}")
    if unexpected:
        notes.append(f"{len(unexpected)} keys of {path} are not in the model and were left out: {some(unexpected)}")
    notes += _conversions(renamed, expected, common)
    return tuple(notes)


def _counted(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not _optional(key)]


def _optional(key: str) -> bool:
    # It only matters while training with momentum=None; files of torch before 0.4.1 do not have it.
    return key.rpartition(".")[2] == "num_batches_tracked"


def _same_shape(given: Any, wanted: Any) -> bool:
    if not isinstance(given, Tensor) or not isinstance(wanted, Tensor) or torch.nn.parameter.is_lazy(wanted):
        return True
    # Torch takes one number in a vector where it wants a bare one.
    return given.shape == wanted.shape or (wanted.ndim == 0 and given.shape == (1,))


def _really_missing(
    module: torch.nn.Module, missing: list[str], state: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Splits off the names of tied weights that came under their other name."""
    named = dict(module.named_parameters(remove_duplicate=False))
    loaded = {id(named[key]) for key in state if key in named}
    tied = [key for key in missing if key in named and id(named[key]) in loaded]
    return [key for key in missing if key not in tied and not _optional(key)], tied


def _match_prefixes(state: Mapping[str, Tensor], expected: Iterable[str]) -> tuple[Weights, str]:
    """The state under the keys that match the module best, with the fewest changes of prefix, and what was changed."""
    wanted = set(expected)
    best = {key: key for key in state}  # the file's key → key to load it under
    best_score, best_steps = _score(best, wanted), ()  # type: tuple[int, tuple[str, ...]]
    level: list[tuple[dict[str, str], tuple[str, ...]]] = [(best, ())]
    seen = {frozenset(best.values())}
    for _ in range(_MAX_PREFIX_STEPS):
        following = []
        for names, steps in level:
            for step, changed in _changes(names, wanted):
                keys = frozenset(changed.values())
                if len(keys) != len(changed) or keys in seen:  # two keys became one, or nothing new
                    continue
                seen.add(keys)
                following.append((changed, (*steps, step)))
                score = _score(changed, wanted)
                if score > best_score:
                    best, best_score, best_steps = changed, score, (*steps, step)
        if best_score == len(wanted):
            break
        level = following
    return Weights({best[key]: value for key, value in state.items()}), " and ".join(best_steps)


def _score(names: Mapping[str, str], wanted: set[str]) -> int:
    return sum(1 for name in names.values() if name in wanted)


def _changes(names: Mapping[str, str], wanted: set[str]) -> list[tuple[str, dict[str, str]]]:
    found = []
    for prefix in (*PREFIXES, *_common_prefix(names.values(), wanted)):
        if any(name.startswith(prefix) for name in names.values()):
            stripped = {key: name.removeprefix(prefix) for key, name in names.items()}
            found.append((f"removing the prefix {prefix!r}", stripped))
        if any(name.startswith(prefix) for name in wanted):
            found.append((f"adding the prefix {prefix!r}", {key: prefix + name for key, name in names.items()}))
    if any(_unmarked(name) != name for name in (*names.values(), *wanted)):
        # torch.compile of a submodule leaves its mark in the middle of the key, in the file or in the model.
        by_plain = {_unmarked(name): name for name in wanted}
        plain = {key: _unmarked(name) for key, name in names.items()}
        matched = {key: by_plain.get(name, name) for key, name in plain.items()}
        found.append(("ignoring the mark '_orig_mod.' of torch.compile", matched))
    return found


def _common_prefix(names: Iterable[str], wanted: Set[str]) -> tuple[str, ...]:
    """The name of the attribute that held the model when it was saved, if all keys begin with it and none of the model's."""
    heads = {name.partition(".")[0] for name in names if "." in name}
    head = f"{heads.pop()}." if len(heads) == 1 and all("." in name for name in names) else ""
    known = not head or head in PREFIXES or any(name.startswith(head) for name in wanted)
    return () if known else (head,)


def _unmarked(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _conversions(state: Mapping[str, Any], expected: Mapping[str, Any], common: Iterable[str]) -> list[str]:
    counts: dict[tuple[str, str], int] = {}
    for key in common:
        given, wanted = state[key], expected[key]
        if isinstance(given, Tensor) and isinstance(wanted, Tensor) and given.dtype != wanted.dtype:
            pair = (_short(given.dtype), _short(wanted.dtype))
            counts[pair] = counts.get(pair, 0) + 1
    return [
        f"{count} tensor{' is' if count == 1 else 's are'} {given} in the checkpoint and "
        f"{'was' if count == 1 else 'were'} converted to the model's {wanted}"
        + ("; imaginary parts are gone" if given.startswith("complex") and not wanted.startswith("complex") else "")
        for (given, wanted), count in counts.items()
    ]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _misfit(
    path: str | Path,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    expected: Mapping[str, Any],
    *,
    nothing: bool = False,
) -> BisectError:
    counts = [
        f"{len(items)} {label}{'' if len(items) == 1 else plural}"
        for items, label, plural in (
            (missing, "missing key", "s"),
            (unexpected, "unexpected key", "s"),
            (shapes, "shape mismatch", "es"),
        )
        if items
    ]
    start = "no key fits: " if nothing else ""
    lines = [f"checkpoint {path} does not fit the model: {start}{', '.join(counts)}"]
    if missing:
        lines.append(f"  missing: {some(_with_nearest(missing, unexpected))}")
    if unexpected:
        # Where keys are missing too, the likeliest reason is a new name for one of those.
        lines.append(f"  unexpected: {some(_with_nearest(unexpected, missing or list(expected)))}")
    if shapes:
        lines += [f"  shapes differ: {line}" for line in shapes[:_LISTED]]
        lines += [f"  and {len(shapes) - _LISTED} more"] if len(shapes) > _LISTED else []
    hints = []
    if nothing or shapes:
        hints.append("build the model that the checkpoint was saved from (--entry, --entry-args)")
    else:
        if missing:
            hints.append("--allow-missing keeps the model's initial values for the missing keys")
        if unexpected:
            hints.append("--allow-unexpected leaves the unexpected keys out")
    return BisectError("\n".join(lines), hint="; ".join(hints))


def _with_nearest(names: list[str], others: list[str]) -> list[str]:
    shown = []
    for place, name in enumerate(names):
        near = nearest(name, others) if place < _LISTED else None
        shown.append(f"{name} (near: {near})" if near else name)
    return shown


def _torch_load_reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1]
    return reason_of(error)

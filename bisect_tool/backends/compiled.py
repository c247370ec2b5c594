"""What ``torch.compile`` made goes back to what it was made of: only plain PyTorch runs operation by operation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def original(module: torch.nn.Module) -> tuple[torch.nn.Module, tuple[str, ...], Callable[[], None]]:
    """The module as it was before it, or parts of it, were compiled.

    Returns:
        The module; paths of the parts that were compiled, ``""`` for the whole; a function that puts them back.
    """
    undo: list[Callable[[], None]] = []
    found: list[str] = []
    inner = module
    while _wrapped(inner) is not None:
        inner = _wrapped(inner)  # type: ignore[assignment]
        found.append("")
    for path, parent in list(inner.named_modules()):
        # Only what `module.compile()` has set: it is called in place of `forward`.
        call = getattr(parent, "_compiled_call_impl", None)
        if call is not None:
            parent._compiled_call_impl = None
            undo.append(lambda parent=parent, call=call: setattr(parent, "_compiled_call_impl", call))  # type: ignore[misc]
            found.append(path)
        for name, child in list(parent._modules.items()):
            plain = child
            while plain is not None and _wrapped(plain) is not None:
                plain = _wrapped(plain)
            if plain is not child:
                parent._modules[name] = plain
                undo.append(lambda parent=parent, name=name, child=child: parent._modules.update({name: child}))  # type: ignore[misc]
                found.append(f"{path}.{name}".removeprefix("."))

    def put_back() -> None:
        for step in reversed(undo):
            step()

    return inner, tuple(dict.fromkeys(found)), put_back


def compiled_note(paths: tuple[str, ...]) -> tuple[str, ...]:
    """What the report says about parts that were compiled; nothing where there are none."""
    if not paths:
        return ()
    names = ", ".join(path or "the model" for path in paths[:3]) + (" ..." if len(paths) > 3 else "")
    return (
        f"torch.compile: {names} runs uncompiled here, and is exported so: compiled code cannot be looked into; "
        "what the compiler changes is not compared",
    )


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Lets functions that a model compiles, or has compiled, run as the Python that they are."""
    stance: Any = getattr(getattr(torch, "compiler", None), "set_stance", None)
    # Without this module nothing has been compiled yet, and importing it takes seconds.
    loaded = "torch._dynamo" in sys.modules
    compile_ = torch.compile
    torch.compile = _uncompiled
    try:
        with stance("force_eager") if loaded and stance is not None else contextlib.nullcontext():
            yield
    finally:
        torch.compile = compile_


def _uncompiled(model: Any = None, **options: Any) -> Any:
    return (lambda function: function) if model is None else model


def _wrapped(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that an ``OptimizedModule`` was made of."""
    if type(module).__name__ != "OptimizedModule":
        return None
    found = module._modules.get("_orig_mod")
    return found if isinstance(found, torch.nn.Module) else None

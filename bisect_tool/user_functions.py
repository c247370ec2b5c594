"""Finds a function of the user's by ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bisect_tool.errors import BisectError


def find_function(target: str, option: str) -> Callable[..., Any]:
    """What ``module:function`` names; modules beside the case are found from the working directory.

    Args:
        target: as the user gave it.
        option: which option it was, for the messages.

    Raises:
        BisectError: it is of another form, the module can't be imported, or it has no such function.
    """
    module_name, separator, name = target.partition(":")
    if not separator or not name or not module_name:
        raise BisectError(f"{option} {target!r}: not module:function", hint=f"{option} mypackage.mymodule:function")
    # As with python -m.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        # The folder may be younger than what the finder remembers of it.
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BisectError(
            f"{option}: {module_name} cannot be imported ({type(error).__name__}: {error})",
            hint="run from the folder that holds it, or install it",
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None or not callable(function):
        raise BisectError(f"{option}: {module_name} has no function {name}", hint="give module:function")
    return function

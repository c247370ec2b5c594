"""``--preprocess module:function --raw FILE``: the sample as the user's own code makes it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from bisect_tool.backends.samples import Sample, sample_of
from bisect_tool.errors import BisectError


def make_sample(target: str, raw: str) -> Sample:
    """Calls ``function(path)`` and takes what it returns for the sample: a tensor, tuple, dictionary or numpy array.

    Raises:
        BisectError: the file or the function is missing, the function raises, or returns something else.
    """
    module_name, separator, name = target.partition(":")
    if not separator or not name:
        raise BisectError(f"--preprocess {target!r}: not module:function", hint="--preprocess mypackage.data:load")
    path = Path(raw)
    if not path.exists():
        raise BisectError(f"--raw {raw}: no such file", hint="give the file that the preprocessing starts from")
    function = _find(module_name, name)
    try:
        content = function(path)
    except Exception as error:  # the user's code may raise anything
        raise BisectError(
            f"--preprocess {target}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint=f"call {name}({str(path)!r}) on its own to see the whole traceback",
        ) from error
    return sample_of(content, f"{target}({raw})")


def _find(module_name: str, name: str) -> Any:
    # A function beside the case is found from the working directory, as with python -m.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BisectError(
            f"--preprocess: {module_name} cannot be imported ({type(error).__name__}: {error})",
            hint="run from the folder that holds it, or install it",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    function = getattr(module, name, None)
    if not callable(function):
        raise BisectError(f"--preprocess: {module_name} has no function {name}", hint="give module:function")
    return function

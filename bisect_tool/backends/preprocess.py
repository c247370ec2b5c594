"""``--preprocess module:function --raw FILE``: the sample as the user's own code makes it."""

from __future__ import annotations

from pathlib import Path

from bisect_tool.backends.samples import Sample, sample_of
from bisect_tool.errors import BisectError
from bisect_tool.user_functions import find_function


def make_sample(target: str, raw: str) -> Sample:
    """Calls ``function(path)`` and takes what it returns for the sample: a tensor, tuple, dictionary or numpy array.

    Raises:
        BisectError: the file or the function is missing, the function raises, or returns something else.
    """
    _, separator, name = target.partition(":")
    if not separator or not name:
        raise BisectError(f"--preprocess {target!r}: not module:function", hint="--preprocess mypackage.data:load")
    path = Path(raw)
    if not path.exists():
        raise BisectError(f"--raw {raw}: no such file", hint="give the file that the preprocessing starts from")
    function = find_function(target, "--preprocess")
    try:
        content = function(path)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BisectError(
            f"--preprocess {target}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint=f"call {name}({str(path)!r}) on its own to see the whole traceback",
        ) from error
    return sample_of(content, f"{target}({raw})")

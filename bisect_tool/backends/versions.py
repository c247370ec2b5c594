"""What two libraries must be able to do together, found out by doing it: version numbers tell less."""

from __future__ import annotations

import numpy as np
import torch

from bisect_tool.errors import BisectError


def require_shared_memory() -> None:
    """Does nothing if PyTorch and numpy can hand each other arrays.

    Raises:
        BisectError: they cannot: PyTorch was built for another major version of numpy.
    """
    try:
        torch.from_numpy(np.zeros(1)).numpy()
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise BisectError(
            f"PyTorch {torch.__version__} does not work with numpy {np.__version__}: {lines[0] if lines else ''}",
            hint="PyTorch before 2.3 needs numpy 1: pip install 'numpy<2'",
        ) from error

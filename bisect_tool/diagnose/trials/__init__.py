"""One thing at a time is changed in an origin's nodes, towards what PyTorch's call had: what mends the stage is the cause.

Nothing here runs anything: trials are proposed as edits of nodes, in the order in which a mend by them is believed.
"""

from __future__ import annotations

from bisect_tool.diagnose.trials.proposing import propose

__all__ = ["propose"]

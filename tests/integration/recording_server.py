"""Makes recordings, each in a process of its own that is forked from one in which torch is loaded already.

Reads jobs as lines of JSON, ``{"argv", "cwd", "log"}``, and answers each with the exit code. What a recording's code does to
the process (flags, threads, imports) is gone with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import traceback

import numpy as np
import torch
import torch._dynamo  # the first run under a dispatch mode would load it, in every process anew

from bisect_tool import recorder


def run(job: dict[str, object]) -> int:
    """In the forked process: one run of the recorder as a program."""
    os.chdir(str(job["cwd"]))
    # A process of its own starts from states of its own.
    random.seed()
    np.random.seed()
    torch.seed()
    sys.argv = ["bisect_recorder.py", *job["argv"]]  # type: ignore[misc]
    with open(str(job["log"]), "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            return int(recorder.main(sys.argv[1:]))
        except SystemExit as leave:
            return int(leave.code or 0)
        except BaseException:
            traceback.print_exc(file=log)
            return 70


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(run(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

"""Runs in a throw-away environment: ``python -m bisect_tool.cli.release_worker JOB.json OUT.npz``.

A job names a graph with its feeds, or a model with what it is loaded from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def outputs_of(job: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What the job's graph or model puts out."""
    from bisect_tool.backends.plain_outputs import graph_outputs, model_outputs

    if job["what"] == "graph":
        with np.load(job["feeds"], allow_pickle=False) as feeds:
            return graph_outputs(job["graph"], dict(feeds), job["threads"])
    from bisect_tool.cli.loading import load_case

    case = load_case(job["settings"], 0)
    return model_outputs(case.module, case.args, case.kwargs)


def require_own(package: str) -> None:
    """Ends the process unless the package, and what was imported of it, is this environment's own."""
    own = Path(sys.prefix).resolve()
    distribution = metadata.distribution(package)
    names = {Path(str(file)).parts[0].partition(".")[0] for file in distribution.files or () if file.suffix == ".py"}
    loaded = [str(getattr(sys.modules.get(name), "__file__", None) or "") for name in names]
    for place in (str(distribution.locate_file("")), *filter(None, loaded)):
        if own not in Path(place).resolve().parents:
            raise SystemExit(f"{package} was found outside of the throw-away environment; PYTHONPATH may lead there")


def main(job: str, out: str) -> None:
    """Writes the outputs, complete or not at all."""
    data = json.loads(Path(job).read_text(encoding="utf-8"))
    found = outputs_of(data)
    require_own(data["package"])
    target = Path(out)
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".npz", delete=False) as stream:
        np.savez(stream, **{name: np.asarray(array) for name, array in found.items()})  # type: ignore[arg-type]
    Path(stream.name).replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:3])

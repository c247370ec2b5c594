"""A recording to look at in Python: what was recorded, as a table and in a notebook, and its tensors one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bisect_tool.errors import BisectError
from bisect_tool.recordings.bundles import Recorded, open_bundle
from bisect_tool.records import OutputKey, StageRef
from bisect_tool.views import frame_of, html_of


@dataclass(frozen=True, slots=True)
class TraceStage:
    """One recorded stage; ``tensor``: its name, shape, dtype and statistics."""

    ref: StageRef
    level: str
    type: str
    source: str | None
    tensor: Recorded


@dataclass(frozen=True, slots=True)
class Trace:
    """A recording of ``bisect-tool record``, read with :func:`read_trace`; its tensors stay on disk.

    Attributes:
        path: of the recording.
        manifest: everything that it says about the run, as ``bundle.schema.json`` describes it.
        stages: in the order of the run.
    """

    path: Path
    manifest: Mapping[str, Any]
    stages: tuple[TraceStage, ...]

    def load(self, stage: str, call: int = 0, output: OutputKey = 0) -> NDArray[Any] | None:
        """A stage's tensor, in C order; ``None`` where the recording has no more than a summary of it.

        Raises:
            BisectError: there is no such stage, or the recording can't be read any more.
        """
        wanted = StageRef(stage, call, output)
        name = next((each.tensor.name for each in self.stages if each.ref == wanted), None)
        if name is None:
            near = [str(each.ref) for each in self.stages if each.ref.stage == stage][:3]
            known = near or [str(each.ref) for each in self.stages[:3]]
            raise BisectError(f"recording {self.path}: no stage {wanted}", hint=f"it has {', '.join(known)} ...")
        with open_bundle(self.path) as bundle:
            return bundle.load(name)

    def to_frame(self) -> Any:
        """The stages as a pandas DataFrame, with shape, dtype and statistics of each."""
        return frame_of("trace", self)

    def _repr_html_(self) -> str:
        return html_of("trace", self)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads what a recording says, and checks all of it.

    Raises:
        BisectError: there is none, it is of another version, or it was cut off or altered.
    """
    with open_bundle(path) as bundle:
        stages = tuple(
            TraceStage(
                StageRef(entry["stage"], entry["call"], entry["output"]),
                entry["level"],
                entry["type"],
                entry["source"],
                bundle.tensors[entry["tensor"]],
            )
            for entry in bundle.manifest["stages"]
        )
        return Trace(bundle.path, bundle.manifest, stages)

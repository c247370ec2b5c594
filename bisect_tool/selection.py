"""Which stages a report is about, and where the graph has to be cut for them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import get_args

from bisect_tool.align.matches import Match
from bisect_tool.compare import MAIN_LAYER, stage_inputs
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.globs import matches as glob_matches
from bisect_tool.records import Level, Stage, StageRef, TorchTrace

LEVELS: tuple[str, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Selection:
    """Stages to show.

    Attributes:
        judged: these count.
        outputs: the model's outputs that are none of them; they count too.
        groups: containers that are shown beside them.
        layers: judged stages and groups again, apart: one forced graph serves stages of which none lies inside another,
            since forcing the inner ones would make the outer one's local error nothing. ``main`` holds the outermost of
            the judged ones.
    """

    judged: tuple[Stage, ...]
    outputs: tuple[Stage, ...]
    groups: tuple[Stage, ...]
    layers: Mapping[str, tuple[Stage, ...]]

    @property
    def shown(self) -> tuple[Stage, ...]:
        return tuple(sorted([*self.judged, *self.outputs, *self.groups], key=lambda stage: stage.order))


def select(trace: TorchTrace, level: str, stages: Sequence[str], groups: Sequence[str]) -> Selection:
    """The stages to judge, the model's outputs that are none of them, and the containers to show beside them.

    Args:
        trace: the model's run.
        level: of the judged stages, unless ``stages`` says which.
        stages, groups: globs over paths.

    Raises:
        BisectError: a glob that nothing matches, or no level.
        InconclusiveError: the model has no stage at this level.
    """
    if level not in LEVELS:
        raise BisectError(f"level {level!r} is none", hint=f"levels are {', '.join(LEVELS)}")
    root = trace.modules.get("", "")
    judged = (
        _picked(trace, stages, "--stages") if stages else tuple(s for s in trace.stages if _at_level(s, level, root))
    )
    if not judged:
        other = {"op": "leaf", "leaf": "op, for functional code"}.get(level, "leaf, its modules hold no others")
        raise InconclusiveError(
            f"the model has no stage at level {level}",
            hint=f"try --level {other}; a model that hands on its inputs has none at all",
        )
    values = {stage.value for stage in judged}
    finals = {value for _, value in trace.outputs} - values
    outputs = tuple(s for s in trace.stages if s.ref.stage == root and s.value in finals)
    known = {stage.ref for stage in judged}
    containers = tuple(s for s in (_picked(trace, groups, "--group") if groups else ()) if s.ref not in known)
    layers: dict[str, list[Stage]] = {}
    for name, members in (("judged", judged), ("groups", containers)):
        depths = _nesting(members, root)
        for stage in members:
            depth = depths[stage.ref.stage]
            layer = MAIN_LAYER if name == "judged" and not depth else f"{name}{depth}"
            layers.setdefault(layer, []).append(stage)
    return Selection(judged, outputs, containers, {name: tuple(members) for name, members in layers.items()})


def _nesting(stages: Iterable[Stage], root: str) -> dict[str, int]:
    """How many of the other stages' paths each path lies inside; all lie inside the root."""
    paths = {stage.ref.stage for stage in stages}
    depths = {}
    for path in paths:
        parts = path.replace("/", ".").split(".")
        outer = {".".join(parts[:i]) for i in range(1, len(parts))} | {root}
        depths[path] = sum(other in paths and other != path for other in outer)
    return depths


def _at_level(stage: Stage, level: str, root: str) -> bool:
    if level == "op":
        return "#" in stage.ref.stage
    return stage.level == level and stage.ref.stage != root


def _picked(trace: TorchTrace, globs: Sequence[str], option: str) -> tuple[Stage, ...]:
    found: dict[StageRef, Stage] = {}
    for glob in globs:
        # As the report prints it; the path itself is empty.
        hits = [
            s
            for s in trace.stages
            if glob_matches(s.ref.stage, trace.modules.get("", "") if glob == "(model)" else glob)
        ]
        if not hits:
            paths = sorted({s.ref.stage for s in trace.stages if s.ref.stage})
            near = difflib.get_close_matches(glob, paths, n=3, cutoff=0.3) or paths[:3]
            raise BisectError(
                f"{option} {glob!r}: no stage of the model matches", hint=f"stages look like: {', '.join(near)}"
            )
        found.update((s.ref, s) for s in hits)
    return tuple(sorted(found.values(), key=lambda s: s.order))


@dataclass(frozen=True, slots=True)
class Cut:
    """Where one forced run is cut: PyTorch values that have an ONNX value, and the names of these.

    ``known`` holds the model's inputs too, which both sides are given.
    """

    values: frozenset[int]
    known: frozenset[int]
    names: frozenset[str]


def cut_of(stages: Iterable[Stage], trace: TorchTrace, matches: Mapping[int, Match]) -> Cut:
    """The cut at which every one of ``stages`` starts from its own inputs, as near as they have an ONNX value."""
    stages = list(stages)
    values = {s.value for s in stages if s.value in matches} | ancestors(stages, trace, matches.keys())
    inputs = {value for _, value in trace.inputs}
    return Cut(frozenset(values), frozenset(values | inputs), frozenset(matches[v].onnx for v in values))


def ancestors(stages: Iterable[Stage], trace: TorchTrace, known: Set[int]) -> set[int]:
    """The nearest values in ``known`` that the stages compute from."""
    return {value for stage in stages for value in stage_inputs(stage, trace.parents, known)}

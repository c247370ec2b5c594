"""The model as a tree of modules, each with the worst error below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bisect_tool.records import Comparison, Report, StageRow
from bisect_tool.reporters import selecting, wording


@dataclass(frozen=True, slots=True)
class Branch:
    """A module, or a stage.

    Attributes:
        name: last part of its path; several parts where a module holds nothing but one other.
        type: of a stage; empty for a module that is no stage.
        error, made: the largest total and local relative L2 in it; ``None`` where none was compared or measured.
        level: shade of ``error``.
        failing, stages: how many of the stages in it diverge, and how many there are.
        words: why the eye should find it: ``first diverging stage``, ``origin``.
        anchor: of a stage's row; ``None`` for a module.
        branches: what is inside.
    """

    name: str
    type: str
    error: float | None
    made: float | None
    level: int | None
    failing: int
    stages: int
    words: tuple[str, ...]
    anchor: str | None
    branches: tuple[Branch, ...] = ()


@dataclass(slots=True)
class _Node:
    rows: list[StageRow] = field(default_factory=list)
    inner: dict[str, _Node] = field(default_factory=dict)


def module_tree(report: Report, config: str | None) -> tuple[Branch, ...]:
    """The branches below the model, in the order of execution; () where no stage was compared under the configuration."""
    rows = selecting.stage_rows(report) or selecting.group_rows(report)
    if config is None or not any(config in row.results for row in rows):
        return ()
    root = _Node()
    for row in rows:
        node = root
        for part in _parts(row):
            node = node.inner.setdefault(part, _Node())
        node.rows.append(row)
    first, origins = selecting.first_ref(report, config), selecting.origin_refs(report, config)

    def words(row: StageRow) -> tuple[str, ...]:
        return (("first diverging stage",) if row.ref == first else ()) + (("origin",) if row.ref in origins else ())

    def branch(name: str, node: _Node) -> Branch:
        inner = [branch(part, below) for part, below in node.inner.items()]
        stages = [
            _stage(_own_name(row, name, bool(inner)), row, row.results.get(config), words(row)) for row in node.rows
        ]
        if len(stages) == 1 and not inner:
            return stages[0]
        below = [*stages, *inner]
        if len(below) == 1:
            within = below[0].name
            return replace(below[0], name=name + ("" if within.startswith("/") else ".") + within)
        return _module(name, below)

    return tuple(branch(part, node) for part, node in root.inner.items())


def _parts(row: StageRow) -> list[str]:
    """``layer2.0/add#0`` → layer2, 0, /add#0; the whole model is a branch of its own."""
    module, slash, operation = row.stage.partition("/")
    return [*(module.split(".") if module else []), *([slash + operation] if slash else [])] or ["(model)"]


def _own_name(row: StageRow, name: str, among: bool) -> str:
    """Of a stage among what is inside of it, or beside its other calls and outputs."""
    tail = str(replace(row.ref, stage="x"))[1:]
    return f"{name}{tail}" if tail or not among else f"{name} (its own value)"


def _stage(name: str, row: StageRow, result: Comparison | None, words: tuple[str, ...]) -> Branch:
    error = result.total.rel_l2 if result is not None else None
    return Branch(
        name=name,
        type=row.type,
        error=error,
        made=wording.local_rel(result) if result is not None else None,
        level=selecting.heat_level(error) if error is not None else None,
        failing=int(result is not None and result.judgement == "fail"),
        stages=1,
        words=words,
        anchor=f"r{row.index}",
    )


def _module(name: str, below: Sequence[Branch]) -> Branch:
    error = max((one.error for one in below if one.error is not None), key=selecting.badness, default=None)
    return Branch(
        name=name,
        type="",
        error=error,
        made=max((one.made for one in below if one.made is not None), key=selecting.badness, default=None),
        level=selecting.heat_level(error) if error is not None else None,
        failing=sum(one.failing for one in below),
        stages=sum(one.stages for one in below),
        words=tuple(dict.fromkeys(word for one in below for word in one.words)),
        anchor=None,
        branches=tuple(below),
    )

"""Comparisons and data flow → where a divergence shows first, and where error is made rather than passed on."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import replace

from bisect_tool.judging import makes_error, side_off
from bisect_tool.records import Comparison, FirstOverTolerance, Localization, Origin, StageRef, StageRow


def localize(rows: Sequence[StageRow], config: str) -> Localization:
    """Finds the first stage over tolerance, the origins, and the stages that only hand error on.

    Args:
        rows: judged stages in a topological order of the run.
        config: name of the configuration pair.

    Origins are judged by their noise floors, whatever tolerance the user set for totals.
    """
    found = [(row, row.results[config]) for row in rows if config in row.results]
    failing = [(row, result) for row, result in found if result.judgement == "fail"]
    first = failing[0][0] if failing else None
    making = [row for row, result in found if makes_error(row, result)]
    # What PyTorch computes twice and the graph once is one fault.
    refs = {row.ref for row in making}
    origins = [row for row in making if row.alias_of not in refs]
    # What a member makes, its module makes too, where both are shown.
    origins = [row for row in origins if not _has_member(row, origins, rows)]
    names = {row.index for row in making}
    return Localization(
        first_over_tolerance=FirstOverTolerance(first.stage, first.call, first.output, config) if first else None,
        origins=tuple(_origin(row, config) for row in origins),
        amplifiers=tuple(
            row.ref
            for row, result in failing
            if row.index not in names and result.local is not None and result.input_error != 0
        ),
    )


def _has_member(row: StageRow, origins: Sequence[StageRow], rows: Sequence[StageRow]) -> bool:
    """Whether one of the origins lies inside a module, in the same call of it."""
    inside = (f"{row.stage}.", f"{row.stage}/")
    own = [other for other in origins if other.stage.startswith(inside) and other.index < row.index]
    if not own:
        return False
    before = max((other.index for other in rows if other.stage == row.stage and other.index < row.index), default=-1)
    return any(other.index > before for other in own)


def _local(result: Comparison) -> float:
    assert result.local is not None
    return math.inf if result.local.problem or math.isnan(result.local.rel_l2) else result.local.rel_l2


def _origin(row: StageRow, config: str) -> Origin:
    result = row.results[config]
    assert row.onnx_value is not None
    return Origin(
        stage=row.stage,
        call=row.call,
        output=row.output,
        type=row.type,
        source=row.source,
        onnx_value=row.onnx_value,
        onnx_nodes=row.onnx_nodes,
        config=config,
        local_rel_l2=_local(result),
        noise_ratio=result.noise_ratio,
        side=side_off(result),
        onnx_ops=row.onnx_ops,
        onnx_weights=row.onnx_weights,
    )


def with_shares(rows: Sequence[StageRow], config: str, outputs: Set[StageRef] = frozenset()) -> list[StageRow]:
    """The rows with the share of the final error that each stage makes, for one configuration.

    Args:
        rows: in a topological order of the run.
        config: name of the configuration pair.
        outputs: stages whose value is an output of the model. Where none of them was compared, the stages that nobody
            reads stand in for them; an LSTM's last states are such stages too, and need not be outputs.

    The squared error of the model's outputs is followed back against the flow of data: of what arrives at a stage, the
    part ``local² / (local² + propagated²)`` was made there, and the rest is divided among the stages it reads, by the
    squares of their total errors. Errors of different stages are taken to be independent, as rounding is; the shares of
    all judged stages add up to 1 where the model's own inputs carry no error. A container has the sum of its stages,
    and a stage that hands on the value of another one has none.
    """
    plain = _one_for_each_value([row for row in rows if row.role != "group" and config in row.results])
    if not any(row.results[config].local is not None for row in plain):
        return list(rows)
    by_index = {row.index: row for row in plain}
    squares = {row.index: _square(row.results[config].total.rel_l2) for row in plain}
    read = {index for row in plain for index in row.inputs}
    ends = [row.index for row in plain if row.ref in outputs or row.alias_of in outputs]
    ends = ends or [row.index for row in plain if row.index not in read]
    arriving = dict.fromkeys(by_index, 0.0)
    whole = sum(squares[index] for index in ends)
    for index in ends:
        arriving[index] = squares[index] / whole if whole else 0.0
    shares: dict[int, float] = {}
    for row in reversed(plain):
        sources = {index: squares[index] for index in row.inputs if squares.get(index, 0) > 0}
        made = _made_here(row.results[config]) if sources else 1.0
        shares[row.index] = arriving[row.index] * made
        total = sum(sources.values())
        for index, square in sources.items():
            arriving[index] += arriving[row.index] * (1 - made) * square / total
    found = []
    for row in rows:
        result = row.results.get(config)
        if result is not None:
            inside = [row.index] if row.role != "group" else _members(row, plain)
            share = min(sum(shares.get(index, 0.0) for index in inside), 1.0) if inside else None
            row = replace(row, results={**row.results, config: replace(result, share=share)})
        found.append(row)
    return found


def _one_for_each_value(rows: Sequence[StageRow]) -> list[StageRow]:
    """Without stages that hand on what another row has: nothing reads them, and they are no outputs for that."""
    first: dict[object, StageRow] = {}
    for row in rows:
        first.setdefault(row.alias_of or row.ref, row)
    return list(first.values())


def _members(group: StageRow, rows: Sequence[StageRow]) -> list[int]:
    return [row.index for row in rows if row.stage.startswith((f"{group.stage}.", f"{group.stage}/"))]


def _square(error: float) -> float:
    # Infinite errors hide the finite ones beside them, as they should.
    return min(error, 1e30) ** 2 if not math.isnan(error) else 1e60


def _made_here(result: Comparison) -> float:
    if result.local is None:
        # Hands its input on, or was not forced: then nothing is known to be made here.
        return 0.0
    local = _square(_local(result))
    if result.amplification is None or result.input_error is None:
        # Inputs that are NaN, infinite or partly unknown: what was not made here came from them.
        handed_on = max(_square(result.total.rel_l2) - local, 0.0)
    else:
        handed_on = _square(result.amplification * result.input_error)
    return local / (local + handed_on) if local + handed_on else 0.0

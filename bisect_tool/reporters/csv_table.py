"""``stages.csv``: one row for each stage and configuration, for spreadsheets and notebooks.

Column names are stable. An empty cell means that the number was not measured; ``nan`` and ``inf`` are results.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bisect_tool.records import Comparison, Report, StageRow
from bisect_tool.reporters.wording import shape_text

if TYPE_CHECKING:
    from pandas import DataFrame, Series

STAGE_COLUMNS = ("index", "stage", "call", "output", "level", "type", "source", "shape", "dtype", "onnx_value")
TOTAL_COLUMNS = ("max_abs", "mean_abs", "rel_l2", "max_rel", "cosine", "sqnr_db", "max_ulp", "p99_abs")
LOCAL_COLUMNS = ("local_max_abs", "local_rel_l2")
RESULT_COLUMNS = ("input_error", "growth", "amplification", "floor", "noise_ratio", "judgement", "share")
SAMPLE_COLUMNS = ("index", "source", "status", "worst_output", "over_limit", "noise_ratio")
COLUMNS = (*STAGE_COLUMNS, "config", *TOTAL_COLUMNS, *LOCAL_COLUMNS, *RESULT_COLUMNS, "part")


def frame(report: Report) -> DataFrame:
    """The stage table as a DataFrame; a stage that no configuration reached has one row without results."""
    return frame_of_rows(report.stages)


def frame_of_rows(stages: Sequence[StageRow]) -> DataFrame:
    """The same, of rows alone."""
    import pandas as pd

    return typed(pd.DataFrame(_rows(stages), columns=list(COLUMNS), dtype=object))


def typed(frame: DataFrame) -> DataFrame:
    """A frame of Python objects with columns that pandas computes with.

    What is missing stays ``NA``: pandas would turn "not measured" into NaN, which is a result here.
    """
    return frame.apply(_typed)


def _typed(column: Series[Any]) -> Series[Any]:
    import pandas as pd

    missing = column.isna().to_numpy() & ~column.map(lambda each: isinstance(each, float)).to_numpy(dtype=bool)
    kinds = {type(each) for each in column[~missing]}
    if not kinds or not kinds <= {int, float}:
        return column.astype("boolean" if missing.any() else bool) if kinds == {bool} else column
    if kinds == {int} and any(abs(each) >= 2**63 for each in column[~missing]):
        return column
    if not missing.any():
        return column.astype(int if kinds == {int} else float)
    filled = column.where(~missing, 0)
    array = (
        pd.arrays.IntegerArray(filled.to_numpy(dtype="int64"), missing)
        if kinds == {int}
        else pd.arrays.FloatingArray(filled.to_numpy(dtype="float64"), missing)
    )
    return pd.Series(array, index=column.index, name=column.name)


def csv_text(report: Report) -> str:
    """The content of ``stages.csv``; numbers have all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(report.stages))
    return text.getvalue()


def samples_csv_text(report: Report) -> str:
    """The content of ``samples.csv``: one row for each sample."""
    text = io.StringIO()
    columns = (*SAMPLE_COLUMNS, "stage", "call", "output", "config", "exported_from", "folder", "reason")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for sample in report.samples:
        first = sample.first_over_tolerance
        where = {name: getattr(first, name) for name in ("stage", "call", "output", "config")} if first else {}
        own = {name: getattr(sample, name) for name in columns if name not in ("stage", "call", "output", "config")}
        writer.writerow({**own, **where})
    return text.getvalue()


def _rows(stages: Sequence[StageRow]) -> list[dict[str, Any]]:
    return [
        _cells(row, config, result)
        for row in stages
        for config, result in (row.results.items() if row.results else [(None, None)])
    ]


def _cells(row: StageRow, config: str | None, result: Comparison | None) -> dict[str, Any]:
    cells: dict[str, Any] = dict.fromkeys(COLUMNS)
    cells.update({name: getattr(row, name) for name in STAGE_COLUMNS})
    cells.update(shape=shape_text(row.shape), config=config, judgement="not compared", part=row.part)
    if result is not None:
        cells.update({name: getattr(result.total, name) for name in TOTAL_COLUMNS})
        cells.update({name: getattr(result, name) for name in RESULT_COLUMNS})
        if result.local is not None:
            cells.update(local_max_abs=result.local.max_abs, local_rel_l2=result.local.rel_l2)
    return cells

"""``stages.csv``: stable columns, every digit, and nothing measured told from not measured."""

from __future__ import annotations

import csv
import io
import math

import pandas as pd
import pytest
from report_samples import HOSTILE_NAMES, SAMPLES, diverging, empty, hostile, long, matrix

from bisect_tool.reporters.csv_table import csv_text, frame

HEADER = (
    "index,stage,call,output,level,type,source,shape,dtype,onnx_value,config,max_abs,mean_abs,rel_l2,max_rel,cosine,"
    "sqnr_db,max_ulp,p99_abs,local_max_abs,local_rel_l2,input_error,growth,amplification,floor,noise_ratio,judgement,share,part"
)


def test_header_is_stable() -> None:
    """The columns have the documented names and order, also when nothing was compared."""
    assert HEADER + "\n" == csv_text(empty())
    assert HEADER == csv_text(diverging()).partition("\n")[0]


def test_one_row_for_each_stage_and_config() -> None:
    """8 stages under 2 configurations, 1 not compared, and 2 containers under 1 make 19 rows."""
    table = pd.read_csv(io.StringIO(csv_text(diverging())))
    assert 19 == len(table)
    assert {"ort-off": 10, "ort-all": 8} == table["config"].value_counts().to_dict()
    assert ["stem.bn"] == table.loc[table["config"].isna(), "stage"].tolist()
    assert ["not compared"] == table.loc[table["config"].isna(), "judgement"].tolist()


def test_cells_of_a_row() -> None:
    """A row holds the stage's facts, the totals, the local error and what follows from them."""
    rows = csv.DictReader(io.StringIO(csv_text(diverging())))
    [row] = [row for row in rows if row["stage"] == "layer3.upsample" and row["config"] == "ort-off"]
    assert ("6", "0", "0", "leaf") == (row["index"], row["call"], row["output"], row["level"])
    assert ("Upsample", "model.py:41", "1x64x28x28") == (row["type"], row["source"], row["shape"])
    assert ("0.048", "0.048", "fail") == (row["rel_l2"], row["local_rel_l2"], row["judgement"])
    assert "0.384" == row["max_abs"]
    assert "1e-07" == row["floor"]


def test_shares_of_each_configuration() -> None:
    """The share of the final error is there for each configuration that measured it, and empty for the others."""
    rows = csv.DictReader(io.StringIO(csv_text(matrix())))
    shares = {row["config"]: row["share"] for row in rows if row["stage"] == "block.conv"}
    assert ("0.2", "", "0.75", "0.75") == tuple(
        shares[name] for name in ("ort-cpu-off", "ort-cpu-all", "ort-cuda-off", "tf32-emulated")
    )


def test_numbers_keep_every_digit() -> None:
    """Reading the file gives back the report's floats, bit for bit."""
    report = long()
    rows = csv.DictReader(io.StringIO(csv_text(report)))
    assert [row.results["ort-off"].total.rel_l2 for row in report.stages] == [float(row["rel_l2"]) for row in rows]


def test_not_measured_is_empty_and_nan_is_a_result() -> None:
    """Empty cells were not measured; NaN and infinities are written out."""
    rows = list(csv.DictReader(io.StringIO(csv_text(hostile()))))
    assert ["1e-07", "nan", "inf", "0.0"] == [row["rel_l2"] for row in rows[:4]]
    assert "-inf" == rows[2]["sqnr_db"]
    assert ("nan", "", "", "") == tuple(rows[-1][name] for name in ("rel_l2", "local_rel_l2", "growth", "floor"))


def test_any_name_survives() -> None:
    """Commas, newlines and quotes in names do not shift a column."""
    rows = list(csv.DictReader(io.StringIO(csv_text(hostile()), newline="")))
    assert list(HOSTILE_NAMES) == [row["stage"] for row in rows[:-1]]
    assert ("head", "2", "boxes[0]", "scalar") == tuple(rows[-1][name] for name in ("stage", "call", "output", "shape"))


@pytest.mark.parametrize("name", SAMPLES)
def test_text_and_frame_say_the_same(name: str) -> None:
    """The file is what pandas would write of the DataFrame."""
    table = frame(SAMPLES[name]()).map(lambda value: str(value) if isinstance(value, float) else value)
    assert table.to_csv(index=False, lineterminator="\n") == csv_text(SAMPLES[name]())


def test_frame_tells_missing_from_nan() -> None:
    """The DataFrame has NA for what was not measured."""
    table = frame(hostile())
    assert table["local_rel_l2"].iloc[-1] is pd.NA
    assert math.isnan(table["rel_l2"].iloc[-1])

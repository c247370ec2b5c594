"""Reports and recordings in a notebook: HTML that is small and escaped, and tables as DataFrames."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from report_samples import SAMPLES, SCRIPT, diverging, healthy, hostile, long, matrix

import bisect_tool
from bisect_tool.errors import BisectError
from bisect_tool.records import StageRows
from bisect_tool.reporters import csv_table
from bisect_tool.store import report_from_json, report_to_json, write_report_folder


class Seen(HTMLParser):
    """Tags in order, whether each is closed, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_has_a_small_view(name: str) -> None:
    """Well-formed, a few kilobytes for any model, and of a few harmless elements only."""
    text = SAMPLES[name]()._repr_html_()
    seen = Seen(text)
    assert [] == seen.open
    allowed = {"div", "p", "br", "strong", "table", "tr", "th", "td", "details", "summary"}
    assert set(seen.tags) <= allowed
    assert len(text) < 20_000
    assert not re.search(r"color|<style|<script|javascript:", text)


def test_a_view_has_verdict_cause_and_the_stages_that_matter() -> None:
    """What somebody looks for first is there, and so is the origin in a long model."""
    words = " ".join(Seen(diverging()._repr_html_()).words)
    assert "DIVERGES" in words and "The divergence starts at layer3.upsample" in words
    assert "BD103" in words and "set pytorch_half_pixel" in words
    words = " ".join(Seen(long()._repr_html_()).words)
    for origin in long().verdict.origins:
        assert str(origin.ref) in words
    assert "of 200 stages" in words


def test_hostile_names_are_text() -> None:
    """Nothing that a model is called becomes an element or steers anything."""
    for text in (hostile()._repr_html_(), hostile().stages._repr_html_()):
        assert SCRIPT not in text
        assert SCRIPT in "".join(Seen(text).words)
        assert all(char == "\n" or char.isprintable() for char in text)
        text.encode("utf-8")


def test_stages_stay_a_tuple() -> None:
    """Records, equality, JSON and pickling are as before; only the way they show themselves is new."""
    report = healthy()
    assert isinstance(report.stages, StageRows)
    assert report.stages == tuple(report.stages)
    assert isinstance(replace(report, stages=tuple(report.stages[:2])).stages, StageRows)
    assert report == report_from_json(report_to_json(report))
    assert isinstance(report_from_json(report_to_json(report)).stages, StageRows)
    assert report == pickle.loads(pickle.dumps(report))


def test_stages_as_a_frame() -> None:
    """One row for each stage and configuration, as in stages.csv, whichever way it is asked for."""
    report = matrix()
    frame = report.to_frame()
    assert list(csv_table.COLUMNS) == list(frame.columns)
    assert sum(max(len(row.results), 1) for row in report.stages) == len(frame)
    assert frame.equals(report.stages.to_frame())
    failing = frame[(frame.judgement == "fail") & (frame.config == "ort-cuda-off")]
    assert "stem.conv" == failing.iloc[0].stage
    assert report.stages[0].results["ort-cuda-off"].total.rel_l2 == failing.iloc[0].rel_l2
    assert frame.rel_l2.max() == frame.nlargest(1, "rel_l2").iloc[0].rel_l2


def test_columns_of_numbers_are_that_to_pandas() -> None:
    """What was not measured is missing, and NaN is a result."""
    rows = {"a": [1.0, None, math.nan], "b": [1, None, 3], "c": [1.0, 2.0, math.inf], "d": ["x", None, 1]}
    found = csv_table.typed(pd.DataFrame({**rows, "e": [True, False, True]}, dtype=object))
    assert ["Float64", "Int64", "float64", "object", "bool"] == [str(kind) for kind in found.dtypes]
    assert [False, True, False] == [value is pd.NA for value in found.a] and math.isnan(found.a[2])
    assert [3] == list(found.nlargest(1, "b").b)
    huge = csv_table.typed(pd.DataFrame({"a": [2**63, None]}, dtype=object))
    assert [2**63, None] == list(huge.a)


def test_a_long_table_is_cut_and_says_so() -> None:
    """A cell shows the first rows; the frame has all."""
    seen = Seen(long().stages._repr_html_())
    assert seen.tags.count("tr") < 20
    assert ".to_frame() has all" in " ".join(seen.words)
    assert 200 == len(long().stages.to_frame())


def test_reports_are_read_from_their_folder(tmp_path: Path) -> None:
    """``bisect_tool.read_report`` is all that a notebook needs."""
    write_report_folder(healthy(), tmp_path / "report")
    assert healthy() == bisect_tool.read_report(tmp_path / "report")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> bisect_tool.Trace:
    """A recording of a small model."""
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    bisect_tool.record(model, torch.ones(2, 4), output=str(path))
    return bisect_tool.read_trace(path)


def test_a_trace_shows_its_stages(trace: bisect_tool.Trace) -> None:
    """As a view, as a frame, and tensor by tensor."""
    seen = Seen(trace._repr_html_())
    assert [] == seen.open
    words = " ".join(seen.words)
    assert "a.trace" in words and "Linear" in words and "2x3" in words
    frame = trace.to_frame()
    assert len(trace.stages) == len(frame)
    [relu] = [stage for stage in trace.stages if stage.type == "ReLU"]
    values = trace.load(relu.ref.stage, relu.ref.call, relu.ref.output)
    assert values is not None and (2, 3) == values.shape
    row = frame[(frame.stage == relu.ref.stage) & (frame.type == "ReLU")].iloc[0]
    assert float(values.max()) == pytest.approx(row.maximum)
    assert np.linalg.norm(values) == pytest.approx(row.norm)


def test_a_missing_stage_is_told(trace: bisect_tool.Trace) -> None:
    """With some of those that there are."""
    with pytest.raises(BisectError, match="no stage nowhere") as raised:
        trace.load("nowhere")
    assert raised.value.hint is not None and str(trace.stages[0].ref) in raised.value.hint

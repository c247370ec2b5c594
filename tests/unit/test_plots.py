"""The amplification plot: what is drawn where, for every odd set of numbers, and the same bytes each time."""

from __future__ import annotations

import io
import math
import struct
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from report_samples import ORT_OFF, SAMPLES, SCRIPT, comparison, config_run, diverging, healthy, hostile, long, row

from bisect_tool.records import Report, Tolerance
from bisect_tool.reporters import plots


def of(axes: Axes, label: str) -> Any:
    """The line whose label begins so."""
    [line] = [line for line in axes.get_lines() if str(line.get_label()).startswith(label)]
    return line


def labels(axes: Axes) -> list[str]:
    return [str(line.get_label()) for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def report_of(totals: list[float], growths: list[float | None] | None = None) -> Report:
    """A report whose stages have these errors, total and local alike."""
    rows = []
    for index, total in enumerate(totals):
        result = comparison(total, total, judgement="fail")
        if growths is not None:
            result = replace(result, growth=growths[index])
        rows.append(row(index, f"stage{index}", "Conv2d", {"ort-off": result}))
    return replace(healthy(), stages=tuple(rows), configs=(config_run("ort-off", ORT_OFF, 1.0),))


def svg_texts(text: str) -> list[str]:
    return [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_can_be_drawn(name: str) -> None:
    """PNG and SVG are well formed for every sample, and drawing warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.images(SAMPLES[name]())
    assert b"\x89PNG\r\n\x1a\n" == drawn.png[:8]
    width, height = struct.unpack(">II", drawn.png[16:24])
    assert width >= 1500
    assert 1050 == height
    assert "{http://www.w3.org/2000/svg}svg" == ElementTree.fromstring(drawn.svg).tag


@pytest.mark.parametrize(
    "totals",
    [
        [],
        [1e-7],
        [0.0],
        [0.0, 0.0, 0.0],
        [math.nan, math.inf],
        [math.nan],
        [1e-300, 1e300, 1e-7],
        [1e-7] * 500,
    ],
    ids=["none", "one", "one zero", "all zeros", "none finite", "one nan", "extremes", "five hundred"],
)
def test_odd_numbers(totals: list[float]) -> None:
    """No count and no value of stages upsets the axes; their limits are finite, positive and in order."""
    figure = plots.draw(report_of(totals, [value or None for value in totals]))
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert 0 < low < high < math.inf
        assert "log" == axes.get_yscale()
    figure.savefig(io.BytesIO(), format="png")


def test_the_curves_are_the_reports_numbers() -> None:
    """Total and local errors and growth are drawn at their stages; the curve runs on over what was not compared."""
    errors, growth = plots.draw(diverging()).axes
    total = of(errors, "total: against")
    assert [0, 1, 3, 4, 5, 6, 7, 8] == list(total.get_xdata())
    assert [1.1e-7, 1.2e-7, 2.0e-7, 2.2e-7, 2.1e-7, 4.8e-2, 3.9e-2, 5.2e-2] == list(total.get_ydata())
    local = of(errors, "local: made")
    assert 2.0e-7 == dict(zip(local.get_xdata(), local.get_ydata(), strict=True))[7]
    assert 1.0 == growth.get_lines()[0].get_ydata()[0]
    ratios = of(growth, "_growth")
    assert 4.8e-2 / 2.1e-7 == dict(zip(ratios.get_xdata(), ratios.get_ydata(), strict=True))[6]


def test_zero_has_a_place_and_a_mark_of_its_own() -> None:
    """Zeros lie on a line under everything else, marked and named apart; they leave a gap in the curve."""
    errors, growth = plots.draw(report_of([1e-6, 0.0, 1e-3], [None, 0.0, 5.0])).axes
    zeros = of(errors, "total: zero")
    assert [1] == list(zeros.get_xdata())
    assert zeros.get_ydata()[0] < 1e-6
    assert zeros.get_ydata()[0] > errors.get_ylim()[0]
    assert "v" == zeros.get_marker()
    assert math.isnan(of(errors, "total: against").get_ydata()[1])
    assert [1] == list(of(growth, "_zero").get_xdata())


def test_nan_and_inf_have_a_place_and_a_mark_of_their_own() -> None:
    """What is not finite lies above everything else, marked and named apart."""
    errors, growth = plots.draw(report_of([1e-6, math.nan, math.inf], [None, math.inf, math.nan])).axes
    beyond = of(errors, "total: NaN or infinite")
    assert [1, 2] == list(beyond.get_xdata())
    assert 1e-4 < beyond.get_ydata()[0] < errors.get_ylim()[1]
    assert "x" == beyond.get_marker()
    assert [1, 2] == list(of(growth, "_beyond").get_xdata())


def test_tolerance_line() -> None:
    """The limit of each stage's dtype is drawn across its place; a tolerance of another form has no line here."""
    rows = list(report_of([1e-6, 1e-6]).stages)
    rows[1] = replace(rows[1], dtype="float16")
    report = replace(report_of([1e-6, 1e-6]), stages=tuple(rows))
    [errors, _] = plots.draw(report).axes
    assert [1e-4, 1e-4, 2e-2, 2e-2] == list(of(errors, "tolerance").get_ydata())
    assert [-0.5, 0.5, 0.5, 1.5] == list(of(errors, "tolerance").get_xdata())
    [errors, _] = plots.draw(replace(report, tolerance=Tolerance("user", max_abs=1.0))).axes
    assert "tolerance" not in labels(errors)


def test_divergence_and_origins_are_marked() -> None:
    """The first diverging stage is named in the plot, and a star stands at the local error of each origin."""
    [errors, _] = plots.draw(diverging()).axes
    assert "first diverging stage: layer3.upsample" in [text.get_text() for text in errors.texts]
    star = of(errors, "origin")
    assert ([6], [4.8e-2]) == (list(star.get_xdata()), list(star.get_ydata()))
    [errors, _] = plots.draw(long()).axes
    assert [90, 150] == list(of(errors, "origin").get_xdata())
    [errors, _] = plots.draw(healthy()).axes
    assert [] == [text.get_text() for text in errors.texts]
    assert "origin: the error is made here" not in labels(errors)


def test_nothing_compared_is_said() -> None:
    """An empty plot says why, and has no legend for curves that it lacks."""
    figure = plots.draw(SAMPLES["empty"]())
    assert "no stage was compared" in [text.get_text() for text in figure.axes[0].texts]
    assert [] == labels(figure.axes[0])


def test_names_under_the_axis() -> None:
    """Short models have every name; long ones are thinned, keep those that matter, and stay distinct."""
    [_, growth] = plots.draw(diverging()).axes
    assert [str(row.ref) for row in diverging().stages[:9]] == [text.get_text() for text in growth.get_xticklabels()]
    [_, growth] = plots.draw(long()).axes
    names = [text.get_text() for text in growth.get_xticklabels()]
    assert 30 <= len(names) <= 2 * plots.LABELS
    assert {90, 150} <= {int(tick) for tick in growth.get_xticks()}
    assert len(names) == len(set(names))
    assert all(len(name) <= plots.LABEL_WIDTH for name in names)


def test_curves_differ_without_colour() -> None:
    """Total, local and growth differ in marker and line style, so that the plot reads in grey."""
    errors, growth = plots.draw(diverging()).axes
    lines = [of(errors, "total: against"), of(errors, "local: made"), of(growth, "_growth")]
    assert 3 == len({line.get_marker() for line in lines})
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_images_are_deterministic() -> None:
    """The same report gives the same bytes, with no date and no name of a program in them."""
    drawn = plots.images(diverging())
    assert drawn == plots.images(diverging())
    assert "<dc:date>" not in drawn.svg
    assert "Matplotlib" not in drawn.svg


def test_names_in_svg_are_text() -> None:
    """Names are text in the SVG, in any script, as they are; formulas are not set, scripts are not elements."""
    text = plots.images(hostile()).svg
    assert SCRIPT not in text
    assert SCRIPT in svg_texts(text)
    assert r"$\frac{1}{0$ ]]> --> {{ 7*7 }}" in svg_texts(text)
    assert "层.卷积" * 6 in svg_texts(text)
    assert not [node for node in ElementTree.fromstring(text).iter() if node.tag.endswith("script")]


def test_drawing_leaves_no_state() -> None:
    """Neither matplotlib's settings nor pyplot's list of figures are touched."""
    before = dict(matplotlib.rcParams)
    plots.images(diverging())
    assert before == dict(matplotlib.rcParams)

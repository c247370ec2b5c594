"""What is drawn on the page: the error plot, the tree of modules, an origin's neighbourhood, pictures; and its colours."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_samples import SCRIPT, big, comparison, diverging, empty, healthy, hostile, matrix, picture

from bisect_tool.records import NodeDetail, Origin, Report
from bisect_tool.reporters import causes, error_plot, html, module_tree, neighbourhood, tensor_pictures

# The error plot


def test_curves_of_the_plot() -> None:
    """Total, local and propagated error of each stage that was compared, the larger the higher; the tolerance as a level."""
    plot = error_plot.error_plot(diverging(), "ort-off")
    assert plot is not None
    by_name = {curve.name: curve for curve in plot.curves}
    assert {"total": 8, "propagated": 7, "local": 8} == {name: len(curve.marks) for name, curve in by_name.items()}
    total, local = by_name["total"].marks, by_name["local"].marks
    assert total[5].y == local[5].y < total[4].y  # made in the sixth that was compared
    assert local[6].y > total[6].y  # handed on by the next one
    assert "zero" == local[1].kind and {"point"} == {mark.kind for mark in total}
    assert 1 == plot.limits.count("M") and plot.floors.startswith("M")
    assert plot.first is not None and "layer3.upsample" == plot.first[1]
    assert [(total[5].x, local[5].y)] == [*plot.origins]
    assert all(plot.left <= mark.x <= plot.right and plot.top <= mark.y <= plot.bottom for mark in (*total, *local))


def test_spots_have_the_numbers() -> None:
    """Each stage has a place of its own, with its numbers, inside the drawing; the tabulator stops at few."""
    plot = error_plot.error_plot(diverging(), "ort-off")
    assert plot is not None
    assert [f"r{number}" for number in range(9)] == [spot.anchor for spot in plot.spots]
    (stop,) = [spot for spot in plot.spots if spot.stop]
    assert ("layer3.upsample", "first diverging stage, origin, Upsample, model.py:41, FAIL") == stop.lines[:2]
    assert "total 4.8e-02, local 4.8e-02, propagated 4.3e-02" == stop.lines[2]
    assert "growth 2.3e+05, noise ratio 4.8e+05" == stop.lines[3]
    assert "n/c" in plot.spots[2].lines[1] and 2 == len(plot.spots[2].lines)
    for one, other in zip(plot.spots, plot.spots[1:], strict=False):
        assert one.left + one.width == pytest.approx(other.left)
    assert all(0 <= spot.tip[0] and sum(spot.tip) <= plot.width for spot in plot.spots)


def test_plot_of_odd_numbers() -> None:
    """NaN and infinities are at the top, zeros at the bottom; nothing compared is no plot."""
    plot = error_plot.error_plot(hostile(), "[blue]ort")
    assert plot is not None
    kinds = [mark.kind for mark in next(curve for curve in plot.curves if curve.name == "total").marks]
    assert ["point", "beyond", "beyond", "zero", "zero", "point"] == kinds[:6]
    assert "esc\\x1b[31mred\\nnew line" == plot.spots[3].lines[0]
    assert error_plot.error_plot(empty(), "ort-off") is None and error_plot.error_plot(healthy(), None) is None


def test_propagated_error() -> None:
    """None where nothing was measured, zero without an error to hand on."""
    assert error_plot.propagated(comparison(1e-3, None, 1e-4)) is None
    assert 0.0 == error_plot.propagated(comparison(1e-3, 1e-3, 0.0))
    assert error_plot.propagated(comparison(1e-3, 1e-6, 1e-4)) == pytest.approx(0.9e-3)


# The tree of modules


def test_modules_have_the_worst_below() -> None:
    """Paths become branches; a module has the largest error of its stages, how many fail, and why to look there."""
    branches = module_tree.module_tree(diverging(), "ort-off")
    assert ["stem", "layer2.0", "layer3", "head.fc"] == [branch.name for branch in branches]
    stem, layer2, layer3, head = branches
    assert ["conv", "relu", "bn"] == [branch.name for branch in stem.branches]
    assert (1.2e-7, 0, 3) == (stem.error, stem.failing, stem.stages)
    assert stem.branches[2].error is None and stem.branches[2].level is None
    assert ["conv1", "conv2", "/add#0"] == [branch.name for branch in layer2.branches]
    assert ("Linear", "r8") == (head.type, head.anchor)
    assert (4.8e-2, 4.8e-2, 2, ("first diverging stage", "origin")) == (
        layer3.error,
        layer3.made,
        layer3.failing,
        layer3.words,
    )
    assert "r6" == layer3.branches[0].anchor and layer3.anchor is None


def test_every_stage_is_in_the_tree_once() -> None:
    """500 stages, calls and outputs of one module among them."""
    report = big()
    rows = [
        *report.stages,
        replace(report.stages[3], index=500, call=1),
        replace(report.stages[3], index=501, output="x"),
    ]

    def anchors(branches: tuple[module_tree.Branch, ...]) -> list[str]:
        return [
            anchor for branch in branches for anchor in ([branch.anchor] if branch.anchor else anchors(branch.branches))
        ]

    tree = module_tree.module_tree(replace(report, stages=tuple(rows)), "ort-off")
    found = anchors(tree)
    assert sorted(found) == sorted(f"r{number}" for number in range(502))
    assert ("backbone.stages",) == tuple(branch.name for branch in tree)
    assert () == module_tree.module_tree(report, "other")


# The neighbourhood


def with_nodes(report: Report) -> Origin:
    details = (
        NodeDetail("cast", "Cast", {"to": "1"}, None, ("/stem/relu_output_0",), ("a",)),
        NodeDetail("sizes", "Concat", {"axis": "0"}, None, ("s",), ("b",)),
        NodeDetail("resize", "Resize", {f"k{n}": "v" * 40 for n in range(8)}, "m.py:3", ("a", "", "b", "w"), ("y",)),
    )
    return replace(report.verdict.origins[0], onnx_nodes=("cast", "sizes", "resize", "later"), onnx_details=details)


def test_graph_around_an_origin() -> None:
    """Boxes for what it reads, PyTorch's module, the nodes in their order, the comparison, and what reads it."""
    report = diverging()
    rows = list(report.stages)
    rows[6] = replace(rows[6], inputs=(1, 5), onnx_weights=("w",))
    rows[7], rows[8] = replace(rows[7], inputs=(6,)), replace(rows[8], inputs=(7,))
    drawn = neighbourhood.neighbourhood(replace(report, stages=tuple(rows)), with_nodes(report))
    assert drawn is not None
    heads = [box.lines[0] for box in drawn.boxes]
    assert ["stem.relu", "layer2.0/add#0", "ONNX Cast", "ONNX Concat", "PyTorch Upsample", "ONNX Resize"] == heads[:6]
    assert ["1 more node", "the same inputs, compared", "layer3.conv"] == heads[6:]
    resize = drawn.boxes[5]
    assert "reads w" in resize.lines and "4 more attributes" in resize.lines and "k7=" + "v" * 40 in resize.text
    assert all(len(line) <= 31 for box in drawn.boxes for line in box.lines)
    # The module reads both stages, Cast the first; who reads the second is not known: both first nodes. Both feed
    # Resize; that and the module are compared; one stage reads the result.
    assert 2 + 1 + 2 + 2 + 2 + 1 == len(drawn.arrows)
    places = [(box.x, box.y) for box in drawn.boxes]
    assert len(set(places)) == len(places)
    for one in drawn.boxes:
        assert one.x + neighbourhood.WIDTH <= drawn.width and one.y + one.height <= drawn.height
        for other in drawn.boxes:
            apart = (
                abs(one.x - other.x) >= neighbourhood.WIDTH
                or one.y >= other.y + other.height
                or other.y >= one.y + one.height
            )
            assert one is other or apart
    assert "it reads stem.relu, layer2.0/add#0" in drawn.text


def test_graph_without_details() -> None:
    """Reports of older runs, and stages at both ends of the model, have a graph too."""
    report = diverging()
    drawn = neighbourhood.neighbourhood(report, report.verdict.origins[0])
    assert drawn is not None and any(box.kind == "node" for box in drawn.boxes)
    first = replace(report.verdict.origins[0], stage="stem.conv")
    text = neighbourhood.neighbourhood(report, first)
    assert text is not None and "the inputs of the model" in text.text
    assert neighbourhood.neighbourhood(report, replace(first, stage="gone")) is None


def test_names_of_nodes_are_escaped() -> None:
    """Attributes and names of a model's nodes are text."""
    report = diverging()
    node = NodeDetail(SCRIPT, SCRIPT, {SCRIPT: SCRIPT}, SCRIPT, (SCRIPT,), ("y",))
    origin = replace(report.verdict.origins[0], onnx_details=(node,), onnx_nodes=(SCRIPT,))
    rows = tuple(replace(row, onnx_weights=(SCRIPT,)) for row in report.stages)
    report = replace(report, stages=rows, verdict=replace(report.verdict, origins=(origin,)))
    text = html.html_text(report)
    assert SCRIPT not in text and "ONNX &lt;script&gt;" in text


# Pictures


def image(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), np.int64)


def test_a_border_is_seen() -> None:
    """The image of the error is bright where the error is; the words say so too."""
    views = tensor_pictures.views(diverging(), "ort-off")
    ((key, view),) = views.items()
    assert ("layer3.upsample", "ort-off") == (str(key[0]), key[1])
    light = image(view.error) @ [0.2126, 0.7152, 0.0722]
    assert (28, 28) == light.shape
    assert light[0].min() > 2 * light[1:-1, 1:-1].max()
    assert "along the border only" in view.text
    assert (256, 256) == (view.width, view.height) and ("-1.0e+00", "2.5e+00") == view.range_text
    assert "rows: axis 2 (28), columns: axis 3 (28) of 1x64x28x28; the largest over all other axes" == view.axes
    assert "50176 elements, 264 of them equal" == view.counts
    assert 5 == len(view.bars) and 0 < view.bars[0].x < view.bars[-1].x < tensor_pictures.WIDTH
    page = html.html_text(diverging())
    assert view.error in page and "What it looks like" in page


def test_light_grows_along_the_palette() -> None:
    """In grey the images say the same."""
    data = tensor_pictures._palette(100)
    colours = np.frombuffer(data, np.uint8).reshape(256, 3).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(colours[100:255]) > 0)


def test_broken_pictures_are_left_out() -> None:
    """A map that is not of its size is not drawn, and the page is there."""
    report = diverging()
    row = report.stages[6]
    result = replace(row.results["ort-off"], picture=picture(error="AAAA"))
    rows = [*report.stages[:6], replace(row, results={"ort-off": result}), *report.stages[7:]]
    report = replace(report, stages=tuple(rows))
    assert {} == tensor_pictures.views(report, "ort-off")
    assert "What it looks like" not in html.html_text(report)


def test_not_finite_and_thin_pictures() -> None:
    """What is not finite is counted and pink; a strip is as high as can be seen."""
    report = diverging()
    row = replace(report.stages[6], shape=(1, 784))
    strip = picture(axes=(1,), rows=1, columns=4, error="AP/+AA==", expected="AAECAw==", nonfinite=1)
    rows = (*report.stages[:6], replace(row, results={"ort-off": replace(row.results["ort-off"], picture=strip)}))
    ((_, view),) = tensor_pictures.views(replace(report, stages=rows), "ort-off").items()
    assert (256, 32) == (view.width, view.height)
    assert "1 not finite on one side (pink)" in view.counts
    assert [255, 0, 220] == image(view.error)[0, 1].tolist()


# What was considered


def test_everything_considered_is_listed_once() -> None:
    """Switches, trials and what was ruled out are one list, causes first."""
    rows = causes.considered(matrix())
    assert "cause" == rows[0].conclusion and "TF32 in cuDNN convolutions" == rows[0].title
    assert ["cause", "ruled out", "ruled out"] == [row.conclusion for row in rows]
    assert "1 cause, 2 ruled out" == causes.counts_text(rows)
    (cause, *ruled_out) = causes.considered(diverging())
    assert ("BD103", "cause") == (cause.code, cause.conclusion)
    assert {"ruled out"} == {row.conclusion for row in ruled_out}


# Colours

STYLE = (html.TEMPLATES / "report.css").read_text(encoding="utf-8")
TEXT = ("ink", "dim", "good", "bad", "warn", "link")
MARKS = ("total", "local", "propagated", "floor", "first", "star")


def schemes() -> dict[str, dict[str, tuple[int, ...]]]:
    """The colours of both schemes, by the names of their variables."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    return {
        name: {
            variable: tuple(int(colour[place : place + 2], 16) for place in (0, 2, 4))
            for variable, colour in re.findall(r"--(\w+): #([0-9a-f]{6})", block)
        }
        for name, block in zip(("light", "dark"), blocks, strict=True)
    }


def linear(colour: tuple[float, ...]) -> np.ndarray:
    parts = np.asarray(colour) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def mixed(top: tuple[int, ...], share: float, below: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(share * one + (1 - share) * other for one, other in zip(top, below, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(scheme: str) -> None:
    """At least 4.5 to 1 on every background that the style sheet mixes, shades of the heat table included."""
    colours = schemes()[scheme]
    shares = {float(share) / 100 for share in re.findall(r"var\(--bad\) (\d+)%", STYLE)}
    assert {0.04, 0.09, 0.55} <= shares
    rows = [colours["paper"], colours["panel"], mixed(colours["bad"], 0.09, colours["paper"])]
    for text in TEXT:
        assert min(contrast(colours[text], paper) for paper in rows) >= 4.5, text
    for share in shares:
        assert contrast(colours["ink"], mixed(colours["bad"], share, colours["paper"])) >= 4.5, share
    for box in ("torch", "onnx"):
        assert min(contrast(colours[text], colours[box]) for text in ("ink", "link")) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_drawings(scheme: str) -> None:
    """At least 3 to 1 for lines and marks, as for anything that is no text."""
    colours = schemes()[scheme]
    assert dict.fromkeys(MARKS, True) == {name: contrast(colours[name], colours["paper"]) >= 3 for name in MARKS}


# Machado, Oliveira and Fernandes 2009, severity 1, on linear light.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_colours_for_the_colour_blind(scheme: str, kind: str) -> None:
    """Good and bad, total and local stay apart without red or without green; words and shapes say it as well."""
    colours = schemes()[scheme]
    matrix = np.array(PROTAN if kind == "protan" else DEUTAN)

    def seen(name: str) -> np.ndarray:
        return np.clip(matrix @ linear(colours[name]), 0, 1) ** (1 / 2.4)

    for one, other in (("good", "bad"), ("total", "local"), ("local", "propagated"), ("total", "propagated")):
        assert np.linalg.norm(seen(one) - seen(other)) > 0.15, (one, other)

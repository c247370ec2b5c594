"""Waterfall and heat map: what is drawn where, that it reads in grey and without colour, and the files themselves.

Pictures are compared with ``tests/golden/plot_*.png``, with room for other versions of fonts; ``UPDATE_GOLDEN=1 pytest``
writes them anew.
"""

from __future__ import annotations

import math
import os
import pathlib
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.testing.compare import compare_images
from report_samples import ORT_OFF, SAMPLES, SCRIPT, comparison, config_run, diverging, healthy, matrix, row

from bisect_tool.errors import BisectError
from bisect_tool.picture_formats import DEFAULT_FORMATS, read_formats
from bisect_tool.records import Report
from bisect_tool.reporters import heat_map, plot_files, plot_style, plots, waterfall

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TOLERANCE = 12.0
"""Root mean square of the difference, of 255; another font moves every letter."""


def shared(shares: dict[str, float], origins: tuple[str, ...] = ()) -> Report:
    """A diverging report whose stages make these shares of the final error."""
    rows = [
        row(index, name, "Conv2d", {"ort-off": replace(comparison(1e-2, 1e-2, judgement="fail"), share=share)})
        for index, (name, share) in enumerate(shares.items())
    ]
    found = tuple(replace(diverging().verdict.origins[0], stage=name) for name in origins)
    verdict = replace(diverging().verdict, origins=found, amplifiers=(), first_over_tolerance=None)
    return replace(healthy(), stages=tuple(rows), configs=(config_run("ort-off", ORT_OFF, 1e-2),), verdict=verdict)


def deep(stages: int = 500, configs: int = 12) -> Report:
    """A matrix on a long model: errors rise along the stages, from configuration to configuration."""
    names = [f"ort-{number:02d}" for number in range(configs)]
    rows = []
    for index in range(stages):
        results = {}
        for number, name in enumerate(names):
            error = 10 ** (-7.5 + 6 * index / stages * number / configs)
            share = (0.5 if index == 40 else 0.2 if index == 300 else 0.3 / (stages - 2)) if number else None
            results[name] = replace(comparison(error, error / 3), share=share)
        rows.append(
            row(index, f"backbone.stages.{index // 50}.blocks.{index // 5 % 10}.conv{index % 5}", "Conv2d", results)
        )
    runs = tuple(
        config_run(name, replace(ORT_OFF, switches={"n": number}), 10 ** (-7.5 + 6 * number / configs))
        for number, name in enumerate(names)
    )
    origin = replace(diverging().verdict.origins[0], stage=rows[40].stage, config=names[-1])
    first = replace(diverging().verdict.first_over_tolerance, stage=rows[40].stage, config=names[-1])  # type: ignore[type-var]
    verdict = replace(diverging().verdict, origins=(origin,), first_over_tolerance=first, amplifiers=())
    return replace(matrix(), stages=tuple(rows), configs=runs, verdict=verdict)


# What is drawn


def test_bars_pile_up_to_the_whole() -> None:
    """Each begins where the one before it ends, in the order of the run; the last one ends at 100 %."""
    report = shared({"a": 0.1, "b": 0.0, "c": 0.65, "d": 0.25}, ("c",))
    found = waterfall.bars(report, "ort-off")
    assert [("a", 0.0, 0.1), ("c", 0.1, 0.65), ("d", 0.75, 0.25)] == [
        (bar.name, pytest.approx(bar.start), pytest.approx(bar.share)) for bar in found
    ]
    assert [False, True, False] == [bar.origin for bar in found]
    drawn = [patch for patch in waterfall.draw(report).axes[0].patches if isinstance(patch, Rectangle)]
    assert [pytest.approx(bar.share) for bar in found] == [patch.get_width() for patch in drawn]
    assert [pytest.approx(bar.start) for bar in found] == [patch.get_x() for patch in drawn]


def test_long_models_have_few_bars_that_still_add_up() -> None:
    """The stages that make most stand by themselves, origins among them, and all others together between them."""
    shares = {f"layers.{number}": (0.3 if number in (40, 300) else 0.4 / 498) for number in range(500)}
    report = shared(shares, ("layers.40", "layers.499"))
    found = waterfall.bars(report, "ort-off")
    assert len(found) <= 2 * waterfall.OWN_BARS + 1
    assert {"layers.40", "layers.300", "layers.499"} <= {bar.name for bar in found}
    assert 500 == sum(bar.stages for bar in found)
    assert 1.0 == pytest.approx(sum(bar.share for bar in found))
    assert all(math.isclose(one.start + one.share, other.start) for one, other in zip(found, found[1:], strict=False))


def test_where_there_is_nothing_to_show() -> None:
    """A healthy model has no waterfall, one run no heat map; both are left out."""
    assert not waterfall.applies(healthy())
    assert not waterfall.applies(diverging()), "no shares were measured"
    assert waterfall.applies(shared({"a": 1.0}))
    assert not heat_map.applies(diverging())
    assert heat_map.applies(matrix())


def test_the_map_has_each_stage_under_each_configuration() -> None:
    """Rows are stages, columns configurations without those that were only tried; the colour is the error's decade."""
    report = matrix()
    figure = heat_map.draw(report)
    [image] = figure.axes[0].get_images()
    cells = image.get_array()
    names = [run.name for run in heat_map.columns(report)]
    assert "ort-cuda-off" in names and not [name for name in names if "-try-" in name]
    assert (len(heat_map.rows_of(report)), len(names)) == cells.shape
    conv = heat_map.rows_of(report)[0].results["ort-cuda-off"].total.rel_l2
    assert math.log10(conv) == pytest.approx(float(cells[0, names.index("ort-cuda-off")]))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "× 7.0e-04" in words, "a failing cell says so in words"
    heads = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert "ort-cuda-off: DIVERGES" in heads


@pytest.mark.parametrize(
    ("error", "level"), [(0.0, -8), (1e-30, -8), (1e-3, -3), (5.0, 0), (math.inf, 0), (math.nan, 0)]
)
def test_every_error_has_a_place_on_the_scale(error: float, level: float) -> None:
    """Zero at the good end; NaN at the bad one."""
    assert level == pytest.approx(heat_map.level(error))


def test_long_maps_stay_readable() -> None:
    """Of 500 stages some sixty are named, the origin among them, and none twice."""
    figure = heat_map.draw(deep(500, 3))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert 20 <= len(labels) <= heat_map.NAMED_ROWS + 2
    assert len(labels) == len(set(labels))
    assert plot_style.stage_name(deep().verdict.origins[0].ref) in labels
    width, height = figure.get_size_inches()
    assert width <= 34 and height <= 17


@pytest.mark.parametrize("name", SAMPLES)
def test_every_report_can_be_drawn(name: str) -> None:
    """Whatever a report holds, drawing warns of nothing; what does not apply is not drawn."""
    report = SAMPLES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plot in (waterfall, heat_map):
            if plot.applies(report):
                ElementTree.fromstring(plot_style.save(plot.draw(report), "svg", plot.TITLE))


def test_even_shares_have_bars_too() -> None:
    """Where no stage makes much, the few that make most stand out, and the rest is piled up."""
    found = waterfall.bars(shared({f"s{number}": 1 / 400 for number in range(400)}), "ort-off")
    assert waterfall.ALWAYS == sum(bar.stages == 1 for bar in found)
    assert 400 == sum(bar.stages for bar in found)


def test_files_of_each_format() -> None:
    """Those that are asked for and no others; the same report gives the same bytes."""
    drawn = plots.Images(b"\x89PNG", "<svg/>")
    files = plot_files.plot_files(matrix(), ("svg",), drawn)
    assert {"amplification.svg", "waterfall.svg", "heatmap.svg"} == files.keys()
    files = plot_files.plot_files(shared({"stem.conv": 1.0}), ("png", "svg"), drawn)
    assert {"amplification.png", "amplification.svg", "waterfall.png", "waterfall.svg"} == files.keys()
    assert ("<svg/>", b"\x89PNG") == (files["amplification.svg"], files["amplification.png"])
    assert files == plot_files.plot_files(shared({"stem.conv": 1.0}), ("png", "svg"), drawn)
    assert {} == plot_files.plot_files(matrix(), ())


def test_pdf_files() -> None:
    """Of all plots, with text as text, and without a date."""
    files = plot_files.plot_files(shared({"stem.conv": 1.0}, ("stem.conv",)), ("pdf",))
    assert {"amplification.pdf", "waterfall.pdf"} == files.keys()
    for content in files.values():
        assert isinstance(content, bytes)
        assert content.startswith(b"%PDF") and b"/Type /Font" in content and b"CreationDate" not in content


def test_names_are_text_and_nothing_else() -> None:
    """No formula is set, and no name becomes an element."""
    name = r"$\frac{1}{0$" + SCRIPT
    svg = plot_files.plot_files(shared({name: 1.0}, (name,)), ("svg",))["waterfall.svg"]
    tree = ElementTree.fromstring(svg)
    assert not [node for node in tree.iter() if node.tag.endswith("}script")]
    assert any("frac" in "".join(node.itertext()) for node in tree.iter() if node.tag.endswith("}text"))


@pytest.mark.parametrize(
    ("text", "formats"),
    [(None, DEFAULT_FORMATS), ("pdf", ("pdf",)), (" SVG, png,svg ", ("svg", "png")), ("none", ())],
)
def test_formats_are_read(text: str | None, formats: tuple[str, ...]) -> None:
    """Each once, in the order given."""
    assert formats == read_formats(text)


@pytest.mark.parametrize("text", ["jpg", "png,,gif", "", "none,png", "png;svg"])
def test_other_formats_are_refused(text: str) -> None:
    """With those that there are."""
    with pytest.raises(BisectError, match="is no format") as raised:
        read_formats(text)
    assert raised.value.hint is not None and "png, svg, pdf" in raised.value.hint


# How it looks


def lightness(color: str | tuple[float, float, float]) -> float:
    """CIE L*, 0 to 100: how light a colour is in grey."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color))
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return float(116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y)


DICHROMATS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Linear RGB as somebody without one kind of cone sees it (Machado, Oliveira and Fernandes 2009, severity 1)."""


def seen_by(eyes: str, color: str) -> np.ndarray:
    """A colour in CIE Lab as such eyes see it."""
    linear = np.array([p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in to_rgb(color)])
    linear = np.clip(np.array(DICHROMATS[eyes]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_that_meet_differ_in_grey() -> None:
    """Curves of one plot, bars of one kind and another, and all of them against the paper."""
    style = plot_style.LIGHT
    for one, other in ((style.total, style.local), (style.origin, style.local)):
        assert abs(lightness(one) - lightness(other)) >= 18, (one, other)
    for color in (style.total, style.local, style.growth, style.ink):
        assert abs(lightness(color) - lightness(style.paper)) >= 35, color


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colours_that_meet_differ_for_every_eye(eyes: str) -> None:
    """Told apart without one of the three cones."""
    style = plot_style.LIGHT
    for one, other in ((style.total, style.local), (style.origin, style.local), (style.origin, style.total)):
        assert np.linalg.norm(seen_by(eyes, one) - seen_by(eyes, other)) >= 18, (one, other)


def test_the_scale_of_the_map_is_even_in_grey() -> None:
    """Darker with each decade, by about as much each time."""
    colors = matplotlib.colormaps[heat_map.COLORMAP]
    steps = [lightness(colors(place)[:3]) for place in np.linspace(0, 1, heat_map.HIGHEST - heat_map.LOWEST + 1)]
    falls = [one - other for one, other in zip(steps, steps[1:], strict=False)]
    assert min(falls) >= 5
    assert max(falls) <= 3 * min(falls)


DRAWN: dict[str, Callable[[], Figure]] = {
    "amplification_diverging": lambda: plots.draw(diverging()),
    "waterfall_origins": lambda: waterfall.draw(
        shared({"stem.conv": 0.21, "block.relu": 0.0, "block.conv": 0.75, "head.fc": 0.04}, ("stem.conv", "block.conv"))
    ),
    "heatmap_matrix": lambda: heat_map.draw(matrix()),
    "heatmap_long": lambda: heat_map.draw(deep(70, 4)),
}


def painted(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The picture as a small file."""
    path = folder / f"{name}.png"
    DRAWN[name]().savefig(path, dpi=45, metadata={"Software": None})
    return path


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_look_as_they_did(name: str, tmp_path: pathlib.Path) -> None:
    """Each is the one that was looked at and checked in, but for the shapes of letters."""
    golden = GOLDEN / f"plot_{name}.png"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        painted(name, GOLDEN).replace(golden)
    assert None is compare_images(str(golden), str(painted(name, tmp_path)), TOLERANCE)


def test_another_picture_would_be_noticed(tmp_path: pathlib.Path) -> None:
    """The tolerance is smaller than what one moved bar changes."""
    moved = shared(
        {"stem.conv": 0.75, "block.relu": 0.0, "block.conv": 0.21, "head.fc": 0.04}, ("stem.conv", "block.conv")
    )
    path = tmp_path / "moved.png"
    waterfall.draw(moved).savefig(path, dpi=45, metadata={"Software": None})
    golden = tmp_path / "golden.png"
    golden.write_bytes((GOLDEN / "plot_waterfall_origins.png").read_bytes())
    assert compare_images(str(golden), str(path), TOLERANCE) is not None

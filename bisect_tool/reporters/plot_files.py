"""The picture files of a report folder: which plots a report has, in which formats."""

from __future__ import annotations

from bisect_tool.picture_formats import DEFAULT_FORMATS
from bisect_tool.records import Report
from bisect_tool.reporters import heat_map, plots, waterfall
from bisect_tool.reporters.plot_style import save


def plot_files(
    report: Report, formats: tuple[str, ...] = DEFAULT_FORMATS, drawn: plots.Images | None = None
) -> dict[str, bytes | str]:
    """The files by name: the amplification plot always, the others where there is something to show.

    Args:
        report: what to draw.
        formats: which files of each plot.
        drawn: the amplification plot, where the caller has it already.
    """
    files: dict[str, bytes | str] = {}
    if formats:
        drawn = drawn or plots.images(report)
    for kind in formats:
        if drawn is not None and kind in ("png", "svg"):
            files[f"amplification.{kind}"] = drawn.png if kind == "png" else drawn.svg
        else:
            files[f"amplification.{kind}"] = save(plots.draw(report), kind, plots.TITLE)
    if formats and waterfall.applies(report):
        figure = waterfall.draw(report)
        files.update({f"waterfall.{kind}": save(figure, kind, waterfall.TITLE) for kind in formats})
    if formats and heat_map.applies(report):
        figure = heat_map.draw(report)
        files.update({f"heatmap.{kind}": save(figure, kind, heat_map.TITLE) for kind in formats})
    return files

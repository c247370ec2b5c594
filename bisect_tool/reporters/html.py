"""``index.html``: the whole report on one page that needs no network, no server and no JavaScript.

The template escapes everything. Plots are images in data URIs, in which nothing can run, and the page's content
security policy allows its own script and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bisect_tool.records import Comparison, Report, StageRow
from bisect_tool.reporters import causes, common, pairs

TEMPLATES = Path(__file__).parent / "templates"


def html_text(report: Report, *, plot: tuple[str, str] | None = None) -> str:
    """The content of ``index.html``.

    Args:
        report: what to show.
        plot: the plot as SVG, for light and for dark screens; drawn here if not given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if plot is None:
        from bisect_tool.reporters import plots

        drawn = plots.images(report)
        plot = (drawn.light, drawn.dark)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        "sci",
        "ratio",
        "made_text",
        "run_seconds",
        "run_time_text",
        "shape_text",
        "names_text",
        "index_text",
        "source_text",
        "noise_text",
        "share_text",
        "decibels",
        "printable",
    )
    environment.filters.update({name: getattr(common, name) for name in helpers})
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    config = common.main_config(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        verdict=report.verdict,
        script=script,
        script_hash=_sha256(script),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        plots={"light": _data_uri(plot[0]), "dark": _data_uri(plot[1])},
        plot_text=_plot_text(report, config),
        statuses=common.STATUSES,
        judgements=common.JUDGEMENTS,
        main_config=config,
        alignment_text=common.alignment_text(report.alignment, common.looked_in(report)),
        chain=[row for link in report.chain for row in common.chain_cells(link)],
        judged_by_outputs=common.judged_by_outputs(report),
        tolerance_text=common.tolerance_text(report.tolerance, floors=common.has_floors(report)),
        command=common.command_text(report.case.get("command")),
        configs=[
            {
                "run": run,
                "worst": common.worst_row(common.stage_rows(report), run.name, report.tolerance),
                "output": common.worst_output(run, report.tolerance),
                "effective": list(flat(run.effective)),
            }
            for run in report.configs
        ],
        shown_sample=common.shown_sample(report),
        shown_text=common.shown_text(report),
        part_lines=common.part_lines(report, config),
        first_glue=[stage for stage in report.glue if stage.after is None],
        glue_text=common.glue_text,
        parts_legend=common.PARTS_LEGEND,
        matrix=_matrix(report) if common.is_matrix(report) else None,
        remedy_code=common.remedy_code,
        hypothesis_cells=pairs.hypothesis_cells,
        hypothesis_columns=pairs.HYPOTHESIS_COLUMNS,
        sort_key=_sort_key,
        rows=common.rows_by_ref(report),
        table=list(_table(report)),
        worst_element_lines=common.worst_element_lines,
        deciding=common.deciding,
        deciding_text=common.deciding_text(report.tolerance),
        node_texts=common.node_texts,
        weight_texts=common.weight_texts,
        detail_texts=common.detail_texts,
        tried_text=common.tried_text,
        hand_over_text=common.hand_over_text,
        runner_text=common.runner_text,
        witness_text=common.witness_text,
        case=list(flat(report.case)),
        environment=list(flat(report.environment)),
        absent=[item for item in report.alignment.unaligned if not item.in_graph],
        lost=[item for item in report.alignment.unaligned if item.in_graph],
        findings=causes.findings(report),
        severities=causes.SEVERITIES,
        trials=causes.trials(report),
        cause_title=causes.title,
        count_text=causes.count_text,
    )
    # lone surrogates (undecodable file names) have no UTF-8 form
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A free-form map as lines of name and value, inner maps by dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif key == "command":
            yield f"{prefix}{key}", common.command_text(value)
        else:
            yield f"{prefix}{key}", common.source_text(value)


def _matrix(report: Report) -> dict[str, Any]:
    """What only the report of a matrix has: words for its pairs, and the heat table."""
    requested = pairs.requested_texts(report)
    names = [run.name for run in report.configs if not common.is_trial(run, report)]
    seen = {name for row in report.stages for name in row.results}
    columns = [name for name in names if name in seen]
    return {
        "text": common.matrix_text(report),
        "separation": common.separation_text(report),
        "no_answers": common.no_answers(report),
        "pairs": {
            run.name: {
                "requested": requested[run.name],
                "in_effect": pairs.in_effect_text(run),
                "first": common.first_divergence(report, run),
                "made": common.made_most(report, run.name) if run.status == "diverges" else (),
                "trial": common.is_trial(run, report),
            }
            for run in report.configs
        },
        "heat_columns": columns,
        "heat": [
            {"row": row, "cells": [_heat(row.results.get(name)) for name in columns]}
            for row in common.stage_rows(report)
            if any(name in row.results for name in columns)
        ],
        "heat_levels": range(common.HEAT_LEVELS + 1),
    }


def _heat(result: Comparison | None) -> dict[str, Any]:
    """One cell of the heat table: the shade, and in words what the shade says."""
    if result is None:
        return {"text": "", "level": None, "fails": False}
    error = result.total.rel_l2
    fails = result.judgement == "fail"
    return {"text": common.sci(error), "level": common.heat_level(error), "fails": fails}


def _table(report: Report) -> Iterator[dict[str, Any]]:
    for row in report.stages:
        for config, result in row.results.items() if row.results else [("", None)]:
            yield {
                "row": row,
                "config": config,
                "judgement": result.judgement if result else "not compared",
                "problem": result.total.problem if result else None,
                "first": bool(config) and row.ref == common.first_ref(report, config),
                "origin": bool(config) and row.ref in common.origin_refs(report, config),
                "numbers": _numbers(row, result),
            }


def _numbers(row: StageRow, result: Comparison | None) -> list[tuple[str, str]]:
    """The cells with a number: what is shown, and what sorting reads."""
    total = result.total if result else None
    whole = None if total is None or common.is_estimate(total) else total
    values = (
        (whole.max_abs if whole else None, common.sci),
        (whole.mean_abs if whole else None, common.sci),
        (total.rel_l2 if total else None, common.sci),
        (common.local_rel(result) if result else None, common.sci),
        (result.growth if result else None, common.ratio),
        (result.amplification if result else None, common.ratio),
        (result.share if result else None, common.share_text),
        (result.noise_ratio if result else None, common.ratio),
        (total.sqnr_db if total else None, lambda value: common.ratio(value)),
        (total.max_ulp if total else None, common.ratio),
    )
    return [(word(value), _sort_key(value)) for value, word in values]


def _sort_key(value: float | None) -> str:
    """What JavaScript's Number() reads; nothing for what is missing, which sorts last either way."""
    if value is None or math.isnan(value):
        return "" if value is None else "NaN"
    return str(value) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _plot_text(report: Report, config: str | None) -> str:
    """The plot in words, for those who do not see it."""
    worst = common.worst_row(common.stage_rows(report) or common.group_rows(report), config)
    if worst is None or config is None:
        return "Plot of the error by stage; no stage was compared."
    largest = common.sci(worst.results[config].total.rel_l2)
    text = f"Plot of the error by stage under {config}: relative L2 error is largest at {worst.ref}, {largest}."
    first = common.first_ref(report, config)
    return text + (f" The first diverging stage is {first}." if first else " No stage is marked as first.")


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

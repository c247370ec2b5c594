"""``index.html``: the whole report on one page that needs no network, no server and no JavaScript.

The template escapes everything, drawings included. Images are data URIs, in which nothing can run, and the page's content
security policy allows its own script and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bisect_tool.records import Comparison, Report, StageRef
from bisect_tool.reporters import (
    causes,
    error_plot,
    module_tree,
    neighbourhood,
    pairs,
    selecting,
    tensor_pictures,
    wording,
)

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"

DRAWN = 8
"""Origins whose neighbourhood is drawn."""


ROWS = 1000
"""Rows of the stage table, above which further configurations are left to ``stages.csv``; half as many in a matrix, where
the heat table has all of them."""


def html_text(report: Report) -> str:
    """The content of ``index.html``."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    config = selecting.main_config(report)
    names = _table_configs(report, config)
    considered = causes.considered(report)
    views = tensor_pictures.views(report, config)
    page = _template().render(
        report=report,
        verdict=report.verdict,
        script=script,
        script_hash=_sha256(script),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        plot=error_plot.error_plot(report, config),
        tip_height=error_plot.tip_height,
        plot_text=_plot_text(report, config),
        statuses=wording.STATUSES,
        judgements=wording.JUDGEMENTS,
        main_config=config,
        alignment_text=wording.alignment_text(report.alignment, wording.looked_in(report)),
        chain=[row for link in report.chain for row in wording.chain_cells(link)],
        judged_by_outputs=selecting.judged_by_outputs(report),
        tolerance_text=wording.tolerance_text(report.tolerance, floors=wording.has_floors(report)),
        command=wording.command_text(report.case.get("command")),
        configs=[
            {
                "run": run,
                "worst": selecting.worst_row(selecting.stage_rows(report), run.name, report.tolerance),
                "output": selecting.worst_output(run, report.tolerance),
                "effective": list(flat(run.effective)),
            }
            for run in report.configs
        ],
        shown_sample=selecting.shown_sample(report),
        shown_text=selecting.shown_text(report),
        part_lines=selecting.part_lines(report, config),
        first_glue=[stage for stage in report.glue if stage.after is None],
        glue_text=selecting.glue_text,
        parts_legend=selecting.PARTS_LEGEND,
        matrix=_matrix(report) if selecting.is_matrix(report) else None,
        remedy_code=selecting.remedy_code,
        hypothesis_cells=pairs.hypothesis_cells,
        hypothesis_columns=pairs.HYPOTHESIS_COLUMNS,
        sort_key=_sort_key,
        rows=selecting.rows_by_ref(report),
        table=list(_table(report, config, names)),
        table_configs=names,
        left_out=[run.name for run in report.configs if run.name not in names],
        tree=module_tree.module_tree(report, config),
        views=views,
        worst_view=_worst_view(report, config, views),
        neighbourhoods={
            (origin.ref, origin.config): neighbourhood.neighbourhood(report, origin)
            for origin in report.verdict.origins[:DRAWN]
        },
        considered=considered,
        considered_text=causes.counts_text(considered),
        marks={"cause": "●", "contributes": "◐", "explored only": "○", "no answer": "?", "ruled out": "✕"},
        worst_element_lines=wording.worst_element_lines,
        deciding=selecting.deciding,
        deciding_text=selecting.deciding_text(report.tolerance),
        node_texts=wording.node_texts,
        weight_texts=wording.weight_texts,
        detail_texts=wording.detail_texts,
        tried_text=selecting.tried_text,
        hand_over_text=wording.hand_over_text,
        runner_text=wording.runner_text,
        witness_text=wording.witness_text,
        case=list(flat(report.case)),
        environment=list(flat(report.environment)),
        absent=[item for item in report.alignment.unaligned if not item.in_graph],
        lost=[item for item in report.alignment.unaligned if item.in_graph],
        findings=causes.findings(report),
        severities=causes.SEVERITIES,
        trials=causes.trials(report),
    )
    # lone surrogates (undecodable file names) have no UTF-8 form
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.cache
def _template() -> Template:
    """The page's template, compiled once: that takes longer than to fill it in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    environment.filters.update({name: getattr(wording, name) for name in helpers})
    return environment.get_template("report.html.j2")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A free-form map as lines of name and value, inner maps by dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif key == "command":
            yield f"{prefix}{key}", wording.command_text(value)
        else:
            yield f"{prefix}{key}", wording.source_text(value)


def _worst_view(
    report: Report, config: str | None, views: Mapping[tuple[StageRef, str], tensor_pictures.View]
) -> tensor_pictures.View | None:
    """The picture of the stage with the largest error, where none of the others on the page is of that stage."""
    first = report.verdict.first_over_tolerance
    shown = {(origin.ref, origin.config) for origin in report.verdict.origins}
    shown |= {(first.ref, first.config)} if first is not None else set()
    rows = selecting.rows_by_ref(report)
    left = [rows[ref] for ref, name in views if name == config and (ref, name) not in shown and ref in rows]
    worst = selecting.worst_row(left, config)
    return views[worst.ref, config] if worst is not None and config is not None else None


def _matrix(report: Report) -> dict[str, Any]:
    """What only the report of a matrix has: words for its pairs, and the heat table."""
    requested = pairs.requested_texts(report)
    names = [run.name for run in report.configs if not selecting.is_trial(run, report)]
    seen = {name for row in report.stages for name in row.results}
    columns = [name for name in names if name in seen]
    return {
        "text": selecting.matrix_text(report),
        "separation": selecting.separation_text(report),
        "no_answers": selecting.no_answers(report),
        "pairs": {
            run.name: {
                "requested": requested[run.name],
                "in_effect": pairs.in_effect_text(run),
                "first": selecting.first_divergence(report, run),
                "made": selecting.made_most(report, run.name) if run.status == "diverges" else (),
                "trial": selecting.is_trial(run, report),
            }
            for run in report.configs
        },
        "heat_columns": columns,
        "heat": [
            {"row": row, "cells": [_heat(row.results.get(name)) for name in columns]}
            for row in selecting.stage_rows(report)
            if any(name in row.results for name in columns)
        ],
        "heat_levels": range(selecting.HEAT_LEVELS + 1),
    }


def _heat(result: Comparison | None) -> dict[str, Any]:
    """One cell of the heat table: the shade, and in words what the shade says."""
    if result is None:
        return {"text": "", "level": None, "fails": False}
    error = result.total.rel_l2
    fails = result.judgement == "fail"
    return {"text": wording.sci(error), "level": selecting.heat_level(error), "fails": fails}


def _table_configs(report: Report, main: str | None) -> list[str]:
    """Configurations whose rows are in the stage table, in the report's order: as many as there is room for."""
    compared = Counter(name for row in report.stages for name in row.results)
    chosen, left = set(), ROWS // 2 if selecting.is_matrix(report) else ROWS
    for name in sorted((run.name for run in report.configs), key=lambda name: name != main):
        if name == main or compared[name] <= left:
            chosen.add(name)
            left -= compared[name]
    return [run.name for run in report.configs if run.name in chosen]


def _table(report: Report, main: str | None, configs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each stage and configuration; that of the configuration that the page is about has an anchor."""
    for row in report.stages:
        every = list(row.results.items())
        shown = [(name, result) for name, result in every if name in configs] or every[:1]
        anchored = next((name for name, _ in shown if name == main), shown[0][0] if shown else "")
        cells: list[tuple[str, Comparison | None]] = [*shown] or [("", None)]
        for config, result in cells:
            yield {
                "row": row,
                "anchor": f"r{row.index}" if config == anchored else None,
                "config": config,
                "judgement": result.judgement if result else "not compared",
                "problem": result.total.problem if result else None,
                "first": bool(config) and row.ref == selecting.first_ref(report, config),
                "origin": bool(config) and row.ref in selecting.origin_refs(report, config),
                "numbers": _numbers(result),
            }


def _numbers(result: Comparison | None) -> list[tuple[str, str]]:
    """The cells with a number: what is shown, and what sorting reads."""
    total = result.total if result else None
    whole = None if total is None or wording.is_estimate(total) else total
    values = (
        (whole.max_abs if whole else None, wording.sci),
        (whole.mean_abs if whole else None, wording.sci),
        (total.rel_l2 if total else None, wording.sci),
        (wording.local_rel(result) if result else None, wording.sci),
        (result.growth if result else None, wording.ratio),
        (result.amplification if result else None, wording.ratio),
        (result.share if result else None, wording.share_text),
        (result.noise_ratio if result else None, wording.ratio),
        (total.sqnr_db if total else None, wording.ratio),
        (total.max_ulp if total else None, wording.ratio),
    )
    return [(word(value), _sort_key(value)) for value, word in values]


def _sort_key(value: float | None) -> str:
    """What JavaScript's Number() reads; nothing for what is missing, which sorts last either way."""
    if value is None or math.isnan(value):
        return "" if value is None else "NaN"
    return str(value) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _plot_text(report: Report, config: str | None) -> str:
    """The plot in words, for those who do not see it."""
    worst = selecting.worst_row(selecting.stage_rows(report) or selecting.group_rows(report), config)
    if worst is None or config is None:
        return "Plot of the error by stage; no stage was compared."
    largest = wording.sci(worst.results[config].total.rel_l2)
    text = f"Plot of the error by stage under {config}: relative L2 error is largest at {worst.ref}, {largest}."
    first = selecting.first_ref(report, config)
    return text + (f" The first diverging stage is {first}." if first else " No stage is marked as first.")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

"""Reports and recordings in a notebook: a small piece of HTML for a cell, and tables as pandas DataFrames.

Notebooks put the HTML into their own page, light or dark: it has no style sheet, no script and no colours of its own
beyond borders, and everything that a model names is escaped. What a cell has no room for is in the report's own page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bisect_tool.recordings.traces import Trace
from bisect_tool.records import Report, StageRow
from bisect_tool.reporters import csv_table, selecting, wording

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_ROWS = 16
"""Rows of a table in a cell; the frame has all."""
_CELL = "text-align:left;padding:1px 12px 1px 0;white-space:nowrap"


def report_frame(report: Report) -> DataFrame:
    """The stage table, one row for each stage and configuration, with the columns of ``stages.csv``."""
    return csv_table.frame(report)


def stages_frame(stages: Sequence[StageRow]) -> DataFrame:
    """The same of the rows alone."""
    return csv_table.frame_of_rows(stages)


def trace_frame(trace: Trace) -> DataFrame:
    """The stages of a recording with what is known of their tensors."""
    import pandas as pd

    rows = []
    for stage in trace.stages:
        numbers = stage.tensor.statistics or {}
        rows.append(
            {
                "stage": stage.ref.stage,
                "call": stage.ref.call,
                "output": stage.ref.output,
                "level": stage.level,
                "type": stage.type,
                "source": stage.source,
                "shape": wording.shape_text(stage.tensor.shape),
                "dtype": stage.tensor.dtype,
                **{name: numbers.get(name) for name in ("nan", "minimum", "maximum", "mean", "norm")},
                "kept": stage.tensor.member is not None,
            }
        )
    columns = ["stage", "call", "output", "level", "type", "source", "shape", "dtype"]
    columns += ["nan", "minimum", "maximum", "mean", "norm", "kept"]
    return csv_table.typed(pd.DataFrame(rows, columns=columns, dtype=object))


def report_html(report: Report) -> str:
    """The verdict, its causes with their remedies, the configurations, and the stages that matter."""
    verdict = report.verdict
    parts = [f"<p><strong>{_text(wording.STATUSES[verdict.status])}</strong> {_text(report.case.get('name') or '')}"]
    parts += [f"<br>{_text(line)}" for line in verdict.summary]
    parts.append("</p>")
    for each in [each for each in verdict.diagnoses if each.gating][:3]:
        tried = selecting.tried_text(each)
        parts.append(
            f"<p><strong>{_text(each.code)}</strong> {_text(each.title)}<br>help: {_text(each.remedy)} ({_text(tried)})</p>"
        )
    parts.append(f"<p>{_text(wording.alignment_text(report.alignment, wording.looked_in(report)))}</p>")
    heads = ("config", "worst stage", "output", "status")
    parts.append(_table("configurations", heads, [_config_cells(report, run.name) for run in report.configs]))
    config = selecting.main_config(report)
    rows = selecting.stage_rows(report)
    shown = _telling(report, rows, config)
    title = f"{len(shown)} of {wording.plural(len(rows), 'stage')}, under {config}"
    body = _stage_table(shown, config, title)
    parts.append(
        f"<details{' open' if verdict.status == 'diverges' else ''}><summary>{_text(title)}</summary>{body}</details>"
    )
    return f"<div>{''.join(parts)}</div>"


def stages_html(stages: Sequence[StageRow]) -> str:
    """The first rows of the table, under the first configuration that has results."""
    config = next((name for row in stages for name in row.results), None)
    shown = list(stages[:MOST_ROWS])
    more = f", {len(stages) - len(shown)} more; .to_frame() has all" if len(stages) > len(shown) else ""
    title = f"{wording.plural(len(stages), 'stage')}{f', under {config}' if config else ''}{more}"
    return f"<div><p>{_text(title)}</p>{_stage_table(shown, config, title)}</div>"


def trace_html(trace: Trace) -> str:
    """What was recorded, with what and when, and the first stages."""
    manifest = trace.manifest
    torch = (manifest["environment"].get("torch") or {}) if isinstance(manifest["environment"], dict) else {}
    version = torch.get("version") if isinstance(torch, dict) else torch
    facts = {
        "recording": trace.path.name,
        "content": manifest["content"],
        "made": manifest.get("created"),
        "command": manifest.get("command"),
        "torch": version,
        "weights": len(manifest["weights"]),
        "stages": len(trace.stages),
    }
    known = [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
    shown = trace.stages[:MOST_ROWS]
    rows = []
    for stage in shown:
        numbers = stage.tensor.statistics or {}
        norm = numbers.get("norm")
        rows.append(
            (
                str(stage.ref),
                stage.type,
                wording.shape_text(stage.tensor.shape),
                stage.tensor.dtype,
                wording.sci(norm) if isinstance(norm, (int, float)) else "-",
            )
        )
    more = f"; the first {len(shown)}" if len(shown) < len(trace.stages) else ""
    table = _table("stages", ("stage", "type", "shape", "dtype", "norm"), rows)
    title = f"{wording.plural(len(trace.stages), 'stage')}{more}"
    return f"<div>{_table('facts', (), known)}<details><summary>{_text(title)}</summary>{table}</details></div>"


def _config_cells(report: Report, name: str) -> tuple[str, ...]:
    run = next(run for run in report.configs if run.name == name)
    worst = selecting.worst_row(selecting.stage_rows(report), name, report.tolerance)
    output = selecting.worst_output(run, report.tolerance)
    return (
        name + ("" if run.gating else " *"),
        wording.sci(selecting.deciding(worst.results[name].total, report.tolerance) if worst else None),
        wording.sci(selecting.deciding(output.total, report.tolerance) if output else None),
        wording.STATUSES[run.status],
    )


def _telling(report: Report, rows: Sequence[StageRow], config: str | None) -> list[StageRow]:
    """Stages to look at first: origins and the first that fails, then the worst ones, in the order of the run."""
    refs = {*selecting.origin_refs(report, config), selecting.first_ref(report, config)}
    compared = [row for row in rows if config in row.results]
    by_error = sorted(compared, key=lambda row: -selecting.badness(row.results[config or ""].total.rel_l2))
    first = [row for row in compared if row.ref in refs]
    chosen = list(dict.fromkeys(row.index for row in [*first, *by_error]))[:MOST_ROWS]
    return [row for row in rows if row.index in set(chosen)]


def _stage_table(rows: Sequence[StageRow], config: str | None, caption: str) -> str:
    cells = []
    for row in rows:
        result = row.results.get(config or "")
        total = result.total if result else None
        cells.append(
            (
                str(row.ref),
                row.type,
                wording.shape_text(row.shape),
                wording.sci(total.max_abs if total else None),
                wording.sci(total.rel_l2 if total else None),
                wording.sci(wording.local_rel(result) if result else None),
                wording.ratio(result.growth if result else None),
                wording.JUDGEMENTS[result.judgement if result else "not compared"],
            )
        )
    heads = ("stage", "type", "shape", "max abs", "rel-L2", "local", "growth", "")
    return _table(caption, heads, cells)


def _table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" style="{_CELL}">{_text(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f'<table aria-label="{_text(label)}">{f"<tr>{head}</tr>" if heads else ""}{body}</table>'


def _text(value: Any) -> str:
    # Lone surrogates (undecodable file names) have no UTF-8 form.
    return escape(wording.printable(value).encode("utf-8", "backslashreplace").decode())

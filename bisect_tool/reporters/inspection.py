"""An inspection on a terminal: the graph, what feeds it, each stage with its value, and what was left over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import IO

from rich.console import Console

from bisect_tool.inspection import GraphFacts, Inspection, evidence_text
from bisect_tool.records import Pair, StageRef, StageRow, Unaligned
from bisect_tool.reporters import wording
from bisect_tool.reporters.layout import Column, Page, PipedConsole, Row, Span, fit_text

OPERATORS = 8
"""Types of operators that are counted one by one."""

PLACE = 20
"""Characters of a path from which on its folders are left out."""

NAMES = 6
"""Stages that are named under one reason."""


def print_inspection(inspection: Inspection, *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print an inspection to stdout, or to ``file``."""
    render(inspection, PipedConsole(file=file, width=width))


def render(inspection: Inspection, console: Console) -> None:
    """Print an inspection; the console's width decides which columns there is room for."""
    page = Page(console)
    for label, text in graph_lines(inspection.graph):
        page.prose(text, label=(f"{label:<10}", "bold"))
    for label, lines in (("inputs", list(_inputs(inspection))), ("outputs", list(_outputs(inspection)))):
        for number, line in enumerate(lines):
            page.prose(line, label=(f"{label if number == 0 else '':<10}", "bold"))
    for note in inspection.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    page.line()
    _stages(page, inspection)
    page.line()
    page.prose(_coverage(inspection), label=(f"{'coverage':<10}", "bold"))
    counts = [
        f"{level} {count.aligned} of {count.stages}" for level, count in inspection.levels.items() if count.stages
    ]
    page.prose(f"stages of the model with a value: {', '.join(counts)}", indent=" " * 10)
    if inspection.evidence:
        found = ", ".join(f"{count} by {kind}" for kind, count in inspection.evidence.items())
        page.prose(found, label=(f"{'found':<10}", "bold"))
    _left_over(page, inspection)


def graph_lines(graph: GraphFacts) -> Iterator[tuple[str, str]]:
    """Facts about the graph, each with a head."""
    made = f"written by {graph.exporter}" + (f" ({graph.producer})" if graph.producer else "")
    yield "graph", f"{graph.file or 'exported'}, {made}"
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())
    functions = f", {wording.plural(graph.functions, 'local function')}" if graph.functions else ""
    yield "opset", f"{opsets}; IR version {graph.ir_version}{functions}"
    most = list(graph.operators.items())
    kinds = ", ".join(f"{count} {kind}" for kind, count in most[:OPERATORS])
    rest = sum(count for _, count in most[OPERATORS:])
    yield "nodes", f"{graph.nodes}: {kinds}" + (f", {rest} others" if rest else "")
    bodies = ", ".join(graph.operators_with_bodies)
    yield "bodies", f"in {bodies}" if bodies else "none (no If, Loop or Scan)"
    size = size_text(graph.weight_bytes)
    yield "weights", f"{wording.plural(graph.weights, 'initialiser')}, {size}, {graph.dtype or 'none floating'}"
    quantised = f"yes: {wording.plural(graph.quantized, 'node')}" if graph.quantized else "no"
    yield "quantised", quantised


def size_text(size: int) -> str:
    """Bytes as ``12.3 MB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _inputs(inspection: Inspection) -> Iterator[str]:
    for item in inspection.inputs:
        shape = "x".join(item.shape) or "scalar"
        cast = f", converted from {item.cast_from}" if item.cast_from else ""
        given = wording.shape_text(item.fed_shape)
        size = f" {given}" if given != shape else ""
        yield f"{item.onnx_input} ({item.dtype or '?'} {shape}) <- sample's {item.fed_by}{size}{cast}"


def _outputs(inspection: Inspection) -> Iterator[str]:
    for item in inspection.outputs:
        key = f"output {item.output}" if isinstance(item.output, int) else f"output {item.output!r}"
        yield f"{item.onnx_output} -> model's {key}" if item.onnx_output else f"none -> model's {key}"


def _stages(page: Page, inspection: Inspection) -> None:
    pairs = {pair.ref: pair for pair in inspection.alignment.pairs}
    reasons = {item.ref: item for item in inspection.alignment.unaligned}
    columns = (
        Column("stage", minimum=20),
        Column("level", drop=2),
        Column("type", minimum=12, cut="end"),
        Column("shape", drop=1),
        Column("source", minimum=16, drop=3),
    )
    page.table(columns, list(_entries(inspection.stages, pairs, reasons, page.width)))


def _entries(
    rows: Sequence[StageRow], pairs: dict[StageRef, Pair], reasons: dict[StageRef, Unaligned], width: int
) -> Iterator[Row | Span]:
    for row in rows:
        level = row.level if row.role == "judged" else row.role
        cells = (str(row.ref), level, row.type, wording.shape_text(row.shape), _place(row.source))
        pair = pairs.get(row.ref)
        yield Row(cells, style="" if pair else "dim")
        if pair is not None:
            turned = f"; axes {' '.join(map(str, pair.permutation))}" if pair.permutation else ""
            found = f"  by {evidence_text(pair)}{turned}"
            # Of the two it is the name that may be shortened.
            name = fit_text(wording.printable(pair.onnx_value), max(width - len(found) - 6, 8))
            yield Span(f"    = {name}{found}")
        elif row.ref in reasons:
            absent = "no value" if not reasons[row.ref].in_graph else "not found"
            yield Span(f"    {absent}")


def _place(source: str | None) -> str:
    """``file:line``; a long path says least at its beginning."""
    if source is None or len(source) <= PLACE:
        return source or "-"
    return source.replace("\\", "/").rpartition("/")[2]


def _coverage(inspection: Inspection) -> str:
    alignment = inspection.alignment
    lost = sum(item.in_graph for item in alignment.unaligned)
    absent = len(alignment.unaligned) - lost
    if alignment.coverage is None:
        return f"none of {wording.plural(alignment.stages, 'stage')} has a value in the graph"
    text = (
        f"{100 * alignment.coverage:.1f} %: {alignment.aligned} of {alignment.aligned + lost} stages that have a value"
    )
    text += f"; {absent} {'has' if absent == 1 else 'have'} none" if absent else ""
    if not inspection.enough:
        text += f". Under --min-coverage {inspection.min_coverage:g}: a comparison would be inconclusive"
    return text


def _left_over(page: Page, inspection: Inspection) -> None:
    groups: dict[tuple[bool, str], list[StageRef]] = {}
    names = {pair.onnx_value for pair in inspection.alignment.pairs} | set(inspection.alignment.unmatched_onnx)
    for item in inspection.alignment.unaligned:
        groups.setdefault((item.in_graph, _general(item.reason, names)), []).append(item.ref)
    if groups:
        page.line()
        page.line(("Without a value", "bold"))
    for (in_graph, reason), refs in sorted(groups.items(), key=lambda group: not group[0][0]):
        what = "counts against coverage" if in_graph else "does not count"
        page.prose(f"{wording.plural(len(refs), 'stage')} ({what}): {reason}", indent="  ")
        page.prose(wording.names_text(refs, NAMES), indent="      ", style="dim")
    unmatched = inspection.alignment.unmatched_onnx
    if unmatched:
        verb = "stands" if len(unmatched) == 1 else "stand"
        text = f"{wording.plural(len(unmatched), 'value')} of the graph {verb} for no stage"
        page.prose(f"{text}: {wording.names_text(unmatched, NAMES)}", indent="  ", style="dim")


def _general(reason: str, names: Set[str]) -> str:
    """A reason without names of the graph: the same for all stages that have it."""
    words = reason.split(" ")
    kept = [word if word.strip("(),.:;") not in names else "..." for word in words]
    # Several names in a row are one gap.
    return " ".join(word for place, word in enumerate(kept) if word != "..." or kept[place - 1 : place] != ["..."])

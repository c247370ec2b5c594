"""The terminal report, whole pages against ``tests/golden``; ``UPDATE_GOLDEN=1 pytest`` writes them anew."""

from __future__ import annotations

import io
import os
import pathlib
import re
from dataclasses import replace

import pytest
from report_samples import (
    HOSTILE_NAMES,
    ORT_OFF,
    SAMPLES,
    comparison,
    config_run,
    diverging,
    empty,
    healthy,
    hostile,
    long,
)
from rich.cells import cell_len
from rich.console import Console

from bisect_tool.records import FirstOverTolerance, Report, StageRef, Tolerance
from bisect_tool.reporters import common, terminal
from bisect_tool.reporters.layout import Column, column_widths, fit_text

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def page(report: Report, width: int = 80, **options: bool | str) -> str:
    """The report as text, without colour, whatever the terminal that runs the tests is."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, legacy_windows=False, _environ={})
    terminal.render(report, console, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def table_lines(text: str) -> list[str]:
    """The lines of the stage tables, which may never wrap."""
    return re.findall(r"^.*(?:  pass|  FAIL|  n/c)$", text, re.MULTILINE)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SAMPLES)
def test_golden_page(name: str, width: int) -> None:
    """The whole page is the one that was looked at and checked in."""
    text = page(SAMPLES[name](), width, report_dir="reports/ckpt")
    golden = GOLDEN / f"terminal_{name}_{width}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8", newline="\n")
    assert golden.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_row_is_wider_than_the_terminal(name: str, width: int) -> None:
    """Table rows fit the width in terminal cells, wide characters counted as two."""
    rows = table_lines(page(SAMPLES[name](), width))
    assert all(cell_len(row) <= width for row in rows)
    assert (name in ("empty", "bare")) == (not rows)


@pytest.mark.parametrize("name", ["healthy", "diverging"])
def test_each_stage_has_one_line(name: str) -> None:
    """No row wraps: there are as many lines with a judgement as there are stages."""
    assert len(SAMPLES[name]().stages) == len(table_lines(page(SAMPLES[name](), 60, all_stages=True)))


def test_folded_stages_are_left_out_unless_asked_for() -> None:
    """A stage without numbers takes no line of the short table."""
    folded = [row for row in diverging().stages if not row.results]
    assert len(folded) == 1
    assert len(diverging().stages) - 1 == len(table_lines(page(diverging(), 60)))


def test_marks_are_text() -> None:
    """The first stage over tolerance and the origin are marked without colour, and the marks are explained."""
    text = page(diverging())
    [line] = re.findall(r"^>\*.*$", text, re.MULTILINE)
    assert line.split()[:2] == [">*", "upsample"]
    assert line.endswith("FAIL")
    assert "> first over tolerance; * the error is made here" in text
    assert "first over tolerance" not in page(healthy())


def test_columns_of_a_row() -> None:
    """A row holds shape, max abs, mean abs, relative L2, local error, growth and judgement, in this order."""
    [line] = [line for line in page(diverging()).splitlines() if line.lstrip().startswith("conv2 ")]
    assert ["conv2", "1x64x28x28", "1.8e-06", "1.1e-07", "2.2e-07", "1.5e-07", "1.1", "pass"] == line.split()
    [line] = [line for line in page(diverging(), 120).splitlines() if line.lstrip().startswith("conv2 ")]
    assert ["conv2", "Conv2d", "1x64x28x28"] == line.split()[:3]


def test_narrow_terminals_drop_columns() -> None:
    """The least important columns go first; stage, relative L2, local error and judgement stay."""
    heads = {
        width: next(line.split() for line in page(long(), width).splitlines() if line.split()[:1] == ["stage"])
        for width in (50, 64, 72, 80, 94, 120)
    }
    assert ["stage", "rel-L2", "local"] == heads[50]
    assert ["stage", "max", "abs", "rel-L2", "local"] == heads[64]
    assert ["stage", "max", "abs", "rel-L2", "local", "growth"] == heads[72]
    assert ["stage", "max", "abs", "mean", "abs", "rel-L2", "local", "growth"] == heads[80]
    assert ["stage", "shape"] == heads[94][:2]
    assert "noise" not in heads[94]


def test_long_tables_show_the_neighbourhood() -> None:
    """Of 200 stages both ends and four rows around each origin are shown; the rest is counted by judgement."""
    text = page(long())
    assert 3 + 9 + 9 + 3 == len(table_lines(text))
    left_out = re.findall(r"\.\.\. .*", text)
    assert [
        "... 83 stages left out, all pass; --all-stages shows them",
        "... 51 stages left out, all FAIL; --all-stages shows them",
        "... 42 stages left out, all FAIL; --all-stages shows them",
    ] == left_out


def test_left_out_failures_are_counted() -> None:
    """A gap with several judgements says how many there are of each."""
    report = replace(long(), verdict=replace(long().verdict, origins=(), first_over_tolerance=None))
    assert "... 194 stages left out, 87 pass, 107 FAIL; --all-stages shows them" in page(report)


def test_the_worst_stage_is_always_shown() -> None:
    """A stage far from everything else is shown if its error is the largest."""
    rows = list(long().stages)
    rows[40] = replace(rows[40], results={"ort-off": comparison(float("nan"), None, None, judgement="fail")})
    report = replace(long(), stages=tuple(rows))
    [line] = [line for line in table_lines(page(report)) if " nan " in line]
    assert "layers.0.convolution" in line


def test_all_stages() -> None:
    """With all_stages nothing is left out."""
    text = page(long(), all_stages=True)
    assert 200 == len(table_lines(text))
    assert "left out" not in text


def test_a_gap_of_one_row_is_shown() -> None:
    """Where leaving out one row would cost a line, the row itself is shown."""
    rows = long().stages[:27]
    first = replace(long().verdict, first_over_tolerance=None, origins=())
    worst = replace(rows[4], results={"ort-off": comparison(1.0, None, None)})
    report = replace(long(), stages=(*rows[:4], worst, *rows[5:]), verdict=first)
    text = page(report)
    assert ["... 19 stages left out, all pass; --all-stages shows them"] == re.findall(r"\.\.\. .*", text)


def test_groups_come_first() -> None:
    """Containers that were asked for have a table of their own above the leaves."""
    text = page(diverging())
    assert text.index("Stage groups under ort-off") < text.index("\nStages under ort-off")
    assert "Stage groups" not in page(healthy())


def test_roles_decide_about_the_tables() -> None:
    """Containers that are judged, or are outputs of the model, stand among the stages; only groups stand apart."""
    groups = [replace(row, level="container", role="judged") for row in healthy().stages]
    groups[-1] = replace(groups[-1], role="output")
    text = page(replace(healthy(), stages=tuple(groups)))
    assert "Stage groups" not in text
    assert 5 == len(table_lines(text))


def test_groups_are_not_the_worst_stage() -> None:
    """The worst stage of a configuration is one that counts."""
    rows = [replace(row, role="group") if row.stage == "head.fc" else row for row in diverging().stages]
    [line] = re.findall(r"^ort-off .*DIVERGES", page(replace(diverging(), stages=tuple(rows))), re.MULTILINE)
    assert ["ort-off", "4.8e-02"] == line.split()[:2]


def test_the_first_gating_config_that_diverges_is_shown() -> None:
    """Neither a configuration that agrees nor one that only explores is chosen while a gating one diverges."""
    rows = tuple(
        replace(row, results=dict.fromkeys(("explore", "fine", "bad"), row.results["ort-off"]))
        for row in healthy().stages
    )
    configs = (
        config_run("explore", ORT_OFF, 1.0, gating=False),
        config_run("fine", ORT_OFF, 1e-7),
        config_run("bad", ORT_OFF, 1.0),
    )
    report = replace(healthy(), stages=rows, configs=configs)
    assert "Stages under bad\n" in page(report)
    assert "Stages under fine\n" in page(replace(report, configs=configs[:2]))
    assert "Stages under explore\n" in page(replace(report, configs=configs[:1]))


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (Tolerance("default", rel_l2={"float16": 2e-2, "float32": 1e-4}), "relative L2 1.0e-04 (float32), the default"),
        (Tolerance("user", max_abs=1e-3), "max abs 1.0e-03, given by the user"),
        (Tolerance("user", atol=1e-5, rtol=0.0), "atol 1.0e-05 + rtol 0 * |expected|, given by the user"),
    ],
)
def test_tolerance_is_named(tolerance: Tolerance, words: str) -> None:
    """The table says which tolerance judged it, of which kind, and whose it is."""
    assert f"tolerance: {words}\n" in page(replace(healthy(), tolerance=tolerance))


def test_skipped_configs_give_their_reason() -> None:
    """A configuration that did not run says why, and one that only explores says that it does not count."""
    text = page(diverging())
    assert re.search(r"^ort-cuda .* skipped", text, re.MULTILINE)
    assert "ort-cuda: ONNX Runtime offers no CUDAExecutionProvider on this machine" in text
    assert re.search(r"^half-emulated \* .* DIVERGES", text, re.MULTILINE)
    assert "* explores only: does not count for the exit code" in text
    assert "explores only" not in page(healthy())


def test_verdict_names_source_nodes_and_worst_element() -> None:
    """An origin is given with source line, ONNX nodes, the greatest difference and the side that is off."""
    text = page(diverging(), 120)
    assert "origin layer3.upsample (Upsample) under ort-off\n  --> model.py:41\n" in text
    assert "greatest at (0, 17, 0, 27):\n  expected 1.2742, actual 0.8902\n" in text
    assert "  onnx: /layer3/upsample/Resize\n" in text
    assert "4.8e+05 times the noise floor; ONNX Runtime is the side that is off against float64" in " ".join(
        text.split()
    )
    assert "amplifiers: layer3.conv, head.fc: over tolerance, but they only hand the error on" in text
    assert "ruled out BD101: TF32; both sides ran on the CPU" in text
    assert "(tried: it removes the divergence)" in " ".join(text.split())


def test_first_over_tolerance_that_is_no_origin() -> None:
    """A first stage that only shows the error is described as well, apart from the origin."""
    verdict = replace(diverging().verdict, first_over_tolerance=FirstOverTolerance("head.fc", 0, 0, "ort-off"))
    text = page(replace(diverging(), verdict=verdict))
    assert "first over tolerance head.fc (Linear) under ort-off\n  --> model.py:27\n" in text
    assert "origin layer3.upsample" in text


def test_many_origins_are_cut_short() -> None:
    """Three origins are described, the others named or counted, those of other configurations apart."""
    origin = diverging().verdict.origins[0]
    here = [replace(origin, stage=f"layer{index}") for index in range(8)]
    other = [replace(origin, stage="elsewhere", config="ort-all")]
    report = replace(diverging(), verdict=replace(diverging().verdict, origins=(*here, *other)))
    text = page(report)
    assert 3 == text.count("made here: ")
    assert "further origins: layer3, layer4, layer5 and 2 more" in text
    assert "origins under ort-all: elsewhere" in text


def test_inconclusive_says_what_was_not_found() -> None:
    """Without a verdict the stages that could not be aligned are named with their reasons."""
    text = page(empty())
    assert "INCONCLUSIVE  Nothing was compared" in text
    assert "not aligned a: no value of the graph has its shape and content" in text
    assert "not aligned" not in page(diverging())


def test_hostile_names_print_literally() -> None:
    """Markup in names is text, control characters are written as escapes, nothing steers the terminal."""
    text = page(hostile(), 200)
    assert "[red]x " in text
    assert "[/bold] [link=file:///etc]y" in text
    assert r"esc\x1b[31mred\nnew line" in text
    assert r"\u202egnp.exe" in text
    assert r"lone\udcffsurrogate" in text
    assert "FAIL: shape (1, 3) against (1, 4)" in text
    assert all(char == "\n" or char.isprintable() for char in text)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", SAMPLES)
def test_any_encoding_of_stdout(name: str, encoding: str) -> None:
    """A stdout that cannot write a character gets its escape instead of an exception, and rows still fit."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n")
    terminal.render(SAMPLES[name](), Console(file=stream, width=80, color_system=None))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert all(cell_len(line) <= 80 for line in table_lines(text))
    if name == "hostile" and encoding != "utf-8":
        assert r"      \u5c42" in text


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes the colours and leaves every word."""

    def coloured(environ: dict[str, str]) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=True, _environ={"TERM": "xterm-256color", **environ})
        terminal.render(diverging(), console)
        return stream.getvalue()

    colour = re.compile(r"\x1b\[[0-9;]*3[0-7][;m]")
    assert colour.search(coloured({}))
    assert not colour.search(coloured({"NO_COLOR": "1"}))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured({}))
    assert page(diverging()) == plain == re.sub(r"\x1b\[[0-9;]*m", "", coloured({"NO_COLOR": "1"}))


def test_print_report_writes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """The result goes to stdout, and nothing to stderr."""
    terminal.print_report(healthy(), width=80, report_dir="out")
    out, err = capsys.readouterr()
    assert out.endswith(f"Report  {os.path.join('out', 'index.html')}\n")
    assert "" == err


def test_notes_are_printed() -> None:
    """What loading warned of is part of the report."""
    assert "note: ckpt.pth holds 2 keys that the model does not have: ema.decay, ema.step" in page(diverging())


# The parts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.1e-7, "2.1e-07"),
        (0.0, "0"),
        (-0.0, "0"),
        (None, "-"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (-3.25, "-3.2e+00"),
        (1e-300, "1.0e-300"),
    ],
)
def test_scientific_form(value: float | None, text: str) -> None:
    """Numbers are compact, zero is plain, and what is missing is a dash."""
    assert text == common.sci(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.923, "0.92"),
        (1.0, "1.0"),
        (1.26, "1.3"),
        (18.2, "18"),
        (999.4, "999"),
        (1000.0, "1.0e+03"),
        (1e-3, "1.0e-03"),
        (0.0, "0"),
    ],
)
def test_factors(value: float, text: str) -> None:
    """Factors near one are plain numbers."""
    assert text == common.ratio(value)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 10**6, "0.1 %"),
        (10**6 - 1, 10**6, "99.9 %"),
        (1, 4, "25.0 %"),
        (0, 0, "0 %"),
    ],
)
def test_percent_is_never_rounded_to_all_or_none(part: int, whole: int, text: str) -> None:
    """One element of a million is not 0 %, and all but one are not 100 %."""
    assert text == common.percent(part, whole)


@pytest.mark.parametrize("width", range(40))
@pytest.mark.parametrize("text", ["backbone.layer3.0.conv1.weight.long", *HOSTILE_NAMES[:3], "层.卷积" * 6])
def test_shortening_fits_and_keeps_both_ends(text: str, width: int) -> None:
    """A shortened name fits its width, and keeps its beginning and its end."""
    short = fit_text(text, width)
    assert cell_len(short) <= width
    if width >= 10:
        assert (text[0], text[-1]) == (short[0], short[-1])
    if cell_len(text) <= width:
        assert text == short


def test_columns_share_the_width() -> None:
    """Columns leave in the order of their number, and what is left over goes to the first that was shortened."""
    columns = [Column("a", minimum=5), Column("b", drop=1), Column("c", drop=2), Column("d")]
    cells = [("x" * 20, "y" * 4, "z" * 4, "w")]
    assert [20, 4, 4, 1] == column_widths(columns, cells, 35)
    assert [10, 4, 4, 1] == column_widths(columns, cells, 25)
    assert [6, 4, None, 1] == column_widths(columns, cells, 15)
    assert [5, None, None, 1] == column_widths(columns, cells, 8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("healthy", "Aligned 5 of 5 stages."),
        (
            "diverging",
            "Aligned 8 of 10 stages; 1 has no value in the graph (stem.bn), "
            "1 was not found in it (aux.fc[logits]), coverage 88.9 %.",
        ),
        ("empty", "Aligned 0 of 2 stages; 2 were not found in the graph (a, b), coverage 0.0 %."),
    ],
)
def test_alignment_sentence(name: str, text: str) -> None:
    """What was not compared is counted, named and told apart: not in the graph, or not found in it."""
    assert text == common.alignment_text(SAMPLES[name]().alignment)


def test_names_are_counted_beyond_three() -> None:
    """Long lists of names end in a count."""
    refs = [StageRef(name, 0, 0) for name in "abcde"]
    assert "a, b, c and 2 more" == common.names_text(refs)
    assert "a, b, c" == common.names_text(refs[:3])


@pytest.mark.parametrize(
    ("effective", "text"),
    [
        ({}, "-"),
        ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"], "nodes": 3}, "CUDA, CPU, nodes 3"),
        ({"node_counts": {"Conv": 1}, "deterministic": True, "none": None}, "deterministic yes"),
    ],
)
def test_effective_settings_in_short(effective: dict[str, object], text: str) -> None:
    """Providers lose their suffix, scalars keep their names, and nested maps are left to the page."""
    assert text == common.effective_text(effective)

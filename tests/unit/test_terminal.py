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
    hostile_matrix,
    long,
    matrix,
)
from rich.cells import cell_len
from rich.console import Console

from bisect_tool.records import ConfigRun, FirstOverTolerance, Link, NumericConfig, Report, StageRef, Tolerance
from bisect_tool.reporters import html, pairs, selecting, terminal, wording
from bisect_tool.reporters.layout import Column, PipedConsole, column_widths, fit_text
from bisect_tool.reporters.next_steps import next_step
from bisect_tool.switches import Value

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def page(report: Report, width: int = 80, **options: bool | str) -> str:
    """The report as text, without colour, whatever the terminal that runs the tests is."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, legacy_windows=False, _environ={})
    terminal.render(report, console, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def coloured(report: Report, width: int = 80, **options: bool | str) -> str:
    """The same page as a terminal with colours gets it."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=True, color_system="standard", legacy_windows=False, _environ={}
    )
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


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SAMPLES)
def test_golden_page_in_colour(name: str, width: int) -> None:
    """Colours are those that were looked at; without them the page is the plain one, so that they carry no meaning."""
    text = coloured(SAMPLES[name](), width, report_dir="reports/ckpt")
    golden = GOLDEN / f"terminal_{name}_{width}_colour.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8", newline="\n")
    assert golden.read_text(encoding="utf-8") == text
    assert "\x1b[" in text
    assert page(SAMPLES[name](), width, report_dir="reports/ckpt") == re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("name", SAMPLES)
def test_first_and_last_screen_say_what_to_do(name: str) -> None:
    """80 columns by 24 lines: at either end of a page of any length there are the verdict, the cause and the remedy."""
    report = SAMPLES[name]()
    lines = page(report, 80, report_dir="reports/ckpt").splitlines()
    status = wording.STATUSES[report.verdict.status]
    causes = [each for each in report.verdict.diagnoses if each.gating]
    assert lines[0].startswith(f"{status}  ")
    for screen in (lines[:24], lines[-24:]):
        assert any(line.startswith(f"{status}  ") for line in screen)
        for cause in causes[:1]:
            assert any(cause.code in line for line in screen)
            assert any(line.lstrip().startswith("help:") for line in screen)
        if report.verdict.status == "inconclusive":
            assert any(line.lstrip().startswith("help: ") for line in screen)
    assert "Report  reports/ckpt/index.html" == lines[-1]


def test_two_causes_with_one_remedy() -> None:
    """Each is named with its place, and the remedy once."""
    [cause] = diverging().verdict.diagnoses
    causes = (replace(cause, origin=StageRef("a", 0, 0)), replace(cause, origin=StageRef("b", 0, 0)))
    head = page(replace(diverging(), verdict=replace(diverging().verdict, diagnoses=causes))).split("\n\n")[0]
    assert "BD103 resize-coordinates, at a\nBD103 resize-coordinates, at b\n  help: the node says" in head
    assert 1 == head.count("help:")
    other = (causes[0], replace(causes[1], remedy="do something else"))
    head = page(replace(diverging(), verdict=replace(diverging().verdict, diagnoses=other))).split("\n\n")[0]
    assert 2 == head.count("help:")


def test_the_end_has_the_lines_to_copy() -> None:
    """Also where the remedy is code, and a table of hypotheses stands between it and the end."""
    end = page(matrix(), 80, report_dir="reports/ckpt").splitlines()[-8:]
    assert "      torch.backends.cudnn.allow_tf32 = False" in end


def test_long_wording_is_cut_at_the_top_and_whole_below() -> None:
    """A verdict of many lines leaves room for the remedy; nothing of it is lost."""
    words = tuple(f"line {number}: " + "words and more words " * 12 + f"end {number}" for number in range(7))
    report = replace(diverging(), verdict=replace(diverging().verdict, summary=words))
    text = page(report)
    assert "help: the node says" in " ".join(text.splitlines()[:24])
    assert all(f"end {number}" in " ".join(text.split()) for number in range(7))
    assert "The verdict in full" in text
    assert "The verdict in full" not in page(diverging())


def test_few_rows_where_all_agree() -> None:
    """Ends and worst stage of what agrees; containers that were asked for are all there."""
    rows = tuple(replace(healthy().stages[1], index=number, stage=f"s{number}") for number in range(20))
    worst = replace(rows[11], results={"ort-off": comparison(9e-7, 1e-8)})
    report = replace(healthy(), stages=(*rows[:11], worst, *rows[12:]))
    shown = [line.split()[0] for line in table_lines(page(report))]
    assert ["s0", "s11", "s19"] == shown
    containers = tuple(replace(item, level="container", role="group") for item in rows)
    assert 20 == len(table_lines(page(replace(report, stages=containers))))


def test_equal_recordings_need_no_table() -> None:
    """One line in place of a table of zeros; --all-stages has the table."""
    rows = tuple(
        replace(item, results={"a|b": comparison(0.0, None, 0.0, judgement="pass")}) for item in healthy().stages
    )
    chain = (Link("stages", "same", "5 stages", ()),)
    configs = (config_run("a|b", ORT_OFF, 0.0),)
    report = replace(healthy(), stages=rows, chain=chain, configs=configs)
    assert [] == table_lines(page(report))
    assert "    all 5 stages are equal; --all-stages shows them\n" in page(report)
    assert 5 == len(table_lines(page(report, all_stages=True)))
    one = (replace(rows[0], results={"a|b": comparison(1e-9, None, 0.0, judgement="pass")}), *rows[1:])
    assert 5 == len(table_lines(page(replace(report, stages=one))))


def test_recordings_of_nothing_but_empty_tensors_say_what_to_record() -> None:
    rows = tuple(replace(item, shape=(0, 4)) for item in healthy().stages)
    verdict = replace(healthy().verdict, status="inconclusive")
    report = replace(healthy(), verdict=verdict, stages=rows, chain=(Link("stages", "same", "5 stages", ()),))
    assert "record a run whose tensors are not empty" == next_step(report)
    assert "record the same model on both sides" in (next_step(replace(report, stages=healthy().stages)) or "")


@pytest.mark.parametrize("width", [60, 80])
def test_many_names_are_folded(width: int) -> None:
    """Nodes and weights of an origin, and what a long table leaves out, stay within the terminal."""
    origin = replace(
        long().verdict.origins[0],
        onnx_nodes=tuple(f"node_conv_with_a_name_{number}" for number in range(9)),
        onnx_ops=("Conv",) * 9,
        onnx_weights=tuple(f"backbone.stages.{number}.convolution.weight" for number in range(9)),
    )
    text = page(replace(long(), verdict=replace(long().verdict, origins=(origin,))), width)
    names = re.findall(r"^  (?:onnx|weights): .*\n(?:   .*\n)*", text, re.MULTILINE)
    assert 2 == len(names)
    left_out = re.findall(r"^    \.\.\. .*\n.*", text, re.MULTILINE)
    assert left_out and all("--all-stages shows them" in " ".join(lines.split()) for lines in left_out)
    assert all(len(line) <= width for lines in (*names, *left_out) for line in lines.splitlines())


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
    """The first diverging stage and the origin are marked without colour, and the marks are explained."""
    text = page(diverging())
    [line] = re.findall(r"^>\*.*$", text, re.MULTILINE)
    assert line.split()[:2] == [">*", "upsample"]
    assert line.endswith("FAIL")
    assert "> first diverging stage; * the error is made here" in text
    assert "first diverging stage" not in page(healthy())


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
    assert ["stage", "shape", "max", "abs", "rel-L2", "local", "growth"] == heads[80]
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
        (
            Tolerance("default", rel_l2={"float16": 2e-2, "float32": 1e-4}),
            "judged by the noise floor, and relative L2 1.0e-04 (float32), the defaults",
        ),
        (Tolerance("user", max_abs=1e-3), "tolerance: max abs 1.0e-03, given by the user"),
        (Tolerance("user", atol=1e-5, rtol=0.0), "tolerance: atol 1.0e-05 + rtol 0 * |expected|, given by the user"),
    ],
)
def test_tolerance_is_named(tolerance: Tolerance, words: str) -> None:
    """The table says which tolerance judged it, of which kind, and whose it is."""
    assert f"{words}\n" in page(replace(healthy(), tolerance=tolerance))


def test_optimised_configs_that_agree_beside_a_divergence_say_why() -> None:
    """The same numbers stand in both lines: only one of the two is judged by its stages."""
    fine = config_run("ort-all", replace(ORT_OFF, optimization="all"), 9e-5)
    words = "ort-all: judged by its final outputs, which are within the limit; stages are judged with optimisation off"
    report = replace(diverging(), configs=(diverging().configs[0], fine))
    assert words == selecting.judged_by_outputs(report)
    assert words in " ".join(page(report).split())
    assert words in " ".join(html.html_text(report).split())
    other = replace(fine, name="ort-basic", actual=replace(ORT_OFF, optimization="basic"))
    text = selecting.judged_by_outputs(replace(report, configs=(*report.configs, other)))
    assert text is not None and text.startswith("ort-all, ort-basic: judged by their final outputs")
    cuda = replace(fine, actual=replace(fine.actual, device="cuda"))
    for configs in ((report.configs[0], cuda), (report.configs[0], replace(fine, gating=False)), (fine,)):
        assert selecting.judged_by_outputs(replace(report, configs=configs)) is None
    assert selecting.judged_by_outputs(diverging()) is None


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
    assert "handed on: layer3.conv, head.fc: diverge by error handed on from before" in text
    assert "ruled out BD101: TF32; both sides ran on the CPU" in text
    assert "(tried: it removes the divergence)" in " ".join(text.split())


def test_first_over_tolerance_that_is_no_origin() -> None:
    """A first stage that only shows the error is described as well, apart from the origin."""
    verdict = replace(diverging().verdict, first_over_tolerance=FirstOverTolerance("head.fc", 0, 0, "ort-off"))
    text = page(replace(diverging(), verdict=verdict))
    assert "first diverging stage head.fc (Linear) under ort-off\n  --> model.py:27\n" in text
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


def test_the_tolerance_chooses_the_quantity_of_the_head_table() -> None:
    """With a limit on absolute differences these are shown, not relative ones."""
    report = diverging()
    text = page(replace(report, tolerance=Tolerance("user", max_abs=0.01)), 120)
    worst = max(row.results["ort-off"].total.max_abs for row in report.stages if "ort-off" in row.results)
    assert re.search(rf"^ort-off +{wording.sci(worst)} ".replace("+0", r"\+0"), text, re.MULTILINE), text
    assert "Largest absolute difference of the worst stage" in text
    assert "Relative L2 of the worst stage" in page(report)


def test_long_headings_fold() -> None:
    """An origin with a long name is broken between words."""
    origin = replace(diverging().verdict.origins[0], stage="backbone.blocks.3." + "layer." * 7 + "conv")
    text = page(replace(diverging(), verdict=replace(diverging().verdict, origins=(origin,))), 80)
    assert max(map(len, text.splitlines())) <= 80


def test_narrow_terminals_keep_the_shape() -> None:
    """A long name is shortened in its middle for it."""
    rows = tuple(replace(row, stage=f"{row.stage}.a.very.long.name.indeed", group="") for row in diverging().stages)
    text = page(replace(diverging(), stages=rows), 80)
    assert re.search(r"^ +stage +shape ", text, re.MULTILINE), text


def test_a_terminal_without_a_size_has_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """``COLUMNS=0`` is what some of them hand on."""
    monkeypatch.setenv("COLUMNS", "0")
    assert PipedConsole(file=io.StringIO()).width >= 20


def test_the_strongest_origin_is_described_wherever_it_stands() -> None:
    """Causal order stays; the strongest is not left among those that are only named."""
    origin = diverging().verdict.origins[0]
    here = [replace(origin, stage=f"layer{n}", local_rel_l2=0.9 if n == 6 else 0.1) for n in range(8)]
    text = page(replace(diverging(), verdict=replace(diverging().verdict, origins=tuple(here))))
    assert ["layer0", "layer1", "layer2", "layer6"] == re.findall(r"^origin (\w+)", text, re.MULTILINE)
    assert "further origins: layer3, layer4, layer5 and 1 more" in text


def test_the_node_that_makes_the_value_comes_first() -> None:
    """Then arithmetic, then what only computes shapes; the report keeps the graph's order."""
    nodes, ops = ("shape", "mul", "slice", "concat", "resize"), ("Shape", "Mul", "Slice", "Concat", "Resize")
    origin = replace(diverging().verdict.origins[0], onnx_nodes=nodes, onnx_ops=ops)
    assert ["resize", "mul", "shape", "slice", "concat"] == wording.telling_nodes(origin)
    assert [] == wording.telling_nodes(replace(origin, onnx_nodes=(), onnx_ops=()))
    assert ["shape (Shape)", "mul (Mul)", "resize (Resize)", "2 more"] == wording.node_texts(origin, 3)
    assert [f"{name} ({op})" for name, op in zip(nodes, ops, strict=True)] == wording.node_texts(origin)
    assert ["shape", "mul"] == wording.node_texts(replace(origin, onnx_nodes=nodes[:2], onnx_ops=()))
    assert [] == wording.node_texts(replace(origin, onnx_nodes=(), onnx_ops=()))


def test_weights_of_an_origin_and_of_others_too() -> None:
    """An initialiser that several origins read comes first, and says so."""
    origin = diverging().verdict.origins[0]
    one = replace(origin, stage="a", onnx_weights=("a.weight", "sin"))
    other = replace(origin, stage="b", onnx_weights=("sin",))
    report = replace(diverging(), verdict=replace(diverging().verdict, origins=(one, other)))
    assert "  weights: sin (in 1 more origin), a.weight\n" in page(report, 120)
    assert "sin (in 1 more origin), a.weight" in html.html_text(report)


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


@pytest.mark.parametrize("name", ["diverging", "matrix"])
def test_no_color(name: str) -> None:
    """NO_COLOR takes the colours and leaves every word."""

    def coloured(environ: dict[str, str]) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=True, _environ={"TERM": "xterm-256color", **environ})
        terminal.render(SAMPLES[name](), console)
        return stream.getvalue()

    colour = re.compile(r"\x1b\[[0-9;]*3[0-7][;m]")
    assert colour.search(coloured({}))
    assert not colour.search(coloured({"NO_COLOR": "1"}))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured({}))
    assert page(SAMPLES[name]()) == plain == re.sub(r"\x1b\[[0-9;]*m", "", coloured({"NO_COLOR": "1"}))


def test_print_report_writes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """The result goes to stdout, and nothing to stderr."""
    terminal.print_report(healthy(), width=80, report_dir="out")
    out, err = capsys.readouterr()
    assert out.endswith(f"Report  {os.path.join('out', 'index.html')}\n")
    assert "" == err


def test_notes_are_printed() -> None:
    """What loading warned of is part of the report."""
    assert "note: ckpt.pth holds 2 keys that the model does not have: ema.decay, ema.step" in page(diverging())


# Matrices


def without_shares(report: Report) -> Report:
    """The report as it is where no forced run told the shares."""
    rows = [
        replace(row, results={name: replace(result, share=None) for name, result in row.results.items()})
        for row in report.stages
    ]
    return replace(report, stages=tuple(rows))


@pytest.mark.parametrize("name", SAMPLES)
def test_which_reports_are_of_a_matrix(name: str) -> None:
    """Configurations that differ in ONNX Runtime's optimisation alone make no matrix."""
    assert (name == "matrix") == selecting.is_matrix(SAMPLES[name]())


@pytest.mark.parametrize(
    "configs",
    [
        (config_run("a", replace(ORT_OFF, switches={"session.disable_prepacking": True}), 1e-7),),
        (config_run("a", ORT_OFF, 1e-7, expected=NumericConfig("torch", switches={"mkldnn": False})),),
        (config_run("a", ORT_OFF, 1e-7), config_run("b", ORT_OFF, 1e-7, expected=NumericConfig("torch", "cuda"))),
        (config_run("a", ORT_OFF, 1e-7), config_run("b", replace(ORT_OFF, opset=17), 1e-7)),
    ],
)
def test_what_makes_a_matrix(configs: tuple[ConfigRun, ...]) -> None:
    """A switch, another PyTorch side or another export; and pairs that ran one by one, whatever they are."""
    assert selecting.is_matrix(replace(healthy(), configs=configs))
    assert "requested: " in page(replace(healthy(), configs=configs))
    assert selecting.is_matrix(replace(healthy(), timings={"pair ort-off": 1.0}))


def test_pairs_are_in_the_table() -> None:
    """A pair has one line with worst stage, final output, verdict, time and memory, and says below what it asked for."""
    lines = page(matrix()).splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("ort-cuda-off ")]
    assert ["ort-cuda-off", "2.1e-03", "block.conv", "2.4e-03", "DIVERGES", "32", "ms", "1830", "MB"] == lines[
        place
    ].split()
    below = " ".join(" ".join(lines[place + 1 : place + 5]).split())
    assert "first divergence: stem.conv; of the final error 75.0 % is made in block.conv, 21.0 % in stem.conv" in below
    assert "requested: CUDA, optimization off; in effect: CUDA, TF32 seen in conv, 14 nodes as given" in below
    assert "9 pairs: 3 agree, 2 diverge, 2 skipped, 1 failed, 1 crashed; 3 of them count for" in page(matrix())


def test_what_only_explores_is_no_diagnosis() -> None:
    """Its line is in the summary; the blocks are for what counts."""
    report = matrix()
    title = report.verdict.diagnoses[0].title
    only = tuple(replace(diagnosis, gating=False) for diagnosis in report.verdict.diagnoses)
    verdict = replace(report.verdict, summary=("nothing",))
    assert f"BD301 {title}" in page(replace(report, verdict=verdict))
    assert f"BD301 {title}" not in page(replace(report, verdict=replace(verdict, diagnoses=only)))


def test_skipped_pairs_do_not_count() -> None:
    """What a preset named and the machine lacks decides nothing, gating or not."""
    report = matrix()
    skipped = tuple(replace(run, gating=True) if run.status == "skipped" else run for run in report.configs)
    assert "3 of them count for" in selecting.matrix_text(replace(report, configs=skipped))


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 200])
def test_nothing_of_a_matrix_is_wider_than_the_terminal(width: int) -> None:
    """Only lines of code and paths, which are there to be copied, may be."""
    lines = page(matrix(), width).splitlines()
    assert [] == [line for line in lines if cell_len(line) > width and "providers=[" not in line]


def test_wide_terminals_have_all_in_one_line() -> None:
    """Where there is room each pair is one line, with what was requested, is in effect, and diverges first."""
    [line] = [line for line in page(matrix(), 200).splitlines() if line.startswith("tf32-emulated *")]
    words = re.split(r"  +", line)
    assert "optimization off, emulate tf32" == words[1]
    assert words[2].startswith("tf32 in 3 operations, 1 out of its reach")
    assert ["1.9e-03", "block.conv", "2.2e-03", "stem.conv", "DIVERGES", "-", "512 MB"] == words[3:]
    assert "requested: " not in page(matrix(), 200)


def test_reasons_are_grouped() -> None:
    """Pairs that were skipped for one reason are listed behind it; failed and crashed ones have their own."""
    text = " ".join(page(matrix()).split())
    missing = "ONNX Runtime's TensorRT provider cannot be loaded: libnvinfer.so.10 is missing"
    assert f"skipped 2 pairs: {missing} trt*, trt-fp16*" in text
    assert "FAILED export-torchscript*: the exporter has no symbolic for aten::bucketize" in text
    assert "CRASHED cuda-attention-efficient*: its process was ended by signal 11 (segmentation fault)" in text
    assert "* explores only: does not count for the exit code" in text


def test_trials_stand_apart_and_are_counted() -> None:
    """Runs that only explain others are listed after them; many of them are counted unless all are asked for."""
    text = page(matrix())
    assert text.index("no-conv-tf32 *") < text.index("tried, to explain") < text.index("ort-cuda-off-try-1 *")
    assert "; 2 more tried to explain failing ones." in " ".join(text.split())
    trial = matrix().configs[-1]
    more = [replace(trial, name=f"ort-cuda-off-try-{number}") for number in range(3, 10)]
    many = replace(matrix(), configs=(*matrix().configs, *more))
    assert "... 9 trials left out, 9 diverge; --all-stages shows them" in page(many)
    assert "try-9" not in page(many)
    assert "ort-cuda-off-try-9 *" in page(many, all_stages=True)
    alone = replace(trial, name="elsewhere-try-1")
    assert not selecting.is_trial(alone, matrix())


def test_which_pair_of_a_matrix_is_shown() -> None:
    """The gating pair that diverges; where all agree, the one without optimisation, which measures local errors."""
    report = matrix()
    assert "Stages under ort-cuda-off\n" in page(report)
    verdict = replace(report.verdict, first_over_tolerance=None)
    exploring = tuple(replace(run, gating=run.gating and run.status == "agrees") for run in report.configs)
    agrees = replace(report, verdict=verdict, configs=(exploring[1], *exploring))
    assert "Stages under ort-cpu-off\n" in page(agrees)
    second = replace(report.configs[3], status="diverges", gating=True)
    first = FirstOverTolerance("stem.conv", 0, 0, second.name)
    located = replace(
        report, verdict=replace(verdict, first_over_tolerance=first), configs=(*report.configs[:3], second)
    )
    assert f"Stages under {second.name}\n" in page(located)


def test_shares_need_room_and_a_divergence() -> None:
    """The column is there from 120 columns on, where something diverges and the shares were measured."""
    assert "made here: share of the final error" in page(matrix(), 120)
    assert "made here: share" not in page(matrix(), 119)
    assert "made here: share" not in page(without_shares(matrix()), 120)
    [line] = [
        line for line in table_lines(page(matrix(), 120)) if line.lstrip("*> ").startswith("conv ") and "75" in line
    ]
    assert "1.4e-03     75.0 %" in line
    rows = tuple(
        replace(row, results={name: replace(result, share=0.5) for name, result in row.results.items()})
        for row in healthy().stages
    )
    assert page(healthy(), 160) == page(replace(healthy(), stages=rows), 160)


def test_tiny_shares_are_not_named() -> None:
    """Of the final error less than 0.1 % is made there, and it would read as more."""
    rows = list(matrix().stages)
    result = rows[2].results["ort-cuda-off"]
    rows[2] = replace(rows[2], results={"ort-cuda-off": replace(result, share=0.0009)})
    report = replace(matrix(), stages=tuple(rows))
    assert rows[2].ref not in [ref for ref, _ in selecting.made_most(report, "ort-cuda-off", 9)]
    assert "< 0.1 %" == wording.share_text(0.0009)


def test_what_was_not_forced_made_nothing() -> None:
    """A stage without an error of its own is not named as the place where the error is made."""
    rows = list(matrix().stages)
    rows[2] = replace(rows[2], results={"ort-cuda-off": replace(rows[2].results["ort-cuda-off"], local=None)})
    report = replace(matrix(), stages=tuple(rows))
    assert ["stem.conv", "head.fc"] == [str(ref) for ref, _ in selecting.made_most(report, "ort-cuda-off", 2)]


def test_remedies_are_lines_to_copy() -> None:
    """Code stands in lines of its own, never broken; a sentence is folded as before."""
    lines = page(matrix(), 60).splitlines()
    assert "      torch.backends.cudnn.allow_tf32 = False" in lines
    assert '      providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]' in lines
    assert "  help: (tried: it removes the divergence)" in lines
    assert selecting.remedy_code(diverging().verdict.diagnoses[0]) is None


def test_a_matrix_without_a_cause_says_so() -> None:
    """That nothing separates the pairs is said where something diverges, and not where all agree."""
    verdict = replace(matrix().verdict, diagnoses=(), ruled_out=())
    report = replace(matrix(), verdict=verdict)
    assert "What separates failing from passing pairs\nNo switch was found that makes a failing" in page(report)
    failing = replace(report, configs=tuple(run for run in report.configs if run.status != "agrees"))
    assert "No pair agrees: no switch of this matrix removes the divergence." in page(failing)
    agreeing = replace(report, configs=tuple(run for run in report.configs if run.status == "agrees"))
    assert "What separates" not in page(agreeing)


def test_hostile_pairs_print_literally() -> None:
    """Names of switches and what was read back cannot steer the terminal either, and odd values are no error."""
    text = page(hostile_matrix(), 100)
    assert all(char == "\n" or char.isprintable() for char in text)
    assert r"[red]x = 'esc\x1b[31m'" in text
    assert r"2 pairs: one reason\x1b[2J" in text


def test_side_of_a_switch_is_no_measurement() -> None:
    """Without a measured floor the side is known from the switch that mends it."""
    assert "a switch on PyTorch's side removes it" == wording.noise_text(None, "expected")
    assert "3.0 times the noise floor; ONNX Runtime is the side that is off against float64" == wording.noise_text(
        3.0, "actual"
    )


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
    assert text == wording.sci(value)


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
    assert text == wording.ratio(value)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (1, 10**6, "< 0.1 %"),
        (1, 1000, "0.1 %"),
        (10**6 - 1, 10**6, "99.9 %"),
        (1, 4, "25.0 %"),
        (0, 0, "0 %"),
    ],
)
def test_percent_is_never_rounded_to_all_or_none(part: int, whole: int, text: str) -> None:
    """One element of a million is not 0 %, and all but one are not 100 %."""
    assert text == wording.percent(part, whole)


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
    assert text == wording.alignment_text(SAMPLES[name]().alignment)


def test_names_are_counted_beyond_three() -> None:
    """Long lists of names end in a count."""
    refs = [StageRef(name, 0, 0) for name in "abcde"]
    assert "a, b, c and 2 more" == wording.names_text(refs)
    assert "a, b, c" == wording.names_text(refs[:3])


@pytest.mark.parametrize(
    ("effective", "text"),
    [
        ({}, "-"),
        ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"], "nodes": 3}, "CUDA, CPU, nodes 3"),
        ({"node_counts": {"Conv": 1}, "deterministic": True, "none": None}, "deterministic yes"),
        ({"expected": {"device": "cpu"}, "actual": {"providers": ["CPUExecutionProvider"], "unconfirmed": []}}, "CPU"),
        ({"actual": {"runner": "onnx-reference", "version": "1.23.2"}}, "onnx-reference 1.23.2"),
    ],
)
def test_effective_settings_in_short(effective: dict[str, object], text: str) -> None:
    """Providers lose their suffix, scalars keep their names, and nested maps are left to the page."""
    assert text == wording.effective_text(effective)


CUDA = NumericConfig("torch", "cuda", switches={"matmul_tf32": False})
CUDA_NODES = {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


@pytest.mark.parametrize(
    ("expected", "actual", "text"),
    [
        ({}, {}, "defaults"),
        ({"device": "cuda"}, {"device": "cuda", "optimization": "off"}, "CUDA, optimization off"),
        ({"device": "cuda"}, {}, "PyTorch on CUDA"),
        ({}, {"device": "cuda"}, "ONNX Runtime on CUDA"),
        ({"dtype": "float16", "threads": 1}, {"threads": 1}, "float16, 1 thread"),
        ({"threads": 1}, {"threads": 4}, "PyTorch 1 thread, ONNX Runtime 4 threads"),
        ({}, {"exporter": "torchscript", "opset": 17}, "torchscript, opset 17"),
        ({}, {"constant_folding": False}, "no constant folding"),
        ({"switches": {"mkldnn": False, "emulate": "tf32"}}, {}, "mkldnn off, emulate tf32"),
        (
            {"switches": {"sdpa_kernel": "math"}},
            {"switches": {"sdpa_kernel": 16, "session.disable_prepacking": True}},
            "PyTorch sdpa_kernel math, ONNX Runtime sdpa_kernel 16, disable_prepacking on",
        ),
    ],
)
def test_requested_in_words(expected: dict[str, object], actual: dict[str, object], text: str) -> None:
    """Only what differs from the libraries' defaults, and from what most pairs have, is said."""
    torch = NumericConfig("torch", dtype="float32")
    ort = NumericConfig("onnxruntime", dtype="float32", optimization="all", exporter="dynamo", constant_folding=True)
    usual = [config_run(name, ort, 1e-7, expected=torch) for name in "abc"]
    one = config_run("one", replace(ort, **actual), 1e-7, expected=replace(torch, **expected))  # type: ignore[arg-type]
    dtype = {"dtype": one.expected.dtype}
    one = replace(one, actual=replace(one.actual, **dtype))
    assert text == pairs.requested_texts(replace(healthy(), configs=(*usual, one)))["one"]


@pytest.mark.parametrize(
    ("torch", "effective", "text"),
    [
        (None, {}, "-"),
        (None, {"providers": ["CPUExecutionProvider"], "nodes": 12}, "12 nodes"),
        (None, {"expected": {"device": "cpu"}, "actual": {"providers": ["CPUExecutionProvider"]}}, "CPU"),
        (
            None,
            {"expected": {"device": "cuda"}, "actual": {"providers": ["CPUExecutionProvider"]}},
            "PyTorch CUDA, ONNX Runtime CPU",
        ),
        (None, {"actual": {"nodes": {"Conv": 3}, "changed": {"Conv": [5, 3], "Relu": [2, 0]}}}, "3 nodes from 7"),
        (None, {"actual": {"nodes": {"Conv": 3}, "changed": {}}}, "3 nodes as given"),
        (
            None,
            {"expected": {"device": "cuda"}, "actual": {**CUDA_NODES, "placement": {"CPUExecutionProvider": 4}}},
            "0 nodes on CUDA, 4 nodes on CPU",
        ),
        (
            CUDA,
            {"expected": {"device": "cuda", "matmul_tf32": False, "matmul_tf32_seen": True, "conv_tf32_seen": False}},
            "CUDA, set as requested, TF32 seen in matmul",
        ),
        (CUDA, {"expected": {"device": "cuda", "matmul_tf32": True}}, "CUDA, matmul_tf32 on instead"),
        (CUDA, {"expected": {"device": "cuda"}}, "CUDA, matmul_tf32 not read back"),
        (
            NumericConfig("torch", threads=1),
            {"expected": {"device": "cpu", "threads": 2}, "actual": {}},
            "PyTorch 2 threads",
        ),
    ],
)
def test_in_effect_in_words(torch: NumericConfig | None, effective: dict[str, object], text: str) -> None:
    """What was read back is told from what was only asked for."""
    changes = {"expected": torch} if torch else {}
    assert text == pairs.in_effect_text(
        config_run("one", replace(ORT_OFF, threads=0), None, effective=effective, **changes)
    )


def test_switches_of_onnxruntime_in_words() -> None:
    """A session spells true as 1; a key that it does not hold is said to be unknown."""
    actual = replace(ORT_OFF, threads=0, switches={"session.disable_prepacking": True, "use_tf32": False})
    torch = NumericConfig("torch")
    run = config_run("one", actual, None, expected=torch)

    def text(**read: object) -> str:
        return pairs.in_effect_text(replace(run, effective={"actual": read}))

    assert "set as requested" == text(switches={"session.disable_prepacking": "1", "use_tf32": "0"})
    assert "use_tf32 unknown instead" == text(switches={"session.disable_prepacking": "1", "use_tf32": None})
    assert "disable_prepacking not read back" == text(switches={}, unconfirmed=["session.disable_prepacking"])


@pytest.mark.parametrize(
    ("side", "switch", "text"),
    [
        ("torch", "threads", "PyTorch threads"),
        ("onnxruntime", "threads", "ONNX Runtime threads"),
        ("onnxruntime", "session.disable_prepacking", "disable_prepacking"),
        ("export", "opset", "opset"),
    ],
)
def test_suspects_in_words(side: str, switch: str, text: str) -> None:
    """With the side only where both sides have a switch of that name."""
    tried = replace(matrix().verdict.hypotheses[0], side=side, switch=switch, after="2")
    assert (text, "unset -> 2") == pairs.hypothesis_cells(tried)[:2]


@pytest.mark.parametrize(
    ("dtype", "read", "text"),
    [
        ("float32", "float32", "1 node"),
        ("float16", "float16", "graph in float16, 1 node"),
        ("float32", "float16", "graph in float16, 1 node"),
        ("float16", "float32", "graph in float32, 1 node"),
        ("float32", None, "1 node"),
    ],
)
def test_dtype_of_the_graph_in_words(dtype: str, read: str | None, text: str) -> None:
    """Said where it is not the usual one, or not that of the model."""
    actual = replace(ORT_OFF, threads=0, dtype=dtype)
    run = config_run("one", actual, None, effective={"actual": {"dtype": read, "nodes": {"Conv": 1}}})
    assert text == pairs.in_effect_text(run)


@pytest.mark.parametrize(
    ("error", "level"),
    [(0.0, 0), (1e-12, 1), (1e-7, 1), (2e-6, 2), (1.3e-3, 5), (0.5, 7), (1.0, 8), (float("inf"), 8), (float("nan"), 8)],
)
def test_shades_of_errors(error: float, level: int) -> None:
    """One shade for each factor of ten; NaN is as bad as can be."""
    assert level == selecting.heat_level(error)


@pytest.mark.parametrize(
    ("dtype", "switches", "limits"),
    [
        ("float32", {}, "relative L2 1.0e-04 (float32),"),
        ("float16", {}, "relative L2 2.0e-02 (float16),"),
        ("float32", {"autocast": "float16"}, "relative L2 1.0e-04 (float32), 2.0e-02 (float16),"),
    ],
)
def test_tolerance_is_that_of_the_pair_shown(dtype: str, switches: dict[str, Value], limits: str) -> None:
    """Rows of a matrix are those of one pair; another one may be in half precision."""
    report = matrix()
    configs = tuple(
        replace(run, expected=replace(run.expected, dtype=dtype, switches=switches))
        if run.name == "ort-cuda-off"
        else run
        for run in report.configs
    )
    assert f"judged by the noise floor, and {limits}" in " ".join(page(replace(report, configs=configs)).split())


def test_lines_for_a_gpu_are_printed_for_emulated_pairs() -> None:
    """They count for nothing, and say what to set in both libraries; other explored pairs stay in the report."""
    report = matrix()
    (gating, *_) = report.verdict.diagnoses
    emulated = replace(gating, title="tf32-emulated operands in PyTorch", remedy="one = 1\ntwo = 2", gating=False)
    other = replace(emulated, title="oneDNN", remedy="three = 3\nfour = 4")
    text = page(replace(report, verdict=replace(report.verdict, diagnoses=(emulated, other))))
    assert "keep both libraries from it (tf32-emulated operands in PyTorch" in " ".join(text.split())
    assert "      one = 1\n      two = 2\n" in text
    assert "three = 3" not in text

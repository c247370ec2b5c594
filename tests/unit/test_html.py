"""``index.html``: everything escaped, nothing loaded, and a table that is whole without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_samples import (
    ORT_ALL,
    SAMPLES,
    SCRIPT,
    big,
    config_run,
    diverging,
    empty,
    healthy,
    hostile,
    hostile_matrix,
    long,
    matrix,
)

from bisect_tool.records import Report
from bisect_tool.reporters.html import html_text

VOID = {"meta", "link", "img", "source", "input", "br", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; an element that is not closed in order is an error."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(len(self.elements))
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.elements[self.open.pop()][0]

    def handle_data(self, data: str) -> None:
        for number in self.open:
            self.elements[number][2].append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of all elements of a kind with these attributes."""
        return [
            (attributes, " ".join(" ".join(text).split()))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


def page(report: Report) -> Page:
    return Page(html_text(report))


def table(report: Report, head: str = 'id="stages"') -> list[list[str]]:
    """The cells of the stage table, or of another one."""
    text = html_text(report)
    [part] = re.findall(rf"<table {head}>.*?</table>", text, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", part, re.DOTALL)
    cells = [re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join("".join(Page(cell).elements[0][2]).split()) for cell in row] for row in cells]


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_well_formed(name: str) -> None:
    """Every element is closed in order, identifiers are unique, and the page can be written as UTF-8."""
    text = html_text(SAMPLES[name]())
    text.encode("utf-8")
    assert text.startswith("<!doctype html>")
    ids = [attributes["id"] for _, attributes, _ in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_name_is_escaped() -> None:
    """A script in any name of the report is text: the page's only script is its own."""
    text = html_text(hostile())
    assert SCRIPT not in text
    [(_, script)] = Page(text).all("script")
    assert "alert" not in script
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not [name for tag, attributes, _ in Page(text).elements for name in attributes if name.startswith("on")]


def test_every_name_of_a_matrix_is_escaped() -> None:
    """Names of pairs, switches and what was read back are text, in whatever form the report has them."""
    text = html_text(hostile_matrix())
    assert SCRIPT not in text
    assert "\x1b" not in text
    parsed = Page(text)
    assert 1 == len(parsed.all("script"))
    [row, *_] = table(hostile_matrix(), 'id="pairs"')[1:]
    assert f"optimization {SCRIPT}, PyTorch {SCRIPT} {SCRIPT}" in row[6]
    assert f"{SCRIPT} not read back" in row[7]
    [(_, code)] = parsed.all("pre")[:1]
    assert f"{SCRIPT} [red]x = 'esc\\x1b[31m'" == code


def test_plot_is_drawn_and_escaped() -> None:
    """The plot is SVG in the page, its names are text, and each stage that was compared links to its row."""
    parsed = page(hostile())
    [(drawing, text)] = parsed.all("svg", id="plot")
    assert "group" == drawing["role"]
    assert SCRIPT in text
    anchors = {attributes["href"] for attributes, _ in parsed.all("a", **{"class": "spot"})}
    rows = {"#" + attributes["id"] for attributes, _ in parsed.all("tr") if "id" in attributes}
    assert 9 == len(anchors) and anchors <= rows


def test_links_lead_somewhere() -> None:
    """Every link inside the page has its target."""
    for report in (diverging(), matrix(), big()):
        parsed = page(report)
        ids = {attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes}
        links = {attributes["href"] for attributes, _ in parsed.all("a")}
        assert links and {link[1:] for link in links if link.startswith("#")} <= ids


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_loaded(name: str) -> None:
    """The page refers to no address: nothing is fetched, with or without a network."""
    text = html_text(SAMPLES[name]())
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text)
    for tag, attributes, _ in Page(text).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "srcset", "href", "action", "style"):
            within = "#" if tag == "a" else "data:"
            assert attributes.get(key, within).startswith(within)


def test_security_policy_allows_the_pages_own_script_only() -> None:
    """The policy names the script's hash, so that no other script would run even if one got in."""
    parsed = page(diverging())
    [(policy, _)] = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    [script] = ["".join(text) for tag, _, text in parsed.elements if tag == "script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy["content"]
    assert "default-src 'none'" in policy["content"]


def test_verdict_comes_first() -> None:
    """Verdict, what was considered, plot, configurations, modules and stages follow in this order."""
    text = html_text(diverging())
    words = (
        'class="verdict diverges"',
        'id="tried"',
        "<figure",
        'id="configs-title"',
        'id="tree-title"',
        'id="stages"',
    )
    places = [text.index(word) for word in words]
    assert sorted(places) == places
    [(_, verdict)] = page(diverging()).all("section")
    assert verdict.startswith("DIVERGES The divergence starts at layer3.upsample (Upsample)")
    assert "BD103 resize-coordinates" in verdict
    assert "tried: it removes the divergence" in verdict
    assert "INCONCLUSIVE" in page(empty()).all("section")[0][1]
    (_, title), *_ = page(diverging()).all("title")
    assert "DIVERGES: ckpt" == title


def test_stage_table_is_complete_without_javascript() -> None:
    """There is a row for each stage and configuration, with the same words as on the terminal."""
    rows = table(diverging())
    assert 1 + 19 == len(rows)
    heads = ["#", "stage", "judgement", "max abs", "mean abs", "rel-L2", "local", "growth", "amplification"]
    assert [*heads, "made here"] == rows[0][:10]
    [upsample] = [cells for cells in rows if cells[1].startswith("layer3.upsample first") and cells[15] == "ort-off"]
    assert "layer3.upsample first diverging stage origin" == upsample[1]
    assert ["6", "FAIL", "3.8e-01", "2.4e-02", "4.8e-02", "4.8e-02", "2.3e+05"] == [upsample[0], *upsample[2:8]]
    [folded] = [cells for cells in rows if cells[1] == "stem.bn"]
    assert ["n/c", "-"] == folded[2:4]
    assert ["no stage was compared"] == table(empty())[1]


def test_controls_need_javascript_and_are_hidden_without() -> None:
    """The filter is hidden until the script shows it, and heads are plain text until it makes them buttons."""
    parsed = page(diverging())
    [(form, _)] = parsed.all("form")
    assert "hidden" in form
    assert [] == parsed.all("button")
    [(_, script)] = parsed.all("script")
    assert 'createElement("button")' in script
    assert "aria-sort" in script
    assert all(attributes["scope"] in ("col", "row") for attributes, _ in parsed.all("th"))
    options = [attributes["value"] for attributes, _ in parsed.all("option") if "selected" in attributes]
    assert ["ort-off"] == options


def test_sort_keys_are_exact() -> None:
    """Sorting reads full numbers; NaN and infinities have keys, and what is missing has none."""
    keys = [attributes["data-key"] for attributes, _ in page(hostile()).all("td") if "data-key" in attributes]
    assert {"NaN", "Infinity", "-Infinity", "", "1e-300"} <= set(keys)
    for key in keys:
        assert key in ("NaN", "Infinity", "-Infinity", "") or float(key) >= 0


def test_unaligned_stages_have_their_reasons() -> None:
    """Folded stages and those that were not found are listed apart, each with its reason."""
    text = html_text(diverging())
    lost, absent = text.index("Not found in the graph"), text.index("folded or fused away")
    assert lost < text.index("two values of the graph match equally well") < absent
    assert absent < text.index("folded into stem.conv by the exporter")
    assert "Not compared" not in html_text(healthy())


def test_alignment_evidence_is_there() -> None:
    """Each pair is listed with how it was found, inside details that open without a script."""
    found = [
        each for each in page(diverging()).all("details") if each[1].startswith("Alignment: 8 pairs and their evidence")
    ]
    [details] = found
    assert "layer3.upsample /layer3/upsample_output_0 scope, value same" in details[1]
    assert "ONNX values that stand for no stage: /Shape_output_0" in details[1]


def test_how_to_repeat_it() -> None:
    """The command is given as a shell takes it, and the environment in full."""
    parsed = page(diverging())
    [(_, command)] = parsed.all("code")
    assert "bisect-divergence model.py ckpt.pth --input 'sample file.pt'" == command
    facts = dict(zip((text for _, text in parsed.all("dt")), (text for _, text in parsed.all("dd")), strict=True))
    assert ("2.13.0", "2", "yes") == (facts["torch"], facts["cpu.cores"], facts["cpu.avx512"])
    one = replace(diverging(), case={"command": "bisect-divergence 'a b.py'"})
    assert [({}, "bisect-divergence 'a b.py'")] == page(one).all("code")


def test_configurations_are_listed() -> None:
    """Each configuration shows status, errors and whether it counts, and why it was skipped."""
    text = " ".join(text for _, text in page(diverging()).all("tbody"))
    assert (
        "ort-off DIVERGES 5.2e-02 5.2e-02 0 yes providers: CPUExecutionProvider nodes: 12 threads: 2 0.75 512" in text
    )
    assert "half-emulated DIVERGES - 6.1e-02 - explores only" in text
    assert "ONNX Runtime offers no CUDAExecutionProvider on this machine skipped" in text


def test_the_plot_is_described() -> None:
    """Those who do not see the plot read what it shows."""
    [(image, _)] = page(diverging()).all("svg", id="plot")
    assert (
        "Plot of the error by stage under ort-off: relative L2 error is largest at head.fc, 5.2e-02. "
        "The first diverging stage is layer3.upsample."
    ) == image["aria-label"]
    [(_, text)] = page(empty()).all("figure")
    assert text.endswith("Plot of the error by stage; no stage was compared.")


def test_themes_and_media() -> None:
    """The page has a dark scheme, a print style and a phone's viewport."""
    parsed = page(healthy())
    [(_, style)] = parsed.all("style")
    for media in ("prefers-color-scheme: dark", "@media print", "max-width: 36rem"):
        assert media in style
    assert "width=device-width, initial-scale=1" == parsed.all("meta", name="viewport")[0][0]["content"]
    assert [{"lang": "en"}] == [attributes for attributes, _ in parsed.all("html")]


def test_long_reports_are_complete() -> None:
    """All 200 stages are in the table."""
    assert 201 == len(table(long()))


def test_big_report_is_small() -> None:
    """500 stages under two configurations are less than 2 MB, all rows included."""
    report = big()
    text = html_text(report)
    assert 500 == len(report.stages) and 2 == len(report.configs)
    assert len(text.encode()) < 2_000_000
    assert 1000 == text.count('data-judgement="')


def test_big_matrix_is_small() -> None:
    """With forty configurations too: then the stage table has one, and says where the others are; the heat table has all."""
    report = big()
    names = [f"pair-{number}" for number in range(40)]
    rows = [
        replace(row, results={**row.results, **dict.fromkeys(names, row.results["ort-all"])}) for row in report.stages
    ]
    pairs = [config_run(name, replace(ORT_ALL, switches={"n": number}), 5e-2) for number, name in enumerate(names)]
    text = html_text(replace(report, stages=tuple(rows), configs=(*report.configs, *pairs)))
    assert len(text.encode()) < 2_000_000
    assert 500 == text.count('data-judgement="')
    assert "in stages.csv: ort-all, pair-0, pair-1" in text
    assert 500 * 42 == len(re.findall(r'<td class="?h\d', text))


# Matrices


def test_pairs_of_a_matrix() -> None:
    """Each pair has a row: verdict, worst stage, output, first divergence, requested, in effect, time and memory."""
    heads, *rows = table(matrix(), 'id="pairs"')
    assert ["pair", "verdict", "rel-L2", "worst stage", "final output", "first divergence", "requested"] == heads[:7]
    assert ["really in effect", "observer effect", "counts", "time", "memory"] == heads[7:]
    assert len(matrix().configs) == len(rows)
    by_name = {row[0]: row for row in rows}
    cuda = by_name["ort-cuda-off"]
    assert ["DIVERGES", "2.1e-03", "block.conv", "2.4e-03"] == cuda[1:5]
    assert "stem.conv of the final error 75.0 % is made in block.conv, 21.0 % in stem.conv, 4.0 % in head.fc" == cuda[5]
    assert "CUDA, optimization off" == cuda[6]
    assert cuda[7].startswith("CUDA, TF32 seen in conv, 14 nodes as given all that was read back expected.device")
    assert ["0", "yes", "32 ms", "1830 MB"] == cuda[8:]
    assert ["CRASHED", "-", "-", "-", "-"] == by_name["cuda-attention-efficient"][1:6]
    assert "explores only" == by_name["trt"][9]
    assert "ort-cuda-off-try-1 tried, to explain another" in by_name


def test_pairs_can_be_sorted() -> None:
    """Every column says what it is sorted by, numbers by all their digits; the script knows both tables."""
    parsed = page(matrix())
    assert {"text", "number"} == {
        attributes["data-sort"] for attributes, _ in parsed.all("th") if "data-sort" in attributes
    }
    text = html_text(matrix())
    [pairs] = re.findall(r'<table id="pairs">.*?</table>', text, re.DOTALL)
    assert 'data-key="0.0024"' in pairs
    [(_, script)] = parsed.all("script")
    assert "#pairs, #stages" in script


def test_reasons_of_a_matrix_are_given_once() -> None:
    """Pairs that did not run for one reason are listed together."""
    items = [text for _, text in page(matrix()).all("li")]
    missing = "ONNX Runtime's TensorRT provider cannot be loaded: libnvinfer.so.10 is missing"
    assert f"skipped {missing} trt, trt-fp16" == items[0]
    assert items[2].startswith("CRASHED its process was ended by signal 11")


def test_heat_table() -> None:
    """Stages by configurations: the error as text and as shade; failures are marked, trials and missing pairs left out."""
    heads, *rows = table(matrix(), 'class="heat"')
    assert ["stage", "ort-cpu-off", "ort-cpu-all", "ort-cuda-off", "no-conv-tf32", "tf32-emulated"] == heads
    assert ["block.conv", "1.9e-07", "2.0e-07", "2.1e-03 *", "2.5e-07", "1.9e-03 *"] == rows[2]
    parsed = page(matrix())
    shades = [attributes["class"] for attributes, text in parsed.all("td") if text == "2.1e-03 *"]
    assert {"h5 over"} == set(shades)
    [(_, style)] = parsed.all("style")
    assert all(f".h{level} {{" in style for level in range(1, 9))
    regions = [attributes for attributes, _ in parsed.all("div", **{"class": "scroll tall"})]
    assert ["heat-title"] == [attributes["aria-labelledby"] for attributes in regions]


def test_what_separates_is_on_the_page() -> None:
    """A diagnosis has its remedy as lines of code, tried or not, its cost, and what was ruled out."""
    text = html_text(matrix())
    [(_, code)] = Page(text).all("pre")[:1]
    assert code.startswith("torch.backends.cudnn.allow_tf32 = False providers=[(")
    assert "<pre>\ntorch.backends.cudnn.allow_tf32 = False\nproviders=" in text
    facts = Page(text).all("dd")
    assert "+4 % time, +0 MB" in [fact for _, fact in facts]
    assert any(fact.startswith("tried: it removes the divergence") for _, fact in facts)
    assert "BD301 memory layout channels_last: ort-cuda-off with" in " ".join(item for _, item in Page(text).all("li"))
    assert text.index(">What separates failing") < text.index(">Stages by configuration<") < text.index("<figure")
    assert "What separates" not in html_text(diverging())


def test_hypotheses_are_a_table() -> None:
    """A row for each suspect: what was tried where, errors before and after, time, and what follows."""
    page = Page(html_text(matrix()))
    cells = [text for _, text in page.all("td") if text in ("culprit", "ruled out", "unset -> false", "+4%", "-12%")]
    assert ["unset -> false", "+4%", "culprit", "unset -> false", "ruled out", "-12%", "ruled out"] == cells
    assert "2.4e-03 -> 4.0e-07" in [text for _, text in page.all("td")]
    assert "cudnn_conv_tf32" in [text for _, text in page.all("th")]
    assert ">Hypotheses<" not in html_text(diverging())


def test_shares_are_in_the_stage_table() -> None:
    """The share of the final error has a column, for each configuration that measured it."""
    rows = [row for row in table(matrix()) if row[1].startswith("block.conv")]
    assert {"ort-cpu-off": "20.0 %", "ort-cpu-all": "-", "ort-cuda-off": "75.0 %"} == {
        row[15]: row[9] for row in rows[:3]
    }

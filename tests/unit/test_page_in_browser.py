"""The page in a real browser: it is used by hand and by keyboard, printed, and neither complains nor asks for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, Tab, executable, running
from report_samples import big, diverging, empty, hostile, hostile_matrix, matrix

from bisect_tool.reporters.html import html_text

PAGES = {
    "big": big,
    "diverging": diverging,
    "hostile": hostile,
    "hostile-matrix": hostile_matrix,
    "matrix": matrix,
    "empty": empty,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, report in PAGES.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(html_text(report()), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests of this file."""
    path = executable()
    if path is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    with running(path, tmp_path_factory.mktemp("profile")) as found:
        try:
            found.send("Browser.getVersion")
        except (OSError, RuntimeError) as error:  # no answer in time is an OSError too
            pytest.skip(f"{path} does not start here: {error}")
        yield found


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Tab:
    return browser.tab()


@pytest.fixture(scope="module")
def big_tab(browser: Browser, pages: dict[str, Path]) -> Tab:
    """500 stages take a while to lay out: once is enough."""
    tab = browser.tab()
    tab.open(pages["big"])
    return tab


def shown_rows(tab: Tab) -> list[list[str]]:
    """Cells of the stage table's rows that are not hidden."""
    script = """[...document.querySelectorAll('#stages tbody tr:not([hidden])')]
        .map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\\s+/g, ' ')))"""
    return list(tab.run(script))


def enter(tab: Tab, name: str, value: str) -> None:
    """Fills in a field of the filter, as typing or choosing does."""
    tab.run(
        f"(() => {{ const it = document.getElementById({name!r}); it.value = {value!r};"
        " it.dispatchEvent(new Event('input')); })()"
    )


def middle(tab: Tab, selector: str) -> tuple[float, float]:
    """Where an element is, once it was scrolled to."""
    x, y = tab.run(
        f"""(() => {{ const it = document.querySelector({selector!r}); it.scrollIntoView({{block: 'center'}});
        const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
    )
    return float(x), float(y)


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_quietly(tab: Tab, pages: dict[str, Path], name: str) -> None:
    """No error in the console, no dialogue, no request; and no name of the report has become an element."""
    tab.open(pages[name])
    assert [] == tab.problems()
    assert [] == tab.requests()
    assert 1 == tab.run("document.scripts.length")
    assert 0 == tab.run("document.querySelectorAll('[onerror],[onload],[onclick],iframe,object').length")


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_a_phone(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """Wide tables and drawings scroll by themselves; the page does not."""
    tab = browser.tab(width=390, height=844)
    tab.open(pages[name])
    assert 390 == tab.run("document.documentElement.scrollWidth")


def test_sorting_and_filtering(big_tab: Tab) -> None:
    """A click sorts, and again the other way; words and judgements filter; the count says what is shown."""
    tab = big_tab
    assert 500 == len(shown_rows(tab))
    button = "#stages thead th:nth-child(6) button"
    tab.click(*middle(tab, button))
    assert "descending" == tab.run("document.querySelector('#stages thead th:nth-child(6)').ariaSort")
    errors = [float(row[5]) for row in shown_rows(tab)]
    assert sorted(errors, reverse=True) == errors and errors[0] > errors[-1]
    tab.run(f"document.querySelector({button!r}).focus()")
    tab.press("Enter")
    errors = [float(row[5]) for row in shown_rows(tab)]
    assert sorted(errors) == errors
    enter(tab, "find", "stages.3 blocks.4")
    rows = shown_rows(tab)
    assert 25 == len(rows) and all("stages.3" in row[1] and "blocks.4" in row[1] for row in rows)
    assert f"{len(rows)} of 1000 rows" == tab.run("document.getElementById('count').textContent")
    enter(tab, "find", "")
    enter(tab, "judgement", "fail")
    assert {"FAIL"} == {row[2] for row in shown_rows(tab)}
    enter(tab, "judgement", "*")
    assert 500 == len(shown_rows(tab))
    assert [] == tab.problems()


def test_plot_shows_numbers_and_leads_to_rows(big_tab: Tab) -> None:
    """Pointing at a stage, or going there with arrow keys, shows its numbers; a click shows its row, hidden or not."""
    tab = big_tab
    spot = "#plot .spot[href='#r300']"
    opacity = f"getComputedStyle(document.querySelector({spot!r}).querySelector('.tip')).opacity"
    assert "0" == tab.run(opacity)
    place = middle(tab, f"{spot} .strip")
    tab.point(*place)
    assert tab.until(f"{opacity} === '1'")
    tip = str(tab.run(f"document.querySelector({spot!r}).textContent"))
    assert "total" in tip and "local" in tip
    enter(tab, "find", "nothing has this name")
    assert [] == shown_rows(tab)
    tab.click(*middle(tab, f"{spot} .strip"))
    assert tab.until("document.activeElement === r300")
    assert "#r300" == tab.run("location.hash") and not tab.run("r300.hidden")
    top, bottom = tab.run("(() => { const box = r300.getBoundingClientRect(); return [box.top, box.bottom]; })()")
    assert 0 <= top < bottom <= 900
    assert 500 == len(shown_rows(tab))
    # By keyboard: one stop for all, arrow keys between them.
    assert 2 == tab.run("document.querySelectorAll('#plot .spot:not([tabindex])').length")
    tab.run(f"document.querySelector({spot!r}).focus()")
    tab.press("ArrowRight")
    assert "#r301" == tab.run("document.activeElement.getAttribute('href')")
    tab.press("Enter")
    assert tab.until("document.activeElement === r301")
    assert [] == tab.problems()


def test_tree_expands(big_tab: Tab) -> None:
    """Modules that diverge are open from the start; a click opens one, a button all of them."""
    tab = big_tab
    shut = "document.querySelectorAll('#tree details:not([open])').length"
    assert 0 < tab.run(shut) < tab.run("document.querySelectorAll('#tree details').length")
    before = tab.run(shut)
    tab.click(*middle(tab, "#tree details:not([open]) > summary"))
    assert tab.until(f"{shut} === {before - 1}")
    tab.run("[...document.querySelectorAll('.tools button')].find((it) => it.textContent === 'open all').click()")
    assert 0 == tab.run(shut)


def test_page_prints(tab: Tab, pages: dict[str, Path]) -> None:
    """A PDF of several pages, of a size that one can send on."""
    tab.open(pages["diverging"])
    data = tab.pdf()
    assert data.startswith(b"%PDF") and len(data) < 2 << 20
    assert 2 <= data.count(b"/Type /Page\n") + data.count(b"/Type/Page/") + data.count(b"/Type /Page ")


@pytest.mark.parametrize("name", ["diverging", "matrix"])
def test_nothing_is_cut_off_on_paper(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """What scrolls on a screen fits a sheet of A4, lying."""
    tab = browser.tab(width=1046, height=700)
    tab.open(pages[name])
    tab.send("Emulation.setEmulatedMedia", media="print")
    wide = "[...document.querySelectorAll('main *')].filter((it) => it.getBoundingClientRect().right > 1047)"
    assert [] == tab.run(f"{wide}.map((it) => it.outerHTML.slice(0, 90))")


def test_essentials_without_scripts(browser: Browser, pages: dict[str, Path]) -> None:
    """Verdict, table and drawing are there, links lead to rows, and no control is shown that would do nothing."""
    tab = browser.tab()
    tab.scripts(allowed=False)
    tab.open(pages["diverging"])
    assert "DIVERGES" in str(tab.run("document.querySelector('section').textContent"))
    assert 19 == len(shown_rows(tab))
    assert "none" == tab.run("getComputedStyle(document.getElementById('filter')).display")
    assert 0 == tab.run("document.querySelectorAll('button').length")
    tab.click(*middle(tab, "#plot .spot[href='#r6'] .strip"))
    assert tab.until("document.querySelector('#r6:target') !== null")


CONTRAST = """(() => {
  const parse = (text) => {
    const numbers = (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    if (text.startsWith('color(srgb')) return [...numbers.slice(0, 3).map((part) => part * 255), numbers[3] ?? 1];
    return [...numbers.slice(0, 3), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => part / 255).map((p) => p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (it) => {
    const layers = [];
    for (let at = it; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [0, 0, 0] : [255, 255, 255];
    return layers.reverse().reduce((below, layer) => over(layer, below), canvas);
  };
  const bad = [];
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const it = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || it.closest('svg, script, style, .sr, option')) continue;
    const paper = behind(it);
    const ink = over(parse(getComputedStyle(it).color), paper);
    const [one, other] = [light(ink), light(paper)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    count += 1;
    const text = walker.currentNode.data.trim().slice(0, 40);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${it.tagName} .${it.className} ${text}`);
  }
  return [count, [...new Set(bad)]];
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["diverging", "matrix"])
def test_contrast_of_every_word(browser: Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    """At least 4.5 to 1 between text and what is behind it, mixed backgrounds included, in both schemes."""
    tab = browser.tab(dark=dark)
    tab.open(pages[name])
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    count, bad = tab.run(CONTRAST)
    assert count > 300
    assert [] == bad


def test_a_bad_contrast_is_seen(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The check above can fail."""
    page = tmp_path / "grey.html"
    page.write_text(pages["diverging"].read_text().replace("--dim: #57606a", "--dim: #a0a0a0"))
    tab = browser.tab()
    tab.open(page)
    assert tab.run(CONTRAST)[1]

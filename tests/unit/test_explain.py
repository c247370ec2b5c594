"""Every code that the tool can print has a page, and the titles are the same in both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import bisect_tool
from bisect_tool.cli.explain import explain
from bisect_tool.diagnose.causes import TITLES
from bisect_tool.diagnose.explain import catalogue, codes, page, wrapped
from bisect_tool.errors import BisectError

PACKAGE = Path(bisect_tool.__file__).parent


def test_titles_are_those_of_the_pages() -> None:
    known = codes()
    assert TITLES == {code: known[code] for code in TITLES}


def test_every_code_in_the_sources_has_a_page() -> None:
    used = {code for file in PACKAGE.rglob("*.py") for code in re.findall(r'"(BD\d{3})"', file.read_text("utf-8"))}
    assert used and used <= codes().keys()


@pytest.mark.parametrize("code", codes())
def test_page_says_how_it_shows_and_what_to_do(code: str) -> None:
    text = page(code.lower())
    assert text.startswith(f"# {code}: ")
    assert "How it shows:" in text
    assert "Remedy:" in text or "What to do:" in text
    assert max(map(len, text.splitlines())) <= 126


def test_unknown_code_lists_those_there_are() -> None:
    with pytest.raises(BisectError) as caught:
        page("BD999")
    assert "no page for 'BD999'" in caught.value.message
    assert "BD101" in (caught.value.hint or "")


def test_command() -> None:
    assert "BD101  an attribute differs" in CliRunner().invoke(explain, []).output
    assert CliRunner().invoke(explain, ["BD203"]).output.startswith("BD203: ")
    assert '"code": "BD203"' in CliRunner().invoke(explain, ["bd203", "--format", "json"]).output


@pytest.mark.parametrize("code", codes())
def test_text_is_folded_to_80_columns_and_says_what_the_page_says(code: str) -> None:
    text = wrapped(page(code), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert page(code).removeprefix("# ").split() == text.split()


def test_terminal_gets_no_marks_of_markdown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        explain(["BD109"])
    text = capsys.readouterr().out
    assert "BD109: NaN or infinities on one side only" in text
    assert "# BD109" not in text and "`" not in text


def test_catalogue_in_the_docs_is_current() -> None:
    """docs/causes.md is what scripts/docs-causes writes, and each line of its contents leads to a heading."""
    text = (PACKAGE.parent / "docs" / "causes.md").read_text(encoding="utf-8")
    assert catalogue() == text, "run scripts/docs-causes"
    headings = re.findall(r"^## (BD\d{3}: .+)$", text, re.MULTILINE)
    assert [f"{code}: {title}" for code, title in codes().items()] == headings
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors

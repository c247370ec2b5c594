"""What README and docs say is so: commands with exit codes and output, snippets, links, options, keys of case files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import EXAMPLES, ROOT
from pages import blocks, commands_of, execute_line, without_numbers

README = (ROOT / "README.md").read_text(encoding="utf-8")
INPUTS = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that Markdown viewers give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_commands_do_what_is_shown(example_data: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of README exits as README says, and prints every line that README shows, numbers left open."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for example in EXAMPLES:
        shutil.copytree(ROOT / "examples" / example, tmp_path / "examples" / example)
    for block in blocks(README, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None, "a Python block of README begins with the name of its file"
        (tmp_path / name[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # The data is there already; the page begins with the broken graph, and shows further down how it is made.
    commands = [command for command in commands_of(README) if "make_data.py" not in command.line]
    commands.sort(key=lambda command: "broken.onnx" in command.line)
    assert {0, 1} == {command.code for command in commands} - {None}
    for command in commands:
        code, out = execute_line(command.line)
        assert (command.code or 0) == code, command.line
        printed = {without_numbers(line) for line in out.splitlines()}
        for line in command.shown:
            # Which stage is the worst of a healthy model is chance.
            if "[...]" not in line and "worst relative L2" not in line:
                assert without_numbers(line) in printed, f"{command.line}\ndoes not print\n{line}\nbut\n{out}"


def test_python_blocks_of_readme_are_run() -> None:
    """No Python block of README is shown without being run by a command."""
    lines = [command.line for command in commands_of(README)]
    for block in blocks(README, "python"):
        assert f"python {block.splitlines()[0].removeprefix('# ')}" in lines


def test_every_module_is_on_the_map() -> None:
    """README's code map or docs/architecture.md names each module of the package's top, and each folder."""
    package = ROOT / "bisect_tool"
    told = README.partition("## Code map")[2] + (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    rooms = [path.parent.name for path in package.glob("*/__init__.py")]
    assert {"pipeline", "align"} <= {*rooms}
    assert [] == [name for name in sorted([*modules, *rooms]) if f"bisect_tool/{name}" not in told]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and headings of the repository exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def test_every_option_is_documented() -> None:
    """README or docs/inputs.md names every option of the command, and README no option that is not there."""
    from bisect_tool.cli.run import run

    known = {name for option in run.params for name in (*option.opts, *option.secondary_opts) if name[0] == "-"}
    known |= {"-h", "--help"}
    missing = {name for name in known if not re.search(rf"(?<![\w-]){name}(?![\w-])", README + INPUTS)}
    assert set() == missing
    (table,) = re.findall(r"^## Options\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    assert set() == set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", table)) - known


def test_every_key_of_case_files_is_documented() -> None:
    """The case file in docs/inputs.md has all sections and keys, and nothing else."""
    from bisect_tool.cli.settings import KEYS, tomllib

    case = next(tomllib.loads(block) for block in blocks(INPUTS, "toml") if "[case]" in block)
    assert {section: set(keys) for section, keys in KEYS.items()} == {s: set(keys) for s, keys in case.items()}


def test_newcomers_path_is_short() -> None:
    """The figure that scripts/newcomer wrote is under three minutes, and that of its parts."""
    (told,) = re.findall(r"<!-- written by scripts/newcomer -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    whole, *parts = [int(number) for number in re.findall(r"(\d+) s\b", told)]
    assert 0 < whole < 180
    assert abs(whole - sum(parts)) <= len(parts)


def test_exit_codes_are_documented() -> None:
    """The table of exit codes in README is that of errors.py."""
    from bisect_tool import errors

    (table,) = re.findall(r"^## Exit codes\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}

"""docs/reference says what is so: commands and options, files, exit codes, codes; and its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import docs_commands

from bisect_tool import (
    errors,
    executors,
    experiments,
    hypotheses,
    parts,
    records,
    release_search,
    releases,
    store,
    witnesses,
)
from bisect_tool.backends import branches, fresh, optimised, passes, recorded_floors, replay_folder, unfold
from bisect_tool.calibration import tolerance_table
from bisect_tool.cli import env
from bisect_tool.cli.main import execute
from bisect_tool.cli.options import NO_EFFECT
from bisect_tool.cli.releases import RUN_SECONDS
from bisect_tool.cli.run import run
from bisect_tool.cli.settings import KEYS, PARTS
from bisect_tool.cli.tool import tool
from bisect_tool.data import records as data_records
from bisect_tool.determinism import Determinism
from bisect_tool.diagnose import input_orders, trying
from bisect_tool.diagnose.explain import codes
from bisect_tool.environments import rules as environment_rules
from bisect_tool.pipeline import aligning, explaining
from bisect_tool.recorder import MANIFEST, PROJECTIONS
from bisect_tool.reporters import calibration_plots

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bisect_tool"
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = {name.removeprefix("bisect-tool "): command for name, command in docs_commands._commands()}


def options() -> Iterator[tuple[str, click.Option]]:
    """Each option of each command, with the command's name."""
    for name, command in COMMANDS.items():
        yield from ((name, each) for each in command.params if isinstance(each, click.Option))


def text_of(page: str) -> str:
    return (REFERENCE / page).read_text(encoding="utf-8")


# commands.md


def test_page_of_commands_is_current() -> None:
    """docs/reference/commands.md is what scripts/docs-commands writes."""
    assert docs_commands.page() == text_of("commands.md"), "run scripts/docs-commands"


def test_every_option_says_what_it_does() -> None:
    """No option without a help text that ends as a sentence does."""
    unsaid = [(name, each.opts) for name, each in options() if not (each.help or "").endswith(".")]
    assert [] == unsaid


def test_defaults_are_said_and_are_those_of_the_code() -> None:
    """A default that click or a case file's defaults have stands in the option's help, and is that one."""
    wrong = []
    for name, option in options():
        known = docs_commands.known_default(name, option)
        if known is None or option.help == NO_EFFECT:
            continue
        word = ("on" if known else "off") if isinstance(known, bool) else str(known)
        stated = docs_commands.split_default(option.help or "")[1]
        if stated != word:
            wrong.append((name, option.opts, stated, word))
    assert [] == wrong


def test_examples_are_commands_that_there_are() -> None:
    """Every command has an example, and click reads its options and arguments."""
    known = {"bisect-divergence", *(f"bisect-tool {name}" for name in COMMANDS if name != "bisect-divergence")}
    assert known == set(docs_commands.EXAMPLES)
    for name, lines in docs_commands.EXAMPLES.items():
        for line in lines:
            program, *words = shlex.split(line.partition(" > ")[0])
            if program == "python":
                continue
            assert line.startswith(f"{name} ") or line == name
            command: click.Command = run if program == "bisect-divergence" else tool
            while isinstance(command, click.Group) and words and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            assert COMMANDS[name.removeprefix("bisect-tool ")] is command
            command.make_context(name, words)


def test_every_key_of_a_case_file_is_an_option_of_the_main_command() -> None:
    """The column with places in case files has all keys, so that none is left out or misspelt."""
    there = {docs_commands.place_of("bisect-divergence", str(each.name)) for each in run.params}
    assert {f"`[{section}] {key}`" for section, keys in KEYS.items() for key in keys} | {f"`[{PARTS}]`"} == there - {
        None
    }


def test_every_variable_that_is_read_is_named() -> None:
    """Variables that the sources ask the environment for by name stand in the table, apart from switches of libraries."""
    asked: set[str] = set()
    for file in (ROOT / "bisect_tool").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        asked |= set(re.findall(r"(?:environ|environment)\.(?:get|setdefault)\(\"([A-Z_]+)\"", text))
        if "os.environ.get(name) for name in (" in text or "environ.get(name))" in text:
            asked |= {
                name
                for group in re.findall(r"for name in \(([^)]*)\)", text)
                for name in re.findall(r'"([A-Z]+)"', group)
            }
    for file in (ROOT / "scripts").iterdir():
        if file.is_file() and not file.suffix:
            asked |= set(re.findall(r"\$\{([A-Z_]+):-", file.read_text(encoding="utf-8")))
    # What `env diff` writes into a script for the user is no question of ours.
    asked -= {"CUBLAS_WORKSPACE_CONFIG"}
    assert {"NO_COLOR", "GITHUB_ACTIONS", "LOGNAME", "BISECT_VENV"} <= asked
    table = docs_commands._environment()
    assert set() == {name for name in asked if f"`{name}`" not in table}


def test_options_of_argparse_are_read_from_the_sources() -> None:
    """The carried recorder's options are those that it takes, and the scripts' that are in a loop or a table too."""
    from bisect_tool import recorder

    rows, arguments = docs_commands.options_of(Path(str(recorder.__file__)), "_arguments")
    names = {name for row in rows for name in re.findall(r"`(--[\w-]+)", row.names)}
    taken = recorder._arguments(["model.py", "-o", "a.trace"])
    assert set(vars(taken)) - {"arguments"} == {name[2:].replace("-", "_") for name in names} | {
        n for n, _ in arguments
    }
    assert all(row.text for row in rows)


# Links


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and headings of the repository exist."""
    fenced = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", fenced.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", fenced.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target


# files.md


def test_every_schema_of_the_package_is_named() -> None:
    """Each JSON Schema of the package stands in the table with its version key, and that is the key in the schema."""
    (table,) = re.findall(r"^## Schemas\n(.*?)^## ", text_of("files.md"), re.DOTALL | re.MULTILINE)
    rows = dict(re.findall(r"^\| `([\w.]+\.schema\.json)` \|.*\| `(\w+)` \|$", table, re.MULTILINE))
    schemas = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("*.schema.json")}
    assert set(schemas) == set(rows)
    assert all(key in schemas[name]["properties"] for name, key in rows.items())


def test_every_file_that_is_written_under_a_fixed_name_is_named() -> None:
    """Names that the code has for the files it writes stand in the page."""
    fixed = [*store.KNOWN_FILES, store.INSPECTION_FILE, *store.REPLAY_FILES, *env.DIFF_FILES]
    fixed += [MANIFEST, PROJECTIONS, "tensors-00000.safetensors"]
    fixed += [name.replace("*", "NAME", 1) for name in store.OVERLAY_FILES if name.startswith("*.annotated")]
    fixed += [name.replace("*", "CONFIG", 1) for name in store.OVERLAY_FILES if name.endswith(".json")]
    fixed += [name for name in store.OVERLAY_FILES if "*" not in name]
    fixed += calibration_plots.names("STEM")
    assert [] == [name for name in fixed if f"`{name}`" not in text_of("files.md")]
    assert f"`{store._PARTIAL}" in text_of("files.md")


def test_every_version_key_is_named_with_its_number() -> None:
    """Each constant ``..._VERSION`` of the package belongs to a key of a file, which the page has with that number."""
    found: dict[str, int] = {}
    for file in PACKAGE.glob("**/*.py"):
        for name, number in re.findall(r"^([A-Z]+)_VERSION = (\d+)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            key = "schema_version" if name in ("SCHEMA", "TABLE") else f"{name.lower()}_version"
            assert found.setdefault(key, int(number)) == int(number)
    assert {"schema_version", "bundle_version", "journal_version"} <= found.keys()
    assert [] == [key for key, number in found.items() if f"`{key}` {number}" not in text_of("files.md")]


def test_every_section_of_a_case_file_is_named() -> None:
    line = next(line for line in text_of("files.md").splitlines() if line.startswith("| case file |"))
    assert {*KEYS, PARTS} == set(re.findall(r"\[(\w+)\]`", line))


# exit-codes.md


def exit_rows(page: str) -> dict[str, tuple[str, ...]]:
    """Rows of the first table with commands: the cells for 0, 1, 2 and 3, by command."""
    (table,) = re.findall(r"^## By command\n(.*?)^`--exit-zero`", page, re.DOTALL | re.MULTILINE)
    found: dict[str, tuple[str, ...]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`([\w -]+)`", cells[0]):
            # `compare` has a row for each kind of file.
            short = name.removeprefix("bisect-tool ")
            before = found.get(short, ("",) * 4)
            found[short] = tuple(a or b for a, b in zip(before, cells[1:5], strict=True))
    return found


def test_exit_codes_are_those_of_the_code() -> None:
    """The table of codes is that of errors.py."""
    (table,) = re.findall(r"^# Exit codes\n(.*?)^They ", text_of("exit-codes.md"), re.DOTALL | re.MULTILINE)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


def test_each_command_has_the_exit_codes_of_its_help() -> None:
    """A command's row has something at the codes that its help names, and at no other of 0 to 3."""
    rows = exit_rows(text_of("exit-codes.md"))
    assert set(COMMANDS) == set(rows)
    for name, command in COMMANDS.items():
        said = set(re.findall(r"(?:codes: |, )(\d) ", " ".join((command.help or "").partition("Exit")[2].split())))
        # Commands that only do something have no answer to give.
        said = said or {"0", "2"}
        assert said == {str(code) for code, cell in enumerate(rows[name]) if cell}, name


# codes.md


def test_every_cause_is_listed_under_its_title() -> None:
    """The table of causes has every code that there is a page for, with its title."""
    rows = re.findall(r"^\| \[`(BD\d{3})`\]\(../causes.md#[\w-]+\) \| (.*?) \|", text_of("codes.md"), re.MULTILINE)
    assert codes() == dict(rows)


WORDS = (
    ("`verdict.status`", records.Status),
    ("`configs[].status`", records.ConfigStatus),
    ("`stages[].results.*.judgement`", records.Judgement),
    ("`stages[].role`", records.Role),
    ("`stages[].level`", records.Level),
    ("`tolerance.source`", get_type_hints(records.Tolerance)["source"]),
    ("`verdict.origins[].side`", records.Side),
    ("`verdict.origins[].witness.says`", records.Testimony),
    ("`verdict.hypotheses[].conclusion`", records.Conclusion),
    ("`verdict.ledger[].conclusion`", records.TrialConclusion),
    ("`preflight[].severity`", records.Severity),
    ("`chain[].status`", records.LinkStatus),
    ("`chain[].differences[].reach`", records.Reach),
    ("`env diff`: `level`", environment_rules.Level),
    ("`compare` of data files: `status`", get_type_hints(data_records.DataComparison)["status"]),
    ("`determinism`: `status`", get_type_hints(Determinism)["status"]),
    ("`releases`: `change.status`", release_search.Status),
    ("`releases`: `releases[].state`", get_type_hints(releases.Release)["state"]),
    ("`tolerances.toml`: `tail`", tolerance_table.Tail),
)


@pytest.mark.parametrize(("where", "kind"), WORDS, ids=[where for where, _ in WORDS])
def test_words_are_those_of_the_records(where: str, kind: object) -> None:
    """Each word that a field may hold is explained, and no other."""
    (table,) = re.findall(r"^## Words of the answers\n(.*?)^## ", text_of("codes.md"), re.DOTALL | re.MULTILINE)
    words: set[str] = set()
    inside = False
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = inside if cells[0] == "" else cells[0] == where
        if inside and len(cells) > 1:
            words |= set(re.findall(r"`([\w ]+)`", cells[1]))
    assert set(get_args(kind)) == words


def test_patterns_are_those_of_the_page_on_data_files_and_of_the_code() -> None:
    """Codes of patterns and of structure: none is missing, and none is invented."""
    told = dict(re.findall(r"^## (Patterns.*?)\n(.*?)(?=^## |\Z)", text_of("codes.md"), re.DOTALL | re.MULTILINE))
    patterns, structure = told["Patterns of data files"].split("What differs before")
    listed = codes_in(patterns)
    page = (ROOT / "docs" / "data-files.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## Patterns\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    assert codes_in(table) == listed
    source = (PACKAGE / "data" / "patterns.py").read_text(encoding="utf-8")
    written = set(re.findall(r"(?:Pattern|_shared)\(\s*\"([\w-]+)\"", source)) | set(
        re.findall(r'yield "([\w-]+)"', source)
    )
    assert {"rounding", "channel-order"} <= written <= listed
    source = (PACKAGE / "data" / "files.py").read_text(encoding="utf-8")
    written = set(re.findall(r"Structure\(\"(\w+)\"", source)) | set(re.findall(r'\(\w+, "\w+", "(\w+)"\)', source))
    assert written == codes_in(structure)


def codes_in(text: str) -> set[str]:
    """Words in code in the first cells of a table."""
    return {
        word
        for line in text.splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }


# limits.md

LIMITS = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
REFUSED = re.findall(r"^\| `(bisect-[^`]+)` \| `([^`]+)` \|", LIMITS, re.MULTILINE)


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line.partition(" --input s.pt ")[2] for line, _ in REFUSED])
def test_options_that_do_not_go_together_are_refused(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each pair of options in the table ends with exit code 2 and the quoted message, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    command: click.Command = run if program == "bisect-divergence" else tool
    assert errors.EXIT_USAGE == execute(command, program, arguments)
    assert f"error: {message}\n" in capsys.readouterr().err
    assert [] == [*tmp_path.iterdir()]


def test_numbers_of_how_far_it_looks_are_those_of_the_code() -> None:
    """The last table has each of these constants with its value."""
    known = {
        "origins that are narrowed to nodes": explaining.MAX_DRILLED,
        "origins whose cause is looked for": explaining.MAX_EXPLAINED,
        "runs for the cause of one origin": trying.MAX_TRIALS,
        "seconds for the cause of one origin": trying.MAX_SECONDS,
        "seconds for the causes of all origins": explaining.EXPLAIN_SECONDS,
        "origins with a replay folder": explaining.MAX_REPLAYS,
        "bytes of a replay folder's tensors": replay_folder.MAX_BYTES,
        "rounds of alignment by forced runs": aligning.MAX_ALIGNMENT_ROUNDS,
        "nodes that a body may add": unfold.MAX_ADDED,
        "`If` nodes whose branches are exchanged": branches.MOST_BRANCHES,
        "orders of inputs that are tried": input_orders.MOST,
        "calls of a part that are compared": parts.MOST_CALLS,
        "bytes of weights for a fresh export": fresh.MOST_EXPORTED,
        "seconds that the third witness may take": witnesses.MOST_SECONDS,
        "runs over optimiser passes, for a configuration": passes.MOST_RUNS,
        "seconds over optimiser passes, for a configuration": passes.MOST_SECONDS,
        "places of wrong passes that are named": passes.MOST_SPOTS,
        "bytes of weights up to which optimised graphs are looked at": optimised.MOST_WEIGHTS,
        "failing pairs of a matrix that are explained": experiments.MOST_FINDINGS,
        "switches in which two pairs may differ": hypotheses.MOST_STEPS,
        "multiplications of a recording's noise floors": recorded_floors.MOST_WORK,
        "tries of a task that ends its process": executors.MOST_TRIES,
        "seconds of a run with one release": RUN_SECONDS,
    }
    table = LIMITS.partition("| what | most |")[2]
    told = {what: float(number) for what, number in re.findall(r"^\| (.+?) \| (\d+) \|$", table, re.MULTILINE)}
    assert {what: float(number) for what, number in known.items()} == told

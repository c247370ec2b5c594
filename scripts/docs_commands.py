"""Makes docs/reference/commands.md: every command with its arguments and options, from click's and argparse's definitions.

What a definition cannot say stands here: what an argument is, an example, and which options a case file may hold. Nothing
of this is loaded by the commands themselves.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bisect_tool.cli.run import _DEFAULTS, run  # noqa: E402
from bisect_tool.cli.settings import KEYS  # noqa: E402
from bisect_tool.cli.tool import tool  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "commands.md"
NONE = "–"

HEAD = """# Commands

Written by this command; do not edit by hand. It reads the definitions that `--help` prints.

```console
$ scripts/docs-commands
```

`bisect-divergence` is the main job, `bisect-tool` holds its siblings. Answers go to stdout, progress and errors to stderr.
Options may stand before or behind arguments, as `--name VALUE` or `--name=VALUE`; what is *repeatable* is given once for each
value. Each command has `-h` and `--help` too.
[exit-codes.md](exit-codes.md) has what each command ends with, [files.md](files.md) what it reads and writes.

*Default* is what holds where neither the command line nor a [case file](../inputs.md#case-files) says otherwise: `–` is none,
`off` is a flag that is not set. *Case file* is the place in the file of `--config`; the command line wins over it, and a
tolerance on the command line replaces all of `[tolerance]`. Options without such a place are the command line's alone.
What a case file holds and a command has no option for has no effect there; `verify` refuses a matrix, parts and a runner,
and `--totals-only` refuses the same.
"""

ARGUMENTS: Mapping[str, str] = {
    "model": "Python file (`model.py`, `model.py:NAME`), `package.module:NAME`, TorchScript archive or `.pt2` program "
    "([forms](../inputs.md#model)). It is executed. A case file may name it.",
    "checkpoint": "Its weights: a file of `torch.save` or safetensors ([forms](../inputs.md#checkpoint)). Without one the "
    "model keeps those that its entry gave it. A case file may name it.",
    "package": "Name of the package, as pip knows it.",
    "versions": "Versions to search: `1.18..1.31`, open as `1.18..` or `..1.20`, or a list as `1.2,1.3,1.5`.",
    "report": "Report folder, or its `report.json`.",
    "code": "As `BD101`; without one all codes are listed.",
    "compare expected": "The first recording or data file: the reference.",
    "compare actual": "The second one, of the same kind.",
    "env diff expected": "Snapshot, report, recording, `pip freeze` or lock file of the environment that is to be matched "
    "([forms](../environments.md#a-diff)).",
    "env diff actual": "The same of the environment that differs.",
}
"""What click has no text for: by parameter, or by command and parameter."""

EXAMPLES: Mapping[str, Sequence[str]] = {
    "bisect-divergence": (
        "bisect-divergence model.py ckpt.pth --input sample.pt",
        "bisect-divergence model.py ckpt.pth --input sample.pt --onnx model.onnx --atol 1e-3 --rtol 1e-3 -o report",
    ),
    "bisect-tool run": ("bisect-tool run --config case.toml --matrix quick",),
    "bisect-tool inspect": ("bisect-tool inspect model.py ckpt.pth --input sample.pt --onnx model.onnx",),
    "bisect-tool verify": (
        "bisect-tool verify model.py ckpt.pth --onnx model.onnx --input samples --tolerances tolerances.toml "
        "--junit verify.xml -o verify-report --force --quiet",
    ),
    "bisect-tool calibrate": (
        "bisect-tool calibrate model.py ckpt.pth --input samples --false-alarm 0.05 -o tolerances.toml",
    ),
    "bisect-tool record": (
        "bisect-tool record model.py ckpt.pth --input sample.pt -o a.trace",
        "bisect-tool record --script train.py --steps 3 -o train.trace -- --epochs 1",
    ),
    "bisect-tool recorder": (
        "bisect-tool recorder > bisect_recorder.py",
        "python bisect_recorder.py model.py ckpt.pth --input sample.pt -o a.trace",
    ),
    "bisect-tool compare": (
        "bisect-tool compare a.trace b.trace -o compared",
        "bisect-tool compare clean.csv other.csv --max-abs 1e-6",
    ),
    "bisect-tool determinism": ("bisect-tool determinism model.py ckpt.pth --input sample.pt --runs 3",),
    "bisect-tool env": ("bisect-tool env -o here.json",),
    "bisect-tool env diff": ("bisect-tool env diff there.txt here.json",),
    "bisect-tool releases": (
        "bisect-tool releases onnxruntime 1.18..1.31 --yes -- model.py ckpt.pth --input sample.pt",
    ),
    "bisect-tool overlay": ("bisect-tool overlay report --onnx model.onnx",),
    "bisect-tool explain": ("bisect-tool explain BD202",),
    "bisect-tool demo": ("bisect-tool demo -o somewhere",),
}

NOT_FROM_FILE: Mapping[str, frozenset[str]] = {
    "inspect": frozenset({"output"}),
    "calibrate": frozenset({"output"}),
    "determinism": frozenset({"level"}),
    "record": frozenset({"output", "level", "stages"}),
}
"""Options of a command that bear the name of a case file's key and are another thing there, or are not taken from it."""

ENVIRONMENT: Sequence[tuple[str, str]] = (
    ("NO_COLOR", "set and not empty: no colours"),
    ("COLUMNS", "width of what is printed, where it is no terminal; else 80"),
    ("TERM", "`dumb` or unset: no live line of progress"),
    ("TMPDIR", "where temporary files go: exports, graphs, activations beyond `--memory-budget`"),
    (
        "OMP_WAIT_POLICY",
        "set to `PASSIVE` by the commands where it is unset: idle threads sleep ([performance.md](../performance.md))",
    ),
    ("XDG_CACHE_HOME", "where `releases` keeps results without `--cache`; else `~/.cache`"),
    ("PYTHONPATH", "handed on to the throw-away environments of `releases`, behind this tool's own folder"),
    ("GITHUB_ACTIONS", "`true`: `verify` also writes annotations, on stderr"),
    ("GITHUB_WORKSPACE", "the folder that paths in annotations are relative to; else the working directory"),
    (
        "LOGNAME",
        "with `USER`, `LNAME`, `USERNAME`: the name that is replaced by `USER` in snapshots of the environment",
    ),
    ("BISECT_PYTHON", "of the scripts: an interpreter that has everything; without it one is made"),
    ("BISECT_VENV", "of the scripts: the environment that they make [`.venv`]"),
    ("PYTHON", "of the scripts: the interpreter that the environment is made with [`python3`]"),
    ("OLD_PYTHON", "of `scripts/test-oldest`, with `OLD_TORCH`, `OLD_NUMPY`: what `bisect_recorder.py` is run with"),
    ("OLD_ORT", "of `scripts/test-oldest`: the version of ONNX Runtime that is recorded with"),
    ("TOOL_PYTHON", "of `scripts/test-oldest`, with `TOOL_TORCH`, `TOOL_NUMPY`: what the whole tool is run with"),
)
"""Variables that commands and scripts read themselves. Those that switch libraries are in docs/switches.md."""

FOR_USERS = ("demo", "test", "gpu-check", "setup-env")


@dataclass(frozen=True)
class Row:
    """An option of a table."""

    names: str
    kind: str
    default: str
    place: str
    text: str


def page() -> str:
    """The whole page, as Markdown."""
    commands = [*_commands()]
    parts = [HEAD, _contents(commands)]
    parts += [_section(name, command) for name, command in commands]
    parts += [_carried(), _environment(), _scripts()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Each command with its whole name, groups before what they hold."""
    yield "bisect-divergence", run
    for name, command in tool.commands.items():
        yield f"bisect-tool {name}", command
        if isinstance(command, click.Group):
            for inner, each in command.commands.items():
                yield f"bisect-tool {name} {inner}", each


def _contents(commands: Sequence[tuple[str, click.Command]]) -> str:
    lines = ["| command | |", "|---|---|"]
    for name, command in commands:
        sentence = "The same as `bisect-divergence`." if name == "bisect-tool run" else _paragraphs(command)[0]
        lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(sentence)} |")
    lines.append(
        "| [`bisect_recorder.py`](#bisect_recorderpy) | What `bisect-tool recorder` prints: records elsewhere. |"
    )
    lines.append("| [`scripts/…`](#scripts) | In a clone: a demonstration, the tests, and what measures the tool. |")
    return "\n".join(lines) + "\n"


# Commands of click


def _section(name: str, command: click.Command) -> str:
    short = name.removeprefix("bisect-tool ")
    head = [f"## {name}", "", *_block("text", [_usage(name, command)])]
    if name == "bisect-tool run":
        return "\n".join([*head, "The same command as [`bisect-divergence`](#bisect-divergence).", ""]) + _example(name)
    lines = [*head, *_spaced([_cell(part) for part in _paragraphs(command)])]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        for each in arguments:
            text = ARGUMENTS.get(f"{short} {each.name}") or ARGUMENTS[str(each.name)]
            needed = "" if each.required else " Optional."
            lines.append(f"| `{_metavar(each)}` | {text}{needed} |")
        lines.append("")
    rows = [_row(short, each) for each in command.params if isinstance(each, click.Option)]
    if rows:
        lines += _table(rows, with_place=any(row.place != NONE for row in rows))
    return "\n".join(lines) + _example(name)


def _usage(name: str, command: click.Command) -> str:
    words = [] if command.no_args_is_help else ["[OPTIONS]"]
    for each in command.params:
        if isinstance(each, click.Argument):
            words.append(_metavar(each) if each.required else f"[{_metavar(each)}]")
    if isinstance(command, click.Group):
        words.append(f"[{'|'.join(command.commands)}]")
    if name == "bisect-tool record":
        words.append("[-- ARGUMENTS OF THE SCRIPT]")
    if name == "bisect-tool releases":
        words.insert(-2, "--")
    return " ".join([name, *words])


def _paragraphs(command: click.Command) -> list[str]:
    text = (command.help or "").replace("\b", "").strip()
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _row(command: str, option: click.Option) -> Row:
    names = [f"`{name}`" for name in (*_ordered(option.opts), *option.secondary_opts)]
    kind = _kind(option)
    if not option.is_flag:
        names[-1 if not option.secondary_opts else 0] = f"`{_ordered(option.opts)[-1]} {_metavar(option)}`"
    text, stated = split_default(option.help or "")
    default = stated or ("off" if option.is_flag and not option.secondary_opts else NONE)
    if option.name == "version":
        default = NONE
    # The table says it in a column of its own.
    text = text.removesuffix("Repeatable.").strip() if option.multiple else text
    return Row(", ".join(names), kind, default, place_of(command, str(option.name)) or NONE, text)


def _ordered(names: Sequence[str]) -> list[str]:
    """The short form first."""
    return sorted(names, key=len)


def split_default(text: str) -> tuple[str, str | None]:
    """A help text without ``[default: ...]``, and that."""
    found = re.search(r"\s*\[default: ([^\]]*)\]", text)
    if found is None:
        return text, None
    return (text[: found.start()] + text[found.end() :]).strip(), found[1]


def known_default(command: str, option: click.Option) -> Any:
    """What the code takes where nothing is given; ``None`` where it takes nothing, or finds it out."""
    if option.is_flag and not option.secondary_opts:
        return None
    if isinstance(option.default, (str, int, float)) and not isinstance(option.default, bool):
        return option.default
    given = (
        None if command in NOT_FROM_FILE and option.name in NOT_FROM_FILE[command] else _DEFAULTS.get(str(option.name))
    )
    return None if given == () else given


def _kind(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return "flag"
    if isinstance(kind, click.Choice):
        text = ", ".join(f"`{choice}`" for choice in kind.choices)
    elif isinstance(kind, click.IntRange):
        text = f"whole number from {kind.min}"
    else:
        text = {"integer": "whole number", "float": "number", "path": "path"}.get(kind.name, "text")
    # Shared options of which a command takes one say so in their help.
    return f"{text}; repeatable" if option.multiple and "; one." not in (option.help or "") else text


def _metavar(parameter: click.Parameter) -> str:
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter, click.Argument):
        return str(parameter.name).upper()
    names = {"integer": "N", "integer range": "N", "float": "X", "path": "PATH", "choice": "WORD"}
    return names.get(parameter.type.name, "TEXT")


def place_of(command: str, name: str) -> str | None:
    """Where a case file has an option of a command."""
    if command in ("compare", "env", "env diff", "overlay", "explain", "recorder"):
        return None
    if name in NOT_FROM_FILE.get(command, ()):
        return None
    if name == "parts":
        return "`[parts]`"
    for section, keys in KEYS.items():
        for key, parameter in keys.items():
            if parameter == name:
                return f"`[{section}] {key}`"
    return None


def _example(name: str) -> str:
    return "\n" + "\n".join(_block("sh", EXAMPLES[name]))


# bisect_recorder.py and scripts, whose options argparse has


def _carried() -> str:
    rows, arguments = options_of(ROOT / "bisect_tool" / "recorder.py", "_arguments")
    lines = [
        "## bisect_recorder.py",
        "",
        *_block("text", ["python bisect_recorder.py [OPTIONS] [MODEL] [CHECKPOINT] [-- ARGUMENTS OF THE SCRIPT]"]),
        "The file that `bisect-tool recorder` prints, for machines where the tool cannot be installed: it needs Python 3.8,",
        "torch 1.13 and numpy.",
        "It writes the same recordings ([old environments](../recordings.md#old-environments)).",
        "",
        "| argument | |",
        "|---|---|",
        *(f"| `{name.upper()}` | {text[:1].upper()}{text[1:]}. Optional. |" for name, text in arguments),
        "",
        *_table(rows, with_place=False),
    ]
    return "\n".join(lines) + "\n"


def _scripts() -> str:
    scripts = [(path, _header(path)) for path in sorted((ROOT / "scripts").iterdir()) if _is_command(path)]
    users = [each for each in scripts if each[0].name in FOR_USERS]
    others = [each for each in scripts if each[0].name not in FOR_USERS]
    lines = [
        "## Scripts",
        "",
        "They belong to a clone, and are no part of the installed package. Each runs from any folder, and makes",
        "what it needs, unless `BISECT_PYTHON` names an interpreter; those that have options print them with `--help`.",
        "",
        "| script | |",
        "|---|---|",
        *(f"| [`scripts/{path.name}`](#scripts{_anchor(path.name)}) | {_cell(text[0])} |" for path, text in users),
        "",
        "The others measure the tool, and write the pages of `docs/` whose numbers they make:",
        "",
        "| script | |",
        "|---|---|",
        *(f"| [`scripts/{path.name}`](#scripts{_anchor(path.name)}) | {_cell(text[0])} |" for path, text in others),
        "",
    ]
    for path, text in (*users, *others):
        lines += _script(path, text)
    return "\n".join(lines) + "\n"


def _script(path: Path, text: tuple[str, str]) -> list[str]:
    described, usage = text
    lines = [f"### scripts/{path.name}", "", *_block("text", usage.splitlines()), described, ""]
    source = _source(path)
    rows = options_of(source)[0] if source is not None else []
    return lines + (_table(rows, with_place=False) if rows else [])


def _is_command(path: Path) -> bool:
    """What a person runs: files without a suffix, and modules that say how they are used and are called by no other."""
    if path.is_dir() or path.suffix not in ("", ".py"):
        return False
    if path.suffix == "":
        return True
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return "usage:" in doc and "called by" not in doc.lower()


def _source(path: Path) -> Path | None:
    """The module that a script hands its arguments to."""
    if path.suffix == ".py":
        return path
    found = re.findall(r"exec .*?scripts/(\w+\.py)", path.read_text(encoding="utf-8")) or re.findall(
        r"scripts/(\w+\.py) \"\$@\"", path.read_text(encoding="utf-8")
    )
    return path.parent / found[-1] if found else None


def _header(path: Path) -> tuple[str, str]:
    """What a script says of itself: the first sentences, and how it is used."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py" or "python" in text.partition("\n")[0]:
        doc = ast.get_docstring(ast.parse(text)) or ""
        usage = re.search(r"usage: (.*)", doc)
        sentence = " ".join(doc.split("\n\n")[0].split())
        called = f"python scripts/{usage[1].partition('  ')[0]}" if usage else f"scripts/{path.name}"
        return sentence, called
    lines = [line[1:].strip() for line in re.findall(r"^#(?!!).*$", text.partition("set -e")[0], re.MULTILINE)]
    start = next((number for number, line in enumerate(lines) if line.startswith("usage:")), len(lines))
    usage = [line.removeprefix("usage:").strip() for line in lines[start : start + 1]]
    for line in lines[start + 1 :]:
        if not line.startswith("["):
            break
        usage.append(f"    {line}")
    usage = [re.split(r" {3,}(?=\w|-)", line)[0] if not line.startswith(" ") else line for line in usage]
    return " ".join(lines[:start]), "\n".join(usage) or f"scripts/{path.name}"


def options_of(file: Path, function: str | None = None) -> tuple[list[Row], list[tuple[str, str]]]:
    """Options and arguments that a module gives to argparse, read from its source: importing it may take everything.

    Args:
        file: the module.
        function: the only one to look into.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = _constants(tree)
    scope: ast.AST = tree
    if function is not None:
        scope = next(each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == function)
    pairs = _constants(scope)
    calls = [each for each in ast.walk(scope) if isinstance(each, ast.Call) and _called(each) == "add_argument"]
    calls.sort(key=lambda each: each.lineno)
    rows: list[Row] = []
    arguments: list[tuple[str, str]] = []
    for call in calls:
        first = call.args[0]
        if isinstance(first, ast.Name):
            # A loop over pairs of a name and its text.
            flags = next(
                value for value in pairs.values() if isinstance(value, tuple) and value and value[0][0][:2] == "--"
            )
            rows += [Row(f"`{name}`", "flag", "off", NONE, text) for name, text in flags]
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "help" in given and ast.unparse(given["help"]) == "argparse.SUPPRESS":
            continue
        names = [ast.literal_eval(each) for each in call.args]
        text = _said(given.get("help"), constants)
        if names[0].startswith("-"):
            rows.append(_argparse_row(names, text, given, constants))
        else:
            arguments.append((names[0], text))
    return rows, arguments


def _argparse_row(
    names: list[str], text: str, given: Mapping[str | None, ast.expr], constants: Mapping[str, Any]
) -> Row:
    flag = "action" in given and ast.unparse(given["action"]) == "'store_true'"
    default = _value(given["default"], constants) if "default" in given else NONE
    text = text.replace("%(default)s", default)
    found = re.search(r"(?:; |^)default: (.*)$", text)
    if found:
        text, default = text[: found.start()], found[1]
    default = default if default not in ("", "[]") else NONE
    kinds = {"int": "whole number", "float": "number", "Path": "path"}
    if flag:
        kind, default = "flag", "off"
    elif "choices" in given:
        kind = ", ".join(f"`{each}`" for each in ast.literal_eval(given["choices"]))
    else:
        kind = kinds.get(ast.unparse(given["type"]), "text") if "type" in given else "text"
    if "action" in given and ast.unparse(given["action"]) == "'append'":
        kind += "; repeatable"
    metavar = (
        ast.literal_eval(given["metavar"]) if "metavar" in given else names[-1].lstrip("-").upper().replace("-", "_")
    )
    shown = [f"`{name}`" for name in names]
    if not flag:
        shown[-1] = f"`{names[-1]} {metavar}`"
    return Row(", ".join(shown), kind, default, NONE, text)


def _constants(tree: ast.AST) -> dict[str, Any]:
    """Names that are given a literal."""
    found: dict[str, Any] = {}
    for each in ast.walk(tree):
        if isinstance(each, ast.Assign) and len(each.targets) == 1 and isinstance(each.targets[0], ast.Name):
            try:
                found[each.targets[0].id] = ast.literal_eval(each.value)
            except ValueError:
                continue
    return found


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _said(node: ast.expr | None, constants: Mapping[str, Any]) -> str:
    """A help text; what it is put together from is filled in where that is a literal."""
    if node is None:
        return ""
    if isinstance(node, ast.JoinedStr):
        parts = (
            each.value if isinstance(each, ast.Constant) else _value(each.value, constants)
            for each in node.values
            if isinstance(each, (ast.Constant, ast.FormattedValue))
        )
        return "".join(map(str, parts)).replace("all of all", "all")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _said(node.left, constants) + _value(node.right, constants)
    return str(ast.literal_eval(node))


def _value(node: ast.expr, constants: Mapping[str, Any]) -> str:
    """An expression as a reader would write it; a list that is made elsewhere is called ``all``."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return "/".join(each for each in (_value(node.left, constants), _value(node.right, constants)) if each)
    if isinstance(node, ast.Name):
        return "" if node.id == "ROOT" else str(constants.get(node.id, node.id))
    if isinstance(node, ast.Call) and _called(node) == "join" and isinstance(node.args[0], ast.Name):
        given = constants.get(node.args[0].id)
        return ",".join(map(str, given)) if isinstance(given, (list, tuple)) else "all"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "packages_folder":
        return "~/.cache/bisect-corpus/packages"
    return "all" if isinstance(node, ast.Call) else ast.unparse(node)


def _environment() -> str:
    lines = [
        "## Environment variables",
        "",
        "These are read by the commands and scripts themselves; no option has its value from a variable.",
        "Those that switch torch, ONNX Runtime and their libraries are in [switches.md](../switches.md).",
        "",
        "| variable | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in ENVIRONMENT),
    ]
    return "\n".join(lines) + "\n"


# Markdown


def _table(rows: Sequence[Row], *, with_place: bool) -> list[str]:
    heads = ["option", "value", "default", *(["case file"] if with_place else []), "meaning"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row.names, row.kind, row.default, *([row.place] if with_place else []), _cell(row.text)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _block(language: str, lines: Sequence[str]) -> list[str]:
    return [f"```{language}", *lines, "```", ""]


def _spaced(parts: Sequence[str]) -> list[str]:
    return [line for part in parts for line in (part, "")]


def _cell(text: str) -> str:
    """Text in which no sign ends a cell or a line; options in it are code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part[:1] == "`" else re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", part) for part in parts)


def _anchor(name: str) -> str:
    return re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")

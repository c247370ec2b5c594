"""Docstrings name what is there: references such as ``:func:`bisect_tool.metrics.measure``` lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "bisect_tool").rglob("*.py"))


def named_in(file: Path) -> set[str]:
    """What a file defines or imports at its top, for types alone too, and members of its classes as ``Class.member``."""
    found: set[str] = set()
    top = ast.parse(file.read_text(encoding="utf-8")).body
    for node in [*top, *(inner for outer in top if isinstance(outer, ast.If) for inner in outer.body)]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        for name in names_of(node):
            found.add(name)
            members = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{name}.{member}" for each in members for member in names_of(each)}
    return found


def names_of(node: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def leads_somewhere(file: Path, name: str) -> bool:
    """Whether a reference names a module, or something in one; without dots before it, something in its own file."""
    own = named_in(file)
    if name in own or any(known.endswith(f".{name}") for known in own):
        return True
    parts = name.split(".") if name.startswith("bisect_tool.") else []
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        for module in (place.with_suffix(".py"), place / "__init__.py"):
            if module.is_file():
                return end == len(parts) or ".".join(parts[end:]) in named_in(module)
    return False


@pytest.mark.parametrize("name", ["bisect_tool.metrics.measure", "bisect_tool.align", "named_in"])
def test_references_are_found(name: str) -> None:
    """A function of another file, a folder, a function of this one."""
    assert leads_somewhere(Path(__file__), name)


@pytest.mark.parametrize("name", ["bisect_tool.metrics.nothing", "bisect_tool.nowhere.measure", "nothing"])
def test_references_to_nothing_are_seen(name: str) -> None:
    """So that the next test can fail."""
    assert not leads_somewhere(Path(__file__), name)


def test_every_reference_leads_somewhere() -> None:
    """Whatever moved or got another name is called so in docstrings too."""
    found = [
        (file, name)
        for file in FILES
        for name in re.findall(r":(?:func|class|mod|meth|data):`~?([\w.]+)`", file.read_text(encoding="utf-8"))
    ]
    assert len(found) > 50
    assert [] == [f"{file.relative_to(ROOT)}: {name}" for file, name in found if not leads_somewhere(file, name)]

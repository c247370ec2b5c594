"""Every module imports by itself, and the light ones load nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "bisect_tool"
MODULES = sorted(
    ".".join(["bisect_tool", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
HEAVY = ("torch", "onnxruntime", "onnx", "onnx_ir")
JOINING = (
    "bisect_tool.pipeline",
    "bisect_tool.experiments",
    "bisect_tool.parts",
    "bisect_tool.several",
    "bisect_tool.recorder",
    "bisect_tool.determinism",
    "bisect_tool.cases",
    "bisect_tool.verifying",
    "bisect_tool.calibrate",
)
NEED_TORCH = [m for m in MODULES if m.startswith(("bisect_tool.backends.", "bisect_tool.pipeline.")) or m in JOINING]
LIGHT = [m for m in MODULES if m not in NEED_TORCH]

# Forgets every module of the package before each import, so that each one has to bring in what it needs itself;
# what lies outside the package stays loaded, since loading torch again takes seconds, or is not possible.
EACH_ALONE = """
import importlib, sys, traceback
failed = []
for name in sys.argv[1:]:
    for known in [m for m in sys.modules if m.partition(".")[0] == "bisect_tool"]:
        del sys.modules[known]
    try:
        importlib.import_module(name)
    except BaseException:
        failed.append(f"{name}\\n{traceback.format_exc()}")
print("\\n".join(failed), end="")
"""

# What none of them has loaded by the end, none of them loads.
FIRST_HEAVY = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = [heavy for heavy in sys.argv[1].split(",") if heavy in sys.modules]
    if found:
        print(f"{name} loads {found}", end="")
        break
"""

LOADED = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sorted(sys.modules))"


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    """No module depends on another one having been imported first."""
    assert len(MODULES) > 20
    assert "" == _python("-c", EACH_ALONE, *MODULES)


def test_no_module_needs_another_one_first() -> None:
    """Every module imports, and none of them imports itself over others: so each of them imports alone.

    The test above does it one by one, which takes half a minute.
    """
    order = list(TopologicalSorter({name: _imported_by(name) for name in MODULES}).static_order())
    assert set(MODULES) <= set(order)
    # The other way round: what brings in the most comes first.
    assert "" == _python("-c", EACH_ALONE.replace("del sys.modules[known]", "pass"), *reversed(order))


def _imported_by(name: str) -> set[str]:
    """Modules of the package that are imported as soon as this one is: not in functions, and not for types alone."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    waiting: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module, or something that the module before it holds.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    # A package begins before what lies in it; its own one has begun already.
    around = {".".join(parts[:end]) for parts in (each.split(".") for each in found) for end in range(1, len(parts))}
    own = {name, *(".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 1))}
    return {each for each in (found | around) - own if each in MODULES}


def test_light_modules_load_nothing_heavy() -> None:
    """What is neither a backend, the recorder nor the pipeline imports without torch, onnxruntime and onnx."""
    assert len(LIGHT) > 20
    assert "" == _python("-c", FIRST_HEAVY, ",".join(HEAVY), *LIGHT)


def test_help_is_light() -> None:
    """`--help` loads neither torch nor onnxruntime, nor what draws and lays out reports."""
    script = (
        "import sys; from click.testing import CliRunner; from bisect_tool.cli.run import run; "
        "print(CliRunner().invoke(run, ['--help']).exit_code, *sys.modules)"
    )
    code, *loaded = _python("-c", script).split()
    assert "0" == code
    assert [] == [heavy for heavy in (*HEAVY, "matplotlib", "jinja2", "pandas", "numpy") if heavy in loaded]


def test_help_is_quick() -> None:
    """`bisect-divergence --help` takes less than a second of one processor."""
    import resource

    script = "from bisect_tool.cli.main import bisect_divergence; bisect_divergence()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = _python("-c", script, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Exit codes: 0 agree" in " ".join(text.split())
    # Processor time, not time on the wall: other tests run beside this one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_front_door_is_lazy() -> None:
    """`import bisect_tool` gives its public names without loading torch until one is used."""
    loaded = _python("-c", LOADED, "bisect_tool").split()
    assert [] == [heavy for heavy in (*HEAVY, "numpy") if heavy in loaded]


def test_front_door_leads_to_every_name() -> None:
    """Each public name is there once it is asked for, those of matrices too."""
    script = (
        "import bisect_tool as b; assert set(b.__all__) == set(b._HOMES), set(b.__all__) ^ set(b._HOMES); "
        "print(*[getattr(b, name).__name__ for name in b.__all__])"
    )
    assert {"bisect", "read_matrix", "run_matrix"} <= set(_python("-c", script).split())

"""What may be given as MODEL, --entry and --entry-args, and what is said when it does not work."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bisect_tool.backends.models import load_entry_args, load_model, to_eval
from bisect_tool.errors import BisectError

NET = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self, width=2):
            super().__init__()
            self.layer = torch.nn.Linear(width, width)
        def forward(self, x):
            return self.layer(x)
"""


def write(folder: Path, text: str, name: str = "model.py") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def error_of(call: Callable[..., Any], *args: Any) -> BisectError:
    with pytest.raises(BisectError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_build_model_is_called_and_the_module_is_in_eval_mode(tmp_path: Path) -> None:
    """Without an entry, build_model() makes the model, and it comes back in eval mode."""
    path = write(tmp_path, NET + "    def build_model(): return Net(3)\n")
    loaded = load_model(path)
    assert loaded.module.layer.in_features == 3
    assert not loaded.module.training
    assert (loaded.name, loaded.source_file, loaded.kind) == ("model", Path(path), "python")


@pytest.mark.parametrize(
    ("entry", "args", "width"), [("Net", None, 2), ("Net", {"width": 5}, 5), ("make", None, 4), ("ready", None, 6)]
)
def test_an_entry_may_be_a_class_a_function_or_an_instance(
    tmp_path: Path, entry: str, args: dict[str, Any] | None, width: int
) -> None:
    """--entry names a class, a callable or an instance; --entry-args are its keyword arguments."""
    path = write(tmp_path, NET + "    def make(width=4): return Net(width)\n    ready = Net(6)\n")
    assert load_model(path, entry, args).module.layer.in_features == width
    if args is None:
        assert load_model(f"{path}:{entry}").module.layer.in_features == width


def test_the_only_class_or_instance_needs_no_entry(tmp_path: Path) -> None:
    """A file with one module class is that model; one instance with weights beside classes is preferred to them."""
    assert load_model(write(tmp_path, NET)).module.layer.in_features == 2
    path = write(tmp_path, NET + "    act = torch.nn.ReLU()\n    network = Net(7)\n", "other.py")
    assert load_model(path).module.layer.in_features == 7


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (NET + "    act = torch.nn.ReLU()\n", "Net"),
        (NET + "    act = torch.nn.PReLU()\n", "Net"),
        (NET + "    act = torch.nn.PReLU()\n    class Head(Net): pass\n", "act, Net, Head"),
        (NET.replace("width=2", "width") + "    act = torch.nn.PReLU()\n", "act, Net"),
        (NET + "    act = torch.nn.PReLU()\n    def make_net(): return Net()\n", "act, Net, make_net"),
        (NET + "    class Loss(torch.nn.Module): pass\n    network = Net(7)\n", "network, Net, Loss"),
        (NET + "    class Whole(Net): pass\n    network = Whole(7)\n", "Whole"),
        (NET + "    network = torch.nn.Sequential(Net(7))\n", "Sequential"),
        ("import torch\nnetwork = torch.nn.Sequential(torch.nn.ReLU())\n", "Sequential"),
        ("import torch\nfrom torch.nn import Linear\nnetwork = torch.nn.ReLU()\n", "ReLU"),
        ("import torch\nfrom net_for_test import Net\nact = torch.nn.ReLU()\n", "act, Net"),
        ("import torch\nfrom net_for_test import Net\nnetwork = torch.nn.Sequential(Net())\n", "Sequential"),
        (
            "import torch\nclass Gate(torch.nn.Module):\n  def __init__(self, k):\n    super().__init__()\n"
            "  def forward(self, x): return x\ngate = Gate(3)\n",
            "Gate",
        ),
    ],
)
def test_a_helper_instance_is_not_taken_for_the_model(tmp_path: Path, text: str, taken: str) -> None:
    """A lone instance is the model only if no class is left over beside it; else the only class, or an error."""
    write(tmp_path, NET, "net_for_test.py")
    path = write(tmp_path, text)
    if "," not in taken:
        assert type(load_model(path).module).__name__ == taken
    else:
        error = error_of(load_model, path)
        assert error.message.endswith(f"several candidates: {taken}")
        assert "--entry" in str(error.hint)


def test_names_that_are_no_paths_do_not_leak_errors_of_the_system() -> None:
    """Names too long for the system, with a zero byte or of a user that there is not, are errors that say so."""
    for name, message in (
        ("x" * 5000, "cannot be read"),
        ("x" * 5000 + ".py:Net", "cannot be found"),
        ("x" * 5000 + ":Net", "cannot be found"),
        ("a\0b", "cannot be read"),
        ("~no_such_user_here/model.py", "no such file"),
    ):
        assert message in error_of(load_model, name).message


@pytest.mark.parametrize("name", ["Foo", "Net.Foo", "Nett"])
def test_entries_are_looked_up_in_modules_whose_getattr_raises(tmp_path: Path, name: str) -> None:
    """Whatever a module's or a class's __getattr__ and __dir__ raise, the entry is said not to be there."""
    text = """
        def __getattr__(name): raise RuntimeError("never " + name)
        def __dir__(): return ["Net", "broken"]
        class Meta(type(Net)):
            def __getattr__(cls, name): raise ValueError("never " + name)
            def __dir__(cls): raise ValueError
        class Net(Net, metaclass=Meta): pass
    """
    error = error_of(load_model, write(tmp_path, NET + textwrap.indent(textwrap.dedent(text), "    ")), name)
    assert f"there is no {name} in" in error.message
    assert f"Error: never {name.rpartition('.')[2]}" in error.message
    assert ("Net" in str(error.hint)) == (name != "Net.Foo")


def test_objects_whose_getattr_raises_may_stand_beside_the_model(tmp_path: Path) -> None:
    """Looking for the model among the names of a file survives lazy modules that raise when they are asked."""
    write(tmp_path, "def __getattr__(name): raise RuntimeError(name)\n", "lazy_for_test.py")
    assert load_model(write(tmp_path, NET + "    import lazy_for_test\n")).module.layer.in_features == 2


def test_what_the_model_prints_does_not_reach_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints on import and on building go to stderr, for files and for modules: stdout may hold the report's JSON."""
    text = NET + "    print('importing')\n    def build_model():\n        print('building')\n        return Net()\n"
    load_model(write(tmp_path, text, "noisy_for_test.py"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "importing\nbuilding\n")
    load_model(write(tmp_path, "raise SystemExit\n"), "noisy_for_test:build_model")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "importing\nbuilding\n")
    print("mine")
    assert capsys.readouterr().out == "mine\n"


@pytest.mark.parametrize("made", ["layers", "build", "Parts"])
def test_modules_without_forward_are_no_models(tmp_path: Path, made: str) -> None:
    """An instance, a function's result or a class that cannot be called is refused by name."""
    text = NET + (
        "    layers = torch.nn.ModuleList([Net()])\n    def build(): return layers\n"
        "    class Parts(torch.nn.Module): pass\n"
    )
    error = error_of(load_model, write(tmp_path, text), made)
    assert made in error.message
    assert "without forward()" in error.message
    assert "--entry" in str(error.hint)


def test_several_candidates_are_listed_and_none_is_guessed(tmp_path: Path) -> None:
    """Two classes without build_model() are an error that names both and --entry."""
    error = error_of(load_model, write(tmp_path, NET + "    class Head(Net): pass\n"))
    assert "several candidates: Net, Head" in error.message
    assert "--entry NAME" in str(error.hint)


def test_a_file_without_a_model_says_no_entry(tmp_path: Path) -> None:
    """A file that only imports module classes has no entry: imported classes are no candidates."""
    error = error_of(load_model, write(tmp_path, "from torch.nn import Linear\n"))
    assert "has no entry" in error.message
    assert "build_model()" in str(error.hint)


def test_the_only_class_that_needs_arguments_names_them(tmp_path: Path) -> None:
    """One class whose constructor has required arguments is not guessed; the arguments are named."""
    path = write(tmp_path, NET.replace("width=2", "width"))
    error = error_of(load_model, path)
    assert "Net needs arguments: width" in error.message
    assert "--entry-args" in str(error.hint)
    assert load_model(path, None, {"width": 3}).module.layer.in_features == 3


def test_siblings_are_importable_and_not_mixed_up_between_folders(tmp_path: Path) -> None:
    """Each model sees the helper beside it, also when an earlier model had one of the same name."""
    before = list(sys.path)
    for width in (3, 4):
        folder = tmp_path / str(width)
        folder.mkdir()
        write(folder, f"WIDTH = {width}\n", "sizes_for_test.py")
        path = write(
            folder,
            NET + "    def build_model():\n        from sizes_for_test import WIDTH\n        return Net(WIDTH)\n",
        )
        assert load_model(path).module.layer.in_features == width
    assert sys.path == before


def test_model_files_stay_importable_by_their_unique_names(tmp_path: Path) -> None:
    """Two files called model.py live side by side in sys.modules, as torch.export needs."""
    loaded = []
    for name in "ab":
        (tmp_path / name).mkdir()
        loaded.append(load_model(write(tmp_path / name, NET)).module)
    names = [type(module).__module__ for module in loaded]
    assert names[0] != names[1]
    assert all(sys.modules[name].Net is type(module) for name, module in zip(names, loaded, strict=True))


def test_importable_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """package.module:NAME works as MODEL from the working directory, and as --entry from the model's folder."""
    package = tmp_path / "nets_for_test"
    package.mkdir()
    write(package, "", "__init__.py")
    source = write(package, NET, "small.py")
    monkeypatch.chdir(tmp_path)
    loaded = load_model("nets_for_test.small:Net", None, {"width": 8})
    assert (loaded.module.layer.in_features, loaded.name, loaded.source_file) == (8, "Net", Path(source))
    path = write(tmp_path, "raise SystemExit\n")
    assert load_model(path, "nets_for_test.small:Net").module.layer.in_features == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package_here:Net", "module no_such_package_here of no_such_package_here:Net cannot be found"),
        ("torch.nn:Linaer", "there is no Linaer in torch.nn"),
        ("no/such/model.py", "no such file"),
    ],
)
def test_targets_that_are_not_there(target: str, message: str) -> None:
    """A missing module, name or file is an error that names it."""
    assert message in error_of(load_model, target).message


def test_a_misspelt_entry_gets_a_suggestion(tmp_path: Path) -> None:
    """The nearest name in the file is suggested."""
    error = error_of(load_model, write(tmp_path, NET), "Nett")
    assert "there is no Nett in" in error.message
    assert "Net" in str(error.hint)


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("import torch\nimport not_installed_here\n", "ModuleNotFoundError", "model.py:2: import not_installed_here"),
        ("x = 1\ny = [1][3]\n", "IndexError: list index out of range", "model.py:2: y = [1][3]"),
        ("def f(:\n", "SyntaxError", "model.py:1: def f(:"),
        ("raise SystemExit(3)\n", "SystemExit: 3", "model.py:1: raise SystemExit(3)"),
    ],
)
def test_code_that_raises_on_import_is_shown_with_its_line(tmp_path: Path, text: str, reason: str, line: str) -> None:
    """The exception's type, its text and the line of model.py are in the message; no half module stays."""
    before = {name for name in sys.modules if name.startswith("_bisect_model_")}
    error = error_of(load_model, write(tmp_path, text))
    assert "raised on import" in error.message
    assert reason in error.message
    assert line in error.message
    assert error.__cause__ is not None
    assert {name for name in sys.modules if name.startswith("_bisect_model_")} == before


def test_a_builder_that_raises_is_shown_with_its_line(tmp_path: Path) -> None:
    """An exception in build_model() names the line of the user's file, though torch raised it."""
    error = error_of(
        load_model, write(tmp_path, "import torch\ndef build_model():\n    return torch.ones(2) @ torch.ones(3)\n")
    )
    assert "build_model() in" in error.message
    assert "model.py:3: return torch.ones(2) @ torch.ones(3)" in error.message


@pytest.mark.parametrize(
    ("body", "entry", "args", "message", "hint"),
    [
        ("def build_model(): return 3", None, None, "returned a int, not a torch.nn.Module", "return the model"),
        ("def build_model(): return Net", None, None, "returned the class Net", "return the model"),
        ("def build_model(width): return Net(width)", None, None, "were not given: width", "--entry-args"),
        ("def build_model(): return Net()", None, {"wide": 1}, "takes no argument wide", "--entry-args"),
        ("ready = Net()", "ready", {"width": 1}, "is a module already", "--entry-args"),
        ("number = 3", "number", None, "number in", "--entry"),
    ],
)
def test_entries_that_make_no_model(
    tmp_path: Path, body: str, entry: str | None, args: dict[str, Any] | None, message: str, hint: str
) -> None:
    """What an entry returns, lacks or cannot take is named, with the option that mends it."""
    error = error_of(load_model, write(tmp_path, NET + f"    {body}\n"), entry, args)
    assert message in error.message
    assert hint in str(error.hint)


def test_torchscript_archives_are_models(tmp_path: Path) -> None:
    """An archive of torch.jit.save is loaded as it is, whatever its suffix, and takes no --entry."""
    path = tmp_path / "net.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout())), str(path))
    loaded = load_model(str(path))
    assert (loaded.kind, loaded.name, loaded.module.training) == ("torchscript", "net", False)
    assert loaded.module(torch.ones(1, 2)).shape == (1, 3)
    assert "--entry is for Python files" in error_of(load_model, str(path), "Net").message
    path.write_bytes(path.read_bytes()[:400])
    assert "damaged or incomplete" in error_of(load_model, str(path)).message


def test_exported_programs_are_models_and_eval_does_not_raise(tmp_path: Path) -> None:
    """A .pt2 program runs, and to_eval() leaves it alone instead of failing as its eval() would."""
    path = tmp_path / "net.pt2"
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout()).eval()
    torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), str(path))
    loaded = load_model(str(path))
    assert loaded.kind == "exported"
    assert to_eval(loaded.module) is loaded.module
    assert not any(child.training for child in loaded.module.modules())
    torch.testing.assert_close(loaded.module(torch.ones(1, 2)), net(torch.ones(1, 2)))


def test_a_checkpoint_given_as_model_is_recognised(tmp_path: Path) -> None:
    """A file of torch.save is no model; the hint says what MODEL is."""
    path = tmp_path / "ckpt.pth"
    torch.save({"a": torch.ones(1)}, path)
    error = error_of(load_model, str(path))
    assert "is no model: it is a file of torch.save" in error.message
    assert "model.py" in str(error.hint)


def test_entry_args_from_toml_and_json(tmp_path: Path) -> None:
    """Both formats give the same dictionary."""
    (tmp_path / "a.toml").write_text('width = 3\nname = "x"\n')
    (tmp_path / "a.json").write_text('{"width": 3, "name": "x"}')
    assert load_entry_args(tmp_path / "a.toml") == load_entry_args(tmp_path / "a.json") == {"width": 3, "name": "x"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "no such file"),
        ("a.toml", b"width = = 3", "no valid TOML"),
        ("a.json", b"{", "no valid JSON"),
        ("a.json", b"[1]", "holds a list"),
        ("a.json", b"\xff\xfe\x00", "no valid JSON"),
        ("a.yaml", b"width: 3", "neither .toml nor .json"),
        ("a.toml", b"", "is empty"),
    ],
)
def test_entry_args_files_that_do_not_work(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """A missing, empty, malformed or foreign file is an error that says which."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in error_of(load_entry_args, tmp_path / name).message

"""From what the user calls a model to an ``nn.Module`` in eval mode."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, cast

import torch

from bisect_tool.backends.compiled import compiled_note, original
from bisect_tool.backends.files import USER_MODULE_PREFIX, kind_of_file, reason_of, require_file, wrong_kind
from bisect_tool.backends.samples import require_forward
from bisect_tool.errors import BisectError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["python", "torchscript", "exported"]
DEFAULT_ENTRY = "build_model"
_BUILDER_NAME = re.compile(r"^(build|make|create|get|load)(_|$)|^model$", re.IGNORECASE)
_IMPORTABLE = re.compile(r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$")

# Modules that were imported from a model's folder → that folder, so that the next model's `layers.py` is not taken
# for this one's.
_siblings: dict[str, Path] = {}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model before its checkpoint.

    Attributes:
        module: in eval mode, on the devices it was built on.
        name: short, for the report.
        source_file: the Python file or the archive; None if the code lies in no file.
        kind: what it was made from.
        notes: on what was done to it, for the report.
    """

    module: torch.nn.Module
    name: str
    source_file: Path | None
    kind: Kind
    notes: tuple[str, ...] = ()


def load_model(model: str, entry: str | None = None, entry_args: Mapping[str, Any] | None = None) -> LoadedModel:
    """Builds the model; its own code runs.

    Args:
        model: ``model.py``, a TorchScript archive, a ``.pt2`` program, or ``package.module:NAME``.
        entry: callable, class or instance in ``model.py``, or ``package.module:NAME`` with the folder of ``model.py``
            importable. Without it ``build_model``; without that, the only module in the file if no class of the file
            is left over beside it, or the file's only module class.
        entry_args: keyword arguments of the entry.

    Raises:
        BisectError: there is no such file or name, several could be meant, the user's code raised, or what it made
            has no ``forward``.
    """
    path = Path(model)
    head, _, tail = model.rpartition(":")
    if entry is None and tail and head.endswith(".py") and os.path.isfile(head):
        path, entry = Path(head), tail
    elif not os.path.exists(path) and _IMPORTABLE.match(model):
        if entry is not None:
            raise BisectError(
                f"MODEL {model} names its entry already; --entry {entry} is one too many", hint="drop --entry"
            )
        with _running_user_code(Path.cwd()):
            return _load_importable(model, entry_args)
    file = require_file(path, "model")
    if file.suffix == ".py":
        return _load_file(file, entry, entry_args)
    if entry is not None or entry_args:
        option = "--entry" if entry is not None else "--entry-args"
        raise BisectError(f"{option} is for Python files; model {file} is none", hint=f"drop {option}")
    kind = kind_of_file(file)
    if kind == "exported":
        return LoadedModel(_load_exported(file), file.stem, file, "exported")
    if kind == "torchscript":
        return LoadedModel(_load_torchscript(file), file.stem, file, "torchscript")
    raise wrong_kind(
        file, kind, "model", "MODEL is the model's code, model.py; a checkpoint of its weights comes second"
    )


def load_entry_args(path: str | Path) -> dict[str, Any]:
    """The keyword arguments of an entry, from a TOML or a JSON file.

    Raises:
        BisectError: the file is missing, unreadable, or no table of names.
    """
    file = require_file(path, "--entry-args file")
    if file.suffix not in (".toml", ".json"):
        raise BisectError(f"--entry-args file {file} is neither .toml nor .json", hint="write it as one of the two")
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # both parsers' errors are ValueErrors
        raise BisectError(
            f"--entry-args file {file} is no valid {file.suffix[1:].upper()}: {reason_of(error)}",
            hint="mend the file at the place named",
        ) from error
    if not isinstance(content, dict):
        raise BisectError(
            f"--entry-args file {file} holds a {type(content).__name__}, not arguments by name",
            hint='write an object such as {"width": 64}',
        )
    return content


def to_eval(module: torch.nn.Module) -> torch.nn.Module:
    """Puts a module into eval mode, if it has modes: an exported program has the one that it was traced in.

    Raises:
        BisectError: the module's own ``eval`` or ``train`` raises.
    """
    try:
        module.eval()
    except Exception as error:  # user code: train() may be overridden
        raise BisectError(
            f"{type(module).__name__}.eval() raised {reason_of(error)}", hint="mend train() or eval() of the model"
        ) from error
    return module


# -- archives ---------------------------------------------------------------------------------------------------------


def _load_torchscript(file: Path) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated
            return to_eval(cast(Callable[..., torch.nn.Module], torch.jit.load)(str(file), map_location="cpu"))
    except BisectError:
        raise
    except Exception as error:  # RuntimeError mostly; a damaged archive can raise others
        raise BisectError(
            f"TorchScript archive {file} cannot be loaded: {reason_of(error)}",
            hint="it is damaged, or uses operators of a library that is not imported here",
        ) from error


def _load_exported(file: Path) -> torch.nn.Module:
    if not hasattr(getattr(torch, "export", None), "load"):
        raise BisectError(
            f"exported program {file}: PyTorch {torch.__version__} reads none (no torch.export.load)",
            hint="give the model's code or a TorchScript archive, or use a newer PyTorch",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(str(file))
            module = _in_modules(program)
    except Exception as error:  # the reader raises nearly everything on files of other versions
        raise BisectError(
            f"exported program {file} cannot be loaded: {reason_of(error)}",
            hint="save it again with torch.export.save of this torch version",
        ) from error
    return _without_modes(module)


def _in_modules(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """A program as the modules it was traced from, so that stages have their names; flat where that is not possible."""
    try:
        return torch.export.unflatten(program)
    except Exception:  # it knows fewer programs than can be written
        return program.module()


def _without_modes(module: torch.nn.Module) -> torch.nn.Module:
    """Makes ``eval()`` of an exported program do nothing instead of raise: its mode was fixed when it was traced."""
    for child in module.modules():
        child.training = False
    module.eval = lambda: module  # type: ignore[method-assign]
    # One of the exporters puts the module into the mode that it has anyway.
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


# -- Python -----------------------------------------------------------------------------------------------------------


def _load_file(file: Path, entry: str | None, entry_args: Mapping[str, Any] | None) -> LoadedModel:
    with _running_user_code(file.resolve().parent):
        if entry is not None and ":" in entry:
            if not _IMPORTABLE.match(entry):
                raise BisectError(
                    f"--entry {entry!r} is no package.module:NAME", hint="for example --entry nets.unet:UNet"
                )
            return _load_importable(entry, entry_args)
        namespace = _execute(file)
        if entry is None:
            name, found = _default_entry(namespace, file, entry_args)
        else:
            name, found = entry, _lookup(namespace, entry, str(file))
        module = _build(found, name, str(file), entry_args)
    return _uncompiled(module, file.stem, file)


def _load_importable(target: str, entry_args: Mapping[str, Any] | None) -> LoadedModel:
    module_name, _, name = target.partition(":")
    try:
        namespace = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise BisectError(
                f"module {module_name} of {target} cannot be found", hint="install it, or run where it can be imported"
            ) from error
        raise _code_error(f"module {module_name} raised on import", error, None) from error
    file = getattr(namespace, "__file__", None)
    module = _build(_lookup(namespace, name, module_name), name, module_name, entry_args)
    return _uncompiled(module, name.rpartition(".")[2], Path(file) if file else None)


def _uncompiled(module: torch.nn.Module, name: str, file: Path | None) -> LoadedModel:
    module, compiled, _ = original(module)
    return LoadedModel(to_eval(module), name, file, "python", compiled_note(compiled))


@contextmanager
def _running_user_code(folder: Path) -> Iterator[None]:
    """For the import and the building of a model.

    The modules in the folder are importable, before all others, as they are for a script in it. What the code prints
    goes to stderr: stdout is the report's.
    """
    for name in [name for name, owner in _siblings.items() if owner != folder and _offers(folder, name)]:
        sys.modules.pop(name, None)
        del _siblings[name]
    before = set(sys.modules)
    place = str(folder)
    sys.path.insert(0, place)
    importlib.invalidate_caches()  # the folder may be younger than the finder's listing
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if place in sys.path:
            sys.path.remove(place)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents and "site-packages" not in Path(file).parts:
                _siblings[name] = folder


def _offers(folder: Path, name: str) -> bool:
    top = name.partition(".")[0]
    return (folder / f"{top}.py").exists() or (folder / top).is_dir()


def _execute(file: Path) -> ModuleType:
    stem = re.sub(r"\W", "_", file.stem)
    # The name must stay in sys.modules: torch.export imports a model's module again by name.
    name = next(n for n in (f"{USER_MODULE_PREFIX}{stem}_{i}" for i in itertools.count()) if n not in sys.modules)
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None  # given for every .py path
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[name] = namespace
    try:
        spec.loader.exec_module(namespace)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _code_error(f"model {file} raised on import", error, file) from error
        raise
    return namespace


def _default_entry(namespace: ModuleType, file: Path, entry_args: Mapping[str, Any] | None) -> tuple[str, Any]:
    names = vars(namespace)
    if DEFAULT_ENTRY in names:
        return DEFAULT_ENTRY, names[DEFAULT_ENTRY]
    public = {name: value for name, value in names.items() if not name.startswith("__")}
    instances = _unique({name: value for name, value in public.items() if isinstance(value, torch.nn.Module)})
    own = {name: value for name, value in public.items() if _attribute(value, "__module__") == namespace.__name__}
    classes = _module_classes(own)
    if classes:
        # Beside classes, an instance without weights is an activation or a loss that they use.
        instances = {name: value for name, value in instances.items() if _has_weights(value) or _uses(value, classes)}
    imported: dict[str, type[torch.nn.Module]] = {}
    if len(instances) == 1:
        name, found = next(iter(instances.items()))
        if not _has_weights(found):
            # It may also be the activation beside `from nets import Net`.
            imported = {n: cls for n, cls in _module_classes(public).items() if not cls.__module__.startswith("torch.")}
        if not _left_over(found, classes) and (not imported or _uses(found, imported)):
            return name, found
    builders = [name for name, value in own.items() if inspect.isfunction(value) and _BUILDER_NAME.search(name)]
    candidates = list(dict.fromkeys([*instances, *classes, *imported, *builders]))
    # Of several classes one is the model and the others its parts; a guess could silently take a part.
    if len(classes) == 1 and len(instances) < 2 and not builders:
        name, found = next(iter(classes.items()))
        needs = _missing_arguments(found, entry_args or {})
        if not needs:
            return name, found
        if not instances:
            raise BisectError(
                f"model {file} has no {DEFAULT_ENTRY}(), and its only class {name} needs arguments: {', '.join(needs)}"
                + _and_not(_unknown_arguments(found, entry_args or {})),
                hint=f"give them with --entry {name} --entry-args FILE, or define {DEFAULT_ENTRY}()",
            )
    if not candidates:
        raise BisectError(
            f"model {file} has no entry: neither {DEFAULT_ENTRY}() nor a torch.nn.Module of its own",
            hint=f"define {DEFAULT_ENTRY}() that returns the model, or name what does with --entry NAME",
        )
    several = "several candidates" if len(candidates) > 1 else "no entry but a function that is not called unasked"
    raise BisectError(
        f"model {file} has no {DEFAULT_ENTRY}() and {several}: {', '.join(candidates)}",
        hint=f"pick one with --entry NAME, for example --entry {candidates[-1]}",
    )


def _unique(named: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[int, tuple[str, Any]] = {}
    for name, value in named.items():
        found.setdefault(id(value), (name, value))
    return dict(found.values())


def _module_classes(named: Mapping[str, Any]) -> dict[str, type[torch.nn.Module]]:
    return _unique(
        {name: value for name, value in named.items() if isinstance(value, type) and issubclass(value, torch.nn.Module)}
    )


def _has_weights(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _uses(module: torch.nn.Module, classes: Mapping[str, type[torch.nn.Module]]) -> bool:
    return len(_left_over(module, classes)) < len(classes)


def _left_over(module: torch.nn.Module, classes: Mapping[str, type[torch.nn.Module]]) -> list[str]:
    """The classes that neither the module nor one of its parts is an instance of."""
    parts = list(module.modules())
    return [name for name, cls in classes.items() if not any(isinstance(part, cls) for part in parts)]


def _lookup(namespace: ModuleType, name: str, place: str) -> Any:
    found: Any = namespace
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except Exception as error:  # the user's __getattr__ may raise anything
            names = _public_names(found)
            near = difflib.get_close_matches(part, names, n=3, cutoff=0.6)
            usable = [n for n in names if _usable(_attribute(found, n), namespace)]
            listed = ", ".join(near or usable[:5])
            reason = "" if isinstance(error, AttributeError) else f": {reason_of(error)}"
            raise BisectError(
                f"there is no {name} in {place}{reason}",
                hint=f"did you mean {listed}?" if listed else "check --entry",
            ) from error
    return found


def _public_names(found: Any) -> list[str]:
    try:
        return [name for name in dir(found) if not name.startswith("_")]
    except Exception:  # the user's __dir__
        return []


def _attribute(value: Any, name: str) -> Any:
    """``getattr`` for objects of the user, whose ``__getattr__`` may raise more than AttributeError."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _usable(value: Any, namespace: ModuleType) -> bool:
    return isinstance(value, torch.nn.Module) or _attribute(value, "__module__") == namespace.__name__


def _build(found: Any, name: str, place: str, entry_args: Mapping[str, Any] | None) -> torch.nn.Module:
    arguments = dict(entry_args or {})
    if isinstance(found, torch.nn.Module):
        if arguments:
            raise BisectError(
                f"{name} in {place} is a module already and takes no --entry-args", hint="drop --entry-args"
            )
        require_forward(found, f"{name} in {place}")
        return found
    if not callable(found):
        raise BisectError(
            f"{name} in {place} is a {type(found).__name__}, neither a torch.nn.Module nor something that makes one",
            hint="name a function, a class or an instance with --entry",
        )
    missing = _missing_arguments(found, arguments)
    if missing:
        raise BisectError(
            f"{name}() in {place} needs arguments that were not given: {', '.join(missing)}"
            + _and_not(_unknown_arguments(found, arguments)),
            hint="give them by name in a TOML or JSON file with --entry-args",
        )
    unknown = _unknown_arguments(found, arguments)
    if unknown:
        raise BisectError(
            f"{name}() in {place} takes no argument {', '.join(unknown)}; it is {name}{_signature_text(found)}",
            hint="mend the names in the --entry-args file",
        )
    try:
        module = found(**arguments)
    except (Exception, SystemExit) as error:
        raise _code_error(
            f"{name}() in {place} raised", error, Path(place) if place.endswith(".py") else None
        ) from error
    if isinstance(module, torch.nn.Module):
        require_forward(module, f"what {name}() in {place} returned")
        return module
    what = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
    raise BisectError(
        f"{name}() in {place} returned {what}, not a torch.nn.Module",
        hint="return the model itself, or name another --entry",
    )


def _parameters(found: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return None


def _and_not(unknown: Sequence[str]) -> str:
    """The rest of a sentence about missing arguments: one may be misspelt."""
    return f"; it takes no {', '.join(unknown)}" if unknown else ""


def _missing_arguments(found: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name
        for p in _parameters(found) or []
        if p.default is p.empty and p.kind not in variable and p.name not in given
    ]


def _unknown_arguments(found: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    parameters = _parameters(found)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [name for name in given if name not in named]


def _signature_text(found: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(found))
    except (TypeError, ValueError):
        return "(...)"


def _code_error(what: str, error: BaseException, file: Path | None) -> BisectError:
    """The user's code raised: what, and at which line of it."""
    where = _user_line(error, file)
    hint = "mend the model's code; it must import and build on its own, without command-line arguments"
    if isinstance(error, ModuleNotFoundError):
        hint = f"install {error.name}, or put it beside the model's file"
    elif isinstance(error, ImportError) and "relative import" in str(error):
        hint = "a file inside a package is named package.module:NAME, not by its path"
    return BisectError(f"{what}: {reason_of(error)}{where}", hint=hint)


def _user_line(error: BaseException, file: Path | None) -> str:
    """``\\n  at model.py:3: import nothing`` for the innermost line of the user's code; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"\n  at {Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}"
    wanted = file.resolve() if file else None
    frames = list(_frames(error.__traceback__))
    # The line in the model's own file is what the user knows best; else the innermost line outside of libraries.
    own = [frame for frame in frames if wanted is not None and Path(frame[0]) == wanted]
    own = own or [frame for frame in frames if _is_user_code(frame[0])]
    if not own:
        return ""
    import linecache

    filename, line = own[-1]
    return f"\n  at {Path(filename).name}:{line}: {linecache.getline(filename, line).strip()}"


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_user_code(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    libraries = (Path(__file__).resolve().parents[1], Path(inspect.__file__).resolve().parent)
    path = Path(filename)
    return "site-packages" not in path.parts and not any(library in path.parents for library in libraries)

"""``bisect-tool record`` and ``bisect-tool recorder``: what a run computes, into a file that can be compared elsewhere."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bisect_tool.cli import interrupts
from bisect_tool.cli import options as shared
from bisect_tool.cli.loading import case_name, load, make_case
from bisect_tool.cli.process import load_libraries
from bisect_tool.cli.progress import progress
from bisect_tool.cli.run import settings_of
from bisect_tool.errors import EXIT_AGREES, BisectError
from bisect_tool.sizes import parse_size


@shared.reworded(
    inputs="The sample: .pt .pth .npz .npy .safetensors; one.",
    onnx="Record ONNX Runtime's run of this file; without it PyTorch's run of MODEL.",
    raw="File given to --preprocess; one.",
    threads="Threads of the run; 0: the library's own number [default: 0].",
    memory_budget="Of aligning a graph with MODEL; recordings themselves are written as they come [default: 2GiB].",
    name="Name of the case in the recording [default: the model file's].",
)
@click.command(context_settings={**shared.SETTINGS, "allow_extra_args": True})
@shared.loading
@click.option("--script", type=click.Path(), metavar="FILE", help="Record a training script; its arguments behind --.")
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", default=3, help="Steps of the script's optimiser [default: 3]."
)
@click.option("-o", "--output", type=click.Path(), metavar="BUNDLE", help="File to write, as a.trace; needed.")
@click.option("--summary", is_flag=True, help="Kilobytes: statistics, digests and projections instead of tensors.")
@click.option("--stages", multiple=True, metavar="GLOB", help="Keep the tensors of these stages only. Repeatable.")
@click.option(
    "--level",
    type=click.Choice(["leaf", "op"]),
    default="leaf",
    help="op: operations inside leaf modules too [default: leaf].",
)
@click.option(
    "--device", default="auto", metavar="DEVICE", help="cpu, cuda, or auto: where the model was built [default: auto]."
)
@click.option("--mode", type=click.Choice(["eval", "train"]), default="eval", help="Mode of the model [default: eval].")
@click.option("--seed", type=int, metavar="N", help="Seed Python, numpy and torch before the model is built.")
@click.option(
    "--optimization",
    type=click.Choice(["off", "basic", "extended", "layout", "all"]),
    default="off",
    help="Optimisation level of ONNX Runtime, with --onnx [default: off].",
)
@click.option("--floor/--no-floor", default=None, help="Measure noise floors [default: where that takes few seconds].")
@click.option("--folder", is_flag=True, help="Write a folder instead of one file.")
@shared.running
@click.option("--force", is_flag=True, help="Replace a recording that is there, and nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(package_name="bisect-divergence")
@click.pass_context
def record(
    context: click.Context, /, output: str | None, force: bool, folder: bool, quiet: bool, summary: bool, **given: Any
) -> int:
    """Record every stage of a run, and everything that it depends on, for `bisect-tool compare`.

    With --onnx it is ONNX Runtime's run of that file; MODEL may be left out then, and stages are the graph's values. Exit
    codes: 0 recorded, 2 bad usage or unreadable input, 3 ONNX Runtime could not run the file.
    """
    if not output:
        raise BisectError("no place for the recording given", hint="-o a.trace")
    _check_options(context, given)
    own = {name: given.pop(name) for name in ("device", "mode", "seed", "optimization", "level", "floor")}
    globs = given.pop("stages")
    say = progress(quiet)
    _check_place(output, force)
    script, steps = given.pop("script"), given.pop("steps")
    rest = [*(given[name] for name in ("model", "checkpoint") if given[name]), *context.args]
    if not script and context.args:
        raise BisectError(f"unexpected argument {context.args[0]!r}", hint="MODEL and CHECKPOINT are all there is")
    settings = {**given, "model": None} if script else _settings(given)
    say("loading libraries")
    load_libraries()
    interrupts.work_begins()
    from bisect_tool.recorder import Recording, seed_all

    with _told(), Recording(output, summary, globs, own["level"] == "op", folder, force) as recording:
        if own["seed"] is not None:
            seed_all(own["seed"])
        recording.moment("start")
        if script:
            path = _record_script(recording, script, rest, steps, own, say)
        elif settings["model"]:
            path = _record_model(recording, settings, own, say)
        else:
            path = _record_graph(recording, settings, own, say)
        interrupts.check()
    interrupts.wrote(Path(path))
    say.close()
    click.echo(f"recorded {path}")
    return EXIT_AGREES


_OF_MODEL = ("device", "mode", "seed", "level", "entry", "entry_args", "checkpoint", "floor")


def _check_options(context: click.Context, given: Mapping[str, Any]) -> None:
    """Raises BisectError where an option was given that means nothing for what is recorded."""
    without: list[tuple[tuple[str, ...], str]] = []
    if not given["script"]:
        without.append((("steps",), "without --script"))
    if not given["onnx"]:
        without.append((("optimization",), "without --onnx"))
    elif not given["model"]:
        without.append((_OF_MODEL, "without MODEL"))
    for names, where in without:
        for parameter in context.command.params:
            if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
                names_of = "/".join(max(each, key=len) for each in (parameter.opts, parameter.secondary_opts) if each)
                raise BisectError(f"{names_of} has no effect {where}", hint="leave it out")


def _record_script(
    recording: Any, script: str, arguments: list[str], steps: int, own: Mapping[str, Any], say: Callable[[str], None]
) -> str:
    from bisect_tool import __version__
    from bisect_tool.backends.environment_facts import snapshot
    from bisect_tool.recorder import record_script

    say(f"running {script} for {steps} step{'s' if steps > 1 else ''}")
    # What the script prints is not this command's answer.
    with contextlib.redirect_stdout(sys.stderr):
        configuration = {**record_script(recording, script, arguments, steps), "seed": own["seed"]}
    command = shlex.join(["bisect-tool", *sys.argv[1:]])
    tool = {"name": "bisect-divergence", "version": __version__}
    extra = {"kind": "script", "case": Path(script).stem}
    path: str = recording.finish(configuration, (), script, snapshot(), command, tool, extra)
    for note in recording.notes:
        click.echo(f"note: {note}", err=True)
    return path


@click.command(context_settings=shared.SETTINGS)
def recorder() -> int:
    """Print bisect_recorder.py: one file that records on machines where this tool cannot be installed.

    It needs Python 3.8, torch 1.13 and numpy: `bisect-tool recorder > bisect_recorder.py`, then there
    `python bisect_recorder.py model.py ckpt.pth --input sample.pt -o a.trace`.
    """
    click.echo(files("bisect_tool").joinpath("recorder.py").read_text(encoding="utf-8"), nl=False)
    return EXIT_AGREES


@contextmanager
def _told() -> Iterator[None]:
    """The recorder's errors as this program's."""
    from bisect_tool.recorder import RecordError

    try:
        yield
    except RecordError as error:
        raise BisectError(error.message, hint=error.hint) from error


def _check_place(output: str, force: bool) -> None:
    """Before the model is loaded, which may take long; and without torch, which takes long too."""
    place = Path(output)
    if place.exists() and not force:
        raise BisectError(
            f"{output}: it exists and is not overwritten", hint="--force replaces a bundle; or choose another name"
        )
    if not place.resolve().parent.is_dir():
        raise BisectError(f"{output}: there is no folder {place.parent}", hint="make it first")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    if given["onnx"] and not given["model"] and not given["config"]:
        if not given["inputs"] or given["preprocess"]:
            raise BisectError("no sample given", hint="--input sample.npz: the tensors that the graph is fed with")
        return {**given, "model": None}
    defaults = dict.fromkeys(("exporter", "opset", "constant_folding", "keep_onnx", "level"))
    return {**settings_of({**defaults, **given}), "matrix": None}


def _one(items: Any, what: str) -> Any:
    if len(items) != 1:
        raise BisectError(
            f"{len(items)} {what} given: a recording is of one run", hint="record each into a file of its own"
        )
    return items[0]


def _read_files(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = [("checkpoint", settings["checkpoint"]), ("onnx", settings["onnx"])]
    named += [("input", path) for path in settings["inputs"]] + [("raw", path) for path in settings["raw"]]
    model = str(settings["model"] or "")
    if not model.endswith(".py"):
        named.insert(0, ("model", model))
    return [(role, str(path)) for role, path in named if path and Path(path).is_file()]


def _record_model(
    recording: Any, settings: Mapping[str, Any], own: Mapping[str, Any], say: Callable[[str], None]
) -> str:
    import torch

    from bisect_tool.backends.compiled import eagerly
    from bisect_tool.backends.models import load_entry_args
    from bisect_tool.backends.samples import bind_sample
    from bisect_tool.recorder import configuration_of, place_model, set_mode

    say("loading the model")
    loaded = load(settings, recording.moment)
    sample = bind_sample(loaded.module, _one(loaded.samples, "samples"))
    case = make_case(settings, loaded, sample)
    recording.notes += list(case.notes)
    arguments = load_entry_args(settings["entry_args"]) if settings["entry_args"] else None
    chosen = {
        "entry": settings["entry"],
        "entry_args": arguments,
        "preprocess": settings["preprocess"],
        "seed": own["seed"],
    }
    module: Any = case.module
    if settings["onnx"]:
        configuration = _run_onnx(recording, settings, own, case, say)
        configuration.update(chosen)
    else:
        set_mode(module, own["mode"])
        module, args, kwargs, device = place_model(module, case.args, case.kwargs, own["device"])
        recording.tape = own["floor"] is not False
        say("running PyTorch")
        with ExitStack() as stack:
            stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
            recording.run(module, args, kwargs, eagerly())
        _measure_floors(recording, recording.recorder, own, say)
        configuration = configuration_of(module, device=device, mode=own["mode"], **chosen)
    source = str(settings["model"]).partition(":")[0]
    main = source if source.endswith(".py") and Path(source).is_file() else None
    return _finish(recording, configuration, settings, main, say)


def _run_onnx(
    recording: Any,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
    case: Any,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """ONNX Runtime's run, with stages named as the model has them."""
    from bisect_tool.backends.inputs import sample_tensors
    from bisect_tool.backends.onnx_recording import run_onnx
    from bisect_tool.backends.torch_runner import TorchRun
    from bisect_tool.pipeline import Options, inspect_case
    from bisect_tool.recorder import numeric_flags
    from bisect_tool.tolerances import make_tolerance

    path = Path(settings["onnx"])
    budget = parse_size(str(settings["memory_budget"]))
    options = Options(make_tolerance(None, None, None), onnx=path, threads=settings["threads"], memory_budget=budget)
    inspection = inspect_case(case, options, say)
    say("running ONNX Runtime")
    tensors = sample_tensors(case.module, case.args, case.kwargs)
    found = run_onnx(path, tensors, _config(settings, own), inspection)
    recording.mode = {
        "training": False,
        "modules_in_training": [],
        "devices": [own["device"]],
        "flags": numeric_flags(),
    }
    recording.put_stages(found.stages, found.outputs)
    if own["floor"] is not False:
        taped = TorchRun(case.module, case.args, case.kwargs, lambda value, tensor: None, tape=True)
        taped.start()
        _measure_floors(recording, taped.recorder, own, say)
    recording.inputs += [{"key": key, "tensor": recording.writer.add(tensor)} for key, tensor in _inputs_of(case)]
    recording.notes += list(found.notes)
    recording.absent = [
        {"stage": item.ref.stage, "call": item.ref.call, "output": item.ref.output, "reason": item.reason}
        for item in inspection.alignment.unaligned
        if not item.in_graph
    ]
    return dict(found.configuration)


def _measure_floors(recording: Any, recorder: Any, own: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Of the run that was taped, unless the user wants none."""
    from bisect_tool.backends.recorded_floors import MOST_WORK, put_floors, run_floors

    if own["floor"] is False:
        return
    say("measuring noise floors")
    every_op = own["level"] == "op"
    found = run_floors(recorder, every_op=every_op, most=None if own["floor"] else MOST_WORK)
    put_floors(recording, recorder, found, every_op=every_op)
    # What the tape holds is as large as the weights.
    recorder.release_all()


def _inputs_of(case: Any) -> list[tuple[Any, Any]]:
    """Under the keys that a recording of PyTorch gives them."""
    from bisect_tool.recorder import flatten_tensors

    return [*flatten_tensors(case.args), *flatten_tensors(case.kwargs)]


def _record_graph(
    recording: Any, settings: Mapping[str, Any], own: Mapping[str, Any], say: Callable[[str], None]
) -> str:
    """ONNX Runtime's run of a file, with no model behind it."""
    from bisect_tool.backends.onnx_recording import run_onnx
    from bisect_tool.backends.samples import load_samples
    from bisect_tool.recorder import flatten_tensors

    recording.moment("built")
    sample = _one(load_samples(settings["inputs"]), "samples")
    recording.moment("sample")
    tensors = [(str(key), tensor) for key, tensor in [*flatten_tensors(sample.args), *flatten_tensors(sample.kwargs)]]
    say("running ONNX Runtime")
    found = run_onnx(Path(settings["onnx"]), tensors, _config(settings, own))
    recording.put_stages(found.stages, found.outputs, found.inputs)
    recording.notes += list(found.notes)
    return _finish(recording, dict(found.configuration), settings, None, say)


def _config(settings: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    from bisect_tool.records import NumericConfig

    device = "cpu" if own["device"] == "auto" else str(own["device"]).partition(":")[0]
    threads = int(settings.get("threads") or 0)
    return NumericConfig("onnxruntime", device=device, optimization=own["optimization"], threads=threads)


def _finish(
    recording: Any,
    configuration: Mapping[str, Any],
    settings: Mapping[str, Any],
    main: str | None,
    say: Callable[[str], None],
) -> str:
    from bisect_tool import __version__
    from bisect_tool.backends.environment_facts import snapshot

    # ONNX Runtime draws from none of these generators; aligning its values with stages did.
    recording.states.setdefault("end", recording.states["sample"])
    say("writing the recording")
    interrupts.check()
    path: str = recording.finish(
        configuration,
        _read_files(settings),
        main,
        snapshot(),
        shlex.join(["bisect-tool", *sys.argv[1:]]),
        {"name": "bisect-divergence", "version": __version__},
        {"case": case_name(settings) if settings["model"] else Path(settings["onnx"]).stem},
    )
    return path

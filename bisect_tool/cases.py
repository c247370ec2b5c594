"""From a model and inputs, in memory or in files, to cases that are ready to run; and running several of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bisect_tool.backends.checkpoints import apply_checkpoint, load_checkpoint
from bisect_tool.backends.compiled import compiled_note, original
from bisect_tool.backends.models import load_model, to_eval
from bisect_tool.backends.preflight import errors_of, preflight
from bisect_tool.backends.samples import Sample, bind_sample, load_samples, sample_of
from bisect_tool.errors import BisectError
from bisect_tool.pipeline import LoadedCase, Options, Progress
from bisect_tool.records import Report

Compare = Callable[[LoadedCase, Options, Progress], Report]
OnReport = Callable[[Report, str], None]
"""Told about each sample's report, and the name of its folder; ``""`` for the report on everything."""


@dataclass(frozen=True, slots=True)
class Case:
    """How a model is found, where it is not given as an object.

    Attributes:
        checkpoint: file of its weights.
        entry, entry_args: what makes it, and with which arguments.
        name: of the case; ``None``: from the model.
        allow_pickle: the checkpoint may run code.
    """

    checkpoint: str | os.PathLike[str] | None = None
    entry: str | None = None
    entry_args: Mapping[str, Any] | None = None
    name: str | None = None
    allow_pickle: bool = False


def checked_case(
    module: torch.nn.Module, sample: Sample, name: str, description: Mapping[str, Any], notes: Sequence[str]
) -> LoadedCase:
    """One bound sample with the model, in eval mode; what the checks found is in the case's notes.

    Raises:
        BisectError: the model can't be judged as it is.
    """
    to_eval(module)
    findings = preflight(module, sample.args, sample.kwargs)
    if errors := errors_of(findings, module, sample.args, sample.kwargs):
        raise BisectError("; ".join(errors))
    return LoadedCase(
        name=name,
        module=module,
        args=sample.args,
        kwargs=sample.kwargs,
        description={**description, "sample": sample.source},
        notes=(*notes, *sample.notes, *(finding.text for finding in findings)),
    )


@contextlib.contextmanager
def loaded_cases(
    model: Any, inputs: Any, how: Case, description: Mapping[str, Any]
) -> Iterator[tuple[list[LoadedCase], list[str]]]:
    """The cases of a model, one for each sample, and where the samples are from.

    A model that was given as an object is put into eval mode meanwhile; each of its modules gets its own mode back.

    Args:
        model: ``nn.Module``, or what the command line takes for MODEL.
        inputs: of one call of ``forward``: a tensor or array, a tuple, a dictionary of keyword arguments, or
            ``{"args": ..., "kwargs": ...}``; or one or several paths of sample files or folders.
        how: a model that is no object is found.
        description: for the report.

    Raises:
        BisectError: unusable model or inputs.
    """
    notes: tuple[str, ...] = ()
    undo = contextlib.ExitStack()
    if isinstance(model, torch.nn.Module):
        unused = [name for name in ("checkpoint", "entry", "entry_args") if getattr(how, name)]
        if unused:
            raise BisectError(
                f"{', '.join(unused)}: for a model in a file, and {type(model).__name__} is one already",
                hint="load the weights with load_state_dict, or give the model's file",
            )
        module, compiled, put_back = original(model)
        undo.callback(put_back)
        name, notes = type(module).__name__, compiled_note(compiled)
    elif isinstance(model, (str, os.PathLike)):
        loaded = load_model(os.fspath(model), how.entry, how.entry_args)
        module, name, notes = loaded.module, loaded.name, loaded.notes
        if name == "model" and loaded.source_file is not None:
            name = loaded.source_file.parent.resolve().name or name
        if how.checkpoint is not None:
            state = load_checkpoint(str(how.checkpoint), allow_pickle=how.allow_pickle)
            notes += apply_checkpoint(module, state, str(how.checkpoint), allow_missing=False, allow_unexpected=False)
    else:
        raise BisectError(
            f"the model is a {type(model).__name__}, neither a torch.nn.Module nor a path",
            hint="give the module itself, model.py, or package.module:NAME",
        )
    modes = [(child, child.training) for child in module.modules()]
    try:
        cases = []
        samples = _samples(inputs)
        for sample in samples:
            bound = bind_sample(module, sample)
            cases.append(checked_case(module, bound, how.name or name, description, notes))
        yield cases, [sample.source for sample in samples]
    finally:
        for child, training in modes:
            if child.training != training:
                child.training = training
        undo.close()


def _samples(inputs: Any) -> list[Sample]:
    if isinstance(inputs, (str, os.PathLike)):
        return load_samples([os.fspath(inputs)])
    listed = isinstance(inputs, (list, tuple)) and bool(inputs)
    if listed and all(isinstance(path, (str, os.PathLike)) for path in inputs):
        return load_samples([os.fspath(path) for path in inputs])
    return [sample_of(inputs, "inputs")]


def compare_all(
    cases: Sequence[LoadedCase],
    sources: Sequence[str],
    options: Options,
    compare: Compare,
    progress: Progress = lambda _: None,
    on_report: OnReport = lambda _report, _folder: None,
) -> Report:
    """One report: of the only sample, or of the worst one with a line on each.

    Args:
        cases, sources: from :func:`loaded_cases`.
        options: for all of them.
        compare: makes the report of one.
        progress: called with one line whenever a step begins.
        on_report: called with each sample's report, and in the end with that on all of them.

    Raises:
        BisectError: the first sample that can't be used.
        InconclusiveError: of the only sample nothing could be compared.
    """
    if len(cases) == 1:
        report = compare(cases[0], options, progress)
        on_report(report, "")
        return report
    from bisect_tool.several import Samples, check_given_graph, progress_line, shared_work

    if options.onnx is not None:
        check_given_graph(options.onnx, cases, sources)
    samples = Samples(cases, sources, options.tolerance, given=options.onnx is not None)
    with shared_work(cases[0].module, options.keep_onnx, overwrite=options.overwrite) as graphs:
        chosen = replace(options, graphs=graphs)
        for number, source in enumerate(sources):
            progress(progress_line(number, len(cases), source))
            folder = f"{number:03d}-{Path(source).stem}"
            judged = samples.judge(number, lambda case: compare(case, chosen, progress), folder)
            on_report(judged.report, folder)
    for judged in samples.diagnosed_late():
        on_report(judged.report, judged.result.folder)
    report = samples.all_together()
    on_report(report, "")
    return report

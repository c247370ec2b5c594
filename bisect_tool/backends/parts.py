"""Parts of a model that have an ONNX file of their own: which modules they are, and what PyTorch calls them with.

A part is one submodule, or several that one file holds together (``backbone+neck+head``); then nothing may happen to
their tensors on the way from one to the next. Calls are caught by exchanging ``forward`` on the module itself: hooks would
switch off the fast path of ``nn.TransformerEncoder``.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from bisect_tool.backends.inputs import bind_inputs, sample_tensors
from bisect_tool.backends.preflight import explain_forward_error
from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.errors import BisectError
from bisect_tool.recorder import flatten_tensors, spare_compiler
from bisect_tool.records import GlueStage, OnnxGraph, OutputKey, Place, Stage
from bisect_tool.rows import from_here

Array = NDArray[Any]

_NEAR = 3
_ONE_FILE = "give each submodule a file of its own, or export them with what lies between them as one module"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model.

    Attributes:
        name: as the user wrote it.
        members: its submodules, by path.
    """

    name: str
    members: Mapping[str, torch.nn.Module]


@dataclass(slots=True)
class Step:
    """One call of one submodule: what it was given and what it returned, as objects.

    The tensors in them serve to tell which is which, for the model may have overwritten them since; ``starts`` and
    ``results`` are copies of what came in and went out, by ``id``.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    starts: dict[int, torch.Tensor] = field(default_factory=dict)
    results: dict[int, torch.Tensor] = field(default_factory=dict)

    def given(self) -> list[torch.Tensor]:
        return [tensor for _, tensor in (*flatten_tensors(self.args), *flatten_tensors(self.kwargs))]


@dataclass(slots=True)
class Call:
    """One call of a part: one of each of its submodules, in the order in which they ran.

    Attributes:
        steps: of its submodules.
        starts: copies of what comes from outside the part, by ``id`` of the tensor in the steps, in the order of first use.
        place: of the part in the model.
        order: place among all calls of all parts.
    """

    steps: list[Step]
    starts: dict[int, torch.Tensor] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place({}, {}))
    order: int = 0

    @property
    def output(self) -> Any:
        return self.steps[-1].output

    def outputs(self) -> list[tuple[OutputKey, torch.Tensor]]:
        """What PyTorch returned: keys and copies."""
        return [(key, self.steps[-1].results[id(tensor)]) for key, tensor in flatten_tensors(self.output)]


@dataclass(frozen=True, slots=True)
class Captured:
    """One PyTorch run of the whole model.

    Attributes:
        calls: of each part, by its name, in order; the first ones.
        counts: how many there were.
        outputs: of the model.
        glue: the stages that lie in no part.
        stages: of each part: paths of all its stages, in any call.
    """

    calls: Mapping[str, list[Call]]
    counts: Mapping[str, int]
    outputs: list[tuple[OutputKey, Array]]
    glue: tuple[GlueStage, ...]
    stages: Mapping[str, frozenset[str]]


class Together(torch.nn.Module):
    """Submodules that share a file under one roof, called as they were called in the model.

    ``forward`` takes what comes from outside, under the names that the submodules have for it, and returns what the last
    of them returns.
    """

    def __init__(self, members: Mapping[str, torch.nn.Module], call: Call):
        super().__init__()
        # Private, so that no submodule has the name.
        self._together_names = _child_names(list(members))
        for path, module in members.items():
            self.add_module(self._together_names[path], module)
        self.training = next(iter(members.values())).training
        self._together_call = call
        self._named_forward(_outside_names(members, call))

    def _named_forward(self, names: Sequence[str]) -> None:
        """Gives ``forward`` a signature: the graph's inputs are found by names first."""

        def forward(*inputs: torch.Tensor) -> Any:
            return Together.forward(self, *inputs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        self.forward = forward  # type: ignore[method-assign]

    def forward(self, *inputs: torch.Tensor) -> Any:
        call = self._together_call
        now = dict(zip(call.starts, inputs, strict=True))
        output = None
        for step in call.steps:
            args, kwargs = (_exchanged(given, now) for given in (step.args, step.kwargs))
            output = getattr(self, self._together_names[step.path])(*args, **kwargs)
            pairs = zip(flatten_tensors(step.output), flatten_tensors(output), strict=True)
            now.update((id(old), new) for (_, old), (_, new) in pairs)
        return output


def _child_names(paths: Sequence[str]) -> dict[str, str]:
    """Names of their own for modules from anywhere; the last part of the path, as people name them when they export."""
    tails = [path.rpartition(".")[2] for path in paths]
    taken = Counter(tails)
    return {
        path: tail if taken[tail] == 1 else f"{path.replace('.', '_')}_{number}"
        for number, (path, tail) in enumerate(zip(paths, tails, strict=True))
    }


def _outside_names(members: Mapping[str, torch.nn.Module], call: Call) -> list[str]:
    """What the first submodule that reads a tensor from outside calls it."""
    names: dict[int, str] = {}
    for step in call.steps:
        for name, tensor in sample_tensors(members[step.path], step.args, step.kwargs):
            if id(tensor) in call.starts:
                names.setdefault(
                    id(tensor), "".join(char if char.isidentifier() or char.isdigit() else "_" for char in name)
                )
    plain = [names.get(key, "input") for key in call.starts]
    return plain if len(set(plain)) == len(plain) else [f"input_{number}" for number in range(len(plain))]


def _exchanged(given: Any, now: Mapping[int, torch.Tensor]) -> Any:
    return map_tensors(given, lambda tensor: now.get(id(tensor), tensor))


# Which modules


def find_parts(module: torch.nn.Module, names: Sequence[str]) -> list[Part]:
    """The submodules that the parts name.

    Args:
        module: the whole model.
        names: of the parts; ``+`` joins submodules of one part.

    Raises:
        BisectError: there is no such submodule, it is named twice, or it lies inside another one.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise BisectError(
            "--part: the model is a TorchScript archive, whose submodules can't be exchanged",
            hint="give the Python file of the model",
        )
    known = dict(module.named_modules(remove_duplicate=False))
    parts = []
    for name in names:
        members = {path.strip(): _submodule(known, path.strip(), name) for path in name.split("+")}
        if len(members) != name.count("+") + 1:
            raise BisectError(f"--part {name}: names the same submodule twice", hint="name each one once")
        parts.append(Part(name, members))
    flat = [(part.name, path, member) for part in parts for path, member in part.members.items()]
    for place, (_, path, member) in enumerate(flat):
        for other_name, other_path, other in flat[:place]:
            if other is member:
                same = path if path == other_path else f"{other_path} and {path}, which are one submodule,"
                where = "in two parts" if other_path == path else "named twice"
                raise BisectError(
                    f"--part: {same} {'is' if path == other_path else 'are'} {where}",
                    hint=f"{other_name} stands for it already; a submodule has one file",
                )
            for inner, outer, inner_path, outer_path in (
                (member, other, path, other_path),
                (other, member, other_path, path),
            ):
                if any(inner is child for child in outer.modules()):
                    raise BisectError(
                        f"--part: {inner_path} lies inside {outer_path}, which is a part too",
                        hint="leave one of the two out: a part's file computes all that is inside it",
                    )
    return parts


def _submodule(known: Mapping[str, torch.nn.Module], path: str, name: str) -> torch.nn.Module:
    if path == "":
        raise BisectError(
            f"--part {name!r}: no submodule is named",
            hint="--part SUBMODULE=FILE.onnx; --onnx FILE for the whole model",
        )
    if path not in known:
        names = [each for each in known if each]
        tail = path.rpartition(".")[2]
        same_tail = [each for each in names if each.rpartition(".")[2] == tail]
        near = same_tail[:_NEAR] or difflib.get_close_matches(path, names, n=_NEAR, cutoff=0.5)
        near = near or [each for each in names if "." not in each][:6]
        hint = (
            f"submodules are named as in named_modules(): {', '.join(near)}" if near else "the model has no submodules"
        )
        raise BisectError(f"--part {name}: the model has no submodule {path}", hint=hint)
    return known[path]


# What they are called with


def capture(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[Part], most: int
) -> Captured:
    """Runs the whole model in PyTorch, and keeps what its parts were called with.

    Args:
        module: in eval mode.
        args, kwargs: inputs of ``module.forward``; copied before they are used.
        parts: from :func:`find_parts`.
        most: calls of a part whose tensors are kept.

    Raises:
        BisectError: the model fails, a part is never called, or what lies between the submodules of one part does not
            allow for one file.
    """
    caught = _Caught(parts, most)
    args, kwargs = map_tensors(args, torch.Tensor.clone), map_tensors(kwargs, torch.Tensor.clone)
    run = TorchRun(module, args, kwargs, lambda *_: None)
    watching = caught if any(len(part.members) > 1 for part in parts) else contextlib.nullcontext()
    with exchanged_forwards(parts, caught.wrap), watching:
        try:
            output = run.start()
        except BisectError:
            raise
        except (Exception, SystemExit) as error:  # anything may come out of a user's forward
            raise explain_forward_error(error, module, args, kwargs) from error
    outputs = flatten_tensors(output)
    calls = {part.name: caught.calls_of(part, {id(tensor) for _, tensor in outputs}) for part in parts}
    first = {id(child): path for path, child in reversed(list(module.named_modules(remove_duplicate=False)))}
    frames = run.recorder.trace.frames
    spans: list[tuple[int, int, str]] = []
    for part in parts:
        paths = {first[id(member)] for member in part.members.values()}
        own = [(index, frame) for index, frame in enumerate(frames) if frame.path in paths]
        if len(own) != len(caught.steps[part.name]):
            raise BisectError(
                f"--part {part.name}: the model calls forward itself, and not the module: such calls have no stage",
                hint="in the model, write self.neck(x) and not self.neck.forward(x)",
            )
        spans += [(frame.start, frame.stop, part.name) for _, frame in own if frame.stop is not None]
        for number, call in enumerate(calls[part.name]):
            call.order = min(index for index, frame in own if frame.call == number)
            call.place = Place(_paths(part, call, first), Counter(frame.path for frame in frames[: call.order]))
    glue, inside = _sort_stages(run.trace.stages, spans)
    counts = {part.name: len(caught.steps[part.name]) // len(part.members) for part in parts}
    return Captured(calls, counts, [(key, to_numpy(tensor).copy()) for key, tensor in outputs], glue, inside)


def _paths(part: Part, call: Call, first: Mapping[int, str]) -> dict[str, str]:
    """Paths in the module that stands for the part, and in the whole model."""
    module = part_module(part, call)
    paths = {path: first[id(child)] for path, child in module.named_modules() if id(child) in first}
    # A roof over one submodule has no name of its own in the model: that is the submodule's.
    return paths if len(part.members) == 1 else {**paths, "": part.name}


def _sort_stages(
    stages: Sequence[Stage], spans: Sequence[tuple[int, int, str]]
) -> tuple[tuple[GlueStage, ...], dict[str, frozenset[str]]]:
    """What lies in no part, and the paths of what lies in each; ``spans``: first and last operation of each call."""
    inside: dict[str, set[str]] = {name: set() for _, _, name in spans}
    glue = []
    ordered = sorted(spans, key=lambda span: span[1])
    for stage in stages:
        owner = next((name for start, stop, name in spans if start < stage.order <= stop), None)
        if owner is not None:
            inside[owner].add(stage.ref.stage)
        elif stage.level == "leaf" and stage.alias_of is None:
            after = [name for _, stop, name in ordered if stop < stage.order]
            glue.append(GlueStage(stage.ref, stage.type, from_here(stage.source), after[-1] if after else None))
    return tuple(glue), {name: frozenset(paths) for name, paths in inside.items()}


class _Caught(TorchDispatchMode):
    """Calls of the parts' submodules as they happen; as a mode, it also sees which tensors are read outside of a part."""

    def __init__(self, parts: Sequence[Part], most: int):
        super().__init__()
        self.most = most
        self.owner = {path: part.name for part in parts for path in part.members}
        self.sizes = {part.name: len(part.members) for part in parts}
        self.steps: dict[str, list[Step]] = {part.name: [] for part in parts}
        self.running: list[str] = []
        # Of tensors that the steps keep alive: the id of one that is gone may soon be another one's.
        self.watched: dict[str, set[int]] = {part.name: set() for part in parts}
        self.read: dict[str, dict[int, str]] = {part.name: {} for part in parts}
        self.busy = False

    @spare_compiler  # type: ignore[untyped-decorator]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.busy:
            for _, tensor in (*flatten_tensors(args), *flatten_tensors(kwargs)):
                for name, watched in self.watched.items():
                    if id(tensor) in watched and name not in self.running:
                        self.read[name].setdefault(id(tensor), func.__name__.partition(".")[0])
        return func(*args, **kwargs)

    def wrap(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        name = self.owner[path]

        def caught(*args: Any, **kwargs: Any) -> Any:
            step = Step(path, args, kwargs)
            steps = self.steps[name]
            steps.append(step)
            keep = len(steps) <= self.most * self.sizes[name]
            if keep:
                step.starts = self._copies(step.given())
            self.running.append(name)
            try:
                output = forward(*args, **kwargs)
            finally:
                self.running.pop()
            if not keep:
                # The tensors may be big; that there was a call is all that counts.
                step.args, step.kwargs = (), {}
                return output
            # The model may put more into a dictionary that it was given.
            step.output = map_tensors(output, lambda tensor: tensor)
            if len(steps) % self.sizes[name] == 0:
                step.results = self._copies([tensor for _, tensor in flatten_tensors(step.output)])
            else:
                self.watched[name] |= {id(tensor) for _, tensor in flatten_tensors(step.output)}
            return output

        return caught

    def _copies(self, tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        self.busy = True
        try:
            return {id(tensor): tensor.detach().clone() for tensor in tensors}
        finally:
            self.busy = False

    def calls_of(self, part: Part, final: set[int]) -> list[Call]:
        steps = self.steps[part.name]
        counts = Counter(step.path for step in steps)
        missing = [path for path in part.members if not counts[path]]
        if missing:
            raise BisectError(
                f"--part {part.name}: forward of {missing[0]} is never called on this sample",
                hint=_never_hint(part.members[missing[0]], missing[0]),
            )
        size = len(part.members)
        grouped = [steps[start : start + size] for start in range(0, len(steps), size)]
        if any(len({step.path for step in group}) != size for group in grouped):
            often = ", ".join(f"{path} {count} times" for path, count in counts.items())
            raise BisectError(f"--part {part.name}: these are not called one after another ({often})", hint=_ONE_FILE)
        calls = []
        for group in grouped[: self.most]:
            self._check_closed(part, group, final)
            call = Call(list(group))
            made: set[int] = set()
            for step in group:
                for tensor in step.given():
                    if id(tensor) not in made:
                        call.starts.setdefault(id(tensor), step.starts[id(tensor)])
                made |= {id(tensor) for _, tensor in flatten_tensors(step.output)}
            calls.append(call)
        return calls

    def _check_closed(self, part: Part, group: Sequence[Step], final: set[int]) -> None:
        """Nothing but the last submodule's output may leave a part."""
        last = {id(tensor) for _, tensor in flatten_tensors(group[-1].output)}
        for step in group[:-1]:
            for _, tensor in flatten_tensors(step.output):
                if id(tensor) in last:
                    continue
                reader = self.read[part.name].get(id(tensor)) or (
                    "an output of the model" if id(tensor) in final else None
                )
                if reader is not None:
                    raise BisectError(
                        f"--part {part.name}: what {step.path} returns is also used outside of these submodules ({reader})",
                        hint=_ONE_FILE,
                    )


def _never_hint(module: torch.nn.Module, path: str) -> str:
    if isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
        inner = [f"{path}.{name}" for name, _ in module.named_children()]
        return f"it is a {type(module).__name__}: name what is in it, as {'+'.join(inner[:3])}"
    return "a part is a submodule that the model calls, as self.neck(x); other methods than forward are not seen"


@contextlib.contextmanager
def exchanged_forwards(
    parts: Sequence[Part], wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Puts ``wrap(path, forward)`` in the place of ``forward`` of each submodule of the parts, while it lasts."""
    with contextlib.ExitStack() as undo:
        for path, module in ((path, module) for part in parts for path, module in part.members.items()):
            forward, own = module.forward, "forward" in vars(module)
            # inspect.signature follows __wrapped__ to the names of the inputs.
            module.forward = functools.wraps(forward)(wrap(path, forward))
            undo.callback(_restore, module, forward if own else None)
        yield


def _restore(module: torch.nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


# A part by itself


def part_module(part: Part, call: Call) -> torch.nn.Module:
    """The module that stands for a part in one of its calls."""
    return Together(part.members, call) if _needs_a_roof(part) else next(iter(part.members.values()))


def _needs_a_roof(part: Part) -> bool:
    """Several submodules do, and one without children: alone it would not be the one stage that it is in the model."""
    return len(part.members) > 1 or not any(True for member in part.members.values() for _ in member.children())


def part_inputs(part: Part, call: Call, now: Mapping[int, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What that module is called with; ``now``: the tensors, by ``id`` of those of the captured call."""
    if _needs_a_roof(part):
        return tuple(now[key] for key in call.starts), {}
    (step,) = call.steps
    return _exchanged(step.args, now), _exchanged(step.kwargs, now)


def feeds_of(part: Part, call: Call, graph: OnnxGraph, now: Mapping[int, torch.Tensor]) -> Mapping[str, Array]:
    """Inputs of a part's graph.

    Raises:
        BisectError: they do not fit.
    """
    args, kwargs = part_inputs(part, call, now)
    return bind_inputs(graph, sample_tensors(part_module(part, call), args, kwargs)).feeds

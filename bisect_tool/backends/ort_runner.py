"""ONNX Runtime: sessions from a :class:`NumericConfig`, and runs over segments, chained and forced."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.backends.buffers import HUGE_PAGE, BufferPool
from bisect_tool.backends.onnx_program import BuiltGraph, OnnxProgram, Segment, ValueType, type_of_array
from bisect_tool.backends.ort_errors import hint_for, hint_while_running, reason_of
from bisect_tool.backends.ort_options import (
    configure,
    confirm,
    counts_of_providers,
    cpu_nodes_of_cuda_session,
    floating_nodes,
    placed_nodes,
    placed_nodes_of_profile,
    read_back,
    without_effect,
)
from bisect_tool.backends.runners import LoadedGraph, Runner, runner_of
from bisect_tool.backends.weight_names import is_clash, with_other_names
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.records import NumericConfig
from bisect_tool.temporary import temporary_folder

try:
    import onnxruntime as ort
except ImportError as error:
    raise BisectError(
        f"onnxruntime cannot be imported ({error})",
        hint="pip install 'bisect-divergence[cpu]' or 'bisect-divergence[gpu]', one of the two: they overwrite each other",
    ) from error

Array = NDArray[Any]

# Element types (onnx.TensorProto) that numpy itself lacks.
_NO_NUMPY = {
    16: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(ml_dtypes.float8_e4m3fn),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2),
    20: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_MOST_WEIGHTS_WRITTEN = 500_000_000
_PLACED = frozenset([ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16])
_ELEMENT_TYPES = {dtype: number for number, dtype in _NO_NUMPY.items()}


_MOST_KEPT = 32

_kept: dict[tuple[str, str, str, bool, bool], ort.InferenceSession] | None = None


@contextlib.contextmanager
def keep_sessions() -> Iterator[None]:
    """While it lasts, sessions are made once for each graph and configuration, as far as nothing is written by them.

    The oldest goes where there are too many. Not for several threads.
    """
    global _kept
    outer, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = outer


def make_session(
    model: bytes,
    config: NumericConfig,
    weights_folder: str,
    *,
    placement: bool = False,
    optimized: Path | None = None,
    profile: Path | None = None,
    as_deployed: bool = False,
    renaming: bool = False,
) -> ort.InferenceSession:
    """A session as the configuration wants it, with memory given back after each run and no threads that wait in a loop
    beside PyTorch's own.

    Args:
        model: serialised; its weights may be external.
        config: of ONNX Runtime's side.
        weights_folder: where external weights are.
        placement: have the session remember which provider runs which node.
        optimized: where to write the graph as it is after optimisation.
        profile: how the name of a profile begins; ``session.end_profiling()`` writes it.
        as_deployed: leave memory and waiting threads as ONNX Runtime has them.
        renaming: give weights other names if theirs are in the way; not for the user's own graph, which is to run as it is.

    Raises:
        InconclusiveError: ONNX Runtime refuses the model, or the configuration cannot be had here; the reason is in the
            message.
    """
    if _kept is None or optimized is not None or profile is not None:
        return _new_session(model, config, weights_folder, placement, optimized, profile, as_deployed, renaming)
    key = (hashlib.sha256(model).hexdigest(), repr(config), weights_folder, placement, as_deployed)
    session = _kept.pop(key, None)
    if session is None:
        session = _new_session(model, config, weights_folder, placement, None, None, as_deployed, renaming)
    _kept[key] = session
    if len(_kept) > _MOST_KEPT:
        del _kept[next(iter(_kept))]
    return session


def _new_session(
    model: bytes,
    config: NumericConfig,
    weights_folder: str,
    placement: bool,
    optimized: Path | None,
    profile: Path | None,
    as_deployed: bool,
    renaming: bool,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Errors come as exceptions.
    options.log_severity_level = 4
    if not as_deployed:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights_folder)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    chosen = configure(options, config, placement=placement)
    try:
        session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        session = _with_other_names(model, error, options, chosen) if renaming else None
        if session is None:
            reason = reason_of(error)
            raise InconclusiveError(f"ONNX Runtime cannot load the graph: {reason}", hint=hint_for(reason)) from error
    confirm(session, config)
    return session


def _with_other_names(
    model: bytes, error: Exception, options: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession | None:
    """The session after all, where nothing but names were in its way."""
    if is_clash(reason_of(error)):
        with contextlib.suppress(Exception):  # then the first reason is the one to tell
            return ort.InferenceSession(with_other_names(model), options, providers=providers, enable_fallback=0)
    return None


def run_session(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, Array],
    types: Mapping[str, ValueType] | None = None,
    buffers: BufferPool | None = None,
) -> list[Array | None]:
    """Runs a session on CPU arrays. ``None`` stands for an output that ONNX Runtime gave nothing for.

    Args:
        session: on the CPU.
        outputs: names.
        feeds: inputs by name.
        types: of outputs, as far as they are known.
        buffers: where big outputs of known type go to.

    Raises:
        InconclusiveError: the run failed; ONNX Runtime's reason is in the message.
    """
    if not outputs:
        return []
    binding = session.io_binding()
    # Kept to the end: the binding does not hold the array that a value lies in, and a strided one was copied for it.
    values = {name: _to_ort(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    places: dict[str, Array] = {}
    if buffers is not None and types is not None:
        places = {n: place for n in outputs if (place := _place(types.get(n), buffers)) is not None}
    # A graph may name the same value as two of its outputs; it is bound once.
    names = list(dict.fromkeys(outputs))
    for name in names:
        if name in places:
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(places[name]))
        else:
            binding.bind_output(name)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        if places:
            # A shape that depends on the data may be another one than last time.
            return run_session(session, outputs, feeds)
        reason = reason_of(error)
        raise InconclusiveError(
            f"ONNX Runtime failed while running: {reason}", hint=hint_while_running(reason)
        ) from error
    results = dict(zip(names, binding.get_outputs(), strict=True))
    found = [places[name] if name in places else _from_ort(results[name]) for name in outputs]
    del values
    return found


def _place(kind: ValueType | None, buffers: BufferPool) -> Array | None:
    """Memory for a big output, or ``None`` where ONNX Runtime is to take its own."""
    if kind is None or kind.dtype not in _PLACED:
        return None
    dtype = np.dtype(kind.dtype.numpy())
    size = math.prod(kind.shape) * dtype.itemsize
    return buffers.take(size).view(dtype).reshape(kind.shape) if size >= HUGE_PAGE else None


def _to_ort(array: Array) -> ort.OrtValue:
    # ascontiguousarray would turn a scalar into a vector.
    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    element = _ELEMENT_TYPES.get(array.dtype)
    if element is not None:
        raw = array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, element)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort(value: ort.OrtValue) -> Array | None:
    if not value.has_value() or not value.is_tensor():
        return None
    special = _NO_NUMPY.get(value.element_type())
    if special is None:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64)) * special.itemsize
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, dtype=special).reshape(shape)


class OrtRunner:
    """ONNX Runtime as a :class:`bisect_tool.backends.runners.Runner`."""

    name = "onnxruntime"
    title = "ONNX Runtime"

    @property
    def version(self) -> str:
        return str(ort.__version__)

    def load(self, model: bytes, config: NumericConfig, weights_folder: str) -> OrtGraph:
        return OrtGraph(make_session(model, config, weights_folder, renaming=True))


class OrtGraph:
    """A session as a :class:`bisect_tool.backends.runners.LoadedGraph`."""

    def __init__(self, session: ort.InferenceSession):
        self._session = session
        self.output_names: Sequence[str] = tuple(output.name for output in session.get_outputs())

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, Array],
        types: Mapping[str, ValueType] | None = None,
        buffers: BufferPool | None = None,
    ) -> list[Array | None]:
        return run_session(self._session, outputs, feeds, types, buffers)


class UntouchedRun:
    """The whole graph as given, under one configuration: only its own outputs come out.

    Args:
        program: the graph.
        config: of ONNX Runtime's side.
        look: read back what is in effect, the optimised graph too; ``effective`` has it.
    """

    def __init__(self, program: OnnxProgram, config: NumericConfig, *, look: bool = False):
        self._program = program
        self._config = config
        self._folder = str(program.weights_folder)
        # Which nodes are where matters on another device than the CPU, whether one looks or not.
        placement = look or config.device != "cpu"
        if look:
            with temporary_folder() as temporary:
                # Written with its weights inside: that must stay small.
                small = program.weight_bytes() < _MOST_WEIGHTS_WRITTEN
                optimized = Path(temporary) / "optimized.onnx" if small else None
                session = make_session(
                    program.untouched(), config, self._folder, placement=placement, optimized=optimized
                )
                given = program.path if small else None
                self.effective = read_back(session, config, graph=program.graph, optimized=optimized, given=given)
                if optimized is not None:
                    self.effective["without_effect"] = without_effect(
                        config,
                        optimized,
                        lambda other, path: make_session(program.untouched(), other, self._folder, optimized=path),
                    )
        else:
            session = make_session(program.untouched(), config, self._folder, placement=placement)
            self.effective = {"providers": list(session.get_providers())}
        self.output_names = [o.name for o in session.get_outputs()]
        self._placed = placed_nodes(session) or None
        # A session that does not tell is made once more to run with a profile: two of them may not fit on a device.
        self._session = None if config.device != "cpu" and self._placed is None else session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array | None]:
        if self._session is not None:
            results = run_session(self._session, self.output_names, feeds)
        else:
            results = self._run_with_profile(feeds)
        return dict(zip(self.output_names, results, strict=True))

    def _run_with_profile(self, feeds: Mapping[str, Array]) -> list[Array | None]:
        """Runs, and learns from ONNX Runtime's profile where the nodes were."""
        with temporary_folder() as temporary:
            profile = Path(temporary) / "profile"
            session = make_session(self._program.untouched(), self._config, self._folder, profile=profile)
            try:
                results = run_session(session, self.output_names, feeds)
            finally:
                # Otherwise it is written when the session goes, to where no folder is any more.
                written = session.end_profiling()
            self._placed = placed_nodes_of_profile(written)
        if self._placed is not None:
            self.effective = {**self.effective, "placement": counts_of_providers(self._placed)}
        return results

    def nodes_left_behind(self) -> tuple[str, ...] | None:
        """After a run: nodes that the CPU computes although the session runs on another device.

        ``None``: neither the session nor a profile tells where its nodes are.
        """
        if self._placed is None:
            return None
        return tuple(str(node) for node in cpu_nodes_of_cuda_session(self._placed, floating_nodes(self._program.graph)))


class PartRuns:
    """Some nodes of a graph, run again and again with other inner values given.

    Args:
        program: the graph.
        config: of ONNX Runtime's side.
        part: from ``program.part``.
        feeds: what it reads, by name.
        types: of inner values, from an earlier run.
        runner: what computes them; ``None``: what the configuration names.
    """

    def __init__(
        self,
        program: OnnxProgram,
        config: NumericConfig,
        part: Segment,
        feeds: Mapping[str, Array],
        types: Mapping[str, ValueType],
        runner: Runner | None = None,
    ):
        self._program = program
        self._config = config
        self._runner = runner or runner_of(config)
        self._part = part
        self._feeds = feeds
        self._types = {**types, **{name: type_of_array(a.dtype, a.shape) for name, a in feeds.items()}}
        self._sessions: dict[tuple[frozenset[str], tuple[str, ...]], tuple[BuiltGraph, LoadedGraph]] = {}

    def run(self, given: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array | None]:
        """Values of the part; those in ``given`` are read instead of computed."""
        key = frozenset(given), tuple(wanted)
        if key not in self._sessions:
            types = {**self._types, **{name: type_of_array(a.dtype, a.shape) for name, a in given.items()}}
            graph = self._program.build(self._part, wanted, types, given.keys())
            loaded = self._runner.load(graph.model, self._config, str(self._program.weights_folder))
            self._sessions[key] = graph, loaded
        graph, loaded = self._sessions[key]
        feeds = {name: given[value] if value in given else self._feeds[value] for name, value in graph.feeds.items()}
        return dict(zip(graph.outputs, loaded.run(graph.outputs, feeds), strict=True))


@dataclass(frozen=True, slots=True)
class Reuse:
    """What other runs of a graph leave to a segmented one.

    Attributes:
        computed: chained values of an earlier run; then the chained run is not made again.
        types: of values, from an earlier run; what is given in a forced run takes this form.
        buffers: where big outputs go to; without, ONNX Runtime takes fresh memory for each.
    """

    computed: Mapping[str, Array | None] | None = None
    types: Mapping[str, ValueType] = field(default_factory=dict)
    buffers: BufferPool | None = None


_NOTHING = Reuse()


class SegmentedRun:
    """One configuration over consecutive segments: *chained* on its own values, and *forced* on PyTorch's.

    Values are kept only as long as a later segment reads them.

    Args:
        program: the graph.
        config: the actual side's switches.
        segments: from ``program.segments``.
        exposed: values that the caller wants to see.
        forced: values that the forced run reads from outside; ``None``: no forced run.
        inputs: the graph's own inputs by name.
        reuse: from other runs.
    """

    def __init__(
        self,
        program: OnnxProgram,
        config: NumericConfig,
        segments: Sequence[Segment],
        exposed: Set[str],
        forced: Set[str] | None,
        inputs: Mapping[str, Array],
        reuse: Reuse = _NOTHING,
    ):
        self._buffers = reuse.buffers
        self._program = program
        self._config = config
        self.segments = segments
        self._exposed = exposed
        self._forced = forced
        self._computed = reuse.computed
        self._chain: dict[str, Array] = dict(inputs)
        self._forced_chain: dict[str, Array] = dict(inputs)
        self._types: dict[str, ValueType] = dict(reuse.types)
        self._types.update((n, type_of_array(a.dtype, a.shape)) for n, a in inputs.items())
        for name, array in (reuse.computed or {}).items():
            if array is not None:
                self._types[name] = type_of_array(array.dtype, array.shape)
        self._last_use = {name: s.index for s in segments for name in s.reads}
        self.next = 0

    @property
    def done(self) -> bool:
        return self.next == len(self.segments)

    @property
    def is_forced(self) -> bool:
        """Whether there is a forced run beside the chained one."""
        return self._forced is not None

    @property
    def carried(self) -> Set[str]:
        """Values made so far that segments to come read."""
        return self._chain.keys()

    @property
    def types(self) -> Mapping[str, ValueType]:
        """Of all values that were seen."""
        return self._types

    def advance(self) -> dict[str, Array | None]:
        """Runs the next segment, chained alone."""

        def give(name: str, kind: ValueType | None) -> Array:
            raise AssertionError(f"{name} is not forced")

        return self.step(give)[0]

    def needs(self, index: int) -> set[str]:
        """Forced values that segment ``index`` reads."""
        if self._forced is None:
            return set()
        read = {n for i in self.segments[index].nodes for n in self._program.graph.nodes[i].inputs}
        return read & self._forced

    def step(
        self, give: Callable[[str, ValueType | None], Array]
    ) -> tuple[dict[str, Array | None], dict[str, Array | None]]:
        """Runs the next segment.

        Args:
            give: called with the name of a forced value and the ONNX value's type (``None`` if not known yet); returns
                PyTorch's tensor in that type and shape.

        Returns:
            The exposed values that the segment makes: chained, and forced (empty without a forced run).
        """
        index = self.next
        segment = self.segments[index]
        self.next += 1
        if self._computed is None:
            chained = self._run(segment, self._chain, {}, frozenset())
        else:
            chained = {n: self._computed[n] for n in segment.makes if n in self._exposed and n in self._computed}
        forced: dict[str, Array | None] = {}
        if self._forced is not None:
            given = {name: give(name, self._types.get(name)) for name in sorted(self.needs(index))}
            self._types.update((n, type_of_array(a.dtype, a.shape)) for n, a in given.items())
            forced = self._run(segment, self._forced_chain, given, self._forced)
        return chained, forced

    def _run(
        self, segment: Segment, chain: dict[str, Array], given: Mapping[str, Array], forced: Set[str]
    ) -> dict[str, Array | None]:
        carried = {n for n in segment.makes if self._last_use.get(n, -1) > segment.index and n not in forced}
        wanted = [n for n in sorted(segment.makes) if n in self._exposed or n in carried]
        outputs: dict[str, Array | None] = {}
        if wanted:
            graph = self._program.build(segment, wanted, self._types, forced & given.keys())
            loaded = runner_of(self._config).load(graph.model, self._config, str(self._program.weights_folder))
            feeds = {name: given[value] if value in given else chain[value] for name, value in graph.feeds.items()}
            types = {n: kind for n in graph.outputs if (kind := self._types.get(n) or self._program.type_of(n))}
            results = loaded.run(graph.outputs, feeds, types, self._buffers)
            outputs = dict(zip(graph.outputs, results, strict=True))
        for name, array in outputs.items():
            if array is not None:
                found = type_of_array(array.dtype, array.shape)
                # A value on PyTorch's inputs may have another shape, where shapes depend on the data.
                self._types[name] = self._types.get(name, found) if forced else found
            if name in carried:
                if array is None:
                    title = runner_of(self._config).title
                    raise InconclusiveError(f"{title} returned nothing for {name}, which later nodes read")
                chain[name] = array
        for name in [n for n in chain if self._last_use.get(n, -1) <= segment.index]:
            del chain[name]
        return {name: array for name, array in outputs.items() if name in self._exposed}

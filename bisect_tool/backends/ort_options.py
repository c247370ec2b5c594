"""ONNX Runtime's switches: from a configuration to a session, and from the session back to what is in effect.

ONNX Runtime ignores keys, values and pass names that it does not know, and runs on the CPU where CUDA cannot be had.
So names are checked before a session is made (``configure``), and the session is asked afterwards (``confirm``).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.numerics import check_config, default_of, lookup, text_of
from bisect_tool.records import NumericConfig, OnnxGraph
from bisect_tool.switches import GRAPH, ONNXRUNTIME, PASSES, REQUIRED_PASSES, Switch, Value

try:
    import onnxruntime as ort
except ImportError as error:
    raise BisectError(
        f"onnxruntime cannot be imported ({error})",
        hint="pip install 'bisect-divergence[cpu]' or 'bisect-divergence[gpu]', one of the two: they overwrite each other",
    ) from error

PLACEMENT_KEY = "session.record_ep_graph_assignment_info"
"""Session key that makes ``placed_nodes`` work (onnxruntime 1.24)."""

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"

# What computes shapes: ONNX Runtime keeps such nodes on the CPU on purpose, beside the data that they read.
# fmt: off
_SHAPE_OPS = frozenset([
    "Shape", "Size", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Range", "ConstantOfShape",
    "Constant", "Reshape", "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Floor", "Ceil", "Equal",
    "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Where", "ReduceProd", "ReduceMax",
    "ReduceMin", "ReduceSum", "Abs", "Neg", "Sign", "Expand", "Split", "If", "Loop", "MemcpyFromHost", "MemcpyToHost",
])
# fmt: on


# From a configuration to a session


def configure(options: Any, config: NumericConfig, *, placement: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Sets all that a configuration asks for.

    Args:
        options: ``onnxruntime.SessionOptions``, changed in place.
        config: of ONNX Runtime's side.
        placement: have the session remember which provider runs which node.

    Returns:
        ``providers`` for ``onnxruntime.InferenceSession``; give it ``enable_fallback=0`` too, so that a provider that
        fails raises in place of a notice on stdout and a run on the CPU.

    Raises:
        BisectError: a name or a value is not valid.
        InconclusiveError: it is, but cannot be had here; the message says what is missing.
    """
    check_config(config, passes=known_passes() | _seen if "disabled_passes" in config.switches else None)
    for name, value in config.switches.items():
        _require(lookup("onnxruntime", name), value)
    level = text_of("onnxruntime", "optimization", config.optimization or "all")
    if not hasattr(ort.GraphOptimizationLevel, level):
        raise InconclusiveError(
            f"onnxruntime {ort.__version__} has no optimisation level {config.optimization}", hint='"all" contains it'
        )
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = config.threads
    for name, value in config.switches.items():
        home = lookup("onnxruntime", name).home
        if home == "property":
            setattr(options, name, value)
        elif home == "session":
            options.add_session_config_entry(_key(name), text_of("onnxruntime", name, value))
    if placement:
        options.add_session_config_entry(PLACEMENT_KEY, "1")
    chosen = providers(config)
    for provider, _ in reversed(chosen):
        require_provider(provider)
    return chosen


def require_config(config: NumericConfig) -> None:
    """Does nothing if sessions of this configuration can be had here.

    Raises:
        BisectError: a name or a value is not valid.
        InconclusiveError: it is, but cannot be had here; the message says what is missing.
    """
    configure(ort.SessionOptions(), config)


def providers(config: NumericConfig) -> list[tuple[str, dict[str, str]]]:
    """Execution providers with their options, in the order in which they may take nodes."""
    cuda: dict[str, str] = {}
    tensorrt: dict[str, str] = {}
    for name, value in config.switches.items():
        if lookup("onnxruntime", name).home == "provider" and name != "provider":
            (tensorrt if name.startswith("trt_") else cuda)[name] = text_of("onnxruntime", name, value)
    found = [(CPU, {})] if config.device == "cpu" else [(CUDA, cuda), (CPU, {})]
    return [(TENSORRT, tensorrt), *found] if config.switches.get("provider") == "tensorrt" else found


def _key(name: str) -> str:
    return "optimization.disable_specified_optimizers" if name == "disabled_passes" else name


def _require(switch: Switch, value: Value) -> None:
    if switch.since is not None and _version(ort.__version__) < _version(switch.since):
        raise InconclusiveError(
            f"{switch.name} needs onnxruntime {switch.since}, and this is {ort.__version__}", hint="leave it out"
        )
    if ("arm64" in switch.name or "kleidiai" in switch.name) and platform.machine().lower() not in ("aarch64", "arm64"):
        raise InconclusiveError(f"{switch.name} acts on 64-bit Arm only, and this is {platform.machine()}")
    text = text_of("onnxruntime", switch.name, value) if switch.side == "onnxruntime" else ""
    if switch.home == "environment" and os.environ.get(switch.name) != text:
        raise InconclusiveError(
            f"{switch.name}={text} is not in this process' environment", hint="it must be set before the process starts"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


# Optimiser passes


@functools.cache
def known_passes() -> frozenset[str]:
    """Names that the installed ONNX Runtime's optimiser answers to.

    Transformers name themselves in the log of a session, at the highest level and with the switches that add some.
    Rules inside them do not; those are taken from the table.
    """
    names = {p.name for p in PASSES if p.rule and (p.since is None or _version(ort.__version__) >= _version(p.since))}
    adding = {
        "optimization.enable_gelu_approximation": "1",
        "session.x64quantprecision": "1",
        "session.enable_dq_matmulnbits_fusion": "1",
    }
    for entries in ({}, adding):
        names.update(name for name, _ in _transformers(session_log(_small_model(), [(CPU, {})], entries)))
    return frozenset(names - REQUIRED_PASSES)


def changing_passes(log: str) -> tuple[str, ...]:
    """Passes that changed the graph, in the order of a session's log (severity 0).

    Where a group of rules did, all rules of that group stand for it: the log does not say which of them.
    """
    found: list[str] = []
    for name, changed in _transformers(log):
        if changed and name not in REQUIRED_PASSES:
            level = {"Level1_RuleBasedTransformer": "basic", "Level2_RuleBasedTransformer": "extended"}.get(name)
            rules = [p.name for p in PASSES if p.rule and p.level == level]
            found += rules if level else [name]
    return tuple(dict.fromkeys(found))


_seen: set[str] = set()
"""Passes that named themselves in the log of some session of this process: of a user's graph, on another provider."""


def _transformers(log: str) -> list[tuple[str, bool]]:
    return [(name, done != "0") for name, done in re.findall(r"GraphTransformer (\S+) modified: (\d+)", log)]


def session_log(
    model: bytes,
    chosen: Sequence[tuple[str, dict[str, str]]],
    entries: Mapping[str, str] | None = None,
    config: NumericConfig | None = None,
) -> str:
    """The log of making a session, everything included; what goes wrong is in it.

    Args:
        model: a serialised graph.
        chosen: execution providers with their options.
        entries: session keys.
        config: of the session; ``None``: ONNX Runtime's defaults, the highest level.
    """
    options = ort.SessionOptions()
    if config is not None:
        configure(options, config)
    options.log_severity_level = 0
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    with captured_log() as log:
        try:
            session = ort.InferenceSession(model, options, providers=list(chosen), enable_fallback=0)
            log.write(f"\nproviders: {' '.join(session.get_providers())}\n")
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            log.write(f"\n{type(error).__name__}: {error}\n")
    _seen.update(name for name, _ in _transformers(log.getvalue()) if name not in REQUIRED_PASSES)
    return log.getvalue()


@contextlib.contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """What ONNX Runtime writes to the process' stderr inside; the text is complete when the block ends.

    ONNX Runtime's log has no other way into Python. Other threads' stderr goes the same way meanwhile.
    """
    log = io.StringIO()
    sys.stderr.flush()
    try:
        copy = os.dup(2)
    except OSError:  # a process without stderr
        yield log
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(copy, 2)
            os.close(copy)
            file.seek(0)
            written = file.read().decode(errors="replace")
            own = log.getvalue()
            log.seek(0)
            log.write(written + own)


def _small_model() -> bytes:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


# Whether a provider can be had


def require_provider(provider: str) -> None:
    """Does nothing if sessions can run on the execution provider here.

    Raises:
        InconclusiveError: they cannot; the message says whether the build, a library or the device is missing.
    """
    problem = None if provider == CPU else _problem(provider)
    if problem is not None:
        raise InconclusiveError(problem[0], hint=problem[1])


@functools.cache
def _problem(provider: str) -> tuple[str, str] | None:
    if provider not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} is a build without {_word(provider)}",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'bisect-divergence[gpu]'",
        )
    log = session_log(_small_model(), [(provider, {})])
    if "cannot open shared object file" in log and hasattr(ort, "preload_dlls"):
        # CUDA's libraries may lie in site-packages, where the loader does not look by itself.
        with contextlib.redirect_stdout(io.StringIO()), captured_log(), contextlib.suppress(Exception):
            ort.preload_dlls()
        log = session_log(_small_model(), [(provider, {})])
    if re.search(rf"^providers:.*\b{provider}\b", log, re.MULTILINE):
        return None
    return explain_log(log, provider)


def explain_log(log: str, provider: str = CUDA) -> tuple[str, str]:
    """Message and hint for a provider that could not be had, from the log of a session."""
    word = _word(provider)
    cuda = str(getattr(ort, "cuda_version", "") or "")
    needed = f"onnxruntime {ort.__version__} needs CUDA {cuda} and cuDNN 9" if cuda else "see its requirements"
    missing = re.search(r"with error: (\S+?): cannot open shared object file", log)
    if missing and missing[1].startswith("libcuda.so"):
        return (
            f"ONNX Runtime finds no NVIDIA driver ({missing[1]})",
            "install the driver, or start the container with its GPUs; nvidia-smi shows them",
        )
    if missing:
        extra = "" if provider == TENSORRT else ": pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return f"ONNX Runtime's {word} provider cannot be loaded: {missing[1]} is missing", needed + extra
    failed = re.search(r"with error: (.+)", log)
    if failed:
        return f"ONNX Runtime's {word} provider cannot be loaded: {failed[1].strip()[:200]}", needed
    device = re.search(r"no CUDA-capable device|CUDA failure (?:100|35|999)\b.*|driver version is insufficient.*", log)
    if device:
        return (
            f"ONNX Runtime finds no usable GPU: {device[0].strip()[:200]}",
            "nvidia-smi shows driver and devices; CUDA_VISIBLE_DEVICES may hide them",
        )
    told = [line for line in log.splitlines() if re.search(r"\[[EF]:onnxruntime|^\w*(Error|Exception|Fail)\w*: ", line)]
    reason = " ".join((told or ["it gives no reason"])[-1].split())
    return f"ONNX Runtime does not start on {word}: {reason[-200:]}", needed


def _word(provider: str) -> str:
    return {CUDA: "CUDA", TENSORRT: "TensorRT"}.get(provider, provider)


# From the session back to what is in effect


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node and the provider that runs it.

    Attributes:
        name: empty where the graph gives none.
        op_type: the operator, as it is after optimisation in a profile.
        provider: as ONNX Runtime names it.
        floating: whether it was seen to put out floating numbers; only a profile sees that.
    """

    name: str
    op_type: str
    provider: str
    floating: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.op_type})" if self.name else self.op_type


def placed_nodes(session: Any) -> tuple[PlacedNode, ...] | None:
    """Which provider took which node, before later optimisation; ``None`` if the session does not know.

    It knows if it was made with ``configure(..., placement=True)`` on onnxruntime 1.24 or later; otherwise one has to
    run it with ``enable_profiling``, and ask ``placed_nodes_of_profile``.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return None
    try:
        parts = ask()
    except Exception:  # it was not told to remember
        return None
    return tuple(PlacedNode(n.name, n.op_type, part.ep_name) for part in parts for n in part.get_nodes())


def placed_nodes_of_profile(path: str | os.PathLike[str]) -> tuple[PlacedNode, ...] | None:
    """Which provider ran which node, from the file that ``session.end_profiling()`` names.

    These are nodes of the optimised graph, as far as they ran. ``None``: no node is in it, or it is no profile.
    """
    try:
        events = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {
            event["name"]: PlacedNode(
                event["name"].removesuffix("_kernel_time"),
                event["args"]["op_name"],
                event["args"]["provider"],
                _puts_out_floats(event["args"]),
            )
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and "provider" in event["args"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another version may write another form
        return None
    return tuple(found.values()) or None


def _puts_out_floats(args: Mapping[str, Any]) -> bool:
    kinds = {kind for output in args.get("output_type_shape") or () for kind in output}
    # "float", "float16", "bfloat16", "double"
    return any("float" in kind or kind == "double" for kind in kinds)


def cpu_nodes_of_cuda_session(nodes: Sequence[PlacedNode], floating: Set[str] = frozenset()) -> tuple[PlacedNode, ...]:
    """Nodes that the CPU computes although the session was to run on CUDA.

    Nodes that compute shapes belong there and do not count, unless they are said to compute floating numbers. Where
    no node at all is elsewhere, all of them count: nothing ran on CUDA.

    Args:
        nodes: from ``placed_nodes`` or ``placed_nodes_of_profile``.
        floating: from ``floating_nodes``.
    """
    if all(n.provider == CPU for n in nodes):
        return tuple(nodes)
    return tuple(
        n for n in nodes if n.provider == CPU and (n.op_type not in _SHAPE_OPS or n.floating or n.name in floating)
    )


def floating_nodes(graph: OnnxGraph) -> set[str]:
    """Names of nodes with a floating output, as far as the file says so."""
    floats = {name for name, dtype in graph.dtypes.items() if "float" in dtype}
    return {node.name for node in graph.nodes if floats.intersection(node.outputs)}


def dtype_in_effect(graph: OnnxGraph) -> str | None:
    """The floating dtype that most numbers of a graph's weights have, or, without any, its inputs; ``None``: neither.

    Single constants may be in another one: exporters keep those of a half-precision model in float32.
    """
    for names in (graph.initializers, graph.inputs):
        sizes: Counter[str] = Counter()
        for name in names:
            dtype = graph.dtypes.get(name, "")
            if "float" in dtype:
                sizes[dtype] += math.prod(graph.shapes.get(name, ()))
        if sizes:
            return max(sorted(sizes), key=lambda dtype: sizes[dtype])
    return None


def op_counts(path: str | os.PathLike[str]) -> dict[str, int]:
    """How many nodes of each type a graph has, subgraphs and functions included; weights are not read.

    Types outside ONNX itself carry their domain: ``com.microsoft.Gelu`` is not ``Gelu``.
    """
    model = onnx.load(os.fspath(path), load_external_data=False)
    counts: Counter[str] = Counter()
    pending: list[Any] = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        counts[f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type] += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending += graph.node
    return dict(sorted(counts.items()))


def op_changes(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Types whose number differs: before, after."""
    names = sorted({*before, *after})
    pairs = {name: (before.get(name, 0), after.get(name, 0)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def without_effect(config: NumericConfig, optimized: Path, make: Callable[[NumericConfig, Path], Any]) -> list[str]:
    """Switches that arrived in the session and changed nothing: without them the optimised graph is the same.

    A session has a key as it was set, whether anything in the graph answers to it or not.

    Args:
        config: that the session was made with.
        optimized: the file of its optimised graph.
        make: makes another session, and has its optimised graph written to a file.
    """
    found: list[str] = []
    for name, value in config.switches.items():
        switch = lookup("onnxruntime", name)
        if switch.side != "onnxruntime" or not switch.read_back.startswith(GRAPH) or value == default_of(switch):
            continue
        others = {key: other for key, other in config.switches.items() if key != name}
        plain = optimized.with_name(f"without-{len(found)}.onnx")
        make(replace(config, switches=others), plain)
        if _form(plain) == _form(optimized):
            found.append(name)
    return found


def _form(path: Path) -> list[tuple[str, int, int, tuple[bytes, ...]]]:
    """A graph's nodes, apart from the names in it and from the order in the file and of attributes: all of these change
    from one session to the next.
    """
    model = onnx.load(os.fspath(path), load_external_data=False)
    return sorted(
        (
            f"{n.domain}.{n.op_type}",
            len(n.input),
            len(n.output),
            tuple(sorted(a.SerializeToString(deterministic=True) for a in n.attribute)),
        )
        for n in model.graph.node
    )


def confirm(session: Any, config: NumericConfig) -> None:
    """Refuses a session that is not what the configuration asked for.

    Raises:
        InconclusiveError: another provider than the one that was asked for, or a value that did not arrive.
    """
    wanted = providers(config)
    present = list(session.get_providers())
    for provider, _ in wanted:
        if provider not in present:
            require_provider(provider)
            raise InconclusiveError(
                f"the session was to run on {provider} and runs on {', '.join(present)}",
                hint="its libraries may be missing: the log of a session made by hand says which",
            )
    settings = _read_settings(session, config)
    for name, value in config.switches.items():
        if name not in settings:
            continue
        text = text_of("onnxruntime", name, value)
        if not _same(settings[name], text):
            found = "nothing" if settings[name] is None else repr(settings[name])
            raise InconclusiveError(f"{name} was set to {text}, and the session has {found}", hint="leave it out")


def read_back(
    session: Any,
    config: NumericConfig,
    *,
    graph: OnnxGraph | None = None,
    optimized: Path | None = None,
    given: Path | None = None,
) -> dict[str, Any]:
    """What is in effect, as plain values for ``ConfigRun.effective``.

    Args:
        session: made with ``configure``.
        config: what was asked for.
        graph: that the session was made from.
        optimized: the file of ``options.optimized_model_filepath``.
        given: the file that the session was made from.

    Returns:
        ``providers``, ``provider_options`` (those asked for), ``optimization``, ``threads``, ``switches`` (value by
        name, as the session has it), ``unconfirmed`` (names that the session cannot tell about); with ``graph`` also
        ``dtype`` (of its weights); with ``optimized`` ``nodes`` (count by type), with ``given`` also ``changed`` (type →
        count before and after); ``placement`` (provider → count of nodes) if the session knows.
    """
    settings = _read_settings(session, config)
    if "dynamic_shapes" in config.switches:
        # Sizes that are not fixed have a name, or none, in place of a number.
        settings["dynamic_shapes"] = any(not isinstance(d, int) for value in session.get_inputs() for d in value.shape)
    options = session.get_session_options()
    levels = {getattr(ort.GraphOptimizationLevel, text, None): word for word, text in _levels().items()}
    found: dict[str, Any] = {
        "providers": list(session.get_providers()),
        "provider_options": {
            provider: {key: session.get_provider_options().get(provider, {}).get(key) for key in chosen}
            for provider, chosen in providers(config)
            if chosen
        },
        "optimization": levels.get(options.graph_optimization_level, str(options.graph_optimization_level)),
        "threads": options.intra_op_num_threads,
        "switches": settings,
        "unconfirmed": [name for name in config.switches if _is_ort(name) and name not in settings],
    }
    if graph is not None:
        found["dtype"] = dtype_in_effect(graph)
    if optimized is not None:
        found["nodes"] = op_counts(optimized)
        if given is not None:
            found["changed"] = {name: list(pair) for name, pair in op_changes(op_counts(given), found["nodes"]).items()}
    nodes = placed_nodes(session)
    if nodes is not None:
        found["placement"] = counts_of_providers(nodes)
    return found


def counts_of_providers(nodes: Sequence[PlacedNode]) -> dict[str, int]:
    """How many nodes each provider has."""
    return dict(Counter(node.provider for node in nodes))


def _read_settings(session: Any, config: NumericConfig) -> dict[str, Any]:
    """Switches as the session has them; those that it cannot tell about are left out."""
    options = session.get_session_options()
    held = session.get_provider_options()
    found: dict[str, Any] = {}
    for name in config.switches:
        home = lookup("onnxruntime", name).home
        if home == "property":
            found[name] = getattr(options, name)
        elif home == "session":
            try:
                found[name] = options.get_session_config_entry(_key(name))
            except RuntimeError:  # it has no such entry
                found[name] = None
        elif home == "provider" and name != "provider":
            found[name] = held.get(TENSORRT if name.startswith("trt_") else CUDA, {}).get(name)
        elif home == "environment":
            found[name] = os.environ.get(name)
    return found


def _same(found: Any, text: str) -> bool:
    """Whether a value that was read is the one that was set; providers spell flags in their own way."""
    words = {"true": "1", "false": "0"}
    read = str(int(found)) if isinstance(found, bool) else str(found)
    return words.get(read.lower(), read) == words.get(text.lower(), text)


def _is_ort(name: str) -> bool:
    return lookup("onnxruntime", name).side == "onnxruntime"


def _levels() -> dict[str, str]:
    switch = next(s for s in ONNXRUNTIME if s.name == "optimization")
    return {str(word): text for word, text in switch.spelling.items()}

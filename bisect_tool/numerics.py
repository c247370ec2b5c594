"""Configurations of numbers: checked against the table in ``switches.py``, compared, and put into words.

ONNX Runtime takes misspelt keys, values and pass names without a word, so everything goes through here before it
reaches a library.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.records import ConfigPair, NumericConfig
from bisect_tool.switches import EXPORT, NOT_HERE, ONNXRUNTIME, PASSES, REQUIRED_PASSES, TORCH, Switch, Value, literal

DOCS = "docs/switches.md"
PASS_SEPARATOR = ";"
"""Between the names in ``disabled_passes``; with a comma, or a blank beside it, ONNX Runtime ignores them."""

_TABLE: Mapping[tuple[str, str], Switch] = {(s.side, s.name): s for s in (*TORCH, *ONNXRUNTIME, *EXPORT)}
_FIELDS = ("backend", "device", "dtype", "optimization", "threads", "exporter", "opset", "constant_folding")
_REFERENCE = "onnx-reference"
_ACTUAL_ONLY = ("optimization", "exporter", "opset", "constant_folding")
_HOMES: Mapping[str, str] = {
    "field": "key of its own",
    "global": "global flag",
    "context": "context around the run",
    "model": "model and inputs",
    "property": "property of `SessionOptions`",
    "session": "session key",
    "provider": "provider option",
    "environment": "environment variable",
    "export": "exporter",
}


_MEANT: Mapping[tuple[str, object], str] = {
    ("provider", "cuda"): 'to run on CUDA set device = "cuda"',
    ("provider", "CUDAExecutionProvider"): 'to run on CUDA set device = "cuda"',
    ("provider", "cpu"): 'device = "cpu" is what runs without it',
    ("provider", "CPUExecutionProvider"): 'device = "cpu" is what runs without it',
    ("provider", "TensorrtExecutionProvider"): 'set provider = "tensorrt", with device = "cuda"',
}
"""Hints for values that are meant well, and said elsewhere."""

_SYNONYMS = (
    frozenset(["float16", "fp16", "half"]),
    frozenset(["bfloat16", "bf16"]),
    frozenset(["float32", "fp32", "float", "single"]),
    frozenset(["float64", "fp64", "double"]),
)


# Looking up and checking


def lookup(side: str, name: str) -> Switch:
    """The switch of that name on that side; ``onnxruntime`` has the exporter's too.

    Raises:
        BisectError: there is none; the message says on which side there is, or which names come near.
    """
    sides = _sides(side)
    for each in sides:
        if (each, name) in _TABLE:
            return _TABLE[each, name]
    for owner, known, reason in NOT_HERE:
        if known == name and owner in sides:
            raise BisectError(f"{name} cannot be set by a pair", hint=reason)
    others = sorted({s for s, n in _TABLE if n == name})
    if others:
        raise BisectError(f"{name} is a switch of {' and '.join(others)}, not of {side}", hint=f"see {DOCS}")
    raise BisectError(f"{side} has no switch {name!r}", hint=did_you_mean(name, [n for s, n in _TABLE if s in sides]))


def _sides(side: str) -> tuple[str, ...]:
    return ("onnxruntime", "export") if side in ("onnxruntime", _REFERENCE) else (side,)


def check(side: str, name: str, value: object, *, passes: Iterable[str] | None = None) -> Switch:
    """Refuses a name or a value that is not in the table.

    Args:
        side: ``torch``, ``onnxruntime`` or ``export``.
        name: of the switch.
        value: for ``disabled_passes`` names with ``;`` between them.
        passes: names that the installed ONNX Runtime knows; ``None``: those of the table.

    Returns:
        The switch.

    Raises:
        BisectError: the name or the value is not valid; the nearest valid ones are in the hint.
    """
    switch = lookup(side, name)
    values = switch.values
    if values.kind == "passes" and isinstance(value, str):
        check_passes(split_passes(value), passes)
        return switch
    if values.kind == "flag":
        fits = isinstance(value, bool)
    elif values.kind == "choice":
        # 1 == True, but only one of the two was meant.
        fits = any(type(value) is type(choice) and value == choice for choice in values.choices)
    elif values.kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
        fits = values.minimum <= value and (values.maximum is None or value <= values.maximum)
    else:
        fits = False
    if not fits and (name, value) in _MEANT:
        raise BisectError(f"{name} = {literal(value)}: {switch.side} knows no such value", hint=_MEANT[name, value])
    if not fits:
        near = _meant(switch, value) if isinstance(value, str) else []
        hint = f"did you mean {literal(near[0])}? valid: {values}" if near else f"valid: {values}"
        raise BisectError(f"{name} = {literal(value)}: {switch.side} knows no such value", hint=hint)
    return switch


def _meant(switch: Switch, value: str) -> list[str]:
    """Values that a wrong one may stand for: by another name of it, by the library's own, or by one that comes near."""
    choices = [str(choice) for choice in switch.values.choices]
    same = [c for c in choices if any({c, value.lower()} <= group for group in _SYNONYMS)]
    own = [str(choice) for choice, text in switch.spelling.items() if text == value and str(choice) in choices]
    return same or own or nearest(value, choices)


def check_passes(names: Iterable[str], known: Iterable[str] | None = None) -> None:
    """Refuses names that would disable nothing.

    Args:
        names: of passes.
        known: those of the installed ONNX Runtime; ``None``: those of the table.

    Raises:
        BisectError: a name is not known, or is that of a pass that cannot be disabled.
    """
    valid = {p.name for p in PASSES} if known is None else set(known)
    for name in names:
        if name in REQUIRED_PASSES:
            raise BisectError(f"pass {name} cannot be disabled: it always runs", hint="leave it out")
        if name not in valid:
            raise BisectError(f"onnxruntime has no optimiser pass {name!r}", hint=did_you_mean(name, sorted(valid)))


def split_passes(value: str) -> tuple[str, ...]:
    """Names in a value of ``disabled_passes``."""
    return tuple(part for part in value.split(PASS_SEPARATOR) if part)


def check_config(config: NumericConfig, *, passes: Iterable[str] | None = None) -> None:
    """Refuses what is misspelt, not valid, without effect on the device, or contradictory.

    Args:
        config: of either side.
        passes: names that the installed ONNX Runtime knows; ``None``: those of the table.

    Raises:
        BisectError: what is wrong, with the nearest valid names.
        InconclusiveError: the configuration is valid, but not for a model of this dtype.
    """
    for name in _FIELDS:
        value = getattr(config, name)
        if value is None or name == "backend":
            continue
        if name in _ACTUAL_ONLY and config.backend == "torch":
            raise BisectError(f"{name} is no key of PyTorch's side", hint="it belongs to the actual side")
        if name != "exporter" or value in ("dynamo", "torchscript"):  # a given file has some other producer
            check(config.backend, name, value)
    for name, value in config.switches.items():
        switch = check(config.backend, name, value, passes=passes)
        if switch.home == "field":
            raise BisectError(f"{name} is a key of its own, not one of the switches", hint=f"see {DOCS}")
        if config.device not in switch.devices:
            device = switch.devices[0]
            raise BisectError(
                f"{name} acts on {device} only, and this side runs on {config.device}",
                hint=f"leave it out, or set device to {device}",
            )
    if config.backend == _REFERENCE:
        _check_reference(config)
    if "float32_matmul_precision" in config.switches:
        double = {"matmul_tf32", "mkldnn_matmul_fp32_precision"} & config.switches.keys()
        if double:
            raise BisectError(
                f"float32_matmul_precision sets what {' and '.join(sorted(double))} sets", hint="give one of them"
            )
    if "emulate" in config.switches and config.dtype not in (None, "float32"):
        raise InconclusiveError(
            f"emulate rounds float32 operands, and the model runs in {config.dtype}", hint='set dtype = "float32" too'
        )
    options = [name for name in config.switches if name.startswith("trt_")]
    if options and config.switches.get("provider") != "tensorrt":
        raise BisectError(f"{options[0]} is an option of TensorRT", hint='set provider = "tensorrt" too')


def _check_reference(config: NumericConfig) -> None:
    """ONNX's own evaluator has one way to compute a graph."""
    own = [name for name in config.switches if lookup(_REFERENCE, name).side != "export"]
    if config.device != "cpu":
        own.insert(0, f"device = {literal(config.device)}")
    if config.optimization not in (None, "off"):
        own.insert(0, f"optimization = {literal(config.optimization)}")
    if config.threads:
        own.insert(0, f"threads = {config.threads}")
    if own:
        raise BisectError(
            f"{own[0]}: the reference evaluator has no such switch",
            hint=f"leave it out, or backend = {literal(_REFERENCE)}",
        )


def check_pair(pair: ConfigPair) -> None:
    """Refuses a pair whose sides are not valid, contradict each other, or are not what the name says.

    Raises:
        BisectError: what is wrong.
    """
    check_config(pair.expected)
    check_config(pair.actual)
    environment(pair)
    emulated = pair.expected.switches.get("emulate")
    if emulated and f"{emulated}-emulated" not in pair.name:
        raise BisectError(
            f"pair {pair.name!r} is emulated on the CPU, and its name does not say so",
            hint=f"put {emulated}-emulated into the name",
        )


def environment(pair: ConfigPair) -> dict[str, str]:
    """Environment variables that the pair's process has to start with.

    Raises:
        BisectError: the two sides, which share a process, want different values of one variable.
    """
    found: dict[str, str] = {}
    for config in (pair.expected, pair.actual):
        for name, value in config.switches.items():
            if lookup(config.backend, name).home != "environment":
                continue
            text = text_of(config.backend, name, value)
            if found.setdefault(name, text) != text:
                raise BisectError(
                    f"pair {pair.name!r}: {name} is {found[name]} on one side and {text} on the other",
                    hint="both sides run in one process, which has one environment",
                )
    return found


# Suspects

_FINEST = 100
"""Stands for "whatever the model is in", which nothing here makes coarser."""

_BITS: Mapping[tuple[str, str], Mapping[Value | None, int]] = {
    ("torch", "dtype"): {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7},
    ("torch", "autocast"): {"off": _FINEST, "float16": 10, "bfloat16": 7},
    ("torch", "emulate"): {None: _FINEST, "tf32": 10, "fp16": 10, "bf16": 7},
    ("torch", "float32_matmul_precision"): {"highest": _FINEST, "high": 10, "medium": 7},
    **{
        ("torch", f"mkldnn_{kind}_fp32_precision"): {"ieee": _FINEST, "tf32": 10, "bf16": 7}
        for kind in ("matmul", "conv", "rnn")
    },
    **{
        ("torch", name): {False: _FINEST, True: 10}
        for name in (
            "matmul_tf32",
            "cudnn_conv_tf32",
            "cudnn_rnn_tf32",
            "fp16_reduced_precision_reduction",
            "bf16_reduced_precision_reduction",
            "fp16_accumulation",
            "fp16_bf16_reduction_math_sdp",
        )
    },
    **{
        ("onnxruntime", name): {False: _FINEST, True: 10}
        for name in (
            "use_tf32",
            "trt_fp16_enable",
            "trt_bf16_enable",
            "trt_int8_enable",
            "mlas.enable_gemm_fastmath_arm64_bfloat16",
            "mlas.use_lut_gemm",
        )
    },
    ("onnxruntime", "mlas.qnbit.force_fp32"): {False: 10, True: _FINEST},
    **{(side, "NVIDIA_TF32_OVERRIDE"): {"0": _FINEST, None: 23, "1": 10} for side in ("torch", "onnxruntime")},
}
"""Bits of a mantissa that are left under a setting, as far as one can say: only their order matters."""


@dataclass(frozen=True, slots=True)
class Step:
    """One switch that two pairs set differently: a suspect.

    Attributes:
        side: ``torch``, ``onnxruntime`` or ``export``.
        name: of the switch.
        before, after: its values; ``None``: not set.
        title: of the switch.
        along: another switch of the side that goes with it wherever it is set at all: one flag of the library stands
            for both, and says nothing while they differ.
    """

    side: str
    name: str
    before: Value | None
    after: Value | None
    title: str
    along: str | None = None

    def code(self, device: str = "cpu") -> str | None:
        """The line of Python that makes this step; ``None`` where it only leaves something unset."""
        return None if self.after is None else code_for(self.side, self.name, self.after, device)

    @property
    def idle(self) -> bool:
        """Whether it only says what the library does anyway: such a step is no suspect."""
        if self.side == "export" and lookup(self.side, self.name).home == "field":
            return False  # unset means a given graph, which nothing is known about
        default = default_of(lookup(self.side, self.name))
        before, after = (default if value is None else value for value in (self.before, self.after))
        return before == after

    @property
    def coarser(self) -> bool:
        """Whether it leads to less precision: what fails in more precision is not mended by that, only hidden."""
        bits = _BITS.get((self.side, self.name))
        if bits is None:
            return False
        default = default_of(lookup(self.side, self.name))
        before, after = (bits.get(default if value is None else value) for value in (self.before, self.after))
        return before is not None and after is not None and after < before


def steps(start: ConfigPair, goal: ConfigPair) -> tuple[Step, ...]:
    """What has to change to come from one pair to the other, one switch each, in the order of the table."""
    found: list[Step] = []
    for before, after in ((start.expected, goal.expected), (start.actual, goal.actual)):
        old, new = _settings(before), _settings(after)
        for side, name in _TABLE:
            if name == "optimization" and _REFERENCE in (before.backend, after.backend):
                continue  # it has none, and that comes with it
            if side in _sides(before.backend) and old.get(name) != new.get(name):
                found.append(Step(side, name, old.get(name), new.get(name), title_of(side, name)))
        if before.backend == "torch":
            found = _joined(found, old, new)
    return tuple(found)


_CONV, _RNN = "cudnn_conv_tf32", "cudnn_rnn_tf32"


def _joined(found: list[Step], old: Mapping[str, Value], new: Mapping[str, Value]) -> list[Step]:
    """Convolutions and recurrences as one step of cuDNN's TF32, unless they are set apart."""
    if all(each.get(_RNN, each.get(_CONV)) == each.get(_CONV) for each in (old, new)):
        found = [step for step in found if step.name != _RNN]
        return [replace(step, title="TF32 in cuDNN", along=_RNN) if step.name == _CONV else step for step in found]
    return found


def title_of(side: str, name: str) -> str:
    """A switch as a suspect; one that either side has comes with the side."""
    title = lookup(side, name).title
    owners = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
    both = all((each, name) in _TABLE for each in owners)
    return f"{owners[side]}'s {title}" if both and side in owners else title


def default_of(switch: Switch) -> Value | None:
    """What the library does if nobody sets the switch; ``None`` where that is no one value."""
    choices = (True, False) if switch.values.kind == "flag" else switch.values.choices
    return next((choice for choice in choices if literal(choice).strip('"') == switch.default), None)


def take(pair: ConfigPair, chosen: Iterable[Step], *, back: bool = False) -> ConfigPair:
    """The pair with some steps made, or taken ``back``; its name and ``gating`` stay."""
    expected, actual = pair.expected, pair.actual
    for step in chosen:
        value = step.before if back else step.after
        if step.side == "torch":
            expected = with_setting(expected, step.name, value)
            if step.along is not None and step.along in expected.switches:
                expected = with_setting(expected, step.along, value)
        else:
            actual = with_setting(actual, step.name, value)
    return replace(pair, expected=expected, actual=actual)


def with_setting(config: NumericConfig, name: str, value: Value | None) -> NumericConfig:
    """The configuration with one field or switch set; ``None`` leaves it unset."""
    if name == "backend":
        # What optimises nothing has one level, and its name is that of none.
        if value == _REFERENCE:
            return replace(config, backend="onnx-reference", optimization="off")
        return replace(config, backend="onnxruntime")
    if name in _FIELDS:
        # An unset number of threads is 0, an unset device the CPU.
        unset: dict[str, Any] = {"threads": 0, "device": "cpu"}
        fields: dict[str, Any] = {name: unset.get(name) if value is None else value}
        return replace(config, **fields)
    switches = {key: old for key, old in config.switches.items() if key != name}
    return replace(config, switches=switches if value is None else {**switches, name: value})


def _settings(config: NumericConfig) -> dict[str, Value]:
    fields = {name: getattr(config, name) for name in _FIELDS}
    return {**{name: value for name, value in fields.items() if value is not None}, **config.switches}


# Words


def text_of(side: str, name: str, value: Value) -> str:
    """The library's own spelling of a value: ``1`` for true in session keys, ``ORT_ENABLE_ALL`` for ``all``."""
    switch = lookup(side, name)
    if value in switch.spelling:
        return switch.spelling[value]
    return str(int(value)) if isinstance(value, bool) else str(value)


def code_for(side: str, name: str, value: Value, device: str = "cpu", *, newer: bool | None = None) -> str:
    """The line of Python that sets a switch by hand, for a model on a device.

    Args:
        side, name, value: of the switch.
        device: of the model.
        newer: as newer versions of the library have it; ``None``: as the installed one does.
    """
    switch = lookup(side, name)
    if switch.newer is not None and (_has_newer(switch.newer.since) if newer is None else newer):
        return switch.newer.code.format(text=switch.newer.spelling.get(value, value))
    return switch.code.format(value=repr(value), text=text_of(side, name, value), device=device)


def _has_newer(since: str) -> bool:
    """Whether the installed PyTorch is of a version at least; where there is none, the newest counts."""
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return True
    return _version(installed) >= _version(since)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """At most three names that come near a misspelt one, case aside; the best first."""
    by_lower: dict[str, str] = {}
    for name in known:
        by_lower.setdefault(name.lower(), name)
    lower = word.lower()
    found = difflib.get_close_matches(lower, by_lower, n=3)
    # The last part of a dotted key is what people remember of it.
    found += [full for full in by_lower if full.rpartition(".")[2] == lower and full not in found]
    return [by_lower[name] for name in found[:3]]


def did_you_mean(word: str, known: Iterable[str], where: str = f"{DOCS} lists all") -> str:
    """A hint for a misspelt name: what comes near, or all names if they are few, or where they are listed."""
    names = list(known)
    near = nearest(word, names)
    listed = f"valid: {', '.join(names)}" if len(names) <= 12 else where
    return f"did you mean {' or '.join(near)}? {listed}" if near else listed


def switches_markdown() -> str:
    """The content of ``docs/switches.md``."""
    lines = [
        "# Switches",
        "",
        "Every switch that can change a number, as matrix files and reports name it.",
        "Generated from `bisect_tool/switches.py`: change the table there, then run `scripts/docs-switches`.",
        "",
        "- *Since* is the first version that has it; `-`: all supported ones (PyTorch 2.6, ONNX Runtime 1.20).",
        "- *Seen by* is how one knows that it took effect; neither library refuses all that it does not know.",
        "- *Own process*: it is read once or stays with the process, so that a pair with it runs apart.",
    ]
    for title, keys, table in (
        ("PyTorch", "Keys of `[pair.expected]`.", TORCH),
        ("ONNX Runtime", "Keys of `[pair.actual]`. Names with dots are session keys.", ONNXRUNTIME),
        ("Export", "Keys of `[pair.export]`.", EXPORT),
    ):
        lines += ["", f"## {title}", "", keys, ""]
        lines += ["| name | values | default | what it changes | device | since | seen by | set as |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [_row(switch) for switch in table]
        lines += ["", "By hand:", "", "```python", *(line for switch in table for line in _examples(switch)), "```"]
    lines += ["", "## Not in a matrix", "", "These are refused, each for its reason.", ""]
    lines += ["| name | why |", "|---|---|", *(f"| `{name}` | {reason} |" for _, name, reason in NOT_HERE)]
    lines += [
        "",
        "## Optimiser passes",
        "",
        "Values of `disabled_passes`, as ONNX Runtime spells them; it ignores wrong names, this tool refuses them.",
        "A *rule* runs inside `Level1_RuleBasedTransformer` or `Level2_RuleBasedTransformer`,"
        " and the session's log does not name it.",
        "These always run: " + ", ".join(f"`{name}`" for name in sorted(REQUIRED_PASSES)) + ".",
        "",
        "| name | from level | what it rewrites |",
        "|---|---|---|",
    ]
    lines += [f"| `{p.name}` | {p.level}{', rule' if p.rule else ''} | {p.what} |" for p in PASSES]
    return "\n".join(lines) + "\n"


def _row(switch: Switch) -> str:
    cells = (
        f"`{switch.name}`",
        str(switch.values),
        switch.default,
        switch.meaning,
        "both" if len(switch.devices) == 2 else switch.devices[0],
        switch.since or "-",
        switch.read_back,
        _HOMES[switch.home] + (", own process" if switch.sticky else ""),
    )
    return "| " + " | ".join(cells) + " |"


def _examples(switch: Switch) -> list[str]:
    """The switch's lines of code, those of older and newer versions, with a value that is not the default."""
    special: dict[str, Value] = {"opset": 18, "disabled_passes": "ConvBNFusion;GeluFusionL2"}
    value = special.get(switch.name)
    if value is None and switch.values.kind == "flag":
        value = not default_of(switch)
    elif value is None and switch.values.kind == "choice":
        value = next((c for c in switch.values.choices if c != default_of(switch)), switch.values.choices[0])
    elif value is None:
        value = 16 if switch.name == "sdpa_kernel" else max(switch.values.minimum, 1)
    old = code_for(switch.side, switch.name, value, newer=False)
    if switch.newer is None:
        return [old]
    newer = code_for(switch.side, switch.name, value, newer=True)
    return [f"{newer}  # from torch {switch.newer.since} on", f"{old}  # before"]

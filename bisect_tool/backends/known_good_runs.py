"""PyTorch's own known-good runs of one sample: what rounding does to each stage, without any ONNX file.

- against float64, and against float64 with made-up rounding (:mod:`bisect_tool.backends.replay`), which is what another
  correct implementation in the same precision may return;
- each stage on the run's own inputs, with made-up rounding again: the error that a correct stage makes itself;
- under PyTorch's own allowed variations: other threads, no oneDNN, deterministic algorithms, another place in a batch.
  They count as long as they are no more than rounding: a model that looks at its neighbours in a batch, or that draws
  random numbers, shows something else;
- in reduced precision, where the user allows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bisect_tool.backends.activations import ActivationStore
from bisect_tool.backends.buffers import BufferPool
from bisect_tool.backends.floors import strict_products
from bisect_tool.backends.preflight import explain_forward_error
from bisect_tool.backends.replay import (
    AS_RUN,
    EXACT,
    STRICT,
    Arithmetic,
    CannotReplayError,
    replay_bytes,
    replay_values,
    rounded,
    slice_of,
    slice_of_all,
)
from bisect_tool.backends.structures import map_tensors
from bisect_tool.backends.torch_runner import TorchRun, to_numpy
from bisect_tool.backends.torch_switches import applied, placed, require_device
from bisect_tool.calibration.known_good import SampleErrors, StageErrors, kinds, turned_over, within_rounding
from bisect_tool.compare import MAIN_LAYER, hands_on, stage_inputs
from bisect_tool.errors import BisectError
from bisect_tool.judging import is_step
from bisect_tool.matrix import Matrix
from bisect_tool.metrics import kind_of_name, measure
from bisect_tool.noise import BEYOND, assess, epsilon, is_settled
from bisect_tool.recorder import Op, Value
from bisect_tool.records import ErrorMetrics, NumericConfig, Place, Stage, StageRef
from bisect_tool.selection import Selection, select

Array = NDArray[Any]

ACCEPTED = ("tf32", "bf16", "fp16")
"""Reductions of precision that a user may allow."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A model and one sample, ready to run. ``place``: see :class:`bisect_tool.pipeline.LoadedCase`."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Variations:
    """What is varied.

    Attributes:
        draws: of made-up rounding.
        torch: switches of PyTorch's side by what they are called in the table.
        batch: the sample is put beside itself in a batch, where its inputs have a first axis.
        accepted: of :data:`ACCEPTED`.
    """

    draws: int = 2
    torch: tuple[tuple[str, NumericConfig], ...] = ()
    batch: bool = True
    accepted: tuple[str, ...] = ()


def usual_variations(accepted: Sequence[str] = ()) -> Variations:
    """Those of the CPU.

    Raises:
        BisectError: a reduction of precision that there is not.
    """
    for name in accepted:
        if name not in ACCEPTED:
            raise BisectError(f"--accept {name}: no such reduction of precision", hint=f"one of {', '.join(ACCEPTED)}")
    threads = torch.get_num_threads()
    other = 1 if threads > 1 else 2
    return Variations(
        torch=(
            (f"PyTorch with {other} thread{'s' if other > 1 else ''}", NumericConfig("torch", threads=other)),
            ("PyTorch without oneDNN", NumericConfig("torch", switches={"mkldnn": False})),
            ("PyTorch, deterministic", NumericConfig("torch", switches={"deterministic_algorithms": "warn"})),
        ),
        accepted=tuple(accepted),
    )


def with_matrix(variations: Variations, matrix: Matrix) -> Variations:
    """The variations with PyTorch's side of each of a matrix's pairs; those that do more than round are left out later."""
    known = {str(config) for _, config in variations.torch}
    more = []
    for pair in matrix.pairs:
        config = pair.expected
        allowed = config.switches.get("emulate") in variations.accepted
        if str(config) not in known and config != NumericConfig("torch") and not allowed:
            known.add(str(config))
            more.append((f"PyTorch of {pair.name}", config))
    return replace(variations, torch=(*variations.torch, *more))


def perturbed(sample: Sample, seed: int, by: float) -> Sample:
    """The sample with each floating number changed by a random share of itself, ``by`` at most; zeros stay zeros."""
    source = torch.Generator().manual_seed(seed)

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return tensor.clone()
        factors = torch.rand(tensor.shape, generator=source).mul_(2).sub_(1).mul_(by).add_(1)
        return (tensor * factors.to(tensor.device)).to(tensor.dtype)

    args, kwargs = map_tensors(tuple(sample.args), changed), map_tensors(dict(sample.kwargs), changed)
    return Sample(sample.module, args, kwargs, sample.place)


def torch_errors(
    sample: Sample,
    variations: Variations,
    level: str,
    stages: tuple[str, ...],
    budget: int,
    seed: int,
) -> SampleErrors:
    """Runs PyTorch in all ways, and returns the largest error of each stage.

    Args:
        sample: model and inputs.
        variations: what is varied.
        level, stages: which stages, as for a comparison.
        budget: bytes of activations in memory, and of a replay.
        seed: of made-up rounding: samples get other draws.

    Raises:
        BisectError: the model can't run on the sample, or an output has no number in it.
    """
    with _run(sample, level, budget, tape=True) as plain:
        _require_numbers(plain)
        selection = select(plain.run.trace, level, stages, ())
        known = _Known(plain, selection)
        draws = [rounded(seed * variations.draws + draw) for draw in range(variations.draws)]
        known.alone(draws, budget, allowed=bool(variations.accepted))
        usual = known.replayed(draws, budget)
        for name, config in variations.torch:
            with contextlib.suppress(_NotApplicableError), _run(sample, level, budget, config) as other:
                known.varied(name, known.against(other), usual)
        if variations.batch:
            with contextlib.suppress(_NotApplicableError), _run(_beside_itself(sample), level, budget) as other:
                for half in (0, 1):
                    known.varied("PyTorch, place in a batch", known.against(other, half), usual)
        for name in variations.accepted:
            config = NumericConfig("torch", switches={"emulate": name})
            with contextlib.suppress(_NotApplicableError), _run(sample, level, budget, config) as other:
                # Allowed by the user, however large it is.
                known.varied(f"PyTorch in {name}", known.against(other), {})
            with applied(config):
                known.alone([AS_RUN], budget, allowed=True)
        return known.errors


def _require_numbers(plain: _Held) -> None:
    """NaN is equal to NaN, and would look like a run without any error.

    Raises:
        BisectError: an output holds nothing else, or infinities.
    """
    for name, value in plain.run.trace.outputs:
        array = plain.store.fetch(value)
        if array.dtype.kind in "fcV" and array.size and not np.isfinite(array.astype(np.complex128)).any():
            raise BisectError(
                f"output {name}: nothing but NaN or infinite values, which show no rounding",
                hint="leave this sample out, or look at the sample and the weights for NaN",
            )


class _NotApplicableError(Exception):
    """A variation that this model, or this machine, does not have."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A run with its values."""

    run: TorchRun
    store: ActivationStore


@contextlib.contextmanager
def _run(
    sample: Sample, level: str, budget: int, config: NumericConfig | None = None, *, tape: bool = False
) -> Iterator[_Held]:
    """Runs the model and keeps its values as long as the context lasts.

    Raises:
        BisectError: it does not run as it is given.
        _NotApplicableError: it does not run under a configuration, or on a batch.
    """
    store = ActivationStore(budget // 4, BufferPool())
    module = sample.module

    def on_value(value: Value, tensor: torch.Tensor) -> None:
        store.keep(value.id, tensor)

    args, kwargs = (
        map_tensors(tuple(sample.args), torch.Tensor.clone),
        map_tensors(dict(sample.kwargs), torch.Tensor.clone),
    )
    if config is not None:
        try:
            require_device(config.device)
            module, args, kwargs = placed(module, args, kwargs, config)
        except BisectError as error:
            raise _NotApplicableError(error.message) from error
    run = TorchRun(module, args, kwargs, on_value, every_op=level == "op", tape=tape, place=sample.place)
    store.attach(run.recorder)
    try:
        try:
            with applied(config) if config is not None else contextlib.nullcontext():
                run.start()
        except (Exception, SystemExit) as error:  # anything may come out of a user's forward
            if not tape:
                raise _NotApplicableError(str(error)) from error
            if isinstance(error, BisectError):
                raise
            raise explain_forward_error(error, run.module, run.args, run.kwargs) from error
        store.settle()
        yield _Held(run, store)
    finally:
        store.close()


def _beside_itself(sample: Sample) -> Sample:
    """The sample twice, along the first axis of each tensor that has one."""
    sizes = set()

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 0 or tensor.layout is not torch.strided:
            raise _NotApplicableError
        sizes.add(tensor.shape[0])
        return torch.cat([tensor, tensor])

    args, kwargs = map_tensors(tuple(sample.args), doubled), map_tensors(dict(sample.kwargs), doubled)
    if len(sizes) != 1:  # no axis that all of them share
        raise _NotApplicableError
    return Sample(sample.module, args, kwargs, sample.place)


class _Known:
    """PyTorch's plain run, and what is found out about its stages."""

    def __init__(self, plain: _Held, selection: Selection):
        self.plain = plain
        self.selection = selection
        self.tape = plain.run.recorder.trace
        self.trace = plain.run.trace
        self.shown = selection.shown
        self.floating = [stage for stage in self.shown if kind_of_name(stage.dtype) in ("float", "complex")]
        self.by_value: dict[int, list[Stage]] = {}
        for stage in self.floating:
            self.by_value.setdefault(stage.value, []).append(stage)
        self.errors = SampleErrors()
        self.off: set[int] = set()
        self.steps = {stage.value: stage for stage in self.shown if is_step(stage)}
        for ref, (kind, dtype) in kinds(self.shown).items():
            self.errors.stages[ref] = StageErrors(kind, dtype, 0.0)
        for stage in self.floating:
            self.errors.stages[stage.ref].size = _rms(plain.store.fetch(stage.value))
        plain.store.retain(())

    # -- made-up rounding ---------------------------------------------------------------------------------------------

    def replayed(self, draws: Sequence[Arithmetic], budget: int) -> dict[StageRef, float]:
        """Against float64 and made-up rounding; what is usual for each stage."""
        usual: dict[StageRef, float] = {
            stage.ref: epsilon(stage.dtype) for stage in self.floating if epsilon(stage.dtype)
        }
        targets = {*self.by_value, *self.steps}
        try:
            ops = slice_of_all(self.tape, targets, set())
            if replay_bytes(self.tape, ops) > budget:
                raise CannotReplayError("float64 needs more than the memory budget")
            with strict_products():
                for name, arithmetic in [
                    ("PyTorch against float64", EXACT),
                    *(("made-up rounding", draw) for draw in draws),
                ]:
                    found = self._replay(ops, targets, arithmetic)
                    behind = self._behind_steps(found)
                    for value in found.keys() & self.by_value.keys() - behind:
                        metrics = found[value]
                        for stage in () if value in self.off else self.by_value[value]:
                            self.errors.stages[stage.ref].see_total(metrics)
                        for stage in self.by_value[value]:
                            if np.isfinite(metrics.rel_l2):
                                usual[stage.ref] = max(usual.get(stage.ref, 0.0), metrics.rel_l2)
                    self.errors.ran(name)
        except CannotReplayError as error:
            self.errors.left_out.append(f"float64: {error}")
        return usual

    def _replay(self, ops: list[Op], targets: set[int], arithmetic: Arithmetic) -> dict[int, ErrorMetrics]:
        """Runs operations anew, and measures each wanted value as soon as it is made."""
        found: dict[int, ErrorMetrics] = {}

        def after(op: Op, results: list[torch.Tensor]) -> None:
            for value, tensor in zip(op.outputs, results, strict=True):
                if value in targets:
                    expected = self.plain.store.fetch(value)
                    found[value] = measure(expected, _as(expected, tensor))
                    self.plain.store.retain(())

        replay_values(self.tape, set(), ops, self.plain.store.tensor, arithmetic, after=after)
        return found

    def alone(self, arithmetics: Sequence[Arithmetic], budget: int, *, allowed: bool) -> None:
        """Each stage by itself, on the run's own inputs, against the run.

        Args:
            arithmetics: in which.
            budget: bytes of a replay.
            allowed: the run may be further from float64 than rounding; else what it does there is not known good, nor is
                anything that reads from it.
        """
        values = {stage.value for stage in self.trace.stages}
        starts = {value for _, value in self.trace.inputs}
        unknown, off = [], []
        for stages in self._layers():
            judged = [stage for stage in stages if stage not in self.selection.outputs]
            cut = {stage.value for stage in stages}
            cut |= {v for stage in judged for v in stage_inputs(stage, self.trace.parents, values)}
            done: set[int] = set()
            for stage in stages:
                value = stage.value
                if value not in self.by_value or hands_on(stage) or value in done:
                    continue
                done.add(value)
                try:
                    ops = slice_of(self.tape, value, (cut | starts) - {value})
                    if not ops or replay_bytes(self.tape, ops) > budget:
                        continue
                    with strict_products():
                        found = [self._replay(ops, {value}, arithmetic)[value] for arithmetic in arithmetics]
                        if not allowed and self._is_off(ops, stage, found, arithmetics):
                            off.append(stage)
                            continue
                except CannotReplayError as error:
                    unknown.append((stage.ref, str(error)))
                    continue
                for alias in self.by_value[value]:
                    for metrics in found:
                        self.errors.stages[alias.ref].see_local(metrics)
        if unknown:
            self.errors.left_out.append(f"rounding of {_and_more([ref for ref, _ in unknown])} alone: {unknown[0][1]}")
        if off:
            self.off |= self._reached({stage.value for stage in off})
            self.errors.left_out.append(
                f"PyTorch at {_and_more([stage.ref for stage in off])}: further from float64 than rounding explains, as in "
                "reduced precision; --accept tf32, bf16 or fp16 allows that"
            )

    def _is_off(
        self, ops: list[Op], stage: Stage, found: Sequence[ErrorMetrics], arithmetics: Sequence[Arithmetic]
    ) -> bool:
        """Whether PyTorch's run made error in a stage that rounding does not explain."""
        if all(metrics.problem is None and is_settled(metrics.rel_l2, stage.dtype) for metrics in found):
            return False
        expected = self.plain.store.fetch(stage.value)
        store = self.plain.store.tensor

        def run(arithmetic: Arithmetic) -> Array:
            return replay_values(self.tape, {stage.value}, ops, store, arithmetic)[stage.value]

        noise = assess(run(EXACT), expected, expected, stage.dtype, run(STRICT), map(run, arithmetics))
        return noise.ratio is not None and noise.ratio > BEYOND

    def _behind_steps(self, found: Mapping[int, ErrorMetrics]) -> set[int]:
        """Values of steps that rounding turned, and what was made of them: they are whole steps off, which is no measure."""
        turned = {v for v, stage in self.steps.items() if v in found and turned_over(stage.dtype, found[v])}
        return self._reached(turned)

    def _reached(self, values: set[int]) -> set[int]:
        """Values, and what was made of them."""
        found = set(values)
        for value in sorted(self.trace.parents):
            if not found.isdisjoint(self.trace.parents[value]):
                found.add(value)
        return found

    def _layers(self) -> list[Sequence[Stage]]:
        """Stages that start from each other's values; outputs of the model are what comes after the outermost ones."""
        layers = dict(self.selection.layers)
        layers[MAIN_LAYER] = (*layers.get(MAIN_LAYER, ()), *self.selection.outputs)
        return list(layers.values())

    # -- other runs ---------------------------------------------------------------------------------------------------

    def against(self, other: _Held, half: int | None = None) -> dict[StageRef, ErrorMetrics]:
        """Errors of another run against the plain one; ``half``: of a batch of two."""
        there = {stage.ref: stage for stage in other.run.trace.stages}
        found: dict[StageRef, ErrorMetrics] = {}
        measured: dict[int, ErrorMetrics] = {}
        for stage in self.shown:
            if stage.value not in self.by_value and stage.value not in self.steps:
                continue
            twin = there.get(stage.ref)
            if twin is None:
                continue
            expected, actual = self.plain.store.fetch(stage.value), other.store.fetch(twin.value)
            if half is not None:
                length = expected.shape[0] if expected.ndim else 0
                if actual.shape != (2 * length, *expected.shape[1:]):
                    continue
                actual = actual[half * length : (half + 1) * length]
            if actual.shape == expected.shape:
                measured[stage.value] = metrics = measure(expected, actual.astype(expected.dtype, copy=False))
                if stage.value in self.by_value:
                    found[stage.ref] = metrics
            self.plain.store.retain(())
            other.store.retain(())
        behind = self._behind_steps(measured)
        behind_refs = {stage.ref for value in behind for stage in self.by_value.get(value, ())}
        return {ref: metrics for ref, metrics in found.items() if ref not in behind_refs}

    def varied(self, name: str, errors: Mapping[StageRef, ErrorMetrics], usual: Mapping[StageRef, float]) -> None:
        """Takes a run's errors, unless they are more than rounding."""
        if not errors:
            return
        beyond = within_rounding(errors, usual)
        if beyond is not None:
            line = f"{name}: {errors[beyond].rel_l2:.1e} at {beyond} is more than rounding ({usual[beyond]:.1e})"
            self.errors.left_out.append(line)
            return
        self.errors.ran(name)
        off = {stage.ref for value in self.off for stage in self.by_value.get(value, ())}
        for ref, metrics in errors.items():
            if ref not in off:
                self.errors.stages[ref].see_total(metrics)


def _as(expected: Array, tensor: torch.Tensor) -> Array:
    """A value as the run's dtype holds it."""
    with np.errstate(all="ignore"):
        return to_numpy(tensor).astype(expected.dtype, copy=False)


def _and_more(refs: Sequence[StageRef]) -> str:
    return f"{refs[0]} and {len(refs) - 1} more" if len(refs) > 1 else str(refs[0])


def _rms(array: Array) -> float:
    if not array.size:
        return 0.0
    wide = np.abs(array).astype(np.float64)
    wide = wide[np.isfinite(wide)]
    return float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 0.0

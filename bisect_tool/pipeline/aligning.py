"""Which of the graph's values stand for which of the model's: all that is tried until no pair changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bisect_tool.align.bodies import match_bodies
from bisect_tool.align.by_reader import read_by_layers
from bisect_tool.align.forks import at_forks
from bisect_tool.align.matches import (
    AMBIGUOUS,
    FORCED_VALUE,
    NARROW_VALUE_LIMIT,
    STRUCTURE,
    VALUE_LIMIT,
    Hints,
    Match,
    Sides,
)
from bisect_tool.align.matching import match_values, trusted
from bisect_tool.align.other_sizes import called_so, of_other_size
from bisect_tool.align.placing import NOTHING_PLACED, Placed, is_open, is_shifted, placed_by_structure, with_twins
from bisect_tool.align.surroundings import children_of, has_broken_unpaired, is_passed_by, nearest_paired
from bisect_tool.backends.captured import Reference
from bisect_tool.backends.case import LoadedCase, copies_of
from bisect_tool.backends.fresh import MOST_EXPORTED, most_alike, outline
from bisect_tool.backends.fresh_weights import compare_beside
from bisect_tool.backends.weights import modules_by_weights, values_with_bias
from bisect_tool.errors import BisectError, InconclusiveError
from bisect_tool.metrics import kind_of
from bisect_tool.pipeline.options import Options, Step
from bisect_tool.pipeline.prepared import Ready, ready_to_run
from bisect_tool.quantised import quantised_counts
from bisect_tool.rows import first_stage_by_value
from bisect_tool.signatures import Signature, distance, permuted_signatures, split_signatures
from bisect_tool.temporary import temporary_folder
from bisect_tool.weights import WeightReport

MAX_ALIGNMENT_ROUNDS = 6
"""Forced passes at most while looking for the pairs behind broken stages; each one settles at least one stage."""

MOST_OTHER_SIZES = 4
"""Times that stages are looked for whose value the graph has in another size; each may show what lies behind it."""

MOST_MISSING = 5
"""Notes on stages that a file leaves out."""

BEYOND_ROUNDING = 1e-5
"""Relative L2 of a final output from which on something may be wrong, however small."""

PermutedKey = tuple[int, tuple[int, ...] | None]
"""A PyTorch value, and the shape that it is to have with its axes in another order; ``None``: as many axes."""


class Aligner:
    """Pairs the values of one PyTorch run with those of a graph.

    Args:
        case, options: the job.
        ready: the graph.
        step: tells about what takes long.
        notes: gets what was noticed.
        permuted: what is known of values with their axes in other orders; more is put in.
        output_names: the graph's output for each of the model's.
        narrow: the graph is in half precision.

    Attributes:
        missing: why the file has no value for a stage, as far as a fresh export tells, by PyTorch value.
        weights_beside: the weights beside those of the fresh export, where the file lost their names.
    """

    def __init__(
        self,
        case: LoadedCase,
        options: Options,
        ready: Ready,
        step: Step,
        notes: list[str],
        permuted: dict[PermutedKey, Mapping[tuple[int, ...], Signature]],
        output_names: Sequence[str | None],
        *,
        narrow: bool = False,
    ):
        self.case = case
        self.options = options
        self.program, self.runs, self.bound = ready.program, ready.runs, ready.bound
        self.step = step
        self.notes = notes
        self.output_names = output_names
        self.narrow = narrow
        self.is_fresh = ready.is_fresh
        self.missing: Mapping[int, str] = {}
        self.weights_beside: WeightReport | None = None
        self.fresh_how = ""
        self._permuted = permuted

    def pairs(self, reference: Reference) -> dict[int, Match]:
        """Pairs the values of PyTorch's run with the graph's, whose own run is seen already.

        Raises:
            InconclusiveError: nothing could be paired.
        """
        trace = reference.trace

        def permuted(value: int, shape: tuple[int, ...] | None) -> Mapping[tuple[int, ...], Signature]:
            if (value, shape) not in self._permuted:
                array = reference.activations.fetch(value)
                kind, known = kind_of(array.dtype), reference.signatures.get(value)
                self._permuted[value, shape] = (
                    permuted_signatures(array, kind, known)
                    if shape is None
                    else split_signatures(array, kind, shape, known)
                )
                reference.activations.retain(())
            return self._permuted[value, shape]

        staged = {stage.value for stage in trace.stages}

        def with_bodies(matches: Mapping[int, Match]) -> dict[int, Match]:
            return match_bodies(matches, self.program.bodies(), reference.tape.bodies, staged)

        biased = values_with_bias(trace, self.case.module, self.case.place)
        sides = Sides(trace, self.program.plain, reference.signatures, self.runs.signatures, permuted, biased)
        matches = match_values(sides)
        # Beyond the memory budget one more run of both sides is dear.
        if self.runs.in_memory and any(AMBIGUOUS in match.evidence for match in matches.values()):
            second = self.runs.second_draw(self.case, trace, every_op=self.options.level == "op")
            if second is not None:
                matches = match_values(sides, Hints(second=second))
        modules: Mapping[str, str] = {}
        if self._has_nameless() and (
            not all(match.confirmed for match in matches.values())
            or has_broken_unpaired(trace, matches, sides.torch, sides.onnx)
            or self._has_lost_output(reference, matches)
        ):
            modules = modules_by_weights(self.case.module, self.program)
            sure = {value: match for value, match in matches.items() if match.confirmed}
            matches = match_values(sides, Hints(sure, modules=modules))
        matches = with_bodies(matches)

        first = matches
        matches = self._settled(reference, sides, first, with_bodies, Hints(modules=modules))
        placed = self._placed(reference, matches, sides)
        if placed.pairs:
            # What was fed at a wrong place has told nothing.
            known = {value: match for value, match in {**first, **placed.pairs}.items() if match.confirmed}
            hints = Hints(known, modules=modules, placed=placed.pairs, instead=placed.instead)
            matches = with_bodies(match_values(sides, hints))
            matches = self._settled(reference, sides, matches, with_bodies, hints)
            told = sum(STRUCTURE in match.evidence for match in matches.values())
            self.notes.append(
                f"{told} stage{'' if told == 1 else 's'} found by structure: the model was exported once more "
                f"({self.fresh_how}) and laid beside the ONNX file"
            )
        matches = self._without_fused(reference, sides, matches)
        matches = self._with_operands(reference, sides, matches)
        others = Hints(modules=modules, placed=placed.pairs, instead=placed.instead)
        matches = self._with_other_sizes(reference, sides, matches, with_bodies, others)
        if not self.is_fresh and self._outputs_are_off(reference, BEYOND_ROUNDING):
            matches = at_forks(self.program.plain, matches, lambda node: self.program.attributes(node).get("perm"))
        if not matches:
            raise InconclusiveError(
                "no PyTorch stage could be matched with a value of the ONNX graph: nothing to compare",
                hint="is this the ONNX file of this model?"
                if self.options.onnx is not None
                else "does forward compute anything from the sample?",
            )
        return matches

    def _settled(
        self,
        reference: Reference,
        sides: Sides,
        matches: dict[int, Match],
        with_bodies: Callable[[Mapping[int, Match]], dict[int, Match]],
        hints: Hints,
        *,
        supposed: bool = False,
    ) -> dict[int, Match]:
        """The pairs after runs in which each stage works on PyTorch's values, until no pair changes.

        Where the graph does not run on PyTorch's values the pairs are what they were before.

        Raises:
            InconclusiveError: it does not, and pairs were only ``supposed``.
        """
        fed: Mapping[int, Match] = {}
        same = False
        for _ in range(MAX_ALIGNMENT_ROUNDS):
            if all(match.confirmed for match in matches.values()) or (same and len(fed) == len(matches)):
                break
            fed = matches if same else trusted(reference.trace, matches)
            try:
                signatures = self.runs.forced_signatures(reference.activations, fed)
            except InconclusiveError:
                if supposed:
                    raise
                break
            confirmed = {value: match for value, match in matches.items() if match.confirmed}
            # A stage that was broken keeps its pair by name; what is behind it is looked at anew.
            merged = {**sides.onnx, **signatures}
            now = replace(hints, known=confirmed, fed=fed, chained=sides.onnx)
            again = with_bodies(match_values(replace(sides, onnx=merged), now))
            turned = [v for v, m in fed.items() if v in again and again[v].permutation != m.permutation]
            same = not turned and {v: m.onnx for v, m in again.items()} == {v: m.onnx for v, m in matches.items()}
            matches = _doubted_behind(turned, again, children_of(reference.trace)) if turned else again
        return matches

    def _without_fused(self, reference: Reference, sides: Sides, matches: dict[int, Match]) -> dict[int, Match]:
        """The pairs without those at which PyTorch's value spoils what the graph makes of its own.

        A product whose bias another node adds is no value of PyTorch's, and yet the only one in its stage's scope.
        """
        if quantised_counts(self.program.plain):
            # What is off by a few per cent everywhere is spoilt by nothing.
            return matches
        trace, children = reference.trace, children_of(reference.trace)
        limit = NARROW_VALUE_LIMIT if self.narrow else VALUE_LIMIT
        passed = [
            value
            for value, match in matches.items()
            if not match.confirmed
            and "graph output" not in match.evidence
            # What overflowed is the graph's own, whatever a norm makes of it.
            and (own := sides.onnx.get(match.onnx)) is not None
            and math.isfinite(own.total)
            and is_passed_by(value, trace, children, matches, sides.torch, sides.onnx)
        ]
        if not passed:
            return matches
        try:
            forced = self.runs.forced_signatures(reference.activations, matches)
        except InconclusiveError:
            return matches

        def is_spoilt(value: int) -> bool:
            own, made = sides.torch.get(value), forced.get(matches[value].onnx)
            return own is not None and made is not None and distance(own, made) > limit

        fused = {value for value in passed if any(map(is_spoilt, nearest_paired(value, children, matches)))}
        return {value: match for value, match in matches.items() if value not in fused}

    def _with_operands(self, reference: Reference, sides: Sides, matches: dict[int, Match]) -> dict[int, Match]:
        """The pairs with what layers read whose stage nothing tells, as far as the layers are right with it."""
        limit = NARROW_VALUE_LIMIT if self.narrow else VALUE_LIMIT
        asked = self.options.forced and not self.is_fresh and not quantised_counts(self.program.plain)
        for _ in range(MAX_ALIGNMENT_ROUNDS if asked and self._outputs_are_off(reference, BEYOND_ROUNDING) else 0):
            supposed = read_by_layers(reference.trace, self.program.plain, matches)
            if not supposed:
                break
            both = {**matches, **{each.match.value: each.match for each in supposed}}
            try:
                forced = self.runs.forced_signatures(reference.activations, both)
            except InconclusiveError:
                break
            right = [
                each.match
                for each in supposed
                if (own := sides.torch.get(each.reader)) is not None
                and (made := forced.get(matches[each.reader].onnx)) is not None
                and distance(own, made) <= limit
            ]
            if not right:
                break
            matches = {**matches, **{match.value: match for match in right}}
        return matches

    def _with_other_sizes(
        self,
        reference: Reference,
        sides: Sides,
        matches: dict[int, Match],
        with_bodies: Callable[[Mapping[int, Match]], dict[int, Match]],
        hints: Hints,
    ) -> dict[int, Match]:
        """The pairs with stages whose value the graph has in another size, where the final outputs are wrong."""
        trace, ops = reference.trace, reference.tape.ops
        operations = {value: (op.name, number) for op in ops for number, value in enumerate(op.outputs)}
        known: dict[int, Match] = {}
        asked = self.options.forced and not self.is_fresh and self._outputs_are_off(reference)
        for _ in range(MOST_OTHER_SIZES if asked else 0):
            signatures = {
                **self.runs.signatures,
                **(self.runs.forced_signatures(reference.activations, matches) if known else {}),
            }
            others = of_other_size(trace, self.program.plain, matches, signatures, operations, sides.onnx, sides.torch)
            if not others:
                break
            both = replace(hints, placed={**hints.placed, **known, **others})
            try:
                matches = self._settled(reference, sides, {**matches, **others}, with_bodies, both, supposed=True)
            except InconclusiveError:
                # PyTorch's values do not even fit there.
                break
            known |= others
        return called_so(matches, known)

    def _outputs_are_off(self, reference: Reference, limit: float = VALUE_LIMIT) -> bool:
        """Whether a final output of the graph is not what PyTorch puts out."""
        for (_, value), name in zip(reference.trace.outputs, self.output_names, strict=True):
            expected, actual = reference.signatures.get(value), self.runs.signatures.get(name or "")
            if expected is not None and actual is not None and distance(expected, actual) > limit:
                return True
        return False

    def _has_lost_output(self, reference: Reference, matches: Mapping[int, Match]) -> bool:
        """Whether a stage that is an output has no pair: the graph puts it out in another layout or size, and it is off."""
        staged = {stage.value for stage in reference.trace.stages}
        lost = any(value in staged and value not in matches for _, value in reference.trace.outputs)
        return lost and self._outputs_are_off(reference, BEYOND_ROUNDING)

    def _placed(self, reference: Reference, matches: Mapping[int, Match], sides: Sides) -> Placed:
        """Pairs by structure, from an export that is made for it, where values and names leave a file's stages open."""
        nameless = self._is_nameless()
        nodes_between = self.program.nodes_between
        if self.options.onnx is None or not self.runs.in_memory or self.is_fresh:
            return NOTHING_PLACED
        # What is still right by its value may be made of a stage that is broken and has no name.
        broken = nameless and has_broken_unpaired(sides.trace, matches, sides.torch, sides.onnx)
        shifted = is_shifted(reference.trace, matches) and self._outputs_are_off(reference)
        lost = nameless and self._has_lost_output(reference, matches)
        if (
            not broken
            and not shifted
            and not lost
            and not is_open(reference.trace, matches, nodes_between, nameless=nameless)
        ):
            return NOTHING_PLACED
        if self.program.weight_bytes() > MOST_EXPORTED:
            self.notes.append("too many weights to export the model once more, and so to tell stages by structure")
            return NOTHING_PLACED
        with (
            temporary_folder() as folder,
            self.step("structure", "exporting the model once more, to find stages by structure"),
        ):
            copies = copies_of(self.case.args), copies_of(self.case.kwargs)
            fresh = most_alike(self.case.module, *copies, self.program, Path(folder), self._varying_axes())
            if fresh is None:
                self.notes.append("stages could not be told by structure: no fresh export is like the ONNX file")
                return NOTHING_PLACED
            try:
                beside = ready_to_run(self.case, self.options, fresh.program, is_fresh=True)
                beside.runs.see_all()
                own = Aligner(self.case, self.options, beside, self.step, [], {}, ()).pairs(reference)
            except BisectError:
                return NOTHING_PLACED
            if nameless:
                self.weights_beside = compare_beside(self.case.module, beside.program, self.program)
            given = outline(self.program, self.runs.signatures.get)
            there = {source: name for name, source in self.bound.sources.items()}
            inputs = {name: there[source] for name, source in beside.bound.sources.items() if source in there}

            def agrees(value: int, name: str) -> bool:
                first, second = reference.signatures.get(value), self.runs.signatures.get(name)
                return first is not None and second is not None and distance(first, second) <= VALUE_LIMIT

            found = placed_by_structure(
                outline(beside.program, beside.runs.signatures.get),
                given,
                own,
                matches,
                inputs,
                agrees,
                narrow=self.narrow,
                doubted=with_twins(reference.trace, matches, reference.signatures) if shifted else frozenset(),
            )
        self.missing = found.missing
        first = first_stage_by_value(reference.trace)
        self.notes += [f"{first[value].ref}: {text}" for value, text in list(self.missing.items())[:MOST_MISSING]]
        self.fresh_how = fresh.how
        return found

    def _varying_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes that vary in the graph, by the name of the model's input, of those that are given as they are."""
        dims, orders = self.program.graph.input_dims, self.bound.orders
        found = {
            source: tuple(axis for axis, size in enumerate(dims.get(name, ())) if isinstance(size, str))
            for name, (source, _) in self.bound.sources.items()
            if name not in orders
        }
        return {source: axes for source, axes in found.items() if axes}

    def _has_nameless(self) -> bool:
        """Whether a node that reads weights carries no name of a module, as fused ones do among others that have theirs."""
        weights = self.program.floating_weights().keys()
        nodes = self.program.plain.nodes
        return self._is_nameless() or any(
            not node.scopes and node.call is None and not weights.isdisjoint(node.inputs) for node in nodes
        )

    def _is_nameless(self) -> bool:
        """Whether most nodes that read weights carry no name of a module, or the model has none to compare it with."""
        if isinstance(self.case.module, torch.jit.ScriptModule):
            # Its modules do not call each other by hooks: every stage is an operation of the whole.
            return True
        weights = self.program.floating_weights().keys()
        reading = [node for node in self.program.plain.nodes if not weights.isdisjoint(node.inputs)]
        return 2 * sum(bool(node.scopes) or node.call is not None for node in reading) < len(reading)


def _doubted_behind(
    turned: Sequence[int], matches: Mapping[int, Match], children: Mapping[int, Sequence[int]]
) -> dict[int, Match]:
    """The pairs, with those open again that a run has shown which was given values with their axes in another order."""
    behind: set[int] = set()
    stack = list(turned)
    while stack:
        for child in children.get(stack.pop(), ()):
            if child not in behind:
                behind.add(child)
                stack.append(child)
    return {
        value: replace(match, confirmed=False) if value in behind and FORCED_VALUE in match.evidence else match
        for value, match in matches.items()
    }

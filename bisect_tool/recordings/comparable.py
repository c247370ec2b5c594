"""What two recordings have in common, before their numbers are compared: steps of training, inputs, and stages at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = Mapping[str, Any]

_STEP = re.compile(r"step(\d+)\.")
_BATCH = re.compile(r"(?:samples of )?batch (\d+)\b")


@dataclass(frozen=True, slots=True)
class Comparable:
    """Both manifests, cut down to what can be compared, and what is to be said about that."""

    expected: Manifest
    actual: Manifest
    notes: tuple[str, ...]


def comparable(expected: Manifest, actual: Manifest) -> Comparable:
    """The common steps of two training scripts, and inputs under the same keys."""
    notes: tuple[str, ...] = ()
    if "script" in (expected.get("kind"), actual.get("kind")):
        expected, actual, notes = _common_steps(expected, actual)
    inputs = _inputs_as_in(expected, actual)
    return Comparable(expected, {**actual, "data": {**actual["data"], "inputs": inputs}}, notes)


# -- training ---------------------------------------------------------------------------------------------------------


def _common_steps(expected: Manifest, actual: Manifest) -> tuple[Manifest, Manifest, tuple[str, ...]]:
    lengths = [_highest(_STEP, (entry["stage"] for entry in side["stages"])) for side in (expected, actual)]
    sides = [_without_setting(side) for side in (expected, actual)]
    if lengths[0] == lengths[1] or 0 in lengths:
        return sides[0], sides[1], ()
    most = min(lengths)
    taps = [side["data"]["taps"] for side in sides]
    batches = min(_highest(_BATCH, (entry["name"] for entry in side)) for side in taps)
    cut = [_first_steps(side, most, batches, other) for side, other in zip(sides, reversed(taps), strict=True)]
    longer, shorter = ("expected", "actual") if lengths[0] > lengths[1] else ("actual", "expected")
    note = f"{longer} is longer, {max(lengths)} steps against {most} in {shorter}: the common ones are compared"
    return cut[0], cut[1], (note,)


def _highest(pattern: re.Pattern[str], names: Any) -> int:
    """How many there are, counted from 0."""
    return max((int(found.group(1)) + 1 for name in names if (found := pattern.match(name))), default=0)


def _without_setting(side: Manifest) -> Manifest:
    """How many steps were asked for changes no number of those that both have."""
    configuration = dict(side["provenance"].get("configuration") or {})
    configuration.pop("steps", None)
    return {**side, "provenance": {**side["provenance"], "configuration": configuration}}


def _first_steps(side: Manifest, steps: int, batches: int, others: Sequence[Mapping[str, Any]]) -> Manifest:
    there = {(entry["name"], entry["call"]) for entry in others}
    stages = [entry for entry in side["stages"] if _number(_STEP, entry["stage"]) < steps]
    taps = [
        entry
        for entry in side["data"]["taps"]
        # A list of files is read again in a later epoch.
        if _number(_BATCH, entry["name"]) < batches and (not entry["call"] or (entry["name"], entry["call"]) in there)
    ]
    return {**side, "stages": stages, "data": {**side["data"], "taps": taps}}


def _number(pattern: re.Pattern[str], name: str) -> int:
    found = pattern.match(name)
    return int(found.group(1)) if found else -1


# -- inputs -----------------------------------------------------------------------------------------------------------


def _inputs_as_in(expected: Manifest, actual: Manifest) -> list[dict[str, Any]]:
    """The other side's inputs under this side's keys: a graph's have names where a model's have places.

    The same content tells; else, where one side has names and the other places, the order, as far as the shapes fit.
    """
    one, other = expected["data"]["inputs"], [dict(entry) for entry in actual["data"]["inputs"]]
    keys = {entry["key"] for entry in one}
    free = [entry for entry in one if entry["key"] not in {each["key"] for each in other}]
    for entry in other:
        if entry["key"] in keys:
            continue
        content = actual["tensors"][entry["tensor"]]["sha256"]
        found = next((each for each in free if expected["tensors"][each["tensor"]]["sha256"] == content), None)
        if found is not None:
            free.remove(found)
            entry["key"] = found["key"]
    rest = [entry for entry in other if entry["key"] not in keys]
    if len(rest) != len(free) or not all(_in_place(expected, actual, *pair) for pair in zip(free, rest, strict=True)):
        return other
    for mine, entry in zip(free, rest, strict=True):
        entry["key"] = mine["key"]
    return other


def _in_place(expected: Manifest, actual: Manifest, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    shapes = expected["tensors"][one["tensor"]]["shape"], actual["tensors"][other["tensor"]]["shape"]
    return isinstance(one["key"], int) != isinstance(other["key"], int) and shapes[0] == shapes[1]


# -- stages -----------------------------------------------------------------------------------------------------------


def strangers(expected: Manifest, actual: Manifest) -> tuple[str, ...]:
    """Why two recordings can't be compared stage by stage, with a remedy; empty where they share a stage."""
    names = [_names(side) for side in (expected, actual)]
    if not all(names) or names[0] & names[1]:
        return ()
    runners = [(side["provenance"].get("configuration") or {}).get("backend") for side in (expected, actual)]
    if "onnxruntime" in runners:
        both = runners[0] == runners[1]
        return (
            "not comparable: no stage of one is in the other by its name, and an ONNX file alone has names of its own",
            f"help: record {'both sides' if both else 'the ONNX side'} with MODEL too",
        )
    return (
        "these are recordings of different models: no stage of one is in the other by its name",
        "help: record the same model on both sides; with a wrapper around it on one side alone its stages have other names",
    )


def _names(side: Manifest) -> set[str]:
    """Of modules, where there are any: operations outside of them are called alike in all models."""
    names = {entry["stage"] for entry in side["stages"] if entry["stage"]}
    return {name for name in names if "#" not in name} or names

"""Two environments: what differs, ranked by how likely it changes numbers, what is equal, and what to do."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from bisect_tool.environments.files import DOMAINS, Facts, Key, version_of
from bisect_tool.environments.rules import COUNTING, LEVELS, SETTERS, VARIANTS, Level, rule_for
from bisect_tool.environments.variables import WITHHELD

ENVIRONMENT_DIFF_VERSION = 1


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        domain: ``package``, ``variable``, ``torch flag`` ...
        name: of the package, variable, flag.
        expected, actual: both values; None: not there.
        change: ``minor``, ``nightly``, ``variant`` ...; several by spaces, the most telling one first.
        level: how likely numbers change.
        reason, source: why, and where that is written.
    """

    domain: str
    name: str
    expected: str | None
    actual: str | None
    change: str
    level: Level
    reason: str
    source: str


@dataclass(frozen=True)
class Remedy:
    """What makes the second environment like the first.

    Attributes:
        requirements: pins.
        dockerfile: ``FROM``, ``ENV`` and ``RUN`` lines.
        script: for the top of a script: seeds, determinism, and the flags that differ.
        by_hand: what no file can mend.
    """

    requirements: tuple[str, ...]
    dockerfile: tuple[str, ...]
    script: str
    by_hand: tuple[str, ...]


@dataclass(frozen=True)
class Equal:
    """What both have alike in one domain: how many, and the most telling of them."""

    domain: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class EnvironmentDiff:
    """Everything about two environments.

    Attributes:
        status: ``same``: nothing that can change numbers differs; ``different``.
        differences: those most likely to change numbers first.
        equal: the checklist of what is alike.
        one_sided: packages that only one file names, where a file may leave some out.
        not_told: domains that only one of the two files tells of.
    """

    status: str
    expected: str
    expected_kind: str
    actual: str
    actual_kind: str
    differences: tuple[Difference, ...]
    equal: tuple[Equal, ...]
    one_sided: tuple[str, ...]
    not_told: tuple[str, ...]
    remedy: Remedy
    notes: tuple[str, ...]
    environment_diff_version: int = ENVIRONMENT_DIFF_VERSION


def diff(expected: Facts, actual: Facts) -> EnvironmentDiff:
    """Compares two environments in what both tell."""
    shared = expected.domains & actual.domains
    pairs = _pairs(expected, actual, shared)
    found: list[tuple[int, int, Difference]] = []
    alike: list[Key] = []
    for (domain, name), (a, b, variant) in pairs.items():
        if a == b or _means_the_same(name, a, b):
            alike.append((domain, name))
            continue
        place, difference = _difference(domain, name, a, b, variant, (expected, actual))
        found.append((LEVELS.index(difference.level), place, difference))
    found.sort(key=lambda item: (item[0], item[1], item[2].name))
    differences = tuple(difference for _, _, difference in found)
    counts = any(difference.level in COUNTING for difference in differences)
    return EnvironmentDiff(
        status="different" if counts else "same",
        expected=expected.path,
        expected_kind=expected.kind,
        actual=actual.path,
        actual_kind=actual.kind,
        differences=differences,
        equal=tuple(_equal(alike, expected)),
        one_sided=tuple(_one_sided(expected, actual)),
        not_told=tuple(d for d in DOMAINS if d in (expected.domains | actual.domains) - shared),
        remedy=remedy(differences, expected),
        notes=(*expected.notes, *actual.notes, *_partial(expected, actual)),
    )


def _means_the_same(name: str, a: str | None, b: str | None) -> bool:
    """These are IEEE as long as nobody says anything, and say so once anybody has."""
    return name.endswith(_IEEE_UNLESS_SET) and {a, b} == {"none", "ieee"}


_IEEE_UNLESS_SET = (
    "cuda.matmul.fp32_precision",
    *(f"mkldnn.{name}.fp32_precision" for name in ("matmul", "conv", "rnn")),
)


def _partial(*sides: Facts) -> Iterator[str]:
    if not all(facts.complete for facts in sides):
        names = " and ".join(
            f"a {facts.kind} file" if " " not in facts.kind else facts.kind for facts in sides if not facts.complete
        )
        yield f"{names}: may leave packages out, or name more than is installed; what one file alone names does not count"


# Pairs


def _pairs(
    expected: Facts, actual: Facts, shared: frozenset[str]
) -> dict[Key, tuple[str | None, str | None, str | None]]:
    """Both values of each thing that can be compared, and the other package's name where it is a variant."""
    found: dict[Key, tuple[str | None, str | None, str | None]] = {}
    sides = [dict(facts.values) for facts in (expected, actual)]
    for side, facts in zip(sides, (expected, actual), strict=True):
        side.update({("package", name): asked for name, asked in facts.ranges.items() if ("package", name) not in side})
    for one, other in _variants(sides[0], sides[1]):
        ours, theirs = sides[0].pop(("package", one)), sides[1].pop(("package", other))
        found["package", one] = f"{one} {ours}", f"{other} {theirs}", other
    for key in sorted({*sides[0], *sides[1]}):
        if key[0] not in shared:
            continue
        a, b = sides[0].get(key), sides[1].get(key)
        absent = (a is None and not expected.complete) or (b is None and not actual.complete)
        if key[0] == "package" and absent:
            continue
        if key[0] != "package" and None in (a, b) and not (expected.thorough and actual.thorough):
            continue
        found[key] = a, b, None
    return found


def _variants(first: Mapping[Key, str], second: Mapping[Key, str]) -> Iterator[tuple[str, str]]:
    """Packages of one group, of which each side has another one."""
    for group in VARIANTS:
        ours = [name for name in group if ("package", name) in first]
        theirs = [name for name in group if ("package", name) in second]
        if len(ours) == 1 and len(theirs) == 1 and ours != theirs:
            yield ours[0], theirs[0]


def _one_sided(expected: Facts, actual: Facts) -> Iterator[str]:
    if expected.complete and actual.complete:
        return
    named = [
        {**facts.ranges, **{n: v for (d, n), v in facts.values.items() if d == "package"}}
        for facts in (expected, actual)
    ]
    for which, mine, other in (("first", named[0], named[1]), ("second", named[1], named[0])):
        grouped = {name for group in VARIANTS if set(group) & set(other) for name in group}
        yield from (
            f"{name} {mine[name]} ({which})" for name in sorted(mine) if name not in other and name not in grouped
        )


def _difference(
    domain: str, name: str, a: str | None, b: str | None, variant: str | None, sides: tuple[Facts, Facts]
) -> tuple[int, Difference]:
    pin = _pin(name, sides) if domain == "package" and variant is None else None
    changes = _changes(domain, a, b, variant, pin)
    if domain == "package" and variant is None and pin is None and any(name in facts.ranges for facts in sides):
        changes = ["excluded"]
    # Each kind of change has its own rule: another build and a nightly one at that.
    rules = [rule_for(domain, name, frozenset(("major" if change == "excluded" else change,))) for change in changes]
    place, rule = min(rules, key=lambda item: (LEVELS.index(item[1].level), item[0]))
    telling = [rule, *(other for _, other in rules if other.level == rule.level)]
    level, reason = rule.level, "; ".join(dict.fromkeys(item.reason for item in telling))
    if pin is not None and level not in ("none", "unknown"):
        # What is asked for may well have been what was installed.
        level = "unlikely" if pin == "allowed" else "possible"
        reason = f"not pinned in one of the files; the version there is {pin}. If it differs: {reason}"
    elif changes == ["presence"] and domain == "package" and level != "none":
        reason = f"on one side only; where it is used, {reason}"
        level = "unknown" if level == "unknown" else "possible"
    return place, Difference(domain, name, a, b, " ".join(changes), level, reason, rule.source)


def _changes(domain: str, a: str | None, b: str | None, variant: str | None, pin: str | None) -> list[str]:
    if variant is not None and a is not None and b is not None:
        versions = a.partition(" ")[2], b.partition(" ")[2]
        return ["variant", *(kinds_of_change(*versions) if versions[0] != versions[1] else ())]
    if pin is not None:
        return ["pin"]
    if domain in ("package", "python"):
        return kinds_of_change(a, b)
    return ["presence" if a is None or b is None else "value"]


def _pin(name: str, sides: tuple[Facts, Facts]) -> str | None:
    """``allowed`` or ``unknown`` where a file only asks for a range; None where both are pinned, or it is excluded."""
    ranges = [facts.ranges.get(name) for facts in sides]
    if ranges == [None, None]:
        return None
    pinned = [facts.values.get(("package", name)) for facts in sides]
    version = next((v for v in pinned if v is not None), None)
    asked = next(text for text in ranges if text is not None)
    if version is None or version_of(version) is None:
        return "unknown"
    try:
        fits = asked == "any version" or SpecifierSet(asked).contains(version, prereleases=True)
    except InvalidSpecifier:
        return "unknown"
    return "allowed" if fits else None


def kinds_of_change(a: str | None, b: str | None) -> list[str]:
    """What changed between two versions, the most telling kind first.

    Example:
        >>> kinds_of_change("2.3.0+cpu", "2.4.1+cu121")
        ['local', 'minor']
    """
    if a is None or b is None:
        return ["presence"]
    one, other = version_of(a), version_of(b)
    if one is None or other is None:
        return ["minor"]  # no version by PEP 440: an address, or a name of conda
    kinds = []
    if (one.is_prerelease or other.is_prerelease) and one.public != other.public:
        kinds.append("nightly")
    # A wheel of the same release without a tag may be the same build.
    if one.local != other.local:
        kinds.append("local")
    release = _release_change(one, other)
    if release is not None:
        kinds.append(release)
    return kinds or ["patch"]


def _release_change(one: Version, other: Version) -> str | None:
    if one.epoch != other.epoch or one.major != other.major:
        return "major"
    if one.minor != other.minor:
        return "minor"
    return "patch" if one.public != other.public else None


# Equal


_TELLING = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "opencv-python",
    "pillow",
    "torchvision",
    "scipy",
    "pandas",
)


def _equal(alike: Sequence[Key], facts: Facts) -> Iterator[Equal]:
    counts = Counter(domain for domain, _ in alike)
    for domain in DOMAINS:
        if not counts[domain]:
            continue
        names = [name for d, name in alike if d == domain]
        names.sort(key=lambda name: (_TELLING.index(name) if name in _TELLING else len(_TELLING), name))
        texts = tuple(f"{name} {facts.values[domain, name]}" for name in names[:3] if (domain, name) in facts.values)
        yield Equal(domain, counts[domain], texts)


# Remedies


def remedy(differences: Sequence[Difference], reference: Facts) -> Remedy:
    """What makes another environment like the reference."""
    counting = [difference for difference in differences if difference.level in COUNTING]
    pins = tuple(sorted(pin for difference in counting if (pin := _requirement(difference)) is not None))
    variables = [difference for difference in counting if difference.domain == "variable"]
    return Remedy(
        requirements=pins,
        dockerfile=tuple(_dockerfile(counting, variables, pins, reference)),
        script=script_block(differences),
        by_hand=tuple(_by_hand(counting)),
    )


def _requirement(difference: Difference) -> str | None:
    if difference.domain != "package" or difference.expected is None:
        return None
    text = difference.expected
    if difference.change.startswith("variant"):
        return "==".join(text.split(" ", 1)) if " " in text else None
    if version_of(text) is not None:
        return f"{difference.name}=={text}"
    if text.startswith(("<", ">", "=", "!", "~")):
        return f"{difference.name}{text}"
    return f"{difference.name} {text}" if text.startswith("@ ") else None


def _dockerfile(
    counting: Sequence[Difference], variables: Sequence[Difference], pins: Sequence[str], reference: Facts
) -> Iterator[str]:
    if any(difference.domain == "python" for difference in counting):
        version = reference.values.get(("python", "version"), "")
        minor = re.match(r"\d+\.\d+", version)
        if minor:
            yield f"FROM python:{minor.group(0)}"
    for difference in variables:
        if difference.expected is None:
            yield f"# the reference does not set {difference.name}: remove it"
        elif difference.expected != WITHHELD:
            value = difference.expected.removeprefix("(empty)")
            yield f"ENV {difference.name}={_quoted(value)}"
    unwanted = [
        d.actual.split(" ", 1)[0] if d.change.startswith("variant") and d.actual else d.name
        for d in counting
        if d.domain == "package" and (d.expected is None or d.change.startswith("variant"))
    ]
    if unwanted:
        yield f"RUN pip uninstall -y {' '.join(sorted(unwanted))}"
    if pins:
        yield "RUN pip install \\"
        for number, pin in enumerate(pins):
            yield f"    {shlex.quote(pin)}{'' if number + 1 == len(pins) else ' ' + chr(92)}"


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.,:/+-]*", value) and value else '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'


def _by_hand(counting: Sequence[Difference]) -> Iterator[str]:
    for difference in counting:
        values = f"{difference.expected or 'none'} against {difference.actual or 'none'}"
        if "nightly" in difference.change:
            yield f"{difference.name} {values}: nightly builds are deleted after some weeks; move both sides to one release"
        elif "local" in difference.change:
            yield f"{difference.name} {values}: builds with a tag come from PyTorch's own index"
        elif difference.domain == "gpu":
            yield f"GPU, {difference.name}: {values}. Use the same, or compare with TF32 and cudnn.benchmark off"
        elif difference.domain == "cpu" and difference.name in ("model", "instruction sets", "kernels of torch"):
            yield (
                "the processors differ: ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and MKL_CBWR=COMPATIBLE on both"
                " sides choose code that both have"
            )
        elif difference.domain == "cuda":
            yield f"{difference.name}: {values}. It comes with the build of torch: install the same build on both sides"


_BLOCK = """\
# Before anything else is imported. PYTHONHASHSEED only works from outside: PYTHONHASHSEED=0 python script.py
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import random

import numpy as np
import torch

SEED = 0
random.seed(SEED)
np.random.seed(SEED)
torch.manual_seed(SEED)
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = False
"""


def script_block(differences: Sequence[Difference]) -> str:
    """Seeds and determinism for the top of a script, and the first side's values of PyTorch's flags that differ."""
    lines = [line for difference in differences if (line := _flag_line(difference)) is not None]
    if not lines:
        return _BLOCK
    return _BLOCK + "# As on the first side:\n" + "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _flag_line(difference: Difference) -> str | None:
    name, value = difference.name, difference.expected
    if difference.domain != "torch flag" or value is None or value.startswith("unreadable"):
        return None
    literal = value if re.fullmatch(r"True|False|-?\d+(\.\d+)?", value) else repr(value)
    if name in SETTERS:
        return SETTERS[name].format(value if name == "torch.get_default_dtype()" else literal)
    # The old name of a switch and its new ones exclude each other; the new one says it.
    if "(" in name or (name.endswith(".allow_tf32") and value != "None"):
        return None if "(" in name else f"{name} = {literal}"
    return None if value == "none" else f"{name} = {literal}"

"""A snapshot, and a diff of two, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from rich.console import Console

from bisect_tool.environments.diff import Difference, EnvironmentDiff
from bisect_tool.reporters import wording
from bisect_tool.reporters.layout import Page, PipedConsole

LABEL = 12
OTHERS = 8
"""Differences without effect, and packages nothing is known of, that are named."""
_HEADS = {
    "likely": "Likely to change numbers",
    "possible": "Possible, often only in the last digits",
    "unlikely": "Unlikely",
}
_DOMAINS = {
    "package": "packages",
    "variable": "variables",
    "torch flag": "flags of torch",
    "cpu": "processor",
    "cuda": "CUDA",
}
_MOST = 12
"""Differences of one level that are told with their reason."""
_STYLES = {"likely": "bold red", "possible": "bold yellow", "unlikely": "bold"}


def print_snapshot(data: Mapping[str, Any], *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print a snapshot to stdout, or to ``file``."""
    render_snapshot(data, PipedConsole(file=file, width=width))


def render_snapshot(data: Mapping[str, Any], console: Console) -> None:
    """Print a snapshot, one line or a few for each subject."""
    page = Page(console)
    for label, text in snapshot_lines(data):
        # Names of flags are long, and never broken: without a label beside them they may begin further left.
        longest = max(map(len, text.split()), default=0)
        if not label and LABEL + longest > page.width:
            page.prose(text, indent=" " * max(page.width - longest, 2))
        else:
            page.prose(text, label=(f"{label:<{LABEL}}", "bold"))


def snapshot_lines(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Subjects and what is to be said of them."""
    system, cpu, gpu = data["os"], data["cpu"], data["gpu"]
    yield "Python", f"{data['python']} ({data['python_implementation']})"
    yield "system", ", ".join(str(v) for v in (*system.values(), data["machine"]))
    quota = f", limited to {cpu['quota']:g}" if cpu["quota"] else ""
    yield "processor", f"{cpu['model']}, {data['cpus']} cores, {cpu['available']} to be used{quota}"
    yield "", " ".join(cpu["instruction_sets"]) or "instruction sets are not known"
    if data["gpu"]["devices"]:
        for device in gpu["devices"]:
            memory = f", {device['memory_mib']} MiB" if device["memory_mib"] else ""
            yield "GPU", f"{device['name']}{memory}, compute capability {device['compute_capability']}"
        yield "", f"driver {gpu['driver']}"
    else:
        yield "GPU", "none that nvidia-smi tells of"
    yield from _torch_lines(data["torch"])
    yield from _onnxruntime_lines(data["onnxruntime"])
    yield "BLAS", ", ".join(f"{name}: {text}" for name, text in data["blas"].items()) or "not known"
    if data["loaded_libraries"]:
        yield "loaded", ", ".join(data["loaded_libraries"])
    for number, (name, value) in enumerate(data["variables"].items()):
        yield "" if number else "variables", f"{name}={value}"
    if not data["variables"]:
        yield "variables", "none is set that steers a numeric library"
    for number, (name, value) in enumerate(data["binaries"].items()):
        yield "" if number else "programs", f"{name}: {value}"
    packages = data["distributions"]
    yield "packages", f"{len(packages)}: " + ", ".join(f"{name} {version}" for name, version in packages.items())


def _torch_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "absent" in facts:
        yield "torch", str(facts["absent"])
        return
    parts = [f"{facts['version']}"]
    parts += [
        f"{name} {facts[key]}" for name, key in (("CUDA", "cuda"), ("HIP", "hip"), ("cuDNN", "cudnn")) if facts[key]
    ]
    parts += [f"{name} {facts[key]}" for name, key in (("MKL", "mkl"), ("oneDNN", "onednn")) if facts[key]]
    parts += [f"CPU kernels {facts['cpu_capability']}"] if facts["cpu_capability"] else []
    yield "torch", ", ".join(parts)
    for number, (name, value) in enumerate(facts["flags"].items()):
        yield "" if number else "flags", f"{name} = {value}"


def _onnxruntime_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "absent" in facts:
        yield "onnxruntime", str(facts["absent"])
        return
    package = f" ({facts['package']})" if facts["package"] else ""
    cuda = f", built for CUDA {facts['cuda']}" if facts["cuda"] else ""
    yield "onnxruntime", f"{facts['version']}{package}{cuda}; {', '.join(facts['providers'])}"


# Diff


def print_diff(
    found: EnvironmentDiff, *, all_differences: bool = False, file: IO[str] | None = None, width: int | None = None
) -> None:
    """Print a diff to stdout, or to ``file``."""
    render_diff(found, PipedConsole(file=file, width=width), all_differences=all_differences)


def render_diff(found: EnvironmentDiff, console: Console, *, all_differences: bool = False) -> None:
    """Print a diff: verdict, differences by likelihood, what is equal, what to do."""
    page = Page(console)
    page.prose(f"{found.expected} ({found.expected_kind})", label=(f"{'first':<8}", "bold"))
    page.prose(f"{found.actual} ({found.actual_kind})", label=(f"{'second':<8}", "bold"))
    for note in found.notes:
        page.prose(note, label=("note: ", "bold yellow"))
    page.line()
    counts = {level: [d for d in found.differences if d.level == level] for level in (*_HEADS, "unknown", "none")}
    if found.status == "same":
        page.prose("nothing that can change numbers differs, of what both tell", label=("SAME  ", "bold green"))
    else:
        parts = [f"{len(counts[level])} {level}" for level in ("likely", "possible", "unlikely") if counts[level]]
        parts += (
            [f"{wording.plural(len(counts['unknown']), 'package')} nothing is known of"] if counts["unknown"] else []
        )
        page.prose(f"differences that can change numbers: {', '.join(parts)}", label=("DIFFERENT  ", "bold red"))
    for level, head in _HEADS.items():
        _group(page, head, counts[level], _STYLES[level], all_differences)
    for level, head in (("unknown", "Nothing is known of"), ("none", "Without effect on numbers")):
        _names(page, head, counts[level], all_differences)
    if found.one_sided:
        page.line()
        page.line(("Named by one file only, and not counted", "bold"))
        page.prose(wording.names_text(found.one_sided, 200 if all_differences else OTHERS), indent="  ", style="dim")
    _checklist(page, found)
    if found.status != "same":
        _remedy(page, found)


def _group(page: Page, head: str, differences: Sequence[Difference], style: str, everything: bool) -> None:
    if not differences:
        return
    page.line()
    page.line((head, style))
    shown = differences if everything else differences[:_MOST]
    for difference in shown:
        page.prose(difference_text(difference), indent="  ", label=("- ", ""), style="bold")
        page.prose(difference.reason, indent="      ")
        if difference.source not in ("-", ""):
            page.prose(difference.source, indent="      ", style="dim")
    if len(shown) < len(differences):
        rest = differences[len(shown) :]
        names = ", ".join(difference.name for difference in rest[:OTHERS])
        page.prose(f"and {len(rest)} more ({names} ...); --all prints all", indent="    ", style="dim")


def difference_text(difference: Difference) -> str:
    """``numpy 1.26.4 -> 2.4.6 (major)``."""
    before, after = (value if value is not None else "not set" if difference.domain == "variable" else "none"
                     for value in (difference.expected, difference.actual))  # fmt: skip
    if difference.name == "instruction sets":
        return f"processor's instruction sets: {_words_text(before, after)}"
    named = difference.domain in ("package", "variable", "torch flag")
    subject = difference.name if named else f"{difference.domain} {difference.name}"
    if difference.change.startswith("variant"):
        return f"{before} -> {after}"
    kind = (
        f" ({difference.change})"
        if difference.domain in ("package", "python") and difference.change != "presence"
        else ""
    )
    return f"{subject} {before} -> {after}{kind}"


def _words_text(before: str, after: str) -> str:
    one, other = set(before.split()), set(after.split())
    sides = ("first", one - other), ("second", other - one)
    parts = [f"only in the {name}: {' '.join(sorted(words))}" for name, words in sides if words]
    return "; ".join(parts)


def _names(page: Page, head: str, differences: Sequence[Difference], everything: bool) -> None:
    if not differences:
        return
    page.line()
    page.line((head, "bold"))
    shown = differences if everything else differences[:OTHERS]
    texts = [difference_text(difference) for difference in shown]
    rest = len(differences) - len(shown)
    page.prose("; ".join(texts) + (f" and {rest} more" if rest else ""), indent="  ", style="dim")


def _checklist(page: Page, found: EnvironmentDiff) -> None:
    page.line()
    page.line(("Equal already", "bold"))
    for item in found.equal:
        label = _DOMAINS.get(item.domain, item.domain)
        examples = ", ".join(wording.shorten_middle(text, 52) for text in item.examples)
        more = " ..." if item.count > len(item.examples) else ""
        page.prose(f"{label}, {item.count}: {examples}{more}", label=("[x] ", "green"), indent="  ")
    if not found.equal:
        page.line("  nothing")
    if found.not_told:
        page.prose(f"told by one file only: {', '.join(found.not_told)}", label=("[?] ", "yellow"), indent="  ")


def _remedy(page: Page, found: EnvironmentDiff) -> None:
    remedy = found.remedy
    page.line()
    page.line(("To make the second like the first", "bold"))
    for text in dict.fromkeys(remedy.by_hand):
        page.prose(text, indent="  ", label=("- ", ""))
    if remedy.requirements:
        page.line("  requirements.txt")
        for line in remedy.requirements:
            page.line(f"    {line}")
    if remedy.dockerfile:
        page.line("  Dockerfile")
        for line in remedy.dockerfile:
            page.line(f"    {line}")
    page.line("  top of the script")
    for line in remedy.script.splitlines():
        page.line(f"    {line}" if line else "")

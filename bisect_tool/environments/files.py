"""What a file tells of an environment: snapshots, reports, recordings, ``pip freeze``, requirements and lock files.

All end as :class:`Facts`: values by domain and name. What a file cannot tell is not in its ``domains``, so that two files
of different kinds are compared in what both tell.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from bisect_tool.environments.snapshot import ENVIRONMENT_VERSION, normalised
from bisect_tool.environments.variables import is_allowed, safe_text, without_credentials
from bisect_tool.errors import BisectError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Key = tuple[str, str]

DOMAINS = (
    "package",
    "python",
    "torch flag",
    "variable",
    "cuda",
    "gpu",
    "cpu",
    "blas",
    "onnxruntime",
    "binary",
    "system",
)

ACCEPTED = (
    "a snapshot of `bisect-tool env`, report.json, a recording, pip freeze or pip list, a requirements file, poetry.lock, "
    "uv.lock, pdm.lock, pylock.toml, Pipfile.lock, environment.yml, conda list"
)

_CONDA_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch", "pytorch-cpu": "torch", "msgpack-python": "msgpack"}
"""Packages that conda calls otherwise."""
_ALIASES = {"opencv": "opencv-python", "py-opencv": "opencv-python", "libopencv": "opencv-python"}

CUDA, CUDNN = "runtime of torch", "cuDNN of torch"
"""Names in the domain ``cuda``."""

MOST_INCLUDED = 20
"""Files that requirements may include, one from the other."""


@dataclass(frozen=True)
class Facts:
    """What one file tells.

    Attributes:
        path: of the file.
        kind: what it is, for people.
        values: by domain and name.
        ranges: packages that are not pinned, with what is asked for (``>=1.20``).
        domains: those that the file tells of.
        complete: whether a package that is not in it is not installed.
        thorough: whether what is not in it beside packages is not there: a snapshot, and none of an older form.
        notes: what could not be used.
    """

    path: str
    kind: str
    values: Mapping[Key, str]
    ranges: Mapping[str, str] = field(default_factory=dict)
    domains: frozenset[str] = frozenset({"package"})
    complete: bool = True
    notes: tuple[str, ...] = ()
    thorough: bool = False


def read_facts(path: Path) -> Facts:
    """Reads any of the ``ACCEPTED`` kinds; a file's content decides, its name only where content does not.

    Raises:
        BisectError: no such file, of no known kind, or damaged.
    """
    text = _text(path)
    try:
        facts = _parsed(path, text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BisectError(f"{path} cannot be read: {reason[:200]}", hint=f"accepted are {ACCEPTED}") from error
    if facts is None or not (facts.values or facts.ranges):
        raise BisectError(f"{path} tells nothing of an environment", hint=f"accepted are {ACCEPTED}")
    return facts


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            for name in ("manifest.json", "report.json"):
                if (path / name).is_file():
                    return (path / name).read_text(encoding="utf-8")
            raise BisectError(
                f"{path} is a folder without manifest.json or report.json", hint=f"accepted are {ACCEPTED}"
            )
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if "manifest.json" not in archive.namelist():
                    raise BisectError(f"{path} is an archive without manifest.json", hint=f"accepted are {ACCEPTED}")
                return archive.read("manifest.json").decode("utf-8")
        data = path.read_bytes()
        # Output sent to a file by PowerShell is UTF-16.
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError as error:
        raise BisectError(f"{path}: no such file", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise BisectError(f"{path} is no text", hint=f"accepted are {ACCEPTED}") from error
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise BisectError(f"{path} cannot be read: {reason}", hint="check the file") from error


def _parsed(path: Path, text: str) -> Facts | None:
    stripped = text.lstrip()
    if re.search(r"^\[\[packages?\]\]", text, re.MULTILINE):
        return _of_toml(path, tomllib.loads(text))
    if stripped[:1] in ("{", "["):
        return _of_json(path, json.loads(text))
    if "@EXPLICIT" in text:
        return _of_conda_explicit(path, text)
    if re.search(r"^# Name\s+Version", text, re.MULTILINE) or re.search(
        r"^# packages in environment", text, re.MULTILINE
    ):
        return _of_conda_list(path, text)
    if path.suffix in (".yml", ".yaml") or re.search(r"^dependencies:\s*$", text, re.MULTILINE):
        return _of_conda_yaml(path, text)
    if re.match(r"Package\s+Version\b.*\n-+ -+", stripped):
        return _of_pip_list(path, stripped)
    return _of_requirements(path, text)


# JSON


def _of_json(path: Path, data: Any) -> Facts | None:
    if isinstance(data, list) and any("build_string" in item for item in data):  # conda list --json
        found = {item["name"]: (str(item["version"]), str(item.get("build_string", ""))) for item in data}
        return _conda(path, "conda list", found)
    if isinstance(data, list):  # pip list --format=json
        versions = {normalised(item["name"]): str(item["version"]) for item in data}
        return Facts(str(path), "pip list", _packages(versions))
    if "_meta" in data and ("default" in data or "develop" in data):
        locked = {**data.get("develop", {}), **data.get("default", {})}
        return _pinned(
            path,
            "Pipfile.lock",
            ((name, str(item.get("version", ""))) for name, item in locked.items()),
            complete=False,
        )
    if "installed" in data and "pip_version" in data:  # pip inspect
        metadata = [item["metadata"] for item in data["installed"]]
        return Facts(
            str(path), "pip inspect", _packages({normalised(item["name"]): item["version"] for item in metadata})
        )
    if isinstance(data.get("environment"), Mapping):
        kind = "report" if "verdict" in data else "recording" if "report" not in path.name else "report"
        return of_snapshot(str(path), kind, data["environment"])
    if data.get("environment_version", ENVIRONMENT_VERSION) > ENVIRONMENT_VERSION:
        raise BisectError(
            f"{path}: is a snapshot of form {data['environment_version']}, this version of the tool knows "
            f"{ENVIRONMENT_VERSION}",
            hint="compare with the newer version of the tool",
        )
    if "environment_version" in data or ("python" in data and "versions" in data):
        return of_snapshot(str(path), "snapshot", data)
    return None


def of_snapshot(path: str, kind: str, data: Mapping[str, Any]) -> Facts:
    """Facts of a snapshot; older ones, of reports, have only versions and the processor."""
    facts = _SnapshotFacts()
    _put_machine(facts, data)
    for name, version in (data.get("distributions") or data.get("versions") or {}).items():
        facts.put("package", normalised(name), version)
    if "variables" in data:
        facts.domains.add("variable")
        for name, value in data["variables"].items():
            if is_allowed(name):
                # Set to nothing is not the same as not set.
                facts.values["variable", name] = safe_text(str(value)) or "(empty)"
    _put_frameworks(facts, data)
    if "blas" in data:
        facts.domains.add("blas")
        facts.put("blas", "of numpy", data["blas"].get("numpy"))
    if data.get("binaries"):
        facts.domains.add("binary")
        for name, version in data["binaries"].items():
            facts.put("binary", name, version)
    complete = "distributions" in data
    thorough = "environment_version" in data
    return Facts(path, kind, facts.values, domains=frozenset(facts.domains), complete=complete, thorough=thorough)


class _SnapshotFacts:
    """Values that were found so far, and the domains that a snapshot tells all about."""

    def __init__(self) -> None:
        self.values: dict[Key, str] = {}
        self.domains = {"package", "python", "system", "cpu"}

    def put(self, domain: str, name: str, value: Any) -> None:
        """Enters what is known."""
        if value not in (None, "", [], {}):
            self.values[domain, name] = _plain(value)


def _put_machine(facts: _SnapshotFacts, data: Mapping[str, Any]) -> None:
    """Python, the system, processor and GPUs."""
    facts.put("python", "version", data.get("python"))
    facts.put("python", "implementation", data.get("python_implementation"))
    facts.put("system", "machine", data.get("machine"))
    for name in ("system", "distribution", "libc", "release"):
        facts.put("system", name, (data.get("os") or {}).get(name))
    cpu = data.get("cpu") or {}
    facts.put("cpu", "model", data.get("processor") or cpu.get("model"))
    facts.put("cpu", "cores", data.get("cpus"))
    facts.put("cpu", "cores available", cpu.get("available"))
    facts.put("cpu", "quota", cpu.get("quota"))
    facts.put("cpu", "instruction sets", cpu.get("instruction_sets"))
    if "gpu" in data:
        facts.domains.add("gpu")
        for number, device in enumerate(data["gpu"].get("devices") or ()):
            facts.put("gpu", f"device {number}", device.get("name"))
        facts.put("gpu", "driver", data["gpu"].get("driver"))


def _put_frameworks(facts: _SnapshotFacts, data: Mapping[str, Any]) -> None:
    """torch and ONNX Runtime, as they were built and switched."""
    torch = data.get("torch") or {}
    if torch and "absent" not in torch:
        facts.domains |= {"torch flag", "cuda"}
        for name, value in (torch.get("flags") or {}).items():
            facts.put("torch flag", name, value)
        facts.put("cuda", CUDA, torch.get("cuda"))
        facts.put("cuda", "HIP of torch", torch.get("hip"))
        facts.put("cuda", CUDNN, _cudnn_text(torch.get("cudnn")))
        for name in ("mkl", "onednn", "blas"):
            facts.put("blas", f"{name} of torch", torch.get(name))
        facts.put("cpu", "kernels of torch", torch.get("cpu_capability"))
    ort = data.get("onnxruntime") or {}
    if ort and "absent" not in ort:
        facts.domains.add("onnxruntime")
        for name in ("build", "providers", "device", "cuda"):
            facts.put("onnxruntime", name, ort.get(name))


def _cudnn_text(number: Any) -> str | None:
    """``8902`` → ``8.9.2``, ``90100`` → ``9.1.0``: two ways of counting, the later one from 9 on."""
    if not isinstance(number, int):
        return None if number is None else str(number)
    size = 10000 if number >= 90000 else 1000
    return f"{number // size}.{number % size // 100}.{number % 100}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


# Packages


def _packages(versions: Mapping[str, str]) -> dict[Key, str]:
    return {("package", name): version for name, version in versions.items()}


def _pinned(
    path: Path, kind: str, entries: Iterator[tuple[str, str]], *, complete: bool = True, notes: tuple[str, ...] = ()
) -> Facts:
    """Facts from names with ``==1.2``, ``1.2`` or ``>=1.2``."""
    values: dict[Key, str] = {}
    ranges: dict[str, str] = {}
    domains = {"package"}
    for raw, asked in entries:
        name = normalised(raw)
        exact = re.fullmatch(r"={0,3}\s*([^\s,<>=!~*]+)", asked.strip())
        if name == "python" and exact:
            values["python", "version"] = exact.group(1)
            domains.add("python")
        elif exact:
            values["package", name] = exact.group(1)
        else:
            ranges[name] = asked.strip() or "any version"
    return Facts(str(path), kind, values, ranges, frozenset(domains), complete, notes)


def _of_requirements(path: Path, text: str) -> Facts | None:
    """``pip freeze`` and requirements files; ``-r`` and ``-c`` are followed."""
    entries, notes = _requirement_lines(path, text, [path.resolve()])
    if not entries:
        return None
    chosen = _by_markers(entries)
    pinned = all(re.fullmatch(r"===?[^,*]+|@.*", asked) for asked, _ in chosen.values())
    direct = {name: asked[1:].strip() for name, (asked, _) in chosen.items() if asked.startswith("@")}
    facts = _pinned(
        path,
        "pip freeze or pinned requirements" if pinned else "requirements",
        ((name, asked) for name, (asked, _) in chosen.items() if not asked.startswith("@")),
        complete=False,
        notes=tuple(notes),
    )
    values = {**facts.values, **{("package", name): _of_url(url) for name, url in direct.items()}}
    return Facts(facts.path, facts.kind, values, facts.ranges, facts.domains, False, facts.notes)


def _of_url(url: str) -> str:
    """The version in a wheel's name, else the address without credentials."""
    wheel = re.search(r"/[^/]+?-([0-9][^-/]*)-[^/]*\.whl", url)
    if wheel:
        return wheel.group(1).replace("%2B", "+")
    return f"@ {without_credentials(url.partition('#')[0])}"


def _requirement_lines(path: Path, text: str, seen: list[Path]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Name, what is asked for, and marker of each requirement, and notes on lines that are none.

    Raises:
        BisectError: a line is no requirement, or an included file cannot be read.
    """
    found: list[tuple[str, str, str]] = []
    notes: list[str] = []
    for number, line in _logical_lines(text):
        included = re.match(r"(?:-r|--requirement|-c|--constraint)[\s=]+(\S+)", line)
        if included:
            other = path.parent / included.group(1)
            if other.resolve() in seen or len(seen) >= MOST_INCLUDED:
                continue
            more = _requirement_lines(other, _text(other), [*seen, other.resolve()])
            found += more[0]
            notes += more[1]
            continue
        editable = re.match(r"(?:-e|--editable)[\s=]+(\S+)", line)
        if editable:
            name = re.search(r"#egg=([\w.-]+)", editable.group(1))
            if name:
                found.append((name.group(1), f"@ {editable.group(1)}", ""))
            else:
                notes.append(f"{path.name} line {number}: an editable install without a name was left out")
            continue
        if line.startswith("-"):
            continue  # options of pip
        found.append(_requirement(path, number, line))
    return found, notes


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, joined where they end with a backslash, and their numbers."""
    buffer, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", line)
        start = start if buffer else number
        if line.endswith("\\"):
            buffer += line[:-1] + " "
            continue
        joined, buffer = (buffer + line).strip(), ""
        if joined:
            yield start, joined
    if buffer.strip():
        yield start, buffer.strip()


def _requirement(path: Path, number: int, line: str) -> tuple[str, str, str]:
    line = re.sub(r"\s--hash[= ]\S+", "", line).strip()
    line = re.sub(r"\s--(config-settings|global-option)[= ]\S+", "", line)
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        wheel = re.search(r"([\w.]+)-([0-9][^-/]*)-[^/]*\.whl", line)
        if wheel:
            return wheel.group(1), f"=={wheel.group(2).replace('%2B', '+')}", ""
        shown = without_credentials(line)[:60]
        raise BisectError(
            f"{path} line {number}: {shown!r} is no requirement", hint=f"accepted are {ACCEPTED}"
        ) from error
    asked = f"@ {requirement.url}" if requirement.url else str(requirement.specifier)
    return requirement.name, asked, str(requirement.marker or "")


def _by_markers(entries: list[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    """One entry a name: where several stand, the one whose marker holds here, else the last."""
    chosen: dict[str, tuple[str, str]] = {}
    held: set[str] = set()
    for raw, asked, marker in entries:
        name = normalised(raw)
        holds = not marker or Requirement(f"x; {marker}").marker.evaluate()  # type: ignore[union-attr]
        # Constraints repeat a name, pinned.
        if name not in chosen or (holds and (name not in held or "==" in asked)):
            chosen[name] = asked, marker
        if holds:
            held.add(name)
    return chosen


def _of_pip_list(path: Path, text: str) -> Facts:
    versions = {}
    for line in text.splitlines()[2:]:
        words = line.split()
        if len(words) >= 2:
            versions[normalised(words[0])] = words[1]
    return Facts(str(path), "pip list", _packages(versions))


def _of_toml(path: Path, data: Mapping[str, Any]) -> Facts:
    """poetry.lock, uv.lock, pdm.lock: ``[[package]]``; pylock.toml: ``[[packages]]``."""
    entries: dict[str, list[str]] = {}
    for item in data.get("package", data.get("packages", [])):
        if (
            "version" in item
            and "virtual" not in (item.get("source") or {})
            and "editable" not in (item.get("source") or {})
        ):
            entries.setdefault(normalised(item["name"]), []).append(str(item["version"]))
    notes = [
        f"{path.name} locks several versions of {name}: {', '.join(versions)}; the last was taken"
        for name, versions in entries.items()
        if len(set(versions)) > 1
    ]
    kind = path.name if path.suffix in (".lock", ".toml") else "lock file"
    # A lock file holds what some platforms need, and what extras need: more than is installed.
    versions = {name: found[-1] for name, found in entries.items()}
    return Facts(str(path), kind, _packages(versions), complete=False, notes=tuple(notes))


# conda


def _conda(path: Path, kind: str, entries: Mapping[str, tuple[str, str]], notes: tuple[str, ...] = ()) -> Facts:
    """From versions and build strings; the latter tell CPU from CUDA."""
    values: dict[Key, str] = {}
    ranges: dict[str, str] = {}
    domains = {"package"}
    for raw, (version, build) in entries.items():
        name = normalised(raw)
        name = _CONDA_NAMES.get(name, _ALIASES.get(name, name))
        if name == "python":
            if version:
                values["python", "version"] = version
                domains.add("python")
        elif name in ("cudatoolkit", "pytorch-cuda", "cuda-version", "cudnn") and version:
            # Conda counts builds of cuDNN, torch does not.
            values["cuda", CUDNN if name == "cudnn" else CUDA] = ".".join(
                version.split(".")[: 3 if name == "cudnn" else 2]
            )
            domains.add("cuda")
        elif name in ("pytorch-mutex", "cpuonly"):
            continue
        elif version:
            values.setdefault(
                ("package", name), version + (_tag(build) if name == "torch" and "+" not in version else "")
            )
        else:
            ranges[name] = build or "any version"
    return Facts(str(path), kind, values, ranges, frozenset(domains), kind != "environment.yml", notes)


def _tag(build: str) -> str:
    """``py3.10_cuda11.8_cudnn8.7.0_0`` → ``+cu118``, ``cpu_generic_py310`` → ``+cpu``."""
    cuda = re.search(r"cuda_?(\d+)\.?(\d*)", build)
    if cuda:
        return f"+cu{cuda.group(1)}{cuda.group(2)}"
    return "+cpu" if "cpu" in build else ""


def _of_conda_list(path: Path, text: str) -> Facts:
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return _conda(
        path, "conda list", {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in rows if len(row) > 1}
    )


def _of_conda_explicit(path: Path, text: str) -> Facts:
    entries = {}
    for line in text.splitlines():
        found = re.search(r"/([^/#]+)-([^-/#]+)-([^-/#]+?)\.(?:conda|tar\.bz2)", line)
        if found:
            entries[found.group(1)] = found.group(2), found.group(3)
    return _conda(path, "conda list --explicit", entries)


def _of_conda_yaml(path: Path, text: str) -> Facts:
    """The one form that environment.yml has: a list of dependencies, with a list for pip in it."""
    entries: dict[str, tuple[str, str]] = {}
    pip: list[str] = []
    inside: str | None = None
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        item = re.match(r"(\s*)-\s+(.*)$", line)
        if re.match(r"\w", line):
            inside = "conda" if line.startswith("dependencies:") else None
        elif inside and item and item.group(2).strip().rstrip(":") == "pip" and item.group(2).strip().endswith(":"):
            inside = "pip"
            depth = len(item.group(1))
        elif item and inside == "pip" and len(item.group(1)) > depth:
            pip.append(item.group(2).strip().strip("'\""))
        elif item and inside:
            inside = "conda"
            _conda_entry(item.group(2).strip().strip("'\""), entries)
    if not entries and not pip:
        raise ValueError("no list of dependencies in it")
    conda = _conda(path, "environment.yml", entries)
    installed = _of_requirements(path, "\n".join(pip)) if pip else None
    if installed is None:
        return conda
    return Facts(
        conda.path,
        conda.kind,
        {**conda.values, **installed.values},
        {**conda.ranges, **installed.ranges},
        conda.domains | installed.domains,
        False,
        (*conda.notes, *installed.notes),
    )


def _conda_entry(text: str, entries: dict[str, tuple[str, str]]) -> None:
    """``numpy=1.26.4=py310h_0``, ``numpy==1.26.4``, ``conda-forge::numpy>=1.20``, ``python``."""
    text = text.rpartition("::")[2]
    exact = re.fullmatch(r"([\w.-]+?)\s*={1,2}\s*([\w.+!]+)(?:=([\w.*-]+))?", text)
    if exact:
        entries[exact.group(1)] = exact.group(2), exact.group(3) or ""
        return
    loose = re.match(r"([\w.-]+?)\s*([<>=!~ ].*)?$", text)
    if loose:
        entries[loose.group(1)] = "", (loose.group(2) or "").strip()


def version_of(text: str) -> Version | None:
    """A version, or None where it is none by PEP 440."""
    try:
        return Version(text)
    except InvalidVersion:
        return None

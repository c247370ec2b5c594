"""Two recordings along the chain of what makes numbers: code, environment, configuration, files, data, weights, mode and
flags, random state.

Every difference says what it can do to numbers and where, so that the first one that explains what is seen can be told from
those that merely differ as well: on another machine the kernel's version is always another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from bisect_tool.environments.diff import Difference as Ranked
from bisect_tool.environments.diff import diff
from bisect_tool.environments.files import of_snapshot
from bisect_tool.records import Difference, FirstCause, Link, Reach

Manifest = Mapping[str, Any]

EVERYWHERE = ("data", "weights", "stages")
REDUCED = 3e-2
"""Up to this relative error in one stage, TF32 or half precision do."""

LISTED = 12
"""Differences of one kind that a link names; the others are counted."""

NUMERIC = re.compile(
    r"torch|torch(vision|audio|text|data|sde|diffeq)|pytorch-.*|triton|numpy|scipy|numba|llvmlite|pandas|polars|pyarrow|xarray"
    r"|scikit-.*|opencv-.*|pillow(-simd)?|imageio.*|tifffile|kornia|albument.*|av|decord|librosa|soundfile|soxr|resampy|audioread"
    r"|onnx|onnxruntime.*|onnxscript|openvino|tensorrt.*|nvidia-.*|intel-.*|mkl.*|tbb|onednn.*|cupy.*|jax.*|flax|tensorflow.*"
    r"|transformers|tokenizers|sentencepiece|accelerate|diffusers|safetensors|timm|einops|xformers|flash-attn|bitsandbytes|peft"
    r"|mm.*|detectron2|ultralytics|spconv.*|torch-.*|open3d|shapely|pycocotools|nuscenes.*|h5py|netcdf4|zarr|blosc2?|lxml"
)
"""Packages that read, decode or compute numbers."""

_THREADS = re.compile(r"(OMP|MKL|OPENBLAS|NUMEXPR|VECLIB_MAXIMUM|BLIS)_(NUM_THREADS|DYNAMIC)|KMP_\w+|GOMP_\w+|OMP_\w+")
_ROUNDING_VARIABLES = re.compile(r"(MKL|OPENBLAS|ONEDNN|DNNL|ATEN|CUBLAS|BLIS)_\w+")
_REDUCED_VARIABLES = re.compile(r"NVIDIA_TF32_OVERRIDE|\w*TF32\w*|\w*FPMATH\w*")
_TOOLS = ("bisect-divergence",)


def provenance_links(expected: Manifest, actual: Manifest, compare: Compare) -> list[Link]:
    """The links before the stages, in causal order.

    Args:
        expected, actual: manifests.
        compare: two tensors, by their names in the two bundles, to their relative error; ``None`` where they are equal.
    """
    sides = (expected["provenance"], actual["provenance"])
    data = data_link(expected, actual, compare)
    weights = weights_link(expected, actual, compare)
    return [
        code_link(*(side.get("code") for side in sides)),
        environment_link(expected, actual),
        configuration_link(*(side.get("configuration") for side in sides)),
        files_link(sides[0].get("files") or [], sides[1].get("files") or [], data, weights),
        data,
        weights,
        mode_link(sides[0].get("mode") or {}, sides[1].get("mode") or {}),
        random_link(
            sides[0].get("random") or {},
            sides[1].get("random") or {},
            {each.link for each in (data, weights) if each.status != "differs"} | _replaced(sides),
            _computed(expected, actual, weights),
        ),
    ]


def _replaced(sides: Sequence[Mapping[str, Any]]) -> set[str]:
    """What is not as the code made it, whatever was drawn for that: a checkpoint replaces the weights."""
    loaded = [any(file["role"] == "checkpoint" for file in side.get("files") or ()) for side in sides]
    return {"weights"} if all(loaded) else set()


Compare = Callable[[str, str], "float | None"]


def _computed(expected: Manifest, actual: Manifest, weights: Link) -> set[str]:
    """Whether only buffers differ: they are counted from data as a rule, as statistics are, and not drawn."""
    kinds = {entry["name"]: entry.get("kind") for side in (expected, actual) for entry in side["weights"]}
    differing = [difference.what for difference in weights.differences if difference.reach != "none"]
    return {"weights"} if differing and all(kinds.get(name) == "buffer" for name in differing) else set()


def _link(name: str, checked: str, differences: Sequence[Difference], *, known: bool = True) -> Link:
    status = "differs" if differences else "same" if known else "unknown"
    return Link(name, status, checked, tuple(differences))  # type: ignore[arg-type]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# -- code -------------------------------------------------------------------------------------------------------------


def code_link(expected: Mapping[str, Any] | None, actual: Mapping[str, Any] | None) -> Link:
    """Source files that the run used; a repository's state counts only as far as these files are concerned."""
    if not expected or not actual:
        return _link("code", "not recorded on one side", (), known=False)
    one, other = ({file["path"]: file for file in side["files"]} for side in (expected, actual))
    if bool(one) != bool(other):
        # A graph alone, or an archive: there is no source to compare with.
        return _link("code", "not recorded on one side", (), known=False)
    pairs = dict(_same_files(one, other))
    found = []
    uncommitted = [{entry["path"] for entry in (side.get("git") or {}).get("dirty", ())} for side in (expected, actual)]
    for path, there in pairs.items():
        if one[path]["sha256"] != other[there]["sha256"]:
            dirty = [side for side, name in ((0, path), (1, there)) if name in uncommitted[side]]
            found.append(_changed_file(one[path], other[there], [("expected", "actual")[side] for side in dirty]))
    matched = set(pairs.values())
    for path in one:
        if path not in pairs:
            found.append(Difference(f"source file {path}", "used", None, "any", EVERYWHERE, "only expected uses it"))
    for path in other:
        if path not in matched:
            found.append(Difference(f"source file {path}", None, "used", "any", EVERYWHERE, "only actual uses it"))
    found += _repository(expected.get("git"), actual.get("git"), set(one) | set(other))
    return _link("code", _count(len(pairs), "source file"), found, known=bool(pairs))


def _same_files(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """By path; of what is left by name, where only one file has it: repositories lie in other folders elsewhere."""
    rest = [path for path in other if path not in one]
    for path in one:
        if path in other:
            yield path, path
            continue
        name = path.rpartition("/")[2]
        here = [p for p in one if p not in other and p.rpartition("/")[2] == name]
        there = [p for p in rest if p.rpartition("/")[2] == name]
        if len(here) == len(there) == 1:
            yield path, there[0]


def _changed_file(one: Mapping[str, Any], other: Mapping[str, Any], uncommitted: Sequence[str]) -> Difference:
    digests = one["sha256"][:12], other["sha256"][:12]
    what = f"source file {one['path']}"
    if one.get("code") and one.get("code") == other.get("code"):
        return Difference(what, *digests, "none", (), "only comments or layout differ")
    where = f", uncommitted changes in {' and '.join(uncommitted)}" if uncommitted else ""
    return Difference(what, *digests, "any", EVERYWHERE, f"other code ({one['used']}){where}")


def _state(entry: Mapping[str, Any] | None) -> str:
    return "as committed" if entry is None else str(entry["state"] or "changed")


def _repository(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, used: set[str]) -> Iterator[Difference]:
    """Whatever of it matters is among the files: the rest is told, and can't have reached a number."""
    if not one or not other:
        if one or other:
            texts = _there(one), _there(other)
            yield Difference("repository", *texts, "none", (), "only one side lies in one; the files themselves count")
        return
    if one["commit"] != other["commit"]:
        commits = (str(one["commit"])[:12], str(other["commit"])[:12])
        yield Difference("git commit", *commits, "none", (), "the files that the run used are compared one by one")
    changed, there = ({entry["path"]: entry for entry in side["dirty"]} for side in (one, other))
    unused = [
        path
        for path in dict.fromkeys([*changed, *there])
        if path not in used and (changed.get(path) or {}).get("sha256", "") != (there.get(path) or {}).get("sha256", "")
    ]
    for path in unused[:LISTED]:
        states = _state(changed.get(path)), _state(there.get(path))
        yield Difference(f"uncommitted {path}", *states, "none", (), "the run did not use it")
    if len(unused) > LISTED:
        yield Difference(f"{len(unused) - LISTED} more uncommitted files", None, None, "none", (), "the run used none")
    modules = one["submodules"], other["submodules"]
    for path in dict.fromkeys([*modules[0], *modules[1]]):
        states = modules[0].get(path), modules[1].get(path)
        if states[0] != states[1]:
            inside = any(file.startswith(f"{path}/") for file in used)
            note = None if inside else "the run used no Python file of it"
            short = (states[0] and states[0][:12], states[1] and states[1][:12])
            yield Difference(f"submodule {path}", *short, "possible" if inside else "none", EVERYWHERE, note)


# -- environment ------------------------------------------------------------------------------------------------------

_PER_PROCESS = frozenset({"torch flag", "binary"})
"""Told by a link of their own, or nothing that computes."""

_ROUNDING_DOMAINS = frozenset({"cpu", "gpu", "cuda", "blas"})


def environment_link(expected: Manifest, actual: Manifest) -> Link:
    """Interpreter, packages, processor, GPU and variables, as ``env diff`` ranks them, and what of it the runs used."""
    sides = expected["environment"], actual["environment"]
    if not sides[0] or not sides[1]:
        return _link("environment", "not recorded on one side", (), known=False)
    facts = [of_snapshot(name, "recording", side) for name, side in zip(("expected", "actual"), sides, strict=True)]
    runs = expected["provenance"], actual["provenance"]
    imported = [set(run.get("imported") or ()) for run in runs]
    threads = [((run.get("mode") or {}).get("flags") or {}).get("threads") for run in runs]
    runtimes = {str((run.get("configuration") or {}).get("backend")) for run in runs}
    gpu = any("cuda" in device for run in runs for device in (run.get("mode") or {}).get("devices") or ())
    found, idle = [], 0
    # Both programs that record tell of all variables; of the rest the carried file tells less.
    told = [replace(each, values=_of_domain(each.values, "variable"), thorough=True) for each in facts]
    rest = [replace(each, domains=each.domains - {"variable"}) for each in facts]
    ranked = (*diff(rest[0], rest[1]).differences, *diff(told[0], told[1]).differences)
    other_torch = any((each.domain, each.name) == ("package", "torch") for each in ranked)
    for each in ranked:
        if (
            each.domain in _PER_PROCESS
            or each.name in _TOOLS
            or (each.domain == "onnxruntime" and "onnxruntime" not in runtimes)
        ):
            continue
        if each.domain == "package" and not _is_used(each, imported, runtimes):
            idle += 1
            continue
        difference = _around(each, threads, gpu=gpu)
        if other_torch and each.name.endswith("of torch") and difference.reach == "rounding":
            difference = replace(difference, reach="possible", note="comes with the other torch")
        found.append(difference)
    found += _torch_sources(*(run.get("torch") or {} for run in runs))
    found.sort(key=lambda difference: (_ORDER[difference.reach], not difference.what.startswith("package ")))
    if idle:
        found.append(Difference(f"{_count(idle, 'package')} that the runs did not use", None, None, "none", (), None))
    count = len([key for key in facts[0].values if key[0] == "package" and key in facts[1].values])
    return _link("environment", f"{_count(count, 'package')}, processor, variables", found)


def _of_domain(values: Mapping[tuple[str, str], str], domain: str) -> dict[tuple[str, str], str]:
    return {key: value for key, value in values.items() if key[0] == domain}


_ORDER: Mapping[Reach, int] = {"any": 0, "reduced": 1, "possible": 1, "rounding": 2, "none": 3}


def _is_used(each: Ranked, imported: Sequence[set[str]], runtimes: Set[str]) -> bool:
    """Whether a number can have come from a package at all: it was imported, and computes something.

    What is there on one side only was not needed on the other; the tool itself imports some that a recorder of one file
    does not.
    """
    if each.name.startswith("onnx"):
        return "onnxruntime" in runtimes and each.name.startswith("onnxruntime")
    used = [each.name in side for side in imported]
    if each.expected is None or each.actual is None:
        return any(used) and each.name not in _OWN_NEEDS and NUMERIC.fullmatch(each.name) is not None
    return any(used) and (each.level in ("likely", "possible") or NUMERIC.fullmatch(each.name) is not None)


_OWN_NEEDS = frozenset({"pandas", "matplotlib", "safetensors", "ml-dtypes", "numpy", "torch"})


def _around(each: Ranked, threads: Sequence[Any], *, gpu: bool) -> Difference:
    what = {
        "package": "package {}",
        "variable": "variable {}",
        "python": "Python {}",
        "gpu": "GPU {}",
        "cuda": "CUDA, {}",
        "blas": "linear algebra, {}",
        "onnxruntime": "ONNX Runtime's {}",
    }
    name = what.get(each.domain, "{}").format(each.name)
    name = {("cpu", "model"): "processor", ("python", "version"): "Python"}.get((each.domain, each.name), name)
    reach, acts, note = _reach_around(each, threads)
    if each.domain in ("gpu", "cuda") and not gpu:
        reach, acts, note = "none", (), "neither run used a GPU"
    return Difference(name, each.expected, each.actual, reach, acts, note)


def _reach_around(each: Ranked, threads: Sequence[Any]) -> tuple[Reach, tuple[str, ...], str]:
    if each.level == "none" or each.domain == "system":
        return "none", (), each.reason
    if each.domain == "variable":
        if _REDUCED_VARIABLES.fullmatch(each.name):
            return "reduced", ("stages",), each.reason
        if _THREADS.fullmatch(each.name):
            if threads[0] == threads[1]:
                return "none", (), "PyTorch runs as many threads on both sides"
            return "rounding", EVERYWHERE, f"threads: {threads[0]} and {threads[1]}"
        if _ROUNDING_VARIABLES.fullmatch(each.name):
            return "rounding", ("data", "stages"), each.reason
        if each.level == "unknown":
            return "none", (), "not known to change numbers"
    if each.domain == "cpu" and each.name in ("cores", "cores available", "quota"):
        return "none", (), "threads are compared by themselves"
    if each.domain in _ROUNDING_DOMAINS:
        return "rounding", EVERYWHERE, each.reason
    return "possible", EVERYWHERE, each.reason


def _torch_sources(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    gits = str(one.get("git"))[:12], str(other.get("git"))[:12]
    if one.get("torch") and one.get("torch") == other.get("torch") and gits[0] != gits[1]:
        note = "one version number, built from other sources"
        yield Difference("PyTorch's build", *gits, "possible", EVERYWHERE, note)


# -- configuration and files ------------------------------------------------------------------------------------------

_REACH_OF_SETTING: Mapping[str, tuple[Reach, tuple[str, ...]]] = {
    "device": ("reduced", ("stages",)),
    "dtype": ("reduced", ("weights", "stages")),
    "seed": ("any", EVERYWHERE),
    "preprocess": ("any", ("data",)),
    "mode": ("any", ("stages",)),
    "provider": ("reduced", ("stages",)),
    "optimization": ("rounding", ("stages",)),
    "runtime": ("possible", ("stages",)),
    "backend": ("rounding", ("stages",)),
    "exporter": ("possible", ("stages",)),
    "opset": ("possible", ("stages",)),
}


def configuration_link(expected: Mapping[str, Any] | None, actual: Mapping[str, Any] | None) -> Link:
    """Every choice that was made, with what ``auto`` became."""
    if expected is None or actual is None:
        return _link("configuration", "not recorded on one side", (), known=False)
    one, other = dict(_flat(expected)), dict(_flat(actual))
    found = []
    across = expected.get("backend") != actual.get("backend")
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) == other.get(name):
            continue
        if across and (name not in one or name not in other):
            continue  # the other runner has no such choice
        top = name.partition(".")[0]
        reach, acts = _REACH_OF_SETTING.get(top, ("any", EVERYWHERE))
        note = "two runners: only rounding is to be expected between them" if name == "backend" else None
        found.append(Difference(name, _text(one.get(name)), _text(other.get(name)), reach, acts, note))
    return _link("configuration", _count(len(one), "setting"), found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + str(key), value


def _first_weight(weights: Link) -> str | None:
    if not weights.differences:
        return None
    first = weights.differences[0]
    share, _, size = str(first.note).partition(", ")
    return f"{share}: {first.what} ({size})" if size else f"{first.what} is {share}"


def _there(thing: object) -> str | None:
    return "there" if thing else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def files_link(one: Sequence[Any], other: Sequence[Any], data: Link, weights: Link) -> Link:
    """Files that were read. Another file with the same content in it can't have changed a number."""
    sides = [{(file["role"], number): file for file, number in _numbered(side)} for side in (one, other)]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        pair = sides[0].get(key), sides[1].get(key)
        role = key[0]
        name = next(file["name"] for file in pair if file)
        what = f"{role} {name}"
        if pair[0] and pair[1] and pair[0]["sha256"] == pair[1]["sha256"]:
            continue
        texts = _file_text(pair[0]), _file_text(pair[1])
        reach, acts, note = _reach_of_file(role, data, weights)
        found.append(Difference(what, *texts, reach, acts, note))
    return _link("files", _count(len(sides[0]), "file"), found, known=bool(one or other))


def _file_text(file: Mapping[str, Any] | None) -> str | None:
    return None if file is None else f"{file['name']}, {file['bytes']} bytes, {file['sha256'][:12]}"


def _numbered(files: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    counts: dict[str, int] = {}
    for file in files:
        number = counts.get(file["role"], 0)
        counts[file["role"]] = number + 1
        yield file, number


def _reach_of_file(role: str, data: Link, weights: Link) -> tuple[Reach, tuple[str, ...], str | None]:
    if role == "checkpoint":
        if weights.status == "same":
            return "none", (), "the weights that were loaded from it are the same"
        return "any", ("weights",), _first_weight(weights)
    if role in ("input", "raw"):
        if data.status == "same":
            return "none", (), "what was read from it is the same"
        return "any", ("data",), None
    return "any", ("weights", "stages"), None


# -- data and weights -------------------------------------------------------------------------------------------------


def data_link(expected: Manifest, actual: Manifest, compare: Compare) -> Link:
    """Steps of preprocessing in the order in which they came, then the model's inputs."""
    one, other = (_steps(side["data"]) for side in (expected, actual))
    found = []
    for name in dict.fromkeys([*one, *other]):
        sides = one.get(name), other.get(name)
        if sides[0] is None or sides[1] is None:
            found.append(Difference(name, _there(sides[0]), _there(sides[1]), "any", ("data",), "on one side only"))
            continue
        error = compare(sides[0], sides[1])
        if error is not None:
            shapes = _kind(expected, sides[0]), _kind(actual, sides[1])
            note = _reordered(expected, actual, sides[0], sides[1]) or _size_note(error)
            found.append(Difference(name, *shapes, "any", ("data",), note, error))
    inputs = {_label("input", entry["key"]) for side in (expected, actual) for entry in side["data"]["inputs"]}
    scripts = "script" in (expected.get("kind"), actual.get("kind"))
    if scripts:
        found = _batches(found, expected, actual)
    elif found and not any(difference.what in inputs for difference in found):
        found = [replace(each, reach="none", note=f"{each.note}; the inputs are the same") for each in found]
    steps = len([name for name in one if name not in inputs])
    checked = f"{_count(steps, 'step')} of preprocessing, {_count(len(one) - steps, 'input')}"
    return _link("data", checked, found, known=bool(one and other))


def _reordered(expected: Manifest, actual: Manifest, one: str, other: str) -> str | None:
    """Of two lists of texts: what became of them; ``None`` for numbers."""
    texts = expected.get("texts", {}).get(one), actual.get("texts", {}).get(other)
    if texts[0] is None or texts[1] is None:
        return None
    if sorted(texts[0]) == sorted(texts[1]):
        return f"the same {len(texts[0])} in another order"
    lost, new = (sorted(set(a) - set(b)) for a, b in ((texts[0], texts[1]), (texts[1], texts[0])))
    parts = [
        f"only in {side}: {', '.join(names[:3])}" for side, names in (("expected", lost), ("actual", new)) if names
    ]
    return "; ".join(parts) or "some of them more often"


def _batches(found: Sequence[Difference], expected: Manifest, actual: Manifest) -> list[Difference]:
    """Of a script's batches: whether the same samples come in another order, or are made in another way.

    Digests of samples serve that alone; they are no step of their own.
    """
    sides = [
        [text for entry in side["data"]["taps"] if entry["name"].startswith(_SAMPLES) for text in _texts(side, entry)]
        for side in (expected, actual)
    ]
    text = _moved(*sides) if all(sides) else None
    kept = [each for each in found if not each.what.startswith(f"step {_SAMPLES}")]
    if kept and all(sides) and not any(each.what.startswith("step batch") for each in kept):
        return [replace(each, reach="none", note=f"{each.note}; the batches are the same") for each in kept]
    return [
        replace(each, note=f"{each.note}; {text}") if text and each.what.startswith("step batch") else each
        for each in kept
    ]


def _moved(one: Sequence[str], other: Sequence[str]) -> str:
    """What became of samples, by their digests in the order in which they came."""
    shared = sum((Counter(one) & Counter(other)).values())
    there = sum(first == second for first, second in zip(one, other, strict=False))
    if there == min(len(one), len(other)):
        return "the same samples in the same order: what else a batch holds, such as labels, or its size"
    if not shared:
        return "no sample is the same: the transform, or other files"
    if there < shared / 2:
        return "the same samples at other places: the data's order"
    if len(one) == len(other) and there == shared:
        others = len(one) - there
        what = "1 sample is another one" if others == 1 else f"{others} samples are others"
        return f"{what} of {len(one)}, the rest stand where they stood: the transform, or other files"
    return "samples at other places, and others: the data's order, and the transform or other files"


_SAMPLES = "samples of batch"


def _texts(side: Manifest, entry: Mapping[str, Any]) -> list[str]:
    return [str(text) for text in side.get("texts", {}).get(entry["tensor"], ())]


def _steps(data: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for entry in data["taps"]:
        name = f"step {entry['name']}" + (f"@{entry['call']}" if entry["call"] else "")
        found[name] = entry["tensor"]
    for entry in data["inputs"]:
        found[_label("input", entry["key"])] = entry["tensor"]
    return found


def _label(what: str, key: Any) -> str:
    return f"{what} {key}"


def _kind(side: Manifest, tensor: str) -> str:
    info = side["tensors"][tensor]
    return f"{info['dtype']}{list(info['shape'])} {info['sha256'][:12]}"


def _size_note(error: float) -> str:
    if error != error:
        return "of other shape or kind, or NaN on one side"
    return "differs" if error == float("inf") else f"relative L2 {error:.1e}"


def weights_link(expected: Manifest, actual: Manifest, compare: Compare) -> Link:
    """Parameters and buffers by name."""
    one, other = ({entry["name"]: entry["tensor"] for entry in side["weights"]} for side in (expected, actual))
    if not one or not other:
        return _link("weights", "not recorded on one side", (), known=False)
    errors: list[tuple[str, float]] = []
    absent = [name for name in dict.fromkeys([*one, *other]) if name not in one or name not in other]
    for name, tensor in one.items():
        if name in other and (error := compare(tensor, other[name])) is not None:
            errors.append((name, error))
    training = any((side["provenance"].get("mode") or {}).get("modules_in_training") for side in (expected, actual))
    counters = [name for name, _ in errors if name.endswith("num_batches_tracked") and not training]
    counting = [item for item in errors if item[0] not in counters]
    found = []
    if counting:
        name, error = counting[0]
        share = (
            f"{len(counting)} of {len(one)} weights differ" if len(counting) > 1 else f"1 of {len(one)} weights differs"
        )
        note = f"{share}, {_size_note(error)}"
        worst = max(counting, key=lambda item: _badness(item[1]))
        if worst is not counting[0]:
            note += f" (the most in {worst[0]}: {_size_note(worst[1])})"
        found.append(Difference(name, *_kinds(expected, actual, one, other, name), "any", ("weights",), note, error))
        # All of them: what is shown is the reporters' affair, and they say how many are left out.
        for name, error in counting[1:]:
            sides = _kinds(expected, actual, one, other, name)
            found.append(Difference(name, *sides, "any", ("weights",), _size_note(error), error))
    for name in absent:
        texts = _there(one.get(name)), _there(other.get(name))
        found.append(Difference(name, *texts, "any", ("weights",), "on one side only"))
    for name in counters:
        sides = _kinds(expected, actual, one, other, name)
        found.append(Difference(name, *sides, "none", (), "counts training steps; unused in evaluation"))
    return _link("weights", f"{_count(len(one), 'weight')} and buffers", found)


def _kinds(
    expected: Manifest, actual: Manifest, one: Mapping[str, str], other: Mapping[str, str], name: str
) -> tuple[str, str]:
    return _kind(expected, one[name]), _kind(actual, other[name])


def _badness(error: float) -> float:
    return float("inf") if error != error else error


# -- mode, flags and random state -------------------------------------------------------------------------------------

_REDUCED_FLAGS = re.compile(r".*(tf32|precision).*")
_ON_GPU = re.compile(r"cudnn\..*|matmul\..*")


def mode_link(one: Mapping[str, Any], other: Mapping[str, Any]) -> Link:
    """Training or evaluation, module by module, and PyTorch's numeric flags with its threads."""
    if not one or not other:
        return _link("mode and flags", "not recorded on one side", (), known=False)
    found = []
    training = [list(side.get("modules_in_training") or ()) for side in (one, other)]
    if training[0] != training[1]:
        apart = [
            name or "(model)"
            for name in dict.fromkeys([*training[0], *training[1]])
            if (name in training[0]) != (name in training[1])
        ]
        shown = ", ".join(apart[:4]) + (f" and {len(apart) - 4} more" if len(apart) > 4 else "")
        texts = _modes(training[0]), _modes(training[1])
        note = f"in training on one side only: {shown}: dropout draws, norms use the batch's own statistics"
        found.append(Difference("training mode", *texts, "any", ("stages",), note))
    flags = [side.get("flags") or {} for side in (one, other)]
    gpu = any("cuda" in device for side in (one, other) for device in side.get("devices") or ())
    for name in flags[0]:
        if name in flags[1] and flags[0][name] != flags[1][name]:
            found.append(_flag(name, flags[0][name], flags[1][name], gpu))
    found.sort(key=lambda difference: _ORDER[difference.reach])
    return _link("mode and flags", f"train or eval mode, {_count(len(flags[0]), 'flag')}", found)


def _modes(training: Sequence[str]) -> str:
    return f"{_count(len(training), 'module')} in training" if training else "evaluation"


def _flag(name: str, one: Any, other: Any, gpu: bool) -> Difference:
    sides = str(one), str(other)
    if name == "threads":
        return Difference("threads", *sides, "rounding", EVERYWHERE, "sums are divided among them in another way")
    if _ON_GPU.fullmatch(name) and not gpu:
        return Difference(name, *sides, "none", (), "only counts on a GPU, and the model ran on the CPU")
    if name == "interop_threads":
        return Difference("inter-op threads", *sides, "none", (), "they run whole operations")
    if name == "default_dtype":
        return Difference(name, *sides, "reduced", EVERYWHERE, None)
    if name == "autocast" or _REDUCED_FLAGS.fullmatch(name):
        return Difference(name, *sides, "reduced", ("stages",), None)
    if name == "deterministic_warn_only":
        return Difference(name, *sides, "none", (), "it only chooses between an error and a warning")
    return Difference(name, *sides, "rounding", ("stages",), None)


_PHASES = (
    ("start", "built", "weights", "building the model"),
    ("built", "sample", "data", "making the sample"),
    ("sample", "end", "stages", "the run"),
)


def random_link(
    one: Mapping[str, Any], other: Mapping[str, Any], same: Set[str] = frozenset(), computed: Set[str] = frozenset()
) -> Link:
    """Generators whose state differed where numbers were drawn from them; unused ones always differ, and don't matter.

    ``same``: of data and weights what is the same: whatever was drawn for it came to nothing, as a checkpoint replaces the
    weights that a model is built with.
    ``computed``: what differs, and is no numbers that were drawn, unless the generators began in other states.
    """
    if not one or not other:
        return _link("random state", "not recorded on one side", (), known=False)
    found, idle = [], []
    names = list(dict.fromkeys([*one.get("start", {}), *one.get("end", {})]))
    for name in names:
        where = [phase for phase in _PHASES if phase[2] not in same and _drawn(name, phase, one, other)]
        equal = [one.get(phase[0], {}).get(name) == other.get(phase[0], {}).get(name) for phase in where]
        where = [phase for phase, began in zip(where, equal, strict=True) if not (began and phase[2] in computed)]
        if where:
            begin = where[0][0]
            sides = str(one.get(begin, {}).get(name)), str(other.get(begin, {}).get(name))
            note = f"numbers were drawn in {' and '.join(phase[3] for phase in where)}"
            if sides[0] == sides[1]:
                # The code seeds it itself, or draws more often on one side.
                sides = str(one.get(where[0][1], {}).get(name)), str(other.get(where[0][1], {}).get(name))
                note += ", from the same state on: another seed in the code, or other numbers of drawings"
            acts_on = tuple(dict.fromkeys(phase[2] for phase in where))
            found.append(Difference(f"{name}'s generator", *sides, "any", acts_on, note))
        elif any(one.get(m, {}).get(name) != other.get(m, {}).get(name) for m in one if m in other):
            idle.append(name)
    checked = _count(len(names), "generator")
    if idle:
        checked += f"; other states to no effect: {', '.join(idle)}"
    return _link("random state", checked, found)


def _drawn(name: str, phase: tuple[str, str, str, str], one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    begin, end = phase[:2]
    states = [(side.get(begin, {}).get(name), side.get(end, {}).get(name)) for side in (one, other)]
    if None in states[0] or None in states[1]:
        return False
    if end == "end" and states[0][0] == states[1][0]:
        # What a run draws otherwise follows from what it does otherwise.
        return False
    if states[0][1] == states[1][1]:
        # Also where it began in another state: a seed that the code sets itself makes an end of that.
        return False
    return any(before != after for before, after in states)


# -- the first cause --------------------------------------------------------------------------------------------------


def first_cause(
    links: Sequence[Link], place: str | None, text: str | None, error: float, rounding: float
) -> FirstCause | None:
    """The difference that explains the first numbers that differ.

    Args:
        links: in causal order, those of numbers included.
        place: where numbers differ first: ``data``, ``weights`` or ``stages``; ``None``: nowhere.
        text: that place in words.
        error: how far, as relative L2 made in one step.
        rounding: up to which error that may be rounding.

    A cause lies before what it causes, acts on it, and is strong enough: threads do not make a thousandth. Of several the
    first in the chain is named, certain ones before such as other versions, which mostly change nothing.
    """
    circumstances = [
        (link, difference)
        for link in links
        if link.link not in ("data", "weights", "stages", "outputs")
        for difference in link.differences
    ]
    if place is None:
        reaching = [item for item in circumstances if item[1].reach != "none"]
        found = next(iter(reaching or circumstances), None)
        if found is None:
            apart = [(link, difference) for link in links for difference in link.differences]
            found = next(iter(apart), None)
        return None if found is None else FirstCause(found[0].link, found[1], None, _others(circumstances, found))
    enough = (
        {"any", "reduced", "rounding"} if error <= rounding else {"any", "reduced"} if error <= REDUCED else {"any"}
    )
    acting = [item for item in circumstances if place in item[1].acts_on]
    certain = [item for item in acting if item[1].reach in enough]
    possible = [item for item in acting if item[1].reach == "possible"]
    for candidates in (certain, possible):
        if candidates:
            return FirstCause(candidates[0][0].link, candidates[0][1], text, _others(acting, candidates[0]))
    link = next(link for link in links if link.link == place)
    own = next(difference for difference in link.differences if difference.reach != "none")
    return FirstCause(link.link, own, text, _others(acting, (link, own)))


def _others(items: Sequence[tuple[Link, Difference]], chosen: tuple[Link, Difference]) -> tuple[str, ...]:
    texts = [
        f"{link.link}: {difference.what}"
        for link, difference in items
        if difference is not chosen[1] and difference.reach != "none"
    ]
    return tuple(dict.fromkeys(texts))

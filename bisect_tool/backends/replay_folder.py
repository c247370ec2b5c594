"""A folder that shows an origin's error with nothing but ONNX Runtime and numpy: to keep, and to send on."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model

from bisect_tool.backends.inside import Opened, Surroundings
from bisect_tool.backends.onnx_program import type_of_array
from bisect_tool.records import Diagnosis, ErrorMetrics, NumericConfig, Origin

Array = NDArray[Any]

MAX_BYTES = 256 << 20
"""Weights, inputs and result of an origin together; bigger ones get no folder."""

_PLAIN = "biufc"


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of an origin besides itself: its cause, as far as it was looked for, and its local error."""

    why: Diagnosis | None = None
    local: ErrorMetrics | None = None


RUN = '''"""Runs the nodes of one stage on PyTorch's inputs, and prints how far their result is from PyTorch's.

Needs onnxruntime and numpy. `python run.py --optimization all` runs with graph optimisation.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimization", choices=LEVELS, default="off")
    chosen = parser.parse_args()
    about = json.loads((HERE / "about.json").read_text(encoding="utf-8"))
    with np.load(HERE / "inputs.npz") as file:
        inputs = {name: file[key] for key, name in about["inputs"].items()}
    expected = np.load(HERE / "expected.npy")
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[chosen.optimization]
    session = ort.InferenceSession(str(HERE / "model.onnx"), options, providers=["CPUExecutionProvider"])
    (actual,) = session.run([about["output"]], inputs)
    one, other = expected.astype(np.float64).reshape(-1), actual.astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):
        apart = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, other - one)
        # A NaN or an infinity on one side only is as far apart as can be.
        apart = np.where(np.isfinite(apart), apart, np.inf)
        norm = float(np.linalg.norm(one[np.isfinite(one)]))
        error = float(np.linalg.norm(apart))
    print("stage:", about["stage"])
    print("onnxruntime:", ort.__version__, "numpy:", np.__version__)
    print("largest absolute difference: %.6e" % float(np.abs(apart).max() if apart.size else 0.0))
    print("relative L2: %.6e" % (error / norm if norm else np.inf if error else 0.0))


if __name__ == "__main__":
    main()
'''


def replay_files(
    around: Surroundings,
    opened: Opened,
    origin: Origin,
    config: NumericConfig,
    case: str,
    known: Told,
) -> dict[str, bytes | str] | None:
    """The folder's files by name; ``None`` where tensors are too big or of types that numpy's files lack.

    Args:
        around, opened: the run and the origin's stage.
        origin: with the nodes that hold the fault.
        config: of ONNX Runtime's side.
        case: name of the case.
        known: what goes into the bug report.
    """
    program = around.program
    part = program.part(opened.nodes)
    arrays = [*opened.feeds.values(), opened.expected]
    if any(array.dtype.kind not in _PLAIN for array in arrays) or sum(array.nbytes for array in arrays) > MAX_BYTES:
        return None
    built = program.build(part, [opened.output], {n: type_of_array(a.dtype, a.shape) for n, a in opened.feeds.items()})
    model = onnx.load_model_from_string(built.model)
    weights = sum(program.weight(tensor.name).nbytes for tensor in model.graph.initializer)
    if weights > MAX_BYTES:
        return None
    load_external_data_for_model(model, str(program.weights_folder))
    for tensor in model.graph.initializer:
        # What was external is inside now.
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    names = {f"input_{place}": name for place, name in enumerate(built.feeds)}
    inputs, expected = io.BytesIO(), io.BytesIO()
    given: dict[str, Any] = {key: np.asarray(opened.feeds[built.feeds[name]], order="C") for key, name in names.items()}
    np.savez(inputs, **given)
    np.save(expected, np.asarray(opened.expected, order="C"))
    about: Mapping[str, Any] = {
        "stage": str(origin.ref),
        "case": case,
        "source": origin.source,
        "nodes": list(origin.onnx_nodes),
        "output": opened.output,
        "inputs": names,
        "relative_l2": origin.local_rel_l2,
        "configuration": {"optimization": config.optimization, "dtype": config.dtype, "threads": config.threads},
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "graph": {"producer": program.header().producer, "opsets": dict(program.header().opsets)},
    }
    return {
        "model.onnx": model.SerializeToString(),
        "inputs.npz": inputs.getvalue(),
        "expected.npy": expected.getvalue(),
        "about.json": json.dumps(about, indent=2, default=str) + "\n",
        "run.py": RUN,
        "README.md": _readme(about, origin),
        "bug-report.md": bug_report(about, origin, opened.expected, known),
    }


def _readme(about: Mapping[str, Any], origin: Origin) -> str:
    versions = "\n".join(f"- {name}: {version}" for name, version in about["versions"].items())
    nodes = "\n".join(
        f"- `{each.name}`: {each.op_type}"
        + (f"({', '.join(f'{name}={value}' for name, value in each.attributes.items())})" if each.attributes else "")
        for each in origin.onnx_details
    )
    return f"""# {about["stage"]}: the ONNX nodes differ from PyTorch

The nodes of this stage were run on the very inputs that PyTorch's stage had. Their result differs from PyTorch's by
{origin.local_rel_l2:.3e} relative L2{_times(origin)}.

```console
$ pip install onnxruntime numpy
$ python run.py
```

- PyTorch: {origin.type}{f" at `{origin.source}`" if origin.source else ""}
- output: `{about["output"]}`, graph optimisation {about["configuration"]["optimization"]}

Nodes that hold the fault:

{nodes or "- not told apart"}

Files: `model.onnx` (the stage with its weights), `inputs.npz` (its inputs), `expected.npy` (PyTorch's result), `about.json`,
`bug-report.md` (to paste into an issue tracker).

Made with:

{versions}
"""


def _times(origin: Origin) -> str:
    return "" if origin.noise_ratio is None else f", {origin.noise_ratio:.2g} times what rounding makes there"


_SNIPPET = """import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
given = np.load("inputs.npz")
inputs = {{{inputs}}}
(actual,) = session.run([{output!r}], inputs)
expected = np.load("expected.npy")
print("largest absolute difference:", np.abs(actual.reshape(expected.shape).astype(float) - expected).max())"""


def bug_report(about: Mapping[str, Any], origin: Origin, expected: Array, known: Told) -> str:
    """Text for an issue tracker: what differs, how to see it, the numbers, the cause as far as it is known.

    Args:
        about: content of ``about.json``.
        origin: with the nodes that hold the fault.
        expected: PyTorch's result.
        known: its cause and its local error.
    """
    versions = about["versions"]
    ops = " and ".join(dict.fromkeys(each.op_type for each in origin.onnx_details)) or origin.type
    lines = [
        f"# {ops}: the result differs from PyTorch's by {origin.local_rel_l2:.1e} relative L2",
        "",
        f"(onnxruntime {versions['onnxruntime']}, torch {versions['torch']}, {_opsets(about)})",
        "",
        "## What happens",
        "",
        f"`{origin.type}`{f' at `{origin.source}`' if origin.source else ''} and the ONNX nodes that stand for it were "
        "given the same inputs.",
        f"The result of the nodes, of shape {list(expected.shape)}, lies {origin.local_rel_l2:.3e} relative L2 from "
        f"PyTorch's{_times(origin)}.",
        *_side(origin),
        "",
        "## To reproduce",
        "",
        "With the files attached (`model.onnx`, `inputs.npz`, `expected.npy`), and onnxruntime and numpy only:",
        "",
        "```python",
        _SNIPPET.format(
            inputs=", ".join(f"{name!r}: given[{key!r}]" for key, name in about["inputs"].items()),
            output=about["output"],
        ),
        "```",
        "",
        "## Expected and actual",
        "",
        "| | |",
        "|---|---|",
        "| expected | PyTorch's result on the same inputs, in `expected.npy` |",
        f"| relative L2 of the difference | {origin.local_rel_l2:.6e} |",
        *_worst(known.local),
        *([f"| in units of what rounding makes there | {origin.noise_ratio:.3g} |"] if origin.noise_ratio else []),
        "",
        "## Cause",
        "",
        *_cause(known.why),
        "",
        "Nodes:",
        "",
        *[f"- `{each.name}`: {each.op_type} {_settings(each.attributes)}".rstrip() for each in origin.onnx_details],
        "",
        "## Environment",
        "",
        *[f"- {name}: {version}" for name, version in versions.items()],
        f"- file: {about['graph']['producer'] or 'producer unknown'}, {_opsets(about)}",
        f"- graph optimisation: {about['configuration']['optimization']}, CPU provider",
    ]
    return "\n".join(lines) + "\n"


def _worst(local: ErrorMetrics | None) -> list[str]:
    """Where the two are furthest apart."""
    if local is None or local.worst_index is None or local.problem:
        return []
    expected, actual = _digits(local.worst_expected), _digits(local.worst_actual)
    odd = f"| NaN or infinite on one side only | {local.nonfinite_mismatch} |"
    return [
        f"| largest absolute difference | {local.max_abs:.6e} |",
        f"| there, at {tuple(local.worst_index)} | expected {expected}, actual {actual} |",
        f"| elements that differ | {local.differing} of {local.count} |",
        *([odd] if local.nonfinite_mismatch else []),
    ]


def _digits(value: float | None) -> str:
    return str(value) if value is None or isinstance(value, int) else f"{value:.9g}"


def _opsets(about: Mapping[str, Any]) -> str:
    return ", ".join(f"opset {version} of {domain}" for domain, version in about["graph"]["opsets"].items())


def _side(origin: Origin) -> list[str]:
    found = []
    if origin.side is not None:
        off = "ONNX's side" if origin.side == "actual" else "PyTorch"
        found.append(f"Against float64, {off} is the one that is off.")
    witness = origin.witness
    if witness is not None and witness.says in ("export", "runtime"):
        whose = "the same value as ONNX Runtime" if witness.says == "export" else "PyTorch's value"
        found.append(f"{witness.runner} {witness.version} gives {whose} for these nodes.")
    return found


def _cause(why: Diagnosis | None) -> list[str]:
    if why is None:
        return ["Not looked into."]
    known = "" if why.remedy_verified else ", not certain"
    tried = ""
    if why.remedy_verified and why.error_after is not None:
        tried = f" With that changed the difference falls to {why.error_after:.1e}."
    return [f"{why.title}{known} ({why.code}).{tried}", "", *(f"- {line}" for line in why.evidence)]


def _settings(attributes: Mapping[str, str]) -> str:
    return f"({', '.join(f'{name}={value}' for name, value in attributes.items())})" if attributes else ""

"""Runs the nodes of one stage on PyTorch's inputs, and prints how far their result is from PyTorch's.

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

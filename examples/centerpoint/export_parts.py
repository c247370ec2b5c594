"""Exports CenterPoint as it is deployed: in two ONNX files, with the scatter between them left to the application.

Usage: python examples/centerpoint/export_parts.py [--out DIR]

Writes `encoder.onnx` (the pillar encoder) and `backbone_neck_head.onnx` into the folder of `ckpt.pth` and `sample.pt`,
which `make_data.py` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


class BackboneNeckHead(nn.Module):
    """Everything behind the scatter, under one roof."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.head = detector.head

    def forward(self, canvas: Tensor) -> dict[str, Tensor]:
        """canvas (1, C, ny, nx) -> `task<i>_<branch>`: (1, outputs of the branch, ny / 2, nx / 2)."""
        return self.head(self.neck(self.backbone(canvas)))


def load_detector(folder: Path) -> nn.Module:
    """The detector of model.py, with the weights in `folder`, in eval mode."""
    spec = importlib.util.spec_from_file_location("centerpoint_model", HERE / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    detector = module.build_model()
    detector.load_state_dict(torch.load(folder / "ckpt.pth")["state_dict"])
    return detector.eval()


def export(out: Path) -> None:
    """Write both files into the folder `out`, which has the checkpoint and the sample."""
    detector = load_detector(out)
    voxels, num_points, coords = torch.load(out / "sample.pt")
    with torch.no_grad():
        canvas = detector.scatter(detector.pillar_encoder(voxels, num_points, coords), coords)
    parts = {
        "encoder.onnx": (detector.pillar_encoder, (voxels, num_points, coords)),
        "backbone_neck_head.onnx": (BackboneNeckHead(detector).eval(), (canvas,)),
    }
    for name, (module, inputs) in parts.items():
        torch.onnx.export(module, inputs, dynamo=True, verbose=False).save(str(out / name))


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Export the CenterPoint example in two files.")
    parser.add_argument("--out", type=Path, default=HERE)
    export(parser.parse_args().out)


if __name__ == "__main__":
    main()

"""Writes `ckpt.pt` (DataParallel keys in a training checkpoint) and `sample.npy` (one array).

Usage: python examples/mobile/make_data.py [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from model import IMAGE_SIZE, MobileNet, build_model
from torch import Tensor, nn

SEED = 20243
SETTLE_PASSES = 8
SETTLE_BATCH = 16
SAMPLE_BATCH = 2


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colour gradients with discs and rectangles, standardised -> (count, 3, SIZE, SIZE)."""
    axis = np.linspace(-1.0, 1.0, IMAGE_SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    batch = np.empty((count, 3, IMAGE_SIZE, IMAGE_SIZE))
    for image in batch:
        slope = rng.uniform(-0.3, 0.3, (2, 3, 1, 1))
        image[:] = 0.5 + slope[0] * x + slope[1] * y
        for _ in range(6):
            centre, radius = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.1, 0.5, 2)
            dx, dy = (x - centre[0]) / radius[0], (y - centre[1]) / radius[1]
            inside = dx**2 + dy**2 < 1.0 if rng.random() < 0.5 else np.maximum(abs(dx), abs(dy)) < 1
            image[:, inside] = rng.uniform(0.0, 1.0, (3, 1))
        image += rng.normal(0.0, 0.03, image.shape)
    return ((batch - 0.5) / 0.25).astype(np.float32)


def initialise(model: nn.Module) -> None:
    """Kaiming weights and varied BatchNorm scales, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            # A smaller scale at the end of a residual keeps the sum from growing with depth.
            low, high = (0.3, 0.9) if ".project." in name else (0.5, 1.8)
            nn.init.uniform_(module.weight, low, high)
            nn.init.uniform_(module.bias, -0.3, 0.7)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
            nn.init.normal_(module.bias, std=0.1)


@torch.no_grad()
def settle_batch_norm(model: nn.Module, batches: list[Tensor]) -> None:
    """Set the running statistics to the average over `batches`, in place."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the passes
    model.train()
    for batch in batches:
        model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def make(out: Path) -> None:
    """Write the checkpoint and the sample into the folder `out`."""
    # The number of threads changes the order of sums, and with it the last bits of the statistics.
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model: MobileNet = build_model()
    initialise(model)
    batches = [torch.from_numpy(images(rng, SETTLE_BATCH)) for _ in range(SETTLE_PASSES)]
    settle_batch_norm(model, batches)

    out.mkdir(parents=True, exist_ok=True)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 90, "model_state_dict": weights}, out / "ckpt.pt")
    np.save(out / "sample.npy", images(rng, SAMPLE_BATCH))


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Make the mobile example's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()

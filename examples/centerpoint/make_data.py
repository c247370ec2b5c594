"""Writes `ckpt.pth` and `sample.pt` for the CenterPoint example.

Usage: python examples/centerpoint/make_data.py [--out DIR]

The weights are random, but the BatchNorm statistics are those of synthetic LiDAR scenes, so that
activations have the scale of a trained network's at every depth.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from model import GRID_SIZE, PILLAR_SIZE, POINT_CLOUD_RANGE, CenterPoint, build_model
from torch import Tensor, nn

SEED = 20240
MAX_PILLARS = 300
MAX_POINTS = 20
SETTLE_PASSES = 12
SENSOR_HEIGHT = 1.8

# Length, width, height in metres.
CAR = (4.5, 1.9, 1.6)
PEDESTRIAN = (0.7, 0.7, 1.75)
CYCLIST = (1.8, 0.7, 1.7)


def ground(rng: np.random.Generator) -> np.ndarray:
    """LiDAR rings on a slightly rough ground plane -> (M, 4)."""
    rings = []
    for elevation in np.deg2rad(np.linspace(6.0, 30.0, 14)):
        radius = SENSOR_HEIGHT / math.tan(elevation)
        azimuth = rng.uniform(0.0, 2.0 * math.pi, 60)
        distance = radius * rng.normal(1.0, 0.01, azimuth.size)
        z = rng.normal(-SENSOR_HEIGHT, 0.03, azimuth.size)
        intensity = rng.beta(2.0, 8.0, azimuth.size)
        x, y = distance * np.cos(azimuth), distance * np.sin(azimuth)
        rings.append(np.stack((x, y, z, intensity), axis=1))
    return np.concatenate(rings)


def box(rng: np.random.Generator, size: tuple[float, float, float]) -> np.ndarray:
    """The sides and the top of one box that face the sensor -> (M, 4)."""
    distance, bearing = rng.uniform(5.0, 18.0), rng.uniform(0.0, 2.0 * math.pi)
    yaw = rng.uniform(-math.pi, math.pi)
    centre = np.array((distance * math.cos(bearing), distance * math.sin(bearing)))
    # The returns thin out with distance, as the beams of a spinning sensor do.
    surface = 2.0 * (size[0] + size[1]) * size[2]
    count = int(np.clip(250.0 * surface / distance, 30, 400))

    unit = rng.uniform(-0.5, 0.5, (count, 3))
    face = rng.integers(0, 5, count)
    unit[face == 0, 0], unit[face == 1, 0] = -0.5, 0.5
    unit[face == 2, 1], unit[face == 3, 1] = -0.5, 0.5
    unit[face == 4, 2] = 0.5
    normals = np.array(((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)), dtype=float)[face]
    rotation = np.array(((math.cos(yaw), -math.sin(yaw)), (math.sin(yaw), math.cos(yaw))), dtype=float)
    visible = (normals @ rotation.T) @ centre < 0.0
    keep = visible | (face == 4)

    local = unit[keep] * np.array(size)
    xy = local[:, :2] @ rotation.T + centre + rng.normal(0.0, 0.01, (len(local), 2))
    z = local[:, 2] + size[2] / 2 - SENSOR_HEIGHT
    intensity = np.clip(rng.normal(rng.uniform(0.2, 0.7), 0.1, len(local)), 0.0, 1.0)
    return np.column_stack((xy, z, intensity))


def scene(rng: np.random.Generator) -> np.ndarray:
    """A point cloud in random order -> (M, 4) of x, y, z, intensity."""
    parts = [ground(rng)]
    for size, count in ((CAR, 6), (PEDESTRIAN, 6), (CYCLIST, 3)):
        parts.extend(box(rng, size) for _ in range(count))
    return rng.permutation(np.concatenate(parts))


def pillarise(points: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """First come, first served: at most MAX_PILLARS pillars of at most MAX_POINTS points.

    points (M, 4) -> voxels (P, N, 4) float32, num_points (P,) int32, coords (P, 4) int32.
    """
    low, size = np.array(POINT_CLOUD_RANGE[:2]), np.array(PILLAR_SIZE[:2])
    voxels = np.zeros((MAX_PILLARS, MAX_POINTS, 4), dtype=np.float32)
    num_points = np.zeros(MAX_PILLARS, dtype=np.int32)
    coords = np.zeros((MAX_PILLARS, 4), dtype=np.int32)
    slots: dict[tuple[int, int], int] = {}
    for point in points:
        ix, iy = (int(i) for i in np.floor((point[:2] - low) / size))
        if not (0 <= ix < GRID_SIZE[0] and 0 <= iy < GRID_SIZE[1]):
            continue
        if (ix, iy) not in slots:
            if len(slots) == MAX_PILLARS:
                continue
            slots[ix, iy] = len(slots)
            coords[slots[ix, iy]] = (0, 0, iy, ix)
        slot = slots[ix, iy]
        if num_points[slot] < MAX_POINTS:
            voxels[slot, num_points[slot]] = point
            num_points[slot] += 1
    if len(slots) < MAX_PILLARS:
        # Unused rows would all claim cell (0, 0), and which one wins is undefined.
        raise RuntimeError(f"the scene fills {len(slots)} of {MAX_PILLARS} pillars")
    return torch.from_numpy(voxels), torch.from_numpy(num_points), torch.from_numpy(coords)


def initialise(model: nn.Module) -> None:
    """Kaiming weights and varied BatchNorm scales, in place."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            # The branch outputs have no ReLU behind them, so they need no gain of sqrt(2).
            last = name.endswith(".out")
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if last else "relu")
            if module.bias is not None:
                # -2.19 is CenterPoint's prior for a heatmap: sigmoid(-2.19) is about 0.1. Without
                # the spread, equal biases would be merged into one initializer on export.
                nn.init.normal_(module.bias, -2.19 if ".heatmap." in name else 0.0, 0.1)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


@torch.no_grad()
def settle_batch_norm(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Set the running statistics to the average over `batches`, in place."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average; momentum 0.01 would need hundreds of passes
    model.train()
    for batch in batches:
        model(*batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def make(out: Path) -> None:
    """Write the checkpoint and the sample into the folder `out`."""
    # The number of threads changes the order of sums, and with it the last bits of the statistics.
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model: CenterPoint = build_model()
    initialise(model)
    settle_batch_norm(model, [pillarise(scene(rng)) for _ in range(SETTLE_PASSES)])

    out.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict()}, out / "ckpt.pth")
    torch.save(pillarise(scene(rng)), out / "sample.pt")


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Make the CenterPoint example's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()

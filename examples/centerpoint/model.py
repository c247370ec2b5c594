"""A PointPillars-style CenterPoint detector in plain PyTorch.

The stages follow the published papers (PointPillars, SECOND, CenterPoint): pillar feature
encoder, scatter to a bird's-eye-view canvas, strided convolutional backbone, feature pyramid
neck and a centre head with one set of branches per task. Voxelisation and box decoding are not
part of the network. The batch size is one, as in most deployed exports of this detector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Sensor frame, metres: (x_min, y_min, z_min, x_max, y_max, z_max) and the size of one pillar.
POINT_CLOUD_RANGE = (-20.48, -20.48, -3.0, 20.48, 20.48, 1.0)
PILLAR_SIZE = (0.32, 0.32, 4.0)
GRID_SIZE = (128, 128)  # pillars along x and y
POINT_FEATURES = 4  # x, y, z, intensity
TASK_CLASSES = (1, 2)  # task 0: car; task 1: pedestrian and cyclist
BRANCHES = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}  # the heatmap comes on top

# The values which these detectors are trained with; PyTorch's defaults are 1e-5 and 0.1.
BN_EPS = 1e-3
BN_MOMENTUM = 0.01


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm2d with the detector's eps and momentum."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class PointDecorator(nn.Module):
    """Adds to every point its offsets to the pillar's mean point and to the pillar's centre."""

    def __init__(
        self,
        pillar_size: Sequence[float] = PILLAR_SIZE,
        pc_range: Sequence[float] = POINT_CLOUD_RANGE,
    ) -> None:
        super().__init__()
        self.pillar_size = tuple(pillar_size)
        self.origin = tuple(pc_range[i] + pillar_size[i] / 2 for i in range(3))

    def forward(self, voxels: Tensor, num_points: Tensor, coords: Tensor) -> Tensor:
        """Decorate the points.

        voxels (P, N, 4), num_points (P,), coords (P, 4) as (batch, z, y, x) -> (P, N, 9).
        """
        xyz = voxels[:, :, :3]
        # Padded points are zero, so the sum over all N slots is the sum over the real points.
        # An empty pillar would divide by zero.
        count = num_points.clamp(min=1).to(voxels.dtype).view(-1, 1, 1)
        to_mean = xyz - xyz.sum(dim=1, keepdim=True) / count

        x_centre = coords[:, 3].to(voxels.dtype) * self.pillar_size[0] + self.origin[0]
        y_centre = coords[:, 2].to(voxels.dtype) * self.pillar_size[1] + self.origin[1]
        centre = torch.stack((x_centre, y_centre), dim=1).unsqueeze(1)
        to_centre = voxels[:, :, :2] - centre

        features = torch.cat((voxels, to_mean, to_centre), dim=2)
        # The offsets of padded points are not zero; without the mask they would reach the max.
        slots = torch.arange(voxels.shape[1], device=voxels.device)
        mask = slots.unsqueeze(0) < num_points.unsqueeze(1)
        return features * mask.unsqueeze(2).to(features.dtype)


class PillarEncoder(nn.Module):
    """A one-layer PointNet per pillar: linear, batch norm, ReLU, max over the points."""

    def __init__(self, out_channels: int = 64) -> None:
        super().__init__()
        self.decorate = PointDecorator()
        self.linear = nn.Linear(POINT_FEATURES + 5, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, voxels: Tensor, num_points: Tensor, coords: Tensor) -> Tensor:
        """voxels (P, N, 4), num_points (P,), coords (P, 4) -> pillar features (P, C)."""
        points = self.decorate(voxels, num_points, coords)
        # BatchNorm1d wants the channels second: (P, N, C) -> (P, C, N).
        hidden = self.linear(points).transpose(1, 2)
        return self.relu(self.norm(hidden)).amax(dim=2)


class Scatter(nn.Module):
    """Writes each pillar's feature vector to its cell of an otherwise zero canvas."""

    def __init__(self, grid_size: tuple[int, int] = GRID_SIZE) -> None:
        super().__init__()
        self.nx, self.ny = grid_size

    def forward(self, features: Tensor, coords: Tensor) -> Tensor:
        """features (P, C), coords (P, 4) as (batch, z, y, x) -> canvas (1, C, ny, nx)."""
        channels = features.shape[1]
        cell = (coords[:, 2] * self.nx + coords[:, 3]).long()
        canvas = features.new_zeros((self.ny * self.nx, channels))
        # `scatter` becomes one ScatterElements node; `canvas[cell] = ...` would become a chain
        # of shape arithmetic in one of the two exporters.
        canvas = canvas.scatter(0, cell.unsqueeze(1).expand(-1, channels), features)
        return canvas.t().reshape(1, channels, self.ny, self.nx)


class Backbone(nn.Module):
    """The SECOND backbone: per block one strided convolution and then `layer_nums` more."""

    def __init__(
        self,
        in_channels: int = 64,
        layer_nums: Sequence[int] = (3, 5, 5),
        channels: Sequence[int] = (64, 128, 256),
        strides: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for layers, width, stride in zip(layer_nums, channels, strides, strict=True):
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(layers + 1):
                block[f"conv{i}"] = nn.Conv2d(
                    in_channels if i == 0 else width,
                    width,
                    kernel_size=3,
                    stride=stride if i == 0 else 1,
                    padding=1,
                    bias=False,
                )
                block[f"norm{i}"] = batch_norm(width)
                block[f"relu{i}"] = nn.ReLU(inplace=True)
            self.blocks.append(nn.Sequential(block))
            in_channels = width

    def forward(self, canvas: Tensor) -> tuple[Tensor, ...]:
        """canvas (1, 64, H, W) -> (1, 64, H/2, W/2), (1, 128, H/4, W/4), (1, 256, H/8, W/8)."""
        outputs = []
        for block in self.blocks:
            canvas = block(canvas)
            outputs.append(canvas)
        return tuple(outputs)


class Neck(nn.Module):
    """Brings the backbone's scales to one resolution and concatenates them (SECOND FPN)."""

    def __init__(
        self,
        in_channels: Sequence[int] = (64, 128, 256),
        out_channels: int = 128,
        upsample_strides: Sequence[int] = (1, 2, 4),
    ) -> None:
        super().__init__()
        self.deblocks = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    # Kernel equal to stride: every output cell has exactly one source cell.
                    deconv=nn.ConvTranspose2d(width, out_channels, stride, stride, bias=False),
                    norm=batch_norm(out_channels),
                    relu=nn.ReLU(inplace=True),
                )
            )
            for width, stride in zip(in_channels, upsample_strides, strict=True)
        )

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """The backbone's three outputs -> (1, 384, H/2, W/2)."""
        upsampled = [deblock(x) for deblock, x in zip(self.deblocks, scales, strict=True)]
        return torch.cat(upsampled, dim=1)


def branch(channels: int, outputs: int) -> nn.Sequential:
    """One output branch: (1, channels, H, W) -> (1, outputs, H, W)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            norm=batch_norm(channels),
            relu=nn.ReLU(inplace=True),
            out=nn.Conv2d(channels, outputs, kernel_size=3, padding=1),
        )
    )


class TaskHead(nn.Module):
    """The branches of one group of classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.reg = branch(channels, BRANCHES["reg"])
        self.height = branch(channels, BRANCHES["height"])
        self.dim = branch(channels, BRANCHES["dim"])
        self.rot = branch(channels, BRANCHES["rot"])
        self.vel = branch(channels, BRANCHES["vel"])
        self.heatmap = branch(channels, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (1, C, H, W) -> branch name: (1, outputs of the branch, H, W)."""
        return {name: module(x) for name, module in self.named_children()}


class CenterHead(nn.Module):
    """A shared convolution followed by one `TaskHead` per task."""

    def __init__(self, in_channels: int = 384, channels: int = 64, task_classes: Sequence[int] = TASK_CLASSES) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
                norm=batch_norm(channels),
                relu=nn.ReLU(inplace=True),
            )
        )
        self.tasks = nn.ModuleList(TaskHead(channels, classes) for classes in task_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (1, 384, H, W) -> `task<i>_<branch>`: (1, outputs of the branch, H, W)."""
        shared = self.shared(x)
        outputs: dict[str, Tensor] = {}
        for i, task in enumerate(self.tasks):
            outputs.update({f"task{i}_{name}": y for name, y in task(shared).items()})
        return outputs


class CenterPoint(nn.Module):
    """The whole detector up to the raw head outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.pillar_encoder = PillarEncoder()
        self.scatter = Scatter()
        self.backbone = Backbone()
        self.neck = Neck()
        self.head = CenterHead()

    def forward(self, voxels: Tensor, num_points: Tensor, coords: Tensor) -> dict[str, Tensor]:
        """Run the detector on one pillarised scene.

        voxels (P, N, 4) float, num_points (P,) int, coords (P, 4) int as (batch, z, y, x)
        -> `task<i>_<branch>`: (1, outputs of the branch, 64, 64).
        """
        features = self.pillar_encoder(voxels, num_points, coords)
        canvas = self.scatter(features, coords)
        return self.head(self.neck(self.backbone(canvas)))


def build_model() -> CenterPoint:
    """The network with fresh weights; `make_data.py` writes a checkpoint for it."""
    return CenterPoint()

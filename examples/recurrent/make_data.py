"""Writes `ckpt.pth` (a bare state dict) and `sample.npz` (one array per input).

Usage: python examples/recurrent/make_data.py [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from model import FEATURES, HIDDEN, LSTM_LAYERS, StreamingClassifier, build_model
from torch import Tensor, nn

SEED = 20242
BATCH = 2
FRAMES = 24


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Weights of a trained network's scale, in place.

    PyTorch starts recurrent weights so small that the gates stay near one half.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.RNNBase):
            for name, value in module.named_parameters():
                if name.startswith("weight_hh"):
                    for gate in value.split(module.hidden_size):
                        nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.normal_(value, std=1.5 * value.shape[1] ** -0.5)
                else:
                    nn.init.normal_(value, std=0.1)
            if isinstance(module, nn.LSTM):
                for layer in range(module.num_layers):
                    # The forget gate is the second of four; an open one keeps the state alive.
                    forget = getattr(module, f"bias_ih_l{layer}").chunk(4)[1]
                    forget.add_(1.0)


def audio_features(rng: np.random.Generator) -> np.ndarray:
    """Smooth random log-energies, standardised per feature -> (BATCH, FRAMES, FEATURES)."""
    frames = rng.normal(size=(BATCH, FRAMES + 4, FEATURES + 4))
    for axis in (1, 2):
        # Neighbouring frames and bands of a spectrogram are alike.
        windows = np.lib.stride_tricks.sliding_window_view(frames, 5, axis=axis)
        frames = windows.mean(axis=-1)
    frames -= frames.mean(axis=(0, 1))
    return frames / frames.std(axis=(0, 1))


@torch.no_grad()
def sample(model: StreamingClassifier, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The second chunk of a stream, with the LSTM state which the first one left, by input name."""

    def chunk() -> Tensor:
        return torch.from_numpy(audio_features(rng).astype(np.float32))

    zeros = torch.zeros(LSTM_LAYERS, BATCH, HIDDEN)
    _, (h, c) = model(chunk(), zeros, zeros)
    return {"frames": chunk().numpy(), "h0": h.numpy(), "c0": c.numpy()}


def make(out: Path) -> None:
    """Write the checkpoint and the sample into the folder `out`."""
    # The number of threads changes the order of sums, and with it the last bits of h0 and c0.
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    model: StreamingClassifier = build_model().eval()
    initialise(model)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "ckpt.pth")
    inputs = sample(model, np.random.default_rng(SEED))
    np.savez(out / "sample.npz", frames=inputs["frames"], h0=inputs["h0"], c0=inputs["c0"])


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Make the recurrent example's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()

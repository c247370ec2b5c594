"""Writes `ckpt.safetensors` and `sample.pt` (keyword tensors) for the attention example.

Usage: python examples/attention/make_data.py [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import VOCABULARY, Encoder, build_model
from safetensors.torch import save_file
from torch import Tensor, nn

SEED = 20241
LENGTH = 32
REAL_LENGTHS = (32, 21)  # the second sequence is padded


def initialise(model: nn.Module) -> None:
    """Weights of a trained encoder's scale, in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # A gain above one on queries and keys gives attention maps with clear peaks; fresh
            # weights would average all positions, which hides errors in the attention.
            gain = 1.5 if name.endswith((".query", ".key")) else 1.0
            nn.init.xavier_normal_(module.weight, gain)
            nn.init.normal_(module.bias, std=0.05)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)


def sample() -> dict[str, Tensor]:
    """Two token sequences with two segments each, by input name, all (2, LENGTH) int64."""
    lengths = torch.tensor(REAL_LENGTHS).unsqueeze(1)
    positions = torch.arange(LENGTH).unsqueeze(0)
    mask = (positions < lengths).long()
    return {
        # Token 0 is the padding.
        "input_ids": torch.randint(1, VOCABULARY, (2, LENGTH)) * mask,
        "attention_mask": mask,
        "token_type_ids": (positions >= lengths // 2).long() * mask,
    }


def make(out: Path) -> None:
    """Write the checkpoint and the sample into the folder `out`."""
    torch.manual_seed(SEED)
    model: Encoder = build_model()
    initialise(model)
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "ckpt.safetensors")
    torch.save(sample(), out / "sample.pt")


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Make the attention example's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()

"""A decoder of GPT's kind with random weights, as large as the environment asks for: the model of scripts/big-decoder."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = int(os.environ.get("BIG_DECODER_LAYERS", "20"))
WIDTH = int(os.environ.get("BIG_DECODER_WIDTH", "2048"))
VOCABULARY = int(os.environ.get("BIG_DECODER_VOCABULARY", "8192"))
DTYPE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[
    os.environ.get("BIG_DECODER_DTYPE", "float32")
]
HEAD = 128


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(width // HEAD, 1)
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same."""
        parts = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(self.act(self.up(self.norm_2(x))))


class Decoder(nn.Module):
    """Tokens to the logits of the next ones; the embedding is not tied to the head."""

    def __init__(self, layers: int, width: int, vocabulary: int, tokens: int = 256):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, tokens) -> (B, tokens, vocabulary)."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def build_model() -> nn.Module:
    """The decoder, its weights drawn from one seed; linear layers keep the size of what goes through them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device("meta"):
            model = Decoder(LAYERS, WIDTH, VOCABULARY)
        model = model.to_empty(device="cpu")
    finally:
        torch.set_default_dtype(before)
    # A billion fresh numbers take a minute; windows of one table, at odd distances, are as good.
    table = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    at = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                # A part of the residual stream for each block: the stream stays of the size of one.
                deep = math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1.0
                size = 1.0 if name.startswith(("tokens", "places")) else 1 / math.sqrt(weight.shape[1]) / deep
                for rows in weight.split(max((1 << 22) // weight.shape[1], 1)):
                    at = (at + 1_000_003) % (table.numel() - rows.numel())
                    rows.copy_(table[at : at + rows.numel()].view(rows.shape) * size)
            else:
                weight.copy_(
                    torch.ones_like(weight) if "norm" in name and name.endswith("weight") else torch.zeros_like(weight)
                )
                if name.endswith("bias"):
                    weight.copy_(table[: weight.numel()].view(weight.shape) * 0.02)
    return model

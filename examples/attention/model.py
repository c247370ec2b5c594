"""A small BERT-style encoder with several keyword inputs and a dictionary of outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 1000
MAX_LENGTH = 64
WIDTH = 128
HEADS = 4
LAYERS = 4


class Embeddings(nn.Module):
    """Sum of token, position and segment embeddings, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(MAX_LENGTH, WIDTH)
        self.segment = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """input_ids (B, S) int, token_type_ids (B, S) int -> (B, S, WIDTH)."""
        # The positions do not depend on the data, so an exporter may fold this lookup away.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        summed = self.token(input_ids) + self.segment(token_type_ids) + self.position(positions)
        return self.dropout(self.norm(summed))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the unmasked positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, WIDTH), mask (B, 1, 1, S) bool, True where attended -> (B, S, WIDTH)."""
        batch, length, _ = x.shape

        def split_heads(y: Tensor) -> Tensor:
            return y.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split_heads(self.query(x)),
            split_heads(self.key(x)),
            split_heads(self.value(x)),
            attn_mask=mask,
        )
        return self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))


class FeedForward(nn.Module):
    """The position-wise part of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, WIDTH) -> (B, S, WIDTH)."""
        return self.down(self.act(self.up(x)))


class Layer(nn.Module):
    """One post-norm encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.feed_forward = FeedForward()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, WIDTH), mask (B, 1, 1, S) bool -> (B, S, WIDTH)."""
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class Pooler(nn.Module):
    """Summary of a sequence from its first position."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, WIDTH) -> (B, WIDTH)."""
        return self.tanh(self.dense(x[:, 0]))


class Encoder(nn.Module):
    """Embeddings, a stack of layers and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooler = Pooler()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> dict[str, Tensor | tuple[Tensor, ...] | None]:
        """Encode a batch of padded token sequences.

        input_ids (B, S) int, attention_mask (B, S) int with 0 at padding, token_type_ids (B, S)
        int -> last_hidden_state (B, S, WIDTH), pooled (B, WIDTH), and hidden_states, which is
        None unless it was asked for.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        mask = attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        states = [x]
        for layer in self.layers:
            x = layer(x, mask)
            states.append(x)
        return {
            "last_hidden_state": x,
            "hidden_states": tuple(states) if output_hidden_states else None,
            "pooled": self.pooler(x),
        }


def build_model() -> Encoder:
    """The network with fresh weights; `make_data.py` writes a checkpoint for it."""
    return Encoder()

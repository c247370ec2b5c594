"""One table: which difference between two environments changes numbers, how likely, why, and where that is written.

The first rule that fits counts, and rules stand in the order in which they are told: of two differences that are equally
likely, the one further up here comes first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

Level = Literal["likely", "possible", "unlikely", "unknown", "none"]

LEVELS: tuple[Level, ...] = ("likely", "possible", "unlikely", "unknown", "none")
"""``unknown``: nothing in the table; ``none``: cannot change numbers."""

COUNTING: frozenset[Level] = frozenset({"likely", "possible", "unlikely", "unknown"})
"""Levels that make two environments different for the exit code."""


@dataclass(frozen=True)
class Rule:
    """What one kind of difference does.

    Attributes:
        domain: ``package``, ``variable`` ... (``files.DOMAINS``).
        names: globs of names.
        changes: kinds of change that it is about: ``nightly``, ``local`` (the tag behind ``+``), ``major``, ``minor``,
            ``patch``, ``variant`` (another package with the same module), ``presence``, ``pin``; empty: any.
        level: how likely numbers change.
        reason: why.
        source: where it is written: an address, or the name of a document.
    """

    domain: str
    names: tuple[str, ...]
    changes: tuple[str, ...]
    level: Level
    reason: str
    source: str

    def fits(self, domain: str, name: str, changes: Set[str]) -> bool:
        """Whether it speaks of this difference."""
        if domain != self.domain or not any(fnmatch.fnmatchcase(name.lower(), glob.lower()) for glob in self.names):
            return False
        return not self.changes or bool(changes & set(self.changes))


VARIANTS: tuple[tuple[str, ...], ...] = (
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    (
        "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm",
        "onnxruntime-training", "ort-nightly", "ort-nightly-gpu",
    ),
    ("pillow", "pillow-simd"),
    ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly"),
    ("nvidia-cudnn-cu11", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    ("nvidia-cublas-cu11", "nvidia-cublas-cu12", "nvidia-cublas"),
    ("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
    ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"),
)  # fmt: skip
"""Packages that bring the same module: where each side has another one, that is one difference."""

_RANDOMNESS = "https://pytorch.org/docs/stable/notes/randomness.html"
_ACCURACY = "https://pytorch.org/docs/stable/notes/numerical_accuracy.html"
_CUDA_NOTES = "https://pytorch.org/docs/stable/notes/cuda.html"
_THREADS = "https://pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html"
_NEP50 = "https://numpy.org/neps/nep-0050-scalar-promotion.html"
_NEP19 = "https://numpy.org/neps/nep-0019-rng-policy.html"
_PILLOW = "https://pillow.readthedocs.io/en/stable/releasenotes/index.html"
_OPENCV = "https://pypi.org/project/opencv-python/"
_RESIZE = "https://docs.opencv.org/4.x/da/d54/group__imgproc__transform.html"
_ANTIALIAS = "https://pytorch.org/vision/stable/generated/torchvision.transforms.functional.resize.html"
_ORT_CUDA = "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html"
_ORT_GRAPH = "https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html"
_ORT_RELEASES = "https://github.com/microsoft/onnxruntime/releases"
_CUBLAS = "https://docs.nvidia.com/cuda/cublas/#results-reproducibility"
_CUDNN = "https://docs.nvidia.com/deeplearning/cudnn/ (Reproducibility)"
_TF32 = "https://developer.nvidia.com/blog/accelerating-ai-training-with-tf32-tensor-cores/"
_MKL = "Intel oneMKL Developer Guide, Obtaining Numerically Reproducible Results"
_ONEDNN = "https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html"
_DISPATCH = "https://numpy.org/doc/stable/reference/simd/index.html"
_HASHSEED = "https://docs.python.org/3/using/cmdline.html#envvar-PYTHONHASHSEED"
_PYTHON = "https://docs.python.org/3/whatsnew/index.html"
_PANDAS = "https://pandas.pydata.org/docs/whatsnew/index.html"
_SCIPY = "https://docs.scipy.org/doc/scipy/release.html"
_ONNX = "https://github.com/onnx/onnx/blob/main/docs/Changelog.md"
_SWITCHES = "docs/switches.md"

_OPENCV_NAMES = ("opencv-python*", "opencv-contrib-python*")
_ORT_NAMES = ("onnxruntime*", "ort-nightly*")
_ANY_RELEASE = ("major", "minor", "patch")


def _flag(names: tuple[str, ...], level: Level, reason: str, source: str) -> Rule:
    return Rule("torch flag", names, (), level, reason, source)


_FLAGS_OF_PRECISION: tuple[Rule, ...] = (
    _flag(("*default_dtype*",), "likely", "tensors are made in another precision", _ACCURACY),
    _flag(
        ("*is_autocast_enabled*",),
        "likely",
        "products and convolutions run in half precision on one side",
        _ACCURACY,
    ),
    _flag(
        ("*tf32*", "*fp32_precision", "*float32_matmul_precision*"),
        "likely",
        "float32 operands are rounded to TF32 or bfloat16 on one side: errors of about 1e-3 where units for it exist",
        _CUDA_NOTES,
    ),
    _flag(
        ("*allow_fp16_*", "*allow_bf16_*", "*fp16_bf16*"),
        "likely",
        "half-precision sums are kept in half precision on one side; float32 models do not notice",
        _CUDA_NOTES,
    ),
    _flag(
        ("*cudnn.benchmark*",),
        "likely",
        "cuDNN picks the algorithm that measured fastest, which may differ from run to run",
        _RANDOMNESS,
    ),
)

_OTHER_FLAGS: tuple[Rule, ...] = (
    _flag(
        ("*deterministic*",),
        "possible",
        "other algorithms are chosen; without it some operations differ from run to run",
        _RANDOMNESS,
    ),
    _flag(
        ("*cudnn.enabled", "*mkldnn.enabled"),
        "possible",
        "other kernels compute convolutions and recurrences",
        _SWITCHES,
    ),
    _flag(
        ("*_sdp_enabled*", "*get_fastpath_enabled*", "*preferred_*"),
        "possible",
        "another kernel computes the same operation",
        _SWITCHES,
    ),
    _flag(
        ("*num_threads*", "*num_interop_threads*"),
        "possible",
        "sums are split otherwise; differences of the size of rounding",
        _THREADS,
    ),
    _flag(("flush_denormal",), "possible", "numbers below 1.2e-38 become zero on one side", _SWITCHES),
    _flag(
        ("*quantized.engine",),
        "possible",
        "quantised layers run in other kernels, some of which saturate",
        _SWITCHES,
    ),
    _flag(("*opt_einsum*",), "possible", "einsum multiplies in another order", _SWITCHES),
    _flag(
        ("*autocast_dtype*", "*fill_uninitialized*", "*is_available*"),
        "unlikely",
        "matters only together with another switch",
        _SWITCHES,
    ),
    _flag(("*",), "possible", "a switch of PyTorch that can choose another kernel", _SWITCHES),
)


def _package(names: tuple[str, ...], changes: tuple[str, ...], level: Level, reason: str, source: str) -> Rule:
    return Rule("package", names, changes, level, reason, source)


def _variable(names: tuple[str, ...], level: Level, reason: str, source: str) -> Rule:
    return Rule("variable", names, (), level, reason, source)


HARMLESS = (
    *("pip", "setuptools", "wheel", "build", "hatchling", "flit-core", "poetry*", "uv", "virtualenv", "pipx", "conda*"),
    *("pytest*", "coverage", "ruff", "black", "isort", "flake8*", "mypy*", "pylint", "pre-commit", "tox", "nox"),
    *("hypothesis", "types-*", "*-stubs", "sphinx*", "mkdocs*", "jupyter*", "ipython*", "ipykernel", "notebook*"),
    *("requests*", "urllib3", "certifi", "idna", "charset-normalizer", "chardet", "click", "rich", "colorama", "tqdm"),
    *("six", "packaging", "pluggy", "iniconfig", "attrs", "typing-extensions", "typing-inspection", "pygments", "jinja2"),
    *("markupsafe", "markdown*", "mdurl", "pyparsing", "platformdirs", "filelock", "distlib", "zipp", "importlib-*"),
    *("matplotlib*", "seaborn", "plotly", "bokeh", "cycler", "kiwisolver", "contourpy", "fonttools", "tensorboard*"),
    *("boto3", "botocore", "awscli", "s3transfer", "google-auth*", "paramiko", "cryptography", "docutils", "babel"),
    *("tzdata", "pytz", "fsspec", "networkx", "mpmath", "sympy", "psutil", "docker", "gitpython", "anyio", "h11", "httpx"),
    *("httpcore", "sniffio", "starlette", "fastapi", "uvicorn", "flask", "werkzeug", "aiohttp", "websockets", "shellingham"),
    *("typer", "tomli*", "toml", "exceptiongroup", "execnet", "sortedcontainers", "pathspec", "bisect-divergence"),
)  # fmt: skip
"""Packages that compute nothing a model sees."""

RULES: tuple[Rule, ...] = (
    # Which kernels, and in which precision
    _variable(
        ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
        "likely",
        "takes TF32 away, or forces it on, whatever PyTorch's flags say (NVIDIA's containers set it): errors of about 1e-3",
        _TF32,
    ),
    *_FLAGS_OF_PRECISION,
    _package(
        ("torch",),
        ("nightly",),
        "likely",
        "a nightly or pre-release build against another one: kernels and decompositions change from day to day",
        _RANDOMNESS,
    ),
    _package(
        ("torch", "torchvision", "torchaudio"),
        ("local",),
        "likely",
        "another build: on CPU or another CUDA, other libraries compute every matrix product and convolution",
        _RANDOMNESS,
    ),
    Rule(
        "gpu",
        ("device *",),
        (),
        "likely",
        "another GPU chooses other algorithms, and may have TF32 where the other has not",
        _CUDNN,
    ),
    _package(
        ("torch",),
        ("major", "minor"),
        "likely",
        "results are not promised to be the same between releases",
        _RANDOMNESS,
    ),
    _package(
        ("onnxruntime*", "ort-nightly*"),
        ("variant",),
        "likely",
        "another package of ONNX Runtime: other providers, so that a GPU, and TF32 with it, may be used on one side only",
        _ORT_CUDA,
    ),
    Rule(
        "onnxruntime",
        ("providers", "device"),
        (),
        "likely",
        "another provider runs the graph, with other kernels and defaults (TF32)",
        _ORT_CUDA,
    ),
    _package(
        _ORT_NAMES,
        ("nightly", "major", "minor"),
        "likely",
        "graph optimisations and kernels change from release to release",
        _ORT_RELEASES,
    ),
    _package(
        ("numpy",),
        ("major",),
        "likely",
        "NumPy 2 decides dtypes by NEP 50: float32 data meeting a NumPy scalar may become float64, or stay float32",
        _NEP50,
    ),
    _package(
        _OPENCV_NAMES,
        ("variant",),
        "possible",
        "another build of OpenCV: which libraries decode images and video differs",
        _OPENCV,
    ),
    _package(
        _OPENCV_NAMES,
        ("major", "minor", "nightly"),
        "likely",
        "decoding (libjpeg-turbo, FFmpeg inside the package) and interpolation differ between versions",
        _RESIZE,
    ),
    _package(
        ("pillow", "pillow-simd"),
        ("variant", "major", "minor", "nightly"),
        "likely",
        "decoding (libjpeg-turbo inside the package), resizing and its antialiasing differ between versions",
        _PILLOW,
    ),
    _package(
        ("torchvision",),
        ("nightly", "major", "minor"),
        "likely",
        "defaults of transforms change (resize antialiases tensors since 0.17), decoders, the weights behind a name",
        _ANTIALIAS,
    ),
    _package(
        (
            "torchaudio",
            "librosa",
            "soundfile",
            "resampy",
            "soxr",
            "torchcodec",
            "av",
            "decord",
            "imageio*",
            "scikit-image",
            "albumentations",
            "kornia",
            "monai",
            "timm",
            "nvidia-dali*",
            "simplejpeg",
            "pyturbojpeg",
            "rawpy",
            "tifffile",
        ),
        ("nightly", "major", "minor", "local"),
        "likely",
        "decodes, resamples or transforms what the model sees",
        "the package's own release notes",
    ),
    Rule(
        "cuda",
        ("cudnn*",),
        (),
        "likely",
        "another cuDNN has other algorithms, and other heuristics that choose among them",
        _CUDNN,
    ),
    Rule(
        "cuda",
        ("*",),
        (),
        "likely",
        "another CUDA brings another cuBLAS; it is bit-wise the same only within one version and GPU",
        _CUBLAS,
    ),
    _package(
        (
            "nvidia-cudnn*",
            "nvidia-cublas*",
            "nvidia-cuda-runtime*",
            "nvidia-cufft*",
            "nvidia-cusolver*",
            "triton",
            "tensorrt*",
        ),
        (),
        "likely",
        "libraries that compute products, convolutions and transforms on the GPU",
        _CUBLAS,
    ),
    Rule(
        "cpu",
        ("instruction sets", "kernels of torch"),
        (),
        "likely",
        "libraries choose code by these: sums run in another order, and int8 kernels saturate without VNNI",
        _ONEDNN,
    ),
    _package(
        ("transformers", "tokenizers", "diffusers", "accelerate", "peft", "sentencepiece"),
        ("nightly", "major", "minor"),
        "likely",
        "defaults of models, attention kernels and tokenisation change",
        "the package's own release notes",
    ),
    _package(
        ("onnx", "onnxscript", "onnx-ir", "onnx-simplifier", "onnxsim", "onnxslim", "onnxconverter-common", "tf2onnx"),
        ("nightly", "major", "minor"),
        "possible",
        "the exported graph may be another one; a file that is there already does not change",
        _ONNX,
    ),
    _package(
        ("numpy",),
        ("minor", "nightly"),
        "possible",
        "vectorised functions (exp, sin, sums) are rewritten, dtypes promoted otherwise",
        _NEP50,
    ),
    _package(
        ("scipy",),
        ("nightly", "major", "minor"),
        "possible",
        "algorithms and defaults of interpolation, filters, sparse and statistics change",
        _SCIPY,
    ),
    _package(
        ("pandas", "polars", "pyarrow"),
        ("nightly", "major", "minor"),
        "possible",
        "reading (float parsing, missing values, dtypes), sorting and grouping defaults change",
        _PANDAS,
    ),
    _package(
        (
            "scikit-learn",
            "xgboost",
            "lightgbm",
            "numba",
            "numexpr",
            "cupy*",
            "jax*",
            "tensorflow*",
            "keras",
            "mkl*",
            "intel-openmp",
            "openblas",
            "libopenblas",
            "libblas",
            "blas",
            "libjpeg-turbo",
            "jpeg",
            "libwebp",
            "ffmpeg",
            "onednn",
            "nomkl",
        ),
        (),
        "possible",
        "computes or decodes by itself, and not the same in each version",
        "the package's own release notes",
    ),
    _package(
        ("torch", "torchvision", "torchaudio"),
        ("patch",),
        "possible",
        "fixes of kernels; results are not promised to be the same",
        _RANDOMNESS,
    ),
    _package(
        (*_ORT_NAMES, *_OPENCV_NAMES, "pillow"), (), "possible", "fixes of kernels, decoders and fusions", _ORT_GRAPH
    ),
    _variable(
        ("PYTHONHASHSEED",),
        "possible",
        "sets of texts are gone through in another order: file lists, class lists, batches",
        _HASHSEED,
    ),
    _variable(
        ("OMP_WAIT_POLICY", "THP_*", "MALLOC_*"), "none", "how threads wait and memory is taken; sums are the same", "-"
    ),
    _variable(
        (
            "OMP_*",
            "MKL_NUM_THREADS",
            "MKL_DYNAMIC",
            "OPENBLAS_NUM_THREADS",
            "NUMEXPR_*",
            "KMP_*",
            "GOMP_*",
            "BLIS_*",
            "VECLIB_*",
            "GOTO_*",
            "TBB_*",
        ),
        "possible",
        "sums are split among another number of threads; differences of the size of rounding",
        _THREADS,
    ),
    _variable(("MKL_*",), "possible", "chooses MKL's code path", _MKL),
    _variable(
        ("DNNL_*", "ONEDNN_*", "ATEN_*", "OPENBLAS_*", "NPY_*"),
        "possible",
        "chooses which instructions a library uses",
        _ONEDNN,
    ),
    _variable(
        ("CUBLAS*",),
        "possible",
        "without a fixed workspace cuBLAS may differ from run to run on several streams",
        _CUBLAS,
    ),
    _variable(
        ("TORCH_*", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "PYTORCH_*", "ORT_*", "CUDNN_*"),
        "possible",
        "may choose another kernel",
        _SWITCHES,
    ),
    _variable(
        ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_*", "ROCR_*", "HSA_*", "MIOPEN_*"),
        "possible",
        "another device, or none, is used",
        _CUDA_NOTES,
    ),
    _variable(
        ("XLA_*", "TF_*", "JAX_*", "NUMBA_*"),
        "possible",
        "chooses how another framework computes",
        "that framework's own documentation",
    ),
    _variable(
        ("LC_ALL", "LC_COLLATE", "LC_NUMERIC", "LANG"),
        "unlikely",
        "sorting of file names in shells, and number formats, may differ",
        "POSIX, Locale",
    ),
    _variable(("LD_PRELOAD",), "possible", "another OpenMP or BLAS may be loaded first", _THREADS),
    _variable(("*",), "unlikely", "steers speed or memory as a rule", _SWITCHES),
    *_OTHER_FLAGS,
    Rule(
        "blas",
        ("*",),
        (),
        "possible",
        "another library multiplies matrices on the CPU; differences of the size of rounding",
        _DISPATCH,
    ),
    Rule(
        "cpu",
        ("model",),
        (),
        "possible",
        "libraries choose code by the processor; differences of the size of rounding",
        _ONEDNN,
    ),
    Rule(
        "cpu",
        ("cores*", "quota"),
        (),
        "possible",
        "libraries start as many threads: sums are split otherwise",
        _THREADS,
    ),
    Rule(
        "gpu",
        ("driver",),
        (),
        "possible",
        "compiles kernels that come as intermediate code; which libraries can run depends on it",
        _CUBLAS,
    ),
    Rule(
        "python",
        ("version",),
        ("major", "minor"),
        "possible",
        "other wheels are installed for it; random.shuffle and the like may differ",
        _PYTHON,
    ),
    Rule("python", ("implementation",), (), "possible", "other wheels, other order of sets", _PYTHON),
    Rule(
        "system",
        ("machine", "system"),
        (),
        "likely",
        "another architecture or system: other builds of every library",
        _DISPATCH,
    ),
    Rule(
        "system",
        ("libc",),
        (),
        "possible",
        "exp, log, sin of the C library; each version may round the last digit otherwise",
        "glibc manual, Errors in Math Functions",
    ),
    Rule(
        "binary",
        ("*",),
        (),
        "possible",
        "a program that was named: decoders and scalers differ between versions",
        "the program's own release notes",
    ),
    Rule("onnxruntime", ("*",), (), "possible", "another build of ONNX Runtime", _ORT_RELEASES),
    _package(
        ("numpy", "scipy", "pandas", "onnx*", "transformers", "tokenizers"),
        (),
        "unlikely",
        "a fix release, or a build",
        _NEP19,
    ),
    _package(
        (
            "safetensors",
            "protobuf",
            "ml-dtypes",
            "flatbuffers",
            "h5py",
            "pyyaml",
            "omegaconf",
            "hydra-core",
            "einops",
            "python-dateutil",
            "regex",
        ),
        (),
        "unlikely",
        "reads files or settings, and computes little",
        "the package's own release notes",
    ),
    Rule("python", ("version",), (), "unlikely", "a fix release", _PYTHON),
    Rule("system", ("*",), (), "none", "numbers do not depend on it: libraries bring their own code", "-"),
    _package(HARMLESS, (), "none", "computes nothing that a model sees", "-"),
)

UNKNOWN = Rule(
    "package",
    ("*",),
    (),
    "unknown",
    "nothing is known of it here; if it prepares data or computes, it may change numbers",
    "-",
)


def rule_for(domain: str, name: str, changes: Set[str]) -> tuple[int, Rule]:
    """The rule that speaks of a difference, and its place in the table."""
    for place, rule in enumerate(RULES):
        if rule.fits(domain, name, changes):
            return place, rule
    return len(RULES), UNKNOWN


SETTERS = {
    "torch.get_float32_matmul_precision()": "torch.set_float32_matmul_precision({})",
    "torch.get_default_dtype()": "torch.set_default_dtype(torch.{})",
    "torch.are_deterministic_algorithms_enabled()": "torch.use_deterministic_algorithms({})",
    "torch.get_num_threads()": "torch.set_num_threads({})",
    "torch.get_num_interop_threads()": "torch.set_num_interop_threads({})",
    "torch.backends.cuda.flash_sdp_enabled()": "torch.backends.cuda.enable_flash_sdp({})",
    "torch.backends.cuda.mem_efficient_sdp_enabled()": "torch.backends.cuda.enable_mem_efficient_sdp({})",
    "torch.backends.cuda.math_sdp_enabled()": "torch.backends.cuda.enable_math_sdp({})",
    "torch.backends.cuda.cudnn_sdp_enabled()": "torch.backends.cuda.enable_cudnn_sdp({})",
    "torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()": (
        "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp({})"
    ),
    "torch.backends.mha.get_fastpath_enabled()": "torch.backends.mha.set_fastpath_enabled({})",
    "flush_denormal": "torch.set_flush_denormal({})",
}
"""What sets a flag that is read by a function."""

"""The table of everything that can change a number: one row for each switch of each side, and ONNX Runtime's passes.

``numerics.py`` checks configurations against it, ``docs/switches.md`` is generated from it (``scripts/docs-switches``).
Statements about CPU switches were tried with torch 2.13 and onnxruntime 1.20 to 1.31; those about CUDA were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Side = Literal["torch", "onnxruntime", "export"]
Value = str | int | bool

Home = Literal["field", "global", "context", "model", "property", "session", "provider", "environment", "export"]
"""Where a switch is set: a field of ``NumericConfig``, a global flag of torch, a context around the run, the model and
its inputs, a property of ``SessionOptions``, a session key, an option of the CUDA or TensorRT provider, an environment
variable, the exporter."""


@dataclass(frozen=True, slots=True)
class Values:
    """What a switch takes.

    Attributes:
        kind: ``flag`` (true or false), ``choice``, ``integer`` or ``passes`` (names of optimiser passes, with ``;``
            between them).
        choices: of a ``choice``.
        minimum, maximum: of an ``integer``, both included; ``None``: no limit.
    """

    kind: Literal["flag", "choice", "integer", "passes"]
    choices: tuple[Value, ...] = ()
    minimum: int = 0
    maximum: int | None = None

    def __str__(self) -> str:
        if self.kind == "choice":
            return ", ".join(literal(choice) for choice in self.choices)
        if self.kind == "integer":
            return f"{self.minimum} to {self.maximum}" if self.maximum is not None else f"{self.minimum} or more"
        return "true, false" if self.kind == "flag" else "names of passes"


def literal(value: object) -> str:
    """A value as matrix files (TOML) write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


@dataclass(frozen=True, slots=True)
class Newer:
    """The Python that sets a switch from a version of its library on."""

    since: str
    code: str
    spelling: Mapping[Value, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Switch:
    """One thing that can be set on one side and may change a number.

    Attributes:
        name: the library's own name where there is one. Names are unique on a side, not between sides.
        side: ``torch``, ``onnxruntime`` or ``export``.
        title: as a suspect in a report.
        values: what it takes.
        default: what the library does if nobody sets it.
        meaning: what it changes.
        read_back: how one sees that it took effect.
        home: where it is set.
        code: the Python that sets it, with ``{value}`` (a Python literal) or ``{text}`` (the library's spelling).
        devices: where it has an effect at all.
        since: first version of the side's library that has it; ``None``: all supported ones.
        sticky: needs a process of its own, since it is read once or stays with the process.
        spelling: of values that the library spells otherwise.
        newer: what sets it in newer versions of the library, with ``{text}``; ``None``: ``code`` does.
    """

    name: str
    side: Side
    title: str
    values: Values
    default: str
    meaning: str
    read_back: str
    home: Home
    code: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    since: str | None = None
    sticky: bool = False
    spelling: Mapping[Value, str] = field(default_factory=dict, hash=False)
    newer: Newer | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass of ONNX Runtime's optimiser, by the name that disables it.

    Attributes:
        name: case-sensitive.
        level: the lowest optimisation level that runs it; ``opt-in``: only with a switch of its own.
        what: what it rewrites.
        rule: one of the rules inside ``Level1_RuleBasedTransformer`` and ``Level2_RuleBasedTransformer``, which the
            session's log does not name one by one.
        since: first version of ONNX Runtime that has it; ``None``: all supported ones.
    """

    name: str
    level: Literal["basic", "extended", "layout", "all", "opt-in"]
    what: str
    rule: bool = False
    since: str | None = None


FLAG = Values("flag")

_FLAG_READ = "the flag, read after it was set"
GRAPH = "nodes of the optimised graph"
"""Beginning of ``Switch.read_back`` where nothing but that graph tells whether a switch did anything."""

_LOG = "passes in the session's log"
_ECHO = "the key, as the session has it; its effect only from the values"
_PROPERTY = "property of the session's options"
_DENORMAL = "a product of a denormal number"


def _choice(*choices: Value) -> Values:
    return Values("choice", choices)


def _integer(minimum: int = 0, maximum: int | None = None) -> Values:
    return Values("integer", (), minimum, maximum)


def _torch(name: str, title: str, values: Values, default: str, meaning: str, code: str, **more: Any) -> Switch:
    more = {"home": "global", "read_back": _FLAG_READ, **more}
    return Switch(
        name=name, side="torch", title=title, values=values, default=default, meaning=meaning, code=code, **more
    )


def _cuda(name: str, title: str, default: str, meaning: str, code: str, **more: Any) -> Switch:
    return _torch(name, title, FLAG, default, meaning, code, devices=("cuda",), **more)


def _ort(name: str, title: str, values: Values, default: str, meaning: str, code: str, **more: Any) -> Switch:
    side: Side = "onnxruntime"
    return Switch(name=name, side=side, title=title, values=values, default=default, meaning=meaning, code=code, **more)


def _session(name: str, title: str, default: str, meaning: str, read_back: str = _ECHO, **more: Any) -> Switch:
    code = f'options.add_session_config_entry("{name}", "{{text}}")'
    values = more.pop("values", FLAG)
    return _ort(name, title, values, default, meaning, code, read_back=read_back, home="session", **more)


def _option(name: str, title: str, default: str, meaning: str, values: Values = FLAG, **more: Any) -> Switch:
    library = "Tensorrt" if name.startswith("trt_") else "CUDA"
    code = f'providers=[("{library}ExecutionProvider", {{{{"{name}": "{{text}}"}}}}), "CPUExecutionProvider"]'
    more = {"read_back": "`session.get_provider_options()`", "home": "provider", "devices": ("cuda",), **more}
    return _ort(name, title, values, default, meaning, code, **more)


def _env(
    side: Side, name: str, title: str, values: Values, meaning: str, device: str, default: str = "unset"
) -> Switch:
    return Switch(
        name=name,
        side=side,
        title=title,
        values=values,
        default=default,
        meaning=meaning,
        read_back="the process' environment; its effect only from the values",
        home="environment",
        code=f'os.environ["{name}"] = "{{text}}"  # before the library is imported',
        devices=(device,),
        sticky=True,
    )


def _export(
    name: str, title: str, values: Values, default: str, meaning: str, read: str, code: str, **more: Any
) -> Switch:
    more = {"home": "field", **more}
    return Switch(
        name=name,
        side="export",
        title=title,
        values=values,
        default=default,
        meaning=meaning,
        read_back=read,
        code=f"torch.onnx.export(..., {code})",
        **more,
    )


def _fp32_precision(*paths: str) -> Newer:
    """What torch 2.9 has in place of ``allow_tf32``; mixing the two raises."""
    assigned = " = ".join(f"torch.backends.{path}.fp32_precision" for path in paths)
    return Newer("2.9", f'{assigned} = "{{text}}"', {True: "tf32", False: "ieee"})


_DEVICE = _choice("cpu", "cuda")
_DTYPE = _choice("float32", "float16", "bfloat16", "float64")
_TF32_OVERRIDE = "0 takes TF32 away from every NVIDIA library of the process, whatever the flags say; 1 forces it"
_MATMUL = "torch.backends.cuda.matmul."
_SDP = "torch.nn.attention.SDPBackend"
_KERNELS = ("math", "flash_attention", "efficient_attention", "cudnn_attention")

# Rows are easier to compare than to read one by one, so they are kept short.
# fmt: off

TORCH: tuple[Switch, ...] = (
    _torch("device", "device", _DEVICE, "cpu", "where PyTorch runs",
           'model.to("{text}")', home="field", read_back="devices of the outputs"),
    _torch("dtype", "precision of the model", _DTYPE, "that of the weights",
           "dtype of weights and floating inputs; the graph is exported from the model in this dtype",
           "model.to(torch.{text})", home="field", read_back="dtypes of the stages"),
    _torch("threads", "number of threads", _integer(), "0: the library's own number",
           "threads within an operation; how long sums are split",
           "torch.set_num_threads({value})", home="field", read_back="`torch.get_num_threads()`"),
    _cuda("matmul_tf32", "TF32 in matrix multiplication", "false",
          "float32 operands of matrix products are rounded to 10 mantissa bits",
          _MATMUL + "allow_tf32 = {value}", read_back="the flag, and a product whose result tells",
          newer=_fp32_precision("cuda.matmul")),
    _cuda("cudnn_conv_tf32", "TF32 in cuDNN convolutions", "true",
          "float32 operands of cuDNN convolutions are rounded to 10 mantissa bits; recurrences follow where"
          " cudnn_rnn_tf32 is not set",
          "torch.backends.cudnn.allow_tf32 = {value}", read_back="the flag, and a convolution whose result tells",
          newer=_fp32_precision("cudnn.conv", "cudnn.rnn")),
    _cuda("cudnn_rnn_tf32", "TF32 in cuDNN recurrences", "true",
          "the same for LSTM, GRU and RNN; apart from convolutions only since torch 2.9, where code that reads the one old"
          " flag (cudnn.allow_tf32, cudnn.flags) then raises",
          "torch.backends.cudnn.allow_tf32 = {value}", newer=_fp32_precision("cudnn.rnn")),
    _cuda("cudnn_enabled", "cuDNN", "true", "false: PyTorch's own convolutions, normalisations and recurrences",
          "torch.backends.cudnn.enabled = {value}"),
    _cuda("cudnn_deterministic", "deterministic cuDNN algorithms", "false",
          "cuDNN picks among deterministic algorithms only", "torch.backends.cudnn.deterministic = {value}"),
    _cuda("cudnn_benchmark", "cuDNN's choice of algorithms by measuring", "false",
          "true: a convolution takes the algorithm that measured fastest, which may differ from run to run",
          "torch.backends.cudnn.benchmark = {value}"),
    _torch("deterministic_algorithms", "deterministic algorithms", _choice(False, True, "warn"), "false",
           'operations without a deterministic form raise, or warn with "warn"',
           "torch.use_deterministic_algorithms({text})",
           spelling={False: "False", True: "True", "warn": "True, warn_only=True"}),
    _torch("sdpa_kernel", "attention kernel", _choice("default", *_KERNELS), "default",
           "which kernel computes scaled_dot_product_attention; the CPU has math and flash_attention only",
           "with torch.nn.attention.sdpa_kernel({text}):",
           spelling={"default": f"list({_SDP}.__members__.values())", **{k: f"{_SDP}.{k.upper()}" for k in _KERNELS}}),
    _torch("mha_fastpath", "fast path of nn.MultiheadAttention and nn.TransformerEncoder", FLAG, "true",
           "one fused operation in place of the layer's own, in eval mode without gradients",
           "torch.backends.mha.set_fastpath_enabled({value})"),
    _cuda("fp16_reduced_precision_reduction", "reduced precision inside float16 sums", "true",
          "partial sums of float16 products may be kept in float16",
          _MATMUL + "allow_fp16_reduced_precision_reduction = {value}"),
    _cuda("bf16_reduced_precision_reduction", "reduced precision inside bfloat16 sums", "true",
          "partial sums of bfloat16 products may be kept in bfloat16",
          _MATMUL + "allow_bf16_reduced_precision_reduction = {value}"),
    _cuda("fp16_accumulation", "float16 accumulation", "false",
          "sums of float16 products are kept in float16 throughout",
          _MATMUL + "allow_fp16_accumulation = {value}", since="2.7"),
    _cuda("fp16_bf16_reduction_math_sdp", "reduced precision in the math kernel of attention", "false",
          "that kernel stays in half precision between its two products",
          "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp({value})"),
    _torch("preferred_blas_library", "library of matrix products", _choice("cublas", "cublaslt"), "cublas",
           "which library multiplies matrices", "torch.backends.cuda.preferred_blas_library({value})", devices=("cuda",)),
    _torch("preferred_linalg_library", "library of linear algebra", _choice("default", "cusolver", "magma"), "default",
           "which library factorises and solves (torch.linalg)",
           "torch.backends.cuda.preferred_linalg_library({value})", devices=("cuda",)),
    _torch("float32_matmul_precision", "precision of float32 matrix products",
           _choice("highest", "high", "medium"), "highest",
           "high: TF32 on CUDA, in oneDNN where the processor has it; medium: bfloat16 in oneDNN. Sets what"
           " matmul_tf32 and mkldnn_matmul_fp32_precision say apart, and excludes them",
           "torch.set_float32_matmul_precision({value})"),
    _torch("mkldnn", "oneDNN", FLAG, "true", "false: PyTorch's own convolutions and LSTMs in place of oneDNN's",
           "torch.backends.mkldnn.enabled = {value}", devices=("cpu",)),
    _torch("mkldnn_deterministic", "deterministic oneDNN", FLAG, "false", "oneDNN keeps to deterministic forms",
           "torch.backends.mkldnn.deterministic = {value}", devices=("cpu",)),
    *(
        _torch(f"mkldnn_{kind}_fp32_precision", f"precision inside oneDNN's {what}", _choice("ieee", "tf32", "bf16"),
               "ieee", f"operands of float32 {what}: rounded on processors with units for it, else other kernels at most",
               f"torch.backends.mkldnn.{kind}.fp32_precision = {{value}}", devices=("cpu",), since="2.9")
        for kind, what in (("matmul", "matrix products"), ("conv", "convolutions"), ("rnn", "recurrences"))
    ),
    _torch("channels_last", "memory layout channels_last", FLAG, "false",
           "4-D weights and inputs are stored with channels innermost, which selects other kernels",
           "model.to(memory_format=torch.channels_last)", home="model",
           read_back="strides of the weights and inputs that ran"),
    _torch("flush_denormal", "denormals flushed to zero", FLAG, "false",
           "numbers below 1.2e-38 become zero, on the calling thread only: complete with threads = 1",
           "torch.set_flush_denormal({value})", devices=("cpu",), read_back=_DENORMAL),
    _torch("autocast", "autocast", _choice("off", "bfloat16", "float16"), "off",
           "matrix products, convolutions and attention run in this dtype, whatever the weights are",
           "with torch.autocast(\"{device}\", {text}):", home="context", read_back="`torch.is_autocast_enabled()`",
           spelling={"off": "enabled=False", "bfloat16": "dtype=torch.bfloat16", "float16": "dtype=torch.float16"}),
    _torch("emulate", "reduced precision of operands, emulated on the CPU", _choice("tf32", "bf16", "fp16"), "off",
           "operands of matrix products, convolutions and attention are rounded, sums stay float32; no real CUDA run",
           "with bisect_tool.backends.emulation.Emulation({value}):", home="context", devices=("cpu",),
           read_back="operations that were rounded, and those that could not be"),
    _env("torch", "CUBLAS_WORKSPACE_CONFIG", "cuBLAS workspace", _choice(":4096:8", ":16:8", ":0:0"),
         "with :4096:8 or :16:8 cuBLAS repeats itself on several streams", "cuda"),
    _env("torch", "NVIDIA_TF32_OVERRIDE", "TF32, forced from outside", _choice("0", "1"), _TF32_OVERRIDE, "cuda"),
    _env("torch", "MKL_CBWR", "reproducible MKL",
         _choice("AUTO", "COMPATIBLE", "AVX2", "AVX2,STRICT", "AVX512", "AVX512,STRICT"),
         "the same code path of MKL's matrix products on different processors", "cpu"),
    _env("torch", "ATEN_CPU_CAPABILITY", "vector instructions of PyTorch's own kernels",
         _choice("default", "avx2", "avx512"), "which instructions PyTorch's own CPU kernels use", "cpu",
         "what the processor has"),
    _env("torch", "ONEDNN_MAX_CPU_ISA", "vector instructions of oneDNN",
         _choice("SSE41", "AVX", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "DEFAULT"),
         "which instructions oneDNN uses at most", "cpu", "what the processor has"),
)

ONNXRUNTIME: tuple[Switch, ...] = (
    _ort("backend", "what runs the graph", _choice("onnxruntime", "onnx-reference"), "onnxruntime",
         "onnx-reference: ONNX's own evaluator, in numpy on the CPU; it is slow, optimises nothing and has no switches",
         'session = {text}("model.onnx")', home="field", read_back="`effective.actual.runner`", devices=("cpu",),
         spelling={"onnxruntime": "onnxruntime.InferenceSession",
                   "onnx-reference": "onnx.reference.ReferenceEvaluator"}),
    _ort("device", "execution provider", _DEVICE, "cpu",
         "cuda: CUDAExecutionProvider, with the CPU's for what it has no kernel for",
         'providers=["{text}", "CPUExecutionProvider"]', home="field",
         read_back="`session.get_providers()`, and the provider of each node",
         spelling={"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}),
    _ort("provider", "TensorRT", _choice("tensorrt"), "that of the device", "TensorRT in front of the CUDA provider",
         'providers=["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]',
         home="provider", read_back="`session.get_providers()`, and the provider of each node", devices=("cuda",)),
    _ort("dtype", "precision of the graph", _DTYPE, "that of the graph",
         "follows PyTorch's side: the graph is exported in this dtype", "torch.onnx.export(model.to(torch.{text}), ...)",
         home="field", read_back="types of the graph's weights, or of its inputs"),
    _ort("optimization", "graph optimisation", _choice("off", "basic", "extended", "layout", "all"), "all",
         "which passes rewrite the graph; layout needs onnxruntime 1.23",
         "options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.{text}", home="field", read_back=GRAPH,
         spelling={"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED",
                   "layout": "ORT_ENABLE_LAYOUT", "all": "ORT_ENABLE_ALL"}),
    _ort("threads", "number of threads", _integer(), "0: the library's own number",
         "threads within an operation; how long sums are split", "options.intra_op_num_threads = {value}",
         home="field", read_back=_PROPERTY),
    _ort("disabled_passes", "optimiser passes", Values("passes"), "none",
         "passes that are left out; names are case-sensitive",
         'options.add_session_config_entry("optimization.disable_specified_optimizers", "{text}")',
         home="session", read_back=f"{GRAPH}, {_LOG}"),
    _ort("use_deterministic_compute", "deterministic kernels", FLAG, "false",
         "CUDA reductions in a fixed order; the session key of this name does nothing from Python",
         "options.use_deterministic_compute = {value}", home="property", read_back=_PROPERTY),
    _session("optimization.enable_gelu_approximation", "GELU by tanh", "false",
             "com.microsoft Gelu and BiasGelu become FastGelu; the Gelu of opset 20 is left alone", GRAPH),
    _session("optimization.enable_cast_chain_elimination", "removal of casts that round", "false",
             "float32 → float16 → float32 disappears, and with it the rounding", GRAPH, since="1.23"),
    _session("session.set_denormal_as_zero", "denormals flushed to zero", "false",
             "numbers below 1.2e-38 become zero. The first session of the process decides for the thread that makes it,"
             " and PyTorch's and numpy's numbers on that thread change too", _DENORMAL, sticky=True),
    _session("session.disable_prepacking", "weights not packed", "false",
             "weights stay as they are in the file, which selects other kernels of the CPU", devices=("cpu",)),
    _session("session.disable_quant_qdq", "quantised kernels", "false",
             "true: QuantizeLinear and DequantizeLinear are computed as written, in floating point between them", GRAPH),
    _session("session.disable_double_qdq_remover", "removal of double QDQ pairs", "false",
             "true: two quantisations in a row stay two", GRAPH),
    _session("session.enable_quant_qdq_cleanup", "removal of left-over QDQ pairs", "false",
             "a QuantizeLinear with its DequantizeLinear disappears, and with it the rounding", GRAPH),
    _session("session.disable_qdq_constant_folding", "folding of constants through QDQ pairs", "false",
             "true: quantised constants are not computed ahead", GRAPH, since="1.26"),
    _session("session.qdqisint8allowed", "signed 8-bit kernels", "true on ARM, else false",
             "true: int8 activations stay int8 in place of a conversion to uint8", _LOG, devices=("cpu",)),
    _session("session.x64quantprecision", "saturation of 8-bit products", "false",
             "true: on x86 without VNNI weights become unsigned, so that sums in 16 bits do not saturate", _LOG,
             devices=("cpu",)),
    _session("session.disable_aot_function_inlining", "early inlining of functions", "false",
             "true: functions of the model are inlined late, and the first passes do not see into them", GRAPH),
    _session("session.graph_optimizations_loop_level", "repeated optimisation", "1",
             "how often passes of higher levels run again", values=_integer(0, 2), since="1.23"),
    _session("optimization.constant_folding_max_output_size_in_bytes", "size of folded constants",
             "the library's own number", "nodes of constants with a larger result are computed in each run", GRAPH,
             values=_integer(), since="1.27"),
    _session("session.qdq_matmulnbits_accuracy_level", "precision inside 4-bit products", "4",
             "what activations are rounded to in products with block-quantised weights: 0 and 1 float32, 2 float16,"
             " 3 bfloat16, 4 int8", values=_integer(0, 4)),
    _session("session.enable_dq_matmulnbits_fusion", "products with few-bit weights from their parts", "false",
             "DequantizeLinear of block-quantised weights with its product becomes one product, which rounds activations",
             GRAPH, since="1.31"),
    _session("mlas.use_lut_gemm", "products from tables", "false",
             "products with 2-bit weights are looked up, with activations in 8 bits", devices=("cpu",), since="1.24"),
    _session("mlas.qnbit.force_fp32", "float32 inside products of few bits", "false",
             "true: activations are not rounded in products with block-quantised weights", devices=("cpu",),
             since="1.31"),
    _session("mlas.disable_kleidiai", "KleidiAI kernels", "false",
             "true: the library's own kernels in place of KleidiAI's; 64-bit Arm only", devices=("cpu",), since="1.30"),
    _session("ep.cuda.enable_gemm_auto_tune", "choice of matrix kernels by measuring", "false",
             "true: a product takes the kernel that measured fastest, which may differ from run to run",
             devices=("cuda",), since="1.31"),
    _session("ep.cuda.fpa_intb_gemm", "kernels of few-bit weights on CUDA", "0",
             "sum of 1 all, 2 products with a vector, 4 with 4-bit weights, 8 with 8-bit weights: other kernels for"
             " float16 and bfloat16 products with block-quantised weights", devices=("cuda",), values=_integer(0, 15),
             since="1.31"),
    _session("mlas.nchwc_depthwise_sliding", "sliding kernels of depthwise convolutions", "the library's own choice",
             "which kernel computes a depthwise convolution, and so the order of its sums", devices=("cpu",),
             since="1.31"),
    _session("mlas.enable_gemm_fastmath_arm64_bfloat16", "bfloat16 inside float32 products", "false",
             "operands of float32 matrix products are rounded to bfloat16; 64-bit Arm only", devices=("cpu",)),
    _session("mlas.nchwc_pointwise_conv_max_input_channel_batch", "channels of a 1x1 convolution in one go",
             "the library's own number", "how the sum over channels is split", values=_integer(1), devices=("cpu",),
             since="1.30"),
    _option("use_tf32", "TF32 in ONNX Runtime", "true",
            "float32 operands of matrix products and convolutions are rounded to 10 mantissa bits"),
    _option("cudnn_conv_algo_search", "choice of convolution algorithms", "EXHAUSTIVE",
            "EXHAUSTIVE measures and may differ from run to run, HEURISTIC asks cuDNN, DEFAULT is always the same",
            _choice("EXHAUSTIVE", "HEURISTIC", "DEFAULT")),
    _option("cudnn_conv_use_max_workspace", "workspace of convolutions", "true",
            "algorithms that need much memory take part in the choice"),
    _option("cudnn_conv1d_pad_to_nc1d", "form of 1-D convolutions", "false",
            "a 1-D convolution runs as [N, C, 1, D] in place of [N, C, D, 1]"),
    _option("prefer_nhwc", "layout NHWC", "false", "convolutions and pooling run with channels innermost"),
    _option("fuse_conv_bias", "fused bias of convolutions", "false", "convolution and bias in one kernel"),
    _option("sdpa_kernel", "attention kernels", "0: the provider's own choice",
            "sum of 1 flash, 2 memory-efficient, 4 TensorRT fused, 8 cuDNN flash, 16 math, 32 TensorRT flash,"
            " 64 TensorRT cross, 128 TensorRT causal, 256 lean", _integer(0, 511)),
    _option("do_copy_in_default_stream", "stream of copies", "true", "false: copies run beside the kernels, and may race"),
    _option("use_ep_level_unified_stream", "one stream for all", "false",
            "true: kernels of all nodes run on one stream, one after the other"),
    _option("enable_skip_layer_norm_strict_mode", "float32 sums in SkipLayerNormalization", "false",
            "float16 layer normalisation with float32 sums; newer versions always do so"),
    _option("tunable_op_enable", "tunable operators", "false", "kernels chosen by measured results"),
    _option("tunable_op_tuning_enable", "tuning of operators", "false", "measures kernels during the run"),
    _option("trt_fp16_enable", "float16 in TensorRT", "false", "TensorRT may compute in float16"),
    _option("trt_bf16_enable", "bfloat16 in TensorRT", "false", "TensorRT may compute in bfloat16", since="1.23"),
    _option("trt_int8_enable", "int8 in TensorRT", "false", "TensorRT may compute in int8"),
    _option("trt_layer_norm_fp32_fallback", "float32 layer normalisation in TensorRT", "false",
            "layer normalisation stays float32 in a float16 engine"),
    _env("onnxruntime", "NVIDIA_TF32_OVERRIDE", "TF32, forced from outside", _choice("0", "1"), _TF32_OVERRIDE, "cuda"),
    *(
        _env("onnxruntime", name, title, FLAG, meaning, "cuda")
        for name, title, meaning in (
            ("ORT_DISABLE_FLASH_ATTENTION", "flash attention", "true: none of it"),
            ("ORT_DISABLE_MEMORY_EFFICIENT_ATTENTION", "memory-efficient attention", "true: none of it"),
            ("ORT_DISABLE_FUSED_ATTENTION", "TensorRT's fused attention", "true: none of it"),
            ("ORT_DISABLE_TRT_FLASH_ATTENTION", "TensorRT's flash attention", "true: none of it"),
            ("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "cuDNN's flash attention", "true: cuDNN's kernel is taken"),
            ("ORT_CUDA_GEMM_AUTO_TUNE", "choice of matrix kernels by measuring",
             "true: as ep.cuda.enable_gemm_auto_tune, for all sessions of the process"),
        )
    ),
    _env("onnxruntime", "ORT_MLAS_QKGEMM_S8_APPROX_VNNI", "approximate 8-bit products with few-bit weights", FLAG,
         "true: sums of 8-bit products may be approximated on processors with VNNI", "cpu"),
)

EXPORT: tuple[Switch, ...] = (
    _export("exporter", "exporter", _choice("dynamo", "torchscript"), "dynamo", "which exporter writes the graph",
            "the producer in the file", "dynamo={text}", spelling={"dynamo": "True", "torchscript": "False"}),
    _export("opset", "opset", _integer(7), "the exporter's own",
            "version of the operators; from 20 on GELU is one operator, which enable_gelu_approximation leaves alone",
            "the opset in the file", "opset_version={value}"),
    _export("constant_folding", "constant folding at export", FLAG, "true",
            "constants are computed ahead; with dynamo this is all of its optimisation. Without it neither exporter folds"
            " BatchNorm",
            "nodes of the exported graph", "optimize={value}"),
    _export("batchnorm_folding", "folding of BatchNorm at export", FLAG, "true",
            "BatchNorm goes into the convolution or product before it. dynamo has no argument for it: onnxscript's rules"
            " are left out; by hand optimize=False leaves all of them out",
            "nodes of the exported graph", "training=torch.onnx.TrainingMode.{text}", home="export",
            spelling={True: "EVAL", False: "PRESERVE"}),
    _export("keep_stages", "stages kept apart", FLAG, "false",
            "neither constants nor BatchNorm are folded, and nothing else is optimised; not what gets deployed",
            "nodes of the exported graph", "optimize=False", home="export"),
    _export("dynamic_shapes", "dynamic shapes", FLAG, "false",
            "sizes of the inputs are not fixed in the graph: with dynamo all dimensions that the model allows for,"
            " with torchscript the first",
            "sizes of the session's inputs that are not fixed", "dynamic_shapes=...", home="export"),
)

PASSES: tuple[Pass, ...] = (
    Pass("EliminateIdentity", "basic", "removes Identity", rule=True),
    Pass("EliminateSlice", "basic", "removes a Slice that takes everything", rule=True),
    Pass("UnsqueezeElimination", "basic", "Unsqueeze of a constant → constant", rule=True),
    Pass("EliminateDropout", "basic", "removes Dropout", rule=True),
    Pass("ExpandElimination", "basic", "removes an Expand to the same shape", rule=True),
    Pass("CastElimination", "basic", "removes a Cast to the same type", rule=True),
    Pass("PreShapeNodeElimination", "basic", "removes a Cast before Shape", rule=True),
    Pass("NoopElimination", "basic", "removes x + 0, x * 1 and the like", rule=True),
    Pass("DivMulFusion", "basic", "1 / x * y → y / x", rule=True),
    Pass("FuseReluClip", "basic", "Relu + Clip → Clip", rule=True),
    Pass("GemmSumFusion", "basic", "Gemm + Sum → Gemm", rule=True),
    Pass("GemmTransposeFusion", "basic", "Transpose + Gemm → Gemm", rule=True),
    Pass("NotWhereFusion", "basic", "Not + Where → Where", rule=True),
    Pass("ConvAddFusion", "basic", "Conv + Add of a constant → Conv", rule=True),
    Pass("ConvMulFusion", "basic", "Conv + Mul by a constant → Conv", rule=True),
    Pass("ConvBNFusion", "basic", "Conv + BatchNormalization → Conv", rule=True),
    Pass("Pad_Fusion", "basic", "Pad + Conv or pooling → Conv or pooling", rule=True),
    Pass("MatMul_BatchNormalization_Fusion", "basic", "MatMul + BatchNormalization → Gemm", rule=True),
    Pass("LabelEncoderFusion", "basic", "two LabelEncoder → one", rule=True),
    Pass("ClipQuantRewrite", "extended", "removes a Clip before QuantizeLinear", rule=True),
    Pass("ReluQuantRewrite", "extended", "removes a Relu before QuantizeLinear", rule=True),
    Pass("CastChainElimination", "opt-in", "removes pairs of Cast, those that round too", rule=True, since="1.23"),
    Pass("Level1_RuleBasedTransformer", "basic", "all rules of this level together"),
    Pass("DoubleQDQPairsRemover", "basic", "two quantisations in a row → one"),
    Pass("ConstantSharing", "basic", "equal constants → one"),
    Pass("CommonSubexpressionElimination", "basic", "equal nodes → one"),
    Pass("ConstantFolding", "basic", "nodes of constants → constants"),
    Pass("MatMulAddFusion", "basic", "MatMul + Add → Gemm"),
    Pass("ReshapeFusion", "basic", "computed shapes → constants"),
    Pass("FreeDimensionOverrideTransformer", "basic", "fixes dimensions that the session's options name"),
    Pass("SliceConcatToSpaceToDepthFusion", "basic", "Slice + Concat → SpaceToDepth"),
    Pass("GeluFusionL1", "basic", "the parts of GELU → Gelu of opset 20"),
    Pass("LayerNormFusionL1", "basic", "the parts of a layer normalisation → LayerNormalization"),
    Pass("QDQPropagationTransformer", "basic", "moves quantisation over Reshape, Transpose and the like"),
    Pass("WeightBiasQuantization", "basic", "quantises weights and biases between QDQ nodes"),
    Pass("WhereDummyDq", "basic", "a DequantizeLinear beside Where"),
    Pass("RocmBlasAltImpl", "basic", "ROCm only"),
    Pass("TransposeOptimizer", "basic", "moves and removes Transpose"),
    Pass("Level2_RuleBasedTransformer", "extended", "all rules of this level together"),
    Pass("TransposeOptimizer_CPUExecutionProvider", "extended", "moves and removes Transpose, for the CPU"),
    Pass("QDQS8ToU8Transformer", "extended", "int8 activations → uint8"),
    Pass("QDQSelectorActionTransformer", "extended", "QDQ groups → quantised operators"),
    Pass("GemmActivationFusion", "extended", "Gemm + activation → FusedGemm"),
    Pass("MatMulIntegerToFloatFusion", "extended", "MatMulInteger + scale → MatMulIntegerToFloat"),
    Pass("DynamicQuantizeMatMulFusion", "extended", "DynamicQuantizeLinear + MatMulInteger → DynamicQuantizeMatMul"),
    Pass("ConvActivationFusion", "extended", "Conv + activation → FusedConv"),
    Pass("GeluFusionL2", "extended", "the parts of GELU → com.microsoft Gelu"),
    Pass("LayerNormFusionL2", "extended", "the parts of a layer normalisation → LayerNormalization"),
    Pass("SimplifiedLayerNormFusion", "extended", "the parts of RMS normalisation → SimplifiedLayerNormalization"),
    Pass("AttentionFusion", "extended", "the parts of attention → Attention"),
    Pass("EmbedLayerNormFusion", "extended", "embeddings + normalisation → EmbedLayerNormalization"),
    Pass("GatherSliceToSplitFusion", "extended", "Gather or Slice of all parts → Split"),
    Pass("GatherToSliceFusion", "extended", "Gather of a range → Slice"),
    Pass("MatmulTransposeFusion", "extended", "Transpose + MatMul → FusedMatMul"),
    Pass("BiasGeluFusion", "extended", "Add + Gelu → BiasGelu"),
    Pass("GroupQueryAttentionFusion", "extended", "the parts of grouped attention → GroupQueryAttention"),
    Pass("SkipLayerNormFusion", "extended", "Add + LayerNormalization → SkipLayerNormalization"),
    Pass("BiasSkipLayerNormFusion", "extended", "Add + SkipLayerNormalization → SkipLayerNormalization"),
    Pass("FastGeluFusion", "extended", "the parts of GELU by tanh → FastGelu"),
    Pass("QuickGeluFusion", "extended", "x * sigmoid(a * x) → QuickGelu"),
    Pass("BiasSoftmaxFusion", "extended", "Add + Softmax → BiasSoftmax"),
    Pass("BiasDropoutFusion", "extended", "Add + Dropout → BiasDropout"),
    Pass("MatMulScaleFusion", "extended", "MatMul + scale → FusedMatMul"),
    Pass("MatMulActivationFusion", "extended", "MatMul + activation → FusedMatMulActivation"),
    Pass("MatMulNBitsFusion", "extended", "MatMulNBits + Add → MatMulNBits"),
    Pass("GroupQueryAttentionPreNormFusion", "extended", "normalisation + GroupQueryAttention → one node"),
    Pass("QDQFinalCleanupTransformer", "extended", "removes left-over QDQ pairs, if asked to"),
    Pass("NchwcTransformer", "layout", "Conv and pooling in blocks of channels, on the CPU"),
    Pass("NhwcTransformer", "layout", "quantised and float16 Conv with channels innermost, on the CPU"),
    Pass("ConvAddActivationFusion", "layout", "Conv + Add + activation → FusedConv"),
    Pass("FuseFp16InitializerToFp32NodeTransformer", "all", "float16 constants that are only cast → float32"),
    Pass("GeluApproximation", "opt-in", "Gelu → FastGelu"),
    Pass("Avx2WeightS8ToU8Transformer", "opt-in", "int8 weights → uint8"),
    Pass("DQMatMulNBitsFusion", "opt-in", "DequantizeLinear + MatMul → MatMulNBits"),
)
"""Names that onnxruntime 1.20 to 1.31 have; ``ort_options.known_passes`` asks the installed one."""

NOT_HERE: tuple[tuple[str, str, str], ...] = (
    ("onnxruntime", "session.disable_cpu_ep_fallback",
     "refuses a session rather than changing a number, and any that lists the CPU too; each pair on CUDA is checked for"
     " nodes on the CPU anyway"),
    ("onnxruntime", "enable_cuda_graph",
     "records the same kernels once and replays them; it needs inputs and outputs that stay at one address"),
    ("onnxruntime", "ORT_LOAD_CONFIG_FROM_MODEL",
     "lets the file's metadata set any option: what a pair asks for would no longer be what it has"),
    *(
        ("torch", f"allow_{dtype}_reduced_precision_reduction_split_k",
         f"PyTorch 2.13 refuses to set it alone: it can only be off together with {dtype}_reduced_precision_reduction,"
         " as the second of two values")
        for dtype in ("fp16", "bf16")
    ),
)
"""Side, name and reason of switches that have a name elsewhere, and that no pair can set."""

# fmt: on

REQUIRED_PASSES = frozenset(
    ["EnsureUniqueDQForNodeUnit", "RemoveDuplicateCastTransformer", "CastFloat16Transformer", "MemcpyTransformer"]
)
"""Passes that run whatever one disables."""

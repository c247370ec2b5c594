"""``numerics`` and ``switches``: what is misspelt is refused, and every row of the table can be used."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bisect_tool import numerics
from bisect_tool.errors import EXIT_INCONCLUSIVE, EXIT_USAGE, BisectError, InconclusiveError
from bisect_tool.numerics import (
    check,
    check_config,
    check_pair,
    check_passes,
    code_for,
    environment,
    lookup,
    nearest,
    steps,
    switches_markdown,
    take,
    text_of,
)
from bisect_tool.records import ConfigPair, NumericConfig
from bisect_tool.switches import EXPORT, ONNXRUNTIME, PASSES, REQUIRED_PASSES, TORCH, Switch, Value

ALL = (*TORCH, *ONNXRUNTIME, *EXPORT)
BY_NAME = pytest.mark.parametrize("switch", ALL, ids=lambda s: f"{s.side}-{s.name}")


def values_of(switch: Switch) -> tuple[Value, ...]:
    """All values of a switch, or some."""
    kind = switch.values.kind
    if kind == "flag":
        return (True, False)
    if kind == "integer":
        return (max(1, switch.values.minimum), switch.values.maximum or 99)
    return switch.values.choices if kind == "choice" else ("ConvBNFusion", "ConvBNFusion;GeluFusionL2")


def pair(expected: NumericConfig, actual: NumericConfig, name: str = "one") -> ConfigPair:
    return ConfigPair(name, expected, actual)


def torch_side(device: str = "cpu", **switches: Value) -> NumericConfig:
    return NumericConfig("torch", device=device, switches=switches)


def ort_side(device: str = "cpu", **switches: Value) -> NumericConfig:
    return NumericConfig("onnxruntime", device=device, optimization="all", switches=switches)


# The table


def test_names_are_unique_on_a_side() -> None:
    """A name finds one row; what ONNX Runtime's side and the export share in a configuration does not clash."""
    assert len(ALL) == len({(s.side, s.name) for s in ALL})
    assert not {s.name for s in ONNXRUNTIME} & {s.name for s in EXPORT}
    names = [p.name for p in PASSES]
    assert len(names) == len(set(names))
    assert not REQUIRED_PASSES & set(names)


def test_sides_are_looked_up_apart() -> None:
    """Both libraries have a switch of this name, with other values."""
    assert "math" in lookup("torch", "sdpa_kernel").values.choices
    assert "integer" == lookup("onnxruntime", "sdpa_kernel").values.kind


@BY_NAME
def test_row_is_complete(switch: Switch) -> None:
    """Each row says what it changes and how it is seen, and its values are accepted as its own."""
    for text in (switch.title, switch.default, switch.meaning, switch.read_back, switch.code):
        assert text
        assert "|" not in text, "the page is a table"
    assert set(switch.devices) <= {"cpu", "cuda"}
    assert set(switch.spelling) <= {*switch.values.choices, True, False}
    for value in values_of(switch):
        assert switch is check(switch.side, switch.name, value)


@BY_NAME
def test_code_is_python(switch: Switch) -> None:
    """The line that sets a switch by hand can be parsed, for every value."""
    for value in values_of(switch):
        line = code_for(switch.side, switch.name, value)
        assert "{" not in line or "providers=" in line
        ast.parse(line + " pass" if line.endswith(":") else line)


def test_code_says_the_value_as_the_library_spells_it() -> None:
    """Flags become 1 and 0 for ONNX Runtime, words of ours become the library's."""
    assert "torch.backends.cudnn.allow_tf32 = False" == code_for("torch", "cudnn_conv_tf32", False, newer=False)
    assert 'torch.backends.cudnn.rnn.fp32_precision = "tf32"' == code_for("torch", "cudnn_rnn_tf32", True, newer=True)
    assert 'providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]' == code_for(
        "onnxruntime", "use_tf32", False
    )
    assert "ORT_DISABLE_ALL" == text_of("onnxruntime", "optimization", "off")
    assert "1" == text_of("onnxruntime", "session.disable_prepacking", True)


def test_page_is_up_to_date() -> None:
    """docs/switches.md is what scripts/docs-switches writes."""
    page = Path(__file__).resolve().parents[2] / "docs" / "switches.md"
    assert switches_markdown() == page.read_text(encoding="utf-8"), "run scripts/docs-switches"


# Refusing


@pytest.mark.parametrize(
    ("side", "name", "message", "hint"),
    [
        ("torch", "matmul_tf23", "torch has no switch 'matmul_tf23'", "did you mean matmul_tf32"),
        ("torch", "MKLDNN", "has no switch 'MKLDNN'", "did you mean mkldnn"),
        ("onnxruntime", "session.disable_prepackin", "has no switch", "did you mean session.disable_prepacking"),
        ("onnxruntime", "disable_prepacking", "has no switch", "session.disable_prepacking"),
        ("onnxruntime", "ep.cuda.allow_tf32", "has no switch", "lists all"),
        ("onnxruntime", "bogus.key", "has no switch 'bogus.key'", "docs/switches.md lists all"),
        ("onnxruntime", "matmul_tf32", "is a switch of torch, not of onnxruntime", "see docs/switches.md"),
        ("torch", "use_tf32", "is a switch of onnxruntime, not of torch", "see docs/switches.md"),
        ("torch", "opset", "is a switch of export, not of torch", "see docs/switches.md"),
        ("export", "opsett", "export has no switch 'opsett'", "did you mean opset"),
    ],
)
def test_unknown_name_is_refused(side: str, name: str, message: str, hint: str) -> None:
    """The message names what is wrong, the hint what comes near."""
    with pytest.raises(BisectError, match=message) as caught:
        check(side, name, True)
    assert EXIT_USAGE == caught.value.exit_code
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("side", "name", "value", "hint"),
    [
        ("torch", "mkldnn", "off", "valid: true, false"),
        ("torch", "mkldnn", 0, "valid: true, false"),
        ("torch", "deterministic_algorithms", 1, 'valid: false, true, "warn"'),
        ("torch", "deterministic_algorithms", "warm", 'did you mean "warn"'),
        ("torch", "emulate", "tf23", 'did you mean "tf32"'),
        ("torch", "dtype", "float23", '"float32"'),
        ("torch", "threads", -1, "valid: 0 or more"),
        ("torch", "threads", True, "valid: 0 or more"),
        ("onnxruntime", "cudnn_conv_algo_search", "EXHAUSTIV", 'did you mean "EXHAUSTIVE"'),
        ("onnxruntime", "cudnn_conv_algo_search", "exhaustive", 'did you mean "EXHAUSTIVE"'),
        ("onnxruntime", "sdpa_kernel", 512, "valid: 0 to 511"),
        ("onnxruntime", "sdpa_kernel", "math", "valid: 0 to 511"),
        ("onnxruntime", "use_tf32", "0", "valid: true, false"),
        ("onnxruntime", "session.graph_optimizations_loop_level", 3, "valid: 0 to 2"),
        ("onnxruntime", "optimization", "none", "valid: "),
        ("onnxruntime", "disabled_passes", 3, "valid: names of passes"),
        ("export", "exporter", "script", 'did you mean "torchscript"'),
        ("torch", "dtype", "fp16", 'did you mean "float16"'),
        ("torch", "autocast", "BF16", 'did you mean "bfloat16"'),
        ("torch", "emulate", "half", 'did you mean "fp16"'),
        ("onnxruntime", "optimization", "ORT_ENABLE_EXTENDED", 'did you mean "extended"'),
    ],
)
def test_wrong_value_is_refused(side: str, name: str, value: object, hint: str) -> None:
    """Values are exact: no word for a flag, no number for a flag, nothing beyond a limit."""
    with pytest.raises(BisectError, match=f"{name} = ") as caught:
        check(side, name, value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ("ConvBnFusion", "no optimiser pass 'ConvBnFusion'", "did you mean ConvBNFusion"),
        ("convbnfusion", "no optimiser pass", "did you mean ConvBNFusion"),
        ("MatMulAdd_Fusion", "no optimiser pass", "MatMulAddFusion"),
        ("ConvBNFusion,GeluFusionL2", "no optimiser pass 'ConvBNFusion,GeluFusionL2'", ""),
        ("ConvBNFusion; GeluFusionL2", "no optimiser pass ' GeluFusionL2'", "did you mean GeluFusionL2"),
        ("MemcpyTransformer", "MemcpyTransformer cannot be disabled", "leave it out"),
    ],
)
def test_pass_that_would_disable_nothing_is_refused(names: str, message: str, hint: str) -> None:
    """ONNX Runtime takes all of these without a word, and does nothing."""
    with pytest.raises(BisectError, match=message) as caught:
        check("onnxruntime", "disabled_passes", names)
    assert hint in str(caught.value.hint)


def test_passes_of_the_installed_version() -> None:
    """Names that the installed version says it has are the ones that count."""
    check_passes(["NewFusion"], ["NewFusion", "ConvBNFusion"])
    with pytest.raises(BisectError, match="no optimiser pass 'RocmBlasAltImpl'"):
        check_passes(["RocmBlasAltImpl"], ["NewFusion"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NumericConfig("torch", device="gpu"), 'device = "gpu"'),
        (NumericConfig("torch", dtype="half"), 'dtype = "half"'),
        (NumericConfig("torch", optimization="all"), "optimization is no key of PyTorch's side"),
        (NumericConfig("torch", opset=18), "opset is no key of PyTorch's side"),
        (NumericConfig("onnxruntime", optimization="ALL"), 'optimization = "ALL"'),
        (NumericConfig("onnxruntime", opset=3), "opset = 3"),
        (torch_side(threads=2), "threads is a key of its own"),
        (torch_side(matmul_tf32=True), "matmul_tf32 acts on cuda only, and this side runs on cpu"),
        (torch_side("cuda", mkldnn=False), "mkldnn acts on cpu only, and this side runs on cuda"),
        (ort_side(use_tf32=False), "use_tf32 acts on cuda only"),
        (ort_side("cuda", trt_fp16_enable=True), "trt_fp16_enable is an option of TensorRT"),
        (ort_side(mkldnn=False), "mkldnn is a switch of torch"),
    ],
)
def test_configuration_is_refused(config: NumericConfig, message: str) -> None:
    """What is not valid, belongs elsewhere, or has no effect there does not run."""
    with pytest.raises(BisectError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    "config",
    [
        NumericConfig("torch"),
        NumericConfig("torch", "cuda", "float16", threads=2, switches={"cudnn_benchmark": True}),
        NumericConfig("onnxruntime", exporter="pytorch"),  # the producer of a given file
        NumericConfig("onnxruntime", "cuda", None, "layout", 1, "dynamo", 18, False, {"keep_stages": True}),
        ort_side("cuda", provider="tensorrt", trt_fp16_enable=False),
    ],
)
def test_configuration_is_accepted(config: NumericConfig) -> None:
    """Good configurations pass."""
    check_config(config)


def test_emulation_needs_a_float32_model() -> None:
    """A half-precision model has nothing to round: it cannot run, which is no misuse."""
    with pytest.raises(InconclusiveError, match="the model runs in float16") as caught:
        check_config(NumericConfig("torch", dtype="float16", switches={"emulate": "tf32"}))
    assert EXIT_INCONCLUSIVE == caught.value.exit_code


def test_emulated_pair_says_so() -> None:
    """An emulated run cannot be named like a real one."""
    check_pair(pair(torch_side(emulate="tf32"), ort_side(), "tf32-emulated"))
    with pytest.raises(BisectError, match="its name does not say so") as caught:
        check_pair(pair(torch_side(emulate="tf32"), ort_side(), "cuda-tf32"))
    assert "tf32-emulated" in str(caught.value.hint)


# Processes


def test_environment_of_a_pair() -> None:
    """Variables of both sides come together; one that they contradict each other in is refused."""
    expected = torch_side("cuda", CUBLAS_WORKSPACE_CONFIG=":4096:8", NVIDIA_TF32_OVERRIDE="0")
    both = pair(expected, ort_side("cuda", NVIDIA_TF32_OVERRIDE="0", ORT_DISABLE_FLASH_ATTENTION=True))
    found = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0", "ORT_DISABLE_FLASH_ATTENTION": "1"}
    assert found == environment(both)
    check_pair(both)
    with pytest.raises(BisectError, match="NVIDIA_TF32_OVERRIDE is 0 on one side and 1 on the other"):
        check_pair(pair(expected, ort_side("cuda", NVIDIA_TF32_OVERRIDE="1")))


# Suspects


def test_steps_lead_from_one_pair_to_the_other() -> None:
    """Each step is one switch; all of them together, or taken back, are the other pair."""
    deploy = pair(torch_side("cuda", cudnn_benchmark=True), ort_side("cuda"), "deploy")
    strict = pair(
        NumericConfig("torch", "cuda", "float32", threads=1, switches={"cudnn_conv_tf32": False}),
        NumericConfig(
            "onnxruntime", "cuda", "float32", "off", opset=17, switches={"use_tf32": False, "keep_stages": True}
        ),
        "strict",
    )
    found = steps(deploy, strict)
    assert [
        ("torch", "dtype", None, "float32"),
        ("torch", "threads", 0, 1),
        ("torch", "cudnn_conv_tf32", None, False),
        ("torch", "cudnn_benchmark", True, None),
        ("onnxruntime", "dtype", None, "float32"),
        ("onnxruntime", "optimization", "all", "off"),
        ("onnxruntime", "use_tf32", None, False),
        ("export", "opset", None, 17),
        ("export", "keep_stages", None, True),
    ] == [(s.side, s.name, s.before, s.after) for s in found]
    assert (strict.expected, strict.actual) == (take(deploy, found).expected, take(deploy, found).actual)
    back = take(strict, found, back=True)
    assert (deploy.expected, deploy.actual, "strict") == (back.expected, back.actual, back.name)
    assert () == steps(deploy, deploy)
    only = take(deploy, [s for s in found if s.name == "use_tf32"])
    assert {"use_tf32": False} == only.actual.switches
    assert deploy.expected == only.expected


def test_step_says_how_to_make_it() -> None:
    """Each step has a title and the line that makes it, if it sets something."""
    (step,) = steps(pair(torch_side("cuda"), ort_side()), pair(torch_side("cuda", cudnn_conv_tf32=False), ort_side()))
    assert ("TF32 in cuDNN", code_for("torch", "cudnn_conv_tf32", False)) == (step.title, step.code())
    (unset,) = steps(pair(torch_side(mkldnn=False), ort_side()), pair(torch_side(), ort_side()))
    assert unset.code() is None


@pytest.mark.parametrize(
    ("installed", "line"), [("2.8.1", "allow_tf32 = False"), ("2.10.0", 'fp32_precision = "ieee"')]
)
def test_code_is_that_of_the_installed_torch(monkeypatch: pytest.MonkeyPatch, installed: str, line: str) -> None:
    """``fp32_precision`` from 2.9 on, for convolutions and recurrences alike; the one old flag before."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"torch": installed}[name])
    code = code_for("torch", "cudnn_conv_tf32", False)
    assert code.endswith(line)
    assert ("cudnn.conv.fp32" in code and "cudnn.rnn.fp32" in code) == ("fp32" in line)


def test_cudnn_tf32_is_one_step() -> None:
    """Convolutions and recurrences change together; those that are set apart are two steps."""
    on = pair(torch_side("cuda", cudnn_conv_tf32=True, cudnn_rnn_tf32=True), ort_side())
    off = pair(torch_side("cuda", cudnn_conv_tf32=False, cudnn_rnn_tf32=False), ort_side())
    (step,) = steps(on, off)
    assert (off, on) == (take(on, [step]), take(off, [step], back=True))
    conv = pair(torch_side("cuda", cudnn_conv_tf32=False), ort_side())
    assert conv == take(pair(torch_side("cuda"), ort_side()), steps(pair(torch_side("cuda"), ort_side()), off))
    apart = pair(torch_side("cuda", cudnn_conv_tf32=False, cudnn_rnn_tf32=True), ort_side())
    assert apart == take(on, steps(on, apart))
    assert ["cudnn_conv_tf32", "cudnn_rnn_tf32"] == [
        step.name for step in steps(pair(torch_side("cuda"), ort_side()), apart)
    ]


def test_step_that_changes_nothing_is_no_suspect() -> None:
    """Setting what the library does anyway is told from a real step, either way round."""
    plain = pair(torch_side("cuda"), ort_side("cuda"))
    spelt = pair(torch_side("cuda", cudnn_benchmark=False, sdpa_kernel="default"), ort_side("cuda", use_tf32=True))
    other = pair(torch_side("cuda", cudnn_conv_tf32=False, sdpa_kernel="math"), ort_side("cuda", use_tf32=False))
    assert all(step.idle for step in (*steps(plain, spelt), *steps(spelt, plain)))
    assert not any(step.idle for step in (*steps(plain, other), *steps(other, plain)))
    assert 3 == len(steps(plain, spelt)) == len(steps(plain, other))


def test_given_graph_was_not_exported_by_default() -> None:
    """Nothing set about the export means a graph that nothing is known about, not the exporter's own settings."""
    given, made = (
        pair(torch_side(), NumericConfig("onnxruntime", exporter=exporter, constant_folding=folding))
        for exporter, folding in ((None, None), ("dynamo", True))
    )
    assert [("exporter", False), ("constant_folding", False)] == [(s.name, s.idle) for s in steps(given, made)]
    apart = pair(torch_side(), ort_side(keep_stages=False))
    assert all(step.idle for step in steps(pair(torch_side(), ort_side()), apart))


def test_configurations_can_be_told_apart() -> None:
    """Equal switches make equal configurations, which can be keys."""
    assert torch_side(mkldnn=False) == torch_side(mkldnn=False) != torch_side(mkldnn=True)
    assert 2 == len({torch_side(), torch_side(mkldnn=False), torch_side()})


def test_nearest_is_short_and_blind_to_case() -> None:
    """At most three names, the best first, nothing where nothing comes near."""
    assert "use_tf32" == nearest("USE_TF32", [s.name for s in ONNXRUNTIME])[0]
    assert len(nearest("session.disable", [s.name for s in ONNXRUNTIME])) <= 3
    assert [] == nearest("zzz", [s.name for s in ONNXRUNTIME])
    assert numerics.did_you_mean("zzz", ["a", "b"]) == "valid: a, b"


# -- the reference evaluator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": "cuda"}, "device"),
        ({"optimization": "all"}, "optimization"),
        ({"threads": 2}, "threads"),
        ({"switches": {"use_deterministic_compute": True}}, "use_deterministic_compute"),
    ],
)
def test_the_reference_evaluator_has_no_switches(changes: dict[str, Any], named: str) -> None:
    """What would do nothing is refused; settings of the export are about the graph, and stay."""
    check_config(NumericConfig("onnx-reference", optimization="off", switches={"batchnorm_folding": False}))
    with pytest.raises(BisectError, match=f"{named}.*the reference evaluator has no such switch"):
        check_config(NumericConfig("onnx-reference", **changes))


def test_another_runner_is_one_step() -> None:
    """A pair with the evaluator and one with ONNX Runtime differ in a suspect that can be tried both ways."""
    start = ConfigPair("ort", NumericConfig("torch"), NumericConfig("onnxruntime", optimization="off"))
    goal = ConfigPair("ref", NumericConfig("torch"), NumericConfig("onnx-reference", optimization="off"))
    (step,) = steps(start, goal)
    assert ("backend", "onnxruntime", "onnx-reference") == (step.name, step.before, step.after)
    assert "onnx.reference.ReferenceEvaluator" in (step.code() or "")
    assert goal.actual == take(start, [step]).actual
    assert start.actual == take(goal, [step], back=True).actual
    optimised = replace(start.actual, optimization="all")
    assert [step] == list(steps(replace(start, actual=optimised), goal))
    assert "off" == take(replace(start, actual=optimised), [step]).actual.optimization

"""``--matrix``: every pair runs in a process of its own, and what separates failing from passing ones is named."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from commands import ROOT, Outcome, command

from bisect_tool import experiments
from bisect_tool.backends.isolation import InternalError, run_isolated
from bisect_tool.backends.torch_switches import snapshot
from bisect_tool.matrix import PRESETS
from bisect_tool.numerics import code_for
from bisect_tool.reporters import pairs
from bisect_tool.store import read_report
from bisect_tool.switches import ONNXRUNTIME, TORCH

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((ROOT / "bisect_tool" / "report.schema.json").read_text(encoding="utf-8"))
)

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without CUDA")

MODELS = """
import os
import signal

import torch
from torch import nn


class Activated(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.act, self.last = nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)

    def forward(self, x):
        return self.last(self.act(self.first(x)))


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu, self.head = nn.Conv2d(2, 8, (3, 1)), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(32, 3)
        # Fresh statistics make a normalisation an identity, and then nothing shows that it was folded.
        nn.init.normal_(self.norm.running_mean, std=0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x.view(x.shape[0], 2, 4, 2))))
        return self.head(x.reshape(x.shape[0], -1))


class Mortal(Activated):
    def forward(self, x):
        if not torch.backends.mkldnn.enabled:
            os.kill(os.getpid(), signal.SIGSEGV)
        if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Greedy(Activated):
    def forward(self, x):
        if torch.get_num_threads() == 3:
            torch.empty(10**15)
        return super().forward(x)


class Fragile(Activated):
    def forward(self, x):
        if self.first.weight.dtype == torch.float16:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(x)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(8, 16))


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(16, 4), torch.randn(4)

    def forward(self, x):
        return self.layer(x) * self.table


class Unrepeatable(Random):
    def __init__(self):
        super().__init__()
        self.table = torch.frombuffer(bytearray(os.urandom(4)), dtype=torch.uint8).float()


class Unwritable(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x @ x.T).real


def half():
    return Convolved().half()
"""

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run(entry, matrix, *options)``: a small model under a matrix, given as text, or as the name of a preset.

    After each run this process is as it was before: see :func:`state`.
    """
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "model.py").write_text(MODELS)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 16, generator=generator)
    torch.save(x, folder / "x.pt")
    torch.save(x.half(), folder / "half.pt")
    numbers = itertools.count()

    def call(entry: str, matrix: str, *options: object, sample: str = "x.pt") -> Outcome:
        place = folder / str(next(numbers))
        if "[[" in matrix:
            place.mkdir()
            (place / "m.toml").write_text(matrix)
            matrix = str(place / "m.toml")
        given = (folder / "model.py", "--entry", entry, "--input", folder / sample, "--matrix", matrix)
        # This exporter takes a tenth of the other one's time.
        exporter = () if "--exporter" in options else ("--exporter", "torchscript")
        before = state()
        outcome = command(*given, *exporter, *options, "--format", "json", folder=place / "report")
        assert before == state(), "left as it was"
        if outcome.out:
            SCHEMA.validate(outcome.report)
        return outcome

    return call


def state() -> dict[str, Any]:
    """All that a matrix may set: PyTorch's global state, and the environment variables of both sides."""
    variables = [s.name for s in (*TORCH, *ONNXRUNTIME) if s.home == "environment"]
    return {**snapshot(), "variables": {name: os.environ.get(name) for name in variables}}


def configs(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The pairs of a report by their names."""
    return {config["name"]: config for config in outcome.report["configs"]}


def statuses(outcome: Outcome) -> dict[str, str]:
    """What became of the pairs that the matrix names."""
    return {name: config["status"] for name, config in configs(outcome).items() if "-try-" not in name}


# A switch that changes numbers


GELU = """
[defaults.export]
opset = 17
[[pair]]
name = "approximated"
[pair.actual]
"optimization.enable_gelu_approximation" = true
"session.disable_prepacking" = true
[[pair]]
name = "plain"
"""


def test_gelu_approximation_is_named(run: Run) -> None:
    """The diagnosis is that switch and nothing else, its remedy was tried, and the bystander is ruled out."""
    outcome = run("Activated", GELU, "--max-abs", "1e-5")
    assert 1 == outcome.code, outcome.err
    verdict = outcome.report["verdict"]
    assert ("diverges", {"approximated": "diverges", "plain": "agrees"}) == (verdict["status"], statuses(outcome))
    (diagnosis,) = verdict["diagnoses"]
    assert ("BD301", "GELU by tanh") == (diagnosis["code"], diagnosis["title"])
    assert "optimization.enable_gelu_approximation" in diagnosis["remedy"]
    assert diagnosis["remedy_verified"] is True and " time" in diagnosis["cost"]
    (ruled_out,) = verdict["ruled_out"]
    assert "weights not packed" == ruled_out["title"]
    assert ["still diverges", "still agrees"] == [
        next(words for words in ("still diverges", "still agrees") if words in line) for line in ruled_out["evidence"]
    ]
    table = {item["switch"]: item for item in verdict["hypotheses"]}
    assert {"optimization.enable_gelu_approximation": "culprit", "session.disable_prepacking": "ruled out"} == {
        switch: item["conclusion"] for switch, item in table.items()
    }
    culprit = table["optimization.enable_gelu_approximation"]
    assert ("true", None) == (culprit["before"], culprit["after"])
    assert culprit["error_after"] < 1e-6 < culprit["error_before"] and culprit["time_cost"] is not None
    assert culprit["tried"] in configs(outcome)
    # What it rests on are runs of its own, which count for nothing else.
    tried = {name: c for name, c in configs(outcome).items() if "-try-" in name}
    assert 2 == len(tried) and not any(config["gating"] for config in tried.values())
    assert "com.microsoft.FastGelu" in configs(outcome)["approximated"]["effective"]["actual"]["nodes"]
    assert "com.microsoft.FastGelu" not in configs(outcome)["plain"]["effective"]["actual"]["nodes"]


NEWER_GELU = """
[[pair]]
name = "left-alone"
[pair.actual]
"optimization.enable_gelu_approximation" = true
[pair.export]
exporter = "dynamo"
opset = 20
"""


@pytest.mark.slow
def test_switch_without_effect_is_told(run: Run) -> None:
    """The session has the key as it was set, and the GELU of opset 20 does not answer to it."""
    outcome = run("Activated", NEWER_GELU)
    (config,) = configs(outcome).values()
    assert "com.microsoft.FastGelu" not in config["effective"]["actual"]["nodes"]
    assert ["optimization.enable_gelu_approximation"] == config["effective"]["actual"]["without_effect"]
    text = pairs.in_effect_text(read_report(outcome.folder / "report.json").configs[0])
    assert "enable_gelu_approximation on without effect" in text and "set as requested" not in text
    approximated = run("Activated", GELU)
    found = configs(approximated)["approximated"]["effective"]["actual"]
    assert [] == found["without_effect"]


# Emulated precision

TF32 = """
[[pair]]
name = "plain"
actual.optimization = "off"
[[pair]]
name = "tf32-emulated"
gating = true
expected.emulate = "tf32"
actual.optimization = "off"
"""


def centerpoint(root: Path, folder: Path, matrix: str) -> Outcome:
    """The three blocks of the example's backbone under a matrix."""
    config = ("--config", root / "configs" / "centerpoint.toml", "--exporter", "torchscript")
    return command(*config, "--stages", "backbone.blocks.*", "--matrix", matrix, "--format", "json", folder=folder)


@pytest.fixture(scope="module")
def tf32(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """CenterPoint with TF32 on PyTorch's side, asked for by name."""
    folder = tmp_path_factory.mktemp("tf32")
    (folder / "m.toml").write_text(TF32)
    return centerpoint(small_root, folder / "report", str(folder / "m.toml"))


def test_emulated_tf32_gates_where_it_is_named(tf32: Outcome) -> None:
    """The pair diverges, its plain twin does not, and each stage that makes error is off on PyTorch's side."""
    assert 1 == tf32.code, tf32.err
    assert {"plain": "agrees", "tf32-emulated": "diverges"} == statuses(tf32)
    assert configs(tf32)["tf32-emulated"]["effective"]["expected"]["emulate_rounded"]["convolution"] > 20
    origins = tf32.report["verdict"]["origins"]
    assert {f"backbone.blocks.{i}" for i in range(3)} <= {origin["stage"] for origin in origins}
    assert {("expected", "tf32-emulated")} == {(origin["side"], origin["config"]) for origin in origins}


def test_emulated_tf32_grows_from_stage_to_stage(tf32: Outcome) -> None:
    """The error of each block is larger than that of the block before, and amplification says so."""
    rows = {row["stage"]: row["results"]["tf32-emulated"] for row in tf32.report["stages"] if row["role"] == "judged"}
    blocks = [rows[f"backbone.blocks.{i}"] for i in range(3)]
    errors = [block["total"]["rel_l2"] for block in blocks]
    assert 1e-4 < errors[0] < errors[1] < errors[2] < 2e-2
    assert all(block["amplification"] > 1 for block in blocks[1:])
    assert all(1e-4 < block["local"]["rel_l2"] < block["total"]["rel_l2"] for block in blocks[1:])


def test_emulated_tf32_is_shared_out(tf32: Outcome) -> None:
    """The parts of the final error that the stages make are one whole, and the first block makes most of it."""
    counted = [row for row in tf32.report["stages"] if row["role"] != "group"]
    shares = {(row["stage"], row["output"]): row["results"]["tf32-emulated"]["share"] for row in counted}
    assert 1.0 == pytest.approx(sum(shares.values()), abs=1e-6)
    assert max(shares.values()) == shares["backbone.blocks.0", 0] > 0.3


def test_emulated_tf32_says_what_to_set_on_cuda(tf32: Outcome) -> None:
    """The lines for both libraries; none was tried, since nothing ran on CUDA."""
    (diagnosis,) = tf32.report["verdict"]["diagnoses"]
    assert "tf32-emulated" in diagnosis["title"] and "TF32" not in str(diagnosis["cost"])
    lines = diagnosis["remedy"].splitlines()
    assert {code_for("torch", name, False) for name in ("matmul_tf32", "cudnn_conv_tf32")} <= set(lines)
    assert any("CUDAExecutionProvider" in line and '"use_tf32": "0"' in line for line in lines)
    assert diagnosis["remedy_verified"] is None
    assert any("emulated on the CPU" in line for line in diagnosis["evidence"])


@pytest.mark.slow
@without_cuda
def test_emulated_tf32_of_a_preset_only_explains(small_root: Path, tmp_path: Path) -> None:
    """Nobody named it: it diverges and does not gate. Pairs on CUDA are skipped with the reason, and do not either."""
    outcome = centerpoint(small_root, tmp_path / "report", "quick")
    assert 0 == outcome.code, outcome.err
    assert {
        "ort-cpu-off": "agrees",
        "ort-cpu-all": "agrees",
        "ort-cuda-off": "skipped",
        "ort-cuda-all": "skipped",
        "tf32-emulated": "diverges",
    } == statuses(outcome)
    found = configs(outcome)
    assert not found["tf32-emulated"]["gating"] and found["ort-cuda-all"]["gating"]
    for name in ("ort-cuda-off", "ort-cuda-all"):
        assert "CUDA" in found[name]["skipped_reason"]
    verdict = outcome.report["verdict"]
    assert ("agrees", [("BD301", False)]) == (
        verdict["status"],
        [(d["code"], d["gating"]) for d in verdict["diagnoses"]],
    )
    (line,) = [line for line in verdict["summary"] if "BD301" in line]
    assert line.startswith("explored only, and not counted: tf32-emulated; what separates them")
    assert [] == verdict["origins"]


# Precision


HALF = """
[[pair]]
name = "off"
actual.optimization = "off"
[[pair]]
name = "all"
"""


@pytest.mark.slow
def test_half_precision_model_is_named_not_wrong(run: Run) -> None:
    """Its dtype is in both sides of each pair, it is judged as half precision, and agrees."""
    outcome = run("half", HALF, sample="half.pt")
    assert 0 == outcome.code, outcome.report["verdict"]["summary"]
    assert {"off": "agrees", "all": "agrees"} == statuses(outcome)
    for config in configs(outcome).values():
        assert ("float16", "float16") == (config["expected"]["dtype"], config["actual"]["dtype"])
    assert {"float16"} == {row["dtype"] for row in outcome.report["stages"] if row["results"]}
    worst = max(row["results"]["off"]["total"]["rel_l2"] for row in outcome.report["stages"] if row["results"])
    assert 1e-5 < worst < 2e-2, "as far off as half precision is"


PRECISIONS = """
[[pair]]
name = "as-it-is"
[[pair]]
name = "half"
expected.dtype = "float16"
"""


def test_pair_in_half_precision(run: Run) -> None:
    """A pair may run the same model in another dtype: graph, weights and inputs follow."""
    outcome = run("Activated", PRECISIONS)
    assert (0, {"as-it-is": "agrees", "half": "agrees"}) == (outcome.code, statuses(outcome))
    found = configs(outcome)
    assert ["float32", "float16"] == [found[name]["actual"]["dtype"] for name in ("as-it-is", "half")]
    errors = [found[name]["outputs"][0]["total"]["rel_l2"] for name in ("as-it-is", "half")]
    assert errors[0] < 1e-6 < 1e-5 < errors[1], "half precision was really used"
    # The CPU has no kernel for half precision: its own casts tell what the graph is in.
    nodes = [found[name]["effective"]["actual"]["nodes"] for name in ("as-it-is", "half")]
    assert ["Cast" in each for each in nodes] == [False, True]
    read = [found[name]["effective"]["actual"]["dtype"] for name in ("as-it-is", "half")]
    assert ["float32", "float16"] == read


# What cannot be had


ON_CUDA = """
[[pair]]
name = "on-cuda"
expected.device = "cuda"
actual.device = "cuda"
[[pair]]
name = "ort-on-cuda"
actual.device = "cuda"
"""


@without_cuda
def test_cuda_that_was_asked_for_by_name(run: Run) -> None:
    """The result is inconclusive, the report says what is missing on either side, and the other pair has its result."""
    outcome = run("Activated", f"[[pair]]\nname = 'on-the-cpu'\n{ON_CUDA}")
    assert 3 == outcome.code
    assert {"on-the-cpu": "agrees", "on-cuda": "failed", "ort-on-cuda": "failed"} == statuses(outcome)
    reasons = {name: config["skipped_reason"] for name, config in configs(outcome).items()}
    assert reasons["on-the-cpu"] is None
    assert "PyTorch" in reasons["on-cuda"] and "CUDA" in reasons["on-cuda"]
    assert "onnxruntime" in reasons["ort-on-cuda"].lower().replace(" ", "")
    assert "inconclusive" == outcome.report["verdict"]["status"]
    assert reasons["on-cuda"] in " ".join(outcome.report["verdict"]["summary"])


@without_cuda
def test_nothing_but_cuda(run: Run) -> None:
    """Without any result there is no report: the reason goes to stderr."""
    outcome = run("Activated", ON_CUDA)
    assert (3, "") == (outcome.code, outcome.out)
    assert "no pair of matrix" in outcome.err and "on-cuda: PyTorch" in outcome.err


IN_A_PRESET = """
[[pair]]
name = "as-it-is"
[[pair]]
name = "counts"
expected.dtype = "bfloat16"
[[pair]]
name = "explores"
gating = false
expected.dtype = "bfloat16"
expected.threads = 1
"""


@pytest.mark.slow
def test_preset_does_not_skip_what_should_have_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that counts, on a device that is there, and that ONNX Runtime refuses, is no pass by being left out."""
    monkeypatch.setattr("bisect_tool.matrix.preset_text", lambda name: IN_A_PRESET)
    outcome = run("Convolved", "quick")
    assert {"as-it-is": "agrees", "counts": "failed", "explores": "skipped"} == statuses(outcome)
    assert 3 == outcome.code
    assert "ONNX Runtime cannot load the graph" in configs(outcome)["counts"]["skipped_reason"]


# Processes that die

FAULT = """
[[pair]]
name = "before"
actual.optimization = "off"
[[pair]]
name = "segfault"
gating = false
expected.mkldnn = false
"""
MORTAL = f"""{FAULT}
[[pair]]
name = "killed"
gating = false
expected.ONEDNN_MAX_CPU_ISA = "AVX2"
[[pair]]
name = "after"
expected.flush_denormal = true
actual."session.set_denormal_as_zero" = true
"""


def test_crash_leaves_the_others(run: Run) -> None:
    """Pairs whose processes die are called crashed, with the signal; those before and after keep their results."""
    outcome = run("Mortal", MORTAL)
    assert {"before": "agrees", "segfault": "crashed", "killed": "crashed", "after": "agrees"} == statuses(outcome)
    assert 0 == outcome.code, "what died does not count"
    reasons = {name: config["skipped_reason"] for name, config in configs(outcome).items()}
    assert "the process was killed by SIGSEGV" == reasons["segfault"]
    assert reasons["killed"].startswith("the process was killed by SIGKILL")
    for row in outcome.report["stages"]:
        assert {"before", "after"} == row["results"].keys()
    assert {"pair before", "pair segfault", "pair killed", "pair after"} <= outcome.report["timings"].keys()


GREEDY = """
[[pair]]
name = "before"
[[pair]]
name = "greedy"
gating = false
expected.threads = 3
"""


def test_pair_without_memory_is_crashed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not skipped, in a preset either, and not the model's mistake: the reason says that memory ran out."""
    monkeypatch.setattr("bisect_tool.matrix.preset_text", lambda name: GREEDY)
    outcome = run("Greedy", "quick")
    assert (0, {"before": "agrees", "greedy": "crashed"}) == (outcome.code, statuses(outcome))
    assert configs(outcome)["greedy"]["skipped_reason"].startswith("out of memory: forward failed")


def test_crash_of_a_pair_that_counts(run: Run) -> None:
    """It never reads as agreement, though the other pair agrees."""
    outcome = run("Mortal", FAULT.replace("gating = false", "gating = true"))
    assert (3, {"before": "agrees", "segfault": "crashed"}) == (outcome.code, statuses(outcome))
    assert "SIGSEGV" in " ".join(outcome.report["verdict"]["summary"])


CRASHING_EXPORT = """
[[pair]]
name = "before"
[[pair]]
name = "half"
expected.dtype = "float16"
"""


def test_crash_while_exporting(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters run the model too: the pair is crashed, the other one has its result, and no folder is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run("Fragile", CRASHING_EXPORT)
    assert (3, {"before": "agrees", "half": "crashed"}) == (outcome.code, statuses(outcome))
    assert "the process was killed by SIGSEGV" == configs(outcome)["half"]["skipped_reason"]
    assert [] == list(tmp_path.glob("bisect-divergence-*"))


def test_log_of_a_failed_export_outlives_its_process(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names a file that is there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run("Unwritable", '[[pair]]\nname = "a"')
    assert 3 == outcome.code
    (log,) = tmp_path.glob("bisect-divergence-export-*.log")
    assert str(log) in outcome.err and log.read_text(encoding="utf-8")


# One and the same model


@pytest.mark.slow
def test_random_weights_are_the_same_in_every_process(run: Run) -> None:
    """A model without a checkpoint is made in each process anew, and has one set of weights all the same."""
    outcome = run("Random", HALF)
    assert (0, {"off": "agrees", "all": "agrees"}) == (outcome.code, statuses(outcome)), outcome.err


def test_model_that_comes_out_otherwise_each_time(run: Run) -> None:
    """Nothing that is measured on two of them says anything: refused, with what to do."""
    outcome = run("Unrepeatable", HALF)
    assert (2, "") == (outcome.code, outcome.out)
    assert "other weights each time" in outcome.err and "torch.save(model.state_dict()" in outcome.err


# Another kernel, other operations


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_attention_kernel_that_runs_other_operations(run: Run, exporter: str) -> None:
    """Stages that a run does not have are left out of it; a healthy model agrees, with local errors for the others."""
    outcome = run(
        "Attending", '[[pair]]\nname = "math"\nexpected.sdpa_kernel = "math"\nactual.optimization = "off"',
        "--exporter", exporter,
    )  # fmt: skip
    assert (0, {"math": "agrees"}) == (outcome.code, statuses(outcome)), outcome.err
    rows = {row["stage"]: row["results"].get("math") for row in outcome.report["stages"]}
    assert rows["out"]["local"] is not None


# Faults of the tool


BEFORE_AND_FAULTY = """
[[pair]]
name = "before"
[[pair]]
name = "faulty"
actual.optimization = "off"
"""


@pytest.mark.parametrize(
    ("matrix", "code"), [(BEFORE_AND_FAULTY, 3), (BEFORE_AND_FAULTY.replace("before", "faulty-too"), 70)]
)
def test_fault_of_the_tool_in_a_process(run: Run, matrix: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair failed, with the reason; where no pair gave an answer it is an internal error, no inconclusive result."""

    def broken(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is experiments.run_pair and arguments[1].pairs[0].name.startswith("faulty"):
            raise InternalError("in a process of its own:\nTraceback ...\nKeyError: 'x'")
        return run_isolated(function, *arguments, **options)

    monkeypatch.setattr(experiments, "run_isolated", broken)
    outcome = run("Activated", matrix, "--verbose")
    assert code == outcome.code, outcome.err
    assert "Traceback ..." in outcome.err
    if code == 3:
        assert {"before": "agrees", "faulty": "failed"} == statuses(outcome)
        assert "internal error: KeyError: 'x'" == configs(outcome)["faulty"]["skipped_reason"]
    else:
        assert "internal error: this is a fault of the tool" in outcome.err


# Nothing leaks

SETS_MUCH = """
[[pair]]
name = "much"
[pair.expected]
threads = 1
mkldnn_deterministic = true
deterministic_algorithms = "warn"
sdpa_kernel = "math"
mha_fastpath = false
flush_denormal = true
autocast = "bfloat16"
ATEN_CPU_CAPABILITY = "default"
[pair.actual]
threads = 1
"session.set_denormal_as_zero" = true
"""


def test_what_a_pair_sets_stays_in_its_process(run: Run) -> None:
    """It is in effect there, and afterwards nothing of it is here."""
    before = state()
    outcome = run("Activated", SETS_MUCH)
    assert (0, {"much": "agrees"}) == (outcome.code, statuses(outcome))
    effective = configs(outcome)["much"]["effective"]["expected"]
    assert {
        "device": "cpu",
        "threads": 1,
        "mkldnn_deterministic": True,
        "deterministic_algorithms": "warn",
        "sdpa_kernel": "math",
        "mha_fastpath": False,
        "flush_denormal": True,
        "autocast": "bfloat16",
        "ATEN_CPU_CAPABILITY": "default",
    } == effective
    assert before == state()
    assert not before["flush_denormal"] and before["threads"] > 1 and None is before["variables"]["ATEN_CPU_CAPABILITY"]


# Mistakes


@pytest.mark.parametrize(
    ("text", "place", "named", "hint"),
    [
        ("[pair.expected]\nmkldn = false", "line 4: pair 'a': [pair.expected]", "'mkldn'", "did you mean mkldnn"),
        (
            "[pair.actual]\n'session.disable_prepackin' = true",
            "line 4: pair 'a': [pair.actual]",
            "'session.disable_prepackin'",
            "session.disable_prepacking",
        ),
        ("[pair.actual]\ndevice = 'gpu'", "line 4: pair 'a': [pair.actual]", 'device = "gpu"', '"cuda"'),
        (
            "[pair.actual]\ndevice = 'cuda'\nprovider = 'tensortr'",
            "line 5: pair 'a': [pair.actual]",
            'provider = "tensortr"',
            'did you mean "tensorrt"',
        ),
        (
            "[pair.actual]\noptimization = 'extendet'",
            "line 4: pair 'a': [pair.actual]",
            'optimization = "extendet"',
            'did you mean "extended"',
        ),
        (
            "[pair.actual]\ndisabled_passes = ['ConvBnFusion']",
            "line 4: pair 'a': [pair.actual]",
            "'ConvBnFusion'",
            "did you mean ConvBNFusion",
        ),
        (
            "[pair.actual]\ndevice = 'cuda'\ncudnn_conv_algo_search = 'EXHAUSTIV'",
            "line 5: pair 'a': [pair.actual]",
            'cudnn_conv_algo_search = "EXHAUSTIV"',
            'did you mean "EXHAUSTIVE"',
        ),
        ("[pair.export]\nopset = '17'", "line 4: pair 'a': [pair.export]", 'opset = "17"', "7 or more"),
        ("gatting = true", "line 3:", "'gatting'", "did you mean gating"),
        ("\n[[pair]]\nname = 'a'", "line 4:", "a second pair is called 'a'", "names tell pairs apart"),
    ],
)
def test_mistake_in_a_file(run: Run, text: str, place: str, named: str, hint: str) -> None:
    """Exit 2 before anything runs; file, line, pair and key are named, and the nearest valid ones."""
    outcome = run("Activated", f"[[pair]]\nname = 'a'\n{text}")
    assert (2, "") == (outcome.code, outcome.out)
    assert "m.toml" in outcome.err
    for words in (place, named, hint):
        assert words in " ".join(outcome.err.split()), outcome.err


def test_misspelt_preset(run: Run) -> None:
    """The nearest presets are named."""
    outcome = run("Activated", "quik")
    assert 2 == outcome.code
    assert "matrix quik: neither a preset nor a file" in outcome.err and "did you mean quick" in outcome.err


# Graphs


EXPORTS = """
[defaults.actual]
optimization = "off"
[[pair]]
name = "dynamo"
[[pair]]
name = "no-folding"
export.constant_folding = false
[[pair]]
name = "torchscript"
export.exporter = "torchscript"
[[pair]]
name = "dynamic"
export.exporter = "torchscript"
export.dynamic_shapes = true
[[pair]]
name = "old-opset"
gating = false
export.opset = 9
"""


@pytest.fixture(scope="module")
def exported(run: Run) -> Outcome:
    """One model, exported in several ways."""
    return run("Convolved", EXPORTS, "--exporter", "dynamo")


def test_export_is_an_axis(exported: Outcome) -> None:
    """Each pair is about a graph of its own, made as it says."""
    assert 0 == exported.code, exported.err
    assert {"agrees"} == {status for name, status in statuses(exported).items() if name != "old-opset"}
    found = configs(exported)
    nodes = {name: found[name]["effective"]["actual"]["nodes"] for name in statuses(exported) if name != "old-opset"}
    assert "BatchNormalization" in nodes["no-folding"]
    assert "BatchNormalization" not in nodes["dynamo"] and "BatchNormalization" not in nodes["torchscript"]
    assert "Shape" in nodes["dynamic"] and "Shape" not in nodes["torchscript"]
    assert {"dynamic_shapes": True} == found["dynamic"]["effective"]["actual"]["switches"]
    sides = {
        name: (config["actual"]["exporter"], config["actual"]["constant_folding"]) for name, config in found.items()
    }
    assert (("dynamo", True), ("dynamo", False), ("torchscript", True)) == tuple(
        sides[name] for name in ("dynamo", "no-folding", "torchscript")
    )


def test_exports_come_together_in_the_same_rows(exported: Outcome) -> None:
    """A stage has one row, with the results of all graphs that have it."""
    rows = {row["stage"]: row["results"].keys() for row in exported.report["stages"] if row["role"] == "judged"}
    everyone = {"dynamo", "no-folding", "torchscript", "dynamic"}
    assert {"norm": everyone, "relu": everyone, "head": everyone} == {n: rows[n] for n in ("norm", "relu", "head")}
    assert {"no-folding"} == rows["conv"], "elsewhere it is one with its normalisation"
    # The alignment is that of the plain export, whatever other graphs show.
    alignment = exported.report["alignment"]
    assert (4, 3, ["conv"]) == (alignment["stages"], alignment["aligned"], [u["stage"] for u in alignment["unaligned"]])


def test_opset_that_the_exporter_does_not_write(exported: Outcome) -> None:
    """The exporter writes another one and says nothing; such a pair is none of what was asked for."""
    pair = configs(exported)["old-opset"]
    assert "failed" == pair["status"]
    assert "opset 9: the dynamo exporter wrote opset 18 instead" == pair["skipped_reason"]


KEPT = """
[defaults.actual]
optimization = "off"
[[pair]]
name = "old"
export.opset = 13
[[pair]]
name = "same"
export.opset = 13
actual.threads = 1
[[pair]]
name = "half"
expected.dtype = "float16"
"""


@pytest.mark.slow
def test_graphs_of_all_pairs_are_kept(run: Run, tmp_path: Path) -> None:
    """Each graph has a file, named after the first pair that is about it, and the report says where they are."""
    outcome = run("Activated", KEPT, "--keep-onnx", tmp_path / "m.onnx")
    assert 0 == outcome.code, outcome.err
    assert {"m-old.onnx", "m-half.onnx"} == {path.name for path in tmp_path.iterdir()}
    opsets = [model.opset_import[0].version for model in map(onnx.load, sorted(tmp_path.iterdir()))]
    assert 13 == opsets[1] != opsets[0]
    (note,) = [note for note in outcome.report["notes"] if "--keep-onnx" in note]
    assert f"did not write {tmp_path / 'm.onnx'}" in note and "m-old.onnx" in note and "m-half.onnx" in note


@pytest.mark.slow
def test_plain_export_is_kept_under_its_name(run: Run, tmp_path: Path) -> None:
    """What the command line exports has the name that was asked for; what only a pair exports stands beside it."""
    outcome = run("Activated", PRECISIONS, "--keep-onnx", tmp_path / "m.onnx")
    assert 0 == outcome.code, outcome.err
    assert {"m.onnx", "m-half.onnx"} == {path.name for path in tmp_path.iterdir()}


def test_kept_graphs_overwrite_nothing(run: Run, tmp_path: Path) -> None:
    """A file under a pair's name is found before anything runs."""
    (tmp_path / "m-half.onnx").write_text("mine")
    outcome = run("Activated", KEPT, "--keep-onnx", tmp_path / "m.onnx")
    assert (2, "") == (outcome.code, outcome.out)
    assert "m-half.onnx: the file exists and is not overwritten" in outcome.err
    assert ["mine"] == [path.read_text() for path in tmp_path.iterdir()]


FIXED = """
[defaults.actual]
optimization = "off"
[[pair]]
name = "plain"
[[pair]]
name = "half"
expected.dtype = "float16"
[[pair]]
name = "dynamic"
export.dynamic_shapes = true
[[pair]]
name = "last"
expected.channels_last = true
"""


@pytest.mark.slow
def test_request_that_the_export_does_not_fulfil(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with fixed shapes, or in another dtype, is none of what was asked for; the layout is seen in the run."""

    def stubborn(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is experiments.export_graph:
            load, _, path, settings, logs = arguments
            arguments = load, "float32", path, replace(settings, dynamic_shapes=False), logs
        return run_isolated(function, *arguments, **options)

    monkeypatch.setattr(experiments, "run_isolated", stubborn)
    outcome = run("Convolved", FIXED)
    assert 3 == outcome.code
    assert {"plain": "agrees", "half": "failed", "dynamic": "failed", "last": "agrees"} == statuses(outcome)
    found = configs(outcome)
    assert "dtype float16: the torchscript exporter wrote a graph in float32 instead" == found["half"]["skipped_reason"]
    assert "dynamic_shapes: the torchscript exporter fixed every size" in found["dynamic"]["skipped_reason"]
    assert found["last"]["effective"]["expected"]["channels_last"] is True


GIVEN = """
[[pair]]
name = "given"
[[pair]]
name = "given-off"
actual.optimization = "off"
[[pair]]
name = "own"
export.exporter = "torchscript"
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_given_graph_is_used_by_pairs_without_export_settings(run: Run, tmp_path: Path) -> None:
    """A stale file diverges wherever it is used, an export of the model does not, and that is what is named."""
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    stale = tmp_path / "stale.onnx"
    torch.onnx.export(scope["Activated"](seed=5).eval(), (torch.zeros(8, 16),), str(stale), dynamo=False)
    outcome = run("Activated", GIVEN, "--onnx", stale)
    assert 1 == outcome.code
    assert {"given": "diverges", "given-off": "diverges", "own": "agrees"} == statuses(outcome)
    made = {name: config["actual"]["constant_folding"] for name, config in configs(outcome).items()}
    assert {"given": None, "given-off": None, "own": True} == {name: made[name] for name in statuses(outcome)}
    diagnosis, weights = outcome.report["verdict"]["diagnoses"]
    assert ("the given graph", True) == (diagnosis["title"], diagnosis["remedy_verified"])
    assert "2 pairs: given, given-off" == diagnosis["evidence"][0]
    assert "BD201" == weights["code"] and "first.weight" in weights["evidence"][0]
    assert "the given file differs from what the model exports to" in " ".join(outcome.report["verdict"]["summary"])
    effective = {name: config["effective"].get("graph") for name, config in configs(outcome).items()}
    assert {"given": None, "given-off": None, "own": "exported afresh"} == {
        name: effective[name] for name in statuses(outcome)
    }


OTHER_GRAPHS = """
[defaults.actual]
optimization = "off"
[[pair]]
name = "unfolded"
gating = false
export.keep_stages = true
[[pair]]
name = "given"
"""


def test_rows_are_those_of_the_judged_graph(run: Run, scaled: Path) -> None:
    """Another export shows more stages; alignment, counts and nodes are those of the graph that is judged all the same."""
    outcome = run("Convolved", OTHER_GRAPHS, "--onnx", scaled)
    report = outcome.report
    assert {"unfolded": "agrees", "given": "diverges"} == statuses(outcome)
    assert ["conv"] == [item["stage"] for item in report["alignment"]["unaligned"]], "it is folded into the norm"
    rows = {row["stage"]: row for row in report["stages"]}
    assert None is rows["conv"]["onnx_value"] and {"unfolded"} == rows["conv"]["results"].keys() & {"unfolded", "given"}
    nodes = {node.name for node in onnx.load(str(scaled)).graph.node}
    assert {node for row in rows.values() for node in row["onnx_nodes"]} <= nodes
    (origin,) = report["verdict"]["origins"]
    assert ("head", "given") == (origin["stage"], origin["config"]) and set(origin["onnx_nodes"]) <= nodes


def test_origins_are_named_as_in_the_graph_of_their_pair(
    run: Run, scaled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair about another graph finds its origins there."""
    named = onnx.load(str(scaled))
    for node in named.graph.node:
        node.name = f"other{node.name}"

    def other(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is not experiments.export_graph:
            return run_isolated(function, *arguments, **options)
        onnx.save(named, str(arguments[2]))
        return None

    monkeypatch.setattr(experiments, "run_isolated", other)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    healthy = scaled.with_name("healthy.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(scope["Convolved"]().eval(), (torch.zeros(8, 16),), str(healthy), dynamo=False)
    matrix = OTHER_GRAPHS.replace("gating = false", "").replace("keep_stages = true", "opset = 18")
    monkeypatch.setattr(experiments, "_check_graph", lambda path, wanted: None)
    outcome = run("Convolved", matrix, "--onnx", healthy)
    assert {"unfolded": "diverges", "given": "agrees"} == statuses(outcome)
    (origin,) = outcome.report["verdict"]["origins"]
    assert "unfolded" == origin["config"] and all(node.startswith("other") for node in origin["onnx_nodes"])
    (row,) = (row for row in outcome.report["stages"] if row["stage"] == "head")
    assert not any(node.startswith("other") for node in row["onnx_nodes"])


# A broken graph


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of ``Convolved`` with a weight that is 2 % too large."""
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    path = tmp_path_factory.mktemp("scaled") / "scaled.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(scope["Convolved"]().eval(), (torch.zeros(8, 16),), str(path), dynamo=False)
    model = onnx.load(str(path))
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [3, 32])
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), weight.name))
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("preset", [p if p == "deploy" else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS])
def test_no_switch_cures_a_broken_graph(run: Run, scaled: Path, preset: str) -> None:
    """Half precision allows for the fault, and lowers no error: all that is named is the file."""
    outcome = run("Convolved", preset, "--onnx", scaled)
    assert 1 == outcome.code, outcome.err
    verdict = outcome.report["verdict"]
    named = [d["title"] for d in verdict["diagnoses"] if "emulated" not in d["title"] and d["title"] != "autocast"]
    assert "the given graph" == named[0]
    # Where a pair without optimisation tells where the error is made, its cause is named too.
    assert {"a weight differs from the model's"} >= {*named[1:]}
    assert "the given file differs from what the model exports to, not how it is run" in verdict["summary"]
    switches = [d for d in verdict["diagnoses"] if d["code"] == "BD301"]
    assert not [d for d in switches if d["title"] != "the given graph" and d["remedy_verified"]]
    assert not any(
        item["conclusion"] == "culprit" and item["switch"] in ("autocast", "dtype") for item in verdict["hypotheses"]
    )


BROKEN_EXPORT = """
[[pair]]
name = "plain"
actual.optimization = "off"
[[pair]]
name = "half"
gating = false
expected.autocast = "bfloat16"
"""


def test_broken_model_is_no_switch(run: Run, scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an export of the model is as wrong as the given file, strict is tried, and no switch is blamed."""

    def broken(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is not experiments.export_graph:
            return run_isolated(function, *arguments, **options)
        shutil.copyfile(scaled, arguments[2])
        return None

    monkeypatch.setattr(experiments, "run_isolated", broken)
    outcome = run("Convolved", BROKEN_EXPORT)
    assert (1, {"plain": "diverges", "half": "agrees"}) == (outcome.code, statuses(outcome))
    verdict = outcome.report["verdict"]
    assert ["BD202"] == [diagnosis["code"] for diagnosis in verdict["diagnoses"]], "no switch is"
    assert ["all switches: the graph or the model differs, not how it is run"] == [
        r["title"] for r in verdict["ruled_out"]
    ]
    assert "no switch explains it: the graph or the model differs, not how it is run" in verdict["summary"]
    assert "expected" not in {origin["side"] for origin in verdict["origins"]}


APART = """
[[pair]]
name = "given"
actual.optimization = "off"
[[pair]]
name = "apart"
actual.optimization = "off"
export.keep_stages = true
"""


@pytest.mark.slow
def test_file_before_settings_of_the_export(run: Run, scaled: Path) -> None:
    """A pair with settings of the export is about a fresh export: what separates it from the file is that first."""
    outcome = run("Convolved", APART, "--onnx", scaled)
    assert (1, {"given": "diverges", "apart": "agrees"}) == (outcome.code, statuses(outcome))
    (diagnosis, cause) = outcome.report["verdict"]["diagnoses"]
    assert ("the given graph", True) == (diagnosis["title"], diagnosis["remedy_verified"])
    assert "BD202" == cause["code"]
    (tried,) = [config for name, config in configs(outcome).items() if "-try-" in name]
    assert ({}, "exported afresh") == (tried["actual"]["switches"], tried["effective"]["graph"])


AND_EMULATED = """
[[pair]]
name = "given"
actual.optimization = "off"
[[pair]]
name = "tf32-emulated"
actual.optimization = "off"
expected.emulate = "tf32"
"""


@pytest.mark.slow
def test_file_and_switch_are_both_named(run: Run, scaled: Path) -> None:
    """Most of the error is the file's and the rest that of a switch: neither alone mends the pair."""
    outcome = run("Convolved", AND_EMULATED, "--onnx", scaled)
    assert {"given": "diverges", "tf32-emulated": "diverges"} == statuses(outcome)
    verdict = outcome.report["verdict"]
    culprits = {(h["failing"], h["switch"]) for h in verdict["hypotheses"] if h["conclusion"] == "culprit"}
    assert {("given", "exporter"), ("tf32-emulated", "emulate"), ("tf32-emulated", "exporter")} == culprits
    (line,) = [line for line in verdict["summary"] if "explored only" in line]
    assert "counted: tf32-emulated; what separates them (BD301): tf32-emulated operands" in line
    assert line.endswith("and the given graph")

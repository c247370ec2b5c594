"""``matrix``: the presets are valid, files are read as documented, and mistakes are named with their place."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bisect_tool import matrix
from bisect_tool.errors import EXIT_USAGE, BisectError
from bisect_tool.matrix import PRESETS, Matrix, preset_text, read_matrix
from bisect_tool.numerics import check_pair, environment
from bisect_tool.records import ConfigPair, NumericConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
Read = Callable[[str], Matrix]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a text as a matrix file."""

    def from_text(text: str) -> Matrix:
        path = tmp_path / "m.toml"
        path.write_text(text, encoding="utf-8")
        return read_matrix(str(path))

    return from_text


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid(name: str) -> None:
    """Every pair of a preset passes the checks, and the matrix says that nobody named them."""
    found = read_matrix(name)
    assert (name, True) == (found.source, found.preset)
    for pair in found.pairs:
        check_pair(pair)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_starts_where_stages_can_be_aligned(name: str) -> None:
    """The first pair runs on the CPU, so that there is a result on every machine."""
    first = read_matrix(name).pairs[0]
    assert ("cpu", "cpu") == (first.expected.device, first.actual.device)


def test_quick_and_full_begin_without_optimisation() -> None:
    """Values are aligned on the unoptimised graph."""
    for name in ("quick", "full"):
        assert "off" == read_matrix(name).pairs[0].actual.optimization


def test_full_has_each_axis() -> None:
    """Levels, switches, precision, exports and CUDA are all in it; explorations do not gate."""
    pairs = {pair.name: pair for pair in read_matrix("full").pairs}
    assert {"off", "basic", "extended", "all"} <= {pair.actual.optimization for pair in pairs.values()}
    assert {"tf32", "bf16", "fp16"} <= {pair.expected.switches.get("emulate") for pair in pairs.values()}
    assert {"dynamo", "torchscript"} <= {pair.actual.exporter for pair in pairs.values()}
    assert {"EXHAUSTIVE", "HEURISTIC", "DEFAULT"} <= {
        pair.actual.switches.get("cudnn_conv_algo_search") for pair in pairs.values()
    }
    assert {"float16", "bfloat16"} <= {pair.expected.dtype for pair in pairs.values()}
    assert all(not pair.gating for name, pair in pairs.items() if "emulated" in name)
    gating = {name for name, pair in pairs.items() if pair.gating}
    assert {"ort-cpu-off", "ort-cpu-basic", "ort-cpu-extended", "ort-cpu-all", "ort-cuda-off", "ort-cuda-all"} == gating


def test_deploy_and_strict_are_two_ends() -> None:
    """One sets nothing but the level, the other everything that is known to align the sides."""
    deploy, deploy_cuda = read_matrix("deploy").pairs
    assert ConfigPair("deploy", NumericConfig("torch"), NumericConfig("onnxruntime", optimization="all")) == deploy
    assert {} == deploy_cuda.expected.switches == deploy_cuda.actual.switches
    strict = read_matrix("strict").pairs[1]
    assert ("off", False, "DEFAULT") == (
        strict.actual.optimization,
        strict.actual.switches["use_tf32"],
        strict.actual.switches["cudnn_conv_algo_search"],
    )
    assert not any(strict.expected.switches[f"{name}_tf32"] for name in ("matmul", "cudnn_conv", "cudnn_rnn"))
    assert {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} == environment(strict)


def test_presets_are_the_files_in_configs() -> None:
    """There is one source: configs/matrix, which the wheel takes along."""
    assert set(PRESETS) == {path.stem for path in (ROOT / "configs" / "matrix").glob("*.toml")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"configs/matrix": "bisect_tool/presets"} == shipped
    for name in PRESETS:
        assert (ROOT / "configs" / "matrix" / f"{name}.toml").read_text(encoding="utf-8") == preset_text(name)


def test_installed_presets_come_from_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a wheel they lie beside the code."""
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "quick.toml").write_text("# shipped")
    monkeypatch.setattr(matrix.importlib.resources, "files", lambda package: tmp_path)
    assert "# shipped" == preset_text("quick")


# Files

FILE = """
[defaults]
gating = false
[defaults.expected]
threads = 1
dtype = "float32"

[[pair]]
name = "no-packing"
gating = true
[pair.expected]
device = "cpu"
mkldnn = false
[pair.actual]
optimization = "all"
disabled_passes = ["ConvBNFusion", "GeluFusionL2"]
session.disable_prepacking = true
"session.disable_quant_qdq" = true
[pair.export]
opset = 18
keep_stages = true

[[pair]]
name = "other"
expected.threads = 2
"""


def test_file_is_read_as_documented(read: Read) -> None:
    """Fields, switches and export come to their places; a pair's keys win over the defaults."""
    found = read(FILE)
    assert not found.preset
    assert (
        ConfigPair(
            "no-packing",
            NumericConfig("torch", dtype="float32", threads=1, switches={"mkldnn": False}),
            NumericConfig(
                "onnxruntime",
                dtype="float32",
                optimization="all",
                opset=18,
                switches={
                    "disabled_passes": "ConvBNFusion;GeluFusionL2",
                    "session.disable_prepacking": True,
                    "session.disable_quant_qdq": True,
                    "keep_stages": True,
                },
            ),
            True,
        )
        == found.pairs[0]
    )
    assert (2, False) == (found.pairs[1].expected.threads, found.pairs[1].gating)


@pytest.mark.parametrize(
    ("side", "line"),
    [
        ("expected", 'float32_matmul_precision = "high"'),
        ("expected", 'device = "cuda"\npreferred_linalg_library = "magma"'),
        ("actual", '"mlas.disable_kleidiai" = true'),
        ("actual", '"mlas.qnbit.force_fp32" = true'),
        ("actual", '"mlas.use_lut_gemm" = true'),
        ("actual", '"optimization.constant_folding_max_output_size_in_bytes" = 10'),
        ("actual", '"session.qdq_matmulnbits_accuracy_level" = 4'),
        ("actual", 'device = "cuda"\nuse_ep_level_unified_stream = true'),
        ("actual", 'device = "cuda"\n"ep.cuda.enable_gemm_auto_tune" = true'),
    ],
)
def test_switch_is_known(read: Read, side: str, line: str) -> None:
    """These change numbers, and a pair may set them."""
    (pair,) = read(f'[[pair]]\nname = "a"\n[pair.{side}]\n{line}\n').pairs
    assert 1 == len((pair.expected if side == "expected" else pair.actual).switches)


def test_block_in_the_docs_is_valid(read: Read) -> None:
    """docs/matrix.md and the module's own description show files that work."""
    page = (ROOT / "docs" / "matrix.md").read_text(encoding="utf-8")
    block, runners = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert ("no-packing", 18) == (read(block).pairs[0].name, read(block).pairs[0].actual.opset)
    assert ["onnxruntime", "onnx-reference"] == [pair.actual.backend for pair in read(runners).pairs]
    described = str(matrix.__doc__)
    start, end = described.index("    [defaults]"), described.index("All names and values")
    assert "no-prepacking" == read(described[start:end]).pairs[0].name


def test_emulated_pair_gates_only_when_asked_to(read: Read) -> None:
    """Whoever names an emulated pair as gating gets that, and nobody else."""
    text = '[[pair]]\nname = "tf32-emulated"\nexpected.emulate = "tf32"\n'
    assert not read(text).pairs[0].gating
    assert read(text + "gating = true\n").pairs[0].gating
    assert read('[[pair]]\nname = "plain"\n').pairs[0].gating


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "holds no [[pair]]", "configs/matrix has examples"),
        ("pair = 3", "holds no [[pair]]", ""),
        ("[[pair]\n", "not valid TOML", ""),
        ('[[pairs]]\nname = "a"', "unknown key 'pairs'", "did you mean pair"),
        ('[default]\n[[pair]]\nname = "a"', "unknown key 'default'", "did you mean defaults"),
        ('[defaults]\nname = "x"\n[[pair]]\nname = "a"', "unknown key 'name' in [defaults]", "gating"),
        ("[[pair]]\ngating = true", "line 1: a pair has no name", "ort-cpu-off"),
        ('[[pair]]\nname = "a b"', "line 2: name = 'a b' is no name of a pair", ""),
        ('[[pair]]\nname = "../a"', "is no name of a pair", ""),
        ('[[pair]]\nname = "a"\n\n[[pair]]\nname = "a"', "line 4: a second pair is called 'a'", ""),
        ('[[pair]]\nname = "a"\ngatin = true', "line 3: unknown key 'gatin' in [[pair]]", "did you mean gating"),
        ('[[pair]]\nname = "a"\ngating = 1', "pair 'a': gating = 1 is not true or false", ""),
        ('[[pair]]\nname = "a"\nexpected = 1', "[pair.expected] is not a table", ""),
        (
            '[[pair]]\nname = "a"\n[pair.expected]\nmkldn = false',
            "line 4: pair 'a': [pair.expected]: torch has no switch 'mkldn'",
            "did you mean mkldnn",
        ),
        (
            '[[pair]]\nname = "a"\n\n[[pair]]\nname = "b"\n[pair.actual]\n"session.disable_prepackin" = true',
            "line 7: pair 'b': [pair.actual]: onnxruntime has no switch 'session.disable_prepackin'",
            "did you mean session.disable_prepacking",
        ),
        (
            '[[pair]]\nname = "a"\n[pair.actual]\ndevice = "cuda"\nuse_tf32 = "no"',
            "line 5: pair 'a': [pair.actual]: use_tf32 = \"no\"",
            "valid: true, false",
        ),
        (
            '[[pair]]\nname = "a"\n[pair.actual]\ndisabled_passes = ["ConvBnFusion"]',
            "line 4: pair 'a': [pair.actual]: onnxruntime has no optimiser pass 'ConvBnFusion'",
            "did you mean ConvBNFusion",
        ),
        ('[[pair]]\nname = "a"\n[pair.actual]\ndisabled_passes = ["A;B"]', "'A;B' is no name of a pass", "one name"),
        ('[[pair]]\nname = "a"\n[pair.actual]\nthreads = [1]', "threads takes no such list", ""),
        ('[[pair]]\nname = "a"\n[pair.actual]\nopset = 18', "opset says how the graph is made", "[pair.export]"),
        ('[[pair]]\nname = "a"\n[pair.export]\nuse_tf32 = true', "use_tf32 is a switch of onnxruntime", ""),
        ('[[pair]]\nname = "a"\n[pair.expected]\nmatmul_tf32 = true', "matmul_tf32 acts on cuda only", ""),
        ('[[pair]]\nname = "a"\n[pair.expected]\nemulate = "tf32"', "its name does not say so", "tf32-emulated"),
        ('[defaults.expected]\nmkldn = true\n[[pair]]\nname = "a"', "torch has no switch 'mkldn'", "mkldnn"),
        (
            '[[pair]]\nname = "a"\n[pair.expected]\ndtype = "float32"\n[pair.actual]\ndtype = "float16"',
            "line 6: pair 'a': [pair.actual]: dtype = \"float16\", and [pair.expected] says float32",
            "set dtype in [pair.expected] alone",
        ),
        (
            '[[pair]]\nname = "a"\nactual.dtype = "float16"',
            "line 3: pair 'a': [pair.actual]: dtype = \"float16\", and [pair.expected] says nothing",
            "set dtype in [pair.expected] alone",
        ),
        (
            '[[pair]]\nname = "a"\n[pair.actual]\noptimization = "all"\noptimization.enable_gelu_approximation = true',
            "not valid TOML",
            'put the name in quotes: "optimization.enable_gelu_approximation" = ...',
        ),
        ('[[pair]]\nname = "a"\n[pair.actual]\nprovider = "cuda"', "line 4: pair 'a'", 'device = "cuda"'),
        (
            '[[pair]]\nname = "a"\n[pair.actual]\nenable_cuda_graph = true',
            "line 4: pair 'a': [pair.actual]: enable_cuda_graph cannot be set by a pair",
            "stay at one address",
        ),
        (
            '[[pair]]\nname = "a"\n[pair.actual]\n"session.disable_cpu_ep_fallback" = true',
            "session.disable_cpu_ep_fallback cannot be set by a pair",
            "checked for nodes on the CPU",
        ),
        (
            '[[pair]]\nname = "a"\n[pair.expected]\nfloat32_matmul_precision = "high"\n'
            'mkldnn_matmul_fp32_precision = "ieee"',
            "float32_matmul_precision sets what mkldnn_matmul_fp32_precision sets",
            "give one of them",
        ),
        ('[defaults]\nexpected = 3\n[[pair]]\nname = "a"', "[pair.expected] is not a table", ""),
    ],
)
def test_mistake_is_named_with_its_place(read: Read, text: str, message: str, hint: str) -> None:
    """File, line, pair, table and key; the exit code is that of bad usage."""
    with pytest.raises(BisectError) as caught:
        read(text)
    assert message in caught.value.message
    assert re.match(r"matrix .*m\.toml[,:]", caught.value.message)
    assert hint in str(caught.value.hint)
    assert EXIT_USAGE == caught.value.exit_code


def test_unknown_preset(tmp_path: Path) -> None:
    """A name that is neither a preset nor a file comes with the nearest preset."""
    with pytest.raises(BisectError, match="matrix ful: neither a preset nor a file") as caught:
        read_matrix("ful")
    assert "did you mean full" in str(caught.value.hint)
    with pytest.raises(BisectError, match="cannot be read"):
        read_matrix(str(tmp_path))


def test_file_with_the_name_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is the preset; a path is the file."""
    (tmp_path / "quick").write_text('[[pair]]\nname = "mine"\n')
    monkeypatch.chdir(tmp_path)
    assert read_matrix("quick").preset
    assert "mine" == read_matrix("./quick").pairs[0].name


def test_backend_names_the_runner(tmp_path: Path) -> None:
    """``onnx-reference`` has one level; a misspelt runner is refused with the nearest one."""
    file = tmp_path / "m.toml"
    file.write_text('[[pair]]\nname = "ref"\n[pair.actual]\nbackend = "onnx-reference"\n', encoding="utf-8")
    (pair,) = read_matrix(str(file)).pairs
    assert ("onnx-reference", "off") == (pair.actual.backend, pair.actual.optimization)
    file.write_text('[[pair]]\nname = "ref"\n[pair.actual]\nbackend = "onnx-referense"\n', encoding="utf-8")
    with pytest.raises(BisectError, match="line 4.*onnxruntime knows no such value") as caught:
        read_matrix(str(file))
    assert '"onnx-reference"' in (caught.value.hint or "")
    file.write_text('[[pair]]\nname = "ref"\n[pair.expected]\nbackend = "onnx-reference"\n', encoding="utf-8")
    with pytest.raises(BisectError, match="backend is a switch of onnxruntime, not of torch"):
        read_matrix(str(file))

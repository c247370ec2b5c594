"""Which files are samples, and how they are fitted to what forward takes."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bisect_tool.backends.models import load_model
from bisect_tool.backends.samples import Sample, bind_sample, load_samples, sample_of
from bisect_tool.errors import BisectError

ONE = torch.ones(1, 2)


class Pillars(torch.nn.Module):
    def forward(self, voxels: Any, num_points: Any, coords: Any = None) -> Any:
        return voxels


class Batch(torch.nn.Module):
    def forward(self, batch: Any, training: bool = False) -> Any:
        return batch


class Typed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def saved(folder: Path, content: Any, name: str = "sample.pt") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def sample(*args: Any, **kwargs: Any) -> Sample:
    return Sample(args, kwargs, "sample.pt")


def error_of(call: Callable[..., Any], *args: Any) -> BisectError:
    with pytest.raises(BisectError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("content", "positions", "names"),
    [
        (ONE, 1, []),
        ((ONE, 3), 2, []),
        ([ONE, ONE], 2, []),
        ({"x": ONE, "scale": 2.0}, 0, ["x", "scale"]),
        ({"args": (ONE,), "kwargs": {"mask": ONE}}, 1, ["mask"]),
        ({"args": ONE}, 1, []),
        ({"kwargs": {"x": ONE}}, 0, ["x"]),
    ],
)
def test_forms_of_torch_samples(tmp_path: Path, content: Any, positions: int, names: list[str]) -> None:
    """Tensors, tuples, dictionaries and explicit args and kwargs become a call of forward."""
    (loaded,) = load_samples([saved(tmp_path, content)])
    assert (len(loaded.args), list(loaded.kwargs)) == (positions, names)
    first = loaded.args[0] if positions else loaded.kwargs["x"]
    assert torch.equal(first, ONE)
    assert loaded.source.endswith("sample.pt")


def test_arrays_in_torch_samples_become_tensors(tmp_path: Path) -> None:
    """Numpy arrays in a .pt file are tensors afterwards, bare, by position, by name and nested."""
    array = np.arange(3.0)
    for content in (array, (array,), {"args": (array,)}, {"args": array}):
        (loaded,) = load_samples([saved(tmp_path, content)])
        assert torch.equal(loaded.args[0], torch.arange(3.0, dtype=torch.float64))
    (loaded,) = load_samples([saved(tmp_path, {"x": array, "batch": {"points": [array]}})])
    assert torch.equal(loaded.kwargs["x"], torch.from_numpy(array))
    assert torch.equal(loaded.kwargs["batch"]["points"][0], torch.from_numpy(array))
    assert "dtype" in error_of(load_samples, [saved(tmp_path, {"x": ONE, "y": np.array(["a"])})]).message


def test_samples_need_no_gradients(tmp_path: Path) -> None:
    """Tensors that were saved with requires_grad are plain ones, wherever they stand; so are those made in memory."""
    weight, pair = torch.nn.Parameter(ONE.clone()), collections.namedtuple("Pair", "a b")
    (loaded,) = load_samples([saved(tmp_path, {"args": (weight, [weight]), "kwargs": {"m": {"x": weight}}})])
    made = sample_of((weight * 2, pair(weight, weight.detach().numpy())), "made")
    tensors = [loaded.args[0], loaded.args[1][0], loaded.kwargs["m"]["x"], made.args[0], *made.args[1]]
    assert [tensor.requires_grad for tensor in tensors] == [False] * 6
    assert all(tensor.is_leaf and tensor.shape == ONE.shape for tensor in tensors)
    assert torch.equal(made.args[0], ONE * 2)
    assert type(made.args[1]) is pair


def test_samples_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    """A list inside itself is an error, not an endless walk."""
    items: list[Any] = [ONE]
    items.append(items)
    assert "contains itself" in error_of(load_samples, [saved(tmp_path, items)]).message


def test_no_sample_is_an_error() -> None:
    """An empty list of paths is told at once, not by a run that judges nothing."""
    error = error_of(load_samples, [])
    assert "no sample" in error.message
    assert "--input" in str(error.hint)


def test_numpy_archives_name_or_number_their_inputs(tmp_path: Path) -> None:
    """arr_0 and arg_0 are positions in the order of their numbers, other names keywords."""
    np.savez(tmp_path / "a.npz", *[np.full(1, i) for i in range(11)])
    np.savez(tmp_path / "b.npz", arg_1=np.full(1, 1), arg_0=np.full(1, 0), mask=np.full(1, 2))
    a, b = load_samples([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")])
    assert [int(tensor) for tensor in a.args] == list(range(11))
    assert [int(tensor) for tensor in b.args] == [0, 1]
    assert int(b.kwargs["mask"]) == 2


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6, dtype=">f4")[::-1],
        np.array(3.0),
        np.zeros((0, 4), np.float16),
        np.array([True, False]),
    ],
    ids=["transposed", "big-endian", "scalar", "empty", "bool"],
)
def test_numpy_arrays_keep_their_numbers_and_become_contiguous(tmp_path: Path, array: Any) -> None:
    """Layout and byte order of the file do not matter; shape and numbers are kept."""
    np.save(tmp_path / "x.npy", array)
    (loaded,) = load_samples([str(tmp_path / "x.npy")])
    (tensor,) = loaded.args
    assert tensor.is_contiguous()
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_safetensors_are_keywords(tmp_path: Path) -> None:
    """The names in a safetensors file are argument names; bfloat16 is kept."""
    save_file({"x": ONE.bfloat16()}, tmp_path / "x.safetensors")
    (loaded,) = load_samples([str(tmp_path / "x.safetensors")])
    assert loaded.args == ()
    assert loaded.kwargs["x"].dtype == torch.bfloat16


def test_folders_stand_for_their_samples_sorted_by_name(tmp_path: Path) -> None:
    """Files of other kinds, hidden files and folders in it are passed over."""
    for name in ("b.pt", "a.pt", ".hidden.pt"):
        saved(tmp_path, ONE, name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "c.pt").mkdir()
    assert [Path(s.source).name for s in load_samples([str(tmp_path)])] == ["a.pt", "b.pt"]
    assert "holds no sample" in error_of(load_samples, [str(tmp_path / "c.pt")]).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "is of type str"),
        ((), "holds no tensor"),
        ({"n": 3}, "holds no tensor"),
        ({3: ONE}, "the key 3"),
        ({"args": 3, "kwargs": {}}, "'args' is neither"),
        ({"args": (ONE,), "kwargs": {1: ONE}}, "'kwargs' is no dictionary of names"),
    ],
)
def test_torch_files_that_are_no_samples(tmp_path: Path, content: Any, message: str) -> None:
    """What was found instead of inputs is named."""
    assert message in error_of(load_samples, [saved(tmp_path, content)]).message


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": ONE.numpy(), "arr_2": ONE.numpy()}, "position 1 is not there"),
        ({"arr_0": ONE.numpy(), "arg_0": ONE.numpy()}, "two inputs for position 0"),
        ({"x": np.array(["a"])}, "x in sample"),
        ({"x": np.array([None])}, "holds Python objects"),
    ],
)
def test_numpy_archives_that_are_no_samples(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Gaps, doubles, strings and objects are named."""
    np.savez(tmp_path / "x.npz", **arrays)
    assert message in error_of(load_samples, [str(tmp_path / "x.npz")]).message


def test_samples_are_never_unpickled(tmp_path: Path) -> None:
    """A sample with Python objects is refused, and --allow-pickle, which is for checkpoints, is not offered."""
    error = error_of(load_samples, [saved(tmp_path, {"x": torch.nn.Linear(1, 1)})])
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "--allow-pickle" not in str(error.hint)


def test_paths_that_are_no_samples(tmp_path: Path) -> None:
    """Missing, empty and foreign files are told apart."""
    assert "no such file" in error_of(load_samples, [str(tmp_path / "none.pt")]).message
    assert "cannot be read" in error_of(load_samples, ["x" * 5000]).message
    (tmp_path / "empty.npy").touch()
    assert "is empty" in error_of(load_samples, [str(tmp_path / "empty.npy")]).message
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert "is no sample" in error_of(load_samples, [str(tmp_path / "x.png")]).message


def _archive() -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, x=np.arange(4.0))
    return stream.getvalue()


_NPZ = _archive()


@settings(max_examples=100, deadline=None)
@given(
    suffix=st.sampled_from([".pt", ".npz", ".npy", ".safetensors"]),
    data=st.one_of(
        st.binary(min_size=1, max_size=60),
        st.binary(max_size=60).map(lambda tail: b"\x93NUMPY\x01\0" + tail),
        st.integers(1, len(_NPZ) - 1).map(lambda end: _NPZ[:end]),
        st.tuples(st.integers(0, len(_NPZ) - 1), st.integers(0, 255)).map(
            lambda change: _NPZ[: change[0]] + bytes([change[1]]) + _NPZ[change[0] + 1 :]
        ),
    ),
)
def test_damaged_files_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes) -> None:
    """Garbage, cut files and flipped bytes either load or raise a BisectError with exit code 2."""
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(data)
    try:
        (loaded,) = load_samples([str(path)])
    except BisectError as error:
        assert error.exit_code == 2
        assert "damaged" in error.message
    else:
        assert loaded.args or loaded.kwargs


@pytest.mark.parametrize("given_sample", [sample(ONE, ONE), sample(ONE, num_points=ONE, coords=ONE)])
def test_fitting_samples_pass_unchanged(given_sample: Sample) -> None:
    """A sample that fits is returned as it is."""
    assert bind_sample(Pillars(), given_sample) == given_sample


@pytest.mark.parametrize(
    ("given_sample", "reason", "hint"),
    [
        (sample(ONE, ONE, ONE, ONE), "4 positional inputs for 3", "leave out"),
        (sample(ONE), "no input for num_points", "add num_points"),
        (sample(voxels=ONE, num_point=ONE), "forward has no argument 'num_point'", "did you mean 'num_points'?"),
        (sample(ONE, ONE, voxels=ONE), "voxels is given by position and by name", "once"),
    ],
)
def test_misfits_list_both_sides(given_sample: Sample, reason: str, hint: str) -> None:
    """What forward takes, what the sample has with shapes, the reason and the remedy are all there."""
    error = error_of(bind_sample, Pillars(), given_sample)
    assert "sample.pt does not fit forward(voxels, num_points, coords=None)" in error.message
    assert reason in error.message
    assert "float32[1, 2]" in error.message
    assert hint in str(error.hint)


def test_a_dictionary_becomes_the_one_batch_argument() -> None:
    """A bare dictionary for forward(batch) is passed whole, with a note."""
    bound = bind_sample(Batch(), sample(points=ONE, ids=ONE))
    assert list(bound.args[0]) == ["points", "ids"]
    assert bound.kwargs == {}
    assert "passed whole as batch" in bound.notes[0]


class Loose(torch.nn.Module):
    def forward(self, batch: Any, **rest: Any) -> Any:
        return batch


def test_explicit_keywords_are_never_passed_whole(tmp_path: Path) -> None:
    """{"kwargs": ...} means keywords: a wrong name in it is an error, while the same bare dictionary is a batch."""
    (explicit,) = load_samples([saved(tmp_path, {"kwargs": {"points": ONE}})])
    (bare,) = load_samples([saved(tmp_path, {"points": ONE}, "bare.pt")])
    assert "forward has no argument 'points'" in error_of(bind_sample, Batch(), explicit).message
    assert list(bind_sample(Batch(), bare).args[0]) == ["points"]


@pytest.mark.parametrize(
    ("module", "given_sample"),
    [(Batch(), sample(points=ONE, training=True)), (Loose(), sample(points=ONE)), (Loose(), sample(x=ONE, y=ONE))],
)
def test_a_dictionary_that_may_be_keywords_is_not_passed_whole(module: torch.nn.Module, given_sample: Sample) -> None:
    """With an argument's name among the keys, or a forward that takes any keyword, nothing is guessed."""
    error = error_of(bind_sample, module, given_sample)
    assert "points" in error.message or "no input for batch" in error.message


def test_what_is_missing_comes_with_how_to_pass_a_dictionary_whole() -> None:
    """Where the dictionary was not wrapped, the hint tells how to have it passed as one argument."""
    error = error_of(bind_sample, Loose(), sample(points=ONE))
    assert "save it in a tuple" in str(error.hint)
    bound = bind_sample(Loose(), sample({"points": ONE}))
    assert list(bound.args[0]) == ["points"]


def test_modules_without_forward_take_no_sample() -> None:
    """A ModuleList is refused before anything is run."""
    error = error_of(bind_sample, torch.nn.ModuleList([torch.nn.Linear(2, 2)]), sample(ONE))
    assert "ModuleList without forward()" in error.message
    assert "--entry" in str(error.hint)


def test_a_dictionary_that_names_the_argument_stays_keywords() -> None:
    """Where the dictionary has the required name, it is not wrapped, and there is no note."""
    assert bind_sample(Batch(), sample(batch=ONE)) == sample(batch=ONE)


def test_an_argument_annotated_as_tensor_gets_no_dictionary() -> None:
    """A wrong name for a tensor argument is an error, not a batch."""
    error = error_of(bind_sample, Typed(), sample(image=ONE))
    assert "forward has no argument 'image'" in error.message


def test_archives_without_a_signature_accept_everything(tmp_path: Path) -> None:
    """A module from a TorchScript archive does not say what it takes, so nothing is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Typed()), str(tmp_path / "net.ts"))
    assert bind_sample(load_model(str(tmp_path / "net.ts")).module, sample(ONE, y=ONE)) == sample(ONE, y=ONE)

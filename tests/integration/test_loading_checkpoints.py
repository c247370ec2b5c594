"""What counts as a checkpoint, how its keys are fitted to the model, and what is said when they do not fit."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bisect_tool.backends.checkpoints import PREFIXES, WRAPPER_KEYS, apply_checkpoint, load_checkpoint
from bisect_tool.cli.run import run
from bisect_tool.errors import BisectError


def net() -> torch.nn.Module:
    return torch.nn.Sequential(
        collections.OrderedDict(conv=torch.nn.Conv2d(1, 2, 3), bn=torch.nn.BatchNorm2d(2), head=torch.nn.Linear(2, 3))
    )


def saved(folder: Path, content: Any, name: str = "ckpt.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, module.state_dict()[key]) for key, value in state.items())


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> BisectError:
    with pytest.raises(BisectError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("keys", [(), *((key,) for key in WRAPPER_KEYS), ("model", "state_dict")])
def test_state_dicts_are_found_up_to_two_levels_deep(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """Bare and wrapped state dicts give the same tensors, whatever lies beside them."""
    content: dict[str, Any] = net().state_dict()
    expected = dict(content)
    for key in reversed(keys):
        content = {"epoch": 3, "optimizer": {"lr": torch.ones(1)}, key: content}
    state = load_checkpoint(saved(tmp_path, content))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_safetensors_are_read(tmp_path: Path) -> None:
    """A safetensors file loads into the model, also under another suffix."""
    source, target = net(), net()
    save_file(source.state_dict(), tmp_path / "a.bin")
    assert apply_checkpoint(target, load_checkpoint(tmp_path / "a.bin"), "a.bin") == ()
    assert same(target, source.state_dict())


def test_numbers_of_numpy_beside_the_weights_need_no_pickle(tmp_path: Path) -> None:
    """A best score that is a numpy number does not keep a checkpoint from being read safely."""
    path = saved(tmp_path, {"model": net().state_dict(), "best": np.float64(0.5)})
    assert "conv.weight" in load_checkpoint(path)


def test_several_sets_of_weights_are_noted(tmp_path: Path) -> None:
    """Where a file holds weights and their moving average, the user is told which was taken."""
    path = saved(tmp_path, {"ema": net().state_dict(), "model": net().state_dict()})
    (note,) = apply_checkpoint(net(), load_checkpoint(path), path)
    assert "'model' was taken, not ema" in note


def test_pickled_modules_need_permission(tmp_path: Path) -> None:
    """A whole module is refused with the blocked class named, and read with allow_pickle."""
    source, target = net(), net()
    path = saved(tmp_path, {"model": source})
    error = error_of(load_checkpoint, path)
    assert "torch.nn.modules.container.Sequential" in error.message
    assert "--allow-pickle" in str(error.hint)
    assert "code" in str(error.hint)
    notes = apply_checkpoint(target, load_checkpoint(path, allow_pickle=True), path)
    assert same(target, source.state_dict())
    assert "whole Sequential" in notes[0]


class Dangerous:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("ran.txt", "w"))


def test_nothing_runs_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that would write a file does not get to, and what it wanted to call is named."""
    monkeypatch.chdir(tmp_path)
    error = error_of(load_checkpoint, saved(tmp_path, {"state_dict": Dangerous()}))
    assert "open" in error.message
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "found the keys epoch (int), optimizer (dict)"),
        ({}, "an empty dictionary"),
        ([torch.ones(1)], "of type list"),
        (torch.ones(1), "of type Tensor"),
        ({"encoder": {"w": torch.ones(1)}, "decoder": {"w": torch.ones(1)}}, "encoder (dict), decoder (dict)"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(tmp_path: Path, content: Any, found: str) -> None:
    """The keys, or the type, of what was found instead are in the message."""
    error = error_of(load_checkpoint, saved(tmp_path, content))
    assert "holds no state dict" in error.message
    assert found in error.message


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A missing file, a folder and an empty file are told apart."""
    assert "no such file" in error_of(load_checkpoint, tmp_path / "none.pth").message
    assert "is a folder" in error_of(load_checkpoint, tmp_path).message
    (tmp_path / "empty.pth").touch()
    assert "is empty" in error_of(load_checkpoint, tmp_path / "empty.pth").message
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"{ no json here }")
    assert "cannot be read as safetensors" in error_of(load_checkpoint, tmp_path / "a.safetensors").message


def _files() -> tuple[bytes, bytes]:
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(3)}, new)
    torch.save({"a": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    return new.getvalue(), old.getvalue()


_NEW, _OLD = _files()


@settings(max_examples=120, deadline=None)
@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=60),
        st.binary(max_size=40).map(lambda tail: b"\x80\x02" + tail),
        st.integers(1, len(_NEW) - 1).map(lambda end: _NEW[:end]),
        st.integers(1, len(_OLD) - 1).map(lambda end: _OLD[:end]),
        st.tuples(st.integers(0, len(_OLD) - 1), st.integers(0, 255)).map(
            lambda change: _OLD[: change[0]] + bytes([change[1]]) + _OLD[change[0] + 1 :]
        ),
    )
)
def test_damaged_files_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Garbage, cut files and flipped bytes either load or raise a BisectError with exit code 2."""
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(data)
    try:
        state = load_checkpoint(path)
    except BisectError as error:
        assert error.exit_code == 2
        assert "damaged.pth" in error.message
    else:
        assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.module.", "module._orig_mod.", "model.module."])
def test_prefixes_of_wrappers_are_removed_and_noted(prefix: str) -> None:
    """Prefixes, also several, are stripped; all weights arrive and one note says so."""
    source, target = net(), net()
    torch.nn.init.ones_(source.get_parameter("conv.weight"))
    notes = apply_checkpoint(target, {prefix + key: value for key, value in source.state_dict().items()}, "c.pth")
    assert same(target, source.state_dict())
    assert len(notes) == 1
    assert "removing the prefix" in notes[0]


def test_the_attribute_that_held_the_model_is_removed() -> None:
    """Whatever its name is, as long as all keys have it; imaginary parts that are gone are told."""
    source, target = net(), net()
    state = {f"backbone_net.{key}": value.to(torch.complex64) for key, value in source.state_dict().items()}
    notes = apply_checkpoint(target, state, "c.pth")
    assert same(target, source.state_dict())
    assert "removing the prefix 'backbone_net.'" in notes[0]
    assert "complex64" in notes[1] and notes[1].endswith("imaginary parts are gone")


def test_a_prefix_that_the_model_wants_is_added() -> None:
    """A wrapper around the network gets the network's plain checkpoint."""
    wrapper = torch.nn.Module()
    wrapper.model = net()
    source = net().state_dict()
    (note,) = apply_checkpoint(wrapper, source, "c.pth")
    assert "adding the prefix 'model.'" in note
    assert same(wrapper.model, source)


def test_matching_keys_keep_their_prefix() -> None:
    """A model whose own parts are called `model` and `module` loads its checkpoint untouched."""
    wrapper = torch.nn.Module()
    wrapper.model = torch.nn.Module()
    wrapper.model.module = net()
    assert apply_checkpoint(wrapper, wrapper.state_dict(), "c.pth") == ()


def test_marks_of_compiled_submodules_are_removed() -> None:
    """`_orig_mod` in the middle of keys does not matter."""
    wrapper = torch.nn.Module()
    wrapper.body = net()
    state = {key.replace("body.", "body._orig_mod."): value for key, value in wrapper.state_dict().items()}
    (note,) = apply_checkpoint(wrapper, state, "c.pth")
    assert "_orig_mod." in note


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.body._orig_mod."])
def test_models_with_compiled_parts_take_plain_checkpoints(prefix: str) -> None:
    """`_orig_mod` in the model's keys does not matter either, wherever it stands and whatever stands in the file's."""
    wrapper, source = torch.nn.Module(), torch.nn.Module()
    source.body, source.head = net(), torch.nn.Linear(2, 2)
    wrapper.body, wrapper.head = torch.compile(net()), torch.nn.Linear(2, 2)
    assert "body._orig_mod.conv.weight" in wrapper.state_dict()
    state = source.state_dict()
    if prefix.endswith("body._orig_mod."):
        state = {"module." + key.replace("conv.", "_orig_mod.conv."): value for key, value in state.items()}
    else:
        state = {prefix + key: value for key, value in state.items()}
    (note,) = apply_checkpoint(wrapper, state, "c.pth")
    assert "ignoring the mark '_orig_mod.'" in note
    assert same(wrapper.body._orig_mod, source.body.state_dict())
    assert same(wrapper.head, source.head.state_dict())


def test_compiled_models_take_checkpoints_of_compiled_parts() -> None:
    """The mark stands at different places on the two sides."""
    source = torch.nn.Sequential(net())
    state = {key.replace("0.", "0._orig_mod.", 1): value for key, value in source.state_dict().items()}
    target = torch.compile(torch.nn.Sequential(net()))
    (note,) = apply_checkpoint(target, state, "c.pth")
    assert "_orig_mod." in note
    assert same(target._orig_mod, source.state_dict())


def test_missing_keys_are_an_error_unless_allowed() -> None:
    """Missing keys are listed with --allow-missing as the remedy; allowed, they become a note."""
    state = {key: value for key, value in net().state_dict().items() if not key.startswith("head")}
    error = error_of(apply_checkpoint, net(), state, "c.pth")
    assert "c.pth does not fit the model: 2 missing keys" in error.message
    assert "missing: head.weight, head.bias" in error.message
    assert "--allow-missing" in str(error.hint)
    assert "--allow-unexpected" not in str(error.hint)
    (note,) = apply_checkpoint(net(), state, "c.pth", allow_missing=True)
    assert "2 weights are not in c.pth" in note


def test_unexpected_keys_are_an_error_unless_allowed() -> None:
    """The first five of seven unexpected keys are listed with the count; allowed, they become a note."""
    state = {**net().state_dict(), **{f"extra.{i}": torch.ones(1) for i in range(7)}}
    error = error_of(apply_checkpoint, net(), state, "c.pth")
    assert "7 unexpected keys" in error.message
    assert "extra.4 and 2 more" in error.message
    assert "--allow-unexpected" in str(error.hint)
    (note,) = apply_checkpoint(net(), state, "c.pth", allow_unexpected=True)
    assert "7 keys of c.pth" in note


def test_renamed_keys_are_paired() -> None:
    """A key that was renamed is shown beside the nearest name on the other side."""
    state = net().state_dict()
    state["heads.weight"] = state.pop("head.weight")
    error = error_of(apply_checkpoint, net(), state, "c.pth")
    assert "missing: head.weight (near: heads.weight)" in error.message
    assert "unexpected: heads.weight (near: head.weight)" in error.message
    assert "--allow-missing" in str(error.hint)
    assert "--allow-unexpected" in str(error.hint)


def test_shape_mismatches_show_both_shapes() -> None:
    """The key and both shapes are named, and allowing other faults does not hide it."""
    state = {**net().state_dict(), "head.weight": torch.ones(5, 2)}
    error = error_of(apply_checkpoint, net(), state, "c.pth", allow_missing=True, allow_unexpected=True)
    assert "1 shape mismatch" in error.message
    assert "head.weight: checkpoint [5, 2], model [3, 2]" in error.message
    assert "--entry-args" in str(error.hint)


def test_a_checkpoint_of_another_model_is_refused_whatever_is_allowed() -> None:
    """If no key fits, nothing would be loaded, and that is never agreed to."""
    error = error_of(
        apply_checkpoint, net(), {"x.y": torch.ones(1)}, "c.pth", allow_missing=True, allow_unexpected=True
    )
    assert "no key fits" in error.message
    assert "--allow" not in str(error.hint)


def test_counters_of_batch_normalization_may_be_missing(tmp_path: Path) -> None:
    """num_batches_tracked is not needed and not mentioned, in files of old and of new versions of torch."""
    state = net().state_dict()
    del state["bn.num_batches_tracked"]
    assert apply_checkpoint(net(), dict(state), "c.pth") == ()
    assert apply_checkpoint(net(), load_checkpoint(saved(tmp_path, state)), "c.pth") == ()


def test_counters_of_batch_normalization_may_be_left_over() -> None:
    """A model whose normalization counts nothing takes a checkpoint that does; other left-over keys stay an error."""
    target = torch.nn.Sequential(collections.OrderedDict(bn=torch.nn.BatchNorm2d(2)))
    target.bn.num_batches_tracked = None
    state = {key: value for key, value in net().state_dict().items() if key.startswith("bn.")}
    state["bn.weight"] = torch.full((2,), 3.0)
    assert "bn.num_batches_tracked" in state
    assert apply_checkpoint(target, state, "c.pth") == ()
    assert torch.equal(target.bn.weight, state["bn.weight"])
    error = error_of(apply_checkpoint, target, {**state, "extra": torch.ones(1)}, "c.pth")
    assert "1 unexpected key\n" in error.message
    assert "num_batches" not in error.message


def test_the_help_says_what_permission_is_for() -> None:
    """--allow-pickle covers the checkpoint and not the samples, and its help says no more."""
    (option,) = [param for param in run.params if param.name == "allow_pickle"]
    text = str(getattr(option, "help", ""))
    assert "checkpoint" in text
    assert "sample" not in text


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """What a module reads about the file's version is what the saving module wrote."""

    class Versioned(torch.nn.Linear):
        _version = 7
        seen: Any = None

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            Versioned.seen = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    module = torch.nn.Sequential(Versioned(2, 2))
    apply_checkpoint(module, load_checkpoint(saved(tmp_path, {"model": module.state_dict()})), "c.pth")
    assert Versioned.seen == 7


def test_tied_weights_may_come_under_one_name() -> None:
    """Of two names of one parameter one suffices, as safetensors store it."""
    tied = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    (note,) = apply_checkpoint(tied, {"0.weight": torch.eye(2)}, "c.pth")
    assert "1.weight is tied" in note
    assert torch.equal(tied[1].weight, torch.eye(2))


def test_conversions_of_dtype_are_noted() -> None:
    """Half-precision weights in a float32 model are converted, and said to be."""
    target = torch.nn.Linear(2, 2)
    (note,) = apply_checkpoint(target, {k: v.half() for k, v in target.state_dict().items()}, "c.pth")
    assert note == "2 tensors are float16 in the checkpoint and were converted to the model's float32"


def test_models_on_the_meta_device_get_their_weights() -> None:
    """A model that was built without memory holds the checkpoint's numbers afterwards."""
    with torch.device("meta"):
        target = torch.nn.Linear(2, 2)
    state = torch.nn.Linear(2, 2).state_dict()
    apply_checkpoint(target, state, "c.pth")
    assert same(target, state)

"""What a session is fed with stays where it is while the session runs."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bisect_tool.backends import ort_runner
from bisect_tool.backends.ort_runner import run_session


class Forgetful:
    """A binding that holds nothing but what ONNX Runtime itself holds, as in older versions."""

    def __init__(self, binding: Any):
        self.binding = binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.binding, name)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.binding._iobinding.bind_ortvalue_input(name, value._ortvalue)


class Watched:
    """A session that looks at its inputs when it is about to run."""

    def __init__(self, session: ort.InferenceSession, fed: list[weakref.ref[Any]]):
        self._session = session
        self._fed = fed
        self.alive: list[bool] = []

    def io_binding(self) -> Any:
        return Forgetful(self._session.io_binding())

    def run_with_iobinding(self, binding: Any) -> None:
        self.alive = [value() is not None for value in self._fed]
        self._session.run_with_iobinding(binding.binding)


def test_a_strided_feed_outlives_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied for ONNX Runtime, whose binding holds no copy: some versions then read memory that is another's."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.checker.check_model(model) is None
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    fed: list[weakref.ref[Any]] = []
    own = ort_runner._to_ort

    def watched(array: Any) -> Any:
        made = own(array)
        fed.append(weakref.ref(made))
        return made

    monkeypatch.setattr(ort_runner, "_to_ort", watched)
    spy: Any = Watched(session, fed)
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    (y,) = run_session(spy, ["y"], {"x": x})
    assert [True] == spy.alive
    assert y is not None and np.array_equal(-x, y)

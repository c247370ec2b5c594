"""Files as tools leave them that drop names."""

from __future__ import annotations

from onnx import ModelProto


def without_names(model: ModelProto) -> ModelProto:
    """All names are numbers."""
    numbers: dict[str, str] = {"": ""}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    for value in [*model.graph.input, *model.graph.initializer, *model.graph.output]:
        value.name = number(value.name)
    for each in model.graph.node:
        each.input[:], each.output[:] = map(number, each.input), map(number, each.output)
        each.name = ""
    del model.graph.value_info[:]
    model.producer_name = ""
    return model

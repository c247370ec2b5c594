"""The final outputs: which of the graph's is which of the model's, and how far it is off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bisect_tool.backends.captured import Outputs
from bisect_tool.layouts import describe_order, in_layout, layout_of
from bisect_tool.metrics import judge
from bisect_tool.outputs import bind_outputs, exchanged
from bisect_tool.records import ErrorMetrics, OutputResult, Tolerance

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Untouched:
    """What a run of the graph as it is gave: its outputs by name, and what was in effect."""

    outputs: dict[str, Array | None]
    effective: Mapping[str, Any]


class FinalOutputs:
    """The model's outputs beside the graph's.

    Args:
        graph_outputs: names, in the graph's order.
        tolerance: that judges them; another may be put in its place.
        notes: gets what was noticed.

    Attributes:
        names: the graph's output for each of the model's; ``None``: the graph has no such output.
        exchanged: says which outputs seem to have changed places.
    """

    def __init__(self, graph_outputs: Sequence[str], tolerance: Tolerance, notes: list[str]):
        self.tolerance = tolerance
        self.notes = notes
        self.names: list[str | None] = []
        self.exchanged: list[str] = []
        self._graph_outputs = list(graph_outputs)

    def bind(self, outputs: Outputs, untouched: Untouched | None) -> None:
        """Finds out which graph output is which output of the model.

        ``untouched``: the plain graph's run, if there is one: its values tell outputs apart that names do not.
        """
        names = self._graph_outputs
        keys = [key for key, _ in outputs]
        if len(names) != len(keys):
            self.names = [str(key) if str(key) in names else None for key in keys]
            if not any(self.names):
                self.names = self._by_content(outputs, untouched)
            self.notes.append(f"the model has {len(keys)} outputs and the graph {len(names)}")
            return

        def agrees(place: int, name: str) -> bool:
            if untouched is None:
                return names[place] == name
            array = untouched.outputs.get(name)
            return judge(outputs[place][1], array, self.tolerance)[1] == "pass"

        bound = bind_outputs(keys, names, agrees)
        self.names = list(bound.names)
        if bound.by == "value":
            self.notes.append("the graph has the outputs of the model's dictionary in another order; found by value")
        else:
            self.exchanged = [
                f"the graph's output {bound.names[place]} stands for {keys[place]} and holds the value of {keys[other]}: "
                "are outputs exchanged?"
                for place, other in exchanged(bound.names, agrees).items()
            ]

    def _by_content(self, outputs: Outputs, untouched: Untouched | None) -> list[str | None]:
        """The graph's output for each of the model's, of which there are more or fewer: by value, by shape, by order."""
        found: list[str | None] = [None] * len(outputs)
        left = list(self._graph_outputs)
        arrays = {} if untouched is None else untouched.outputs

        def passes(expected: Array, actual: Array | None) -> bool:
            return judge(expected, actual, self.tolerance)[1] == "pass"

        def fits(expected: Array, actual: Array | None) -> bool:
            return actual is not None and actual.shape == expected.shape

        for is_it in (passes, fits, lambda *_: True):
            for place, (_, expected) in enumerate(outputs):
                name = next((n for n in left if is_it(expected, arrays.get(n))), None) if found[place] is None else None
                if name is not None:
                    found[place] = name
                    left.remove(name)
        return found

    def put_in_layout(self, outputs: Outputs, runs: Iterable[Untouched]) -> None:
        """Turns the outputs of some runs: a graph whose inputs are in another layout has its outputs in it too."""
        runs = list(runs)
        for (key, array), name in zip(outputs, self.names, strict=True):
            given = [run.outputs.get(name) for run in runs] if name else []
            shown = next((found for found in given if found is not None), None)
            order = None if shown is None else layout_of(array, shown)
            if name is not None and shown is not None and order is not None:
                self.notes.append(
                    f"the graph's output {name} {list(shown.shape)} was compared with {key} {list(array.shape)}, "
                    f"its axes in the order {describe_order(order)}"
                )
                for run in runs:
                    run.outputs[name] = in_layout(run.outputs[name], array.shape, order)

    def results(self, untouched: Untouched, expected: Outputs) -> tuple[OutputResult, ...]:
        """Every output of the model against the untouched graph; here a shape must be exactly the same."""
        results = []
        for (key, array), name in zip(expected, self.names, strict=True):
            metrics, judgement = judge(array, untouched.outputs.get(name) if name else None, self.tolerance)
            if name is None or _holds_nothing(metrics):
                judgement = "not compared"
            results.append(OutputResult(key, name or "", metrics, judgement))
            if metrics.nonfinite_expected and not metrics.nonfinite_mismatch:
                note = f"output {key} holds {metrics.nonfinite_expected} NaN or infinite values, the same on both sides"
                if note not in self.notes:
                    self.notes.append(note)
        return tuple(results)

    def fail(self, untouched: Untouched, expected: Outputs) -> bool:
        """Whether an output is over the limit."""
        return any(out.judgement == "fail" for out in self.results(untouched, expected))

    def agree(self, untouched: Untouched, expected: Outputs) -> bool:
        """Whether every output was compared, and passes."""
        return all(out.judgement == "pass" for out in self.results(untouched, expected))

    def are_there(self, untouched: Untouched, expected: Outputs) -> bool:
        """Whether every output of the side that has fewer is one of the other's, in whatever order."""
        left = list(expected)
        missing = 0
        for name in self._graph_outputs:
            array = untouched.outputs.get(name)
            place = next(
                (i for i, (_, each) in enumerate(left) if judge(each, array, self.tolerance)[1] == "pass"), None
            )
            if place is None:
                missing += 1
            else:
                del left[place]
        return missing <= max(len(self._graph_outputs) - len(expected), 0)


def _holds_nothing(metrics: ErrorMetrics) -> bool:
    """Whether both sides hold the same NaN and infinities and no number at all: that is no agreement to rely on."""
    return 0 < metrics.count == metrics.nonfinite_expected and not metrics.nonfinite_mismatch and not metrics.problem

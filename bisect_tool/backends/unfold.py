"""Takes apart what a graph keeps in graphs of its own, as this sample runs through it.

ONNX Runtime hands out what a node with a body makes, and nothing from inside. But which branch of an ``If`` is taken, and how
often a ``Loop`` or a ``Scan`` runs, are facts of one run: the branch's nodes, or a copy of the body's nodes for each
iteration, stand in place of such a node, and calls of the model's own functions are replaced by what they are made of. So
everything inside has values that can be exposed and forced. The file's own graph stays what the verdict rests on.

Nodes keep their names; those of iteration ``i`` (from 0) end in ``@i``, and those of a function begin with the call's name.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bisect_tool.backends.onnx_graph import name_everything
from bisect_tool.backends.onnx_program import OnnxProgram, type_of_array
from bisect_tool.backends.opsets import other_meaning
from bisect_tool.backends.ort_runner import make_session, run_session
from bisect_tool.errors import InconclusiveError
from bisect_tool.graph_names import without_iterations
from bisect_tool.records import NumericConfig

Array = NDArray[Any]

MAX_ADDED = 5000
"""Nodes that bodies may add to a graph; what would add more stays as it is."""

_BODIES = ("If", "Loop", "Scan")
_SCOPES = "pkg.torch.onnx.name_scopes"
_NODE, _VALUE = "node", "value"
_COUNT = "__iterations"
_AXES_AS_INPUT = 13
_SCAN_WITHOUT_BATCH = 9


def unfold(
    program: OnnxProgram, feeds: Mapping[str, Array], config: NumericConfig
) -> tuple[OnnxProgram, tuple[str, ...]]:
    """The program with bodies and functions taken apart, and notes on what was taken apart or not.

    Args:
        program: not to be used any more afterwards, unless it is what is returned.
        feeds: the graph's inputs.
        config: of the runs that tell which branch is taken and how often a body runs.
    """
    if not program.functions() and not program.operators_with_bodies():
        return program, ()
    given = program.untouched()
    work = _Unfolding(program.take_model())
    own = not any(without_iterations(name) != name for _, name in work.used)
    notes = work.inline_functions()
    current = OnnxProgram(work.model, program.path, given)
    for turn in range(_MOST_ROUNDS):
        work.outermost = turn == 0
        nodes = [node for node in work.model.graph if _has_body(node) and node.name not in work.left]
        if not nodes:
            break
        current.assume_shapes({name: array.shape for name, array in feeds.items()})
        work.replace(nodes, functools.partial(_values, current, feeds, config))
        work.model.graph.sort()
        name_everything(work.model.graph)
        current = OnnxProgram(work.model, program.path, given)
    unfolded = OnnxProgram(work.model, program.path, given, tuple(work.former), has_copies=own)
    return unfolded, (*notes, *work.notes())


_MOST_ROUNDS = 20
"""Bodies within bodies."""


def _has_body(node: ir.Node) -> bool:
    return any(True for _ in _bodies(node))


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _size(graph: ir.Graph) -> int:
    return sum(1 + sum(map(_size, _bodies(node))) for node in graph)


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body)


def _names(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Of all nodes and values in a graph and in the bodies inside; a node may be called as a value is."""
    for value in [*graph.inputs, *graph.initializers.values()]:
        yield _VALUE, value.name or ""
    for node in graph:
        yield _NODE, node.name or ""
        for value in node.outputs:
            yield _VALUE, value.name or ""
        for body in _bodies(node):
            yield from _names(body)


class _Unfolding:
    """A model while its bodies are taken apart."""

    def __init__(self, model: ir.Model):
        self.model = model
        self.left: dict[str, str] = {}
        self.done: dict[str, str] = {}
        self.added = 0
        self.used = Counter(_names(model.graph))
        self.suffixes: dict[str, str] = {}
        self.outermost = False
        self.former: list[tuple[str, tuple[str, ...]]] = []
        self.opset = model.opset_imports.get("", 0)

    def notes(self) -> list[str]:
        """What the report says; a long list is cut."""
        lines = [f"{name}: {what}" for name, what in self.done.items()]
        cut = lines[:_MOST_NOTES]
        if len(lines) > _MOST_NOTES:
            cut.append(f"... and {len(lines) - _MOST_NOTES} more bodies that are looked into")
        return [*cut, *(f"{name} is not looked into: {reason}" for name, reason in self.left.items())]

    # -- functions ----------------------------------------------------------------------------------------------------

    def inline_functions(self) -> list[str]:
        """Replaces calls of the model's own functions."""
        names: Counter[str] = Counter()
        kept: dict[str, str] = {}
        for _ in range(_MOST_ROUNDS):
            calls = [
                node
                for graph in [self.model.graph, *self.model.graph.subgraphs()]
                for node in graph
                if node.op_identifier() in self.model.functions and f"{node.domain}::{node.op_type}" not in kept
            ]
            if not calls:
                break
            for node in calls:
                function = self.model.functions[node.op_identifier()]
                reason = self._why_kept(node, function)
                if reason is not None:
                    kept[f"{node.domain}::{node.op_type}"] = reason
                    continue
                self._inline(node, function)
                names[node.op_type] += 1
        if not kept:
            self.model.functions.clear()
        lines = [f"{name} is not looked into: {reason}" for name, reason in kept.items()]
        if names:
            counted = ", ".join(f"{name} ({count} ×)" for name, count in sorted(names.items())[:_MOST_NOTES])
            lines.insert(0, f"the file's own functions are taken apart: {counted}")
        return lines

    def _why_kept(self, node: ir.Node, function: ir.Function) -> str | None:
        for domain, version in function.opset_imports.items():
            models = self.model.opset_imports.get(domain, version)
            if models == version or self._only_functions(function, domain):
                continue
            told = f"its opset {domain or 'ai.onnx'} {version} is not the model's"
            if domain not in ("", "ai.onnx"):
                return told
            other = other_meaning(_all_nodes(_body_of(node, function)), version, models)
            if other is not None:
                return f"{told}, and {other} may mean something else there"
        if any(True for _ in _bodies(node)):
            return "it is called with a body"
        size = _size(function.graph)
        if self.added + size > MAX_ADDED:
            return f"with it the graph would have {self.added + size} nodes more"
        return None

    def _only_functions(self, function: ir.Function, domain: str) -> bool:
        """Whether all that a function calls by this domain are the file's own functions, which have no versions."""
        called = [node for node in _all_nodes(function.graph) if (node.domain or "ai.onnx") == (domain or "ai.onnx")]
        return all(node.op_identifier() in self.model.functions for node in called)

    def _inline(self, node: ir.Node, function: ir.Function) -> None:
        for domain, version in function.opset_imports.items():
            self.model.opset_imports.setdefault(domain, version)
        body = _body_of(node, function)
        self._splice(node, [(body, list(node.inputs), f"{node.name}/", "")], lambda parts: list(parts[0]))

    # -- bodies -------------------------------------------------------------------------------------------------------

    def replace(self, nodes: Sequence[ir.Node], values: Callable[[Sequence[ir.Node]], Mapping[str, Array]]) -> None:
        """Replaces nodes that have bodies.

        Args:
            nodes: of the main graph.
            values: runs the graph as far as is needed; what :func:`_wanted` names, by name.
        """
        known = [node for node in nodes if self._is_known(node)]
        try:
            found = values(known) if known else {}
        except InconclusiveError as error:
            for node in known:
                self.left[node.name or ""] = f"ONNX Runtime does not tell how it runs ({error.message[:80]})"
            return
        for node in known:
            reason = getattr(self, f"_unfold_{node.op_type.lower()}")(node, found)
            if reason is not None:
                self.left[node.name or ""] = reason

    def _is_known(self, node: ir.Node) -> bool:
        reason = None
        if node.op_type not in _BODIES or node.domain not in ("", "ai.onnx"):
            reason = f"what {node.domain or 'ai.onnx'}::{node.op_type} does with its body is not known here"
        elif node.op_type == "Scan" and self.opset < _SCAN_WITHOUT_BATCH:
            reason = f"a Scan of opset {self.opset}"
        elif any(isinstance(v.type, (ir.SequenceType, ir.OptionalType)) for v in (*node.inputs, *node.outputs) if v):
            reason = "it works on sequences, which cannot be handed in"
        if reason is not None:
            self.left[node.name or ""] = reason
        return reason is None

    def _too_many(self, body: ir.Graph, times: int) -> str | None:
        size = _size(body) * times
        if self.added + size > MAX_ADDED:
            return f"its body of {_size(body)} nodes runs {times} times"
        return None

    def _unfold_if(self, node: ir.Node, found: Mapping[str, Array]) -> str | None:
        condition = node.inputs[0]
        assert condition is not None
        name = "then_branch" if bool(np.all(found[condition.name or ""])) else "else_branch"
        branch = node.attributes[name].as_graph()
        reason = self._too_many(branch, 1)
        if reason is None:
            body = _with_own_outputs(branch).clone(allow_outer_scope_values=True)
            self._splice(node, [(body, [], "", self.suffixes.get(node.name or "", ""))], lambda parts: list(parts[0]))
            self.done[node.name or ""] = (
                f"this sample takes the {name}, which is looked into; the other one is not covered"
            )
        return reason

    def _unfold_loop(self, node: ir.Node, found: Mapping[str, Array]) -> str | None:
        template = _with_own_outputs(node.attributes["body"].as_graph())
        times = int(found[_count_of(node)].size)
        carried = list(node.inputs[2:])
        reason = self._too_many(template, times)
        scans = len(template.outputs) - 1 - len(carried)
        if reason is None and not times:
            reason = "it does not run with this sample"
        if reason is not None:
            return reason
        outer = self.suffixes.get(node.name or "", "")
        bodies: list[_Part] = []
        for number in range(times):
            # What is carried over is wired once the copy before it is there.
            bodies.append((template.clone(allow_outer_scope_values=True), [], "", f"{outer}@{number}"))
        extra: list[ir.Node] = []
        state: list[ir.Value | None] = carried
        for number, (body, _, _, _) in enumerate(bodies):
            step = _constant(np.asarray(number, np.int64), f"{node.name}/iteration@{number}")
            always = _constant(np.asarray(True), f"{node.name}/condition@{number}")
            extra += [step, always]
            _wire(body, [step.outputs[0], always.outputs[0], *state])
            state = list(body.outputs[1 : 1 + len(carried)])

        def results(parts: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
            last = list(parts[-1][1 : 1 + len(carried)])
            stacked = [
                self._stacked([part[1 + len(carried) + place] for part in parts], 0, f"{node.name}/scan_{place}", extra)
                for place in range(scans)
            ]
            return [*last, *stacked]

        self._splice(node, bodies, results, extra)
        self.done[node.name or ""] = f"a loop that runs {times} times with this sample, each of them looked into"
        return None

    def _unfold_scan(self, node: ir.Node, found: Mapping[str, Array]) -> str | None:
        template = _with_own_outputs(node.attributes["body"].as_graph())
        scanned = node.attributes["num_scan_inputs"].as_int()
        states = len(node.inputs) - scanned
        outs = len(template.outputs) - states

        def numbers(name: str, count: int) -> list[int]:
            return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * count

        axes, back = numbers("scan_input_axes", scanned), numbers("scan_input_directions", scanned)
        out_axes, out_back = numbers("scan_output_axes", outs), numbers("scan_output_directions", outs)
        first = node.inputs[states]
        assert first is not None
        times = found[first.name or ""].shape[axes[0]]
        reason = self._too_many(template, times) if times else "it does not run with this sample"
        if reason is not None:
            return reason
        outer = self.suffixes.get(node.name or "", "")
        bodies: list[_Part] = [
            (template.clone(allow_outer_scope_values=True), [], "", f"{outer}@{number}") for number in range(times)
        ]
        extra: list[ir.Node] = []
        state: list[ir.Value | None] = list(node.inputs[:states])
        for number, (body, _, _, _) in enumerate(bodies):
            slices: list[ir.Value | None] = []
            for place, value in enumerate(node.inputs[states:]):
                at = times - 1 - number if back[place] else number
                index = _constant(np.asarray(at, np.int64), f"{node.name}/index_{place}@{number}")
                pick = ir.Node(
                    "",
                    "Gather",
                    [value, index.outputs[0]],
                    [ir.Attr("axis", ir.AttributeType.INT, axes[place])],
                    name=f"{node.name}/slice_{place}@{number}",
                )
                pick.outputs[0].name = f"{node.name}/slice_{place}@{number}"
                extra += [index, pick]
                slices.append(pick.outputs[0])
            _wire(body, [*state, *slices])
            state = list(body.outputs[:states])

        def results(parts: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
            stacked = []
            for place in range(outs):
                made = [part[states + place] for part in (reversed(parts) if out_back[place] else parts)]
                stacked.append(self._stacked(made, out_axes[place], f"{node.name}/scan_{place}", extra))
            return [*parts[-1][:states], *stacked]

        self._splice(node, bodies, results, extra)
        self.done[node.name or ""] = f"a scan of {times} steps with this sample, each of them looked into"
        return None

    def _stacked(self, values: Sequence[ir.Value], axis: int, name: str, extra: list[ir.Node]) -> ir.Value:
        """The values one after the other along a new axis."""
        rows = []
        for number, value in enumerate(values):
            if self.opset >= _AXES_AS_INPUT:
                axes = _constant(np.asarray([axis], np.int64), f"{name}/axes@{number}")
                extra.append(axes)
                node = ir.Node("", "Unsqueeze", [value, axes.outputs[0]], name=f"{name}/row@{number}")
            else:
                attribute = ir.Attr("axes", ir.AttributeType.INTS, [axis])
                node = ir.Node("", "Unsqueeze", [value], [attribute], name=f"{name}/row@{number}")
            node.outputs[0].name = f"{name}/row@{number}"
            extra.append(node)
            rows.append(node.outputs[0])
        joined = ir.Node("", "Concat", rows, [ir.Attr("axis", ir.AttributeType.INT, axis)], name=f"{name}/stacked")
        joined.outputs[0].name = f"{name}/stacked"
        extra.append(joined)
        return joined.outputs[0]

    # -- surgery ------------------------------------------------------------------------------------------------------

    def _splice(
        self,
        node: ir.Node,
        parts: Sequence[_Part],
        results: Callable[[Sequence[Sequence[ir.Value]]], list[ir.Value]],
        extra: list[ir.Node] | None = None,
    ) -> None:
        """Puts the nodes of some graphs in the place of a node.

        Args:
            node: it goes.
            parts: graphs, with what their inputs are, and what goes before and behind the names inside.
            results: what the node's outputs are, from the graphs' outputs.
            extra: nodes around them; ``results`` may add some.
        """
        home = node.graph
        assert isinstance(home, ir.Graph)
        self.used.subtract(name for body in _bodies(node) for name in _names(body))
        outer = dict(node.metadata_props)
        fresh: list[ir.Node] = []
        outputs: list[list[ir.Value]] = []
        for body, given, before, behind in parts:
            _wire(body, given)
            for value in list(body.initializers.values()):
                body.initializers.pop(value.name or "")
                value.name = self._unique(_VALUE, f"{before}{value.name}{behind}")
                home.register_initializer(value)
            nodes = list(body)
            outputs.append(list(body.outputs))
            body.outputs.clear()
            body.remove(nodes)
            for inner in nodes:
                inner.name = self._unique(_NODE, f"{before}{inner.name or inner.op_type}{behind}")
                if behind and _has_body(inner):
                    self.suffixes[inner.name] = behind
                for value in inner.outputs:
                    if value.name:
                        value.name = self._unique(_VALUE, f"{before}{value.name}{behind}")
                if before:
                    for key, text in outer.items():
                        inner.metadata_props.setdefault(key, text)
                elif _SCOPES in outer and _SCOPES in inner.metadata_props:
                    inner.metadata_props[_SCOPES] = _within(outer[_SCOPES], inner.metadata_props[_SCOPES], behind)
            fresh += nodes
        ends = results(outputs)
        fresh += extra or []
        self.added += len(fresh)
        handed: set[ir.Value] = set()
        own = set(fresh)
        for old, new in zip(node.outputs, ends, strict=False):
            if not old.uses() and not old.is_graph_output():
                continue
            if new.producer() not in own or new in handed:
                copy = ir.Node("", "Identity", [new], name=self._unique(_NODE, f"{node.name}/{old.name}"))
                fresh.append(copy)
                new = copy.outputs[0]
            handed.add(new)
            new.type, new.shape = old.type or new.type, old.shape or new.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            # What the file calls the value: graph outputs are known by it.
            name, old.name = old.name, None
            new.name = name
        if self.outermost and node.op_type in _BODIES:
            self.former.append((node.op_type, tuple(new.name or "" for new in ends)))
        home.insert_before(node, fresh)
        home.remove(node, safe=True)

    def _unique(self, kind: str, name: str) -> str:
        found, number = name, 1
        while self.used[kind, found] > 0:
            number += 1
            found = f"{name}_{number}"
        self.used[kind, found] += 1
        return found


_MOST_NOTES = 5
_Part = tuple[ir.Graph, Sequence["ir.Value | None"], str, str]


def _wire(body: ir.Graph, given: Sequence[ir.Value | None]) -> None:
    """Lets a body read what its inputs stand for; an input that is not given is an empty one for its readers."""
    for place, value in enumerate(list(body.inputs)):
        actual = given[place] if place < len(given) else None
        if actual is not None:
            value.replace_all_uses_with(actual)
        else:
            for user, index in list(value.uses()):
                user.replace_input_with(index, None)
    body.inputs.clear()


def _with_own_outputs(graph: ir.Graph) -> ir.Graph:
    """The graph, in which every output is made by a node of its own: an outer value or an input goes through one."""
    own = set(graph)
    seen: set[ir.Value] = set()
    for place, value in enumerate(graph.outputs):
        if value.producer() in own and value not in seen:
            seen.add(value)
            continue
        copy = ir.Node("", "Identity", [value], name=f"{value.name}_handed_on")
        copy.outputs[0].name = f"{value.name}_handed_on_{place}"
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        graph.append(copy)
        graph.outputs[place] = copy.outputs[0]
    return graph


def _within(outer: str, inner: str, behind: str) -> str:
    """The exporter's scopes of a node in a body, which begin at the body, with the modules around it.

    ``behind``: what tells iterations apart; the last of the scopes is the call's own name.
    """
    try:
        around, own = ast.literal_eval(outer), ast.literal_eval(inner)
    except (ValueError, SyntaxError):
        return inner
    if not isinstance(around, list) or not isinstance(own, list) or not own:
        return inner
    modules = own[:-1] if own[0] == "" else [*around[:-1], *own[:-1]]
    return str([*modules, f"{own[-1]}{behind}"])


def _body_of(node: ir.Node, function: ir.Function) -> ir.Graph:
    """What a call of a function is made of, with the call's attributes."""
    body = _with_own_outputs(function.graph).clone(allow_outer_scope_values=True)
    given = {**{a.name: a for a in function.attributes.values() if a.value is not None}, **node.attributes}
    _resolve(body, given)
    return body


def _resolve(graph: ir.Graph, given: Mapping[str, ir.Attr]) -> None:
    """Puts a call's attributes where a function's body refers to them; what the call lacks is left out."""
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                del node.attributes[name]
                actual = given.get(attribute.ref_attr_name or "")
                if actual is not None:
                    node.attributes[name] = ir.Attr(name, actual.type, actual.value)
        for body in _bodies(node):
            _resolve(body, given)


def _constant(array: Array, name: str) -> ir.Node:
    node = ir.Node("", "Constant", [], [ir.Attr("value", ir.AttributeType.TENSOR, ir.Tensor(array))], name=name)
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = (
        ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        ir.Shape(array.shape),
    )
    return node


# -- runs -------------------------------------------------------------------------------------------------------------


def _count_of(node: ir.Node) -> str:
    return f"{node.name}{_COUNT}"


def _wanted(node: ir.Node) -> str | None:
    """The value that says how a node runs; ``None`` for a loop, which is asked itself."""
    if node.op_type == "Loop":
        return None
    place = 0 if node.op_type == "If" else len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    value = node.inputs[place]
    assert value is not None
    return value.name


def _values(
    program: OnnxProgram, feeds: Mapping[str, Array], config: NumericConfig, nodes: Sequence[ir.Node]
) -> dict[str, Array]:
    """What the graph makes of these values: conditions, tensors that are scanned, and the iterations of loops."""
    found: dict[str, Array] = {}
    wanted: dict[str, None] = {}
    loops = [node for node in nodes if node.op_type == "Loop"]
    for node in nodes:
        name = _wanted(node)
        if name is None:
            continue
        if name in feeds:
            found[name] = feeds[name]
        elif program.is_weight(name):
            found[name] = program.weight(name)
        else:
            wanted[name] = None
    ends = [*wanted, *(next(v.name or "" for v in node.outputs if v.name) for node in loops)]
    if not ends:
        return found
    names = {name for end in ends for name in program.nodes_between(end, frozenset())}
    # Constants are no nodes between others; those that are asked for come along by themselves.
    names |= {program.graph.nodes[program.makers[name]].name for name in wanted if name in program.makers}
    part = program.part(sorted(names))
    types = {name: type_of_array(array.dtype, array.shape) for name, array in feeds.items()}
    built = program.build(part, ends, types)
    model, outputs = _counting(built.model, {node.name or "": _count_of(node) for node in loops}, list(wanted))
    session = make_session(model, config, str(program.weights_folder))
    given = {name: feeds[value] for name, value in built.feeds.items()}
    for name, array in zip(outputs, run_session(session, outputs, given), strict=True):
        if array is None:
            raise InconclusiveError(f"ONNX Runtime returned nothing for {name}")
        found[name] = array
    return found


def _counting(model: bytes, loops: Mapping[str, str], wanted: Sequence[str]) -> tuple[bytes, list[str]]:
    """The model with one more output for each loop, a vector with as many elements as the loop has iterations."""
    proto = onnx.load_from_string(model)
    for node in proto.graph.node:
        name = loops.get(node.name)
        if name is None:
            continue
        (body,) = [attribute.g for attribute in node.attribute if attribute.name == "body"]
        body.node.append(onnx.helper.make_node("Identity", [body.input[0].name], [f"{name}_inside"]))
        body.output.append(onnx.helper.make_tensor_value_info(f"{name}_inside", onnx.TensorProto.INT64, []))
        node.output.append(name)
    del proto.graph.output[:]
    outputs = [*wanted, *loops.values()]
    for name in wanted:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    for name in loops.values():
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None]))
    return proto.SerializeToString(), outputs

"""The neighbourhood of an origin as a small graph: what the stage reads, PyTorch's module beside the ONNX nodes that stand
for it with their attributes, where the two are compared, and what reads the result.

Places are reckoned here, from the top down; the template makes SVG of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bisect_tool.records import NodeDetail, Origin, Report, StageRow
from bisect_tool.reporters import selecting, wording

WIDTH, GAP_X, GAP_Y = 244.0, 28.0, 34.0
LINE, PADDING = 17.0, 9.0
_TEXT = 31
_BESIDE = 3
_ATTRIBUTES = 5
_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the drawing.

    Attributes:
        kind: ``stage``, ``torch``, ``node`` or ``check``.
        lines: that fit into it; the first one is its head.
        text: all of it, for those who point at it or do not see it.
        anchor: row of the stage table; ``None`` where it is no stage.
    """

    x: float
    y: float
    height: float
    kind: str
    lines: tuple[str, ...]
    text: str
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Boxes, and the arrows between them as SVG paths; ``text`` says it in words."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Item:
    """A box before it has a place; ``column`` is its place from the left."""

    kind: str
    lines: tuple[str, ...]
    text: str
    anchor: str | None
    column: float


def neighbourhood(report: Report, origin: Origin) -> Neighbourhood | None:
    """The graph around an origin; ``None`` where the report has no row for it."""
    row = next((row for row in selecting.stage_rows(report) if row.ref == origin.ref), None)
    if row is None:
        return None
    by_index = {other.index: other for other in report.stages}
    before = [by_index[index] for index in row.inputs if index in by_index]
    behind = [other for other in selecting.stage_rows(report) if row.index in other.inputs]
    nodes = list(origin.onnx_details)
    depths = _depths(nodes)
    layers: list[list[_Item]] = [_stages(before, origin.config, "the model's inputs")]
    first_node = len(layers)
    placed: dict[int, tuple[int, int]] = {}
    for depth in range(max(depths, default=-1) + 1):
        at = [number for number, own in enumerate(depths) if own == depth]
        for start in range(0, len(at), _COLUMNS):
            layer: list[_Item] = []
            for column, number in enumerate(at[start : start + _COLUMNS]):
                placed[number] = (len(layers), len(layer))
                layer.append(_node(nodes[number], row, 1.0 + column))
            layers.append(layer)
    if not nodes:
        layers.append([_Item("node", ("ONNX",), "ONNX: no nodes are known", None, 1.0)])
    left = len(origin.onnx_nodes) - len(nodes)
    if left > 0 and nodes:
        layers.append([_item("node", [wording.plural(left, "more node")], None, 1.0)])
    module = _torch(row, origin)
    layers[first_node].append(module)
    torch_place = (first_node, len(layers[first_node]) - 1)
    check = len(layers)
    layers.append([_check(origin, row)])
    layers.append(_stages(behind, origin.config, "an output of the model, or nothing"))
    boxes, where, width, height = _placed(layers)
    arrows: list[str] = []

    def join(one: tuple[int, int], other: tuple[int, int]) -> None:
        beside = other[0] - one[0] > 1 and boxes[where[other]].kind == "node"
        arrows.append(_arrow(boxes[where[one]], boxes[where[other]], beside=beside))

    made_by = {name: number for number, node in enumerate(nodes) for name in node.outputs if name}
    fed = {
        number: {made_by[name] for name in node.inputs if name in made_by} - {number}
        for number, node in enumerate(nodes)
    }
    for top in range(len(layers[0])):
        join((0, top), torch_place)
        value = before[top].onnx_value if top < len(before) and layers[0][top].anchor else None
        for number in _readers(nodes, value, row):
            join((0, top), placed[number])
    for number, makers in fed.items():
        for maker in sorted(makers):
            join(placed[maker], placed[number])
    read = {maker for makers in fed.values() for maker in makers}
    for number, place in placed.items():
        if number not in read:
            join(place, (check, 0))
    join(torch_place, (check, 0))
    for bottom in range(len(layers[-1])):
        join((check, 0), (len(layers) - 1, bottom))
    return Neighbourhood(width, height, tuple(boxes), tuple(arrows), _in_words(row, origin, before, behind, nodes))


def _readers(nodes: Sequence[NodeDetail], value: str | None, row: StageRow) -> list[int]:
    """Nodes that read a value; where it comes through other nodes first, those that read anything from outside."""
    reading = [number for number, node in enumerate(nodes) if value is not None and value in node.inputs]
    if reading:
        return reading
    inner = {name for node in nodes for name in node.outputs} | set(row.onnx_weights) | {""}
    return [number for number, node in enumerate(nodes) if not inner.issuperset(node.inputs)]


def _depths(nodes: Sequence[NodeDetail]) -> list[int]:
    """How many nodes lie before each at most; nodes are in a topological order."""
    depth_of: dict[str, int] = {}
    depths = []
    for node in nodes:
        own = max((depth_of[name] + 1 for name in node.inputs if name in depth_of), default=0)
        depths.append(own)
        depth_of.update({name: own for name in node.outputs if name})
    return depths


def _item(kind: str, lines: Sequence[str], anchor: str | None, column: float) -> _Item:
    plain = [wording.printable(line) for line in lines]
    return _Item(kind, tuple(wording.shorten_middle(line, _TEXT) for line in plain), "; ".join(plain), anchor, column)


def _stages(rows: Sequence[StageRow], config: str, nothing: str) -> list[_Item]:
    """Boxes for stages before or behind, with their errors; ``nothing`` says what there is if there are none."""
    if not rows:
        return [_item("stage", [nothing], None, 0.0)]
    shown = rows if len(rows) <= _BESIDE else rows[: _BESIDE - 1]
    found = []
    for row in shown:
        result = row.results.get(config)
        error = f"total {wording.sci(result.total.rel_l2)}" if result is not None else "not compared"
        found.append(_item("stage", [str(row.ref), row.type, error], f"r{row.index}", 0.0))
    if len(shown) < len(rows):
        rest = rows[len(shown) :]
        item = _item("stage", [wording.plural(len(rest), "more stage")], None, 0.0)
        names = ", ".join(wording.printable(row.ref) for row in rest[:12])
        found.append(_Item(item.kind, item.lines, f"{item.text}: {names}", None, 0.0))
    return found


def _node(node: NodeDetail, row: StageRow, column: float) -> _Item:
    attributes = [f"{name}={value}" for name, value in node.attributes.items()]
    shown = attributes if len(attributes) <= _ATTRIBUTES else attributes[: _ATTRIBUTES - 1]
    more = [wording.plural(len(attributes) - len(shown), "more attribute")] if len(shown) < len(attributes) else []
    weights = [f"reads {name}" for name in node.inputs if name in row.onnx_weights]
    item = _item("node", [f"ONNX {node.op_type}", node.name, *shown, *more, *weights[:3]], None, column)
    full = [f"ONNX {node.op_type}", node.name, *attributes, *weights, *([node.source] if node.source else [])]
    return _Item(item.kind, item.lines, "; ".join(map(wording.printable, full)), None, column)


def _torch(row: StageRow, origin: Origin) -> _Item:
    lines = [f"PyTorch {row.type}", str(row.ref), *([row.source] if row.source else [])]
    lines += [f"in it: {origin.operation}"] if origin.operation else []
    lines += [f"{wording.shape_text(row.shape)} {row.dtype}"]
    return _item("torch", lines, f"r{row.index}", 0.0)


def _check(origin: Origin, row: StageRow) -> _Item:
    result = row.results.get(origin.config)
    lines = ["the same inputs, compared", f"local error {wording.sci(origin.local_rel_l2)}"]
    lines += [f"noise ratio {wording.ratio(origin.noise_ratio)}"] if origin.noise_ratio is not None else []
    lines += [f"total error {wording.sci(result.total.rel_l2)}"] if result is not None else []
    return _item("check", lines, None, 0.5)


def _placed(
    layers: Sequence[Sequence[_Item]],
) -> tuple[list[Box], dict[tuple[int, int], int], float, float]:
    """Boxes with their places; stages of one layer stand side by side."""
    boxes: list[Box] = []
    where: dict[tuple[int, int], int] = {}
    y = 6.0
    right = 0.0
    for number, layer in enumerate(layers):
        tallest = 0.0
        for place, item in enumerate(layer):
            column = float(place) if item.kind == "stage" else item.column
            x = 2 + column * (WIDTH + GAP_X)
            height = len(item.lines) * LINE + 2 * PADDING
            where[number, place] = len(boxes)
            boxes.append(Box(x, y, height, item.kind, item.lines, item.text, item.anchor))
            tallest = max(tallest, height)
            right = max(right, x + WIDTH)
        y += tallest + GAP_Y
    return boxes, where, right + 2, y - GAP_Y + 6


def _arrow(one: Box, other: Box, *, beside: bool) -> str:
    """From the lower edge of a box to the upper edge of another, with its head: a marker would be an address.

    ``beside``: boxes lie between the two, and the way leads along the gap left of the other's column.
    """
    x, y = one.x + WIDTH / 2, one.y + one.height
    to_x, to_y = other.x + WIDTH / 2, other.y - 5
    head = f"M{to_x - 4:.0f} {to_y - 3:.0f}l4 7 4-7"
    low = to_y - GAP_Y + 8
    if not beside:
        # Straight down as far as it goes, so that it crosses nothing.
        down = max(y, low)
        return f"M{x:.0f} {y:.0f}V{down:.0f}{_bend(x, down, to_x, to_y)}{head}"
    gap = other.x - GAP_X / 2
    high = min(y + GAP_Y - 8, low)
    return f"M{x:.0f} {y:.0f}{_bend(x, y, gap, high)}V{low:.0f}{_bend(gap, low, to_x, to_y)}{head}"


def _bend(x: float, y: float, to_x: float, to_y: float) -> str:
    """A curve that leaves and arrives downwards."""
    bend = min(GAP_Y, max((to_y - y) / 2, 8))
    return f"C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"


def _in_words(
    row: StageRow, origin: Origin, before: Sequence[StageRow], behind: Sequence[StageRow], nodes: Sequence[NodeDetail]
) -> str:
    def named(rows: Sequence[StageRow]) -> str:
        return wording.names_text([row.ref for row in rows]) or "nothing else"

    ops = ", ".join(wording.printable(node.op_type) for node in nodes) or "unknown nodes"
    return (
        f"Graph around {wording.printable(origin.ref)}: it reads {named(before) if before else 'the inputs of the model'}; "
        f"PyTorch computes {wording.printable(row.type)}, ONNX {ops}; read by {named(behind)}."
    )

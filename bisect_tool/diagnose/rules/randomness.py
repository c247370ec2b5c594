"""A stage that differs from itself when it runs twice (``BD403``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bisect_tool.diagnose.calls import Edit, Node, Step
from bisect_tool.diagnose.causes import CHANCE
from bisect_tool.diagnose.rules.facts import Clue, Facts
from bisect_tool.diagnose.rules.training import drops
from bisect_tool.diagnose.trial import Trial
from bisect_tool.metrics import relative_error

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_SUMS = {"Add", "Sub", "Mul"}


def look(facts: Facts) -> Iterator[Trial | Clue]:
    sources = [node for node in facts.stage if is_random(node)]
    both = facts.twice()
    if both is None or both[0].dtype.kind not in "fiubV":
        return
    apart = relative_error(*both)
    if apart == 0:
        yield Clue(CHANCE, ("run twice, the stage gives the same bits",), speaks_for=False)
        return
    by = f"; random nodes: {', '.join(f'{n.op} {n.name}' for n in sources[:3])}" if sources else ""
    yield Clue(
        CHANCE,
        (f"run twice on the same inputs, the graph's stage differs by {apart:.1e}{by}",),
        "make the random numbers an input of the model, or leave them out of what is exported",
        strong=bool(sources) or apart > 1e-4,
    )
    for source in sources:
        yield from _left_out(source, facts.stage)


def is_random(node: Node) -> bool:
    return node.op in RANDOM or (node.op == "Dropout" and drops(node))


def _left_out(source: Node, stage: Sequence[Node]) -> Iterator[Trial]:
    """What reads the random numbers hands on its other operand, up to a few nodes behind."""
    random = {source.output}
    for node in stage:
        reads = [name for name in node.inputs if name in random]
        if not reads:
            continue
        others = [name for name in node.inputs if name and name not in random]
        computed = [name for place, name in enumerate(node.inputs) if name in others and place not in node.constants]
        if node.op in _SUMS and computed and len(node.inputs) == 2:
            text = f"{source.op} {source.name} puts random numbers into {node.op} {node.name}, which PyTorch has not"
            remedy = "export in eval mode, or leave the noise out of forward"
            step = Step("Identity", (computed[0],), {})
            yield Trial(CHANCE, source.name, text, remedy, Edit(node.output, (step,)))
            return
        # Scaled, cast or compared first.
        random.update(node.outputs)

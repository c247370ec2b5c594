"""What was tried for the origins, as diagnoses and as a ledger of everything that ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bisect_tool.diagnose.causes import (
    ATTRIBUTE,
    BAKED,
    CHANCE,
    CONSTANT,
    EXTRA,
    INPUTS,
    LAYOUT,
    MISSING,
    OPERANDS,
    OPERATOR,
    PLACEMENT,
    RUNTIME,
    TITLES,
    UNKNOWN,
    WEIGHT,
)
from bisect_tool.diagnose.otherwise import Change
from bisect_tool.diagnose.rules.facts import Clue
from bisect_tool.diagnose.trying import Outcome, Tried
from bisect_tool.graph_names import without_iterations
from bisect_tool.records import Diagnosis, LedgerEntry, Origin, RuledOut, StageRef, TrialConclusion


def diagnoses(
    origins: Sequence[Origin], outcomes: Mapping[tuple[StageRef, str], Outcome], *, has_copies: bool = False
) -> tuple[Diagnosis, ...]:
    """One diagnosis for each cause, in the order of the origins; one node that spoils several stages is told once.

    Args:
        origins: in causal order.
        outcomes: by the origin's stage and configuration; origins that are not in it were not looked into.
        has_copies: of a node in a body there is one for each time that it ran, and its name says so.
    """
    found: dict[tuple[str, str], Diagnosis] = {}
    same: dict[tuple[str, str], list[Origin]] = {}
    missing: dict[int, tuple[str, str]] = {}
    for origin in origins:
        outcome = outcomes.get((origin.ref, origin.config))
        about = None if outcome is None or outcome.cause is None else outcome.cause.trial.about
        if outcome is not None and about is not None:
            missing.setdefault(about, _key(origin, outcome, has_copies))
    for origin in origins:
        outcome = outcomes.get((origin.ref, origin.config))
        if outcome is None:
            continue
        key = _key(origin, outcome, has_copies)
        # What one call lacks shows wherever its result is read, also where no single change of the reader mends it.
        lacking = [missing[call] for call in sorted(outcome.calls & missing.keys())]
        if key[0] == UNKNOWN and lacking and lacking[0] != key:
            key = lacking[0]
        same.setdefault(key, []).append(origin)
        if key == _key(origin, outcome, has_copies):
            found.setdefault(key, diagnosis_of(origin, outcome))
    told = [_also(each, same[key]) for key, each in found.items()]
    return _few_weights(told)


def _key(origin: Origin, outcome: Outcome, has_copies: bool) -> tuple[str, str]:
    """What makes two diagnoses one."""
    cause = outcome.cause
    if cause is None:
        return UNKNOWN, f"{origin.ref} {origin.config}"
    trial = cause.trial
    if trial.about is not None:
        return trial.code, f"call {trial.about}"
    thing = trial.thing or trial.text
    # A node in a body is one node of the file, however often it runs.
    return trial.code, without_iterations(thing) if has_copies else thing


def _also(diagnosis: Diagnosis, origins: Sequence[Origin]) -> Diagnosis:
    """One cause, and the other origins that it shows in."""
    others = [str(origin.ref) for origin in origins if origin.ref != diagnosis.origin]
    if not others or diagnosis.code == UNKNOWN:
        return diagnosis
    more = f" and {len(others) - MOST_WEIGHTS} more" if len(others) > MOST_WEIGHTS else ""
    line = f"it shows in {', '.join(others[:MOST_WEIGHTS])}{more} too"
    return replace(diagnosis, evidence=(*diagnosis.evidence, line))


MAY_BE_BAKED = frozenset([CONSTANT, OPERATOR, MISSING, EXTRA, OPERANDS, UNKNOWN])
"""Causes behind which a number or a branch may stand that tracing fixed."""


def chance(text: str) -> Diagnosis:
    """PyTorch's side differs from itself; ``text`` says where."""
    return Diagnosis(
        code=CHANCE,
        title=TITLES[CHANCE],
        evidence=(f"PyTorch's side, run twice on the same inputs: {text}",),
        remedy="make the random numbers an input of the model, seed them in forward, or leave them out (eval mode)",
        remedy_verified=None,
        cost=None,
    )


def placement(misplaced: Mapping[str, str]) -> tuple[Diagnosis, ...]:
    """Configurations whose nodes did not run where they were asked to.

    Args:
        misplaced: what ran elsewhere, by name of the configuration.
    """
    if not misplaced:
        return ()
    found = Diagnosis(
        code=PLACEMENT,
        title=TITLES[PLACEMENT],
        evidence=tuple(f"{name}: {text}" for name, text in misplaced.items()),
        remedy="install what the provider needs, and look at the session's log for what it left behind",
        remedy_verified=None,
        cost=None,
    )
    return (found,)


def by_clue(origin: Origin, clue: Clue) -> Diagnosis:
    """What was seen at an origin where nothing can be tried."""
    return Diagnosis(
        code=clue.code,
        title=TITLES[clue.code],
        evidence=(*clue.text, "not certain: on PyTorch's side nothing is tried"),
        remedy=clue.remedy,
        remedy_verified=None,
        cost=None,
        origin=origin.ref,
        error_before=origin.local_rel_l2,
    )


def with_order(found: Sequence[Diagnosis], order: Diagnosis | None) -> list[Diagnosis]:
    """An order of the inputs that mends everything comes first, and leaves nothing unknown."""
    if order is None:
        return list(found)
    return [order, *(each for each in found if each.code != UNKNOWN)]


def may_be_order(found: Sequence[Diagnosis]) -> bool:
    """Whether another order of the inputs could be behind what was found."""
    turned = (EXTRA, LAYOUT, OPERANDS)
    return any(each.remedy_verified is not True or each.code in turned for each in found)


def no_order(count: int) -> RuledOut:
    orders = f"{count} other orders" if count > 1 else "the one other order"
    return RuledOut(INPUTS, TITLES[INPUTS], (f"{orders} of inputs and channels: the outputs are not PyTorch's",))


def not_baked(count: int) -> RuledOut:
    return RuledOut(BAKED, TITLES[BAKED], (f"on {count} other inputs no number or branch at the origins is another",))


def no_chance() -> RuledOut:
    return RuledOut(CHANCE, "PyTorch differs from itself", ("run twice, it gives the same",))


def runtime_ruled_out(origins: Sequence[Origin]) -> list[RuledOut]:
    """Where another runner, given the same nodes and values, makes what the judged one made of them."""
    agreeing = [origin for origin in origins if origin.witness is not None and origin.witness.says == "export"]
    if not agreeing or len(agreeing) < sum(origin.witness is not None for origin in origins):
        return []
    runner = agreeing[0].witness.runner if agreeing[0].witness is not None else ""
    return [RuledOut(RUNTIME, TITLES[RUNTIME], (f"{runner} gives the graph's value too",))]


MOST_WEIGHTS = 3
"""Weights that are told one by one; more of them are another checkpoint rather than so many faults."""


def _few_weights(found: list[Diagnosis]) -> tuple[Diagnosis, ...]:
    weights = [each for each in found if each.code == WEIGHT]
    if len(weights) <= MOST_WEIGHTS:
        return tuple(found)
    first, others = weights[0], weights[1:]
    names = ", ".join(str(each.origin) for each in others[:MOST_WEIGHTS])
    more = f" and {len(others) - MOST_WEIGHTS} more" if len(others) > MOST_WEIGHTS else ""
    line = f"weights of {len(others)} more origins differ too ({names}{more}): another checkpoint?"
    told = replace(first, evidence=(*first.evidence, line))
    return tuple(told if each is first else each for each in found if each is first or each not in others)


def diagnosis_of(origin: Origin, outcome: Outcome) -> Diagnosis:
    """What trying showed for one origin."""
    where = f"{origin.ref} under {origin.config}"
    count = len(outcome.tried)
    if outcome.cause is not None:
        cause = outcome.cause
        assert cause.error is not None
        without = sum(not each.mends for each in outcome.tried)
        others = f"; {without} other change{'s' if without > 1 else ''} did not" if without else ""
        also = next((each for each in outcome.tried if each.mends and each is not cause), None)
        if _runtime_is_off(origin) and cause.trial.code in _OF_THE_GRAPH:
            # The same nodes give PyTorch's value elsewhere: a change of them is a way round, and no cause.
            return Diagnosis(
                code=RUNTIME,
                title=TITLES[RUNTIME],
                evidence=(
                    _witnessed(origin),
                    *_seen(outcome),
                    f"a way round, tried in {where}: {cause.trial.remedy} ({cause.trial.node}); the local error falls from "
                    f"{outcome.before:.1e} to {cause.error:.1e}{others}",
                ),
                remedy=f"report it with the replay folder; until then: {cause.trial.remedy} ({cause.trial.node})",
                remedy_verified=True,
                cost=outcome.cost,
                origin=origin.ref,
                error_before=outcome.before,
                error_after=cause.error,
            )
        return Diagnosis(
            code=cause.trial.code,
            title=TITLES[cause.trial.code],
            evidence=(
                cause.trial.text,
                f"tried in {where}: {_falls(outcome, cause.error)}{others}",
                *([f"this would mend it too: {also.trial.text}"] if also is not None else []),
                *_seen(outcome, cause.trial.text, besides=(cause.trial.code, cause.trial.node)),
            ),
            remedy=cause.trial.remedy,
            remedy_verified=True if cause.trial.certain else None,
            cost=outcome.cost,
            origin=origin.ref,
            error_before=outcome.before,
            error_after=cause.error,
        )
    ended = "" if outcome.complete else ", then time or number of trials ended it"
    tried = "1 change was" if count == 1 else f"{count} changes were"
    evidence = [f"{tried} tried in {where}{ended}: none leaves only rounding of {outcome.before:.1e}"]
    error = None
    if outcome.partly is not None:
        error = outcome.partly.error
        evidence.append(f"nearest: {outcome.partly.trial.text}; {error:.1e} is left then")
    code, remedy = UNKNOWN, "look at the nodes named above beside PyTorch's line; the report has what was ruled out"
    strong = next((clue for clue in outcome.clues if clue.speaks_for and clue.strong), None)
    if strong is not None:
        code, remedy = strong.code, strong.remedy or remedy
        evidence = [*strong.text, *_seen(outcome, *strong.text), f"not certain: {evidence[0]}", *evidence[1:]]
        evidence += [_otherwise(*outcome.otherwise)] if outcome.otherwise is not None else []
        evidence += [_witnessed(origin)] if _runtime_is_off(origin) else []
    elif outcome.otherwise is not None:
        change = outcome.otherwise[0]
        code, remedy = change.code, change.remedy
        evidence = [_otherwise(*outcome.otherwise), *_seen(outcome), *evidence]
    elif _runtime_is_off(origin):
        code = RUNTIME
        evidence = [_witnessed(origin), *_seen(outcome), *evidence]
        remedy = "report it with the replay folder; until then another version, provider or form of these nodes"
    else:
        evidence += _seen(outcome)
    return Diagnosis(
        code=code,
        title=TITLES[code],
        evidence=tuple(evidence),
        remedy=remedy,
        remedy_verified=None,
        cost=None,
        origin=origin.ref,
        error_before=outcome.before,
        error_after=error,
    )


def _falls(outcome: Outcome, error: float) -> str:
    """What becomes of the local error."""
    if outcome.shapes is not None:
        have, should = (list(each) for each in outcome.shapes)
        return f"the result has PyTorch's shape {should} then, in place of {have}, and an error of {error:.1e}"
    return f"the local error falls from {outcome.before:.1e} to {error:.1e}"


_OF_THE_GRAPH = frozenset([ATTRIBUTE, OPERATOR, MISSING, EXTRA, OPERANDS, CONSTANT])
"""Causes that say that the graph is wrong."""


def _runtime_is_off(origin: Origin) -> bool:
    return origin.witness is not None and origin.witness.says == "runtime"


def _witnessed(origin: Origin) -> str:
    assert origin.witness is not None
    name = f"{origin.witness.runner} {origin.witness.version}"
    return f"{name} gives PyTorch's value for the same nodes and inputs"


def _otherwise(change: Change, apart: float) -> str:
    """The graph does what PyTorch would do with one thing changed."""
    return f"ONNX's value is what PyTorch gives {change.text}: relative L2 {apart:.1e}"


def _seen(outcome: Outcome, *told: str, besides: tuple[str, str] | None = None) -> list[str]:
    """What rules saw that speaks for a cause, without what was told; ``besides``: code and node that need no more words."""
    clues = [clue for clue in outcome.clues if clue.speaks_for and (clue.code, clue.node) != besides]
    lines = [line for clue in clues for line in clue.text]
    return [line for line in dict.fromkeys(lines) if not any(line in other for other in told)]


def ledger(origins: Sequence[Origin], outcomes: Mapping[tuple[StageRef, str], Outcome]) -> tuple[LedgerEntry, ...]:
    """Everything that was tried, in the order in which it ran."""
    entries = []
    for origin in origins:
        outcome = outcomes.get((origin.ref, origin.config))
        for each in outcome.tried if outcome is not None else ():
            assert outcome is not None
            entries.append(
                LedgerEntry(
                    ref=origin.ref,
                    config=origin.config,
                    code=each.trial.code,
                    node=each.trial.node,
                    change=each.trial.text,
                    error_before=outcome.before,
                    error_after=each.error,
                    conclusion=_conclusion(each, outcome),
                )
            )
        if outcome is not None and outcome.otherwise is not None:
            change, apart = outcome.otherwise
            text = f"PyTorch {change.text}, beside ONNX's value"
            entries.append(
                LedgerEntry(origin.ref, origin.config, change.code, "", text, outcome.before, apart, "cause")
            )
        entries += [_seen_entry(origin, outcome, clue) for clue in (outcome.clues if outcome is not None else ())]
    return tuple(entries)


def _seen_entry(origin: Origin, outcome: Outcome | None, clue: Clue) -> LedgerEntry:
    """What a rule saw; of what it speaks for a trial may have more to say."""
    assert outcome is not None
    return LedgerEntry(
        ref=origin.ref,
        config=origin.config,
        code=clue.code,
        node=clue.node,
        change="; ".join(clue.text),
        error_before=outcome.before,
        error_after=None,
        conclusion="ruled out" if not clue.speaks_for else "no answer" if outcome.cause is None else "contributes",
        tried=False,
    )


def _conclusion(tried: Tried, outcome: Outcome) -> TrialConclusion:
    if tried.error is None:
        return "no answer"
    if tried is outcome.cause:
        return "cause" if tried.trial.certain else "contributes"
    return "contributes" if tried is outcome.partly or tried.mends else "ruled out"

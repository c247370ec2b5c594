"""What ``verify`` asks of final outputs beside their errors: the same classes, and numbers of the user's own."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bisect_tool.agreement import DEFAULT_K, agreement
from bisect_tool.errors import BisectError
from bisect_tool.records import Agreement, ConfigRun, Judgement, OutputResult, Report, UserMetric
from bisect_tool.user_functions import find_function

Array = NDArray[Any]
Function = Callable[[dict[str, Array], dict[str, Array]], Any]
"""From the final outputs of PyTorch and of ONNX Runtime, by their keys as text, to a number, or numbers by name."""

AGREEMENTS = ("argmax", "top_k")
"""Names of what is known of classes; a limit on them is the least that passes."""

_LIMIT = re.compile(r"\s*(?P<name>[^<>=]+?)\s*(?P<sign><=|>=|=)\s*(?P<value>\S+)\s*")
_AXIS = re.compile(r"(?:(?P<output>.+)=)?(?P<axis>-?\d+|none)")


@dataclass(frozen=True, slots=True)
class Limit:
    """On one number. ``least``: it may be no smaller; ``False``: no larger; ``None``: as the number is by its nature."""

    name: str
    value: float
    least: bool | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of outputs.

    Attributes:
        k: best classes that are compared.
        axes: of the classes, by output; ``""``: of all outputs that are not named; ``None``: the output has none.
        metric: a function of the user's.
        source: what it is called where it was found.
        limits: on what it gives, and on :data:`AGREEMENTS`.
    """

    k: int = DEFAULT_K
    axes: Mapping[str, int | None] = field(default_factory=dict)
    metric: Function | None = None
    source: str = ""
    limits: tuple[Limit, ...] = ()


def make_questions(
    k: int = DEFAULT_K,
    class_axes: Sequence[str] = (),
    metric: str | Function | None = None,
    limits: Sequence[str] | Mapping[str, float | str] = (),
) -> Questions:
    """Questions from what the command line, or a caller, says.

    Args:
        k: best classes that are compared, 1 or more.
        class_axes: ``AXIS``, ``OUTPUT=AXIS`` or ``OUTPUT=none``.
        metric: ``module:function``, or the function itself.
        limits: ``NAME=VALUE``, ``NAME<=VALUE`` or ``NAME>=VALUE``; or a mapping of names to values, or to such texts
            as ``">= 0.9"``.

    Raises:
        BisectError: one of them is of no such form, or the function can't be found.
    """
    if k < 1:
        raise BisectError(f"--top-k {k}: at least one class", hint="for example --top-k 5")
    texts = limit_texts(limits) if isinstance(limits, Mapping) else limits
    found = tuple(map(parse_limit, texts))
    for name in {limit.name for limit in found}:
        if sum(limit.name == name for limit in found) > 1:
            raise BisectError(f"--metric-limit {name}: given twice", hint="a number has one limit")
    own = [limit.name for limit in found if limit.name not in AGREEMENTS]
    if own and metric is None:
        raise BisectError(
            f"--metric-limit {own[0]}: nothing gives a number of that name",
            hint=f"add --metric module:function; without one there are {' and '.join(AGREEMENTS)} "
            "(limits are also read from [metrics] of the table)",
        )
    source = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric") if metric else ""
    function = find_function(metric, "--metric") if isinstance(metric, str) else metric
    return Questions(k, dict(map(_axis, class_axes)), function, source, found)


def limit_texts(limits: Mapping[str, float | str]) -> list[str]:
    """Limits by name as the command line writes them."""
    return [
        f"{name}{limit}" if isinstance(limit, str) else f"{name}={float(limit)!r}" for name, limit in limits.items()
    ]


def with_table(texts: Sequence[str], metrics: Mapping[str, float | str]) -> list[str]:
    """The limits of a table, those of the command line in the place of its own."""
    given = {parse_limit(text).name for text in texts}
    return [*texts, *limit_texts({name: limit for name, limit in metrics.items() if name not in given})]


def parse_limit(text: str) -> Limit:
    """``NAME=VALUE``: the most that passes, of ``argmax`` and ``top_k`` the least; ``NAME<=VALUE``, ``NAME>=VALUE``.

    Raises:
        BisectError: of no such form, or the value is no finite number.
    """
    match = _LIMIT.fullmatch(text)
    try:
        value = float(match["value"]) if match is not None else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise BisectError(
            f"--metric-limit {text!r}: not of the form NAME=VALUE",
            hint="for example --metric-limit argmax=0.99 or --metric-limit 'map>=0.4'",
        )
    return Limit(match["name"], value, {"<=": False, ">=": True, "=": None}[match["sign"]])


def _axis(text: str) -> tuple[str, int | None]:
    match = _AXIS.fullmatch(text.strip())
    if match is None:
        raise BisectError(
            f"--class-axis {text!r}: not of the form AXIS, OUTPUT=AXIS or OUTPUT=none",
            hint="for example --class-axis 1, or --class-axis logits=-1",
        )
    axis = match["axis"]
    return match["output"] or "", None if axis == "none" else int(axis)


@dataclass(slots=True)
class Outputs:
    """Final outputs of both sides by configuration, while a comparison runs.

    ``keep`` is the hook of :class:`bisect_tool.pipeline.options.Options`.
    """

    by_config: dict[str, tuple[dict[str, Array], dict[str, Array]]] = field(default_factory=dict)

    def keep(self, config: str, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> None:
        self.by_config[config] = dict(expected), dict(actual)


def answered(report: Report, outputs: Outputs, questions: Questions) -> Report:
    """The report with the answers, and with a verdict that rests on them too.

    Only configurations that count are asked. A number over its limit is a divergence.

    Args:
        report: of the comparison.
        outputs: that it left.
        questions: what to ask.

    Raises:
        BisectError: the user's function raises or gives no numbers, or a limit, an axis or an output is named that
            there is not.
    """
    runs: list[ConfigRun] = []
    metrics: list[UserMetric] = []
    asked: list[ConfigRun] = []
    for run in report.configs:
        sides = outputs.by_config.get(run.name)
        if run.gating and sides is not None:
            run = replace(run, outputs=tuple(_with_agreement(out, *sides, questions) for out in run.outputs))
            found = [*_agreements(run, questions), *_own(run, *sides, questions)]
            if run.status == "agrees" and any(each.judgement == "fail" for each in found):
                run = replace(run, status="diverges")
            metrics += found
            asked.append(run)
        runs.append(run)
    if asked and all(sides[0].keys() <= sides[1].keys() for sides in outputs.by_config.values()):
        ranks = {name: array.ndim for sides in outputs.by_config.values() for name, array in sides[0].items()}
        _check_names(metrics, ranks, questions)
    lines = [metric_line(each) for each in metrics if each.judgement == "fail"]
    verdict = report.verdict
    if lines:
        verdict = replace(verdict, status="diverges", summary=(*dict.fromkeys(lines), *verdict.summary))
    return replace(report, configs=tuple(runs), verdict=verdict, user_metrics=tuple(metrics))


def metric_line(metric: UserMetric) -> str:
    """``argmax 0.98 is under its limit 1 (ort-cpu-all)``."""
    if metric.limit is None:
        return f"{metric.name} {metric.value:g} ({metric.config})"
    if math.isnan(metric.value):
        return f"{metric.name} is not a number, its limit {metric.limit:g} ({metric.config})"
    if metric.judgement != "fail":
        where = "within"
    else:
        where = "under" if metric.least else "over"
    return f"{metric.name} {metric.value:g} is {where} its limit {metric.limit:g} ({metric.config})"


def _with_agreement(
    out: OutputResult, expected: Mapping[str, Array], actual: Mapping[str, Array], questions: Questions
) -> OutputResult:
    name = str(out.output)
    if name not in expected or name not in actual:
        return out
    axes, axis = questions.axes, None
    given = name if name in axes else "" if "" in axes else None
    if given is not None:
        axis = axes[given]
        if axis is None:
            return out
        rank = expected[name].ndim
        if not -rank <= axis < rank:
            if not given:  # meant for the others
                return out
            raise BisectError(
                f"--class-axis {name}={axis}: the output has {rank} dimensions", hint="axes are counted from 0"
            )
    return replace(out, agreement=agreement(expected[name], actual[name], questions.k, axis))


def _agreements(run: ConfigRun, questions: Questions) -> Iterator[UserMetric]:
    """What is known of classes, where a limit asks for it: the worst of all outputs."""
    for limit in questions.limits:
        if limit.name in AGREEMENTS:
            values = [_share(out.agreement, limit.name) for out in run.outputs if out.agreement is not None]
            known = [value for value in values if value is not None]
            if known:
                yield _judged(limit.name, "agreement", run, min(known), limit)


def _share(found: Agreement, name: str) -> float | None:
    if name == "argmax":
        return found.argmax
    # Where there are no more than k classes, all of them are among the best.
    return 1.0 if found.top_k is None and found.classes else found.top_k


def _own(
    run: ConfigRun, expected: Mapping[str, Array], actual: Mapping[str, Array], questions: Questions
) -> Iterator[UserMetric]:
    function = questions.metric
    # Without one side's output there is nothing to call it with; the verdict says so anyway.
    if function is None or expected.keys() - actual.keys():
        return
    limits = {limit.name: limit for limit in questions.limits}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            given = function(_plain(expected), _plain(actual))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        text = (str(error).splitlines() or [""])[0]
        raise BisectError(
            f"--metric {questions.source} raised {type(error).__name__}: {text}",
            hint="it is called with two dictionaries of numpy arrays, PyTorch's outputs and ONNX Runtime's: "
            + ", ".join(f"{name} {list(array.shape)}" for name, array in list(expected.items())[:4]),
        ) from error
    own = questions.source.rpartition(":")[2]
    for name, value in (given if isinstance(given, Mapping) else {own: given}).items():
        yield _judged(str(name), questions.source, run, _number(value, str(name), questions.source), limits.get(name))


def _plain(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Copies, in dtypes that numpy itself can compute with."""
    return {
        name: array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.isbuiltin == 2 else array.copy()
        for name, array in arrays.items()
    }


def _number(value: Any, name: str, source: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BisectError(
            f"--metric {source}: {name} is a {type(value).__name__}, not a number",
            hint="return a float, or a dictionary of floats by name",
        ) from error


def _judged(name: str, source: str, run: ConfigRun, value: float, limit: Limit | None) -> UserMetric:
    least = name in AGREEMENTS if limit is None or limit.least is None else limit.least
    judgement: Judgement = "not compared"
    if limit is not None:
        # NaN passes no limit.
        passes = value >= limit.value if least else value <= limit.value
        judgement = "pass" if passes else "fail"
    return UserMetric(name, source, run.name, value, None if limit is None else limit.value, least, judgement)


def _check_names(metrics: Sequence[UserMetric], ranks: Mapping[str, int], questions: Questions) -> None:
    """Refuses limits and axes that nothing answers to: they would seem to be watched, and are not.

    ``ranks``: numbers of dimensions, by output.
    """
    for name, axis in questions.axes.items():
        if name and name not in ranks:
            raise BisectError(
                f"--class-axis {name}: the model has no such output", hint=f"there are: {', '.join(sorted(ranks))}"
            )
        meant = [rank for output, rank in ranks.items() if output not in questions.axes]
        if not name and axis is not None and meant and not any(-rank <= axis < rank for rank in meant):
            raise BisectError(
                f"--class-axis {axis}: no output has that many dimensions, the most are {max(meant)}",
                hint="axes are counted from 0",
            )
    known = {each.name for each in metrics}
    for limit in questions.limits:
        if limit.name in known:
            continue
        if limit.name in AGREEMENTS:
            raise BisectError(
                f"--metric-limit {limit.name}: no output has classes to choose from",
                hint="name their axis: --class-axis 1",
            )
        raise BisectError(
            f"--metric-limit {limit.name}: {questions.source} gives no number of that name",
            hint=f"it gives: {', '.join(sorted(known - set(AGREEMENTS))) or 'none'}",
        )

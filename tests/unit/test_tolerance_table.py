"""``tolerance_table``: what is written is read back, damaged files are refused, and so are tables of another model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bisect_tool.calibration.tolerance_table import (
    Calibration,
    Fingerprint,
    Hardware,
    MetricLimit,
    StageLimits,
    ToleranceTable,
    differences,
    kind_of_stage,
    read_table,
    refuse_other_model,
    round_up,
    table_text,
    write_table,
)
from bisect_tool.errors import EXIT_USAGE, BisectError
from bisect_tool.records import StageRef

HERE = "cpu x86_64 avx2"


def table(**changes: object) -> ToleranceTable:
    """Two stages of a small model; the second one is not always there, and its second output has a name."""
    limit = MetricLimit(3e-6, 4e-7, 9e-7, 1e-6, 1.1e-6, 1.2e-7, {HERE: 2.5e-6})
    stages = (
        StageLimits("conv", 0, 0, kind_of_stage("Conv2d", "float32", 4), 20, {"rel_l2": limit, "max_abs": limit}),
        StageLimits('odd "name"\x7f', 1, "boxes", kind_of_stage("Linear", "float32", 2), 12, {"local_rel_l2": limit}),
    )
    modules = {
        "": "Net",
        "conv": "Conv2d(weight float32[8, 3, 3, 3])",
        'odd "name"\x7f': "Linear(weight float32[4, 8])",
    }
    made = ToleranceTable(
        Calibration(0.01, 20, 140, "leaf", "2026-01-02T03:04:05Z", "0.8", ("float64", "threads"), "extrapolated", 4.5),
        Fingerprint(modules, {stage.ref: stage.kind for stage in stages}, {"inputs": "x float32 4-d"}),
        (Hardware(HERE, 20, 140, "extrapolated", 4.4),),
        stages,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "made",
    [
        table(),
        table(hardware=(), fingerprint=replace(table().fingerprint, graph={})),
        table(calibration=replace(table().calibration, rate_bound=0.03, tail="measured", accepted=("tf32",))),
    ],
)
def test_reading_gives_what_was_written(made: ToleranceTable, tmp_path: Path) -> None:
    """Names with quotes and control characters, named outputs, limits by hardware: all come back."""
    path = tmp_path / "deep" / "tolerances.toml"
    write_table(path, made)
    assert made == read_table(path)
    assert [path] == list(path.parent.iterdir())


def test_a_table_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    """The old file stays as it is; ``force`` replaces it."""
    path = tmp_path / "tolerances.toml"
    path.write_text("mine")
    with pytest.raises(BisectError, match="exists and is not overwritten") as caught:
        write_table(path, table())
    assert (EXIT_USAGE, "mine") == (caught.value.exit_code, path.read_text())
    write_table(path, table(), force=True)
    assert table() == read_table(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder, and a folder below a file; nothing is left lying about."""
    with pytest.raises(BisectError, match="a folder"):
        write_table(tmp_path, table())
    (tmp_path / "file").write_text("")
    with pytest.raises(BisectError, match="cannot be written"):
        write_table(tmp_path / "file" / "t.toml", table())
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("schema_version = 1", "schema_version = 2", "schema_version is 2"),
        ("false_alarm = 0.01", "", r"\[calibration\]: false_alarm is missing"),
        ("false_alarm = 0.01", "false_alarm = 1.0", "not between 0 and 1"),
        ("samples = 20", 'samples = "many"', "samples is 'many', of the wrong kind"),
        ("limit = 3e-06", "limit = inf", "a limit is a finite number"),
        ("limit = 3e-06", "limit = nan", "a limit is a finite number"),
        ("limit = 3e-06", "limit = -1.0", "a limit is a finite number"),
        (f'"{HERE}" = 2.5e-06', f'"{HERE}" = inf', f"limit inf on {HERE}"),
        ("limit = 3e-06", "limit = true", "limit is True, and not a number"),
        ('tail = "extrapolated"', 'tail = "sure"', "tail is 'sure', none of measured"),
        ("float32[8, 3, 3, 3]", "float32[9, 3, 3, 3]", "architecture is sha256:.* it was edited"),
        ("Conv2d float32 4-d", "Conv2d float32 3-d", "stages is sha256:.* it was edited"),
        ('stage = "conv"', 'stage = "odd \\"name\\"\\u007f"\n', "stages is sha256"),
        ("output = 0", "output = 1.5", "output is 1.5"),
        ("[calibration]", "[calibration", "not valid TOML"),
    ],
)
def test_a_damaged_table_is_refused(before: str, after: str, said: str, tmp_path: Path) -> None:
    """The file, the place and the reason are named."""
    text = table_text(table())
    assert before in text
    path = tmp_path / "tolerances.toml"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(BisectError, match=said) as caught:
        read_table(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_stage_must_not_be_there_twice(tmp_path: Path) -> None:
    """As it is after a careless merge of two files."""
    text = table_text(table())
    first = re.search(r"\[\[stage\]\]\nstage = \"conv\".*?\n\n", text, re.DOTALL)
    assert first is not None
    (tmp_path / "t.toml").write_text(text + "\n" + first.group(), encoding="utf-8")
    with pytest.raises(BisectError, match="stage conv is there twice"):
        read_table(tmp_path / "t.toml")


def test_no_file(tmp_path: Path) -> None:
    """A missing table is the user's to mend."""
    with pytest.raises(BisectError, match="cannot be read") as caught:
        read_table(tmp_path / "none.toml")
    assert "to make one: bisect-tool calibrate" == caught.value.hint
    assert "bisect-tool calibrate" in (caught.value.hint or "")


def test_limits_may_be_edited(tmp_path: Path) -> None:
    """A team may allow a stage more."""
    path = tmp_path / "tolerances.toml"
    path.write_text(table_text(table()).replace("limit = 3e-06", "limit = 5e-05", 1), encoding="utf-8")
    assert 5e-5 == read_table(path).stages[0].metrics["rel_l2"].limit


def test_hardware_that_is_not_in_the_table_gets_the_pooled_limit() -> None:
    """A kind that was measured has its own."""
    limit = table().stages[0].metrics["rel_l2"]
    assert (2.5e-6, 3e-6, 3e-6) == (limit.limit_on(HERE), limit.limit_on("cpu aarch64"), limit.limit_on(None))


# Which model a table is for


def test_the_same_model_is_no_difference() -> None:
    """Sizes of the sample and weights are in no fingerprint; a graph need not be there."""
    made = table()
    assert [] == differences(made, made.fingerprint)
    assert [] == differences(made, replace(made.fingerprint, graph={}))


def test_differences_are_named() -> None:
    """Modules first; what follows from them is not told again."""
    made = table()
    known = made.fingerprint.modules
    other = replace(made.fingerprint, modules={**known, "conv": "Conv2d(weight float32[9, 3, 3, 3])"}, stages={})
    assert [
        "module conv: Conv2d(weight float32[8, 3, 3, 3]) in the table, Conv2d(weight float32[9, 3, 3, 3]) here"
    ] == differences(made, other)
    more = replace(made.fingerprint, modules={**known, "extra": "ReLU"})
    assert ["module extra: ReLU is not in the table"] == differences(made, more)
    fewer = replace(made.fingerprint, modules={"": "Net"})
    assert 2 == len(differences(made, fewer))


def test_stages_differ() -> None:
    """Another ``forward`` of the same modules is another model; what is not always computed may be missing."""
    made = table()
    stages = dict(made.fingerprint.stages)
    sometimes = StageRef('odd "name"\x7f', 1, "boxes")
    without = {ref: kind for ref, kind in stages.items() if ref != sometimes}
    assert [] == differences(made, replace(made.fingerprint, stages=without))
    longer = {**stages, StageRef("conv", 1, 0): "Conv2d float32 4-d"}
    assert [] == differences(made, replace(made.fingerprint, stages=longer))
    always = {ref: kind for ref, kind in stages.items() if ref == sometimes}
    assert ["stage conv: Conv2d float32 4-d is only in the table"] == differences(
        made, replace(made.fingerprint, stages=always)
    )
    new = {**stages, StageRef("add#0", 0, 0): "add float32 4-d"}
    assert ["stage add#0: add float32 4-d is not in the table"] == differences(
        made, replace(made.fingerprint, stages=new)
    )


def test_another_graph_is_refused_with_what_differs() -> None:
    """With exit code 2, and the first few differences."""
    made = table()
    refuse_other_model("t.toml", made, made.fingerprint)
    other = replace(made.fingerprint, graph={"inputs": "x float16 4-d"})
    with pytest.raises(
        BisectError, match="inputs of the graph: x float32 4-d in the table, x float16 4-d here"
    ) as caught:
        refuse_other_model("t.toml", made, other)
    assert EXIT_USAGE == caught.value.exit_code
    many = replace(made.fingerprint, modules={str(number): "ReLU" for number in range(9)})
    with pytest.raises(BisectError, match="and 7 more"):
        refuse_other_model("t.toml", made, many)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_rounding_never_lowers_a_limit(number: float) -> None:
    """And raises it by less than a thousandth."""
    assert number <= round_up(number) <= number * 1.0011
    assert len(repr(round_up(number)).split("e")[0].strip("0.").replace(".", "")) <= 4 or number > 1e4

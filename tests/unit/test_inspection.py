"""``inspect``: the text at 80 columns, the JSON under its schema, and what counts as enough."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import pytest
from report_samples import row
from rich.console import Console

from bisect_tool import store
from bisect_tool.errors import BisectError
from bisect_tool.inspection import (
    BoundOutput,
    FedInput,
    GraphFacts,
    Inspection,
    LevelCount,
    evidence_counts,
)
from bisect_tool.records import Alignment, Pair, StageRef, Unaligned
from bisect_tool.reporters.inspection import render, size_text

PACKAGE = Path(store.__file__).parent
SCHEMA = json.loads((PACKAGE / "inspection.schema.json").read_text(encoding="utf-8"))
FOLDED = "no value of the graph equals it; its node's value {} is that of a later stage: folded"


def sample() -> Inspection:
    """Five stages: two folded for one reason, one lost, one turned, one output."""
    rows = [
        row(0, "backbone.conv", "Conv2d", {}),
        row(1, "backbone.norm", "BatchNorm2d", {}),
        row(2, "neck.conv", "Conv2d", {}),
        row(3, "head.a_module_with_a_very_long_name_indeed", "Attention", {}),
        row(4, "head.out", "Linear", {}, role="output"),
    ]
    sources = ["src/package/with/many/folders/model.py:11", "model.py:12", None, "model.py:40", "model.py:41"]
    rows = [replace(item, source=source) for item, source in zip(rows, sources, strict=True)]
    refs = [item.ref for item in rows]
    pairs = (
        Pair(refs[1], "/backbone/conv/Conv_output_0", ("value", "scope")),
        Pair(refs[3], "/head/" + "attention/" * 8 + "Transpose_output_0", ("value", "permuted"), (1, 0, 2)),
        Pair(refs[4], "out", ("graph output", "value", "same tensor as head")),
    )
    unaligned = (
        Unaligned(refs[0], FOLDED.format("/backbone/conv/Conv_output_0"), False),
        Unaligned(refs[2], FOLDED.format("/neck/Mul_output_0"), False),
        Unaligned(StageRef("lost", 0, 0), "several values fit its scope and none fits by value: a, b", True),
    )
    return Inspection(
        case={"name": "detector", "command": "bisect-tool inspect model.py"},
        graph=GraphFacts(
            file="model.onnx",
            exporter="torchscript",
            producer="pytorch 2.13.0",
            ir_version=9,
            opsets={"ai.onnx": 20, "com.microsoft": 1},
            nodes=60,
            operators={"Conv": 40, "Relu": 19, "If": 1},
            weights=102,
            weight_bytes=21_900_000,
            functions=1,
            operators_with_bodies=("If",),
            quantized=0,
            dtype="float32",
        ),
        inputs=(
            FedInput("voxels", "float16", ("batch", "20", "4"), "points", (300, 20, 4), "float32"),
            FedInput("count", "int64", (), "count", (), None),
        ),
        outputs=(BoundOutput("boxes", "out"), BoundOutput(1, None)),
        alignment=Alignment(pairs, unaligned, ("/neck/Mul_output_0", "c"), stages=5, aligned=3, coverage=0.75),
        min_coverage=0.9,
        levels={"op": LevelCount(0, 0), "leaf": LevelCount(5, 3), "container": LevelCount(2, 2)},
        evidence=evidence_counts(rows, pairs),
        stages=tuple(rows),
        environment={"python": "3.11"},
        timings={"align": 0.25},
        notes=("a note",),
    )


def text_of(inspection: Inspection, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render(inspection, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_whole_text() -> None:
    """Graph, inputs, outputs, stages with evidence, coverage, and what is left over, one reason told once."""
    assert text_of(sample()) == (
        """\
graph     model.onnx, written by torchscript (pytorch 2.13.0)
opset     ai.onnx 20, com.microsoft 1; IR version 9, 1 local function
nodes     60: 40 Conv, 19 Relu, 1 If
bodies    in If
weights   102 initialisers, 21.9 MB, float32
quantised no
inputs    voxels (float16 batchx20x4) <- sample's points 300x20x4, converted
          from float32
          count (int64 scalar) <- sample's count
outputs   out -> model's output 'boxes'
          none -> model's output 1
note: a note

stage                               level   type         shape       source
backbone.conv                       leaf    Conv2d       1x64x28x28  model.py:11
    no value
backbone.norm                       leaf    BatchNorm2d  1x64x28x28  model.py:12
    = /backbone/conv/Conv_output_0  by value + scope
neck.conv                           leaf    Conv2d       1x64x28x28  -
    no value
head.a_module..ry_long_name_indeed  leaf    Attention    1x64x28x28  model.py:40
    = /head/attention/..tion/Transpose_output_0  by value + permuted; axes 1 0 2
head.out                            output  Linear       1x64x28x28  model.py:41
    = out  by graph output + value + same tensor

coverage  75.0 %: 3 of 4 stages that have a value; 2 have none. Under
          --min-coverage 0.9: a comparison would be inconclusive
          stages of the model with a value: leaf 3 of 5, container 2 of 2
found     1 by value + scope, 1 by value + permuted, 1 by graph output + value +
          same tensor

Without a value
  1 stage (counts against coverage): several values fit its scope and none fits
  by value: a, b
      lost
  2 stages (does not count): no value of the graph equals it; its node's value
  ... is that of a later stage: folded
      backbone.conv, neck.conv
  2 values of the graph stand for no stage: /neck/Mul_output_0, c
"""
    )


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_of_the_table_fit(width: int) -> None:
    """Names are shortened, evidence never: it says why the pair is believed."""
    text = text_of(sample(), width)
    table = text[text.index("stage ") : text.index("coverage ")]
    assert all(len(line) <= width for line in table.splitlines())
    if width >= 80:
        assert "by value + permuted; axes 1 0 2" in table


def test_json_fits_the_schema() -> None:
    """What is written is valid under the schema in the package."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = json.loads(store.inspection_text(sample()))
    jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)
    assert "inspection_version" == next(iter(data))
    assert 0.75 == data["alignment"]["coverage"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "more": 1}, SCHEMA)


def test_schema_shares_what_reports_have() -> None:
    """``alignment`` and ``stages`` are those of report.json, but that nothing was compared."""
    report = json.loads((PACKAGE / "report.schema.json").read_text(encoding="utf-8"))["$defs"]
    own = SCHEMA["$defs"]
    for name in ("number", "output", "ref", "alignment"):
        assert report[name] == own[name]
    assert report["stage"]["required"] == own["stage"]["required"]
    assert report["stage"]["properties"] | {"results": None} == own["stage"]["properties"] | {"results": None}


def test_documentation_names_every_key() -> None:
    """docs/inspect.md explains each key of an inspection that a report has not."""
    text = (PACKAGE.parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)(?:\[\])?`", text))
    for kind in (Inspection, GraphFacts, FedInput, BoundOutput, LevelCount):
        assert set() == {item.name for item in fields(kind)} - named


@pytest.mark.parametrize(
    ("aligned", "coverage", "enough"), [(3, 0.75, False), (3, 0.9, True), (0, None, False), (5, 1.0, True)]
)
def test_what_is_enough(aligned: int, coverage: float | None, enough: bool) -> None:
    """As for a run: at least the share that was asked for, and something at all."""
    found = sample()
    alignment = replace(found.alignment, aligned=aligned, coverage=coverage)
    assert enough is replace(found, alignment=alignment).enough


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    """A file that is there stays, unless ``force`` says otherwise; so does what lies beside it."""
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    file = store.write_inspection(sample(), tmp_path)
    file.write_text("old", encoding="utf-8")
    with pytest.raises(BisectError, match="already holds an inspection.json"):
        store.write_inspection(sample(), tmp_path)
    assert "old" == file.read_text(encoding="utf-8")
    store.write_inspection(sample(), tmp_path, force=True)
    assert store.inspection_text(sample()) == file.read_text(encoding="utf-8")
    assert {"mine.txt", "inspection.json"} == {path.name for path in tmp_path.iterdir()}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Told before the run."""
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(BisectError, match="is a file, not a folder"):
        store.check_inspection_folder(tmp_path / "taken")


@pytest.mark.parametrize(("size", "text"), [(0, "0 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes(size: float, text: str) -> None:
    """Decimal units, as disks have them."""
    assert text == size_text(int(size))

"""``store``: a report survives JSON, and a report folder is whole or not there."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import jsonschema
import numpy as np
import pytest
from report_samples import CASE, SAMPLES, bare, diverging, healthy, hostile, long

from bisect_tool import records, store
from bisect_tool.errors import EXIT_USAGE, BisectError

SCHEMA = json.loads((pathlib.Path(store.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))


def strict_loads(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", SAMPLES)
def test_json_round_trip_is_exact(name: str) -> None:
    """Report to text to report to JSON gives the same JSON, numbers to the last digit."""
    report = SAMPLES[name]()
    data = strict_loads(store.report_text(report))
    again = store.report_from_json(data)
    assert data == store.report_to_json(again)
    # repr compares every field, NaN included, which equals nothing; free-form maps may change their values' types
    assert repr(dataclasses.replace(report, environment=again.environment)) == repr(again)


def test_round_trip_keeps_types() -> None:
    """Tuples come back as tuples, records as records, and output keys as what they were."""
    report = diverging()
    again = store.report_from_json(strict_loads(store.report_text(report)))
    assert report.stages == again.stages
    assert report.verdict == again.verdict
    assert report.alignment == again.alignment
    assert report.configs[0].outputs == again.configs[0].outputs
    assert "logits" == again.alignment.unaligned[1].ref.output
    assert 0 == again.alignment.unaligned[0].ref.output


@pytest.mark.parametrize("name", SAMPLES)
def test_json_fits_the_schema(name: str) -> None:
    """Every report that is written is valid under the schema in the package."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(strict_loads(store.report_text(SAMPLES[name]())), SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("verdict", "status"), "fine"),
        (("verdict", "first_over_tolerance", "stage"), None),
        (("stages", 0, "results", "ort-off", "total", "rel_l2"), "NaN"),
        (("stages", 0, "results", "ort-off", "judgement"), "ok"),
        (("alignment", "coverage"), 1.5),
        (("stages", 0, "surplus"), 1),
    ],
)
def test_schema_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    """The schema is strict: wrong kinds, words and surplus keys are errors."""
    data: Any = store.report_to_json(diverging())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)


def test_schema_names_every_field() -> None:
    """The schema's keys are the dataclasses' fields, so that neither can change alone."""

    def resolve(schema: Any) -> Any:
        while "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        return resolve(schema["anyOf"][0]) if "anyOf" in schema and {"type": "null"} in schema["anyOf"] else schema

    def check(kind: Any, schema: Any, where: str) -> None:
        args = [arg for arg in get_args(kind) if arg is not type(None)]
        schema = resolve(schema)
        if dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            names = [field.name for field in dataclasses.fields(kind)]
            wanted = {part for name in names for part in (("stage", "call", "output") if name == "ref" else (name,))}
            assert wanted == set(schema["properties"]) == set(schema["required"]), where
            assert schema["additionalProperties"] is False, where
            for name in names:
                if name != "ref":
                    check(hints[name], schema["properties"][name], f"{where}.{name}")
        elif get_origin(kind) is tuple:
            check(args[0], schema["items"], f"{where}[]")
        elif isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
            if args[1] is not Any:
                check(args[1], schema["additionalProperties"], f"{where}{{}}")
        elif len(args) == 1 and get_origin(kind) is not None and dataclasses.is_dataclass(args[0]):
            check(args[0], schema, where)

    check(records.Report, SCHEMA, "report")


def test_contract_keys() -> None:
    """The keys that others read are where the contract says."""
    data = store.report_to_json(diverging())
    assert {"stage": "layer3.upsample", "call": 0, "output": 0, "config": "ort-off"} == data["verdict"][
        "first_over_tolerance"
    ]
    assert {"stage": "layer3.conv", "call": 0, "output": 0} == data["verdict"]["amplifiers"][0]
    assert {"stage", "call", "output", "reason", "in_graph"} == set(data["alignment"]["unaligned"][0])
    assert {"stage", "call", "output", "onnx_value", "evidence", "permutation"} == set(data["alignment"]["pairs"][0])
    assert 4.8e-2 == data["stages"][6]["results"]["ort-off"]["local"]["rel_l2"]
    assert data["stages"][6]["results"]["ort-all"]["local"] is None
    assert 1 == data["schema_version"]
    assert store.report_to_json(healthy())["verdict"]["first_over_tolerance"] is None


def test_nonfinite_numbers() -> None:
    """NaN and infinities are strings in JSON and numbers again in the report."""
    data = strict_loads(store.report_text(hostile()))
    totals = [row["results"]["[blue]ort"]["total"] for row in data["stages"]]
    assert "nan" == totals[1]["rel_l2"]
    assert "inf" == totals[2]["rel_l2"]
    assert "-inf" == totals[2]["sqnr_db"]
    again = [row.results["[blue]ort"].total for row in store.report_from_json(data).stages]
    assert math.isnan(again[1].rel_l2)
    assert math.inf == again[2].rel_l2
    assert -math.inf == again[2].sqnr_db


def test_a_stage_named_nan_stays_a_name() -> None:
    """Only numeric fields turn the words back into numbers."""
    row = dataclasses.replace(healthy().stages[0], stage="nan", output="inf")
    report = dataclasses.replace(healthy(), stages=(row,))
    again = store.report_from_json(strict_loads(store.report_text(report)))
    assert ("nan", "inf") == (again.stages[0].stage, again.stages[0].output)


def test_free_form_values_become_json() -> None:
    """Whatever the environment holds, the report can be written."""
    environment: dict[Any, Any] = {
        "path": pathlib.PurePosixPath("/a/b"),
        "size": np.int64(3),
        "scale": np.float32(0.5),
        "bad": [float("nan")],
        "set": {"b", "a"},
        "pair": (1, 2),
        3: object,
    }
    data = strict_loads(store.report_text(dataclasses.replace(bare(), environment=environment)))["environment"]
    assert "<class 'object'>" == data.pop("3")
    expected = {"path": "/a/b", "size": 3, "scale": 0.5, "bad": ["nan"], "set": ["a", "b"], "pair": [1, 2]}
    assert expected == data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 2, "schema_version is 2"),
        (("schema_version",), True, "expected an integer"),
        (("verdict", "status"), "fine", "verdict.status: expected one of 'agrees', 'diverges', 'inconclusive'"),
        (("stages", 0, "call"), 0.0, r"stages\[0\].call: expected an integer, found 0.0"),
        (("stages", 0, "shape"), "1x2", r"stages\[0\].shape: expected an array"),
        (("stages", 0, "output"), True, r"stages\[0\].output: expected int or str, found True"),
        (
            ("stages", 0, "results", "ort-off", "total", "rel_l2"),
            "big",
            r"stages\[0\].results\['ort-off'\].total.rel_l2: expected a number, found 'big'",
        ),
        (("configs", 0, "gating"), 1, r"configs\[0\].gating: expected true or false"),
        (("verdict", "surplus"), 1, "verdict holds an unknown key 'surplus'"),
        (("timings",), [], "timings: expected an object"),
    ],
)
def test_reading_names_what_is_wrong(path: tuple[str | int, ...], value: object, message: str) -> None:
    """A report that is not one is refused, with the place and the kind in the message."""
    data: Any = store.report_to_json(diverging())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BisectError, match=message) as caught:
        store.report_from_json(data)
    assert EXIT_USAGE == caught.value.exit_code


def test_reading_names_a_missing_key() -> None:
    """A key that is not there is named with its place, also one of the three of a stage's name."""
    data = store.report_to_json(diverging())
    del data["alignment"]["pairs"][1]["call"]
    with pytest.raises(BisectError, match=r"alignment.pairs\[1\] lacks the key 'call'"):
        store.report_from_json(data)


def test_older_reports_are_read() -> None:
    """Keys that were added within a schema version may be missing; what they mean is then not known."""
    data = store.report_to_json(diverging())
    for row in data["stages"]:
        for result in row["results"].values():
            del result["picture"]
    report = store.report_from_json(data)
    assert {None} == {each.picture for row in report.stages for each in row.results.values()}


# The folder


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_folder_is_written_and_read(tmp_path: pathlib.Path) -> None:
    """Text, bytes and functions become files; the report reads back from the folder and from its file."""
    target = tmp_path / "reports" / "ckpt"
    files: dict[str, store.FileContent] = {
        "index.html": "naïve \udcff\n",
        "amplification.png": b"\x89PNG",
        "replay/run.py": lambda path: path.write_text("pass"),
    }
    assert target == store.write_report_folder(healthy(), target, files=files)
    assert ["amplification.png", "index.html", "replay", "replay/run.py", "report.json"] == names(target)
    assert ["ckpt"] == names(target.parent)[:1]
    assert [target] == list(target.parent.iterdir())
    assert "naïve \\udcff\n".encode() == (target / "index.html").read_bytes()
    assert b"\x89PNG" == (target / "amplification.png").read_bytes()
    assert healthy() == store.read_report(target) == store.read_report(target / "report.json")


def test_folder_has_ordinary_permissions(tmp_path: pathlib.Path) -> None:
    """The folder is as readable as any other that the user makes."""
    (tmp_path / "plain").mkdir()
    store.write_report_folder(healthy(), tmp_path / "report")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "report").stat().st_mode


def test_an_existing_report_is_not_replaced(tmp_path: pathlib.Path) -> None:
    """Without force a second report is refused, with the remedy, and the first stays."""
    store.write_report_folder(healthy(), tmp_path / "r")
    with pytest.raises(BisectError, match="already holds a report") as caught:
        store.write_report_folder(diverging(), tmp_path / "r")
    assert EXIT_USAGE == caught.value.exit_code
    assert caught.value.hint is not None and "--force" in caught.value.hint
    assert "agrees" == store.read_report(tmp_path / "r").verdict.status


def test_a_folder_of_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    """A folder with files and no report is not taken for a report folder; an empty one is."""
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(BisectError, match="not empty and holds no report"):
        store.write_report_folder(healthy(), tmp_path)
    (tmp_path / "empty").mkdir()
    store.write_report_folder(healthy(), tmp_path / "empty")
    assert ["report.json"] == names(tmp_path / "empty")


def test_force_replaces_only_its_own_files(tmp_path: pathlib.Path) -> None:
    """With force old files of the tool go, new ones come, and the user's stay."""
    target = tmp_path / "r"
    store.write_report_folder(healthy(), target, files={"stages.csv": "old", "index.html": "old"})
    (target / "notes.md").write_text("mine")
    (target / "replay").mkdir()
    (target / "replay" / "mine.txt").write_text("mine")
    store.write_report_folder(diverging(), target, force=True, files={"index.html": "new", "replay/run.py": "new"})
    assert ["index.html", "notes.md", "replay", "replay/mine.txt", "replay/run.py", "report.json"] == names(target)
    assert "new" == (target / "index.html").read_text()
    assert "mine" == (target / "notes.md").read_text()
    assert "diverges" == store.read_report(target).verdict.status
    assert [target] == list(tmp_path.iterdir())


def test_force_writes_among_foreign_files(tmp_path: pathlib.Path) -> None:
    """With force a folder without a report is used as it is."""
    (tmp_path / "notes.md").write_text("mine")
    store.write_report_folder(healthy(), tmp_path, force=True)
    assert ["notes.md", "report.json"] == names(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("old", [False, True])
def test_interrupted_while_rendering(tmp_path: pathlib.Path, error: type[BaseException], old: bool) -> None:
    """When a file's writer is interrupted nothing new is left, and an old report is whole."""
    target = tmp_path / "r"
    if old:
        store.write_report_folder(healthy(), target, files={"index.html": "old"})

    def fail(path: pathlib.Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(error):
        store.write_report_folder(diverging(), target, force=True, files={"stages.csv": "new", "index.html": fail})
    if old:
        assert ["index.html", "report.json"] == names(target)
        assert "old" == (target / "index.html").read_text()
        assert healthy() == store.read_report(target)
    assert ([target] if old else []) == list(tmp_path.iterdir())


@pytest.mark.parametrize("step", range(1, 7))
def test_interrupted_while_replacing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """At whichever move the exchange is interrupted, the old report is put back as it was."""
    target = tmp_path / "r"
    old: dict[str, store.FileContent] = {"index.html": "old", "stages.csv": "old"}
    store.write_report_folder(healthy(), target, files=old)
    real, moves = os.replace, 0

    def replace(source: Any, destination: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == step:
            raise KeyboardInterrupt
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        store.write_report_folder(
            diverging(), target, force=True, files={"index.html": "new", "amplification.svg": "n"}
        )
    assert ["index.html", "report.json", "stages.csv"] == names(target)
    assert "old" == (target / "index.html").read_text()
    assert healthy() == store.read_report(target)


def test_report_json_comes_last(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are exchanged the folder has no report.json, so that half a report never looks whole."""
    target = tmp_path / "r"
    store.write_report_folder(healthy(), target, files={"index.html": "old"})
    real, seen = os.replace, []

    def replace(source: Any, destination: Any) -> None:
        real(source, destination)
        seen.append((target / "report.json").exists())

    monkeypatch.setattr(os, "replace", replace)
    store.write_report_folder(diverging(), target, force=True, files={"index.html": "new", "stages.csv": "new"})
    assert [False, False, False, False, True] == seen


def test_a_file_in_the_way(tmp_path: pathlib.Path) -> None:
    """A target that is a file, or a folder where a file must go, is refused and left alone."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BisectError, match="is a file, not a folder"):
        store.write_report_folder(healthy(), tmp_path / "file", force=True)
    (tmp_path / "r" / "index.html").mkdir(parents=True)
    (tmp_path / "r" / "index.html" / "mine.txt").write_text("mine")
    with pytest.raises(BisectError, match="index.html is a folder"):
        store.write_report_folder(healthy(), tmp_path / "r", force=True, files={"index.html": "new"})
    assert ["index.html", "index.html/mine.txt"] == names(tmp_path / "r")


def test_a_folder_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    """A file where a folder is wanted is named, before the run too."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BisectError, match="file/a/r cannot be made: .*file is a file, not a folder") as caught:
        store.check_report_folder(tmp_path / "file" / "a" / "r", force=True)
    assert EXIT_USAGE == caught.value.exit_code


def test_an_error_of_the_file_system_is_told() -> None:
    """It is an error for the user, with the folder named."""
    with pytest.raises(BisectError, match="cannot write the report to /proc/nothing/r") as caught:
        store.write_report_folder(healthy(), "/proc/nothing/r")
    assert EXIT_USAGE == caught.value.exit_code


@pytest.mark.parametrize("name", ["../up.txt", "/abs.txt", "report.json", ""])
def test_file_names_stay_inside(tmp_path: pathlib.Path, name: str) -> None:
    """No file is written outside the folder, and nobody replaces report.json."""
    with pytest.raises(ValueError, match="not a file of a report folder"):
        store.write_report_folder(healthy(), tmp_path / "r", files={name: "x"})
    assert [] == list(tmp_path.iterdir())


def test_check_before_the_run(tmp_path: pathlib.Path) -> None:
    """The refusal can be had without writing, and leaves no trace."""
    store.check_report_folder(tmp_path / "new")
    assert [] == list(tmp_path.iterdir())
    store.write_report_folder(healthy(), tmp_path / "r")
    with pytest.raises(BisectError, match="already holds a report"):
        store.check_report_folder(tmp_path / "r")
    store.check_report_folder(tmp_path / "r", force=True)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), ("{", "is not JSON"), ("[]", "expected an object")]
)
def test_unreadable_reports(tmp_path: pathlib.Path, content: str | None, message: str) -> None:
    """A missing, broken or foreign file is an error for the user."""
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(BisectError, match=message):
        store.read_report(tmp_path)


def test_long_report_is_exact() -> None:
    """Two hundred stages come back number for number."""
    assert long().stages == store.report_from_json(strict_loads(store.report_text(long()))).stages
    assert dict(CASE) == store.report_from_json(strict_loads(store.report_text(long()))).case


def test_documentation_names_every_key() -> None:
    """``docs/report.md`` explains each key that the schema allows."""
    document = pathlib.Path(store.__file__).parent.parent / "docs" / "report.md"
    named = set(re.findall(r"`([a-z0-9_]+)(?:\[\])?`", document.read_text(encoding="utf-8")))

    def keys(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return {key for item in schema for key in keys(item)}
        if not isinstance(schema, dict):
            return set()
        found = set(schema.get("properties", {})) if schema.get("type") == "object" else set()
        return found.union(*(keys(value) for value in schema.values()))

    assert set() == keys(SCHEMA) - named


def test_checked_in_sample_is_of_this_schema() -> None:
    """People read it before they run anything."""
    report = store.read_report(pathlib.Path(__file__).resolve().parents[2] / "reports" / "sample")
    assert "diverges" == report.verdict.status
    assert report.verdict.origins and report.verdict.origins[0].replay

"""Every example with both exporters agrees, and its report is complete."""

from __future__ import annotations

import json
from collections.abc import Callable

import jsonschema
import pytest
from commands import EXAMPLES, ROOT, Healthy

SCHEMA = json.loads((ROOT / "bisect_tool" / "report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(params=[(x, e) for x in EXAMPLES for e in ("dynamo", "torchscript")], ids="-".join, scope="module")
def run(request: pytest.FixtureRequest, healthy: Callable[[str, str], Healthy]) -> Healthy:
    """One example with one exporter."""
    return healthy(*request.param)


def test_example_agrees(run: Healthy) -> None:
    """An unchanged example exits 0 with the verdict `agrees`."""
    assert 0 == run.outcome.code, run.outcome.err
    assert "agrees" == run.outcome.report["verdict"]["status"]
    assert "" == run.outcome.err


def test_every_configuration_agrees(run: Healthy) -> None:
    """No gating configuration is left out of the agreement."""
    configs = {config["name"]: config["status"] for config in run.outcome.report["configs"] if config["gating"]}
    assert {"ort-cpu-off": "agrees", "ort-cpu-all": "agrees"} == configs


def test_coverage_is_complete(run: Healthy) -> None:
    """Every stage that has a value in the graph is aligned."""
    alignment = run.outcome.report["alignment"]
    assert 1.0 == alignment["coverage"]
    assert alignment["stages"] == alignment["aligned"] + len(alignment["unaligned"])


def test_folded_stages_are_listed_with_a_reason(run: Healthy) -> None:
    """Each stage without a pair is said to have no value in the graph, and why."""
    entries = run.outcome.report["alignment"]["unaligned"]
    # Both have BatchNorms behind convolutions.
    assert entries or run.example not in ("mobile", "centerpoint")
    for entry in entries:
        assert entry["in_graph"] is False, entry
        assert entry["reason"].strip(), entry


def test_report_folder_is_complete(run: Healthy) -> None:
    """The report folder holds its five files, none empty, and nothing else."""
    sizes = {path.name: path.stat().st_size for path in run.outcome.folder.iterdir()}
    assert {"report.json", "stages.csv", "amplification.png", "amplification.svg", "index.html"} == sizes.keys()
    assert all(sizes.values())


def test_report_fits_the_schema(run: Healthy) -> None:
    """report.json validates against the schema in the package."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    report = json.loads((run.outcome.folder / "report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_stdout_is_the_report(run: Healthy) -> None:
    """`--format json` prints what report.json holds."""
    assert json.loads((run.outcome.folder / "report.json").read_text(encoding="utf-8")) == run.outcome.report


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("block", ["backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2"])
def test_centerpoint_shows_its_backbone_stages(
    healthy: Callable[[str, str], Healthy], exporter: str, block: str
) -> None:
    """Each backbone block has a row of its own with differences, growth and a local error."""
    rows = healthy("centerpoint", exporter).outcome.report["stages"]
    (row,) = [row for row in rows if row["stage"] == block]
    result = row["results"]["ort-cpu-off"]
    assert "group" == row["role"]
    assert 0 < result["total"]["mean_abs"] < result["total"]["max_abs"] < 1e-3
    assert 0 < result["growth"] < 100
    assert 0 < result["local"]["rel_l2"] < 1e-5

"""The pipeline's definition agrees with the code and with the paths."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from pipeline import parameters, paths
from pipeline.parameters import Parameters
from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
POINTS = ("training", "latency", "size", "classes", "confusion")
NOT_IN_RESULTS = {
    "pipeline",
    "pipeline.parameters",
    "pipeline.paths",
    "pipeline.process",
    "pipeline.provenance",
}
"""Modules that no result depends on; parameters are dependencies of DVC's own."""

PREPARING = {"pipeline.data.sources", "pipeline.data.splits"}
"""What these do is in `artifacts/data`, on which the later stages depend."""

PACKAGES = {"pipeline.data", "pipeline.report", "pipeline.stages"}
"""Their `__init__.py` holds nothing but a docstring."""


def stage(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


def outputs(name: str) -> list[str]:
    """Paths; one with options is a mapping of its path to them."""
    return [out if isinstance(out, str) else next(iter(out)) for out in stage(name).get("outs", [])]


def imported(module: str) -> set[str]:
    graph = grimp.build_graph("pipeline", "students", "teachers")
    return graph.find_upstream_modules(module) | {module}


def file_of(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    return f"{module.replace('.', '/')}/__init__.py" if path.is_dir() else f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize(
    ("name", "script"),
    [(name, name) for name in STAGES if name != "build"]
    + [("build", op) for op in ("distill", "prune", "quantize")],
)
def test_a_stages_dependencies_cover_all_the_code_that_it_imports(name: str, script: str) -> None:
    declared = [dep.replace("${item.op}", script) for dep in stage(name)["deps"]]
    needed = imported(f"pipeline.stages.{script}") - NOT_IN_RESULTS - PACKAGES
    if name != "prepare":
        needed -= PREPARING
    missing = [
        file_of(module)
        for module in sorted(needed)
        if not any(file_of(module) == dep or file_of(module).startswith(f"{dep}/") for dep in declared)
    ]
    assert not missing


def test_what_a_parameter_names_by_its_path_is_a_dependency_and_there_by_default() -> None:
    named = {
        f"{section}.{key}": getattr(getattr(parameters.load(ROOT / paths.PARAMETERS), section), key)
        for section, field in Parameters.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        for key, inner in field.annotation.model_fields.items()
        if inner.annotation in (Path, Path | None)
    }
    assert set(named) == {"data.path", "evaluation.metadata", "probe.out_of_distribution"}
    deps = {dep for name in STAGES for dep in stage(name)["deps"]}
    assert {f"${{{key}}}" for key in named} <= deps
    assert (named["evaluation.metadata"], named["probe.out_of_distribution"]) == (None, None)
    assert (ROOT / paths.NONE).is_file()


@pytest.mark.parametrize("name", list(STAGES))
def test_declared_code_exists(name: str) -> None:
    code = [dep for dep in stage(name)["deps"] if dep.endswith(".py") and "$" not in dep]
    assert code
    assert [dep for dep in code if not (ROOT / dep).is_file()] == []


def test_outputs_are_where_the_paths_say() -> None:
    outs = {out for name in STAGES for out in [*outputs(name), *stage(name).get("metrics", [])]}
    expected = [
        paths.CHECKED,
        paths.DATA,
        paths.TEACHER,
        paths.model("teacher"),
        paths.confidence("teacher"),
        paths.LABELS,
        paths.model("${key}"),
        paths.onnx("${key}"),
        paths.metrics("${key}"),
        paths.confidence("${key}"),
        paths.COMPARISON,
        paths.COSTS,
        paths.ROBUSTNESS,
        paths.EXPLANATIONS,
        paths.SENSITIVITY,
        paths.BENCHMARK,
        paths.REPORT,
        paths.FIGURES,
        paths.PLOTS,
        paths.TRACKED,
    ]
    assert outs == {str(path) for path in expected}


def test_plots_draw_what_the_report_writes_with_templates_that_are_there() -> None:
    written = {str(paths.PLOTS / f"{name}.json") for name in POINTS}
    drawn = [plot for named in PIPELINE["plots"] for plot in named.values()]
    assert {file for plot in drawn for file in plot["y"]} == written
    templates = {path.stem: path.read_text() for path in (ROOT / ".dvc" / "plots").glob("*.json")}
    assert {plot["template"] for plot in drawn} == set(templates)
    for template in templates.values():
        assert {"<DVC_METRIC_DATA>", "<DVC_METRIC_X>", "<DVC_METRIC_Y>"} <= set(strings(json.loads(template)))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def test_mlflow_is_told_of_a_state_also_when_dvc_has_met_it_before() -> None:
    """DVC's run cache leaves out what persists, so that it cannot stand in for the stage."""
    assert stage("track")["outs"] == [{str(paths.TRACKED): {"persist": True}}]


def test_checkpoints_are_no_outputs_so_dvc_does_not_remove_them() -> None:
    outs = [out for name in STAGES for out in outputs(name)]
    assert outs
    assert not [out for out in outs if str(paths.CHECKPOINTS).startswith(out)]

"""The pipeline's definition agrees with the code and with the paths."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline import fingerprint, parameters, paths
from pipeline.parameters import Parameters
from pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
OPERATIONS = ("distill", "prune", "quantize")
SCRIPTS = [(name, name) for name in STAGES if name != "build"] + [("build", op) for op in OPERATIONS]
"""Every stage of dvc.yaml with the script that it runs."""

POINTS = ("training", "latency", "size", "classes", "confusion")

PLACES = {"compute.accelerator", "compute.threads", "compute.workers"}
"""Where the work runs; no result depends on it, except for what `cost` estimates."""


def stage(name: str) -> dict[str, Any]:
    return STAGES[name].get("do", STAGES[name])


def outputs(name: str) -> list[str]:
    """Paths; one with options is a mapping of its path to them."""
    return [out if isinstance(out, str) else next(iter(out)) for out in stage(name).get("outs", [])]


def dependencies(name: str, script: str) -> list[str]:
    return [dep.replace("${item.op}", script) for dep in stage(name)["deps"]]


def read_parameters(script: str) -> set[str]:
    """What a stage's script reads of its parameters `p`, as `section` or `section.key`."""
    tree = ast.parse((ROOT / "pipeline" / "stages" / f"{script}.py").read_text())
    names: set[str] = set()
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):  # outer nodes come first: p.section.key before p.section
        if not isinstance(node, ast.Attribute) or node in inner:
            continue
        chain: list[str] = []
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            chain.insert(0, value.attr)
            inner.add(value)
            value = value.value
        if isinstance(value, ast.Name) and value.id == "p" and chain[0] in Parameters.model_fields:
            section = Parameters.model_fields[chain[0]].annotation
            keys = getattr(section, "model_fields", {})
            whole = len(chain) == 1 or chain[1] not in keys
            names.add(chain[0] if whole else ".".join(chain[:2]))
    return names


@pytest.mark.parametrize(("name", "script"), [pair for pair in SCRIPTS if pair[0] != "check"])
def test_every_stage_depends_on_its_own_code_and_on_no_other(name: str, script: str) -> None:
    assert script in fingerprint.stage_names(ROOT)
    code = [dep for dep in dependencies(name, script) if dep.startswith(str(paths.CODE))]
    assert code == [str(paths.CODE / script)]
    assert stage(name)["cmd"].replace("${item.op}", script).startswith(f"python -m pipeline.stages.{script}")


def test_check_sees_everything_that_fingerprints_are_taken_of() -> None:
    assert {*fingerprint.PROJECT, "requirements.lock", str(paths.CONFIGS)} == set(stage("check")["deps"])


@pytest.mark.parametrize(("name", "script"), [pair for pair in SCRIPTS if pair[0] not in ("check", "track")])
def test_a_stage_declares_every_parameter_that_its_script_reads(name: str, script: str) -> None:
    declared = {param.replace("${item.op}", script) for param in stage(name).get("params", [])}
    read = read_parameters(script) - (PLACES if name != "cost" else set())
    undeclared = {
        key
        for key in read
        # Parts of a section may be declared where the whole section is handed on.
        if key not in declared
        and key.split(".")[0] not in declared
        and not (key == "variants" and "variants.${key}" in declared)
        and not any(param.startswith(f"{key}.") for param in declared)
    }
    assert undeclared == set()


def test_what_a_parameter_names_by_its_path_is_a_dependency_and_there_by_default() -> None:
    values = parameters.load(ROOT / paths.PARAMETERS)
    named = {
        f"{section}.{key}": getattr(getattr(values, section), key)
        for section, field in Parameters.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        for key, inner in field.annotation.model_fields.items()
        if inner.annotation in (Path, Path | None)
    }
    assert len(named) == 4
    deps = {dep for name in STAGES for dep in stage(name)["deps"]}
    assert {f"${{{key}}}" for key in named} <= deps
    assert [path for key, path in named.items() if key != "data.path"] == [None] * 3
    assert (ROOT / paths.NONE).is_file()


def test_outputs_are_where_the_paths_say() -> None:
    outs = {out for name in STAGES for out in [*outputs(name), *stage(name).get("metrics", [])]}
    expected = [
        paths.CHECKED,
        paths.CODE,
        paths.DATA,
        paths.TEACHER,
        paths.model("teacher"),
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
        paths.LITERT,
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


def test_mlflow_is_told_of_a_run_also_when_dvc_has_met_it_before() -> None:
    """DVC's run cache leaves out what persists, so that it cannot stand in for the stage."""
    assert stage("track")["outs"] == [{str(paths.TRACKED): {"persist": True}}]


def test_results_that_are_used_again_are_there_when_their_stage_reruns() -> None:
    used_again = [script for script in fingerprint.stage_names(ROOT) if reads_earlier_result(script)]
    assert used_again == ["benchmark", "explain", "litert", "probe", "quantize", "sensitivity"]
    used_again.remove("quantize")  # what it reads lies among the checkpoints, which are no outputs
    for name in used_again:
        [out] = stage(name)["outs"]
        assert list(out.values()) == [{"persist": True}]


def reads_earlier_result(script: str) -> bool:
    return "earlier.read(" in (ROOT / "pipeline" / "stages" / f"{script}.py").read_text()


def test_checkpoints_are_no_outputs_so_dvc_does_not_remove_them() -> None:
    outs = [out for name in STAGES for out in outputs(name)]
    assert outs
    assert not [out for out in outs if str(paths.CHECKPOINTS).startswith(out)]


def test_what_was_measured_on_the_machine_lies_outside_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("DISTILLERY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.cache() == tmp_path / "home/.cache/distillery"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # to be ignored, says the specification
    assert paths.cache() == tmp_path / "home/.cache/distillery"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache() == tmp_path / "xdg/distillery"
    monkeypatch.setenv("DISTILLERY_CACHE", "own")
    assert paths.cache() == tmp_path / "own"
    places = (paths.kernels(), paths.precision_trials(), paths.choice("pruning", "a"), paths.timings("b"))
    assert all(place.is_relative_to(tmp_path / "own") for place in places)


BESIDE = (
    "__pycache__/masks.cpython-313.pyc",
    ".masks.py.swp",
    ".#masks.py",
    "#masks.py#",
    "masks.py~",
    "masks.py.orig",
    ".ipynb_checkpoints/masks-checkpoint.py",
    "node_modules/vite/index.py",
    ".DS_Store",
)
"""What Python, editors and other tools write beside code."""


def test_dvc_sees_all_photographs_whatever_their_names() -> None:
    names = ("hood.damaged/1.jpg", "new/1.jpg", "a~/1.jpg", "#1/2.jpg", "x.new/1.damaged", "pipeline/1.jpg")
    with Repo(str(ROOT)) as repo:
        for name in names:
            file = ROOT / "photos" / name
            assert not repo.dvcignore.is_ignored_file(str(file)), name
            assert not repo.dvcignore.is_ignored_dir(str(file.parent)), name


def test_dvc_sees_all_code_and_nothing_that_is_written_beside_it() -> None:
    with Repo(str(ROOT)) as repo:
        ignored = repo.dvcignore.is_ignored_file
        for folder in (*fingerprint.PROJECT, "pipeline/pruning"):
            for name in BESIDE:
                file = ROOT / folder / name
                hidden = ignored(str(file)) or any(
                    repo.dvcignore.is_ignored_dir(str(parent))
                    for parent in file.parents
                    if parent.is_relative_to(ROOT / folder)
                )
                assert hidden, file
        code = [file for package in fingerprint.PROJECT for file in (ROOT / package).rglob("*.py")]
        code += [
            file
            for suffix in fingerprint.TEMPLATES
            for file in (ROOT / "pipeline/report").rglob(f"*{suffix}")
        ]
        code += (ROOT / "configs").rglob("*.yaml")
        assert len(code) > 100
        node_modules = "node_modules"
        assert [file for file in code if node_modules not in file.parts and ignored(str(file))] == []

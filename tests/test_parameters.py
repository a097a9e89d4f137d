import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline import parameters, paths
from pipeline.parameters import Distill, ParameterError, Prune, Quantize, composition, reference, spelling
from pipeline.settings import merge

ROOT = Path(__file__).parents[1]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / paths.CONFIGS), version_base=None):
        values = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def complaint(change: dict[str, Any]) -> str:
    with pytest.raises(ParameterError) as caught:
        parameters.check(merge(composed(), change), "params.yaml")
    return str(caught.value)


def test_committed_params_are_the_composed_default() -> None:
    assert yaml.safe_load((ROOT / paths.PARAMETERS).read_text()) == composed()


@pytest.mark.parametrize(
    "option",
    sorted(
        f"{file.parent.name}={file.stem}"
        for file in (ROOT / paths.CONFIGS).glob("*/*.yaml")
        if "???" not in file.read_text() and not file.stem.startswith("clothing")
    ),
)
def test_every_group_option_composes_to_valid_parameters(option: str) -> None:
    needed = {
        "variants=compression": ("teacher=student", "teacher.name=owner/network"),
        "variants=web": ("data=imagewoof_noisy",),
        "teacher=verified": ("data=imagewoof_noisy",),
    }
    assert parameters.check(composed(option, *needed.get(option, ())), option).variants


@pytest.mark.parametrize(
    ("option", "source"), [("clothing", "folder"), ("folder", "folder"), ("attributes", "attributes")]
)
def test_a_folder_of_images_needs_only_its_path(photographs: Path, option: str, source: str) -> None:
    p = parameters.check(composed(f"data={option}", f"data.path={photographs}"), "override")
    assert (p.data.source, p.data.path) == (source, photographs)


@pytest.mark.parametrize("option", ["imagenette", "imagenette_noisy", "imagewoof", "imagewoof_noisy"])
def test_photographs_of_image_net_are_evaluated_on_the_square_of_its_networks(option: str) -> None:
    assert composed("recipe=photographs", f"data={option}")["views"]["eval_crop"] == 0.875
    assert composed("recipe=photographs", f"data={option}", "views.eval_crop=1")["views"]["eval_crop"] == 1


def test_attributes_are_learnt_by_terms_that_they_have(photographs: Path) -> None:
    chosen = ("data=attributes", f"data.path={photographs}")
    objective = parameters.check(composed(*chosen), "override").settings("fp32", Distill).objective
    assert (objective.kl, objective.dist, objective.cross_entropy) == (1.0, 0.0, 0.0)
    with pytest.raises(ParameterError, match=r"fp32\.objective\.dist: .*kl, cross_entropy"):
        parameters.check(composed(*chosen, "distill.objective.dist=1"), "override")


def test_a_teacher_that_knows_the_classes_needs_only_its_name(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.touch()
    black_box = ("teacher.source=onnx", f"teacher.name={file}")
    p = parameters.check(composed("teacher=as_it_is", *black_box), "override")
    assert (p.teacher.name, p.teacher.parts()) == (str(file), {"head": None, "full": None})
    with pytest.raises(ParameterError, match=r"teacher\.head: .*ONNX"):
        parameters.check(composed(*black_box), "override")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["teacher=as_it_is", "teacher.source=onnx", "teacher.name=x.onnx"], "teacher.name = 'x.onnx': no"),
        (["teacher.weights=./best.pth"], "teacher.weights = './best.pth': no such file"),
        (["student.init={source: run, path: old/fp32}"], "student.init.path = 'old/fp32': no such file"),
        (["student.init={source: slim, path: /x.ckpt}"], "student.init.path = '/x.ckpt.index': no such"),
    ],
)
def test_files_that_are_not_there_are_said_before_any_work(overrides: list[str], line: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parameters.check(composed(*overrides), "override")
    assert str(caught.value).startswith(f"override: {line}")


def test_names_of_a_hub_are_left_to_those_who_fetch_them() -> None:
    p = parameters.check(composed("student=published_075_192"), "override")
    assert p.student.init is not None
    assert p.student.init.path == "google/mobilenet_v1_0.75_192"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data": {"trian": 5}}, "params.yaml: data.trian: no such key; did you mean `train`?"),
        ({"variants": {"fp32": {"tempature": 2}}}, "params.yaml: variants.fp32.tempature: no such key"),
        ({"distil": {}}, "params.yaml: distil: no such key; did you mean `distill`?"),
        ({"variants": {"pruned-50": {"macs": 1.5}}}, "variants.pruned-50.macs = 1.5: must be less than 1"),
        ({"variants": {"pruned-50": {"macs": None}}}, "pruned-50.macs and speedup: neither is given"),
        ({"variants": {"pruned-50": {"speedup": 2.0}}}, "macs and speedup: both are given; exactly one"),
        ({"variants": {"pruned-50": {"criterion": "l3"}}}, "variants.pruned-50.criterion = 'l3': must be"),
        ({"prune": {"objective": {"kl": 0.0}}}, "prune.objective"),
        ({"prune": {"multiple": 0}}, "prune.multiple = 0: must be greater than or equal to 1"),
        (
            {"variants": {"pruned-50": {"parent": "fp64"}}},
            "variants.pruned-50.parent = 'fp64': no such variant",
        ),
        (
            {"variants": {n: {"parent": p, "op": "prune", "macs": 0.5} for n, p in ("ab", "ba")}},
            "variants.a.parent = 'b': a cycle (a -> b -> a)",
        ),
        (
            {"variants": {"twice": {"parent": "int8-ptq", "op": "quantize"}}},
            "variants.twice.parent = 'int8-ptq': ",
        ),
        (
            {"variants": {"fp32": {"op": "prune", "macs": 0.5}}},
            "variants.fp32.op = 'prune' with parent 'teacher': `load` goes with parent `teacher`",
        ),
        (
            {"data": {"source": "folder", "path": "/not/there"}},
            "params.yaml: data.path = '/not/there': no such folder",
        ),
        (
            {"distill": {"phases": [{"share": 0.5, "size": 64}]}},
            "variants.fp32.phases: the shares add up to 0.5; they must add up to 1",
        ),
        (
            {"data": {"train_side": 128}},
            "data.train_side = 128: ",
        ),
        ({"views": {"crop_scale": [0.9, 0.5]}}, "views.crop_scale = [0.9, 0.5]: the first must not be above"),
        ({"distill": {"epochs": float("inf")}}, "distill.epochs = inf: must be a finite number"),
        ({"student": {"size": 31}}, "student.size = 31: must be greater than or equal to 32"),
    ],
)
def test_a_wrong_parameter_is_one_line_with_key_value_and_what_is_allowed(
    change: dict[str, Any], line: str
) -> None:
    message = complaint(change)
    assert line in message
    assert len(message.splitlines()) == 1


TOO_MUCH = {
    "compute.threads": 9999,
    "compute.workers": 1000,
    "views.per_image": 1001,
    "views.crop_scale": [0.0001, 1.0],
    "views.crop_ratio": [0.01, 1.0],
    "views.eval_crop": 0.01,
    "student.width": 0.001,
    "student.norm_eps": 1e-30,
    "student.norm_momentum": 1e-30,
    "student.dropout": 0.999,
    "distill.epochs": 1e9,
    "distill.batch_size": 1_000_000,
    "distill.learning_rate": 1e30,
    "distill.weight_decay": 1e6,
    "distill.ema": 0.9999999,
    "distill.phases": [{"share": 1.0, "rate": 1e-30}],
    "distill.objective.temperature": 1e-30,
    "distill.objective.dkd": 1e30,
    "prune.epochs": 1e-30,
    "prune.objective.temperature": 1e6,
    "variants.pruned-50.macs": 0.0001,
    "prune.speedup": 100,
    "prune.steps": 1000,
    "quantize.calibration": 10**9,
    "teacher.head.learning_rate": 1e-30,
    "teacher.full.epochs": 1e9,
    "benchmark.threads": [1, 100_000],
    "benchmark.batch_sizes": [1_000_000],
    "benchmark.sessions": 10**9,
    "benchmark.seconds": 1e9,
    "benchmark.processes": 10**9,
    "evaluation.parity": 10**9,
    "probe.steps": 10**9,
    "probe.radii": [256],
    "probe.out_of_distribution_images": 10**9,
    "explain.images": 10**9,
    "sensitivity.settling": 10**9,
    "sensitivity.ratios": [1e-9],
    "teacher.input.mean": [123.675, 116.28, 103.53],
    "teacher.input.std": [58.4, 57.1, 57.4],
}


@pytest.mark.parametrize("key", TOO_MUCH)
def test_a_number_that_can_only_fail_late_is_refused(key: str) -> None:
    change: Any = TOO_MUCH[key]
    for part in reversed(key.split(".")):
        change = {part: change}
    section, _, rest = key.partition(".")
    assert any(name in complaint(change) for name in (f"{section}.{rest}", f"variants.fp32.{rest}"))


def test_every_number_has_bounds() -> None:
    """Those without an upper one are limits of data and budgets, or checked by a function of their own."""
    unbounded = {"train", "val", "test", "train_side", "max_drop", "max_latency_ms", "max_size_bytes"}
    unbounded |= {"mean", "std"}
    pattern = re.compile(r"(?:integer|number)(?: (?:from|above) \S+)?(?! to| below)(?: or null)?$")
    lines = (ROOT / reference.FILE).read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    found = {row[0].strip("| `").rpartition(".")[2] for row in rows if pattern.search(row[1])}
    assert len(rows) > 100
    assert found <= unbounded


@pytest.fixture
def configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configurations of this repository."""
    shutil.copytree(ROOT / paths.CONFIGS, tmp_path / paths.CONFIGS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("configurations")
def test_the_tiny_run_of_the_default_data_is_a_small_part_of_it() -> None:
    composition.write(["tiny"])
    data = parameters.load().data
    assert (data.source, data.train, data.val, data.test) == ("fashion_mnist", 320, 100, 100)
    assert data.splits == "new"


@pytest.mark.usefixtures("configurations")
@pytest.mark.parametrize("option", ["folder", "attributes", "clothing"])
def test_the_tiny_run_of_other_data_takes_all_images_and_their_splits(option: str, photographs: Path) -> None:
    notes = composition.write([f"data.path={photographs}", "tiny", f"data={option}"])
    p = parameters.load()
    assert (p.data.path, p.data.train, p.data.val, p.data.test) == (photographs, None, 0.1, 0.2)
    assert p.data.splits == "original"
    assert p.distill["epochs"] == 4
    assert len(notes) == 1
    assert f"data={option}" in notes[0]
    assert "data.test" in notes[0]


@pytest.mark.usefixtures("configurations")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["teacher=as_it_is", "teacher.source=timm", "teacher.name=x"],
            {"teacher.head": None, "teacher.full": None},
        ),
        (["recipe=patient"], {"distill.epochs": 100.0, "quantize.calibration": 512, "student.size": 64}),
        (["recipe=patient", "distill.epochs=2"], {"distill.epochs": 2, "prune.epochs": 10.0}),
        # The rate of the published weights takes precedence over that of any recipe.
        (["student=published_075_192", "recipe=patient"], {"distill.learning_rate": 0.0003}),
        (
            ["recipe=patient", "student=published_075_192"],
            {"distill.learning_rate": 0.0003, "student.size": 192},
        ),
        (["data=attributes", "data.path=.", "recipe=patient"], {"distill.objective.dkd": 0.0}),
        (["variants=search"], {"variants.int8.parent": "pruned", "distill.epochs": 4}),
    ],
)
def test_groups_take_precedence_over_the_file_and_keys_over_both(
    words: list[str], expected: dict[str, Any]
) -> None:
    values, _ = composition.merged(["tiny", *words])
    for key, value in expected.items():
        inner: Any = values
        for part in key.split("."):
            inner = inner[part]
        assert inner == value


@pytest.mark.usefixtures("configurations")
def test_a_value_of_the_file_that_no_group_gives_stays() -> None:
    (paths.CONFIGS / "own.yaml").write_text("defaults: [config, _self_]\ndata: {path: photos}\n")
    values, notes = composition.merged(["own", "data=folder"])
    assert values["data"]["path"] == "photos"
    assert notes == []


def test_a_variant_overrides_its_operations_section_key_by_key() -> None:
    values = composed()
    values["variants"]["slim"] = {"parent": "fp32", "op": "prune", "macs": 0.3, "epochs": 7}
    settings = parameters.check(values, "test").settings("slim", Prune)
    assert (settings.macs, settings.epochs) == (0.3, 7)
    assert settings.learning_rate == values["prune"]["learning_rate"]


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, change = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    before = copy.deepcopy((base, change))
    assert merge(base, change) == {"a": {"b": 3, "c": 2}}
    assert (base, change) == before


def test_the_default_run_has_the_five_variants() -> None:
    p = parameters.check(composed(), "default")
    assert list(p.variants) == ["fp32", "int8-ptq", "int8-qat", "pruned-50", "pruned-50-int8"]
    assert p.settings("int8-ptq", Quantize).method == "ptq"
    assert p.settings("pruned-50-int8", Quantize).method == "qat"


def test_a_missing_file_and_broken_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent\.yaml: no such file"):
        parameters.load(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ParameterError, match=r"broken\.yaml is not valid YAML"):
        parameters.load(tmp_path / "broken.yaml")


def test_the_reference_agrees_with_the_settings_and_the_defaults() -> None:
    values = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
    assert (ROOT / reference.FILE).read_text() == reference.render(values), (
        "run `python -m pipeline.parameters.reference`"
    )


def test_every_key_of_the_default_run_is_in_the_reference_with_a_description() -> None:
    lines = (ROOT / reference.FILE).read_text().splitlines()
    described = {line.split("`")[1]: line.split("|")[-2].strip() for line in lines if line.startswith("| `")}
    assert all(described.values())
    shared = {"head", "full", "objective"}
    for section, values in composed().items():
        for key in values if isinstance(values, dict) and section != "variants" else ():
            assert f"{section}.{key}" in described or key in described or key in shared


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("destill.epochs=2", "`distill.epochs`"),
        ("distill.epohs=2", "`distill.epochs`"),
        ("gate.distil.max_drop=0.1", "`gate.distill.max_drop`"),
        ("techer=timm", "`teacher`"),
        ("recpe=paper", "`recipe`"),
        ("teacher=efficientnt", "`efficientnet_lite0`"),
        ("student=published_075_12,mobilenet_v1_075_192", "`published_075_192`"),
    ],
)
def test_a_key_or_a_file_that_does_not_exist_is_answered_with_what_was_meant(word: str, hint: str) -> None:
    with pytest.raises(ParameterError) as caught:
        spelling.check(["distill.epochs=1", word])
    (problem,) = caught.value.args
    assert f"did you mean {hint}?" in problem


def test_right_keys_and_what_only_hydra_can_judge_pass() -> None:
    flat = {
        f"{section}.{key}=1"
        for section, values in composition.composed().items()
        if isinstance(values, dict)
        for key in values
    }
    assert len(flat) > 50
    spelling.check([*flat, "seed=1", "variants=search", "variants.int8.method=ptq,qat", "+new=1", "~card"])
    spelling.check(["teacher.ensemble.0.name=a", "distill.phases=[]", "data.path='a=b, [c]'", "recipe@x=y"])
    for name in ("config", "tiny"):
        spelling.check_file(name)
    with pytest.raises(ParameterError, match="tiny"):
        spelling.check_file("tinny")


COMPOSE = """
import sys
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import compose_and_dump
for options in (["-S", "destill.epochs=2"], ["-Sdestill.epochs=2"], ["--set-param=destill.epochs=2"]):
    sys.argv = ["dvc", "exp", "run", "--queue", *options]
    try:
        compose_and_dump(sys.argv[1], "{root}/configs", None, "config", "{root}/.dvc", ["seed=1"])
    except InvalidArgumentError as error:
        print(error)
"""


def test_dvc_answers_a_typo_in_one_line_with_what_was_meant() -> None:
    script = COMPOSE.format(root=ROOT)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("did you mean `distill.epochs`?" in line for line in lines)
    config = (ROOT / ".dvc" / "config").read_text()
    assert "plugins_path = .dvc" in config

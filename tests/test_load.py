"""A trained network as a variant as it is: what is read, what is refused, and what is made of it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision.models import resnet18
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification, MobileNetV2Config

import students
from pipeline import __main__, parameters, paths
from pipeline.data import sources as folders
from pipeline.data import splits, writing
from pipeline.distillation import sources, teacher_store
from pipeline.models import initialisation, storage
from pipeline.models.storage import Model
from pipeline.parameters import ParameterError, configuration
from pipeline.planning import compression
from pipeline.pruning import reconstruction, surgery, widths
from pipeline.pruning.masks import Criterion
from pipeline.report.card import card
from pipeline.report.page import page
from pipeline.settings import merge
from pipeline.stages import compare, evaluate, export, label, load, prune, quantize, teach
from pipeline.training import norms
from students import published
from students.mobilenet_v1 import scaled_channels
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError
from tests import results, tiny_students

ROOT = Path(__file__).parents[1]
SIZE = 32
COLOURS = {"blue": (40, 60, 210), "green": (50, 200, 60), "red": (210, 40, 50)}
CLASSES = tuple(COLOURS)
ARGUMENTS: dict[str, Any] = {
    "channels": scaled_channels(0.25),
    "activation": "relu6",
    "padding": "same",
    "norm_eps": 1e-3,
    "classes": len(CLASSES),
    "size": SIZE,
}
CONTRACT = InputContract(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def colours(label: int, count: int, seed: int) -> torch.Tensor:
    """Noisy images of one colour as bytes."""
    random = np.random.default_rng([label, seed])
    noise = random.normal(0, 20, (count, SIZE, SIZE, 3))
    return torch.from_numpy((np.array(COLOURS[CLASSES[label]]) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A MobileNetV1 that was trained for a second to tell blue, green and red apart."""
    torch.manual_seed(0)
    module = students.build("mobilenet_v1", ARGUMENTS)
    images = CONTRACT.normalise(torch.cat([colours(label, 32, 0) for label in range(len(CLASSES))]))
    labels = torch.arange(len(CLASSES)).repeat_interleave(32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.003)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    norms.reestimate(module, [images])
    return module


def reordered(module: nn.Module, order: list[int]) -> nn.Module:
    """The same network with its logits in another order."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        head = cast(nn.Linear, other.classifier)
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    return other


def write_run(module: nn.Module, folder: Path, labels: tuple[str, ...] = CLASSES) -> str:
    about = tiny_students.card(ARGUMENTS, CONTRACT, labels=labels)
    storage.save(folder, Model(module, about))
    return str(folder)


def write_torch(module: nn.Module, file: Path) -> str:
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, file)
    return str(file)


def write_hugging_face(module: nn.Module, folder: Path, labels: tuple[str, ...] = CLASSES) -> str:
    config = MobileNetV1Config(depth_multiplier=0.25, image_size=SIZE)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    theirs = MobileNetV1ForImageClassification(config)
    layout, tensors = published.LAYOUTS["hugging_face"], module.state_dict()
    names = {layout.convolution(unit): f"{path}.conv.weight" for path, unit in published.units()}
    for path, unit in published.units():
        names |= {layout.norm(unit) + name: f"{path}.norm.{name}" for name in published.TORCH_NORM}
    names |= {name: name for name in layout.classifier}
    theirs.load_state_dict({name: tensors[ours] for name, ours in names.items()})
    cast(Any, theirs).save_pretrained(folder)
    image = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIZE, "width": SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return str(folder)


WRITERS = {"run": write_run, "torch": write_torch, "hugging_face": write_hugging_face}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the configurations and with photographs of three colours."""
    (tmp_path / "configs").mkdir()
    for entry in (ROOT / "configs").iterdir():
        if entry.name != configuration.FILE.name:
            (tmp_path / "configs" / entry.name).symlink_to(entry)
    for index, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, pixels in enumerate(colours(index, 60, 1)):
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_checkpoint_is_recognised_and_answers_as_the_network(
    kind: str, network: nn.Module, tmp_path: Path
) -> None:
    place = WRITERS[kind](network, tmp_path / {"torch": "network.pth"}.get(kind, "folder"))
    assert initialisation.source_of(place)[0] == kind
    form = {key: ARGUMENTS[key] for key in ("activation", "padding")} if kind == "torch" else {}
    teacher = sources.student(place, size=SIZE, overrides=form)
    images = CONTRACT.normalise(colours(0, 4, 2))
    with torch.no_grad():
        torch.testing.assert_close(teacher.module.eval()(images), network(images), atol=1e-4, rtol=1e-4)
    assert (teacher.labels, teacher.outputs) == (None if kind == "torch" else CLASSES, 3)
    assert (teacher.input is None) == (kind == "torch")
    assert teacher.input is None or (teacher.input.mean, teacher.input.size) == ((0.5,) * 3, SIZE)


def test_weights_inside_a_folder_are_read_with_what_the_folder_says(
    network: nn.Module, tmp_path: Path
) -> None:
    write_run(network, tmp_path / "run")
    write_hugging_face(network, tmp_path / "hub")
    assert initialisation.source_of(f"{tmp_path}/run/weights.safetensors") == ("run", f"{tmp_path}/run")
    assert initialisation.source_of(f"{tmp_path}/hub/model.safetensors") == (
        "hugging_face",
        f"{tmp_path}/hub",
    )


def test_what_is_no_mobilenet_v1_is_refused_with_its_name(network: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    torch.save({**network.state_dict(), "extra": torch.zeros(1)}, tmp_path / "extra.pth")
    headless = {name: value for name, value in network.state_dict().items() if "classifier" not in name}
    torch.save(headless, tmp_path / "headless.pth")
    torch.save(network, tmp_path / "pickle.pth")
    MobileNetV2Config().save_pretrained(tmp_path / "v2")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "resnet.pth": r"conv1\.weight",
        "extra.pth": "extra",
        "headless.pth": r"classifier\.weight",
        "pickle.pth": "run its code",
        "v2": "mobilenet_v2",
        "empty": r"card\.json.*config\.json",
        "absent.pth": "no such file",
        "absent": "no such file",
    }.items():
        with pytest.raises(WeightsError, match=said) as error:
            sources.student(str(tmp_path / name), size=None, overrides={})
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_changed_checkpoint_is_not_taken_for_the_planned_one(network: nn.Module, tmp_path: Path) -> None:
    for kind, write in WRITERS.items():
        place = write(network, tmp_path / f"{kind}.pth")
        before = initialisation.fingerprint(place)
        assert before == initialisation.fingerprint(place)
        write(reordered(network, [1, 0, 2]), tmp_path / f"{kind}.pth")
        assert initialisation.fingerprint(place) != before
        member = parameters.load(ROOT / paths.PARAMETERS).teacher.members[0]
        changes = {"source": "student", "name": place, "sha256": before}
        with pytest.raises(WeightsError, match=r"teacher\.sha256"):
            sources.load(member.model_copy(update=changes), {})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher": {"source": "timm", "name": "resnet18"}}, r"variants\.fp32\.op.*teacher\.source"),
        ({"teacher": {"size": 96}}, r"variants\.fp32\.op.*teacher\.size"),
        ({"teacher": {"ensemble": [{"source": "timm", "name": "resnet18"}]}}, r"teacher\.ensemble"),
        ({"teacher": {"outputs": "probabilities"}}, r"teacher\.outputs"),
        ({"variants": {"again": {"parent": "fp32", "op": "load"}}}, r"variants\.again\.op"),
        ({"variants": {"fp32": {"epochs": 1}}}, r"variants\.fp32\.epochs"),
        ({"distill": {"epochs": 0}, "variants": {"d": {"parent": "teacher", "op": "distill"}}}, r"epochs"),
    ],
)
def test_parameters_that_do_not_fit_a_loaded_network_are_refused(changes: Any, named: str) -> None:
    values = yaml.safe_load((ROOT / paths.PARAMETERS).read_text())
    own = {"source": "student", "name": "x/y", "size": 192, "head": None, "full": None}
    variants = yaml.safe_load((ROOT / "configs/variants/compression.yaml").read_text())
    values = merge({**values, "variants": variants}, {"teacher": own})
    parameters.check(values, "here")
    with pytest.raises(ParameterError, match=named):
        parameters.check(merge(values, changes), "here")


def test_the_plan_says_what_a_state_dict_does_not(network: nn.Module, project: Path) -> None:
    write_torch(network, project / "network.pth")
    made = compression.make("network.pth", Path("photos"), ["student.size=32"])
    teacher, student = made.values["teacher"], made.values["student"]
    assert (teacher["input"]["mean"], teacher["input"]["std"]) == ([0.5] * 3, [0.5] * 3)
    assert student["padding"] == "same"
    assert teacher["sha256"] == initialisation.fingerprint("network.pth")
    assert student["width"] == 0.25
    assert made.found is not None
    given = ["student.size=32", "teacher.input.mean=[0.5,0.5,0.5]", "teacher.input.std=[0.5,0.5,0.5]"]
    assert compression.make("network.pth", Path("photos"), given).found is None


def test_the_plan_notes_an_assumed_size_and_a_test_split_that_the_gate_finds_too_small(
    network: nn.Module, project: Path
) -> None:
    write_torch(network, project / "network.pth")
    write_hugging_face(network, project / "hub")
    input_of = ["teacher.input.mean=[0.5,0.5,0.5]", "teacher.input.std=[0.5,0.5,0.5]"]
    relaxed = [f"gate.{op}.max_drop=0.9" for op in ("load", "prune", "quantize")]
    bare = compression.make("network.pth", Path("photos"), [*input_of, *relaxed]).lines()
    assert [line for line in bare if line.startswith("note: ")] == [
        "note: network.pth does not say for which size of images it was made; 192 pixels are taken, and "
        "student.size takes precedence"
    ]
    [note] = [line for line in compression.make("hub", Path("photos")).lines() if line.startswith("note: ")]
    assert "a variant is rejected even if none of its answers changes" in note
    assert "int8" in note


def test_batch_norms_remember_the_input_that_a_network_was_trained_with(network: nn.Module) -> None:
    """Its own images are classified correctly whatever the input is, so that accuracy does not tell. None of
    its activations reaches 6."""
    images = torch.cat([colours(label, 16, 1) for label in range(len(CLASSES))])
    distances = {}
    for form in (form for form in compression.FORMS if form["activation"] == "relu6"):
        module = students.build("mobilenet_v1", ARGUMENTS | form)
        module.load_state_dict(network.state_dict())
        for name, (mean, std) in compression.INPUTS.items():
            normalised = InputContract(SIZE, mean, std).normalise(images)
            logits, distance = compression._answer(module.eval(), normalised.split(20))
            torch.testing.assert_close(logits, module(normalised), atol=1e-4, rtol=1e-4)
            distances[form["padding"], name] = distance
    (first, least), (_, following) = sorted(distances.items(), key=lambda item: item[1])[:2]
    assert first == ("same", "[-1, 1]")
    assert 2 * least < following


def test_a_bare_state_dict_declares_no_input_whosever_names_it_has(
    network: nn.Module, tmp_path: Path
) -> None:
    folder = write_hugging_face(network, tmp_path / "hub")
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((Path(folder) / "model.safetensors").read_bytes())
    teacher = sources.student(str(bare), size=SIZE, overrides={})
    assert teacher.input is None
    assert teacher.arguments is not None
    assert (teacher.arguments["activation"], teacher.arguments["padding"]) == ("relu6", "same")
    layout = published.LAYOUTS["timm"]
    names = {f"{path}.conv": layout.convolution(unit) for path, unit in published.units()}
    names = {f"{ours}.weight": theirs for ours, theirs in names.items()}
    for path, unit in published.units():
        names |= {f"{path}.norm.{name}": layout.norm(unit) + name for name in published.TORCH_NORM}
    torch.save(
        {names.get(name, name): value for name, value in network.state_dict().items()}, tmp_path / "t.pth"
    )
    assert sources.student(str(tmp_path / "t.pth"), size=SIZE, overrides={}).input is None


def test_a_network_of_which_no_usual_input_is_above_chance_is_refused(project: Path) -> None:
    module = students.build("mobilenet_v1", ARGUMENTS)
    nn.init.zeros_(cast(nn.Linear, module.classifier).weight)
    write_torch(module, project / "network.pth")
    with pytest.raises(compression.CompressionError, match=r"teacher\.input\.mean"):
        compression.make("network.pth", Path("photos"), ["student.size=32"])


def test_the_plan_keeps_what_a_folder_declares_and_matches_names(network: nn.Module, project: Path) -> None:
    write_hugging_face(reordered(network, [2, 0, 1]), project / "hub", ("Red", "blue", "GREEN"))
    made = compression.make("hub", Path("photos"))
    assert (made.values["student"]["size"], made.values["teacher"]["size"]) == (SIZE, SIZE)
    assert "input" not in made.values["teacher"]
    write_run(network, project / "run", ("cyan", "green", "red"))
    with pytest.raises(TeacherError, match=r"'blue'.*'cyan'.*teacher\.labels"):
        compression.make("run", Path("photos"))
    named = compression.make("run", Path("photos"), ["teacher.labels=[blue,green,red]"])
    assert named.values["teacher"]["labels"] == list(CLASSES)
    torch.save(students.build("mobilenet_v1", {**ARGUMENTS, "classes": 5}).state_dict(), project / "five.pth")
    with pytest.raises(TeacherError, match=r"5 logits .*3 classes.*teacher\.labels") as caught:
        compression.make("five.pth", Path("photos"))
    assert "teacher.head" not in str(caught.value)
    torch.save(students.build("mobilenet_v1", {**ARGUMENTS, "classes": 2}).state_dict(), project / "two.pth")
    with pytest.raises(TeacherError, match=r"2 logits .*3 classes.*cannot know all"):
        compression.make("two.pth", Path("photos"))


def test_the_command_plans_once_and_anew_when_the_checkpoint_changed(
    network: nn.Module, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(network, project / "run")
    command = ["pipeline", "compress", "run", "photos", "--plan"]
    monkeypatch.setattr("sys.argv", command)
    __main__.main()
    first = configuration.FILE.read_text()
    edited = first + "# a remark\n"
    configuration.FILE.write_text(edited)
    __main__.main()
    assert configuration.FILE.read_text() == edited
    write_run(reordered(network, [0, 1, 2]), project / "run", CLASSES)
    __main__.main()
    assert configuration.FILE.read_text() == edited  # the same bytes are the same network
    with torch.no_grad():
        write_run(reordered(network, [0, 2, 1]), project / "run")
    __main__.main()
    assert configuration.FILE.read_text() not in (first, edited)
    monkeypatch.setattr("sys.argv", ["pipeline", "compress", "absent.pth", "photos", "--plan"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    errors = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert [line for line in errors if line.startswith("error:")] == errors
    assert "absent.pth" in errors[0]


def test_five_files_of_one_network_are_built_and_compared_without_training(
    network: nn.Module, project: Path
) -> None:
    """The network has a fourth class that the images lack, and its logits in another order."""
    wide = reordered(network, [2, 0, 1])
    head = cast(nn.Linear, wide.classifier)
    wide.classifier = nn.Linear(head.in_features, 4)
    with torch.no_grad():
        wide.classifier.weight[:3], wide.classifier.bias[:3] = head.weight, head.bias
        wide.classifier.weight[3], wide.classifier.bias[3] = 0, -20
    labels = ("red", "blue", "green", "violet")
    about = tiny_students.card({**ARGUMENTS, "classes": 4}, CONTRACT, labels=labels)
    storage.save(project / "run", Model(wide, about))
    small = ["compute.workers=0", "compute.threads=1", "quantize.calibration=32", "evaluation.parity=16"]
    compression.write(compression.make("run", Path("photos"), small), "a test")
    values = yaml.safe_load(Path(paths.PARAMETERS).read_text())
    plain = {
        "quantize": {"float_layers": [], "ptq": []},
        "prune": {"shape": "uniform", "criterion": "l1", "multiple": 4},
    }
    Path(paths.PARAMETERS).write_text(yaml.safe_dump(merge(values, plain)))
    p = parameters.load()
    listing = folders.folder(Path("photos"))
    assigned = splits.assign(listing.labelled, train=None, val=p.data.val, test=p.data.test, seed=0)
    report = {"source": "folder", "path": "photos", "license": "CC0-1.0"}
    writing.write(paths.DATA, listing, assigned, report)
    teach.main()
    label.main()
    assert teacher_store.read_card(paths.TEACHER)["columns"] == [1, 2, 0]
    builders = {"load": load, "prune": prune, "quantize": quantize}
    for name, variant in p.variants.items():
        builders[variant.op].main(name)
        export.main(name)
        evaluate.main(name)
        assert not (paths.model(name) / "history.jsonl").read_text()
    compare.main()
    changes = json.loads(paths.COMPARISON.read_text())["variants"]
    assert list(changes) == ["fp32", "int8", "int8-wide", "pruned-30", "pruned-30-int8"]
    assert (changes["fp32"]["delta"], changes["fp32"]["op"]) == (0.0, "load")
    loaded = storage.load(paths.model("fp32"))
    assert (loaded.card.labels, loaded.card.op) == (CLASSES, "load")
    images = CONTRACT.normalise(colours(1, 4, 3))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), wide(images)[:, [1, 2, 0]])
    scores = {name: json.loads(paths.metrics(name).read_text())["top1"] for name in changes}
    assert min(scores[name] for name in ("fp32", "int8", "int8-wide")) > 0.8, scores
    assert min(scores.values()) > 0.5, scores  # a third is chance


@pytest.mark.parametrize("criterion", ["l1", "fpgm"])
def test_a_pruned_network_that_is_fitted_answers_more_like_its_parent(
    criterion: Criterion, network: nn.Module
) -> None:
    counts = widths.largest_within(
        "mobilenet_v1",
        ARGUMENTS,
        widths.output_channels(network),
        cost=widths.macs_cost(0.6, network, SIZE),
        multiple=4,
        shape=widths.uniform,
    )
    pruned, _ = surgery.remove_channels(network, ARGUMENTS, counts, size=SIZE, criterion=criterion)
    fitted = copy.deepcopy(pruned)
    train, test = (
        [CONTRACT.normalise(colours(label, 64, seed)) for label in range(len(CLASSES))] for seed in (4, 5)
    )
    reconstruction.fit(network, fitted, train)
    with torch.no_grad():
        wanted, before, after = (
            torch.cat([module(batch) for batch in test]) for module in (network, pruned, fitted)
        )
    assert (after - wanted).square().mean() < 0.5 * (before - wanted).square().mean()


def test_a_network_that_lost_no_channel_is_left_as_it_is(network: nn.Module) -> None:
    same = copy.deepcopy(network)
    images = CONTRACT.normalise(colours(0, 8, 6))
    reconstruction.fit(network, same, [images])
    with torch.no_grad():
        torch.testing.assert_close(same(images), network(images), atol=1e-3, rtol=1e-3)


def test_no_page_says_that_a_loaded_network_was_distilled(tmp_path: Path) -> None:
    made = results.run(tmp_path)
    texts = {}
    for op in ("distill", "load"):
        first = {row.variant for row in made.table if row.parent == "teacher"}
        changed = replace(
            made,
            table=[replace(row, op=op if row.variant in first else row.op) for row in made.table],
            comparison={
                **made.comparison,
                "variants": {
                    name: {**of, "op": op if name in first else "prune"}
                    for name, of in made.comparison["variants"].items()
                },
            },
            teacher_history=[] if op == "load" else made.teacher_history,
            statements=dict.fromkeys(made.statements),
        )
        shipped = {row.variant: card.render(changed, row.variant) for row in made.table}
        texts[op] = "".join([page.render(changed), *shipped.values()]).casefold()
    words = ("distilled", "distilling", "knowledge-distillation", "its teacher", "the teacher (")
    assert all(word in texts["distill"] for word in words)
    assert not [word for word in words if word in texts["load"]]
    assert "the given network" in texts["load"]
    assert "the given network" not in texts["distill"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["absent.pth", "photos"], "absent.pth"),
        (["absent", "photos"], "absent"),
        (["folder/absent.safetensors", "photos"], "folder/absent.safetensors"),
        (["net.pth", "nowhere"], "nowhere"),
        (["net.pth", "net.pth"], "net.pth"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_place_that_does_not_exist_is_said_before_anything_is_imported(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.pth").touch()
    monkeypatch.setattr("sys.argv", ["pipeline", "compress", *words, "--plan"])
    monkeypatch.setattr(compression, "make", None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    found = capsys.readouterr()
    [line] = found.err.splitlines()
    assert (ended.value.code, found.out) == (1, "")
    assert line.startswith(f"error: {named}")

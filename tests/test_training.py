import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import students
from pipeline import tasks
from pipeline.data import batches, centred_views, store, views
from pipeline.data.batches import Batch, Request, ViewSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labelling, labels, learning, losses, training_data
from pipeline.distillation.labels import Answers, Key, LabelError, LiveTeacher
from pipeline.distillation.objective import loss_terms
from pipeline.distillation.settings import Objective, StudentTraining
from pipeline.running import process
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL
from pipeline.training import checkpoints, compute, norms, optimisation, precision, scoring
from pipeline.training.compute import ComputeError
from pipeline.training.loop import TrainingError
from pipeline.training.scoring import ScoreError
from pipeline.training.settings import ComputeSettings, Phase
from teachers.contract import InputContract

SPACE = ViewSpace(seed=0, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
CONTRACT = InputContract(32)
TRAINING = StudentTraining(
    epochs=4.0,
    phases=(Phase(share=0.5, size=32), Phase(share=0.5, size=64)),
    batch_size=12,
    learning_rate=0.01,
    warmup=0.1,
    ema=0.9,
    objective=Objective(kl=0.5, cross_entropy=0.5, temperature=2.0),
)


@pytest.fixture(scope="module")
def data(prepared: Path) -> Path:
    return prepared


def save(folder: Path, key: Key, answers: Answers) -> None:
    labels.save(folder, key, teacher="x", engine="PyTorch", blocks=[answers], images=len(answers))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    read = store.read(data, "train")
    truth = np.eye(3, dtype=np.float16)[read.labels] * 6
    key = Key(store.read_report(data)["data_sha256"], "oracle", SPACE, 2, None)
    save(folder, key, Answers(np.stack([truth, truth], axis=1), None, 3))
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a teacher of which only the card is read."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "card.json").write_text(json.dumps({"identity": "oracle", "val": {"top1": 1.0}}))
    return folder


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the epochs that end while a test runs."""
    numbers: list[int] = []
    save = checkpoints.save

    def record(folder: Path, identity: str, progress: checkpoints.Progress, **state: Any) -> None:
        save(folder, identity, progress, **state)
        numbers.append(len(progress.history))

    monkeypatch.setattr(checkpoints, "save", record)
    return numbers


def student() -> nn.Module:
    torch.manual_seed(0)
    return students.build("mobilenet_v1", {"classes": 3, "channels": (8,) * 14, "dropout": 0.2})


def learn(
    data: Path,
    answers: Path,
    folder: Path,
    oracle: Path,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    **changes: object,
) -> tuple[nn.Module, list[dict[str, float]]]:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, precision=precision))
    views = training_data.load(data, oracle, answers, SPACE, CONTRACT)
    arguments = {
        "settings": TRAINING,
        "name": "test",
        "start": "scratch",
        "seed": 0,
        "workers": 0,
        "folder": folder,
        **changes,
    }
    return learning.learn(fabric, student(), views, **arguments)


def changed(**changes: object) -> StudentTraining:
    return TRAINING.model_copy(update=changes)


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_weights_bit_for_bit(
    data: Path,
    answers: Path,
    tmp_path: Path,
    oracle: Path,
    epochs: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, history = learn(data, answers, tmp_path / "whole", oracle)
    epochs.clear()
    with monkeypatch.context() as during:
        save = checkpoints.save

        def killed_after_two_epochs(*arguments: Any, **state: Any) -> None:
            save(*arguments, **state)
            if len(epochs) == 2:
                raise KeyboardInterrupt

        during.setattr(checkpoints, "save", killed_after_two_epochs)
        with pytest.raises(KeyboardInterrupt):
            learn(data, answers, tmp_path / "cut", oracle)
    again, history_again = learn(data, answers, tmp_path / "cut", oracle)
    assert epochs == [1, 2, 3, 4], "finished epochs are not trained again"
    expected = whole.state_dict()
    assert len(expected) > 100
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    timing = {"seconds", "images_per_second"}
    strip = [
        [{k: v for k, v in line.items() if k not in timing} for line in h] for h in (history, history_again)
    ]
    assert strip[0] == strip[1]
    assert [line["size"] for line in history] == [32, 32, 64, 64]


def test_rendering_in_another_process_changes_nothing(
    data: Path, answers: Path, tmp_path: Path, oracle: Path
) -> None:
    alone, _ = learn(data, answers, tmp_path / "a", oracle)
    helped, _ = learn(data, answers, tmp_path / "b", oracle, workers=2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(alone.state_dict().values(), helped.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_other_settings_is_not_used(
    data: Path, answers: Path, tmp_path: Path, oracle: Path, epochs: list[int]
) -> None:
    learn(data, answers, tmp_path, oracle)
    epochs.clear()
    learn(
        data,
        answers,
        tmp_path,
        oracle,
        start="another parent",
    )
    assert epochs == [1, 2, 3, 4]
    epochs.clear()
    learn(
        data,
        answers,
        tmp_path,
        oracle,
        start="another parent",
    )
    assert epochs == []


def test_a_checkpoint_of_other_arithmetic_is_not_used(
    data: Path, answers: Path, tmp_path: Path, oracle: Path, epochs: list[int]
) -> None:
    learn(data, answers, tmp_path, oracle)
    epochs.clear()
    learn(
        data,
        answers,
        tmp_path,
        oracle,
        precision="bf16-mixed",
    )
    assert epochs == [1, 2, 3, 4]


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compute.ACCELERATORS, "cuda", lambda: False)
    with pytest.raises(ComputeError, match=r"compute\.accelerator = 'cuda': .*allowed: auto, cpu$"):
        compute.start(ComputeSettings(accelerator="cuda", threads=1))


def test_a_phase_without_a_size_has_the_size_of_the_model(
    data: Path, answers: Path, tmp_path: Path, oracle: Path
) -> None:
    settings = changed(epochs=2.0, phases=(Phase(share=0.5, size=64), Phase(share=0.5)))
    _, history = learn(data, answers, tmp_path, oracle, settings=settings)
    assert [line["size"] for line in history] == [64, 32]


def test_a_damaged_checkpoint_starts_anew(
    data: Path, answers: Path, tmp_path: Path, oracle: Path, epochs: list[int]
) -> None:
    learn(data, answers, tmp_path, oracle)
    file = tmp_path / checkpoints.FILE
    file.write_bytes(file.read_bytes()[:1000])
    epochs.clear()
    learn(data, answers, tmp_path, oracle)
    assert epochs == [1, 2, 3, 4]


def test_a_student_learns_what_the_answers_say(
    data: Path, answers: Path, tmp_path: Path, oracle: Path
) -> None:
    settings = changed(epochs=30.0, phases=(), ema=0.0, learning_rate=0.02)
    _, history = learn(data, answers, tmp_path, oracle, settings=settings)
    first, last = (np.mean([line["loss"] for line in part]) for part in (history[:5], history[-5:]))
    assert last < 0.85 * first
    assert history[-1]["val_top1"] >= 0.6  # chance is a third


def test_a_loss_that_explodes_is_said(data: Path, answers: Path, tmp_path: Path, oracle: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan for .*\.jpg.*learning_rate below 1e\+30"):
        learn(
            data,
            answers,
            tmp_path / "a",
            oracle,
            settings=changed(learning_rate=1e30, clip=0.0, warmup=0.0),
        )


def test_fewer_images_than_a_batch_are_one_batch(
    data: Path, answers: Path, tmp_path: Path, oracle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = changed(epochs=1.0, phases=(), batch_size=64)
    _, history = learn(data, answers, tmp_path, oracle, settings=settings)
    assert [line["step"] for line in history] == [1]
    assert "43 images are fewer than one batch of 64" in capsys.readouterr().err


def test_labels_made_for_other_data_views_or_teachers_are_refused(
    data: Path, answers: Path, tmp_path: Path
) -> None:
    right = {
        "data_sha256": store.read_report(data)["data_sha256"],
        "teacher_sha256": "oracle",
        "space": SPACE,
    }
    assert labels.load(answers, **right).key.views == 2
    for wrong, word in (
        ({"data_sha256": "0"}, "data"),
        ({"teacher_sha256": "0"}, "teacher"),
        ({"space": SPACE.model_copy(update={"mixup": 0.5})}, "space"),
    ):
        with pytest.raises(LabelError, match=f"was made for another {word}: .*`dvc repro label`"):
            labels.load(answers, **{**right, **wrong})
    with pytest.raises(LabelError, match="not a complete label store"):
        labels.load(tmp_path, **right)
    copy = tmp_path / "copy"
    shutil.copytree(answers, copy)
    content = bytearray((copy / labels.VALUES).read_bytes())
    content[-1] ^= 1
    (copy / labels.VALUES).write_bytes(content)
    with pytest.raises(LabelError, match=r"answers\.npy was changed"):
        labels.load(copy, **right)


def test_a_compact_store_keeps_the_top_and_spreads_the_rest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = (random.normal(size=(6, 2, 300)) * 3).astype(np.float16)
    small = labels.compact(logits, 20)
    key = Key("data", "teacher", SPACE, 2, 20)
    save(tmp_path, key, small)
    found = labels.load(tmp_path, data_sha256="data", teacher_sha256="teacher", space=SPACE).answers
    assert (
        small.values.nbytes + (small.top_classes.nbytes if small.top_classes is not None else 0)
        < logits.nbytes / 6
    )
    images = np.array([4, 1])
    wanted = torch.from_numpy(logits[images, 1]).float().softmax(1)
    given = torch.from_numpy(found.at(images, 1)).float().softmax(1)
    order = wanted.argsort(dim=1, descending=True)
    torch.testing.assert_close(
        given.gather(1, order[:, :20]), wanted.gather(1, order[:, :20]), rtol=4e-3, atol=0
    )
    rest = wanted.gather(1, order[:, 20:])
    torch.testing.assert_close(
        given.gather(1, order[:, 20:]), rest.mean(1, keepdim=True).expand_as(rest), rtol=1e-2, atol=0
    )
    whole = labels.compact(logits, 150)
    assert whole.top_classes is None
    np.testing.assert_array_equal(whole.at(images, 1), logits[images, 1])
    assert labels.stored_classes(SINGLE_LABEL, 20) == 20
    assert labels.stored_classes(MULTI_LABEL, 20) is None


def test_terms_that_look_beyond_the_most_probable_classes_want_a_whole_store(
    data: Path, oracle: Path, tmp_path: Path
) -> None:
    key = Key(store.read_report(data)["data_sha256"], "oracle", SPACE, 2, 1)
    logits = np.random.default_rng(0).normal(size=(len(store.read(data, "train")), 2, 3)).astype(np.float16)
    save(tmp_path / "labels", key, labels.compact(logits, 1))

    def learn_by(**objective: float) -> None:
        settings = changed(epochs=0.25, objective=Objective(**{"kl": 0.0, **objective}))
        learn(data, tmp_path / "labels", tmp_path / "run", oracle, settings=settings)

    with pytest.raises(TrainingError, match=r"objective\.standardised_kl = 1: .*views\.top"):
        learn_by(standardised_kl=1.0)
    with pytest.raises(TrainingError, match=r"objective\.temperature = 2: .*views\.top"):
        learn_by(dkd=1.0, temperature=2.0)
    learn_by(kl=1.0)
    learn_by(cross_entropy=1.0, temperature=2.0)


def compute_labels(
    fabric: Fabric, teacher: nn.Module, view_set: ViewSet, partial: Path, *, views: int
) -> Answers:
    """All logits of a teacher for the three classes."""
    blocks = labelling.compute(
        fabric, [teacher], view_set, views=views, classes=3, top=None, partial=partial, workers=0
    )
    return Answers(np.concatenate([block.values for block in blocks]), None, 3)


def test_answers_that_are_not_finite_are_refused(data: Path, tmp_path: Path) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    head = nn.Linear(3, 3)
    nn.init.constant_(head.bias, 1e5)
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    view_set = ViewSet(store.read(data, "train"), SPACE, CONTRACT)
    with pytest.raises(LabelError, match=r"\d+ of \d+ images are not finite"):
        compute_labels(fabric, teacher, view_set, tmp_path, views=1)
    assert not list(tmp_path.iterdir())


def test_a_live_teacher_gives_the_losses_of_the_stored_one(data: Path, oracle: Path, tmp_path: Path) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    torch.manual_seed(1)
    teacher = students.build("mobilenet_v1", {"classes": 3, "channels": (8,) * 14}).eval()
    nn.init.normal_(teacher.get_parameter("classifier.weight"))
    space = SPACE.model_copy(update={"colour": 0.3, "mixup": 0.4, "cutmix": 0.4})
    contract = replace(CONTRACT, size=64)
    view_set = ViewSet(store.read(data, "train"), space, contract)
    norms.settle(fabric, teacher, view_set, workers=0)
    given = compute_labels(fabric, teacher, view_set, tmp_path / "partial", views=2)
    assert given.values.std() > 0.1
    key = Key(store.read_report(data)["data_sha256"], "oracle", space, 2, None)
    save(tmp_path / "labels", key, given)

    @torch.no_grad()
    def ask(images: Sequence[torch.Tensor]) -> torch.Tensor:
        return teacher(contract.normalise(images[0]))

    stored = training_data.load(data, oracle, tmp_path / "labels", space, CONTRACT)
    live = training_data.with_live_teacher(stored, LiveTeacher((contract,), ask), endless=False)
    endless = training_data.with_live_teacher(stored, LiveTeacher((contract,), ask), endless=True)
    losses = [
        [
            line["loss"]
            for line in learning.learn(
                fabric,
                student(),
                source,
                changed(learning_rate=1e-4, objective=Objective(kl=1.0)),
                name="test",
                start="scratch",
                seed=0,
                workers=0,
                folder=tmp_path / str(number),
            )[1]
        ]
        for number, source in enumerate((stored, live, endless))
    ]
    # The gap grows with training, as any rounding does; at a small learning rate it stays float16's.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[0][:2], losses[2][:2], rtol=1e-3)
    assert abs(losses[0][3] - losses[2][3]) > 1e-4, "endless views show new views after the stored ones"


@pytest.mark.parametrize("hidden", [(), (3,), (30,), (3, 30)])
def test_mixed_views_have_the_labels_of_both_images(data: Path, hidden: tuple[int, ...]) -> None:
    """Those without a label, the image itself or its partner, add nothing."""
    images = store.read(data, "train")
    space = SPACE.model_copy(update={"mixup": 0.5, "cutmix": 0.5})
    for index in hidden:
        mixture = views.draw_mixture(space, int(images.keys[index]), 1, len(images))
        assert mixture is not None
        images.labels[index if index == 3 else mixture.partner] = -1
    batch = ViewSet(images, space, CONTRACT)[Request([3, 30], 1, 32)]
    for row, index in enumerate((3, 30)):
        mixture = views.draw_mixture(space, int(images.keys[index]), 1, len(images))
        assert mixture is not None
        wanted = np.zeros(3)
        for shown, share in ((index, mixture.weight), (mixture.partner, 1 - mixture.weight)):
            if images.labels[shown] >= 0:
                wanted[images.labels[shown]] += share
        np.testing.assert_allclose(batch.labels[row].numpy(), wanted, atol=1e-6)
    if not hidden:
        centred = ViewSet(images, space, CONTRACT)[Request([3, 30], None, 32)]
        np.testing.assert_array_equal(centred.labels.numpy(), images.labels[[3, 30]])


def test_stored_answers_are_the_teachers_and_a_killed_labelling_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    teacher = student().eval()
    nn.init.normal_(teacher.get_parameter("classifier.weight"))
    view_set = ViewSet(store.read(data, "train"), SPACE, replace(CONTRACT, size=64))
    norms.settle(fabric, teacher, view_set, workers=0)
    monkeypatch.setattr(labelling, "BATCH", 8)
    monkeypatch.setattr(labelling, "BLOCK", 16)
    stored = compute_labels(fabric, teacher, view_set, tmp_path, views=3).values
    assert stored.shape == (len(view_set), 3, 3)
    assert stored.std(axis=(0, 1)).min() > 0.1
    assert (stored[:, 0] != stored[:, 2]).any(1).mean() > 0.9, "each view has an answer of its own"
    batch = view_set[Request([4, 9], 2, 64)]
    with torch.no_grad():
        live = teacher(view_set.contract.normalise(batch.images))
    np.testing.assert_allclose(stored[[4, 9], 2], live.numpy(), rtol=2e-3, atol=1e-4)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "000001.npy").unlink()
    shown: list[Request] = []
    render = ViewSet.__getitem__
    monkeypatch.setattr(ViewSet, "__getitem__", lambda s, r: shown.append(r) or render(s, r))
    again = compute_labels(fabric, teacher, view_set, tmp_path, views=3).values
    np.testing.assert_array_equal(again, stored)
    assert [request.view for request in shown] == [0, 1, 2] * 2
    assert {index for request in shown for index in request.indices} == set(range(16, 32))


def test_views_that_are_scored_each_epoch_are_rendered_once_a_size_unless_they_are_too_many(
    data: Path, answers: Path, oracle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []
    load = batches.load

    def counted(*arguments: Any) -> Iterable[Batch]:
        rendered.append(arguments[2][0].size)
        return load(*arguments)

    monkeypatch.setattr(batches, "load", counted)
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    val_set = training_data.load(data, oracle, answers, SPACE, CONTRACT).val_set
    views = centred_views.CentredViews(fabric.device, val_set, 0)
    shown = [[batch.images for batch in views.at(size)] for size in (32, 32, 64, 64, 32)]
    assert rendered == [32, 64, 32]
    torch.testing.assert_close(shown[1], shown[4], rtol=0, atol=0)
    assert sum(map(len, shown[1])) == len(val_set)
    monkeypatch.setattr(centred_views, "CACHE_BYTES", len(val_set) * 64 * 64 * 3 - 1)
    assert [len(list(views.at(size))) for size in (64, 64)] == [1, 1]
    assert rendered == [32, 64, 32, 64, 64]


def test_bf16_is_used_at_the_sizes_where_its_trial_was_faster_and_the_trial_is_remembered(
    data: Path, answers: Path, oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def gain(_fabric: object, _module: object, _batch: int, size: int) -> float:
        tried.append(size)
        return {32: 0.95, 64: 2.0}[size]

    monkeypatch.setattr(precision, "_try", gain)
    fabric = compute.start(
        ComputeSettings(accelerator="cpu", threads=1, precision="auto"), trials=tmp_path / "trials.json"
    )
    network = student()
    kinds: dict[int, set[torch.dtype]] = {32: set(), 64: set()}
    stem = network.get_submodule("stem.conv")

    def note(module: nn.Module, given: tuple[torch.Tensor], found: torch.Tensor) -> None:
        if module.training:  # averaged weights are scored in fp32, by a copy that has this hook too
            kinds[given[0].shape[-1]].add(found.dtype)

    stem.register_forward_hook(note)
    source = training_data.load(data, oracle, answers, SPACE, CONTRACT)
    for number in range(2):
        learning.learn(
            fabric,
            network,
            source,
            TRAINING,
            name="test",
            start="scratch",
            seed=0,
            workers=0,
            folder=tmp_path / str(number),
        )
    assert tried == [32, 64]
    monkeypatch.setattr(precision, "TRIAL", precision.TRIAL + 1)
    precision.choose(fabric, network, 12, [32])
    assert tried[2:] == [32]
    assert kinds == {32: {torch.float32}, 64: {torch.bfloat16}}


def test_batch_norm_settles_in_the_arithmetic_of_the_training(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {32: 2.0, 64: 2.0, 96: 1.0}
    monkeypatch.setattr(precision, "_try", lambda _fabric, _module, _batch, size: gains[size])
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, precision="auto"))
    network, kinds = student(), list[torch.dtype]()
    network.get_submodule("stem.conv").register_forward_hook(lambda *call: kinds.append(call[-1].dtype))
    view_set = ViewSet(store.read(data, "train"), SPACE, CONTRACT)
    for sizes, expected in ([32, 64], torch.bfloat16), ([64, 96], torch.float32):
        precision.choose(fabric, network, 12, sizes)
        norms.settle(fabric, network, view_set, workers=0)
        scoring.evaluate(fabric, network, view_set, CONTRACT.size, workers=0)
        assert kinds[0] == expected
        assert kinds[-1] == torch.float32  # scores are those of fp32, in which files compute
        assert all(buffer.dtype != torch.bfloat16 for buffer in network.buffers())
        kinds.clear()


@pytest.mark.parametrize(("gain", "rounds"), [(2.0, 5), (0.5, 5), (1.2, 9), (0.95, 9)])
def test_a_trial_that_is_clear_ends_early(gain: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = [0.0], [0]

    def replayable(learn: Any, _device: torch.device) -> Any:
        def step() -> None:
            (fast,) = learn.args
            clock[0] += 1.0 if fast else gain
            steps[0] += 1

        return step

    monkeypatch.setattr(precision.graphs, "replayable", replayable)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, precision="auto"))
    assert precision._try(fabric, student(), 4, 32) == pytest.approx(gain)
    assert steps[0] == 2 * rounds


@pytest.mark.parametrize(
    ("gains", "sizes"),
    [
        ({32: 1.05, 64: 1.4}, {32, 64}),  # clearly faster where the time goes
        ({32: 0.9, 64: 1.4}, {64}),
        ({32: 1.4, 64: 1.1}, set()),
        ({32: 1.0, 64: 0.1}, set()),
    ],
)
def test_bf16_is_decided_at_the_largest_size(
    gains: dict[int, float], sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_try", lambda _fabric, _module, _batch, size: gains[size])
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, precision="auto"))
    assert precision.choose(fabric, student(), 4, [*gains]) == sizes


def test_a_trial_takes_time_and_leaves_the_network_as_it_was() -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, precision="auto"))
    network = student()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients: list[str] = []
    strided = network.get_submodule("blocks.1.depthwise.conv")
    strided.register_forward_hook(lambda *call: gradients.append(type(call[-1].grad_fn).__name__))
    found = precision.choose(fabric, network, 4, [32])
    assert found in (frozenset(), {32})
    assert "_DepthwiseBackward" in gradients  # it learns as in training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", list(optimisation.OPTIMIZERS))
def test_every_update_rule_goes_downhill(name: str) -> None:
    torch.manual_seed(0)
    weights = nn.Linear(4, 4)
    optimizer = optimisation.OPTIMIZERS[name](optimisation.parameter_groups(weights, 1e-4), 0.01)
    images = torch.randn(64, 4)
    first = last = 0.0
    for step in range(50):
        loss = (weights(images) - images).square().mean()
        first, last = (loss.item(), 0.0) if step == 0 else (first, loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert last < 0.9 * first


def test_depthwise_filters_biases_and_norms_are_not_decayed() -> None:
    network = student()
    decayed, free = optimisation.parameter_groups(network, 0.05)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0.0
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert decayed_names == {
        "stem.conv.weight",
        "classifier.weight",
        *(f"blocks.{index}.pointwise.conv.weight" for index in range(13)),
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_the_learning_rate_rises_then_falls_to_nearly_zero() -> None:
    rates = [optimisation.learning_rate(step, 100, peak=1.0, warmup=0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(rates[10], rel=0.05)
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[-1] < 0.001


def test_each_phase_falls_from_its_own_rate_to_the_next_ones() -> None:
    phases = ((0.5, 1.0), (0.5, 0.4))
    rates = [
        optimisation.learning_rate(step, 100, peak=2.0, warmup=0.0, phases=phases) for step in range(100)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(0.8)
    assert rates[99] < 0.01


def test_kl_is_zero_for_the_teachers_own_logits_and_its_gradient_keeps_its_scale() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(8, 5), torch.randn(8, 5)
    assert tasks.softmax_kl(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-6)
    by_hand = (teacher.softmax(1) * (teacher.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    assert tasks.softmax_kl(logits, teacher, 1.0).item() == pytest.approx(by_hand.item(), rel=1e-5)
    norms = []
    for temperature in (20.0, 40.0):
        student_logits = logits.clone().requires_grad_()
        tasks.softmax_kl(student_logits, teacher, temperature).backward()
        assert student_logits.grad is not None
        norms.append(student_logits.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_dkd_is_kl_with_the_teachers_doubt_in_the_place_of_beta() -> None:
    torch.manual_seed(0)
    for temperature in (1.0, 3.0):
        logits, teacher, label = torch.randn(1, 6), 3 * torch.randn(1, 6), torch.tensor([2])
        doubt = 1 - (teacher / temperature).softmax(1)[0, 2].item()
        found = losses.dkd(logits, teacher, label, temperature, beta=doubt)
        torch.testing.assert_close(found, tasks.softmax_kl(logits, teacher, temperature))


def test_dkd_takes_the_greater_share_or_the_teachers_choice_for_the_true_class() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 3), 3 * torch.randn(4, 3)
    # Two images mixed; a labelled one beneath an unlabelled one, and the other way round; no label at all.
    shares = torch.tensor([[0.3, 0.0, 0.7], [0.0, 0.1, 0.0], [0.9, 0.0, 0.0], [0.0, 0.0, 0.0]])
    true = torch.tensor([2, int(teacher[1].argmax()), 0, int(teacher[3].argmax())])
    torch.testing.assert_close(
        losses.dkd(logits, teacher, shares, 2.0, 0.5),
        losses.dkd(logits, teacher, true, 2.0, 0.5),
        rtol=0,
        atol=0,
    )


def test_a_student_whose_logits_are_all_equal_has_a_slope() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    losses.standardised_kl(logits, torch.randn(2, 3), 1.0).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_attributes_that_nobody_knows_add_nothing() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    targets = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    loss = tasks.sigmoid_cross_entropy(logits, targets)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2)) / 4)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]


def test_dist_is_pearsons_correlation_within_images_and_across_the_batch() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(7, 4), torch.randn(7, 4)
    student, truth = logits.div(2).softmax(1).numpy(), teacher.div(2).softmax(1).numpy()
    within = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(student, truth, strict=True)])
    across = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(student.T, truth.T, strict=True)])
    assert losses.dist(logits, teacher, 2.0).item() == pytest.approx(4 * (2 - within - across), rel=1e-4)


def test_standardised_logits_may_have_any_size() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(7, 4), torch.randn(7, 4)
    loss = losses.standardised_kl(logits, teacher, 1.0)
    torch.testing.assert_close(losses.standardised_kl(5 * logits + 2, teacher, 1.0), loss)
    assert loss > 0.01
    assert losses.standardised_kl(3 * teacher - 1, teacher, 1.0).abs() < 1e-6


@pytest.mark.parametrize("term", ["kl", "standardised_kl", "dkd", "dist"])
def test_every_distance_leads_to_the_teachers_answers(term: str) -> None:
    torch.manual_seed(0)
    teacher, labels_there = 4 * torch.randn(16, 5), torch.arange(16) % 5
    batch = Batch(torch.zeros(16, 32, 32, 3, dtype=torch.uint8), labels_there, teacher.half())
    logits = nn.Parameter(torch.randn(16, 5))
    terms = loss_terms(
        Objective(**{"kl": 0.0, term: 1.0}, temperature=2.0, dkd_beta=8.0), CONTRACT, SINGLE_LABEL
    )
    network = nn.Module()
    network.forward = lambda _images: logits
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(600):
        optimizer.zero_grad()
        terms(network, batch)[term].backward()
        optimizer.step()
    assert terms(network, batch)[term] < 0.01
    assert torch.equal(logits.argmax(1), teacher.argmax(1))


def test_terms_that_mean_nothing_for_attributes_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"objective\.dkd: .* multi_label .*: kl, cross_entropy"):
        loss_terms(Objective(dkd=1.0, kl=1.0), CONTRACT, MULTI_LABEL)


def test_an_objective_names_the_terms_that_weigh_and_wants_answers_for_kl() -> None:
    batch = Batch(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 2]), None)
    plain = loss_terms(Objective(kl=0.0, cross_entropy=1.0), CONTRACT, SINGLE_LABEL)
    assert list(plain(student(), batch)) == ["cross_entropy"]
    with pytest.raises(ValueError, match="needs the outputs of a teacher"):
        loss_terms(Objective(kl=1.0), CONTRACT, SINGLE_LABEL)(student(), batch)


def test_every_image_is_shown_once_an_epoch_in_an_order_of_its_own() -> None:
    first, second = (batches.shuffled(50, epoch, seed=0) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


def test_reestimated_statistics_are_the_means_over_the_images() -> None:
    network = student()
    images = [torch.rand(16, 3, 32, 32) for _ in range(3)]
    norms.reestimate(network, images)
    norm = network.get_submodule("stem.norm")
    with torch.no_grad():
        seen = torch.cat([network.get_submodule("stem.conv")(batch) for batch in images])
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_settled_statistics_are_those_of_mixed_classes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    view_set = ViewSet(store.read(data, "train"), SPACE, CONTRACT)
    labels_on_disk = view_set.images.labels
    assert (np.diff(labels_on_disk) >= 0).all(), "class by class, each of another colour"
    monkeypatch.setattr(norms, "BATCH", 12)
    norm = nn.BatchNorm2d(3)
    norms.settle(fabric, nn.Sequential(norm), view_set, workers=0)
    whole = view_set[Request(range(len(view_set)), 0, CONTRACT.size)]
    variance = CONTRACT.normalise(whole.images).var(dim=(0, 2, 3))
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var, variance, rtol=0.15, atol=0)


def test_expected_errors_are_lines_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, process.one_line_errors():
        raise TrainingError("first", "second")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_a_score_counts(data: Path) -> None:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    view_set = ViewSet(store.read(data, "test"), None, CONTRACT)
    network = student()
    score = scoring.evaluate(fabric, network, view_set, 32, workers=0)
    assert len(score.predictions) == score.images == len(view_set)
    assert score.value == np.mean(score.predictions == view_set.images.labels)
    assert score.to_dict() == {"n": score.images, "top1": score.value}


def test_outputs_that_are_not_finite_are_refused_with_the_names_of_their_images(data: Path) -> None:
    images = store.read(data, "val")
    logits = torch.zeros(len(images), 3)
    logits[1, 2] = torch.nan
    with pytest.raises(ScoreError, match=f"1 of {len(images)} images .*{images.sources[1]}"):
        scoring.score(logits, images)

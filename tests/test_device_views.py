import gc
import io
import json
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import students
from pipeline.data import batches, store, views
from pipeline.data.arrow import Rows
from pipeline.data.batches import Batch, Request, ViewSet
from pipeline.data.rendering import device_views, drawing, pictures, prefetching, renderers
from pipeline.data.rendering.device_views import Pictures
from pipeline.data.store import ImageSet
from pipeline.data.views import ViewSpace
from pipeline.distillation import labels
from pipeline.distillation.adaptation import OBJECTIVE
from pipeline.distillation.labels import Answers, Key
from pipeline.distillation.objective import loss_terms
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from pipeline.training import compute, loop, norms
from pipeline.training.loop import Run
from pipeline.training.settings import ComputeSettings, Phase, TrainingSettings
from teachers.contract import InputContract, Interpolation

PLAIN = ViewSpace(seed=5, crop_scale=(0.3, 1.0), crop_ratio=(0.75, 4 / 3))
COLOURED = PLAIN.model_copy(update={"colour": 0.6})
MIXED = PLAIN.model_copy(update={"colour": 0.3, "mixup": 0.4, "cutmix": 0.4})
NARROW = ViewSpace(seed=2**32 - 1, crop_scale=(0.9, 1.0), crop_ratio=(0.5, 2.0), flip=0.2, colour=0.9)
CONTRACT = InputContract(48, crop=0.8)
HALF = (0.5, 0.5, 0.5)
CPU = torch.device("cpu")
LEVELS = 0 if platform.machine() in ("x86_64", "AMD64") else 1
"""How far apart pixels may lie: where a processor adds and multiplies in one step, Pillow rounds less."""


@pytest.fixture(autouse=True)
def _one_thread_and_no_preference() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    renderers.prefer("auto")


def noise(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Colours, a gradient, or strokes of black on white, where a wrong order of the passes shows most."""
    kind = random.integers(3)
    if kind == 0:
        values = random.integers(0, 256, (height, width, 3))
    elif kind == 1:
        y, x = np.mgrid[:height, :width]
        values = np.stack([x * 255 // width, y * 255 // height, (7 * x + 3 * y) % 256], axis=2)
    else:
        values = np.repeat(random.integers(0, 2, (height, width, 1)) * 255, 3, axis=2)
    return Image.fromarray(values.astype(np.uint8))


def flat(images: list[Image.Image]) -> Pictures:
    arrays = [np.asarray(image).reshape(-1, 3) for image in images]
    widths, heights = np.array([image.size for image in images]).T
    starts = np.cumsum([0, *map(len, arrays)])[:-1]
    return Pictures(torch.from_numpy(np.concatenate(arrays)), starts, widths.copy(), heights.copy())


def image_set(images: list[Image.Image], labels: list, task: Task = SINGLE_LABEL) -> ImageSet:
    rows = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        rows.append(
            {
                "image": {"bytes": encoded.getvalue(), "path": None},
                "label": label,
                "sha256": f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}",
                "source": str(number),
            }
        )
    return ImageSet(Rows(pa.Table.from_pylist(rows)), ("a", "b", "c"), task)


@pytest.fixture(scope="module")
def garments() -> ImageSet:
    """Grey images of 28 x 28 pixels, some without a label."""
    random = np.random.default_rng(3)
    images = [noise(random, 28, 28).convert("L") for _ in range(40)]
    return image_set(images, [number % 4 - 1 for number in range(40)])


def same(one: Iterable[Batch], other: Iterable[Batch]) -> int:
    """Assert that batches are equal; return their number."""
    pairs = list(zip(one, other, strict=True))
    for a, b in pairs:
        for x, y in zip((a.images, *a.for_teachers), (b.images, *b.for_teachers), strict=True):
            assert x.dtype == torch.uint8
            torch.testing.assert_close(x.int(), y.int(), rtol=0, atol=LEVELS)
        for x, y in ((a.labels, b.labels), (a.answers, b.answers)):
            if x is None or y is None:
                assert x is y
            else:
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    return len(pairs)


def both(dataset: ViewSet, requests: list[Request], workers: int = 0) -> tuple[Iterable, Iterable]:
    """The same batches, from the device and from the CPU's renderer."""
    renderers.prefer("device")
    rendered = batches.load(CPU, dataset, requests, workers)
    assert isinstance(rendered, batches.DeviceBatches)
    renderers.prefer("workers")
    return rendered, batches.load(CPU, dataset, requests, workers)


@pytest.mark.parametrize(
    "space", [PLAIN, COLOURED, MIXED, NARROW], ids=["plain", "coloured", "mixed", "narrow"]
)
def test_views_that_are_drawn_together_are_those_that_are_drawn_one_by_one(space: ViewSpace) -> None:
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**64, 400, dtype=np.uint64)
    numbers = np.concatenate([random.integers(0, 5, 200), random.integers(0, 2**32, 200)])
    widths, heights = random.integers(1, 400, (2, 400))
    drawn = drawing.draw(space, keys, numbers, widths, heights)
    rows = zip(keys.tolist(), numbers.tolist(), widths.tolist(), heights.tolist(), strict=True)
    whole = 0
    for row, (key, number, width, height) in enumerate(rows):
        view = views.draw(space, key, number, width, height)
        assert view.box == tuple(drawn.boxes[row].tolist())
        assert view.flip == drawn.flips[row]
        assert view.colour == tuple(drawn.colours[row].tolist())
        whole += view.box == (0, 0, width, height)
    assert whole > 0, "crops that never fit are drawn, too"


def test_mixtures_that_are_drawn_together_are_those_that_are_drawn_one_by_one() -> None:
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**64, 600, dtype=np.uint64)
    numbers = random.integers(0, 100, 600)
    # Of almost 3 * 2 ** 30 images every fourth number is drawn again, of one image none is drawn.
    images = random.choice([1, 2, 43, 55_000, 3 * 2**30], 600)
    drawn = drawing.draw_mixtures(MIXED, keys, numbers, images)
    single = [
        views.draw_mixture(MIXED, int(key), int(number), int(count))
        for key, number, count in zip(keys, numbers, images, strict=True)
    ]
    assert [drawn.at(row) for row in range(600)] == single
    assert 60 < single.count(None) < 180


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("chunk", [20_000, 2**23])
def test_pixels_are_those_of_pillow(
    interpolation: Interpolation, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crops are high or wide, lie at an edge or in the middle, and are made larger or smaller."""
    monkeypatch.setattr(device_views, "CHUNK", chunk)
    random = np.random.default_rng(chunk)
    for size in (1, 7, 32, 64, 96):
        images = [noise(random, *random.integers(1, 170, 2).tolist()) for _ in range(12)]
        sizes = np.array([image.size for image in images])
        indices = random.integers(0, 12, 16)
        keys = random.integers(0, 2**64, 16, dtype=np.uint64)
        space = random.choice(np.array([PLAIN, COLOURED, NARROW], object))
        drawn = drawing.draw(space, keys, np.arange(16), *sizes[indices].T)
        contract = InputContract(size, interpolation=interpolation)
        held = flat(images)
        plan = device_views.plan(held, indices, drawn, contract)
        with torch.autocast("cpu", torch.bfloat16):  # of a scoring in half precision
            rendered = device_views.render(held, plan)
        assert rendered.is_contiguous()
        for row, index in enumerate(indices):
            box = tuple(drawn.boxes[row].tolist())
            view = views.View(box, bool(drawn.flips[row]), tuple(drawn.colours[row].tolist()))
            wanted = np.asarray(views.render(images[index], view, contract), int)
            assert np.abs(rendered[row].numpy() - wanted).max() <= LEVELS, f"{sizes[index]} {view}"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_sums_of_pixels_are_exact_in_tf32(
    interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors have at most 11 significant bits, and sums of all magnitudes at most 24."""
    factors: list[torch.Tensor] = []
    multiply = torch.bmm

    def recorded(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        factors.extend([one, other])
        assert multiply(one.abs().double(), other.abs().double()).max() < 2**24
        return multiply(one, other)

    random = np.random.default_rng(0)
    images = [noise(random, *random.integers(1, 170, 2).tolist()) for _ in range(60)]
    sizes = np.array([image.size for image in images])
    drawn = drawing.draw(PLAIN, random.integers(0, 2**64, 60, dtype=np.uint64), np.arange(60), *sizes.T)
    held = flat(images)
    plan = device_views.plan(held, np.arange(60), drawn, InputContract(32, interpolation=interpolation))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "bmm", recorded)
        device_views.render(held, plan)
    assert len(factors) >= 4
    for factor in factors:
        assert not (factor.contiguous().view(torch.int32) & 0x1FFF).any()


def test_whole_images_and_whole_pixels_are_copied() -> None:
    images = [noise(np.random.default_rng(1), 32, 32), noise(np.random.default_rng(1), 64, 48)]
    boxes = np.array([(0, 0, 32, 32), (16, 8, 48, 40)], float)
    drawn = drawing.Views(boxes, np.array([False, True]), np.ones((2, 3)))
    held = flat(images)
    rendered = device_views.render(held, device_views.plan(held, np.arange(2), drawn, InputContract(32)))
    np.testing.assert_array_equal(rendered[0].numpy(), np.asarray(images[0]))
    np.testing.assert_array_equal(rendered[1].numpy(), np.asarray(images[1])[8:40, 16:48][:, ::-1])


def test_a_hundredfold_reduction_is_that_of_pillow() -> None:
    """Sums of many more bytes than whole numbers of 24 bits hold for certain."""
    images = [noise(np.random.default_rng(number), 1200, 900) for number in range(3)]
    boxes = np.tile([0.0, 0.0, 1200.0, 900.0], (3, 1))
    held, drawn = flat(images), drawing.Views(boxes, np.zeros(3, bool), np.ones((3, 3)))
    for interpolation in ("bilinear", "bicubic"):
        contract = InputContract(8, interpolation=interpolation)
        rendered = device_views.render(held, device_views.plan(held, np.arange(3), drawn, contract))
        for row, image in enumerate(images):
            wanted = np.asarray(contract.render(image, (0.0, 0.0, 1200.0, 900.0)), int)
            assert np.abs(rendered[row].numpy() - wanted).max() <= 1


@pytest.mark.parametrize("space", [None, PLAIN, MIXED], ids=["centred", "plain", "mixed"])
def test_batches_of_the_device_are_those_of_workers(prepared: Path, space: ViewSpace | None) -> None:
    images = store.read(prepared, "train")
    random = np.random.default_rng(0)
    stored = random.normal(size=(len(images), 3, 3)).astype(np.float16)
    dataset = ViewSet(
        images,
        space,
        CONTRACT,
        lambda indices, view: stored[indices, view],
        (InputContract(40, interpolation="bicubic"), InputContract(64)),
    )
    requests = [
        Request(random.permutation(len(images))[:12], view, size)
        for view, size in ((0, 32), (2, 32), (1, 64), (None, 32), (None, 48), (0, 32))
    ]
    assert same(*both(dataset, requests)) == len(requests)


def test_batches_of_small_grey_images_without_labels_are_those_of_workers(garments: ImageSet) -> None:
    for space, workers in ((COLOURED, 0), (MIXED, 1)):
        dataset = ViewSet(garments, space, CONTRACT)
        requests = [*batches.sequential(range(40), 1, 96, 16), *batches.sequential(range(40), None, 28, 40)]
        assert same(*both(dataset, requests, workers)) == 4


def test_batches_of_attributes_are_those_of_workers() -> None:
    random = np.random.default_rng(0)
    shares = [[0.25, 1.0, 0.0] if number % 3 else [float("nan")] * 3 for number in range(20)]
    images = image_set([noise(random, 40, 30 + number) for number in range(20)], shares, MULTI_LABEL)
    requests = batches.sequential(range(20), 0, 32, 7)
    assert same(*both(ViewSet(images, MIXED, CONTRACT), requests)) == 3


def test_a_gpu_is_never_waited_for_and_all_tensors_are_its_own(
    garments: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that have a device and a shape, but no values, that the host could wait for."""
    for module in (batches, device_views):
        monkeypatch.setattr(module, "upload", lambda array, device: torch.from_numpy(array).to(device))
    gpu = torch.device("cuda", 0)
    held = flat([garments.image(index) for index in range(40)])
    answers = np.zeros((40, 2, 3), np.float16)
    dataset = ViewSet(
        garments, MIXED, CONTRACT, lambda rows, view: answers[rows, view], (InputContract(40, HALF, HALF),)
    )
    requests = [*batches.sequential(range(40), 1, 32, 16), *batches.sequential(range(40), None, 24, 40)]
    with FakeTensorMode():
        fake = held._replace(pixels=torch.empty(held.pixels.shape, dtype=torch.uint8, device=gpu))
        made = list(batches.DeviceBatches(gpu, dataset, requests, fake))
        with pytest.raises(DataDependentOutputException):
            made[0].images.sum().item()
    assert [batch.images.shape for batch in made] == [(16, 32, 32, 3)] * 2 + [(8, 32, 32, 3), (40, 24, 24, 3)]
    assert made[0].for_teachers[0].shape == (16, 40, 40, 3)
    tensors = [(batch.images, batch.labels, *batch.for_teachers) for batch in made]
    assert {tensor.device for several in tensors for tensor in several} == {gpu}
    assert made[0].answers is not None
    assert made[0].answers.device == gpu


def test_batches_can_be_read_again_and_left(garments: ImageSet) -> None:
    rendered, _ = both(ViewSet(garments, PLAIN, CONTRACT), batches.sequential(range(40), 0, 32, 4))
    begun = iter(rendered)
    first = next(begun)
    del begun
    assert same(rendered, rendered) == 10
    torch.testing.assert_close(next(iter(rendered)).images, first.images, rtol=0, atol=0)


def test_images_that_do_not_fit_are_rendered_by_workers(
    garments: ImageSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = garments.select(range(10))
    needed = 10 * 28 * 28 * 3
    renderers.prefer("device")
    monkeypatch.setattr(pictures, "SHARE", 0.5)
    monkeypatch.setattr(pictures, "_free", lambda _: 2 * needed - 2)
    dataset, requests = ViewSet(images, PLAIN, CONTRACT), batches.sequential(range(10), 0, 32, 5)
    assert not isinstance(batches.load(CPU, dataset, requests, 0), batches.DeviceBatches)
    assert batches.renderer(CPU, dataset) == "workers"
    assert "compute.views" in capsys.readouterr().err
    images = garments.select(range(10))
    monkeypatch.setattr(pictures, "_free", lambda _: 2 * needed)
    dataset = ViewSet(images, PLAIN, CONTRACT)
    assert isinstance(batches.load(CPU, dataset, requests, 0), batches.DeviceBatches)
    assert batches.renderer(CPU, dataset) == "device"


@pytest.mark.filterwarnings("error:This DataLoader will create")
def test_as_many_workers_render_as_cores_can_be_used_with_the_same_pixels(
    garments: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, requests = ViewSet(garments, MIXED, CONTRACT), batches.sequential(range(10), 0, 32, 5)
    renderers.prefer("workers")
    shown = []
    for usable, workers in (({3}, 1), ({3, 5}, 2), (set(range(8)), 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, usable=usable: usable)
        loaded = batches.load(CPU, dataset, requests, 2)
        assert isinstance(loaded, batches.WorkerBatches)
        assert loaded.workers == workers
        shown.append([batch.images for batch in loaded])
    torch.testing.assert_close(shown, [shown[0]] * 3, rtol=0, atol=0)


def test_only_a_gpu_renders_by_itself_and_only_if_many_views_are_asked_for(
    garments: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = flat([noise(np.random.default_rng(0), 2, 2)])
    monkeypatch.setattr(pictures, "_decode", lambda *_: held)
    images = garments.select(range(20))
    gpu = torch.device("cuda", 0)
    assert pictures.choose(CPU, images, 1000, 0) is None
    assert pictures.choose(gpu, images, 9, 0) is None
    assert pictures.choose(gpu, images, 10, 0) is held
    assert pictures.choose(gpu, images, 1, 0) is held, "they lie there already"
    renderers.prefer("workers")
    assert pictures.choose(gpu, images, 1000, 0) is None
    renderers.prefer("device")
    assert pictures.choose(CPU, images, 1, 0) is held


def test_images_leave_the_device_with_their_split(garments: ImageSet) -> None:
    images = garments.select(range(8))
    renderers.prefer("device")
    held = pictures.choose(CPU, images, 8, 0)
    assert held is not None
    assert pictures.choose(CPU, replace(images, classes=("x",)), 8, 0) is held
    before = len(pictures._on_devices)  # pyright: ignore[reportPrivateUsage]
    del images
    gc.collect()
    assert len(pictures._on_devices) == before - 1  # pyright: ignore[reportPrivateUsage]


def test_images_are_decoded_in_blocks_by_any_number_of_workers(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "BLOCK", 9000)
    monkeypatch.setattr(pictures, "MEASURED", 10)
    renderers.prefer("device")
    for workers in (0, 2):
        images = store.read(prepared, "train")
        held = pictures.choose(CPU, images, len(images), workers)
        assert held is not None
        for index in range(len(images)):
            end = held.starts[index] + held.widths[index] * held.heights[index]
            pixels = held.pixels[held.starts[index] : end].view(held.heights[index], held.widths[index], 3)
            np.testing.assert_array_equal(pixels.numpy(), np.asarray(images.image(index)))


def test_the_setting_reaches_the_batches_and_answers_are_the_same_bit_for_bit(prepared: Path) -> None:
    torch.manual_seed(0)
    teacher = students.build("mobilenet_v1", {"classes": 3, "channels": (8,) * 14}).eval()
    nn.init.normal_(teacher.get_parameter("classifier.weight"))
    dataset = ViewSet(store.read(prepared, "train"), MIXED, InputContract(64))
    norms.settle(Fabric(accelerator="cpu"), teacher, dataset, workers=0)
    requests = batches.sequential(range(len(dataset)), 0, 64, 16)
    given: dict[str, torch.Tensor] = {}
    for renderer in ("device", "workers"):
        fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, views=renderer))
        with torch.no_grad():
            shown = [batch.images for batch in batches.load(fabric.device, dataset, requests, 0)]
            assert batches.renderer(fabric.device, dataset) == renderer
            given[renderer] = torch.cat([teacher(dataset.contract.normalise(images)) for images in shown])
    torch.testing.assert_close(given["device"], given["workers"], rtol=0, atol=0.05 * LEVELS)
    assert given["device"].std() > 0.1


def test_a_training_ends_with_the_same_weights_and_scores(prepared: Path, tmp_path: Path) -> None:
    sets = {split: ViewSet(store.read(prepared, split), COLOURED, CONTRACT) for split in ("train", "val")}
    settings = TrainingSettings(
        epochs=2.0, phases=(Phase(share=0.5, size=32), Phase(share=0.5)), batch_size=12, learning_rate=0.01
    )

    ends = []
    for renderer in ("device", "workers"):
        fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1, views=renderer))
        torch.manual_seed(0)
        module, history = loop.train(
            fabric,
            students.build("mobilenet_v1", {"classes": 3, "channels": (8,) * 14}),
            loss_terms(OBJECTIVE, CONTRACT, SINGLE_LABEL),
            OBJECTIVE.weights(),
            settings,
            train_set=sets["train"],
            val_set=replace(sets["val"], space=None),
            views=None,
            seed=0,
            workers=0,
            run=Run("test", tmp_path / renderer, renderer),
        )
        assert batches.renderer(fabric.device, sets["train"]) == renderer
        times = {"seconds", "images_per_second"}
        scores = [{name: line[name] for name in line.keys() - times} for line in history]
        ends.append((torch.cat([tensor.flatten() for tensor in module.state_dict().values()]), scores))
    (weights, scores), (other_weights, other_scores) = ends
    if LEVELS == 0:
        torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)
        assert scores == other_scores
    assert len(scores) == len(other_scores) == 2


def test_the_label_store_knows_what_rendered_its_views_and_serves_either(tmp_path: Path) -> None:
    key = Key("data", "teacher", MIXED, 1, None)
    answers = Answers(np.ones((4, 1, 3), np.float16), None, 3)
    labels.save(
        tmp_path, key, teacher="x", engine="x", renderer="device", blocks=[answers], images=len(answers)
    )
    expected = {"data_sha256": "data", "teacher_sha256": "teacher", "space": MIXED}
    stored = labels.load(tmp_path, **expected)
    assert (stored.renderer, stored.key) == ("device", key)
    card = json.loads((tmp_path / labels.CARD).read_text())
    assert card.pop("renderer") == "device"
    (tmp_path / labels.CARD).write_text(json.dumps(card))  # as stores were before
    assert labels.load(tmp_path, **expected).renderer == "workers"


def test_items_are_made_ahead_in_order_and_errors_arrive() -> None:
    made: list[int] = []

    def items(count: int) -> Iterator[int]:
        for number in range(count):
            made.append(number)
            yield number
        raise KeyError("the end")

    ahead = prefetching.in_thread(items(9), 3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    ahead.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert made == [0, 1, 2, 3]
    received: list[int] = []
    with pytest.raises(KeyError, match="the end"):
        received.extend(prefetching.in_thread(items(5), 2))
    assert made[-5:] == list(range(5))

"""Odd teachers are supported, or refused in one line before anything is trained or stored."""

import argparse
import copy
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline import parameters
from pipeline.data import sources, splits, store, writing
from pipeline.data.batches import ViewSet
from pipeline.distillation import adaptation, as_it_is, doubts, teacher_store, trial
from pipeline.distillation.settings import TeacherInput, TeacherMember
from pipeline.parameters import ParameterError
from pipeline.tasks import MULTI_LABEL, SINGLE_LABEL
from pipeline.training import checkpoints, compute, scoring
from pipeline.training.checkpoints import Progress
from pipeline.training.optimisation import Averages
from pipeline.training.settings import ComputeSettings, Phase, TrainingSettings
from teachers import labels, outputs, state_dicts
from teachers.contract import InputContract
from teachers.errors import TeacherError, WeightsError
from teachers.onnx_files import OnnxClassifier
from teachers.sources import SOURCES
from teachers.teacher import Teacher, columns, describe, name_logits, replace_heads
from tests import odd_onnx

CONTRACT = InputContract(odd_onnx.SIZE)


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> ViewSet:
    """Validation images of the classes blue, green and red."""
    listing = sources.folder(photographs)
    made = splits.assign(listing.labelled, train=None, val=0.4, test=0.2, seed=0)
    folder = tmp_path_factory.mktemp("data")
    writing.write(folder, listing, made, {"source": "folder", "path": "x", "license": "CC0-1.0"})
    return ViewSet(store.read(folder, "val"), None, CONTRACT)


def settle(teacher: Teacher, val: ViewSet, **settings: Any) -> Teacher:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    return as_it_is.settle(
        fabric, teacher, val, **{"names": None, "outputs": "auto", "workers": 0, **settings}
    )


def answer(module: nn.Module, val: ViewSet) -> Tensor:
    fabric = compute.start(ComputeSettings(accelerator="cpu", threads=1))
    return scoring.predict(fabric, module, val, odd_onnx.SIZE, 0)


def line(error: pytest.ExceptionInfo[TeacherError]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def write(folder: Path, make: Callable[[Path], Path], name: str = "box.onnx") -> Teacher:
    return SOURCES["onnx"](str(make(folder / name)), "default")


@pytest.mark.parametrize("form", odd_onnx.WORKING)
def test_an_onnx_file_of_an_odd_form_answers_like_the_usual_one(tmp_path: Path, form: str) -> None:
    images = torch.randint(256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 255
    teacher = write(tmp_path, odd_onnx.WORKING[form])
    expected = images.mean((2, 3)) @ torch.from_numpy(odd_onnx.MATRIX)
    assert teacher.outputs == 3
    torch.testing.assert_close(teacher.module(images), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("answers", "colours"), "answers"),
        (("colours", "sums"), "colours"),
        (("colours", "the_logits"), "the_logits"),
    ],
)
def test_the_output_of_several_that_is_taken_is_the_one_called_like_logits_or_the_first_and_is_said(
    tmp_path: Path, names: tuple[str, str], chosen: str
) -> None:
    last = names[1] if names[1] != "colours" else names[0]
    odd_onnx.write(
        tmp_path / "box.onnx", odd_onnx.node("Identity", "sums", output=last.replace("sums", "more"))
    )
    model = onnx.load(tmp_path / "box.onnx")
    del model.graph.output[:]
    for name in names:
        shape = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("batch", 3))
        model.graph.output.append(shape)
    onnx.save(model, tmp_path / "box.onnx")
    teacher = SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    assert isinstance(teacher.module, OnnxClassifier)
    assert teacher.module.output.name == chosen
    assert teacher.origin == f"ONNX file box.onnx, output {chosen!r} of 2"


@pytest.mark.parametrize("form", odd_onnx.BROKEN)
def test_an_onnx_file_that_cannot_be_used_is_one_line(tmp_path: Path, form: str) -> None:
    make, words = odd_onnx.BROKEN[form]
    with pytest.raises(TeacherError) as error:
        write(tmp_path, make)
    assert words in line(error)
    assert "box.onnx" in line(error)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x08\x08" * 40])
def test_a_file_that_is_no_onnx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "box.onnx").write_bytes(content)
    with pytest.raises(TeacherError) as error:
        SOURCES["onnx"](str(tmp_path / "box.onnx"), "default")
    assert "box.onnx" in line(error)
    with pytest.raises(TeacherError) as error:
        SOURCES["onnx"](str(tmp_path), "default")
    assert str(tmp_path) in line(error)


@pytest.mark.parametrize("form", odd_onnx.SHARES)
def test_probabilities_become_logits_by_the_file_or_by_their_values(
    tmp_path: Path, val: ViewSet, form: str
) -> None:
    teacher = settle(write(tmp_path, odd_onnx.SHARES[form]), val)
    plain = settle(write(tmp_path, odd_onnx.write, "plain.onnx"), val)
    assert isinstance(teacher.module, OnnxClassifier)
    assert isinstance(plain.module, OnnxClassifier)
    assert (teacher.module.form, plain.module.form) == ("softmax", "logits")
    expected = answer(plain.module, val).softmax(1)
    torch.testing.assert_close(answer(teacher.module, val).softmax(1), expected, rtol=0, atol=2e-3)
    card = {"source": "onnx", "name": "box.onnx", "adapted": False, "input": CONTRACT.to_dict()}
    assert teacher_store.save(tmp_path / "kept", teacher, val.images.classes, card)["form"] == "softmax"
    again, _ = teacher_store.load(tmp_path / "kept")
    torch.testing.assert_close(answer(again, val), answer(teacher.module, val))


class Colours(nn.Module):
    """A network by mean colour, with an operation after its last layer."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda x: x, least: int = 1) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = nn.Parameter(torch.from_numpy(odd_onnx.MATRIX).T.contiguous())
        self.after, self.least = after, least

    def forward(self, x: Tensor) -> Any:
        if self.training and len(x) < self.least:
            raise ValueError(f"Expected more than 1 value per channel,\n got {len(x)}")
        return self.after(self.last(x.mean((2, 3))))


def test_logits_that_are_called_like_folders_have_the_names_of_the_classes(val: ViewSet) -> None:
    named = replace(val.images, classes=("sky", "grass", "rose"), folders=val.images.classes)
    teacher = replace(describe(Colours(), CONTRACT, "colours"), labels=("red", "blue", "green"))
    assert settle(teacher, replace(val, images=named)).labels == ("rose", "sky", "grass")
    assert settle(teacher, val).labels == ("red", "blue", "green")
    readable = replace(teacher, labels=("rose", "sky", "grass"))
    assert settle(readable, replace(val, images=named)).labels == readable.labels
    with pytest.raises(TeacherError) as error:
        settle(replace(teacher, labels=("rose", "sky", "stone")), replace(val, images=named))
    assert "grass" in line(error)


def test_a_network_that_ends_in_a_softmax_is_labelled_by_its_logits(val: ViewSet) -> None:
    teacher = describe(Colours(lambda x: x.softmax(1)), CONTRACT, "colours")
    settled = settle(teacher, val)
    expected = answer(Colours(), val).log_softmax(1)
    torch.testing.assert_close(answer(settled.module, val), expected, rtol=0, atol=1e-4)
    as_logits = settle(teacher, val, outputs="logits")
    assert as_logits.module is teacher.module
    logarithms = describe(Colours(lambda x: x.log_softmax(1)), CONTRACT, "colours")
    assert settle(logarithms, val).module is logarithms.module


def rows(*values: Sequence[float]) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("values", "exclusive", "form"),
    [
        (rows((0.2, 0.8), (0.9, 0.1)), True, "softmax"),
        (rows((0.0, 1.0), (1.0, 0.0)), True, "softmax"),
        (rows((0.2, 0.7), (0.9, 0.1)), True, None),
        (rows((20.0, 80.0), (90.0, 10.0)), True, None),
        (rows((0.0, 3.0), (1.5, 0.2)), True, "logits"),
        (rows((-1.0, 2.0), (2.0, -1.0)), True, "logits"),
        (rows((0.0, 0.0), (0.0, 0.0)), True, "logits"),
        (rows((0.2, 0.8), (0.9, 0.1)).log(), True, "logits"),
        (rows((0.02, 0.9), (0.9, 0.3)), False, "sigmoid"),
        (rows((0.4, 0.5), (0.6, 0.5)), False, None),
        (rows((0.2, 0.8), (0.9, 0.1)), False, None),
        (rows((-3.0, 2.0), (0.1, 0.2)), False, "logits"),
    ],
)
def test_the_form_of_outputs_is_judged_by_their_values(
    values: Tensor, exclusive: bool, form: str | None
) -> None:
    if form is not None:
        assert outputs.judge(values, exclusive=exclusive) == form
        return
    with pytest.raises(TeacherError, match=r"teacher\.outputs") as error:
        outputs.judge(values, exclusive=exclusive)
    line(error)


@pytest.mark.parametrize("form", odd_onnx.DISGUISED)
def test_probabilities_in_disguise_are_one_line(tmp_path: Path, val: ViewSet, form: str) -> None:
    teacher = write(tmp_path, odd_onnx.DISGUISED[form])
    with pytest.raises(TeacherError, match=r"box\.onnx: .*teacher\.outputs") as error:
        settle(teacher, val)
    line(error)
    assert settle(teacher, val, outputs="logits").module is teacher.module


def test_logits_are_not_taken_for_probabilities_in_disguise() -> None:
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * 4
    centred = logits - logits.mean(1, keepdim=True)
    for each in (
        logits,
        centred,
        centred[:, :2] - centred[:, :2].mean(1, keepdim=True),
        logits.log_softmax(1),
    ):
        assert outputs.judge(each, exclusive=True) == "logits"
        assert outputs.judge(each, exclusive=False) == "logits"
    assert outputs.judge(logits.relu() * 3, exclusive=True) == "logits"


def test_a_softmax_whose_outputs_add_up_to_more_than_1_is_one_line() -> None:
    values = torch.rand(9, 3).softmax(0) * 3
    with pytest.raises(TeacherError, match="softmax") as error:
        outputs.judge(values, exclusive=True, by_file="softmax")
    line(error)


@pytest.mark.parametrize("form", odd_onnx.UNSTEADY)
def test_answers_that_depend_on_more_than_the_image_are_one_line(tmp_path: Path, form: str) -> None:
    teacher = write(tmp_path, odd_onnx.UNSTEADY[form])
    with pytest.raises(
        TeacherError, match=r"^teacher\.ensemble\.0: .*box\.onnx gives other answers"
    ) as error:
        trial.try_out(teacher, CONTRACT, {}, task=SINGLE_LABEL, classes=3, key="teacher.ensemble.0")
    line(error)


def test_a_network_with_a_dropout_that_stays_on_is_one_line() -> None:
    with pytest.raises(TeacherError, match="random") as error:
        try_out(Colours(lambda x: nn.functional.dropout(x, 0.5)), None)
    line(error)


def test_outputs_that_are_no_probabilities_are_not_taken_for_some(val: ViewSet, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"teacher\.outputs") as error:
        settle(write(tmp_path, odd_onnx.write), val, outputs="probabilities")
    assert "box.onnx" in line(error)


def test_a_teacher_of_nan_names_the_images(val: ViewSet) -> None:
    teacher = describe(Colours(lambda x: x / (x - x)), CONTRACT, "colours")
    with pytest.raises(TeacherError, match=r"not finite: .*/\d\d\.jpg") as error:
        settle(teacher, val)
    line(error)


def test_a_teacher_in_another_order_is_noticed(val: ViewSet, tmp_path: Path) -> None:
    teacher = write(tmp_path, lambda path: odd_onnx.write(path, matrix=odd_onnx.MATRIX[:, [1, 0, 2]]))
    found = doubts.find(answer(settle(teacher, val).module, val), val.images)
    assert any("'blue'" in doubt and "teacher.labels" in doubt for doubt in found)
    named = settle(teacher, val, names=["green", "blue", "red"])
    network = columns(named, val.images.classes)
    assert network == (1, 0, 2)
    assert doubts.find(answer(named.module, val)[:, list(network)], val.images) == []


NUMBERS = sorted(map(str, range(1, 11)))


@pytest.mark.parametrize(
    ("known", "classes", "words"),
    [
        (("cat", "Cat", "dog"), ("cat", "dog"), ["'cat'", "0: 'cat'", "1: 'Cat'"]),
        (("t-shirt", "t_shirt"), ("t shirt", "hat"), ["0: 't-shirt'", "1: 't_shirt'"]),
        (("dog", "dog", "cat"), ("cat", "dog"), ["0: 'dog'", "1: 'dog'"]),
        (("n01440764 tench", "tench"), ("tench",), ["0: 'n01440764 tench'", "1: 'tench'"]),
        (("shoe", "Shoe, footwear"), ("shoe",), ["0: 'shoe'", "1: 'Shoe, footwear'"]),
        (("crane", "crane", "kite"), ("crane", "kite"), ["2 logits"]),
        (("hat", "shoe"), ("hat", "Hat"), ["one logit, 0: 'hat'"]),
        (("hat", "shoe"), ("hat", "glove"), ["no 'glove'"]),
        (("café", "cafe\u0301"), ("café",), ["2 logits"]),
        (None, tuple(NUMBERS), ["'1', '10'", "natural", "'1', '2'"]),
        (None, tuple(f"class {n}" for n in NUMBERS), ["natural"]),
        (None, ("a", "b", "c"), ["10 logits without names", "3"]),
    ],
)
def test_an_ambiguous_logit_is_an_error_with_the_candidates(
    known: tuple[str, ...] | None, classes: tuple[str, ...], words: list[str]
) -> None:
    teacher = Teacher(nn.Identity(), len(known) if known else 10, None, (), "a box", known)
    with pytest.raises(TeacherError, match=r"teacher\.labels") as error:
        columns(teacher, classes)
    for part in words:
        assert part in line(error)


@pytest.mark.parametrize(
    ("known", "classes", "expected"),
    [
        (("cat", "Cat"), ("cat", "Cat"), (0, 1)),
        (("n01440764 tench", "goldfish"), ("goldfish", "n01440764"), (1, 0)),
        (("n01440764, tench, Tinca tinca", "hat"), ("Tinca_tinca", "hat"), (0, 1)),
        (("1", "2", "10"), ("1", "10", "2"), (0, 2, 1)),
        (("\uff28\uff21\uff34", "x"), ("hat",), (0,)),
        (("T-shirt/top", "Bag"), ("bag", "T-shirt_top"), (1, 0)),
    ],
)
def test_names_that_are_certain_are_found(
    known: tuple[str, ...], classes: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    assert labels.match(classes, known) == expected


def test_the_user_can_say_whose_logit_is_whose(tmp_path: Path) -> None:
    teacher = Teacher(nn.Identity(), 10, None, (), "a box")
    natural = columns(name_logits(teacher, "natural", NUMBERS), NUMBERS)
    assert natural == tuple(int(name) - 1 for name in NUMBERS)
    assert columns(name_logits(teacher, "data", NUMBERS), NUMBERS) == tuple(range(10))
    (tmp_path / "names.txt").write_text("\n".join(reversed(NUMBERS)))
    (tmp_path / "names.json").write_text(str(NUMBERS[::-1]).replace("'", '"'))
    for file in ("names.txt", "names.json"):
        named = name_logits(teacher, str(tmp_path / file), NUMBERS)
        assert columns(named, NUMBERS) == tuple(reversed(range(10)))
    (tmp_path / "bad.json").write_text('{"a": 1}')
    for bad in ("absent.txt", "bad.json", "."):
        with pytest.raises(TeacherError, match=r"teacher\.labels") as error:
            name_logits(teacher, str(tmp_path / bad), NUMBERS)
        assert str(tmp_path) in line(error)
    with pytest.raises(TeacherError, match=r"2 names .* 10 logits"):
        name_logits(teacher, ["a", "b"], NUMBERS)


def test_names_and_outputs_are_for_teachers_that_are_taken_as_they_are() -> None:
    assert TeacherMember.model_validate({"source": "onnx", "name": "x", "labels": [1, "b"]}).labels == (
        "1",
        "b",
    )
    for key, value in (("labels", ["a"]), ("outputs", "probabilities")):
        with pytest.raises(ValueError, match=key):
            TeacherMember.model_validate(
                {"source": "timm", "name": "x", key: value, "head": {"epochs": 1, "learning_rate": 1}}
            )


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf")])
def test_a_standard_deviation_must_be_positive(deviation: float) -> None:
    with pytest.raises(ValueError, match=r"std"):
        TeacherInput(std=(1.0, deviation, 1.0))
    teacher = Teacher(nn.Identity(), 3, InputContract(64, std=(1.0, deviation, 1.0)), (), "a box")
    with pytest.raises(TeacherError, match=r"a box .*teacher\.input") as error:
        adaptation.contract(teacher, size=None, crop=1.0, corrections=TeacherInput())
    line(error)
    corrected = TeacherInput(std=(0.5, 0.5, 0.5))
    assert adaptation.contract(teacher, size=None, crop=1.0, corrections=corrected).std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("teacher.weights", {"source": "timm", "name": "resnet10t", "weights": __file__}),
        ("teacher.name", {"source": "onnx", "name": __file__, "weights": "default"}),
    ],
)
def test_a_file_of_another_kind_is_noticed_before_any_work(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=rf"{key} = .*\.py") as error:
        parameters.load(changes={"teacher": changes})
    assert all(len(str(problem).splitlines()) == 1 for problem in error.value.args)


NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
STATE = NETWORK.state_dict()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "epoch": 3},
        {"model": STATE, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
        {"state_dict": {name: value + 1 for name, value in STATE.items()}, "state_dict_ema": STATE},
        {"net": {"ema": {"module": STATE}}},
        {f"_orig_mod.{name}": value for name, value in STATE.items()},
        {f"module._orig_mod.{name}": value for name, value in STATE.items()},
        {f"_orig_mod.module.{name}": value for name, value in STATE.items()},
        {name: value for name, value in STATE.items() if "num_batches" not in name},
        {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()},
        AveragedModel(NETWORK).state_dict(),
        {
            "model": {name: value + 1 for name, value in STATE.items()},
            "ema": AveragedModel(NETWORK).state_dict(),
        },
        {f"net.{name}": value for name, value in STATE.items()},
        {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model.{name}": value for name, value in STATE.items()}
            | {"criterion.weight": torch.ones(3), "accuracy.correct": torch.tensor(5)},
        },
        {**STATE, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    ],
    ids=[
        *("parallel", "script", "average", "nested", "compiled", "both", "both again", "no counters", "half"),
        *("averaged", "averaged beside", "another wrapper", "a loss and a metric", "operations"),
    ],
)
def test_state_dicts_of_usual_scripts_are_read(tmp_path: Path, content: dict[str, Any]) -> None:
    for suffix, zipped in ((".pth", True), (".pt", False), (".PTH", True), (".ckpt", True)):
        file = tmp_path / f"weights{suffix}"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        state_dicts.fill(fresh, state_dicts.read(file), str(file))
        for name, value in fresh.state_dict().items():
            torch.testing.assert_close(value, STATE[name], rtol=1e-3, atol=1e-3)


def cut(path: Path, share: float, **arguments: Any) -> None:
    torch.save(STATE, path, **arguments)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def ancient(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")


def with_nan(path: Path) -> None:
    torch.save({name: value * float("nan") for name, value in STATE.items()}, path)


def flipped(path: Path) -> None:
    """One bit of a tensor is another one."""
    torch.save({**STATE, "0.weight": torch.zeros(4, 3, 3, 3)}, path)
    content = path.read_bytes()
    place = content.index(bytes(4 * 4 * 27))
    path.write_bytes(content[: place + 50] + b"\1" + content[place + 51 :])


def stored(change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """The weights with each floating-point tensor changed."""
    return lambda path: torch.save(
        {name: change(value) if value.is_floating_point() else value for name, value in STATE.items()}, path
    )


BAD: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flipped,
    "sparse": stored(lambda value: value.to_sparse()),
    "compressed rows": lambda path: torch.save({"weight": torch.eye(3).to_sparse_csr()}, path),
    "without values": stored(lambda value: value.to("meta")),
    "complex": stored(lambda value: value.to(torch.complex64)),
    "int8": stored(lambda value: (value * 10).to(torch.int8)),
    "bool": stored(lambda value: value > 0),
    "quantised": stored(lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "float8": stored(lambda value: value.to(torch.float8_e4m3fn)),
    "negative variances": stored(lambda value: -value.abs() - 1),
    "text": lambda path: path.write_text("hello"),
    "safetensors": lambda path: save_file(STATE, path),
    "half": lambda path: cut(path, 0.5),
    "almost whole": lambda path: cut(path, 0.98),
    "the start of an old one": lambda path: cut(path, 0.1, _use_new_zipfile_serialization=False),
    "half an old one": lambda path: cut(path, 0.4, _use_new_zipfile_serialization=False),
    "almost an old one": lambda path: cut(path, 0.99, _use_new_zipfile_serialization=False),
    "an ancient one": ancient,
    "not finite": with_nan,
    "a module": lambda path: torch.save(NETWORK, path),
    "an old module": lambda path: torch.save(NETWORK, path, _use_new_zipfile_serialization=False),
    "no tensors": lambda path: torch.save({"epoch": 3, "optimizer": {}}, path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "nothing inside": lambda path: torch.save({}, path),
    "empty": lambda path: path.write_bytes(b""),
    "a page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>Not found</html>"),
    "a pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a folder": Path.mkdir,
    "absent": lambda _: None,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # about making sparse and quantised tensors
@pytest.mark.parametrize("kind", BAD)
def test_bad_weights_are_one_line_with_the_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "weights.pth"
    BAD[kind](file)
    with pytest.raises(WeightsError) as error:
        state_dicts.fill(NETWORK, state_dicts.read(file), str(file))
    assert str(file) in line(error)
    assert "weights_only" not in line(error)


def program(path: Path) -> None:
    torch.jit.save(torch.jit.trace(NETWORK.eval(), torch.zeros(1, 3, 8, 8)), path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("config.json", "{}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # about TorchScript
@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("network.onnx", odd_onnx.write, "an ONNX file"),
        ("network.tflite", lambda path: path.write_bytes(b"\x1c\0\0\0TFL3"), "LiteRT"),
        ("network.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "Keras"),
        ("network.pt", program, "TorchScript"),
        ("network.pt", archive, "config.json"),
        ("network.pt", lambda path: torch.save({**STATE, "epoch": 3}, path), "beside them, epoch"),
    ],
    ids=["onnx", "tflite", "h5", "program", "archive", "a number"],
)
def test_a_network_in_another_form_is_called_by_its_name(
    tmp_path: Path, name: str, make: Callable[[Path], Any], words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(WeightsError) as error:
        state_dicts.read(tmp_path / name)
    assert words in line(error)
    assert str(tmp_path / name) in line(error)
    assert "weights_only" not in line(error)


def test_the_ending_of_a_file_must_fit_its_content(tmp_path: Path) -> None:
    for name, write_file, ending in (
        ("a.pth", save_file, ".safetensors"),
        ("b.safetensors", torch.save, ".pth"),
    ):
        write_file(STATE, tmp_path / name)
        with pytest.raises(WeightsError, match=name) as error:
            state_dicts.read(tmp_path / name)
        assert line(error).endswith(ending)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.pth: this is not a file"):
        state_dicts.read(tmp_path / "folder.pth")


def test_weights_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert state_dicts.read(tmp_path / "plain.pth").keys() == STATE.keys()


@pytest.mark.parametrize(("source", "head"), [("timm", "fc"), ("torchvision", "fc")])
def test_weights_of_a_head_without_classes_are_one_line(tmp_path: Path, source: str, head: str) -> None:
    name = {"timm": "resnet10t", "torchvision": "resnet18"}[source]
    make = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[source]
    state = make(name, num_classes=3).state_dict()
    state |= {f"{head}.{part}": state[f"{head}.{part}"][:0] for part in ("weight", "bias")}
    torch.save(state, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="0 classes") as error:
        SOURCES[source](name, str(tmp_path / "none.pth"))
    assert "none.pth" in line(error)


def test_safetensors_are_read_whatever_the_length_of_their_header(tmp_path: Path) -> None:
    first_bytes = set()
    for length in range(0, 256, 8):  # the header is padded to a multiple of eight bytes
        file = tmp_path / f"{length}.safetensors"
        save_file({f"weight{'_' * length}": torch.ones(2)}, file)
        first_bytes.add(file.read_bytes()[0])
        assert [value.tolist() for value in state_dicts.read(file).values()] == [[1, 1]]
    assert first_bytes == set(range(0, 256, 8))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_cut_safetensors_are_one_line_with_the_file(tmp_path: Path, share: float) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(WeightsError) as error:
        state_dicts.read(file)
    assert str(file) in line(error)


def training(batch_size: int = 4, size: int | None = None) -> TrainingSettings:
    phases = (Phase(share=0.5, size=size), Phase(share=0.5))
    return TrainingSettings(epochs=1, learning_rate=0.1, batch_size=batch_size, phases=phases)


def fails_below(size: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        assert x.shape[-1] >= size, f"Input height ({x.shape[-1]}) doesn't match model ({size})."
        return x

    return forward


class Sized(Colours):
    def forward(self, x: Tensor) -> Any:
        return super().forward(fails_below(64)(x))


class Growing(Colours):
    """Learns nothing, since its answers do not depend on its last layer while it trains."""

    def forward(self, x: Tensor) -> Any:
        answers = super().forward(x)
        return answers.detach() + sum(p.sum() * 0 for p in self.parameters()) if self.training else answers


def try_out(module: nn.Module, settings: TrainingSettings | None, size: int = 64, names: int = 3) -> None:
    teacher = Teacher(module, names, CONTRACT, ("last",), "a network")
    parts = {"head": None, "full": settings}
    trial.try_out(teacher, InputContract(size), parts, task=SINGLE_LABEL, classes=5, key="teacher.ensemble.0")


@pytest.mark.parametrize(
    ("module", "settings", "size", "words"),
    [
        (
            Sized(),
            training(size=32),
            64,
            ["32 pixels (teacher.ensemble.0.full.phases.0.size)", "takes 64, 96"],
        ),
        (Sized(), None, 32, ["32 pixels (teacher.ensemble.0.size)", "takes 64, 96"]),
        (Sized(), training(size=48), 32, ["(teacher.ensemble.0.size) and 48 pixels"]),
        (Colours(lambda x: {"logits": x}), None, 64, ["dict"]),
        (Colours(lambda x: (x, x)), None, 64, ["tuple"]),
        (Colours(lambda x: x[:, :2]), None, 64, ["(2, 2)"]),
        (Colours(lambda x: x.softmax(1)), training(), 64, ["0.2 instead of 0"]),
        (Colours(torch.sigmoid), training(), 64, ["0.5 instead of 0"]),
        (Colours(least=2), training(1), 64, ["batches of 1", "batch_size"]),
        (Growing(), training(), 64, ["no gradient", "last"]),
    ],
)
def test_a_network_that_cannot_be_used_is_one_line_before_any_training(
    module: nn.Module, settings: TrainingSettings | None, size: int, words: list[str]
) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(TeacherError) as error:
        try_out(module, settings, size)
    for part in words:
        assert part in line(error)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_trial_changes_nothing() -> None:
    module = timm.create_model("mobilenetv3_small_050")
    teacher = describe(module, InputContract(64), "a network")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    for task in (SINGLE_LABEL, MULTI_LABEL):
        parts = {"head": training(), "full": training(size=32)}
        trial.try_out(teacher, InputContract(64), parts, task=task, classes=5, key="teacher")
    assert torch.equal(state, torch.get_rng_state())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


ODD = {
    "a convolution": ("torchvision", "squeezenet1_1", 64, 1),
    "auxiliary heads": ("torchvision", "googlenet", 64, 1),
    "two averaged heads": ("timm", "deit_tiny_distilled_patch16_224", 64, 2),
    "two heads behind norms": ("timm", "levit_128s", 224, 2),
    "a convolution behind a pooling": ("timm", "dla46_c", 64, 1),
    "tensors that are shared": ("timm", "coat_lite_tiny", 224, 1),
    "one size alone": ("timm", "mixer_s32_224", 224, 1),
    "positions of any size": ("timm", "vit_tiny_patch16_224", 96, 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_kind_of_last_layer_is_found_replaced_tried_stored_and_loaded(
    tmp_path: Path, kind: str
) -> None:
    source, name, size, count = ODD[kind]
    torch.manual_seed(0)
    teacher = SOURCES[source](name, None)
    contract = InputContract(size)
    assert len(teacher.heads) == count
    trial.try_out(teacher, contract, {"full": training()}, task=SINGLE_LABEL, classes=3, key="teacher")
    replace_heads(teacher, 3)
    for path in teacher.heads:
        nn.init.normal_(teacher.module.get_submodule(path).get_parameter("weight"))
    adapted = Teacher(teacher.module, 3, contract, teacher.heads, teacher.origin, ("a", "b", "c"))
    card = {"source": source, "name": name, "adapted": True, "input": contract.to_dict()}
    teacher_store.save(tmp_path, adapted, "abc", card)
    again, _ = teacher_store.load(tmp_path)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        answers = teacher.module.eval()(images)
        torch.testing.assert_close(again(images), answers, rtol=0, atol=0)
    assert answers.shape == (2, 3)
    assert answers.std() > 0


class Stream(nn.Module):
    """A network whose outputs are the sum of two layers, one of which the other reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        return (features + self.second(features)).mean((2, 3))


def test_features_are_not_taken_for_logits() -> None:
    with pytest.raises(TeacherError, match="last layers") as error:
        describe(Stream(), CONTRACT, "a stream")
    line(error)
    without = SOURCES["timm"]("vit_tiny_patch16_dinov3_qkvb", None)
    assert timm.create_model("vit_tiny_patch16_dinov3_qkvb").num_classes == 0
    assert (without.heads, without.outputs) == (("head",), 1)


class Twins(nn.Module):
    """A network with one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.other = self.one


def test_a_tensor_with_two_names_is_averaged_once() -> None:
    network = Twins()
    averaged = copy.deepcopy(network)
    with torch.no_grad():
        network.one.weight += 1
    expected = averaged.one.weight + 0.1
    Averages(averaged, network).update(0.9)
    torch.testing.assert_close(averaged.one.weight, expected)


def test_checkpoints_and_stored_teachers_keep_what_modules_read_beside_tensors(tmp_path: Path) -> None:
    networks = [torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2)]
    for network, restored in zip(networks, (False, True), strict=True):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        state = {"module": network, "averaged": None, "optimizer": optimizer}
        if restored:
            assert checkpoints.restore(tmp_path, "x", **state) == Progress(3, [])
        else:
            checkpoints.save(tmp_path, "x", Progress(3, []), **state)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, second = (network.eval()(images) for network in networks)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    state_dicts.fill(networks[1], networks[0].state_dict(), "x")

"""LiteRT files: what they compute, what they say about themselves, and what finds a fault in them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.litert import export as litert
from pipeline.litert import interpreter
from pipeline.models.storage import Model
from pipeline.onnx import export
from pipeline.onnx.sessions import open_session
from pipeline.parity import layerwise
from pipeline.parity import litert as rung
from teachers.contract import InputContract
from tests.tiny_students import (
    FLOAT_LAYERS,
    SIZE,
    int8_student,
    photographs,
    quantized,
    ship,
    student,
)

IMAGENET = InputContract(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = InputContract(SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def write(model: Model, folder: Path) -> Path:
    path = folder / f"{model.card.variant}.tflite"
    litert.export(model, path, export.metadata_for(model.card, model.quantization, "abc"))
    return path


def answers(path: Path, images: torch.Tensor) -> np.ndarray:
    return interpreter.open_file(path, threads=1).run(images.numpy())


@pytest.mark.parametrize(
    ("contract", "activation", "padding"),
    [
        (InputContract(SIZE), "relu", "symmetric"),
        (IMAGENET, "relu6", "same"),
        (HALF, "relu6", "same"),
        (InputContract(50), "relu", "same"),
    ],
)
def test_a_float_file_gives_the_logits_of_the_onnx_file(
    tmp_path: Path, contract: InputContract, activation: str, padding: str
) -> None:
    check_against_onnx(student(contract, activation, padding=padding), tmp_path)


@pytest.mark.parametrize(
    ("contract", "padding"), [(InputContract(SIZE), "symmetric"), (replace(HALF, size=50), "same")]
)
def test_an_int8_file_gives_the_logits_of_the_onnx_file(
    tmp_path: Path, contract: InputContract, padding: str
) -> None:
    check_against_onnx(quantized(student(contract, "relu6", padding=padding)), tmp_path)


def check_against_onnx(model: Model, folder: Path) -> None:
    images = photographs(3, model.card.input.size)
    path = write(model, folder)
    expected = layerwise.answers(open_session(ship(model, folder)), images)
    assert answers(path, images) == pytest.approx(expected, abs=2e-5 * float(np.ptp(expected)))
    assert rung.divergence(model, path, images) is None


@pytest.mark.parametrize(
    ("limit", "float_layers"), [(127, ()), (7, ()), (63, FLOAT_LAYERS), (63, ("classifier",))]
)
def test_every_width_of_weights_and_layers_in_float_are_computed_as_simulated(
    tmp_path: Path, limit: int, float_layers: tuple[str, ...]
) -> None:
    model = int8_student(limit, float_layers)
    assert rung.divergence(model, write(model, tmp_path), photographs(2)) is None

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Int64, UInt8

from pipeline.evaluation import scoring
from pipeline.statistics.intervals import wilson
from tests import tiny_onnx

SHOWN = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1])
LABELS = np.array([0, 1, 2, 2, 1, 0, 1, 2, 2, 0, 0])
"""8 of 11 are labelled as the colour that they show."""


def batches(shown: Int64[np.ndarray, " images"], size: int) -> Iterator[UInt8[np.ndarray, "batch 8 8 3"]]:
    for start in range(0, len(shown), size):
        images = np.full((len(shown[start : start + size]), 8, 8, 3), 20, dtype=np.uint8)
        for image, colour in zip(images, shown[start : start + size], strict=True):
            image[:, :, colour] = 200
        yield images


def score(path: Path, size: int = 4) -> dict[str, Any]:
    return scoring.score(path, batches(SHOWN, size), LABELS, threads=1)[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx.write(tmp_path / "tiny.onnx")


def test_accuracy_is_a_quotient_of_counts_whatever_the_batches(model: Path) -> None:
    results = [score(model, size) for size in (1, 4, 11)]
    assert results[0] == results[1] == results[2]
    assert results[0]["top1"] == 8 / 11
    assert (results[0]["top1_lo"], results[0]["top1_hi"]) == wilson(8, 11)


def test_confusion_counts_rows_by_truth_and_columns_by_answer(model: Path) -> None:
    result = score(model)
    assert result["confusion"] == [[3, 1, 0], [1, 2, 0], [0, 1, 3]]
    counts = [(line["label"], line["n"], line["correct"]) for line in result["classes"]]
    assert counts == [("red", 4, 3), ("green", 3, 2), ("blue", 4, 3)]
    assert (result["classes"][0]["accuracy_lo"], result["classes"][0]["accuracy_hi"]) == wilson(3, 4)
    assert result["confused"] == [
        {"truth": "red", "answer": "green", "count": 1, "of": 4},
        {"truth": "green", "answer": "red", "count": 1, "of": 3},
        {"truth": "blue", "answer": "green", "count": 1, "of": 4},
    ]
    assert result["predictions"] == SHOWN.tolist()


def test_the_result_is_json_and_names_the_very_file(model: Path) -> None:
    result: dict[str, Any] = json.loads(json.dumps(score(model)))
    assert result["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert result["size_bytes"] == len(model.read_bytes())
    assert result["provider"] == "CPUExecutionProvider"


def test_top5_is_scored_only_where_it_means_something(tmp_path: Path) -> None:
    for classes in (5, 6):
        path = tiny_onnx.write(tmp_path / f"{classes}.onnx", labels=[f"class {n}" for n in range(classes)])
        result = score(path)
        assert ("top5" in result) == (classes == 6)


def test_equal_logits_do_not_count_as_top5_hits(tmp_path: Path) -> None:
    constant = np.zeros((3, 8), dtype=np.float32)
    path = tiny_onnx.write(tmp_path / "same.onnx", labels=list("abcdefgh"), weights=constant)
    labels = np.arange(8)
    result, _ = scoring.score(path, batches(labels % 3, 3), labels, threads=1)
    assert (result["top1"], result["top5"]) == (1 / 8, 5 / 8)


def test_ranks_count_the_classes_before_the_true_one() -> None:
    logits = np.array([[3, 1, 2], [5, 5, 5], [0, 1, 9]], dtype=np.float32)
    assert scoring.ranks(logits, np.array([1, 2, 2])).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LABELS[:-1], r"more images than labels \(10\)"),
        (np.append(LABELS, 0), "12 labels, but only 11 images"),
        (np.append(LABELS[:-1], 3), r"0\.\.2"),
        (LABELS[:0], r"more images than labels \(0\)"),
    ],
)
def test_labels_that_do_not_match_are_refused(
    model: Path, labels: Int64[np.ndarray, " labels"], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        scoring.score(model, batches(SHOWN, 4), labels, threads=1)


def test_confidences_are_in_the_order_of_the_images(model: Path) -> None:
    result, confidence = scoring.score(model, batches(SHOWN, 4), LABELS, threads=1)
    assert confidence is not None
    assert confidence.predictions.tolist() == result["predictions"] == SHOWN.tolist()
    # The colour's mean is 200 and the others' 20; the weights divide by 16.
    assert confidence.confidence == pytest.approx(1 / (1 + 2 * np.exp(-180 / 16)), rel=1e-5)
    assert result["calibration"]["ece"] == pytest.approx(confidence.confidence.mean() - 8 / 11, rel=1e-5)

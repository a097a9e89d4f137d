"""The second form of a variant in the folder that ships, which takes any photograph as it is decoded."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import PIL
from jaxtyping import Float32
from PIL import Image
from pydantic import TypeAdapter

from pipeline import files
from pipeline.onnx import inference, photograph
from pipeline.onnx.inference import MULTI_LABEL_TASK, Classifier
from pipeline.onnx.sessions import open_session
from pipeline.running import progress

AGREEMENT = "agreement"
"""Key of the metadata under which the agreement with the ordinary form is stored, as JSON."""


@runtime_checkable
class Photographs(Protocol):
    """Images in their own sizes; an ``ImageSet`` is one."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Decode one image as RGB, upright."""
        ...


@dataclass(frozen=True)
class Agreement:
    """How far a photograph form answers as the variant does on squares that Pillow has resized."""

    images: int
    """Number of images of the test split, which are all of it."""
    same: int
    """Number of images with the same answer: the same best class, or the same attributes from 0.5 on."""
    difference: float
    """Greatest difference of a probability, from 0 to 1."""

    def __str__(self) -> str:
        return (
            f"on the {self.images:,} images of the test split, {self.same:,} answers are the same as with "
            f"Pillow's resizing, and probabilities differ by at most {100 * self.difference:.2f} points"
        )


AGREEMENTS = TypeAdapter(Agreement)
"""The content of a record."""


@dataclass(frozen=True)
class Form:
    """The content of a photograph form, and how far it agrees with the variant."""

    content: bytes
    agreement: Agreement | None
    """None if there were no images to measure it on."""


def name(classifier: Classifier) -> str:
    """Name of the file in the folder."""
    return f"{classifier.path.stem}-photo.onnx"


def build(classifier: Classifier, test: Photographs | None = None, records: Path | None = None) -> Form:
    """Make the photograph form of a variant, and compare both on the whole test split.

    Args:
        classifier: the variant.
        test: the test split of the data that the variant was made with; None skips the comparison.
        records: folder of earlier comparisons, one file per form and version of its libraries; what is there
            is taken, and what is compared is added. None compares anew.

    Raises:
        ModelFileError: a logit is not finite.
        ImageFileError: an image cannot be decoded.
    """
    contract = classifier.contract
    rule = {
        **json.loads(classifier.metadata["input"]),
        "rule": (
            f"Give the RGB bytes of a whole upright image of any size as `{photograph.IMAGE}`. The file cuts "
            f"the centred square whose side is {contract.crop:g} times the shorter side, resizes it to "
            f"{contract.size} x {contract.size} pixels in one antialiased {contract.interpolation} step, and "
            "normalises."
        ),
    }
    model = photograph.extend(
        onnx.load(classifier.path),
        contract,
        independent=classifier.metadata.get("task") == MULTI_LABEL_TASK,
        metadata={**classifier.metadata, "input": json.dumps(rule)},
    )
    agreement = None
    if test is not None:
        content = model.SerializeToString()
        record = records / f"{_question(content)}.json" if records else None
        agreement = record and _read(record)
        if agreement is None:
            agreement = compare(classifier, content, test)
            if record:
                files.write(record, AGREEMENTS.dump_json(agreement))
        entry = model.metadata_props.add()
        entry.key, entry.value = AGREEMENT, json.dumps(asdict(agreement))
    return Form(model.SerializeToString(), agreement)


def _question(content: bytes) -> str:
    """Digest of all that a comparison depends on: the form, which names its data, and the libraries."""
    versions = f"{onnxruntime.__version__} {PIL.__version__}".encode()
    return hashlib.sha256(content + versions).hexdigest()


def _read(record: Path) -> Agreement | None:
    """An earlier comparison; None where the file does not exist or is damaged."""
    try:
        return AGREEMENTS.validate_json(record.read_bytes())
    except (OSError, ValueError):
        return None


def compare(classifier: Classifier, content: bytes, images: Photographs) -> Agreement:
    """Compare a photograph form with its variant, whose images Pillow resizes."""
    session = open_session(content)

    def answers(index: int) -> tuple[bool, float]:
        image = images.image(index)
        [logits] = inference.run(classifier, [inference.render(classifier, image)[None]])
        [wanted] = inference.probabilities(classifier, logits)
        given = {photograph.IMAGE: np.asarray(image)[None]}
        [answer] = np.asarray(session.run([photograph.PROBABILITIES], given)[0])
        same = _answer(classifier, answer) == _answer(classifier, wanted)
        return same, float(np.abs(answer - wanted).max())

    same, difference = 0, 0.0
    with (
        progress.bar(f"compare {name(classifier)}", len(images)) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for alike, apart in pool.map(answers, range(len(images))):
            same, difference = same + alike, max(difference, apart)
            bar.update()
    return Agreement(len(images), same, difference)


def _answer(classifier: Classifier, probabilities: Float32[np.ndarray, " classes"]) -> list[int]:
    """Index of the best class, or of every attribute that the image has."""
    if classifier.metadata.get("task") == MULTI_LABEL_TASK:
        return np.flatnonzero(probabilities >= 0.5).tolist()
    return [int(probabilities.argmax())]

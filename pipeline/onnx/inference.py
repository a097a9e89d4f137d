"""Shipped ONNX files in ONNX Runtime: opened, checked against their own metadata, and run."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, UInt8
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
)
from PIL import Image

from pipeline.data import images
from pipeline.errors import DistilleryError
from pipeline.onnx.sessions import open_session
from teachers import parallel
from teachers.contract import InputContract

INPUT = "images"
OUTPUT = "logits"
GEOMETRY = ("size", "crop", "interpolation")
"""Keys of the metadata that describe the input; mean and standard deviation are inside the graph."""

MULTI_LABEL_TASK = "multi-label-image-classification"
"""Value of the metadata `task` in a file that answers for each label by itself; any other file answers with
one label."""


class ModelFileError(DistilleryError):
    """A file is not a classifier of this pipeline; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Classifier:
    """An open ONNX file and what it says about itself."""

    path: Path
    session: ort.InferenceSession
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    contract: InputContract
    """Size, crop and interpolation; mean and standard deviation are inside the graph already."""
    metadata: dict[str, str]
    """All of the file's ``metadata_props``."""
    parts: int = 1
    """Number of parts of a batch that run at the same time."""


@dataclass(frozen=True)
class Guess:
    """One class that a picture may show, or one attribute that it may have."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """A classifier's answer to one picture."""

    image: Path
    guesses: tuple[Guess, ...]
    """The most probable first."""


def open_classifier(
    path: Path, *, threads: int = 1, parts: int = 1, cores: Sequence[int] = (), provider: str = "cpu"
) -> Classifier:
    """Open a shipped file and check it against its own metadata.

    Args:
        path: path of the file.
        threads: number of threads within an operator. More than one answers a single image sooner.
        parts: number of parts of a batch that run at the same time. More than one answers many images sooner.
        cores: see ``open_session``.
        provider: see ``open_session``.

    Raises:
        ModelFileError: the file is missing, damaged, or not of the shape that the pipeline ships.
    """
    try:
        session = open_session(path, threads=threads, cores=cores, provider=provider)
    except NoSuchFile as error:
        raise ModelFileError(f"{path} does not exist") from error
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented) as error:
        raise ModelFileError(f"{path} cannot be opened as an ONNX model: {error}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    labels = _labels(path, metadata)
    contract = _contract(path, metadata)
    _check_ports(path, session, labels, contract)
    return Classifier(path, session, labels, contract, metadata, parts)


def render(classifier: Classifier, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels that the classifier takes of an RGB image: its centred square, resized."""
    contract = classifier.contract
    return np.asarray(contract.render(image, contract.centre_box(*image.size)))


def run(
    classifier: Classifier, batches: Iterable[UInt8[np.ndarray, "_ height width 3"]]
) -> Iterator[Float32[np.ndarray, "_ classes"]]:
    """Logits of each batch.

    Raises:
        ModelFileError: a logit is not finite.
    """

    def ask(images: np.ndarray) -> np.ndarray:
        return np.asarray(classifier.session.run([OUTPUT], {INPUT: images})[0])

    for logits in parallel.answers(ask, batches, classifier.parts):
        if not np.isfinite(logits).all():
            raise ModelFileError(f"{classifier.path} gives logits that are not finite numbers")
        yield logits


def predict(classifier: Classifier, image: Path, top: int) -> Prediction:
    """The ``top`` most probable classes or attributes of a picture.

    Raises:
        ModelFileError: a logit is not finite.
        ImageFileError: the picture is missing or cannot be read (see ``pipeline.data.images``).
    """
    with images.opened(image) as picture:
        square = render(classifier, picture)
    [logits] = run(classifier, [square[None]])
    [chances] = probabilities(classifier, logits)
    order = np.argsort(-chances, kind="stable")[:top]
    return Prediction(image, tuple(Guess(classifier.labels[int(i)], float(chances[i])) for i in order))


def probabilities(
    classifier: Classifier, logits: Float32[np.ndarray, "*batch classes"]
) -> Float32[np.ndarray, "*batch classes"]:
    """Probabilities of the classes, which exclude each other, or of each attribute by itself."""
    if classifier.metadata.get("task") == MULTI_LABEL_TASK:
        return 1 / (1 + np.exp(-logits))
    from scipy.special import softmax  # most stages do without it

    return softmax(logits, axis=-1)


def _labels(path: Path, metadata: dict[str, str]) -> tuple[str, ...]:
    labels = _json(path, metadata, "labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelFileError(f"{path}: metadata 'labels' is {labels!r}; it takes a JSON list of names")
    return tuple(labels)


def _contract(path: Path, metadata: dict[str, str]) -> InputContract:
    values = _json(path, metadata, "input")
    values = values if isinstance(values, dict) else {}
    missing = [name for name in GEOMETRY if name not in values]
    if missing:
        raise ModelFileError(
            f"{path}: metadata 'input' lacks {', '.join(missing)}; it takes {', '.join(GEOMETRY)}"
        )
    return InputContract(**{name: values[name] for name in GEOMETRY})


def _json(path: Path, metadata: dict[str, str], key: str) -> object:
    if key not in metadata:
        raise ModelFileError(
            f"{path} has no metadata '{key}', so it is not a file of this pipeline "
            f"(it has: {', '.join(sorted(metadata)) or 'none'})"
        )
    try:
        return json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path}: metadata '{key}' is not JSON: {error}") from error


def _check_ports(
    path: Path, session: ort.InferenceSession, labels: tuple[str, ...], contract: InputContract
) -> None:
    """Input and output are what the pipeline ships; a symbolic dimension fits every size."""
    expected = {
        INPUT: ("tensor(uint8)", [None, contract.size, contract.size, 3]),
        OUTPUT: ("tensor(float)", [None, len(labels)]),
    }
    ports = {port.name: port for port in (*session.get_inputs(), *session.get_outputs())}
    for name, (kind, shape) in expected.items():
        port = ports.get(name)
        if port is None and "image" in ports:
            raise ModelFileError(
                f"{path} takes whole photographs, for applications; the variant itself lies beside it, "
                "without -photo in its name"
            )
        if port is None:
            raise ModelFileError(f"{path} has no tensor '{name}' (it has: {', '.join(ports)})")
        fits = len(port.shape) == len(shape) and all(
            size is None or not isinstance(actual, int) or actual == size
            for actual, size in zip(port.shape, shape, strict=True)
        )
        if port.type != kind or not fits:
            raise ModelFileError(
                f"{path}: '{name}' is {port.type} {port.shape}; its metadata asks for {kind} {shape}, "
                "None being any size"
            )

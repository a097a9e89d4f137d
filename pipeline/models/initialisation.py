"""The weights of a student at the start: published ones, a state dict, or those of an earlier run."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn

import students
from pipeline import paths, provenance
from pipeline.models import declarations
from students import published
from students.mobilenet_v1 import ACTIVATIONS
from teachers import hubs, local_files, state_dicts
from teachers.errors import WeightsError
from teachers.labels import LabelsError, match

TENSORFLOW_EPSILON = 1e-3
TIMM_EPSILON = 1e-5
IMAGENET_WITH_BACKGROUND = 1001
"""Number of classes of TensorFlow's models; the first, which is not a class of ImageNet, is dropped."""
OWN_START = "set `student.init.path` to a local copy, or start from random weights: `student.init=null`"
"""What to do about initial weights that cannot be downloaded."""
HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class Start:
    """Initial weights with everything that their values depend on."""

    origin: str
    """Where the weights come from, in words."""
    arguments: dict[str, Any]
    """Keyword arguments of the architecture that the weights fix, widths included."""
    tensors: dict[str, Tensor]
    """State dict of the architecture, without a background class."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; None if they are not known."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean and standard deviation of the input, as in ``InputContract``; TensorFlow's models read [-1, 1]."""
    size: int | None = None
    """Height and width in pixels of the images that the weights were made for; None if they do not say."""
    crop: float | None = None
    """Side of the centred square that is evaluated, as in ``InputContract``; None if it is not known."""
    declares_input: bool = True
    """Whether the weights say how their input is made. A bare state dict does not: ``mean`` and ``std`` are
    then those of the library whose names it has, or of random weights, whose activation, padding and epsilon
    are the defaults of the architecture."""


RANDOM = Start("random weights", {}, {}, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def hub(source: str, path: str) -> AbstractContextManager[None]:
    """Where published weights come from, as ``hubs.download``; nothing to ask for what is a path."""
    if source == "timm" and not local_files.is_weights(path):
        from teachers import timm_models  # slow to import

        return timm_models.hub(path, "default", OWN_START)
    if source == "hugging_face" and not Path(path).is_dir():
        hubs.check_id(path)
        needed = ("config.json",), hubs.HUGGING_FACE_FILES
        is_local = all(hubs.in_hugging_face_cache(path, *names) for names in needed)
        return hubs.download(hubs.HUGGING_FACE, path, OWN_START, is_local=is_local)
    return nullcontext()


def hugging_face(path: str) -> Start:
    """Read a folder that ``save_pretrained`` wrote, or a hub id such as ``google/mobilenet_v1_0.75_192``."""
    folder = Path(path)
    if not folder.is_dir():
        try:
            patterns = ["*.json", "model.safetensors", "pytorch_model.bin"]
            with hub("hugging_face", path):
                folder = Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise WeightsError(f"{path}: neither a folder nor a model on the hub ({_line(error)})") from error
    file = folder / "config.json"
    values = declarations.read(file)
    if values.get("model_type") != "mobilenet_v1":
        raise WeightsError(f"{path}: mobilenet_v1 is expected; config.json says {values.get('model_type')!r}")
    config = declarations.parse(declarations.Configuration, values, file)
    activation = config.hidden_act
    if activation not in ACTIVATIONS:
        raise WeightsError(f"{path}: hidden_act {' or '.join(ACTIVATIONS)} is expected; found {activation!r}")
    weights = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()),
        folder / "model.safetensors",
    )
    tensors = published.translate("hugging_face", state_dicts.read(weights))
    arguments = {
        "activation": activation,
        "padding": "same" if config.tf_padding else "symmetric",
        "norm_eps": config.layer_norm_eps,
    }
    file = folder / "preprocessor_config.json"
    image = declarations.read(file) if file.exists() else {}
    preparation = declarations.parse(declarations.Preparation, image, file)
    from teachers.hugging_face_models import scaling  # imports transformers, which takes seconds

    mean, std = scaling(image)
    whole = preparation.size
    size = preparation.crop_size if preparation.do_center_crop else whole
    names = config.id2label or {}
    try:
        labels = tuple(names[str(index)] for index in range(len(names))) or None
    except KeyError as error:
        raise WeightsError(
            f"{path}: config.json must give id2label one name per class, from 0 on; found {str(names)[:80]}"
        ) from error
    if labels and all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        labels = None  # the names that the library makes up if there are none
    return _published(
        f"Hugging Face {path}",
        arguments,
        tensors,
        labels=labels,
        size=size,
        crop=round(min(1.0, size / whole), 4) if size and whole else None,
        mean=mean,
        std=std,
    )


def timm_model(path: str) -> Start:
    """Read a ``.safetensors`` or ``.pth`` file of timm's ``mobilenetv1``, or a model name of timm's hub."""
    if local_files.is_weights(path):
        tensors = state_dicts.read(Path(path))
    else:
        import timm  # slow to import

        try:
            with hub("timm", path):
                tensors = timm.create_model(path, pretrained=True).state_dict()
        except (RuntimeError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path}: neither a file nor a pretrained timm model ({_line(error)})"
            ) from error
    arguments = {"activation": "relu6", "padding": "symmetric", "norm_eps": TIMM_EPSILON}
    return _published(f"timm {path}", arguments, published.translate("timm", tensors))


def torch_file(path: str) -> Start:
    """Read a state dict in a ``.safetensors`` or ``.pth`` file, with the names of this package, of timm or of
    Hugging Face.

    Raises:
        WeightsError: the file cannot be read, or these are not the weights of a MobileNetV1.
    """
    tensors = state_dicts.read(Path(path))
    library = published.library_of(tensors)
    if library == "timm":
        return replace(timm_model(path), declares_input=False)
    if library is not None:
        padding = "same" if library == "hugging_face" else "symmetric"
        arguments = {"activation": "relu6", "padding": padding, "norm_eps": TENSORFLOW_EPSILON}
        translated = published.translate(library, tensors)
        return _published(f"the state dict {path}", arguments, translated, declares_input=False)
    if published.channels(tensors) is None or HEAD[0] not in tensors:
        needed = "stem.conv.weight, blocks.0.depthwise.conv.weight, ..., classifier.weight"
        raise WeightsError(
            f"{path} is not a MobileNetV1: {needed} are expected, or the names of timm or Hugging Face; "
            f"found {', '.join(list(tensors)[:3])}, ..."
        )
    mean, std = RANDOM.mean, RANDOM.std
    return Start(f"the state dict {path}", {}, tensors, mean=mean, std=std, declares_input=False)


def slim(path: str) -> Start:
    """Read a TensorFlow-slim checkpoint by its prefix, ``mobilenet_v1_0.75_192.ckpt``; needs TensorFlow."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise WeightsError(
            "student.init.source = 'slim' needs TensorFlow: pip install tensorflow-cpu"
        ) from error
    try:
        reader = tf.train.load_checkpoint(path)
        names = sorted(reader.get_variable_to_shape_map())
        tensors = {name: torch.from_numpy(reader.get_tensor(name)) for name in names if name != "global_step"}
    except (ValueError, TypeError, IndexError, tf.errors.OpError) as error:
        raise WeightsError(f"{path} is not an intact TensorFlow checkpoint: {_line(error)}") from error
    arguments = {"activation": "relu6", "padding": "same", "norm_eps": TENSORFLOW_EPSILON}
    return _published(f"TensorFlow-slim {path}", arguments, published.translate("slim", tensors))


def run(path: str) -> Start:
    """Read a student of an earlier run from its folder below ``artifacts/models/``."""
    folder = Path(path)
    file = folder / paths.CARD
    card = declarations.parse(declarations.StudentCard, declarations.read(file), file)
    if card.quantization:
        raise WeightsError(f"{path}: a float student is expected; variant {card.variant} is quantised")
    return Start(
        f"variant {card.variant} of an earlier run ({path})",
        {key: value for key, value in card.arguments.items() if key != "classes"},
        state_dicts.read(folder / paths.WEIGHTS),
        labels=card.labels,
        mean=card.input.mean,
        std=card.input.std,
        size=card.input.size,
        crop=card.input.crop,
    )


SOURCES: dict[str, Callable[[str], Start]] = {
    "hugging_face": hugging_face,
    "timm": timm_model,
    "torch": torch_file,
    "slim": slim,
    "run": run,
}
"""Reader by ``student.init.source``; each raises ``WeightsError`` in one line."""


def source_of(path: str) -> tuple[str, str]:
    """The key of ``SOURCES`` that reads a checkpoint, by what lies there, and the path that it reads.

    Weights that lie beside the card or the configuration of their folder are read with that folder, which
    says more of them. What is neither a file nor a folder is a hub id of Hugging Face.

    Raises:
        WeightsError: nothing lies there, or a folder of another kind.
    """
    place = Path(path)
    if Path(f"{path}.index").is_file():
        return "slim", path
    if place.name in (paths.WEIGHTS, paths.CARD, *hubs.HUGGING_FACE_FILES, "config.json"):
        place = place.parent
    for name, source in ((paths.CARD, "run"), ("config.json", "hugging_face")):
        if place.is_dir() and (place / name).is_file():
            return source, str(place)
    if Path(path).is_dir():
        raise WeightsError(
            f"{path} holds neither {paths.CARD}, as a student of an earlier run does, nor config.json, as "
            "a folder of Hugging Face does"
        )
    if Path(path).is_file() or local_files.is_weights(path):
        return "torch", path
    if not local_files.may_be_checkpoint(path):
        raise WeightsError(f"{path}: no such file or folder")
    return "hugging_face", path


def fingerprint(path: str) -> str | None:
    """SHA-256 over the files of a checkpoint on this machine; None for one on a hub.

    Raises:
        WeightsError: nothing lies there, or a folder of another kind.
    """
    _, found = source_of(path)
    place = Path(found)
    if place.is_file():
        return provenance.sha256(place)
    names = (
        paths.WEIGHTS,
        paths.CARD,
        "config.json",
        "preprocessor_config.json",
        *hubs.HUGGING_FACE_FILES,
    )
    files = [place / name for name in names] if place.is_dir() else [*place.parent.glob(f"{place.name}.*")]
    hashes = {file.name: provenance.sha256(file) for file in files if file.is_file()}
    return provenance.identity(files=hashes) if hashes else None


def network(architecture: str, arguments: dict[str, Any], labels: Sequence[str], start: Start) -> nn.Module:
    """Build a student with the initial weights; for classes that they do not know, its head gets new ones.

    Args:
        architecture: key of ``students.ARCHITECTURES``.
        arguments: keyword arguments of the architecture, ``classes`` included.
        labels: class names in the order of the logits. The head keeps the weights of these classes if the
            initial weights name all of them (see ``known_classes``), or name none and are for as many.
        start: initial weights.

    Raises:
        WeightsError: widths, names or shapes are not those of the architecture.
    """
    expected, actual = tuple(arguments["channels"]), published.channels(start.tensors)
    if actual is not None and actual != expected:
        raise WeightsError(f"{start.origin}: widths {expected} are expected; {actual} were found")
    try:
        module = students.build(architecture, arguments)
    except (TypeError, ValueError, LookupError) as error:
        if start is RANDOM:
            raise
        raise WeightsError(
            f"{start.origin}: its arguments are not those of {architecture}: {type(error).__name__}: "
            f"{_line(error)}"
        ) from error
    if start is RANDOM:
        return module
    fresh = module.state_dict()
    tensors = dict(start.tensors)
    known = known_classes(labels, start)
    if known is None:
        tensors |= {name: fresh[name] for name in HEAD if name in tensors}
    else:
        tensors |= {name: tensors[name][known] for name in HEAD if name in tensors}
    # TensorFlow does not count batches, and PyTorch needs the count for an average without momentum only.
    counters = {name: value for name, value in fresh.items() if name.endswith(".num_batches_tracked")}
    state_dicts.fill(module, {**counters, **tensors}, start.origin)
    return module


def known_classes(labels: Sequence[str], start: Start) -> list[int] | None:
    """The logits of initial weights that stand for these classes (see ``teachers.labels.match``); None unless
    there is one for each class."""
    outputs = len(start.tensors.get(HEAD[1], ()))
    if start.labels in (None, tuple(labels)):
        return list(range(outputs)) if outputs == len(labels) else None
    if len(start.labels) != outputs:
        return None
    try:
        return list(match(labels, start.labels))
    except LabelsError:
        return None


def _published(
    origin: str,
    arguments: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    labels: tuple[str, ...] | None = None,
    **contract: Any,
) -> Start:
    if len(tensors.get(HEAD[1], ())) == IMAGENET_WITH_BACKGROUND:
        tensors |= {name: tensors[name][1:] for name in HEAD if name in tensors}
        labels = labels[1:] if labels else None
    return Start(origin, arguments, tensors, labels, **contract)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

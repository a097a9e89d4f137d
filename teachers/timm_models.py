"""Any model of timm (https://github.com/huggingface/pytorch-image-models)."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from teachers import hubs, local_files, state_dicts, teacher
from teachers.contract import InputContract
from teachers.errors import TeacherError, one_line
from teachers.hubs import HubError
from teachers.teacher import Teacher

FLEXIBLE: dict[str, Any] = {"dynamic_img_size": True}
"""Argument with which vision transformers take images of any size; at their own size they compute the
same."""


ON_HUB = ("hf-hub:", "hf_hub:")
"""Beginnings of names that stand for any repository on Hugging Face's hub."""


def load(name: str, weights: str | None) -> Teacher:
    """Load a timm model.

    ``weights`` is ``default`` for pretrained weights, a local file, or null for random ones.

    Raises:
        TeacherError: the name is unknown, or the weights cannot be downloaded.
        WeightsError: the local file is damaged, contains code, or belongs to another model.
    """
    local = local_files.is_weights(weights)
    if not local and weights not in ("default", None):
        raise TeacherError(
            f"teacher.weights (={weights!r}) must be `default`, a {local_files.KINDS} file or null for timm"
        )
    try:
        with hub(name, weights):
            module = create(name, pretrained=weights == "default")
    except HubError:
        raise
    except Exception as error:  # the library, its hub and the file system fail in many ways
        raise TeacherError(f"timm model {name!r}: {one_line(error)}") from error
    if not local:
        names = image_net_names(module) if weights else None
        return describe(module, f"timm {name}", names)
    file = Path(str(weights))
    loaded = state_dicts.build(
        lambda classes: create(name, num_classes=classes), describe(module, f"timm {name}").heads, file
    )
    return describe(loaded, f"timm {name}, weights of {file.name}")


def hub(name: str, weights: str | None, instead: str = hubs.OWN_WEIGHTS) -> AbstractContextManager[None]:
    """Where the weights of a model come from, as ``hubs.download``; an unknown model is left to timm."""
    if name.startswith(ON_HUB):
        repository = name.partition(":")[2].partition("@")[0]
        is_local = all(
            hubs.in_hugging_face_cache(repository, *n) for n in (["config.json"], hubs.HUGGING_FACE_FILES)
        )
        return hubs.download(hubs.HUGGING_FACE, f"timm model {name!r}", instead, is_local=is_local)
    if weights != "default" or not timm.is_model(name):
        return nullcontext()
    config = timm.get_pretrained_cfg(name)
    repository, address = getattr(config, "hf_hub_id", None), getattr(config, "url", None)
    if repository:
        address = hubs.HUGGING_FACE
        names = (getattr(config, "hf_hub_filename", None), *hubs.HUGGING_FACE_FILES)
        is_local = hubs.in_hugging_face_cache(repository, *filter(None, names))
    elif address:
        is_local = hubs.in_torch_cache(address)
    else:
        return nullcontext()  # a model without published weights, which timm refuses
    return hubs.download(address, f"timm model {name!r}", instead, is_local=is_local)


def create(name: str, **arguments: Any) -> nn.Module:
    """Create a model that takes images of any size, if its architecture can do so.

    A model that is published without a classifier gets one with a single output, which adaptation replaces.
    """
    module = _create(name, **arguments)
    return module if getattr(module, "num_classes", None) != 0 else _create(name, num_classes=1, **arguments)


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(name, **{**FLEXIBLE, **arguments})
    except TypeError as error:
        if next(iter(FLEXIBLE)) not in str(error):
            raise
        return timm.create_model(name, **arguments)


def describe(module: nn.Module, origin: str, names: tuple[str, ...] | None = None) -> Teacher:
    """Make a teacher of a timm module, with the input contract from timm's configuration."""
    config = resolve_model_data_config(module)
    contract = InputContract(
        size=config["input_size"][-1],
        mean=config["mean"],
        std=config["std"],
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        crop=config["crop_pct"],
    )
    return teacher.describe(module, contract, origin, names)


def image_net_names(module: nn.Module) -> tuple[str, ...] | None:
    """Synset id and names of every logit of published weights, if those are of one of ImageNet's sets."""
    subset = infer_imagenet_subset(module)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(
        f"{info.index_to_label_name(index)}, {info.index_to_description(index)}"
        for index in range(info.num_classes())
    )

"""Sentences and names that the page and the model card share."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.evidence import Part
from pipeline.report.figures import figure
from pipeline.selection import scored
from pipeline.selection.table import TEACHER, Row
from pipeline.tasks import SINGLE_LABEL, Task

SNIPPET = """\
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{variant}.onnx")
metadata = session.get_modelmeta().custom_metadata_map
labels, rule = json.loads(metadata["labels"]), json.loads(metadata["input"])

image = ImageOps.exif_transpose(Image.open("photo.jpg"))
if image.mode in ("I", "F"):
    raise ValueError("the range of its grey values is not known")
if image.mode.startswith("I;16"):  # 16-bit grey
    grey = np.asarray(image)
    grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
    image = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
rgba = image.convert("RGBA")
image = Image.new("RGB", rgba.size, "white")  # under what is transparent
image.paste(rgba, mask=rgba)
side = rule["crop"] * min(image.size)
left, top = (image.width - side) / 2, (image.height - side) / 2
pixels = image.resize(
    (rule["size"], rule["size"]),
    Image.Resampling[rule["interpolation"].upper()],
    box=(left, top, left + side, top + side),
)
[logits] = session.run(["logits"], {{"images": np.asarray(pixels)[None]}})
print(labels[logits[0].argmax()])
"""
"""Python code that classifies one photograph with a shipped file."""

THIRDS = {
    "brightness": ("darkest third", "middle third", "brightest third"),
    "aspect_ratio": ("narrowest third", "middle third", "widest third"),
    "object_scale": ("smallest third", "middle third", "largest third"),
}
"""Names of the thirds of the test images by the columns that the pipeline measures itself."""

NO_DIFFERENCE = "no significant difference"
NOT_MEASURED = "not measured here"
"""Stands for the duration of a training that ran on another machine."""

LOCAL_FOLDERS = re.compile(r"(^|[\s(])(?:[A-Za-z]:|~|\.{1,2})?/(?:[^()]*/)?")
"""The folders of a path that is absolute, or begins at the home folder or the current one."""

GIVEN = "the given network"
"""The network that `load` takes as it is, where no variant is distilled from it."""


def snippet(variant: str) -> str:
    """Python code that classifies one photograph with this variant's file."""
    return SNIPPET.format(variant=variant)


def data_name(data: Part) -> str:
    """The name of the data set."""
    return Path(data["path"]).name if data["source"] != "fashion_mnist" else data["source"].replace("_", "-")


def noun(task: Task, number: int = 1) -> str:
    """What a classifier of this task names: classes or attributes."""
    singular, plural = ("class", "classes") if task is SINGLE_LABEL else ("attribute", "attributes")
    return singular if number == 1 else plural


def counted(number: int, singular: str, plural: str = "") -> str:
    """The number and its noun: ``1 image``, ``2,000 images``."""
    return f"{figure(number)} {singular if number == 1 else plural or f'{singular}s'}"


def duration(seconds: float | None) -> str:
    """The duration of a training in minutes, if it was measured on this machine."""
    return NOT_MEASURED if seconds is None else figure(seconds, "minutes")


def left_out(costs: Part) -> str:
    """The trainings that an estimate lacks, as the end of a clause; nothing if it lacks none."""
    missing = costs["not_measured"]
    return f", without {', '.join(missing)} ({NOT_MEASURED})" if missing else ""


def sentence(text: str) -> str:
    """The text with a full stop at its end."""
    return text if text.endswith(".") else f"{text}."


def without_folders(origin: str) -> str:
    """The origin of weights with the names of local files alone: the folders are those of one machine."""
    return LOCAL_FOLDERS.sub(r"\1", origin)


def spaced(name: str) -> str:
    """The name of a column or a corruption without underscores."""
    return name.replace("_", " ")


def flips(change: Part) -> str:
    """How many answers changed against the parent; empty for attributes."""
    counts = change.get("flips")
    if not counts:
        return ""
    return (
        f"{counted(counts['lost'], 'image')} became wrong and {figure(counts['gained'])} became correct; "
        f"{figure(counts['agreement'], '%', 1)} of the answers are identical to those of {change['parent']}."
    )


def verdict(change: Part) -> str:
    """The verdict of the gate in one sentence, with what decided it.

    Args:
        change: a variant's part of ``comparison``.
    """
    parent = GIVEN if change.get("op") == "load" else change["parent"]
    parent = "its teacher" if parent == TEACHER else parent
    limits = change["limits"]
    allowed = scored.points(limits["max_drop"])
    estimate = figure(change["delta"], "points")
    least = figure(max(0.0, -change["lo"]), "gap", 2)
    if change["verdict"] == "accept":
        loss = "nothing" if change["lo"] >= 0 else f"not more than {least}"
        return (
            f"Accepted: {estimate} against {parent}, and {loss} is lost with 95 % confidence; the limit is "
            f"{allowed}."
        )
    worst = min((of for of in change["classes"] if of["worse"]), key=lambda of: of["delta"], default=None)
    if change["lo"] < -limits["max_drop"]:
        return (
            f"Rejected: {estimate} against {parent}, and up to {least} may be lost; the limit is {allowed}."
            f"{_more_images(change)}"
        )
    if worst and worst["delta"] < -limits["max_class_drop"]:
        return (
            f"Rejected: the {'class' if change.get('flips') else 'attribute'} "
            f"{worst['label']} changes by {figure(worst['delta'], 'points')} against {parent}; "
            f"the limit is a loss of {scored.points(limits['max_class_drop'])}."
        )
    return change["reason"]


def within(change: Part) -> str:
    """What lies below the verdict of a variant whose difference from its parent is not significant."""
    if change["lo"] >= -change["limits"]["max_drop"]:
        return NO_DIFFERENCE
    return f"{counted(change['n'], 'image')} do not exclude a loss of {figure(-change['lo'], 'gap')}"


def _more_images(change: Part) -> str:
    """How many test images would show that a loss is within the limit, if any number would."""
    needed = change["images_needed"]
    if needed is None:
        return ""
    return (
        f" {counted(change['n'], 'test image')} cannot exclude such a loss; about {figure(needed)} would, at "
        "this rate of changed answers."
    )


def third(column: str, name: str, names: Sequence[str]) -> str:
    """The name of a group of test images, in words if the pipeline itself divided the images into thirds.

    Args:
        column: the property of the images.
        name: the group, such as ``0.1 to 0.4``.
        names: all groups of the column, in order.
    """
    if column in THIRDS and len(names) == len(THIRDS[column]):
        return THIRDS[column][list(names).index(name)]
    return name


def group(column: str, name: str, names: Sequence[str]) -> str:
    """The same, followed by the range of values: ``darkest third (0.1 to 0.4)``."""
    text = third(column, name, names)
    return text if text == name else f"{text} ({name})"


def origin(row: Row) -> str:
    """What a variant was made from, and how."""
    if row.op == "load":
        return f"{GIVEN}, loaded"
    return f"{row.op} from {TEACHER}" if row.parent == TEACHER else f"{row.op} of {row.parent}"

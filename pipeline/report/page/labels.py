"""The page's pictures of training images whose label the teacher contradicts."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report import words
from pipeline.report.evidence import Part, inline_picture
from pipeline.report.figures import figure
from pipeline.report.page.grid import Shot
from pipeline.report.results import RunResults


@dataclass(frozen=True)
class SuspiciousLabels:
    """What the search for wrong labels found."""

    summary: str
    """How many labels are suspicious, and what the search could not see."""
    shots: Sequence[Shot]
    """The images whose label the teacher contradicts most."""
    more: str
    """Number of suspicious labels that are not shown; empty if all are."""
    is_table: bool
    """Whether the list can be given back as ``data.labels``."""
    is_complete: bool
    """Whether the list has the labels of all other images, too."""


def suspicious_labels(results: RunResults) -> SuspiciousLabels | None:
    """The suspicious labels of a run; None where none were looked for."""
    part = results.evidence.suspects
    if part is None:
        return None
    hidden = part["suspects"] - len(part["images"])
    folder = results.evidence.folder
    return SuspiciousLabels(
        summary=" ".join(_sentences(part, results.teacher_name)),
        shots=[
            Shot(
                inline_picture(folder / image["file"]),
                f"labelled {_named(image, image['label'])}",
                _lines(image, results.teacher_name),
            )
            for image in part["images"]
        ],
        more=figure(hidden) if hidden else "",
        is_table=results.data["source"] == "folder",
        is_complete=part["complete"],
    )


def _sentences(part: Part, teacher: str) -> Sequence[str]:
    found, labels = part["suspects"], part["labels"]
    if not labels:
        return ["No label was judged, since each view of each training image is mixed with another image."]
    share = f" ({figure(found / labels, '%')})" if found else ""
    sentences = [
        f"The {teacher} contradicts {figure(found) if found else 'none'} of the {figure(labels)} labels of "
        f"training images{share}."
    ]
    if part["trained_on_them"]:
        sentences.append("It was trained on these labels, and misses wrong ones that it memorised.")
    if unseen := part["not_judged"]:
        sentences.append(
            f"{words.counted(unseen, 'image was', 'images were')} not judged, since each of "
            f"{'its' if unseen == 1 else 'their'} views is mixed with another image."
        )
    return sentences


def _lines(image: Part, teacher: str) -> Sequence[tuple[str, bool]]:
    def answer(key: str) -> str:
        return f"{_named(image, image[key])}, {figure(image[f'{key}_probability'], '%', 0)}"

    return [
        (f"{teacher}: {answer('suggestion')}", False),
        (answer("label"), True),
        (image["file_name"], True),
    ]


def _named(image: Part, label: str) -> str:
    """A class; or an attribute, and whether the image has it."""
    if "attribute" not in image:
        return label
    return image["attribute"] if label == "1" else f"not {image['attribute']}"

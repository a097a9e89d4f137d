"""The page's facts of the data and of the teacher."""

from collections.abc import Sequence

from pipeline.report import words
from pipeline.report.figures import figure
from pipeline.report.findings import SHOWN_CLASSES
from pipeline.report.page.grid import DARKEST, Cell, Grid
from pipeline.report.results import RunResults


def facts(results: RunResults) -> Sequence[tuple[str, str]]:
    """The data set and the teacher, as terms and values."""
    data, teacher, task = results.data, results.teacher, results.task
    images = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    rejected, leaked = len(data["rejected"]), data["leaked_between_splits"]
    scores = ", ".join(
        f"{split} {figure(teacher[split][task.metric], '%')} of {figure(teacher[split]['n'])} images"
        for split in ("val", "test")
    )
    return (
        ("images", f"{images}; source: {data['source']}"),
        (words.noun(task, 2), _shortened(data["classes"])),
        (
            "rejected",
            f"{words.counted(rejected, 'file')}, duplicates included; report.json has the reason for each"
            if rejected
            else "none",
        ),
        (
            "in two splits",
            f"{words.counted(leaked, 'image')}, removed from train or val" if leaked else "no image",
        ),
        *([("notes", "; ".join(data["notes"]))] if data.get("notes") else []),
        ("license", data["license"]),
        ("SHA-256 of the data", data["data_sha256"]),
        (results.teacher_name, f"{teacher['origin']}, {teacher['input']['size']} px"),
        (f"{task.words} of the {results.teacher_name}", scores),
    )


def counts(results: RunResults) -> Grid | None:
    """Number of images per class and split; None where all classes are equally frequent.

    Of many classes, the rarest are shown.
    """
    data = results.data
    by_split = data.get("counts", {})
    if all(len({of.get(name, 0) for name in data["classes"]}) == 1 for of in by_split.values()):
        return None
    names, note = data["classes"], ""
    if len(names) > SHOWN_CLASSES:
        rarest = sorted(names, key=lambda name: by_split["train"].get(name, 0))[:SHOWN_CLASSES]
        names = [name for name in names if name in rarest]
        note = f"Shown are the {SHOWN_CLASSES} rarest of {len(data['classes']):,}."
    largest = {split: max(of.values(), default=1) for split, of in by_split.items()}

    def cell(split: str, name: str) -> Cell:
        count = by_split[split].get(name, 0)
        return Cell(figure(count), shade=round(0.6 * DARKEST * count / largest[split]), tone="accept")

    rows = [(name, [cell(split, name) for split in by_split]) for name in names]
    return Grid(words.noun(results.task), list(by_split), rows, note)


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_CLASSES])
    hidden = len(names) - SHOWN_CLASSES
    return f"{shown} and {hidden:,} more" if hidden > 0 else shown

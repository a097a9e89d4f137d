"""The page's pictures of what each layer can bear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report import svg
from pipeline.report.evidence import Part
from pipeline.report.figures import figure
from pipeline.report.sections import Cell, Grid
from pipeline.tasks import METRICS, Task


@dataclass(frozen=True)
class Picture:
    """One picture, what to read from it, and its figures."""

    title: str
    text: str
    chart: Markup
    figures: Grid


def pictures(part: Part | None) -> list[Picture]:
    """Of every variant that others are pruned or quantised from; none where nothing was measured.

    Args:
        part: as the stage `dissect` writes it.
    """
    if not part or "variants" not in part:
        return []
    task = METRICS[part["metric"]]
    drawn = []
    for variant, of in part["variants"].items():
        if "channels" in of:
            drawn.append(_channels(variant, of["score"], of["channels"], task))
        if "int8" in of:
            drawn.append(_int8(variant, of["score"], of["int8"], task))
    return drawn


def note(part: Part | None) -> str:
    """What the pictures were measured on, and what they leave out."""
    if not part or "variants" not in part:
        return ""
    return (
        f"{figure(part['n'])} val images at {figure(part['size'])} pixels, batch norm's statistics from "
        f"{figure(part['settling'])} training images at that size, nothing trained: figures rank layers and "
        f"are no variant's own. One image is {figure(1 / part['n'], 'gap')}."
    )


def _channels(variant: str, whole: float, layers: Mapping[str, Mapping[str, float]], task: Task) -> Picture:
    ratios = sorted(next(iter(layers.values())), key=float, reverse=True)
    worst = {name: min(scores.values()) for name, scores in layers.items()}
    first, last = min(worst, key=lambda name: worst[name]), max(worst, key=lambda name: worst[name])
    return Picture(
        title=f"{variant}: fewer channels in one layer",
        text=f"The further left, the more is lost while that layer alone keeps a share of its channels. "
        f"{first} bears least ({figure(worst[first] - whole, 'points', 1)}), {last} most "
        f"({figure(worst[last] - whole, 'points', 1)}): layers whose dots stay at the line "
        "can be cut deeper.",
        chart=svg.dots(
            [(name, [scores[ratio] for ratio in ratios]) for name, scores in layers.items()],
            [f"{float(ratio):.0%} kept" for ratio in ratios],
            [("whole", whole)],
            title=f"{task.words} of {variant} with fewer channels in one layer",
            x_label=f"{task.words}, %",
        ),
        figures=_grid(
            [f"{float(ratio):.0%} kept" for ratio in ratios],
            {name: [scores[ratio] for ratio in ratios] for name, scores in layers.items()},
            task,
        ),
    )


def _int8(variant: str, whole: float, of: Part, task: Task) -> Picture:
    layers: Mapping[str, Mapping[str, float]] = of["layers"]
    worst = min(layers, key=lambda name: layers[name]["alone"])
    spared = max(layers, key=lambda name: layers[name]["spared"])
    series = ("alone", "spared")
    words = ("alone in int8", "alone in float")
    return Picture(
        title=f"{variant}: one layer in int8",
        text=f"A layer whose filled dot lies left of the float line suffers by its own int8; "
        f"one whose pale dot lies right of the int8 line is worth leaving in float. {worst} suffers most "
        f"({figure(layers[worst]['alone'] - whole, 'points', 1)}); leaving {spared} in float moves int8 by "
        f"{figure(layers[spared]['spared'] - of['score'], 'points', 1)}.",
        chart=svg.dots(
            [(name, [scores[key] for key in reversed(series)]) for name, scores in layers.items()],
            list(reversed(words)),
            [("float", whole), ("int8", of["score"])],
            title=f"{task.words} of {variant} with one layer in int8, and with all but one",
            x_label=f"{task.words}, %",
        ),
        figures=_grid(
            words, {name: [scores[key] for key in series] for name, scores in layers.items()}, task
        ),
    )


def _grid(columns: Sequence[str], rows: Mapping[str, Sequence[float]], task: Task) -> Grid:
    return Grid(
        corner=f"{task.words}, %",
        columns=columns,
        rows=[
            (name, [Cell(figure(score, "%", 1, bare=True)) for score in scores])
            for name, scores in rows.items()
        ],
    )

"""The page's charts of layer sensitivity."""

from collections.abc import Mapping, Sequence

from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.grid import Cell, Figure, Grid
from pipeline.tasks import METRICS, Task

Scores = Mapping[str, Mapping[str, float]]
"""Measurements of one layer: keep ratio, or `alone` and `spared`, to score and changed probability."""


def pictures(part: Part | None) -> list[Figure]:
    """One chart per variant and kind of compression; none where nothing was measured.

    Args:
        part: the result of the stage `sensitivity`.
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
    """The images that the charts were measured on, and the limits of the method."""
    if not part:
        return ""
    return (
        f"Measured on {figure(part['n'])} validation images at {figure(part['size'])} pixels, where one "
        f"image is {figure(1 / part['n'], 'gap')}. Batch norm statistics come from "
        f"{figure(part['settling'])} training images at that size; nothing was trained. Compare layers with "
        "each other, not with the scores of the variants."
    )


def _channels(variant: str, uncompressed: float, layers: Mapping[str, Scores], task: Task) -> Figure:
    ratios = sorted(next(iter(layers.values())), key=float, reverse=True)
    shares = [f"{figure(float(ratio), '%', 0)} kept" for ratio in ratios]
    rows = {name: [of[ratio]["score"] for ratio in ratios] for name, of in layers.items()}
    worst = {name: min(scores) - uncompressed for name, scores in rows.items()}
    least, most = min(worst, key=lambda name: worst[name]), max(worst, key=lambda name: worst[name])
    return Figure(
        title=f"{variant}: pruning one layer",
        text=f"Score ({task.words}) when a single layer keeps only a share of its channels; further left is "
        f"worse. Most sensitive: {least} ({figure(worst[least], 'points', 1)}). "
        f"Least sensitive: {most} ({figure(worst[most], 'points', 1)}).",
        chart=charts.dots(
            list(rows.items()),
            shares,
            ("all channels", uncompressed),
            title=f"{task.words} of {variant} with fewer channels in one layer",
            x_label=f"{task.words}, %",
        ),
        table=_grid(
            f"{task.words}, %",
            shares,
            {name: [_score(value) for value in scores] for name, scores in rows.items()},
        ),
    )


def _int8(variant: str, uncompressed: float, int8: Part, task: Task) -> Figure:
    layers: Mapping[str, Scores] = int8["layers"]
    together = int8["together"]
    rows = {name: [of["spared"]["moved"], of["alone"]["moved"]] for name, of in layers.items()}
    most = max(rows, key=lambda name: rows[name][1])
    spare = min(rows, key=lambda name: rows[name][0])
    alone = [of["alone"]["score"] for of in layers.values()]
    return Figure(
        title=f"{variant}: quantising one layer",
        text="Probability that int8 shifts to other classes. Dark dots: only this layer is int8; further "
        "right is worse. Pale dots: only this layer is float; further left of the line means that leaving "
        f"it in float helps more. Most sensitive: {most} ({figure(rows[most][1], '%')} shifted). Leaving "
        f"{spare} in float reduces the shift from {figure(together['moved'], '%')} to "
        f"{figure(rows[spare][0], '%')}. Score: {figure(uncompressed, '%', 1)} in float, "
        f"{span(min(alone), max(alone), '%', 1)} with one layer in int8, "
        f"{figure(together['score'], '%', 1)} with all layers in int8.",
        chart=charts.dots(
            list(rows.items()),
            ["this layer in float", "this layer in int8"],
            ("all in int8", together["moved"]),
            title=f"Probability shifted in {variant} with one layer in int8, and with all but one",
            x_label="probability shifted, %",
        ),
        table=_grid(
            f"{task.words} and probability shifted, %",
            ["only this layer in int8", "all but this layer in int8"],
            {
                name: [_score(of[key]["score"], of[key]["moved"]) for key in ("alone", "spared")]
                for name, of in layers.items()
            },
        ),
    )


def _score(value: float, moved: float | None = None) -> Cell:
    return Cell(figure(value, "%", 1, bare=True), "" if moved is None else figure(moved, "%", bare=True))


def _grid(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> Grid:
    return Grid(corner=corner, columns=columns, rows=list(rows.items()))

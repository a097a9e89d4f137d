"""The page's pictures of what each layer can bear."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.scores import Cell, Grid
from pipeline.tasks import METRICS, Task

Scores = Mapping[str, Mapping[str, float]]
"""Of one layer: keep ratio, or `alone` and `spared`, to score and moved probability."""


@dataclass(frozen=True)
class Picture:
    """One picture, what to read from it, and its figures."""

    title: str
    text: str
    chart: Markup
    figures: Grid


def pictures(part: Part | None) -> list[Picture]:
    """Of every variant that was measured; none where nothing was.

    Args:
        part: as the stage `sensitivity` writes it.
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
    """What the pictures were measured on, and what they cannot tell."""
    if not part:
        return ""
    return (
        f"{figure(part['n'])} val images at {figure(part['size'])} pixels, where one image is "
        f"{figure(1 / part['n'], 'gap')}; batch norm's statistics from {figure(part['settling'])} training "
        "images at that size, nothing trained. The figures compare layers and are no variant\u2019s own."
    )


def _channels(variant: str, whole: float, layers: Mapping[str, Scores], task: Task) -> Picture:
    ratios = sorted(next(iter(layers.values())), key=float, reverse=True)
    shares = [f"{float(ratio):.0%} kept" for ratio in ratios]
    rows = {name: [of[ratio]["score"] for ratio in ratios] for name, of in layers.items()}
    worst = {name: min(scores) - whole for name, scores in rows.items()}
    least, most = min(worst, key=lambda name: worst[name]), max(worst, key=lambda name: worst[name])
    return Picture(
        title=f"{variant}: fewer channels in one layer",
        text="The further left, the more is lost while that layer alone keeps a share of its channels; "
        f"layers whose dots stay at the line can be cut deeper. {least} bears least "
        f"({figure(worst[least], 'points', 1)}), {most} most ({figure(worst[most], 'points', 1)}).",
        chart=charts.dots(
            list(rows.items()),
            shares,
            ("all channels", whole),
            title=f"{task.words} of {variant} with fewer channels in one layer",
            x_label=f"{task.words}, %",
        ),
        figures=_grid(
            f"{task.words}, %",
            shares,
            {name: [_score(value) for value in scores] for name, scores in rows.items()},
        ),
    )


def _int8(variant: str, whole: float, int8: Part, task: Task) -> Picture:
    layers: Mapping[str, Scores] = int8["layers"]
    together = int8["together"]
    rows = {name: [of["spared"]["moved"], of["alone"]["moved"]] for name, of in layers.items()}
    most = max(rows, key=lambda name: rows[name][1])
    spare = min(rows, key=lambda name: rows[name][0])
    alone = [of["alone"]["score"] for of in layers.values()]
    return Picture(
        title=f"{variant}: one layer in int8",
        text="How much probability moves to other classes. The further right a dark dot, the more that layer "
        "alone does; the further left of the line a pale one, the more it helps to leave it in float. "
        f"{most} moves most ({figure(rows[most][1], '%')}); leaving {spare} in float would take "
        f"{figure(together['moved'], '%')} to {figure(rows[spare][0], '%')}. {task.words} is "
        f"{figure(whole, '%', 1)} in float, {span(min(alone), max(alone), '%', 1)} with one layer in int8, "
        f"{figure(together['score'], '%', 1)} with all.",
        chart=charts.dots(
            list(rows.items()),
            ["this layer in float", "this layer in int8"],
            ("all in int8", together["moved"]),
            title=f"Probability that moves in {variant} with one layer in int8, and with all but one",
            x_label="probability moved, %",
        ),
        figures=_grid(
            f"{task.words}, probability moved, %",
            ["only this layer in int8", "all but this layer"],
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

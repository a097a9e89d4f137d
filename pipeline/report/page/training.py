"""The page's curves of training, and the choices of pruning and of means with the start."""

from collections.abc import Sequence

from markupsafe import Markup

from pipeline.models.histories import continued, seconds
from pipeline.report import words
from pipeline.report.evidence import Part
from pipeline.report.figures import figure
from pipeline.report.page import charts
from pipeline.report.page.grid import Cell, Figure, Grid
from pipeline.report.results import RunResults
from pipeline.selection.table import TEACHER
from pipeline.tasks import METRICS

LEAST_POINTS = 3
"""Least number of points that make a curve; of shorter trainings, one sentence says all."""

CRITERIA = {"l1": "L1 norm", "fpgm": "geometric median (FPGM)", "taylor": "Taylor expansion of the loss"}
SHAPES = {
    "uniform": "the same share in every layer",
    "sensitivity": "by the sensitivity of each layer",
}


def curves(results: RunResults) -> list[Figure]:
    """Loss and validation score of each training that has enough points to draw."""
    return [
        Figure(
            title=name,
            text=f"{_epochs(history)}, duration {words.duration(total)}",
            chart=_curve(name, history),
        )
        for name, history, total in _histories(results)
        if len(history) >= LEAST_POINTS
    ]


def sentences(results: RunResults) -> list[str]:
    """One sentence for each training that is too short for a curve."""
    return [
        f"{name}: {_epochs(history)}, duration {words.duration(total)}"
        + "".join(
            f", {figure(history[-1][f'val_{metric}'], '%', 1)} {task.words} on validation images"
            for metric, task in METRICS.items()
            if history[-1].get(f"val_{metric}") is not None
        )
        + "."
        for name, history, total in _histories(results)
        if len(history) < LEAST_POINTS
    ]


def pruning(results: RunResults) -> list[Grid]:
    """The candidates that each pruning was chosen from, the one that was taken first."""
    grids = []
    for card in results.model_cards:
        settings = card["settings"]
        if card["op"] != "prune" or not settings.get("candidates"):
            continue
        rows = [
            (
                f"{CRITERIA.get(plan['criterion'], plan['criterion'])}, "
                f"{SHAPES.get(plan['shape'], plan['shape'])}",
                [
                    Cell(figure(plan["score"], "%", 1, bare=True), strong=number == 0),
                    Cell(figure(plan["cross_entropy"], "plain", bare=True)),
                    Cell(figure(plan["macs"], "M", 0, bare=True)),
                ],
            )
            for number, plan in enumerate(settings["candidates"])
        ]
        first, images = rows[0][0], settings["candidates"][0]["images"]
        grids.append(
            Grid(
                "criterion, channels kept",
                [f"{results.task.words}, %", "cross entropy", "MACs, M"],
                rows,
                f"Channels were removed by {first}: {settings['reason']}. The candidates were compared on "
                f"{figure(images)} validation images, fitted to the parent by least squares on some training "
                f"images{', before any fine-tuning' if settings.get('epochs') else ''}.",
                card["variant"],
            )
        )
    return grids


STATISTICS = {"mean": "mean of both statistics", "new": "new statistics"}


def means(results: RunResults) -> list[Grid]:
    """The means of a network before and after its training that were compared, the trained one first."""
    grids = []
    for card in results.model_cards:
        candidates = card["settings"].get("candidates")
        if card["op"] != "distill" or not candidates:
            continue
        rows = [
            (
                f"{figure(one['start_share'], '%', 0)}, {STATISTICS[one['statistics']]}",
                [
                    Cell(figure(one[results.task.metric], "%", 1, bare=True)),
                    Cell(figure(one["cross_entropy"], "plain", bare=True), strong=one["kept"]),
                ],
            )
            for one in candidates
        ]
        grids.append(
            Grid(
                "share of the start, batch norm",
                [f"{results.task.words}, %", "cross entropy"],
                rows,
                "The variant is a mean of its weights before and after the training above; 0 % is the "
                "trained network alone. What is set in bold has the lowest cross entropy on "
                f"{figure(candidates[0]['n'])} validation images among what was allowed.",
                card["variant"],
            )
        )
    return grids


def _histories(results: RunResults) -> list[tuple[str, Sequence[Part], float | None]]:
    """Name, epochs and duration of everything that was trained, the teacher first."""
    histories = [
        (TEACHER, results.teacher_history),
        *((one.variant, one.history) for one in results.variants),
    ]
    return [(name, continued(lines), seconds(lines)) for name, lines in histories if lines]


def _epochs(history: Sequence[Part]) -> str:
    epochs = history[-1]["epoch"]
    return f"{epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}"


def _curve(name: str, history: Sequence[Part]) -> Markup:
    panels = []
    for metric, task in METRICS.items():
        points = _points(history, f"val_{metric}", 100)
        if points:
            label = f"validation {task.words}, %"
            panels.append(charts.Series(label, points, f"{points[-1][1]:.1f}", "accept"))
    points = _points(history, "loss", 1)
    if points:
        panels.append(charts.Series("loss", points, f"{points[-1][1]:.3f}", "muted"))
    return charts.curves(panels, title=f"Training of {name}", x_label="epoch")


def _points(history: Sequence[Part], key: str, scale: int) -> list[tuple[int | float, int | float]]:
    return [(line["epoch"], scale * line[key]) for line in history if line.get(key) is not None]

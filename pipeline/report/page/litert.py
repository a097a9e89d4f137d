"""The page's table of the LiteRT (TensorFlow Lite) files."""

from pipeline.report import words
from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page.grid import Cell, Grid
from pipeline.tasks import METRICS


def files(part: Part | None, first: str) -> Grid | None:
    """Score, agreement, size and latency of each LiteRT file; None without such files.

    Args:
        part: the result of the stage `litert`.
        first: name of the variant in the first row.
    """
    if not part:
        return None
    conditions = part["conditions"]
    rows = sorted(part["variants"].items(), key=lambda item: item[0] != first)
    task = METRICS[rows[0][1]["metric"]]
    columns = [
        f"{task.words}, %",
        "vs ONNX file, points",
        "same answers, %",
        "file, MB",
        *(f"median latency, ms, {words.counted(c['threads'], 'thread')}" for c in conditions),
    ]
    parity = next((row["parity"] for _, row in rows if row["parity"]), None)
    note = (
        f"Scored on the whole test split in {part['runtime']}, one image per call. Small print: 95 % "
        "confidence intervals, the size of the ONNX file, and the speed compared with "
        f"{part['reference']} in LiteRT."
    )
    if parity:
        note += (
            f" The answers to {figure(parity['n'])} validation images were compared with the network's own, "
            "and inner tensors layer by layer."
        )
    return Grid("variant", columns, [(f"{name}.tflite", _cells(part, name)) for name, _ in rows], note)


def _cells(part: Part, name: str) -> list[Cell]:
    row = part["variants"][name]
    metric = row["metric"]
    interval = span(row[f"{metric}_lo"], row[f"{metric}_hi"], "%")
    paired = "" if row["delta_lo"] is None else span(row["delta_lo"], row["delta_hi"], "points")
    cells = [
        Cell(figure(row[metric], "%", bare=True), interval),
        Cell(figure(row["delta"], "points", bare=True), paired),
        Cell(figure(row["agreement"], "%", bare=True)),
        Cell(
            figure(row["size_bytes"], "MB", bare=True),
            f"ONNX {figure(row['onnx_size_bytes'], 'MB', bare=True)}",
        ),
    ]
    for condition in part["conditions"]:
        times = condition["variants"][name]
        ratio = ""
        if times["ratio"] is not None and name != part["reference"]:
            ratio = (
                f"{figure(times['ratio'], 'times')} ({span(times['ratio_lo'], times['ratio_hi'], 'times')})"
            )
        cells.append(Cell(figure(times["latency_ms_p50"], "ms", bare=True), ratio))
    return cells

"""Compare the variants: a table, a picture, and one page."""

import json

import numpy as np

from pipeline import models, parameters, paths
from pipeline.data import store
from pipeline.parameters import ParameterError
from pipeline.process import stage
from pipeline.report import page, pictures, plots, tables


def main() -> None:
    """Write `artifacts/report/`, and what DVC compares: `artifacts/variants/` and `artifacts/plots/`."""
    p = parameters.load()
    benchmark = json.loads(paths.BENCHMARK.read_text())
    teacher = json.loads((paths.TEACHER / models.CARD).read_text())
    entries = tables.gather(p.declared(), metrics=paths.metrics, folder=paths.model, benchmark=benchmark)
    table = tables.rows(
        entries,
        teacher=np.load(paths.TEACHER_PREDICTIONS),
        labels=store.read(paths.DATA, "test").labels,
        max_drop=p.gate.max_drop,
    )
    teacher_history = models.read_history(paths.TEACHER)
    plots.write_metrics(paths.FIGURES, table)
    plots.write_points(paths.PLOTS, table, entries, teacher_history)
    tables.write_csv(paths.REPORT / "variants.csv", table)
    picture = pictures.overview(table, teacher["test"][teacher["metric"]])
    pictures.save(picture, paths.REPORT / "overview.png", paths.REPORT / "overview.svg")
    html = page.render(
        table,
        entries,
        teacher=teacher,
        teacher_history=teacher_history,
        data=store.read_report(paths.DATA),
        benchmark=benchmark,
        size=p.student.size,
        max_drop=p.gate.max_drop,
    )
    (paths.REPORT / "report.html").write_text(html)
    for row in table:
        print(
            f"{row.variant:20} {row.score:.2%}  {row.size_bytes / 1e6:5.2f} MB  {row.latency_ms_p50:5.2f} ms"
        )


if __name__ == "__main__":
    with stage(ParameterError):
        main()

"""Compare the variants: a table, a picture, a page, and the model card."""

import json
from dataclasses import asdict

import numpy as np

from pipeline import parameters, paths
from pipeline.data import store
from pipeline.models import storage
from pipeline.process import stage
from pipeline.report import evidence, pictures, plots, tables
from pipeline.report.card import card
from pipeline.report.page import page
from pipeline.selection import budget


def main() -> None:
    """Write `artifacts/report/`, and what DVC compares: `artifacts/variants/` and `artifacts/plots/`."""
    p = parameters.load()
    benchmark = json.loads(paths.BENCHMARK.read_text())
    teacher = json.loads((paths.TEACHER / storage.CARD).read_text())
    declared = {name: (variant.parent, variant.op) for name, variant in p.variants.items()}
    entries = tables.gather(declared, metrics=paths.metrics, folder=paths.model, benchmark=benchmark)
    table = tables.rows(
        entries,
        teacher=np.load(paths.TEACHER_PREDICTIONS),
        labels=store.read(paths.DATA, "test").labels,
        max_drop=p.gate.max_drop,
    )
    teacher_history = storage.read_history(paths.TEACHER)
    plots.write_metrics(paths.FIGURES, table)
    plots.write_points(paths.PLOTS, table, entries, teacher_history)
    tables.write_csv(paths.VARIANTS, table)
    limits = p.budget.model_dump()
    choice = budget.choose(table, **limits)
    paths.CHOICE.write_text(json.dumps({**asdict(choice), "budget": limits}, indent=2) + "\n")
    picture = pictures.overview(table, teacher["test"][teacher["metric"]])
    pictures.save(picture, paths.REPORT / "overview.png", paths.REPORT / "overview.svg")
    found = evidence.read(
        comparison=paths.COMPARISON,
        costs=paths.COSTS,
        robustness=paths.ROBUSTNESS,
        sensitivity=paths.SENSITIVITY,
        explanations=paths.EXPLANATIONS / "explanations.json",
    )
    shared = {
        "teacher": teacher,
        "teacher_history": teacher_history,
        "data": store.read_report(paths.DATA),
        "benchmark": benchmark,
        "max_drop": p.gate.max_drop,
        "choice": choice,
        "evidence": found,
    }
    (paths.REPORT / "report.html").write_text(page.render(table, entries, size=p.student.size, **shared))
    text = card.render(
        table,
        entries,
        said=p.card.model_dump(),
        student=p.student.model_dump(mode="json"),
        views=p.views.model_dump(mode="json"),
        built=[json.loads((paths.model(row.variant) / storage.CARD).read_text()) for row in table],
        **shared,
    )
    (paths.REPORT / "model_card.md").write_text(text)
    for row in table:
        print(
            f"{row.variant:20} {row.score:.2%}  {row.size_bytes / 1e6:5.2f} MB  {row.latency_ms_p50:5.2f} ms"
        )
    print(choice.reason)


if __name__ == "__main__":
    with stage():
        main()

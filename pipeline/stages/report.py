"""Write the table of variants, the trade-off chart, the page, the model cards, and points for DVC's plots."""

import json
from dataclasses import asdict

from pipeline import files, parameters, paths, provenance
from pipeline.data import store
from pipeline.models import histories
from pipeline.report import evidence, pictures, plots, results, tables
from pipeline.report.card import card
from pipeline.report.page import page
from pipeline.report.results import RunResults
from pipeline.running.process import stage
from pipeline.selection import budget, table


def main() -> None:
    """Write `artifacts/report/`, and what DVC compares: `artifacts/variants/` and `artifacts/plots/`."""
    p = parameters.load()
    declared = {name: (variant.parent, variant.op) for name, variant in p.variants.items()}
    benchmark = json.loads(paths.BENCHMARK.read_text())
    comparison = json.loads(paths.COMPARISON.read_text())
    variants = results.gather(
        declared, metrics=paths.metrics, folder=paths.model, timings=paths.timings, benchmark=benchmark
    )
    table.write(paths.VARIANTS, tables.rows(variants, comparison))
    # As the command `choose` reads it: unrounded, a variant could lie on the other side of a limit.
    rows = table.read(paths.VARIANTS)
    limits = p.budget.model_dump()
    run = RunResults(
        table=rows,
        variants=variants,
        comparison=comparison,
        teacher=json.loads((paths.TEACHER / paths.CARD).read_text()),
        teacher_history=histories.read(paths.TEACHER, paths.timings),
        model_cards=[json.loads((paths.model(name) / paths.CARD).read_text()) for name in p.variants],
        data=store.read_report(paths.DATA),
        benchmark=benchmark,
        student=p.student.model_dump(mode="json"),
        views=p.views.model_dump(mode="json"),
        statements=p.card.model_dump(),
        git_commit=provenance.git_commit(),
        versions=provenance.versions(),
        choice=budget.choose(rows, **limits, first_step=p.first_step, noisy=benchmark["noise"]["noisy"]),
        evidence=evidence.read(
            costs=paths.COSTS,
            robustness=paths.ROBUSTNESS,
            sensitivity=paths.SENSITIVITY,
            explanations=paths.EXPLANATIONS / "explanations.json",
            suspects=paths.SUSPECTS.with_suffix(".json"),
            litert=paths.LITERT_RESULTS if p.litert.results else None,
        ),
    )
    plots.write_metrics(paths.FIGURES, rows)
    plots.write_points(paths.PLOTS, run)
    files.write(paths.CHOICE, json.dumps({**asdict(run.choice), "budget": limits}, indent=2) + "\n")
    files.write(paths.REPORT / "overview.svg", pictures.overview(run))
    files.write(paths.REPORT / paths.SUSPECTS.name, paths.SUSPECTS.read_bytes())
    files.write(paths.REPORT / "report.html", page.render(run))
    for row in rows:
        files.write(paths.card(row.variant), card.render(run, row.variant))
    files.write(paths.REPORT / "model_card.md", card.render(run, run.choice.closest))
    for row in rows:
        score, megabytes = 100 * row.score, row.size_bytes / 1e6
        print(f"{row.variant:20} {score:.2f} %  {megabytes:5.2f} MB  {row.latency_ms_p50:5.2f} ms")
    print(run.choice.reason)


if __name__ == "__main__":
    with stage():
        main()

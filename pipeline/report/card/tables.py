"""The tables of the model card in Markdown; each is empty where a run did not measure it."""

from collections.abc import Iterable, Sequence

from pipeline.escaping import Markdown, for_markdown
from pipeline.models.histories import seconds
from pipeline.report import findings, words
from pipeline.report.figures import figure, span
from pipeline.report.results import RunResults
from pipeline.selection.table import TEACHER


def results_table(results: RunResults) -> Markdown:
    """Score, difference to the parent, verdict and size of each variant."""
    header = ["variant", "made by", results.task.words, "vs parent", "verdict", "file", "parameters", "MACs"]
    return _table(
        header,
        (
            [
                f"{row.variant}.onnx",
                words.origin(row),
                _interval(row.score, row.score_lo, row.score_hi, "%"),
                _interval(row.score_delta, row.delta_lo, row.delta_hi, "points"),
                row.verdict,
                figure(row.size_bytes, "MB"),
                figure(row.parameters, "M"),
                figure(row.macs, "M", 0),
            ]
            for row in results.table
        ),
    )


def speeds(results: RunResults) -> Markdown:
    """Latency, throughput and memory of each variant."""
    benchmark = results.benchmark
    footprint = benchmark.get("footprint") or {}
    batched = next((c for c in benchmark.get("conditions", ()) if c["batch_size"] > 1), None)
    header = ["variant", "median", "p90", "p99", "speed vs fp32"]
    if batched:
        header.append(
            f"throughput, batch size {figure(batched['batch_size'])}, "
            f"{words.counted(batched['threads'], 'thread')}"
        )
    if footprint:
        header += ["load time", "peak memory"]
    rows = []
    for row in results.table:
        latency = benchmark["variants"][row.variant]
        line = [row.variant, *(figure(latency[f"latency_ms_{tail}"], "ms") for tail in ("p50", "p90", "p99"))]
        line.append(
            "no fp32"
            if latency["ratio"] is None
            else _interval(latency["ratio"], latency["ratio_lo"], latency["ratio_hi"], "times")
        )
        if batched:
            line.append(figure(batched["variants"][row.variant]["images_per_second"], "/s"))
        if footprint:
            memory = footprint[row.variant]
            line += [figure(memory["load_ms"], "ms"), figure(memory["memory_peak_bytes"], "MB")]
        rows.append(line)
    return _table(header, rows)


def efforts(results: RunResults) -> Markdown:
    """Duration, speed and energy of each training."""
    costs = results.evidence.costs
    histories = {TEACHER: results.teacher_history} | {one.variant: one.history for one in results.variants}
    rows = []
    for name, history in histories.items():
        duration = words.duration(seconds(history)) if history else "no training"
        speeds = [line["images_per_second"] for line in history if line.get("images_per_second")]
        line = [results.shown(name), duration, figure(max(speeds), "/s") if speeds else "not recorded"]
        if costs:
            own = costs["training"][name]["own"]
            line += (
                [figure(own["kwh"], "Wh"), figure(own["gram_co2"], "g")] if own else 2 * [words.NOT_MEASURED]
            )
        rows.append(line)
    energy = ["energy", "CO2"] if costs else []
    return _table(["step", "training time", "fastest epoch", *energy], rows)


def classes(results: RunResults) -> Markdown:
    """Score of each variant on each class; of many classes, those with the most errors."""
    counts = results.closest_results.scores["classes"]
    rows = []
    for index in findings.worst_classes(results.closest_results):
        scores = [findings.class_score(one.scores["classes"][index]) for one in results.variants]
        if counts[index]["n"]:
            cells = ["" if score is None else figure(score, "%", 1) for score in scores]
            rows.append([counts[index]["label"], figure(counts[index]["n"]), *cells])
    return _table([words.noun(results.task), "images", *(one.variant for one in results.variants)], rows)


def verdicts(results: RunResults) -> Markdown:
    """Why each variant is accepted or rejected, and which answers changed."""
    lines = []
    for row in results.table:
        change = results.change(row.variant)
        sentences = f"{change['reason']} {words.flips(change)}".rstrip()
        if change["classes_worse"]:
            sentences += f" Significantly worse: {', '.join(change['classes_worse'])}."
        lines.append(f"- **{row.variant}**: {for_markdown(sentences)}")
    return Markdown("\n".join(lines))


def corruptions(results: RunResults) -> Markdown:
    """Accuracy on corrupted test images, by kind of corruption."""
    part = results.evidence.corruptions
    if not part:
        return Markdown()
    variants = part["variants"]
    means = [_interval(of["mean"], of["mean_lo"], of["mean_hi"], "%", 1) for of in variants.values()]
    rows = [
        ["none", *(figure(of["clean"], "%", 1) for of in variants.values())],
        ["mean of all kinds", *means],
        *(
            [words.spaced(kind), *(figure(of["kinds"][kind]["accuracy"], "%", 1) for of in variants.values())]
            for kind in part["kinds"]
        ),
    ]
    return _table(["corruption", *variants], rows)


def attacks(results: RunResults) -> Markdown:
    """Accuracy on adversarial images, by attack and radius."""
    part = results.evidence.adversarial
    if not part:
        return Markdown()
    return _table(
        ["attack", "gradients of", "file", "radius, grey levels", "accuracy", "without attack"],
        (
            [
                result["attack"],
                result["module"],
                f"{result['variant']}.onnx",
                figure(result["radius"]),
                _interval(result["accuracy"], result["lo"], result["hi"], "%", 1),
                figure(part["clean"][result["variant"]]["accuracy"], "%", 1),
            ]
            for result in part["results"]
        ),
    )


def out_of_distribution(results: RunResults) -> Markdown:
    """Confidence on images that belong to none of the classes."""
    part = results.evidence.out_of_distribution
    if not part:
        return Markdown()
    rows = [
        [
            words.spaced(name),
            variant,
            figure(of["confidence"], "%", 1),
            figure(of["over_90"], "%", 1),
            figure(of["auroc"], "plain"),
        ]
        for name, images in part["sets"].items()
        for variant, of in images["variants"].items()
    ]
    return _table(["images", "variant", "mean confidence", "90 % or more", "AUROC vs test images"], rows)


def groups(results: RunResults) -> list[Markdown]:
    """Accuracy of the shipped variant by groups of test images, one table per column."""
    variant = results.closest.variant
    return [
        _table(
            [words.spaced(part["column"]), "images", f"accuracy of {variant}"],
            (
                [
                    words.group(part["column"], group["group"], [one["group"] for one in parts]),
                    figure(group["n"]),
                    _interval(group["score"], group["lo"], group["hi"], "%", 1),
                ]
                for group in findings.largest_groups(parts)
            ),
        )
        for part in results.groupings
        for parts in (part["variants"][variant]["groups"],)
    ]


def calibrations(results: RunResults) -> Markdown:
    """Calibration of the teacher and of each variant."""
    rows = [
        [
            name,
            _interval(of["ece"], of["ece_lo"], of["ece_hi"], "%"),
            _interval(change["ece_delta"], change["ece_delta_lo"], change["ece_delta_hi"], "points")
            if change
            else "",
            figure(of["confidence"], "%", 1),
            figure(of["nll"], "plain"),
            figure(of["brier"], "plain"),
        ]
        for name, _, of, change in findings.calibrations(results)
    ]
    header = ["variant", "ECE", "ECE vs parent", "mean confidence", "negative log likelihood", "Brier score"]
    return _table(header, rows) if rows else Markdown()


def energy(results: RunResults) -> Markdown:
    """Energy and CO2 of inference."""
    costs = results.evidence.costs
    if not costs:
        return Markdown()
    return _table(
        ["variant", "energy per thousand images", "CO2 per thousand images"],
        (
            [variant, figure(of["kwh_per_1000"], "mWh"), figure(of["gram_co2_per_1000"], "mg")]
            for variant, of in costs["inference"].items()
        ),
    )


def litert(results: RunResults) -> Markdown:
    """Score, agreement, size and latency of the LiteRT files."""
    part = results.evidence.litert
    if not part:
        return Markdown()
    times = part["conditions"][0]["variants"]
    return _table(
        ["variant", results.task.words, "vs ONNX file", "same answers", "file", "median latency"],
        (
            [
                f"{name}.tflite",
                _interval(row[row["metric"]], row[f"{row['metric']}_lo"], row[f"{row['metric']}_hi"], "%"),
                figure(row["delta"], "points"),
                figure(row["agreement"], "%"),
                figure(row["size_bytes"], "MB"),
                figure(times[name]["latency_ms_p50"], "ms"),
            ]
            for name, row in ((row.variant, part["variants"][row.variant]) for row in results.table)
        ),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markdown:
    lines = [header, [Markdown("---")] * len(header), *rows]
    return Markdown("\n".join(f"| {' | '.join(map(for_markdown, line))} |" for line in lines))


def _interval(
    value: int | float, lo: int | float, hi: int | float, unit: str, digits: int | None = None
) -> str:
    return f"{figure(value, unit, digits)} ({span(lo, hi, unit, digits)})"

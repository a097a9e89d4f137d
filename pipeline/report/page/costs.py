"""The page's tables of energy and of latency, and the facts of the machine."""

from collections.abc import Sequence

from pipeline.report import words
from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page.grid import Cell, Grid

ENERGY = (("kwh", "Wh"), ("gram_co2", "g"))
"""Keys of an estimate with their units."""


def energy(part: Part | None) -> list[Grid]:
    """Energy and CO2 of training and of inference; empty where not computed."""
    if not part:
        return []
    method, total = part["method"], part["everything"]
    training = [
        (
            step,
            [
                _trained(of["own"], "seconds", "minutes"),
                *(_trained(of[share], key, unit) for share in ("own", "total") for key, unit in ENERGY),
            ],
        )
        for step, of in part["training"].items()
    ]
    inference = [
        (
            variant,
            [
                Cell(figure(of["ms_per_image"], "ms", bare=True)),
                Cell(figure(of["joule_per_image"], "mJ", bare=True)),
                Cell(figure(of["kwh_per_1000"], "mWh", bare=True)),
                Cell(figure(of["gram_co2_per_1000"], "mg", bare=True)),
            ],
        )
        for variant, of in part["inference"].items()
    ]
    note = (
        f"Total: {figure(total['seconds'], 'minutes')}, {figure(total['kwh'], 'Wh')} and "
        f"{figure(total['gram_co2'], 'g')} of CO₂{words.left_out(part)}. {words.sentence(method['note'])} "
        f"Sources: {'; '.join(method['sources'])}."
    )
    return [
        Grid(
            "step",
            ["minutes", "Wh", "g of CO₂", "Wh, ancestors included", "g of CO₂, ancestors included"],
            training,
            note,
            "Training",
        ),
        Grid(
            "variant",
            ["ms per image", "mJ per image", "mWh per 1,000 images", "mg of CO₂ per 1,000 images"],
            inference,
            title="Inference",
        ),
    ]


def _trained(estimate: Part | None, key: str, unit: str) -> Cell:
    return Cell(figure(estimate[key], unit, bare=True) if estimate else words.NOT_MEASURED)


def latency(benchmark: Part) -> Grid | None:
    """Latency in every setting that was measured; None where only the default setting was."""
    conditions = benchmark.get("conditions")
    if not conditions:
        return None
    variants = list(conditions[0]["variants"])
    reference = benchmark["settings"].get("reference")

    def cell(variant: str, of: Part) -> Cell:
        small = ""
        if of["ratio"] is not None and variant != reference:
            ratio = f"{figure(of['ratio'], 'times')} ({span(of['ratio_lo'], of['ratio_hi'], 'times')})"
            small = words.NO_DIFFERENCE if of["distinguishable"] is False else ratio
        return Cell(figure(of["latency_ms_p50"], "ms", bare=True), small)

    rows = [
        (_setting(condition), [cell(v, condition["variants"][v]) for v in variants])
        for condition in conditions
    ]
    for condition in conditions:
        if condition["batch_size"] > 1:
            rows.append((f"images per second, {_setting(condition)}", _throughput(condition, variants)))
    if footprint := benchmark.get("footprint"):
        rows += [
            ("load time, ms", [Cell(figure(footprint[v]["load_ms"], "ms", 1, bare=True)) for v in variants]),
            ("peak memory, MB", [_memory(footprint[v]) for v in variants]),
        ]
    note = (
        "Median milliseconds per call; below it, the speed relative to fp32 in the same setting with its "
        f"95 % CI. “{words.NO_DIFFERENCE.capitalize()}”: the interval contains 1."
    )
    return Grid("setting", variants, rows, note)


def machine(benchmark: Part) -> Sequence[tuple[str, str]]:
    """The machine and the settings of the benchmark, as terms and values."""
    about, settings, load = benchmark["machine"], benchmark["settings"], benchmark["load_average"]
    facts = [
        ("processor", f"{about['cpu']}, {words.counted(about['cores_usable'], 'core')}"),
        ("relevant instructions", ", ".join(about["flags"]) or "none known"),
        (
            "calls",
            f"{settings['rounds']:,} per file after {settings['warmup']} warm-up calls, interleaved in "
            f"random order; batch size {settings['batch_size']}, "
            f"{words.counted(settings['threads'], 'thread')}",
        ),
        ("versions", ", ".join(f"{name} {value}" for name, value in about["versions"].items())),
    ]
    if load["before"] and load["after"]:
        facts.append(("load average", f"{load['before'][0]} before, {load['after'][0]} after (one minute)"))
    return facts


def _setting(condition: Part) -> str:
    device = "" if condition["provider"] == "cpu" else f"{condition['provider']}, "
    batch, threads = condition["batch_size"], condition["threads"]
    return f"{device}{words.counted(threads, 'thread')}, {words.counted(batch, 'image')}"


def _throughput(condition: Part, variants: Sequence[str]) -> list[Cell]:
    return [
        Cell(
            figure(of["images_per_second"], "/s", bare=True),
            span(of["images_per_second_lo"], of["images_per_second_hi"], "/s"),
        )
        for of in (condition["variants"][v] for v in variants)
    ]


def _memory(of: Part) -> Cell:
    rise = figure(of["memory_rise_bytes"], "MB", 1, bare=True)
    return Cell(figure(of["memory_peak_bytes"], "MB", 0, bare=True), f"of which {rise} for the model")

"""The page's sections that show evidence; each is empty where a run did not measure it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.evidence import Evidence, Part, inline_picture
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.tables import Entry
from pipeline.selection.budget import listed

SHOWN_CLASSES = 30
"""Of more classes than this, those with the most errors are shown."""
SHOWN_GROUPS = 12
"""Of more groups than this, the largest are shown."""
DARKEST = 45
"""Per cent of colour in the strongest cell."""
SHOWN_DAMAGE = 0.02
"""Least difference, as a fraction of 1, that may have the strongest colour."""


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    small: str = ""
    shade: int = 0
    """Per cent of colour."""
    tone: str = "heat"
    """Colour, a variable of the page."""
    picture: Markup | None = None
    title: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of the page."""

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""
    title: str = ""


@dataclass(frozen=True)
class Shot:
    """An image with what was answered to it."""

    picture: str
    """Address."""
    title: str
    lines: Sequence[tuple[str, bool]] = ()
    """What is said below it, and whether that is right."""


def classes(entries: Sequence[Entry], told: Entry, comparison: Part | None) -> Grid:
    """Each class or attribute: how good each variant is, and what it lost against its parent."""
    counts = told.scores["classes"]
    attributes = "average_precision" in counts[0]
    chosen = list(range(len(counts)))
    note = (
        "Average precision of each attribute, in per cent"
        if attributes
        else "Per cent of each class's test images that are named right"
    )
    note += (
        "; the stronger the shade, the less."
        if comparison is None
        else ". Below, in points, the difference to the parent: orange lost, blue gained, "
        "bold where the class's own exact test leaves little doubt."
    )
    if len(counts) > SHOWN_CLASSES:
        by_errors = sorted(chosen, key=lambda index: _errors(counts[index]), reverse=True)
        chosen = sorted(by_errors[:SHOWN_CLASSES])
        note += f" Of {len(counts):,} classes, the {SHOWN_CLASSES} with the most errors of {told.variant}."
    # By name: a class or an attribute that no test image has is not compared.
    compared = {} if comparison is None else comparison["variants"]
    moved = [
        {change["label"]: change for change in compared[e.variant]["classes"]} for e in entries if compared
    ]
    shown = [counts[index]["label"] for index in chosen]
    deltas = (abs(each[name]["delta"]) for each in moved for name in shown if name in each)
    most = max([SHOWN_DAMAGE, *deltas])

    def cell(column: int, index: int) -> Cell:
        own = entries[column].scores["classes"][index]
        if not own["n"] or (attributes and own["average_precision"] is None):
            return Cell("no images")
        share = own["average_precision"] if attributes else own["correct"] / own["n"]
        text = figure(share, "%", 1, bare=True)
        change = moved[column].get(counts[index]["label"]) if moved else None
        if change is None:
            return Cell(text, shade=0 if moved else round(min(DARKEST, 110 * (1 - share))))
        return Cell(
            text,
            small=figure(change["delta"], "points", 1, bare=True),
            shade=round(DARKEST * abs(change["delta"]) / most),
            tone="heat" if change["delta"] < 0 else "accept",
            title=f"{span(change['lo'], change['hi'], 'points', 1)} points",
            strong=bool(change.get("worse") or change.get("better")),
        )

    rows = [(counts[i]["label"], [cell(column, i) for column in range(len(entries))]) for i in chosen]
    return Grid("attribute" if attributes else "class", [e.variant for e in entries], rows, note)


def mistakes(told: Entry) -> list[dict[str, Any]]:
    """The three most frequent confusions; none among attributes."""
    if "confusion" not in told.scores:
        return []
    confusion = np.array(told.scores["confusion"])
    names = [counts["label"] for counts in told.scores["classes"]]
    images = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    most = [divmod(int(place), len(names)) for place in np.argsort(-confusion, axis=None, kind="stable")[:3]]
    return [
        {
            "truth": names[truth],
            "answer": names[answer],
            "count": int(confusion[truth, answer]),
            "of": int(images[truth]),
        }
        for truth, answer in most
        if confusion[truth, answer]
    ]


def reasons(entries: Sequence[Entry], comparison: Part | None) -> list[dict[str, Any]]:
    """Why each variant is accepted or rejected, and which answers changed."""
    if comparison is None:
        return []
    told = []
    for entry in entries:
        found = comparison["variants"][entry.variant]
        flips = found.get("flips")
        more = (
            [
                f"{figure(flips['lost'])} images that {found['parent']} had right are wrong now, "
                f"{figure(flips['gained'])} are right that were wrong; "
                f"{figure(flips['agreement'], '%', 1)} of the answers are the same."
            ]
            if flips
            else []
        )
        for key, words in (("classes_worse", "worse"), ("classes_better", "better")):
            if found.get(key):
                more.append(f"Shown to be {words}: {listed(found[key])}.")
        told.append(
            {
                "variant": entry.variant,
                "verdict": found["verdict"],
                "reason": _sentence(found["reason"]),
                "more": " ".join(more),
            }
        )
    return told


RUNGS = {
    "torch_float": "PyTorch, activations in float",
    "onnx_float": "the same in ONNX Runtime",
    "fake_quant": "activations rounded, in float",
    "simulator": "integers, simulated (32-bit sums)",
    "sums_16_bit": "integers, 16-bit sums of older CPUs",
    "onnx_plain": "the file, not optimised",
    "onnx": "the file as it ships",
}
"""From the module to the shipped file."""


def parity(entries: Sequence[Entry]) -> Grid | None:
    """Every variant from its module to its shipped file; None where that was not compared."""
    climbed = [entry for entry in entries if entry.scores.get("parity")]
    if not climbed:
        return None
    ladders = [{rung["rung"]: rung for rung in entry.scores["parity"]["rungs"]} for entry in climbed]

    def cell(entry: Entry, rung: Mapping[str, Any] | None) -> Cell:
        if rung is None:
            return Cell("")
        title = f"{figure(rung['ties'])} ties" if rung.get("ties") else ""
        title = "proven: no sum of this file can leave 16 bits" if rung.get("proven") else title
        score = figure(rung[entry.scores["metric"]], "%", 1, bare=True)
        return Cell(score, small=figure(rung["shipped"], "%", 1), title=title)

    rows = [
        (words, [cell(entry, rungs.get(name)) for entry, rungs in zip(climbed, ladders, strict=True)])
        for name, words in RUNGS.items()
        if any(name in rungs for rungs in ladders)
    ]
    images = figure(climbed[0].scores["parity"]["n"])
    note = (
        f"Per cent on {images} validation images; below, the share of answers that are the shipped file's. "
        "Rungs that must compute the same are checked on each image, and by layer where an answer differs."
    )
    return Grid("computed as", [entry.variant for entry in climbed], rows, note)


def calibrations(entries: Sequence[Entry], comparison: Part | None) -> list[dict[str, Any]]:
    """How far the teacher's and each variant's confidence can be believed, and what moved it."""
    drawn = []
    for name, parent, found, moved in calibrated(entries, comparison):
        bins = [(b["confidence"], b["accuracy"], b["n"]) for b in found["reliability"] if b["n"]]
        drawn.append(
            {
                "variant": name,
                "ece": figure(found["ece"], "%"),
                "interval": span(found["ece_lo"], found["ece_hi"], "%"),
                "confidence": figure(found["confidence"], "%", 1),
                "moved": moved
                and f"against {parent}: error {figure(moved['ece_delta'], 'points')} "
                f"({span(moved['ece_delta_lo'], moved['ece_delta_hi'], 'points')}), "
                f"confidence {figure(moved['confidence_delta'], 'points')}",
                "picture": charts.calibration(bins, title=f"Reliability of {name}"),
            }
        )
    return drawn


def calibrated(
    entries: Sequence[Entry], comparison: Part | None
) -> Iterator[tuple[str, str | None, Part, Part | None]]:
    """Whose probabilities are known, the teacher's first: name, parent, calibration, drift."""
    comparison = comparison or {}
    if teacher := comparison.get("teacher", {}).get("calibration"):
        yield "teacher", None, teacher, None
    for entry in entries:
        if found := entry.scores.get("calibration"):
            moved = comparison.get("variants", {}).get(entry.variant, {}).get("calibration")
            yield entry.variant, entry.parent, found, moved


def corruptions(robustness: Part | None) -> Grid | None:
    """Share of corrupted images named right: kinds by variants, a square a severity."""
    found = (robustness or {}).get("corruptions")
    if not found:
        return None
    variants: Mapping[str, Any] = found["variants"]

    def mean(of: Part) -> Cell:
        text = figure(of["mean"], "%", 1, bare=True)
        small = "" if of["delta"] is None else f"{figure(of['delta'], 'points', 1, bare=True)} to the parent"
        return Cell(text, small, _lost(of["mean"], of["clean"]), strong=True)

    def kind_cell(of: Part, kind: str) -> Cell:
        steps = of["table"][kind]
        shares = [step["accuracy"] for step in steps]
        told = ", ".join(figure(share, "%", 1, bare=True) for share in shares)
        value = of["kinds"][kind]["accuracy"]
        return Cell(
            figure(value, "%", 1, bare=True),
            shade=_lost(value, of["clean"]),
            picture=charts.strip(
                [_lost(share, of["clean"]) / DARKEST for share in shares],
                title=f"from weak to strong: {told}",
            ),
            title=f"severity 1 to {len(steps)}: {told}",
        )

    rows: list[tuple[str, list[Cell]]] = [
        ("not corrupted", [Cell(figure(of["clean"], "%", 1, bare=True)) for of in variants.values()]),
        ("all kinds", [mean(of) for of in variants.values()]),
        *(
            (
                kind.replace("_", " "),
                [kind_cell(of, kind) for of in variants.values()],
            )
            for kind in found["kinds"]
        ),
    ]
    note = (
        f"Per cent named right of {figure(found['n'])} test images, corrupted as in ImageNet-C "
        f"({found['library']}); the mean over severities, and a square for each from weak to strong. "
        "The stronger the shade, the more is lost of what is right without corruption."
    )
    return Grid("corruption", list(variants), rows, note)


def adversarial(robustness: Part | None) -> Grid | None:
    """What is left under attack: attack and file by radius."""
    found = (robustness or {}).get("adversarial")
    if not found or not found["results"]:
        return None
    radii = sorted({result["radius"] for result in found["results"]})
    attacked = dict.fromkeys((r["attack"], r["module"], r["variant"]) for r in found["results"])
    at = {(r["attack"], r["module"], r["variant"], r["radius"]): r for r in found["results"]}
    rows = []
    for attack, module, variant in attacked:
        clean = found["clean"][variant]["accuracy"]
        cells = [Cell(figure(clean, "%", 1, bare=True))]
        for radius in radii:
            result = at.get((attack, module, variant, radius))
            cells.append(
                Cell("")
                if result is None
                else Cell(
                    figure(result["accuracy"], "%", 1, bare=True),
                    small=span(result["lo"], result["hi"], "%", 1),
                    shade=_lost(result["accuracy"], clean),
                )
            )
        rows.append((f"{attack} on {module}, answered by {variant}.onnx", cells))
    note = (
        f"Per cent named right of {figure(found['n'])} test images, changed on purpose by no more than the "
        "radius (of 255 grey levels) with the gradients of the float network; a quantised file is attacked "
        "by transfer. "
    ) + " ".join(f"{name}: {_sentence(words)}" for name, words in found["attacks"].items())
    return Grid("attack", ["none", *(f"{radius:g}/255" for radius in radii)], rows, note)


def outside(robustness: Part | None) -> Grid | None:
    """How sure the variants are of images that belong to no class."""
    found = (robustness or {}).get("out_of_distribution")
    if not found or not found["sets"]:
        return None
    variants = list(found["test"])
    rows: list[tuple[str, list[Cell]]] = [
        ("test images", [Cell(figure(found["test"][v]["confidence"], "%", 1, bare=True)) for v in variants])
    ]
    for name, images in found["sets"].items():
        cells = []
        for variant in variants:
            of = images["variants"][variant]
            cells.append(
                Cell(
                    figure(of["confidence"], "%", 1, bare=True),
                    small=f"AUROC {figure(of['auroc'], 'plain')}",
                    shade=round(DARKEST * of["over_90"]),
                    title=f"{figure(of['over_90'], '%', 1)} of them with at least 90% confidence",
                )
            )
        rows.append((name, cells))
    note = (
        "Mean confidence, in per cent, in whatever class is named; the stronger the shade, the more often it "
        "is 90% or more. AUROC: how well confidence alone tells these from test images (1: always, 0.5: not "
        "at all)."
    )
    return Grid("images of no class", variants, rows, note)


def largest(groups: Sequence[Part]) -> list[Part]:
    """The groups of a column that are shown, in its order."""
    least = sorted((group["n"] for group in groups), reverse=True)[:SHOWN_GROUPS][-1]
    return [group for group in groups if group["n"] >= max(1, least)][:SHOWN_GROUPS]


def groups(comparison: Part | None, told: Entry) -> tuple[list[dict[str, Any]], Grid | None]:
    """The shipped variant in groups of test images, a picture a column; and every variant's greatest gap."""
    found = [part for part in (comparison or {}).get("slices", ()) if part["groups"]]
    if not found:
        return [], None
    drawn = []
    for part in found:
        own = part["variants"][told.variant]
        shown = largest(own["groups"])
        rows = [
            charts.Bar(
                name=f"{group['group']} ({figure(group['n'])})",
                value=100 * group["score"],
                lo=100 * group["lo"],
                hi=100 * group["hi"],
                note=f"{figure(group['score'], '%')}, 95% interval {span(group['lo'], group['hi'], '%')}",
            )
            for group in shown
        ]
        name = part["column"].replace("_", " ")
        left = len(own["groups"]) - len(shown)
        drawn.append(
            {
                "name": name,
                "gap": _gap(own),
                "note": (part["note"] or "") + (f" {left} smaller groups are not shown." if left else ""),
                "picture": charts.bars(rows, title=f"{told.variant} by {name}", unit="%"),
            }
        )
    variants = list(found[0]["variants"])
    rows = [
        (
            part["column"].replace("_", " "),
            [
                Cell(
                    figure(of["gap"], "gap", bare=True),
                    small=f"worst: {of['worst']}",
                    shade=round(min(DARKEST, 200 * of["gap"])) if of["distinguishable"] else 0,
                    title=f"{span(of['gap_lo'], of['gap_hi'], 'gap')} points, best: {of['best']}",
                )
                for of in (part["variants"][v] for v in variants)
            ],
        )
        for part in found
        if part["variants"][told.variant]["gap"] is not None
    ]
    if not rows:
        return drawn, None
    note = (
        "Points between the worst and the best group; shaded where the interval, corrected for the choice of "
        "the pair, leaves zero out."
    )
    return drawn, Grid("gap by", variants, rows, note)


def _gap(own: Mapping[str, Any]) -> str:
    if own["gap"] is None:
        return "too few images in all groups but one to compare"
    doubt = "" if own["distinguishable"] else ", not distinguishable from none"
    return f"gap {figure(own['gap'], 'gap')} ({span(own['gap_lo'], own['gap_hi'], 'gap')}){doubt}"


def explanations(evidence: Evidence, shipped: str) -> dict[str, Any] | None:
    """Where the variants look, which images flipped, and which pairs of classes they confuse."""
    found = evidence.explanations
    if not found:
        return None
    picture = _pictures(evidence.folder)
    reference = next((variant for image in found["images"] for variant in image["variants"]), None)
    rows = [
        [
            Shot(picture(image["file"]), image["truth"]),
            *(
                Shot(
                    picture(of["map"]),
                    variant,
                    [
                        (f"{of['answer']}, {figure(of['confidence'], '%', 0)}", of["right"]),
                        *(
                            []
                            if of["similarity"] is None or variant == reference
                            else [(f"as {reference}: {figure(of['similarity'], 'plain', 2)}", True)]
                        ),
                    ],
                )
                for variant, of in image["variants"].items()
            ),
        ]
        for image in found["images"]
    ]
    flips = []
    for variant, of in found["flips"].items():
        for way in ("lost", "gained"):
            shots = [
                Shot(
                    picture(item["file"]),
                    item["truth"],
                    [
                        (
                            f"{of['parent']}: {_answer(item, 'parent_answer', 'parent_confidence')}",
                            way == "lost",
                        ),
                        (f"now: {_answer(item, 'answer', 'confidence')}", way == "gained"),
                    ],
                )
                for item in of[way]
            ]
            if shots:
                flips.append({"variant": variant, "way": way, "parent": of["parent"], "shots": shots})
    confused = [
        {
            "variant": variant,
            "pairs": [
                {
                    **pair,
                    "shots": [Shot(picture(example["file"]), "") for example in pair["examples"]],
                }
                for pair in pairs
            ],
        }
        for variant, pairs in sorted(found["confused"].items(), key=lambda item: item[0] != shipped)
        if pairs
    ]
    method = found["method"]
    note = f"{method['name']} ({method['library']}): {_sentence(method['note'])}"
    return {"rows": rows, "flips": flips, "confused": confused, "note": note}


def costs(found: Part | None) -> list[Grid]:
    """Energy and CO2 of making and of using the variants."""
    if not found:
        return []
    method = found["method"]
    word = "Estimated" if method["kind"] == "estimate" else "Measured"
    training = [
        (
            step,
            [
                Cell(figure(of["own"]["seconds"], "minutes", bare=True)),
                Cell(figure(of["own"]["kwh"], "Wh", bare=True)),
                Cell(figure(of["own"]["gram_co2"], "g", bare=True)),
                Cell(figure(of["total"]["kwh"], "Wh", bare=True)),
                Cell(figure(of["total"]["gram_co2"], "g", bare=True)),
            ],
        )
        for step, of in found["training"].items()
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
        for variant, of in found["inference"].items()
    ]
    everything = found["everything"]
    whole = (
        f"{word}. All together {figure(everything['seconds'], 'minutes')}, "
        f"{figure(everything['kwh'], 'Wh')} and {figure(everything['gram_co2'], 'g')} of CO₂. "
        f"{_sentence(method['note'])} Sources: {'; '.join(method['sources'])}."
    )
    return [
        Grid(
            "step",
            ["minutes", "Wh", "g of CO₂", "Wh with all before", "g of CO₂ with all before"],
            training,
            whole,
            "Training",
        ),
        Grid(
            "variant",
            ["ms an image", "mJ an image", "mWh a thousand", "mg of CO₂ a thousand"],
            inference,
            title="Inference",
        ),
    ]


def conditions(benchmark: Part) -> Grid | None:
    """Latency in every setting that was measured."""
    found = benchmark.get("conditions")
    if not found:
        return None
    variants = list(found[0]["variants"])
    reference = benchmark["settings"].get("reference")

    def cell(variant: str, of: Part) -> Cell:
        small = ""
        if of["ratio"] is not None and variant != reference:
            ratio = f"{figure(of['ratio'], 'times')} ({span(of['ratio_lo'], of['ratio_hi'], 'times')})"
            small = "not distinguishable" if of["distinguishable"] is False else ratio
        return Cell(figure(of["latency_ms_p50"], "ms", bare=True), small)

    def name(condition: Part) -> str:
        threads, size = condition["threads"], condition["batch_size"]
        place = "" if condition["provider"] == "cpu" else f"{condition['provider']}, "
        return (
            f"{place}{threads} {'thread' if threads == 1 else 'threads'}, "
            f"{'one image' if size == 1 else f'{size} images'}"
        )

    rows: list[tuple[str, list[Cell]]] = [
        (name(condition), [cell(v, condition["variants"][v]) for v in variants]) for condition in found
    ]
    for condition in found:
        if condition["batch_size"] > 1:
            rows.append(
                (
                    f"images a second, {name(condition)}",
                    [
                        Cell(
                            figure(of["images_per_second"], "/s", bare=True),
                            span(of["images_per_second_lo"], of["images_per_second_hi"], "/s"),
                        )
                        for of in (condition["variants"][v] for v in variants)
                    ],
                )
            )
    footprint = benchmark.get("footprint")
    if footprint:
        rows += [
            ("ms to load", [Cell(figure(footprint[v]["load_ms"], "ms", 1, bare=True)) for v in variants]),
            (
                "MB of memory at the peak",
                [
                    Cell(
                        figure(footprint[v]["memory_peak_bytes"], "MB", 0, bare=True),
                        f"{figure(footprint[v]['memory_rise_bytes'], 'MB', 1, bare=True)} of them the file's",
                    )
                    for v in variants
                ],
            ),
        ]
    note = (
        "Median milliseconds a call; below, times fp32's speed in the same setting with the 95% interval. "
        "Not distinguishable: the interval holds 1."
    )
    return Grid("setting", variants, rows, note)


def counts(data: Part) -> Grid | None:
    """Images of each class in each split, of the rarest where there are many; None where all have as many."""
    splits = list(data["counts"])
    if all(len({data["counts"][split].get(name, 0) for name in data["classes"]}) == 1 for split in splits):
        return None
    names = data["classes"]
    note = ""
    if len(names) > SHOWN_CLASSES:
        rarest = sorted(names, key=lambda name: data["counts"]["train"].get(name, 0))[:SHOWN_CLASSES]
        names = [name for name in names if name in rarest]
        note = f"The {SHOWN_CLASSES} rarest of {len(data['classes']):,}."
    most = {split: max(data["counts"][split].values(), default=1) for split in splits}
    rows = [
        (
            name,
            [
                Cell(
                    figure(data["counts"][split].get(name, 0)),
                    shade=round(0.6 * DARKEST * data["counts"][split].get(name, 0) / most[split]),
                    tone="accept",
                )
                for split in splits
            ],
        )
        for name in names
    ]
    return Grid("class" if data["task"] == "single_label" else "attribute", splits, rows, note)


def _pictures(folder: Path) -> Any:
    return cache(lambda name: inline_picture(folder / name))


def _answer(item: Part, answer: str, confidence: str) -> str:
    sure = item.get(confidence)
    return item[answer] if sure is None else f"{item[answer]}, {figure(sure, '%', 0)}"


def _lost(value: int | float, clean: int | float) -> int:
    return round(DARKEST * min(1.0, max(0.0, 1 - value / clean))) if clean else 0


def _errors(counted: Part) -> int | float:
    """Images that are named wrong; for attributes what their average precision lacks of 1."""
    if "average_precision" in counted:
        return 1 - (counted["average_precision"] or 0)
    return counted["n"] - counted["correct"]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."

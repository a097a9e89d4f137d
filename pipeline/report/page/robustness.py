"""The page's tables of corrupted, adversarial and out-of-distribution images."""

from collections.abc import Mapping
from typing import Any

from pipeline.report import words
from pipeline.report.evidence import Evidence, Part
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.grid import DARKEST, Cell, Grid, shade_of_loss


def corruptions(evidence: Evidence) -> Grid | None:
    """Accuracy on corrupted images: one row per kind, one column per variant, one square per severity."""
    part = evidence.corruptions
    if not part:
        return None
    variants: Mapping[str, Any] = part["variants"]

    def mean(of: Part) -> Cell:
        text = figure(of["mean"], "%", 1, bare=True)
        small = "" if of["delta"] is None else f"{figure(of['delta'], 'points', 1, bare=True)} vs parent"
        return Cell(text, small, shade_of_loss(of["mean"], of["clean"]), strong=True)

    def kind_cell(of: Part, kind: str) -> Cell:
        shares = [step["accuracy"] for step in of["table"][kind]]
        text = ", ".join(figure(share, "%", 1, bare=True) for share in shares)
        accuracy = of["kinds"][kind]["accuracy"]
        return Cell(
            figure(accuracy, "%", 1, bare=True),
            shade=shade_of_loss(accuracy, of["clean"]),
            picture=charts.strip(
                [shade_of_loss(share, of["clean"]) / DARKEST for share in shares],
                title=f"from weak to strong: {text}",
            ),
            title=f"severity 1 to {len(shares)}: {text}",
        )

    rows: list[tuple[str, list[Cell]]] = [
        ("none", [Cell(figure(of["clean"], "%", 1, bare=True)) for of in variants.values()]),
        ("mean of all kinds", [mean(of) for of in variants.values()]),
        *((words.spaced(kind), [kind_cell(of, kind) for of in variants.values()]) for kind in part["kinds"]),
    ]
    note = (
        f"Accuracy in per cent on {figure(part['n'])} test images that were corrupted as in ImageNet-C "
        f"({part['library']}): the mean over all severities, and one square per severity from weak to "
        "strong. A stronger shade means a greater loss against the images without corruption."
    )
    return Grid("corruption", list(variants), rows, note)


def adversarial(evidence: Evidence) -> Grid | None:
    """Accuracy under attack: one row per attack and file, one column per radius."""
    part = evidence.adversarial
    if not part:
        return None
    radii = sorted({result["radius"] for result in part["results"]})
    attacks = dict.fromkeys((r["attack"], r["module"], r["variant"]) for r in part["results"])
    by_attack = {(r["attack"], r["module"], r["variant"], r["radius"]): r for r in part["results"]}
    rows = []
    for attack, module, variant in attacks:
        clean = part["clean"][variant]["accuracy"]
        cells = [Cell(figure(clean, "%", 1, bare=True))]
        for radius in radii:
            result = by_attack.get((attack, module, variant, radius))
            cells.append(
                Cell("")
                if result is None
                else Cell(
                    figure(result["accuracy"], "%", 1, bare=True),
                    small=span(result["lo"], result["hi"], "%", 1),
                    shade=shade_of_loss(result["accuracy"], clean),
                )
            )
        rows.append((f"{attack}, gradients of {module}, answers of {variant}.onnx", cells))
    note = (
        f"Accuracy in per cent on {figure(part['n'])} test images in which every pixel was changed by at "
        "most the radius (in grey levels), using the gradients of the float network. Attacks on quantised "
        "files are transferred from it. "
    ) + " ".join(words.sentence(f"{name}: {text}") for name, text in part["attacks"].items())
    return Grid("attack", ["no attack", *(f"{radius:g}/255" for radius in radii)], rows, note)


def out_of_distribution(evidence: Evidence) -> Grid | None:
    """Confidence of the variants on images that belong to none of the classes."""
    part = evidence.out_of_distribution
    if not part:
        return None
    variants = list(part["test"])
    rows: list[tuple[str, list[Cell]]] = [
        ("test images", [Cell(figure(part["test"][v]["confidence"], "%", 1, bare=True)) for v in variants])
    ]
    for name, images in part["sets"].items():
        cells = []
        for variant in variants:
            of = images["variants"][variant]
            cells.append(
                Cell(
                    figure(of["confidence"], "%", 1, bare=True),
                    small=f"AUROC {figure(of['auroc'], 'plain')}",
                    shade=round(DARKEST * of["over_90"]),
                    title=f"{figure(of['over_90'], '%', 1)} of them with a confidence of 90 % or more",
                )
            )
        rows.append((words.spaced(name), cells))
    note = (
        "Mean confidence in per cent; lower is better in all rows except the first. A stronger shade means "
        "that more images get a confidence of 90 % or more. AUROC: how well the confidence alone separates "
        "these images from test images (1 is perfect, 0.5 is chance)."
    )
    return Grid("images", variants, rows, note)

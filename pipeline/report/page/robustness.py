"""The page's tables of corrupted, adversarial and out-of-distribution images."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.report import words
from pipeline.report.evidence import Evidence, Part
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.grid import DARKEST, Cell, Grid, shade_of_loss

ALARMING = 0.1
"""Loss of accuracy, as a fraction of 1, from which a corruption or an attack deserves advice."""
CONFIDENT = 0.05
"""Share of images of none of the classes with a confidence of 90 % or more that deserves advice."""


def advice(evidence: Evidence, variant: str) -> list[str]:
    """What to do about the worst weaknesses of the shipped variant; nothing where it has none."""
    return [
        *_on_corruptions(evidence, variant),
        *_on_attacks(evidence, variant),
        *_on_foreign(evidence, variant),
    ]


def _on_corruptions(evidence: Evidence, variant: str) -> Iterator[str]:
    part = evidence.corruptions
    of = part["variants"].get(variant) if part else None
    if not part or not of:
        return
    worst = min(of["kinds"], key=lambda kind: of["kinds"][kind]["accuracy"])
    accuracy = of["kinds"][worst]["accuracy"]
    if of["clean"] - accuracy >= ALARMING:
        yield (
            f"Of {words.counted(part['n'], 'test image')}, {variant} is right on "
            f"{figure(of['clean'], '%', 1)} as they are, but on "
            f"{figure(accuracy, '%', 1)} with {words.spaced(worst)}. If photographs like these occur in use, "
            "add some to the training images; if not, this need not worry you."
        )


def _on_attacks(evidence: Evidence, variant: str) -> Iterator[str]:
    part = evidence.adversarial
    results = [of for of in part["results"] if of["variant"] == variant] if part else []
    if not part or not results:
        return
    worst = min(results, key=lambda of: (of["radius"], of["accuracy"]))
    if part["clean"][variant]["accuracy"] - worst["accuracy"] >= ALARMING:
        yield (
            f"Pixels that someone changes on purpose, by at most {worst['radius']:g} of 255 grey levels, "
            f"leave {figure(worst['accuracy'], '%', 1)} of the answers to "
            f"{words.counted(part['n'], 'image')} right. Nearly every network that was not trained against "
            "attacks behaves like this. Where somebody gains by a wrong answer, do not rely on the "
            "classifier alone; elsewhere, ignore it."
        )


def _on_foreign(evidence: Evidence, variant: str) -> Iterator[str]:
    part = evidence.out_of_distribution
    shares = {
        name: images["variants"][variant]["over_90"]
        for name, images in (part["sets"] if part else {}).items()
        if variant in images["variants"]
    }
    if part and shares and max(shares.values()) >= CONFIDENT:
        name = max(shares, key=lambda name: shares[name])
        yield (
            f"{figure(shares[name], '%', 1)} of the {figure(part['sets'][name]['n'])} images of "
            f"{words.spaced(name)}, which show none of the "
            "classes, get a confidence of 90 % or more. A threshold on the confidence does not keep them "
            "out; if such images occur in use, add a class of them."
        )


def corruption_means(evidence: Evidence) -> Grid | None:
    """Accuracy without and with corruption, in the mean over all kinds: one column per variant."""
    part = evidence.corruptions
    if not part:
        return None
    variants: Mapping[str, Any] = part["variants"]

    def mean(of: Part) -> Cell:
        text = figure(of["mean"], "%", 1, bare=True)
        small = "" if of["delta"] is None else f"{figure(of['delta'], 'points', 1, bare=True)} vs parent"
        return Cell(text, small, shade_of_loss(of["mean"], of["clean"]), strong=True)

    rows = [
        ("none", [Cell(figure(of["clean"], "%", 1, bare=True)) for of in variants.values()]),
        ("mean of all kinds", [mean(of) for of in variants.values()]),
    ]
    return Grid("corruption", list(variants), rows, f"On {words.counted(part['n'], 'test image')}.")


def corruptions(evidence: Evidence) -> Grid | None:
    """Accuracy on corrupted images: one row per kind, one column per variant, one square per severity."""
    part = evidence.corruptions
    if not part:
        return None
    variants: Mapping[str, Any] = part["variants"]

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

    rows = [(words.spaced(kind), [kind_cell(of, kind) for of in variants.values()]) for kind in part["kinds"]]
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

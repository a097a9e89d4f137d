"""What the measurements say: one place that picks and counts what the page and the card show."""

from collections.abc import Iterator, Sequence

from pipeline.report.evidence import Part
from pipeline.report.results import RunResults, VariantResults

SHOWN_CLASSES = 30
"""Greatest number of classes in a table; of more classes, those with the most errors are shown."""
SHOWN_GROUPS = 12
"""Greatest number of groups of images in a table; of more groups, the largest are shown."""
SHOWN_MISTAKES = 3
"""Number of the most frequent confusions that are named."""


def class_score(counts: Part) -> float | None:
    """Accuracy on one class, or average precision of one attribute; None where no test image has it."""
    if not counts["n"]:
        return None
    return counts["average_precision"] if "average_precision" in counts else counts["correct"] / counts["n"]


def class_errors(counts: Part) -> int | float:
    """Number of wrong answers to one class; for an attribute, 1 minus its average precision."""
    if "average_precision" in counts:
        return 1 - (counts["average_precision"] or 0)
    return counts["n"] - counts["correct"]


def worst_classes(result: VariantResults) -> list[int]:
    """Indices of the classes that are shown, in their order."""
    counts = result.scores["classes"]
    by_errors = sorted(range(len(counts)), key=lambda index: class_errors(counts[index]), reverse=True)
    return sorted(by_errors[:SHOWN_CLASSES])


def extremes(result: VariantResults) -> tuple[Part, Part] | None:
    """The class with the highest score and the one with the lowest; None where only one was scored."""
    ranked = sorted((one for one in result.scores["classes"] if one["n"]), key=lambda c: class_score(c) or 0)
    return (ranked[-1], ranked[0]) if len(ranked) > 1 else None


def mistakes(result: VariantResults) -> Sequence[Part]:
    """The most frequent confusions of classes; none among attributes."""
    return result.scores.get("confused", ())[:SHOWN_MISTAKES]


def calibrations(results: RunResults) -> Iterator[tuple[str, str | None, Part, Part | None]]:
    """Name, parent, calibration, and its change against the parent, for all whose probabilities are known.

    The teacher comes first.
    """
    if teacher := results.comparison["teacher"].get("calibration"):
        yield results.teacher_name, None, teacher, None
    for one in results.variants:
        if calibration := one.scores.get("calibration"):
            yield one.variant, one.parent, calibration, results.change(one.variant).get("calibration")


def largest_groups(groups: Sequence[Part]) -> list[Part]:
    """The groups of images that are shown, in their order."""
    least = sorted((group["n"] for group in groups), reverse=True)[:SHOWN_GROUPS][-1]
    return [group for group in groups if group["n"] >= max(1, least)][:SHOWN_GROUPS]


def first_attack(results: RunResults) -> Part | None:
    """The strongest attack of the smallest radius on the variant that is shipped."""
    attacks = results.evidence.adversarial
    shipped = results.closest.variant
    candidates = [one for one in attacks["results"] if one["variant"] == shipped] if attacks else []
    return min(candidates, key=lambda attack: (attack["radius"], attack["accuracy"]), default=None)

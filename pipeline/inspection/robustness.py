"""How shipped files do on corrupted, adversarial and out-of-distribution images."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from scipy.special import softmax

from pipeline import earlier
from pipeline.inspection import attacks, corruptions
from pipeline.models.storage import Model
from pipeline.onnx.inference import Classifier, run
from pipeline.statistics.bootstrap import mean_with_interval
from pipeline.statistics.intervals import Z95, widen, wilson

SURE = 0.9
"""Least probability at which an answer counts as sure."""
BATCH = 32
"""Number of images per call of a file, and per attack."""

Images = UInt8[np.ndarray, "images side side 3"]


def compute_logits(
    classifiers: Mapping[str, Classifier], sets: Iterable[Images]
) -> Iterator[dict[str, Float32[np.ndarray, "images classes"]]]:
    """Yield the logits of all classifiers for each set of images; the next set is made while they run."""

    def run_all(images: Images) -> dict[str, Float32[np.ndarray, "images classes"]]:
        return {name: next(run(classifier, [images])) for name, classifier in classifiers.items()}

    with ThreadPoolExecutor(max_workers=1) as pool:
        running = None
        for images in sets:
            previous, running = running, pool.submit(run_all, images)
            if previous is not None:
                yield previous.result()
        if running is not None:
            yield running.result()


def score_corrupted(
    classifiers: Mapping[str, Classifier],
    images: Images,
    labels: Int64[np.ndarray, " images"],
    seeds: Sequence[int],
    workers: int = 0,
) -> dict[str, Any]:
    """Measure the accuracy under 15 corruptions at 5 severities, on the same corrupted images for all.

    Args:
        classifiers: the shipped files, by variant.
        images: uncorrupted images, as the files take them.
        labels: class of each image.
        seeds: one seed per image.
        workers: number of processes that corrupt images.

    Returns:
        For each variant the accuracy on the ``clean`` images, the ``mean`` over all corruptions with a
        bootstrap interval over the images, each kind and severity, and in how many of all corruptions each
        image was ``right``. ``combine`` adds the difference from the parent.
    """
    sets = (batch for part in ([images], corruptions.batches(images, seeds, workers)) for batch in part)
    correct = {name: [] for name in classifiers}
    for logits_by_variant in compute_logits(classifiers, sets):
        for name, logits in logits_by_variant.items():
            correct[name].append(logits.argmax(axis=1) == labels)
    return {
        "library": corruptions.LIBRARY,
        "n": len(images),
        "kinds": corruptions.KINDS,
        "severities": corruptions.SEVERITIES,
        "groups": corruptions.GROUPS,
        "variants": {name: _corruption_scores(np.array(rows)) for name, rows in correct.items()},
    }


def _corruption_scores(correct: Bool[np.ndarray, "sets images"]) -> dict[str, Any]:
    clean = correct[0]
    by_kind = correct[1:].reshape(len(corruptions.KINDS), len(corruptions.SEVERITIES), -1)
    mean, lo, hi = mean_with_interval(by_kind.mean(axis=(0, 1)))
    return {
        **_accuracy("clean", clean),
        "mean": mean,
        "mean_lo": lo,
        "mean_hi": hi,
        "kinds": {
            kind: dict(zip(("accuracy", "lo", "hi"), mean_with_interval(rows.mean(axis=0)), strict=True))
            for kind, rows in zip(corruptions.KINDS, by_kind, strict=True)
        },
        "table": {
            kind: [
                {"severity": severity, "accuracy": float(row.mean()), "lo": lo, "hi": hi}
                for severity, row in zip(corruptions.SEVERITIES, rows, strict=True)
                for lo, hi in [wilson(int(row.sum()), len(row))]
            ]
            for kind, rows in zip(corruptions.KINDS, by_kind, strict=True)
        },
        "right": correct[1:].sum(axis=0).tolist(),
    }


def score_attacked(
    classifiers: Mapping[str, Classifier],
    modules: Mapping[str, Model],
    victims: Mapping[str, Sequence[str]],
    images: Images,
    labels: Int64[np.ndarray, " images"],
    *,
    radii: Sequence[int],
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Measure the accuracy on images that were changed to mislead float modules.

    Args:
        classifiers: the shipped files, by variant.
        modules: the float modules that are attacked, by variant.
        victims: variants whose files get the images that attack a module: its own file, and those quantised
            from it.
        images: images as the files take them.
        labels: class of each image.
        radii: greatest changes of a value, of 255.
        steps: number of steps of projected gradient descent.
        seed: seed of its starts.
    """
    trials = [(name, kind, radius) for name in modules for radius in radii for kind in attacks.DESCRIPTIONS]
    clean = next(compute_logits(classifiers, [images]))
    results = []
    for name, kind, radius in trials:
        adversarial, module_accuracy = _attack(modules[name], kind, radius, images, labels, steps, seed)
        logits_by_variant = next(compute_logits({v: classifiers[v] for v in victims[name]}, [adversarial]))
        results += [
            {
                "attack": kind,
                "radius": radius,
                "module": name,
                "variant": variant,
                "transferred": variant != name,
                **_accuracy("accuracy", logits.argmax(axis=1) == labels),
                "module_accuracy": module_accuracy,
            }
            for variant, logits in logits_by_variant.items()
        ]
    return {
        "n": len(images),
        "radii": list(radii),
        "steps": steps,
        "attacks": {name: text.format(steps=steps) for name, text in attacks.DESCRIPTIONS.items()},
        "clean": {
            name: _accuracy("accuracy", logits.argmax(axis=1) == labels) for name, logits in clean.items()
        },
        "results": results,
    }


def _attack(
    model: Model,
    kind: str,
    radius: int,
    images: Images,
    labels: Int64[np.ndarray, " images"],
    steps: int,
    seed: int,
) -> tuple[Images, float]:
    """Make adversarial images, and measure the attacked module's own accuracy on them."""
    contract, parts, correct = model.card.input, [], 0
    module = model.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for first in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[first : first + BATCH])
        truth = torch.from_numpy(labels[first : first + BATCH])
        adversarial = (
            attacks.fgsm(module, contract, batch, truth, radius)
            if kind == "FGSM"
            else attacks.pgd(module, contract, batch, truth, radius, steps=steps, seed=seed + first)
        )
        correct += int((attacks.predict(module, contract, adversarial) == truth).sum())
        parts.append(adversarial.numpy())
    return np.concatenate(parts), correct / len(images)


def score_out_of_distribution(
    classifiers: Mapping[str, Classifier],
    sets: Mapping[str, Images],
    test_confidence: Mapping[str, Float[np.ndarray, " test"]],
) -> dict[str, Any]:
    """Measure how confident files are on images of no class, and whether that separates them from test
    images.

    Args:
        classifiers: the shipped files, by variant.
        sets: out-of-distribution images, by the name of their kind.
        test_confidence: greatest probability for each test image, by variant.
    """
    logits_by_set = dict(zip(sets, compute_logits(classifiers, sets.values()), strict=True))
    return {
        "sure": SURE,
        "test": {
            name: {
                "n": len(confidence),
                "confidence": float(confidence.mean(dtype=np.float64)),
                "over_90": float((confidence >= SURE).mean()),
            }
            for name, confidence in test_confidence.items()
        },
        "sets": {
            kind: {
                "n": len(sets[kind]),
                "variants": {
                    name: _separation(softmax(logits, axis=1).max(axis=1), test_confidence[name])
                    for name, logits in logits_by_variant.items()
                },
            }
            for kind, logits_by_variant in logits_by_set.items()
        },
    }


def _separation(
    confidence: Float[np.ndarray, " images"], test_confidence: Float[np.ndarray, " test"]
) -> dict[str, float]:
    mean, lo, hi = mean_with_interval(confidence.astype(np.float64))
    area, area_lo, area_hi = auroc(test_confidence, confidence)
    return {
        "confidence": mean,
        "confidence_lo": lo,
        "confidence_hi": hi,
        "over_90": float((confidence >= SURE).mean()),
        "auroc": area,
        "auroc_lo": area_lo,
        "auroc_hi": area_hi,
    }


def combine(sources: Sequence[Mapping[str, Any]], parents: Mapping[str, str]) -> dict[str, Any]:
    """Combine results of different variants, measured on the same images, to one result.

    Args:
        sources: ``corruptions`` by ``score_corrupted``, ``adversarial`` by ``score_attacked`` and
            ``out_of_distribution`` by ``score_out_of_distribution``; any may be missing or None. Of a
            variant in more than one source, the first counts.
        parents: parent of each variant, in the order of the result.
    """
    corrupted, attacked, outside = (
        [source[part] for source in sources if source.get(part)]
        for part in ("corruptions", "adversarial", "out_of_distribution")
    )
    result: dict[str, Any] = {"corruptions": None, "adversarial": None, "out_of_distribution": None}
    if corrupted:
        scores = earlier.join(parents, *(source["variants"] for source in corrupted))
        result["corruptions"] = {**corrupted[0], "variants": _with_differences(scores, parents)}
    if attacked:
        names, kinds = list(parents), list(attacks.DESCRIPTIONS)
        lines_by_variant = [
            {
                name: [line for line in source["results"] if line["variant"] == name]
                for name in source["clean"]
            }
            for source in attacked
        ]
        lines = itertools.chain.from_iterable(earlier.join(names, *lines_by_variant).values())
        result["adversarial"] = {
            **attacked[0],
            "clean": earlier.join(names, *(source["clean"] for source in attacked)),
            "results": sorted(
                lines,
                key=lambda line: (
                    names.index(line["module"]),
                    attacked[0]["radii"].index(line["radius"]),
                    kinds.index(line["attack"]),
                    names.index(line["variant"]),
                ),
            ),
        }
    if outside:
        result["out_of_distribution"] = {
            **outside[0],
            "test": earlier.join(parents, *(source["test"] for source in outside)),
            "sets": {
                kind: {
                    **images,
                    "variants": earlier.join(parents, *(s["sets"][kind]["variants"] for s in outside)),
                }
                for kind, images in outside[0]["sets"].items()
            },
        }
    return result


def _with_differences(
    variants: Mapping[str, Mapping[str, Any]], parents: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The scores with the paired difference of each ``mean`` from the parent's; None without a parent."""
    shares = {name: np.array(scores["right"]) / len(corruptions.ALL) for name, scores in variants.items()}
    result = {}
    for name, scores in variants.items():
        parent = shares.get(parents[name])
        difference = (None,) * 3 if parent is None else mean_with_interval(shares[name] - parent)
        result[name] = {**scores, **dict(zip(("delta", "delta_lo", "delta_hi"), difference, strict=True))}
    return result


def auroc(
    positives: Float[np.ndarray, " positives"], negatives: Float[np.ndarray, " negatives"]
) -> tuple[float, float, float]:
    """Compute the area under the ROC curve and its 95 % interval (DeLong et al. 1988).

    The area is the share of pairs in which the positive lies above the negative; ties count half.
    """
    above, below = _placements(positives, negatives), 1 - _placements(negatives, positives)
    area = float(above.mean())
    variances = [each.var(ddof=1) / len(each) if len(each) > 1 else np.inf for each in (above, below)]
    half = Z95 * float(np.sqrt(sum(variances)))
    lo, hi = max(0.0, area - half), min(1.0, area + half)
    return area, *widen(area, lo, hi, min(len(above), len(below)))


def _placements(
    values: Float[np.ndarray, " values"], others: Float[np.ndarray, " others"]
) -> Float[np.ndarray, " values"]:
    """Share of the others that each value lies above."""
    ordered = np.sort(others)
    least = np.searchsorted(ordered, values, side="left")
    return (least + np.searchsorted(ordered, values, side="right")) / (2 * len(ordered))


def _accuracy(name: str, correct: Bool[np.ndarray, " images"]) -> dict[str, float]:
    lo, hi = wilson(int(correct.sum()), len(correct))
    prefix = "" if name == "accuracy" else f"{name}_"
    return {name: float(correct.mean()), f"{prefix}lo": lo, f"{prefix}hi": hi}

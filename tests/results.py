"""Synthetic results, in the form in which the stages write them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from pipeline.evaluation import gate
from pipeline.evaluation.comparison import ClassifierOutput, compare_with_reference
from pipeline.evaluation.settings import StepLimits
from pipeline.inspection import suspects
from pipeline.measurement import machine
from pipeline.report import tables
from pipeline.report.evidence import Evidence
from pipeline.report.results import RunResults, VariantResults
from pipeline.report.settings import CardSettings
from pipeline.selection import budget
from pipeline.selection.table import Row
from pipeline.statistics import chance
from pipeline.statistics.intervals import wilson

CLASSES = ("red", "green", "blue")
TEACHER: dict[str, Any] = {
    "origin": "A <great> teacher",
    "metric": "top1",
    "adapted": True,
    "settings": {"source": "timm", "full": {"epochs": 1.25}},
    "input": {"size": 260},
    "val": {"top1": 0.95, "n": 500},
    "test": {"top1": 0.94, "n": 4000},
}
TEACHER_HISTORY = [
    {"epoch": 0.5, "seconds": 3, "loss": 2.0, "val_top1": 0.5},
    {"epoch": 1.0, "seconds": 3, "loss": 1.5, "val_top1": 0.8},
    {"epoch": 1.0, "seconds": 9, "loss": 1.0, "val_top1": 0.95},
]
DATA: dict[str, Any] = {
    "source": "folder",
    "path": "photographs/colours",
    "license": "CC0",
    "data_sha256": "d" * 64,
    "task": "single_label",
    "classes": list(CLASSES),
    "counts": {
        split: dict(zip(CLASSES, (3000, 2990, 3010), strict=True)) for split in ("train", "val", "test")
    },
    "images": {"train": 9000, "val": 500, "test": 4000},
    "train_side": 512,
    "rejected": [{"source": "a.txt", "reason": "not an image"}],
    "leaked_between_splits": 2,
}
KINDS = {"noise": ["gaussian_noise"], "weather": ["fog", "snow"]}
"""Families of corruptions and their kinds."""

CALIBRATION = {
    "ece": 0.021,
    "ece_lo": 0.017,
    "ece_hi": 0.025,
    "confidence": 0.9136,
    "nll": 0.2764,
    "brier": 0.1352,
    "reliability": [
        {"n": 0, "confidence": None, "accuracy": None},
        {"n": 400, "confidence": 0.53, "accuracy": 0.61},
        {"n": 3600, "confidence": 0.97, "accuracy": 0.95},
    ],
}

CHAIN = {
    "fp32": ("teacher", "distill", 0.93, 7_360_000, 5.0),
    "int8": ("fp32", "quantize", 0.93, 2_040_000, 2.5),
    "pruned": ("fp32", "prune", 0.85, 3_500_000, 3.0),
    "pruned-int8": ("pruned", "quantize", 0.85, 1_100_000, 1.6),
}
"""Variant to parent, operation, accuracy, bytes and milliseconds."""

STATEMENTS: dict[str, str | None] = CardSettings().model_dump()
"""Section ``card`` of the parameters, where nothing is stated."""
STUDENT = {"architecture": "mobilenet_v1", "width": 0.75, "size": 192}
VIEWS = {"per_image": 2, "crop_scale": [0.8, 1.0], "crop_ratio": [0.9, 1.1], "flip": 0.5}


def results(
    images: int = 4000, variants: Sequence[str] = tuple(CHAIN)
) -> tuple[list[VariantResults], Int64[np.ndarray, " images"], Int64[np.ndarray, " images"]]:
    """Measurements of the variants, the teacher's predictions, and the labels.

    Variants of the same accuracy give the same answers; the teacher's accuracy is 94 %.
    """
    labels = np.arange(images) % len(CLASSES)
    entries = []
    for variant in variants:
        parent, op, share, size, milliseconds = CHAIN[variant]
        entries.append(
            VariantResults(
                variant=variant,
                parent=parent,
                op=op,
                scores=_scores(_predictions(labels, share), labels, size),
                parameters=1_800_000,
                macs=239_000_000,
                val=share - 0.01,
                latency={
                    "latency_ms_p50": milliseconds,
                    "latency_ms_p90": 1.1 * milliseconds,
                    "latency_ms_p99": 1.3 * milliseconds,
                    "ratio": 5.0 / milliseconds,
                    "ratio_lo": 4.9 / milliseconds,
                    "ratio_hi": 5.1 / milliseconds,
                },
                history=[
                    {"epoch": n, "step": 10 * n, "seconds": 2.0 * n, "loss": 1 / n, "val_top1": 0.9}
                    for n in (1, 2, 3)
                ],
            )
        )
    return entries, _predictions(labels, 0.94), labels


def _predictions(labels: Int64[np.ndarray, " images"], share: float) -> Int64[np.ndarray, " images"]:
    right = np.arange(len(labels)) < round(share * len(labels))
    return np.where(right, labels, (labels + 1) % len(CLASSES))


def _scores(
    predictions: Int64[np.ndarray, " images"], labels: Int64[np.ndarray, " images"], size: int
) -> dict[str, Any]:
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    correct = int(confusion.trace())
    lo, hi = wilson(correct, len(labels))
    return {
        "n": len(labels),
        "metric": "top1",
        "correct": correct,
        "top1": correct / len(labels),
        "top1_lo": lo,
        "top1_hi": hi,
        "classes": [
            {"label": name, "n": int(row.sum()), "correct": int(row[index])}
            for index, (name, row) in enumerate(zip(CLASSES, confusion, strict=True))
        ],
        "confused": _confused(confusion),
        "confusion": confusion.tolist(),
        "predictions": predictions.tolist(),
        "sha256": f"{size:064x}",
        "size_bytes": size,
    }


def _confused(confusion: Int64[np.ndarray, "classes classes"]) -> list[dict[str, Any]]:
    pairs = [
        {"truth": truth, "answer": answer, "count": int(count), "of": int(row.sum())}
        for truth, row in zip(CLASSES, confusion, strict=True)
        for answer, count in zip(CLASSES, row, strict=True)
        if truth != answer and count
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])


def table(
    entries: Sequence[VariantResults], teacher: Int64[np.ndarray, " images"], max_drop: float = 0.02
) -> list[Row]:
    """The rows of ``variants.csv``."""
    return tables.rows(entries, comparison(entries, teacher, max_drop))


def run(
    folder: Path | None = None,
    *,
    variants: Sequence[str] = tuple(CHAIN),
    max_drop: float = 0.02,
    limits: Mapping[str, Any] | None = None,
    attributes: bool = False,
) -> RunResults:
    """All results of a run.

    Args:
        folder: folder for pictures; with one, the run has measured everything that can be measured.
        variants: names in ``CHAIN``.
        max_drop: the limit of the gate.
        limits: the limits of the budget.
        attributes: whether the classifiers name attributes instead of classes.
    """
    entries, answers, _ = results(variants=variants)
    changes = comparison(entries, answers, max_drop)
    rows = tables.rows(entries, changes)
    entries = entries if folder is None else measured(entries)
    if folder is None:
        changes["teacher"] = {"calibration": None}
    if attributes:
        rows, entries = as_attributes(rows, entries)
        unknown = {"flips": None, "mcnemar_p": None, "calibration": None}
        changes["variants"] = {name: {**of, **unknown} for name, of in changes["variants"].items()}
    metric = "map" if attributes else "top1"
    return RunResults(
        table=rows,
        variants=entries,
        comparison=changes | {"slices": [] if folder is None else changes["slices"]},
        teacher=TEACHER
        | {"metric": metric, "val": {metric: 0.95, "n": 500}, "test": {metric: 0.94, "n": 4000}},
        teacher_history=[] if attributes else TEACHER_HISTORY,
        model_cards=[_model_card(entry) for entry in entries],
        data=DATA | {"task": "multi_label" if attributes else "single_label"},
        benchmark=benchmark(entries, full=folder is not None, noisy=folder is not None),
        student=STUDENT,
        views=VIEWS,
        statements=STATEMENTS,
        git_commit="0123456789abcdef",
        versions={"torch": "2.14.1", "onnxruntime": "1.32.0"},
        choice=budget.choose(rows, **(limits or {})),
        evidence=Evidence() if folder is None else evidence(entries, folder),
    )


def _model_card(entry: VariantResults) -> dict[str, Any]:
    return {
        "variant": entry.variant,
        "parent": entry.parent,
        "op": entry.op,
        "start": "random weights",
        "settings": {"training": {"epochs": 3}},
        "arguments": {"channels": [24, 48]},
        "input": {
            "size": 192,
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
            "interpolation": "bilinear",
            "crop": 1.0,
        },
    }


def as_attributes(
    table: Sequence[Row], entries: Sequence[VariantResults]
) -> tuple[list[Row], list[VariantResults]]:
    """The same results of classifiers that name any number of attributes."""
    scores = {
        "metric": "map",
        "classes": [
            {"label": name, "n": n, "average_precision": precision}
            for name, n, precision in zip(CLASSES, (812, 1204, 0), (0.917, 0.688, None), strict=True)
        ],
    }
    return (
        [replace(row, metric="map", mcnemar_p=None) for row in table],
        [replace(entry, scores={**scores, "map": entry.scores["top1"]}, history=()) for entry in entries],
    )


def measured(entries: Sequence[VariantResults]) -> list[VariantResults]:
    """The same measurements with everything that ``evaluate`` and ``benchmark`` may add."""
    return [
        replace(
            entry,
            scores={
                **entry.scores,
                "compressed_bytes": entry.scores["size_bytes"] - 170_000,
                "calibration": CALIBRATION,
            },
        )
        for entry in entries
    ]


def benchmark(
    entries: Sequence[VariantResults], *, full: bool = False, noisy: bool = False
) -> dict[str, Any]:
    """What ``benchmark`` always writes; and, if ``full``, everything that it may add."""
    found: dict[str, Any] = {
        "settings": {"threads": 1, "batch_size": 1, "rounds": 200, "warmup": 20, "reference": "fp32"},
        "machine": machine.describe(),
        "load_average": {"before": [0.1, 0.2, 0.3], "after": [0.2, 0.2, 0.3]},
        "variants": {entry.variant: entry.latency for entry in entries},
    }
    if not full:
        return found
    speeds = {
        entry.variant: {
            **entry.latency,
            **_interval("images_per_second", 1000 / entry.latency["latency_ms_p50"]),
            "distinguishable": entry.variant != "fp32",
        }
        for entry in entries
    }
    return found | {
        "conditions": [
            {"provider": "cpu", "threads": threads, "batch_size": size, "variants": speeds}
            for threads, size in ((1, 1), (2, 16))
        ],
        "noise": {"noisy": noisy, "reasons": ["others took 0.8 cores"] if noisy else []},
        "footprint": {
            entry.variant: {"load_ms": 31.4, "memory_peak_bytes": 91_300_000, "memory_rise_bytes": 17_700_000}
            for entry in entries
        },
    }


def evidence(entries: Sequence[VariantResults], folder: Path) -> Evidence:
    """Everything that a run may measure beyond scores and latency, with its pictures in ``folder``."""
    return Evidence(
        costs=_costs(entries),
        robustness=_robustness(entries),
        sensitivity=_sensitivity(),
        explanations=_explanations(entries, folder),
        suspects=SUSPECTS,
        litert=_litert(entries) if "sha256" in entries[0].scores else None,
        folder=folder,
    )


def _interval(name: str, value: float, half: float = 0.004) -> dict[str, float]:
    return {name: value, f"{name}_lo": value - half, f"{name}_hi": value + half}


def comparison(
    entries: Sequence[VariantResults], teacher: Int64[np.ndarray, " images"], max_drop: float = 0.02
) -> dict[str, Any]:
    """What the stage `compare` writes."""
    labels = np.arange(len(teacher)) % len(CLASSES)
    answers = {"teacher": teacher} | {e.variant: np.array(e.scores["predictions"]) for e in entries}
    limits = StepLimits(max_drop=max_drop, max_class_drop=1.0)
    outputs = {name: ClassifierOutput(of) for name, of in answers.items()}
    reference = next(entry.variant for entry in entries if entry.parent == "teacher")
    variants = {}
    for entry in entries:
        new, old = answers[entry.variant], answers[entry.parent]
        found = gate.compare(new == labels, old == labels)
        above = chance.of_classes(new, labels)
        of_classes = [
            gate.compare((new == labels)[labels == k], (old == labels)[labels == k])
            for k in range(len(CLASSES))
        ]
        variants[entry.variant] = {
            "parent": entry.parent,
            "n": len(labels),
            "delta": found.delta,
            "lo": found.lo,
            "hi": found.hi,
            "mcnemar_p": found.mcnemar_p,
            "distinguishable": not found.lo <= 0 <= found.hi,
            "verdict": gate.verdict(found, limits, above),
            "reason": gate.explain(found, limits, entry.parent, above),
            "images_needed": gate.images_needed(found, limits, above),
            "limits": limits.model_dump(),
            "chance": above.expected,
            "flips": {
                "gained": int(((new == labels) & (old != labels)).sum()),
                "lost": int(((new != labels) & (old == labels)).sum()),
                "changed": int((new != old).sum()),
                "agreement": float((new == old).mean()),
            },
            "classes": [
                {
                    "label": name,
                    "delta": of.delta,
                    "lo": of.lo,
                    "hi": of.hi,
                    "worse": of.hi < 0,
                    "better": False,
                }
                for name, of in zip(CLASSES, of_classes, strict=True)
            ],
            "classes_worse": [name for name, of in zip(CLASSES, of_classes, strict=True) if of.hi < 0],
            "reference": {
                "variant": reference,
                **compare_with_reference(outputs[entry.variant], outputs[reference], labels),
            },
            "classes_better": [],
            "calibration": {
                **_interval("ece_delta", 0.0047),
                **_interval("confidence_delta", -0.0113),
                **_interval("nll_delta", 0.0219),
                "confidence_moved": 0.0187,
            },
        }
    groups = [
        {"group": name, "n": 2000, "score": score, "lo": score - 0.012, "hi": score + 0.012}
        for name, score in (("0.10 to 0.42", 0.914), ("0.42 to 0.93", 0.943))
    ]
    slices = [
        {
            "column": "brightness",
            "note": "Mean luma of the evaluated square.",
            "groups": groups,
            "variants": {
                variant: {
                    "groups": groups,
                    "best": "0.42 to 0.93",
                    "worst": "0.10 to 0.42",
                    **_interval("gap", 0.029, 0.018),
                    "distinguishable": True,
                }
                for variant in answers
            },
        },
        {"column": "object_scale", "note": "The background is not plain.", "groups": [], "variants": {}},
    ]
    return {
        "n": len(labels),
        "teacher": {"calibration": CALIBRATION},
        "variants": variants,
        "slices": slices,
    }


def _costs(entries: Sequence[VariantResults]) -> dict[str, Any]:
    one = {
        "own": {"seconds": 361, "kwh": 0.0037, "gram_co2": 1.57},
        "total": {"seconds": 733, "kwh": 0.0061, "gram_co2": 2.71},
    }
    return {
        "method": {"kind": "estimate", "note": "Watts a core times seconds.", "sources": ["a handbook"]},
        "training": dict.fromkeys(("teacher", *(entry.variant for entry in entries)), one),
        "inference": {
            entry.variant: {
                "kwh_per_1000": 0.0000083,
                "gram_co2_per_1000": 0.00365,
                "joule_per_image": 0.0299,
                "ms_per_image": entry.latency["latency_ms_p50"],
            }
            for entry in entries
        },
        "everything": {"seconds": 1873, "kwh": 0.0193, "gram_co2": 8.44},
        "not_measured": [],
    }


def _robustness(entries: Sequence[VariantResults]) -> dict[str, Any]:
    kinds = [kind for family in KINDS.values() for kind in family]
    names = [entry.variant for entry in entries]
    steps = [0.83, 0.74, 0.61, 0.47, 0.32]
    corrupted = {
        **_interval("clean", 0.928),
        **_interval("mean", 0.594),
        **_interval("delta", -0.013),
        "table": {
            kind: [{"severity": n + 1, "accuracy": share} for n, share in enumerate(steps)] for kind in kinds
        },
        "kinds": {kind: _interval("accuracy", 0.594) for kind in kinds},
    }
    attacked = [
        {
            "attack": attack,
            "radius": radius,
            "module": "fp32",
            "variant": variant,
            "transferred": variant != "fp32",
            "accuracy": 0.81 / radius,
            "lo": 0.79 / radius,
            "hi": 0.83 / radius,
        }
        for attack in ("FGSM", "PGD")
        for variant in names[:2]
        for radius in (1, 2)
    ]
    foreign = {
        **_interval("confidence", 0.486),
        **_interval("auroc", 0.957),
        "over_90": 0.058,
    }
    return {
        "corruptions": {
            "library": "imagecorruptions 1.1.2",
            "n": 512,
            "kinds": kinds,
            "severities": [1, 2, 3, 4, 5],
            "groups": KINDS,
            "variants": {
                name: corrupted if name != "fp32" else corrupted | {"delta": None} for name in names
            },
        },
        "adversarial": {
            "n": 256,
            "radii": [1, 2],
            "attacks": {"FGSM": "one step (Goodfellow et al. 2014)", "PGD": "ten steps (Madry et al. 2017)"},
            "results": attacked,
            "clean": {name: _interval("accuracy", 0.927) for name in names},
        },
        "out_of_distribution": {
            "test_n": 512,
            "sets": {"noise": {"n": 512, "note": "", "variants": dict.fromkeys(names, foreign)}},
            "test": {name: {"confidence": 0.913, "over_90": 0.77} for name in names},
        },
    }


def _sensitivity() -> dict[str, Any]:
    layers = ("stem", "blocks.0.depthwise", "blocks.0.pointwise", "classifier")
    return {
        "n": 200,
        "metric": "top1",
        "size": 128,
        "settling": 128,
        "criterion": "l1",
        "variants": {
            "fp32": {
                "score": 0.875,
                "channels": {
                    layer: {
                        "0.25": {"score": 0.61 + 0.05 * number, "moved": 0.21},
                        "0.5": {"score": 0.81 + 0.02 * number, "moved": 0.08},
                        "0.75": {"score": 0.87, "moved": 0.03},
                    }
                    for number, layer in enumerate(layers[:3:2])
                },
                "int8": {
                    "together": {"score": 0.855, "moved": 0.031},
                    "layers": {
                        layer: {
                            "alone": {"score": 0.86 + 0.005 * number, "moved": 0.02 - 0.004 * number},
                            "spared": {"score": 0.87, "moved": 0.025 + 0.001 * number},
                        }
                        for number, layer in enumerate(layers)
                    },
                },
            }
        },
    }


SUSPECTS: dict[str, Any] = {
    "method": suspects.METHOD,
    "suspects": 37,
    "labels": 5120,
    "not_judged": 6,
    "trained_on_them": True,
    "complete": False,
    "images": [
        {
            "file_name": "train/red/<odd> 1.jpg",
            "label": "red",
            "suggestion": "green",
            "label_probability": 0.018,
            "suggestion_probability": 0.973,
            "file": "0001.png",
        },
        {
            "file_name": "train/blue/2.jpg",
            "label": "blue",
            "suggestion": "red",
            "label_probability": 0.12,
            "suggestion_probability": 0.84,
            "file": "0001.png",
        },
    ],
}


def _litert(entries: Sequence[VariantResults]) -> dict[str, Any]:
    """What the stage `litert` writes, with two numbers of threads."""
    variants, times = {}, {}
    for place, entry in enumerate(entries):
        metric = entry.scores["metric"]
        paired = (-0.0009, 0.0003) if metric == "top1" else (None, None)
        variants[entry.variant] = {
            "n": entry.scores["n"],
            "metric": metric,
            **_interval(metric, 0.9017 - 0.003 * place),
            "agreement": 0.9983,
            **dict(zip(("delta", "delta_lo", "delta_hi"), (-0.0003, *paired), strict=True)),
            "parity": {"split": "val", "n": 64, "rungs": []},
            "size_bytes": 1_932_343 + place,
            "onnx_size_bytes": 1_914_536,
            "sha256": "ab" * 32,
            "onnx_sha256": entry.scores["sha256"],
            "min_runtime": "2.7.0",
        }
        times[entry.variant] = {
            "latency_ms_p50": 2.61 / (1 + place),
            "ratio": 1.0 + place,
            "ratio_lo": 0.96 + place,
            "ratio_hi": 1.05 + place,
        }
    conditions = [{"threads": threads, "batch_size": 1, "variants": times} for threads in (1, 2)]
    return {
        "runtime": "ai-edge-litert 2.3.0",
        "reference": entries[0].variant,
        "variants": variants,
        "conditions": conditions,
    }


def _explanations(entries: Sequence[VariantResults], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, 24).astype(np.uint8)
    for number, name in enumerate(["0001", *(f"0001-{entry.variant}" for entry in entries)]):
        pixels = np.stack(
            [np.tile(ramp, (24, 1)), np.tile(ramp[:, None], 24), np.full((24, 24), 40 * number)]
        )
        Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8)).save(folder / f"{name}.png")
    flipped = {
        "index": 7,
        "truth": "red",
        "parent_answer": "red",
        "answer": "green",
        "confidence": 0.57,
        "parent_confidence": 0.62,
        "file": "0001.png",
    }
    pair = {
        "truth": "red",
        "answer": "green",
        "count": 94,
        "of": 1334,
        "examples": [{"file": "0001.png"}] * 3,
    }
    return {
        "method": {"name": "Grad-CAM", "library": "captum 0.9.0", "note": "of each file's own answer"},
        "size": 24,
        "images": [
            {
                "index": 1,
                "truth": "red",
                "file": "0001.png",
                "variants": {
                    entry.variant: {
                        "answer": "red",
                        "confidence": 0.87,
                        "right": True,
                        "map": f"0001-{entry.variant}.png",
                        "similarity": 0.96,
                    }
                    for entry in entries
                },
            }
        ],
        "flips": {
            entry.variant: {"parent": entry.parent, "lost": [flipped], "gained": []}
            for entry in entries
            if entry.parent != "teacher"
        },
        "confused": {entry.variant: [pair] for entry in entries},
    }

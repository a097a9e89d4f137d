"""Compare what students are trained towards: `variants=objectives`, three seeds each, on one test split.

    dvc exp run -S data=clothing_resplit -S variants=objectives ...
    python -m benchmarks.objectives hard

The argument is the objective that the others are compared with. A difference is the mean over seeds; its
interval is a bootstrap that draws images and, for each objective, seeds.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pipeline import paths
from pipeline.data import store
from pipeline.models import storage

SAMPLES = 10_000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", help="name of a variant without its seed, such as hard")
    parser.add_argument("--artifacts", type=Path, default=paths.ARTIFACTS, help="default: %(default)s")
    arguments = parser.parse_args()
    truth = store.read(arguments.artifacts / paths.DATA.name, "test").labels
    right: dict[str, list[np.ndarray]] = defaultdict(list)
    val: dict[str, list[float]] = defaultdict(list)
    for file in sorted((arguments.artifacts / paths.METRICS.name).glob("*-[0-9].json")):
        objective = file.stem.rpartition("-")[0]
        right[objective].append(np.asarray(json.loads(file.read_text())["predictions"]) == truth)
        card = arguments.artifacts / paths.MODELS.name / file.stem / storage.CARD
        val[objective].append(json.loads(card.read_text())["val"]["top1"])
    if arguments.baseline not in right:
        parser.error(
            f"baseline {arguments.baseline!r}: no such objective; allowed: {', '.join(sorted(right))}"
        )
    base = np.stack(right[arguments.baseline])
    print(
        f"| objective | seeds | val, % | test, % (n = {len(truth)}) | points against {arguments.baseline} |"
    )
    print("|---|---|---|---|---|")
    for objective in sorted(right, key=lambda name: -np.mean(val[name])):
        own = np.stack(right[objective])
        low, high = interval(own, base)
        each = ", ".join(f"{score:.1f}" for score in own.mean(1) * 100)
        print(
            f"| {objective} | {len(own)} | {100 * np.mean(val[objective]):.1f} | "
            f"{own.mean() * 100:.1f} ({each}) | "
            f"{100 * (own.mean() - base.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |"
        )


def interval(
    new: Bool[np.ndarray, "seeds images"], old: Bool[np.ndarray, "seeds images"]
) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two methods' mean accuracies, over images and seeds."""
    random = np.random.default_rng(0)
    differences: Float[np.ndarray, " samples"] = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        images = random.integers(new.shape[1], size=new.shape[1])
        means = [rows[random.integers(len(rows), size=len(rows))][:, images].mean() for rows in (new, old)]
        differences[sample] = means[0] - means[1]
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()

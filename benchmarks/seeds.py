"""Compare variants of which each seed has one, such as `fp32-0`, `fp32-1` and `fp32-2`, on one test split.

    dvc exp run -S variants=objectives ...
    python -m benchmarks.seeds hard
    dvc exp run -S variants=seeds ...
    python -m benchmarks.seeds fp32 --paired

The argument is the group of variants that the others are compared with, named without the seed. A difference
is the mean over seeds; its interval is a bootstrap that draws images and seeds: for each group anew, or, with
`--paired`, the same ones for both, since variants made from one parent share what its seed has brought.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pipeline import paths
from pipeline.data import store

SAMPLES = 10_000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", help="name of a variant without its seed, such as hard")
    parser.add_argument(
        "--paired", action="store_true", help="draw the same seeds for both groups of a comparison"
    )
    parser.add_argument("--artifacts", type=Path, default=paths.ARTIFACTS, help="default: %(default)s")
    arguments = parser.parse_args()
    truth = store.read(arguments.artifacts / paths.DATA.name, "test").labels
    right: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    val: dict[str, list[float]] = defaultdict(list)
    for file in sorted((arguments.artifacts / paths.METRICS.name).glob("*-[0-9].json")):
        group, _, seed = file.stem.rpartition("-")
        right[group][seed] = np.asarray(json.loads(file.read_text())["predictions"]) == truth
        card = arguments.artifacts / paths.MODELS.name / file.stem / paths.CARD
        val[group].append(json.loads(card.read_text())["val"]["top1"])
    if arguments.baseline not in right:
        parser.error(f"baseline {arguments.baseline!r}: no such group; allowed: {', '.join(sorted(right))}")
    base = right[arguments.baseline]
    print(f"| group | seeds | val, % | test, % (n = {len(truth)}) | points against {arguments.baseline} |")
    print("|---|---|---|---|---|")
    for group in sorted(right, key=lambda name: -np.mean(val[name])):
        own = right[group]
        shared = sorted(own.keys() & base.keys() if arguments.paired else own.keys())
        if not shared:
            parser.error(f"{group} and {arguments.baseline} have no seed in common; leave out --paired")
        new = np.stack([own[seed] for seed in shared])
        old = np.stack([base[seed] for seed in (shared if arguments.paired else sorted(base))])
        low, high = interval(new, old, paired=arguments.paired)
        each = ", ".join(f"{score:.1f}" for score in np.stack(list(own.values())).mean(1) * 100)
        print(
            f"| {group} | {len(own)} | {100 * np.mean(val[group]):.1f} | "
            f"{np.mean([*own.values()]) * 100:.1f} ({each}) | "
            f"{100 * (new.mean() - old.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |"
        )


def interval(
    new: Bool[np.ndarray, "seeds images"], old: Bool[np.ndarray, "others images"], *, paired: bool
) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two groups' mean accuracies, over images and seeds.

    Args:
        new: whether each answer of the group is right, by seed.
        old: the same of the group that it is compared with.
        paired: whether row by row both groups have the same seeds, which are then drawn together.
    """
    random = np.random.default_rng(0)
    differences: Float[np.ndarray, " samples"] = np.empty(SAMPLES)
    for sample in range(SAMPLES):
        images = random.integers(new.shape[1], size=new.shape[1])
        seeds = random.integers(len(new), size=len(new))
        others = seeds if paired else random.integers(len(old), size=len(old))
        differences[sample] = new[seeds][:, images].mean() - old[others][:, images].mean()
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()

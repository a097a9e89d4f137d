"""What the studies of distillation in `benchmarks/` are made of."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import hide_labels, seeds
from pipeline.data import sources


def test_an_interval_holds_the_difference_and_widens_with_the_seeds_spread() -> None:
    random = np.random.default_rng(0)
    old = random.random((3, 1000)) < 0.70
    new = random.random((3, 1000)) < 0.76
    low, high = seeds.interval(new, old, paired=False)
    difference = new.mean() - old.mean()
    assert low < difference < high
    assert low > 0
    uneven = np.stack([random.random(1000) < share for share in (0.68, 0.76, 0.84)])
    wide = seeds.interval(uneven, old, paired=False)
    assert wide[1] - wide[0] > 1.5 * (high - low)
    same = seeds.interval(old, old, paired=False)
    assert same[0] < 0 < same[1]


def test_what_a_seed_brings_to_parent_and_child_does_not_widen_a_paired_interval() -> None:
    random = np.random.default_rng(0)
    parent = np.stack([random.random(1000) < share for share in (0.60, 0.75, 0.90)])
    child = parent & (random.random(parent.shape) < 0.98)
    apart, together = (seeds.interval(child, parent, paired=paired) for paired in (False, True))
    assert apart[0] < 0 < apart[1]
    assert together[0] < together[1] < 0


def test_half_of_the_labels_are_hidden_in_every_class(photographs: Path, tmp_path: Path) -> None:
    arguments = [str(photographs), str(tmp_path / "hidden"), "--val", "9", "--test", "12"]
    hide_labels.main(arguments)
    listing = sources.read("folder", tmp_path / "hidden")
    kept = [image for image in listing.labelled if image.source.startswith("train/")]
    assert (len(kept), len(listing.unlabelled)) == (26, 25)  # of 72, less 9 and 12
    counts = np.bincount([image.label for image in kept])
    assert counts.max() - counts.min() <= 1
    assert not {image.sha256 for image in kept} & {image.sha256 for image in listing.unlabelled}
    with pytest.raises(SystemExit):
        hide_labels.main(arguments)
    hide_labels.main([*arguments[:1], str(tmp_path / "dropped"), *arguments[2:], "--drop"])
    assert not sources.read("folder", tmp_path / "dropped").unlabelled

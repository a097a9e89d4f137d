"""What the studies of distillation in `benchmarks/` are made of."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import hide_labels, objectives
from pipeline.data import sources


def test_an_interval_holds_the_difference_and_widens_with_the_seeds_spread() -> None:
    random = np.random.default_rng(0)
    old = random.random((3, 1000)) < 0.70
    new = random.random((3, 1000)) < 0.76
    low, high = objectives.interval(new, old)
    difference = new.mean() - old.mean()
    assert low < difference < high
    assert low > 0
    uneven = np.stack([random.random(1000) < share for share in (0.68, 0.76, 0.84)])
    wide = objectives.interval(uneven, old)
    assert wide[1] - wide[0] > 1.5 * (high - low)
    same = objectives.interval(old, old)
    assert same[0] < 0 < same[1]


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

"""A copy of a folder of class folders whose training images have lost some of their labels.

    python -m benchmarks.hide_labels SOURCE TARGET --share 0.5

The splits are those of `data=clothing_resplit` with seed 0. TARGET gets train, validation and test folders,
and `unlabelled` with the images that lost theirs, a share of each class; `--drop` leaves these out instead.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.data import reading, sources, splits
from pipeline.data.listing import SourceFile


def main(words: Sequence[str] | None = None) -> None:
    """Copy the images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of labels to hide (default: %(default)s)")
    parser.add_argument("--val", type=int, default=480, help="validation images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--drop", action="store_true", help="leave the images without labels out")
    arguments = parser.parse_args(words)
    if arguments.target.exists() and any(arguments.target.iterdir()):
        parser.error(f"{arguments.target} is not empty; an earlier copy would be mixed with this one")
    listing = sources.read("folder", arguments.source)
    whole = splits.assign(
        listing.labelled, train=None, val=arguments.val, test=arguments.test, seed=0, anew=True
    )
    kept = round((1 - arguments.share) * len(whole.train))
    labelled = splits.stratified(whole.train, kept, seed=0, key="--share")
    chosen = {image.sha256 for image in labelled}
    folders = {"train": labelled, "validation": whole.val, "test": whole.test}
    for split, images in folders.items():
        for image in images:
            _copy(arguments, image, Path(split) / listing.classes[_class(image)])
    if not arguments.drop:
        for image in whole.train:
            if image.sha256 not in chosen:
                _copy(arguments, image, Path(reading.UNLABELLED))
    print(f"{arguments.target}: {len(labelled)} of {len(whole.train)} training images have labels")


def _class(image: SourceFile) -> int:
    assert isinstance(image.label, int)
    return image.label


def _copy(arguments: argparse.Namespace, image: SourceFile, folder: Path) -> None:
    target = arguments.target / folder / f"{image.sha256[:16]}{Path(image.source).suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(arguments.source / image.source, target)


if __name__ == "__main__":
    main()

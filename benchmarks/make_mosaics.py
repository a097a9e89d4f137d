"""Make a data set with several attributes an image out of Fashion-MNIST: the garments in four places.

    python -m benchmarks.make_mosaics artifacts/raw/mosaics

A place is empty once in four; the others hold a garment of any class. The ten attributes say which classes
are there. Of 8,000 training and 2,000 test mosaics each takes the images of its own split.
"""

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.sources import FASHION_MNIST_CLASSES

RAW = Path("artifacts/raw/fashion-mnist")
EMPTY = 0.25
SPLITS = {"train": ("train", 8000), "test": ("t10k", 2000)}


def main() -> None:
    """Write ``train`` and ``test`` folders with ``metadata.csv`` in each."""
    random = np.random.default_rng(0)
    for split, (stem, count) in SPLITS.items():
        images = _idx(f"{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = _idx(f"{stem}-labels-idx1-ubyte.gz", 8)
        folder = Path(sys.argv[1]) / split
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", *FASHION_MNIST_CLASSES])
            for number in range(count):
                chosen = random.integers(len(images), size=4)
                full = random.random(4) >= EMPTY
                tiles = images[chosen] * full[:, None, None]
                mosaic = np.block([[tiles[0], tiles[1]], [tiles[2], tiles[3]]]).astype(np.uint8)
                Image.fromarray(mosaic).save(folder / f"{number:05}.png")
                there = set(labels[chosen[full]].tolist())
                writer.writerow([f"{number:05}.png", *(int(index in there) for index in range(10))])


def _idx(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((RAW / name).read_bytes()), np.uint8, offset=header)


if __name__ == "__main__":
    main()

"""Score shipped files again on Fashion-MNIST's raw test images, with nothing of the pipeline.

    python benchmarks/rescore_fashion_mnist.py artifacts/onnx/*.onnx

It takes onnxruntime, numpy and pillow alone, and prints one line a file: right answers, images, top-1.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

RAW = Path("artifacts/raw/fashion-mnist")


def main() -> None:
    """Read the IDX files by hand, resize with Pillow, run in batches of 50."""
    content = gzip.decompress((RAW / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(
        gzip.decompress((RAW / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    for path in sys.argv[1:]:
        session = ort.InferenceSession(path)
        size = json.loads(session.get_modelmeta().custom_metadata_map["input"])["size"]
        right = 0
        for first in range(0, len(images), 50):
            batch = [
                np.asarray(Image.fromarray(i).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
                for i in images[first : first + 50]
            ]
            logits = np.asarray(session.run(["logits"], {"images": np.stack(batch)})[0])
            right += int((logits.argmax(1) == labels[first : first + 50]).sum())
        print(f"{path}: {right} of {len(images)}, {right / len(images):.2%}", flush=True)


if __name__ == "__main__":
    main()

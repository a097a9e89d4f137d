"""What a student that starts from PoseNet's weights computes."""

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks import posenet_start
from students.mobilenet_v1 import BASE_CHANNELS, MobileNetV1
from students.published import units

SIZE = 64
WIDTHS = [round(0.75 * width) for width in BASE_CHANNELS[: posenet_start.BLOCKS + 1]] + [16, 16]


def write_package(folder: Path) -> None:
    """Random weights in the layout of TensorFlow.js's graph model, the last blocks narrower than ours."""
    random = np.random.default_rng(0)
    manifest, nodes, stored, inputs = [], [], [], 3
    for number, (path, (block, part)) in enumerate(units()):
        outputs = inputs if part == "depthwise" else WIDTHS[block + 1]
        side = 1 if part == "pointwise" else 3
        shape = [side, side, inputs, 1 if part == "depthwise" else outputs]
        fan = side * side * (1 if part == "depthwise" else inputs)
        for name, values in (
            (f"{number}w", random.normal(0, np.sqrt(2 / fan), shape)),
            (f"{number}b", random.normal(0, 0.1, outputs)),
        ):
            manifest.append({"name": name, "shape": list(values.shape), "dtype": "float32"})
            stored.append(values.astype(np.float32).ravel())
        nodes.append({"name": path, "op": "_FusedConv2D", "input": ["x", f"{number}w", f"{number}b"]})
        inputs = outputs
    graph = {"modelTopology": {"node": nodes}, "weightsManifest": [{"weights": manifest}]}
    (folder / "posenet.json").write_text(json.dumps(graph))
    np.concatenate(stored).tofile(folder / "posenet.bin")


def trunk(module: MobileNetV1, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.blocks[: posenet_start.BLOCKS](module.stem(images))


def test_batch_norms_laid_out_anew_compute_what_the_folded_network_did(tmp_path: Path) -> None:
    write_package(tmp_path)
    found = posenet_start.read(tmp_path)
    assert len(found) == 2 * (1 + 2 * posenet_start.BLOCKS)  # weight and bias of each convolution
    images = torch.rand(8, 3, SIZE, SIZE) * 2 - 1
    folded = posenet_start.folded(found, classes=5).eval()
    module = posenet_start.with_norms(folded, [images])
    expected = trunk(folded, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(trunk(module.eval(), images), expected, atol=1e-4, rtol=1e-4)
    # In training mode too, on images like those that the statistics came from.
    torch.testing.assert_close(trunk(module.train(), images), expected, atol=1e-3, rtol=1e-3)

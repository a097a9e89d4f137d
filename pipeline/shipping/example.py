"""Classify photographs: pip install onnxruntime numpy pillow, then python predict.py PHOTO..."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

session = ort.InferenceSession(Path(__file__).with_name("MODEL.onnx"))
metadata = session.get_modelmeta().custom_metadata_map
labels, rule = json.loads(metadata["labels"]), json.loads(metadata["input"])
for file in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    side = rule["crop"] * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    resampling = Image.Resampling[rule["interpolation"].upper()]
    square = image.resize((rule["size"],) * 2, resampling, box=(left, top, left + side, top + side))
    logits = np.asarray(session.run(["logits"], {"images": np.asarray(square)[None]})[0])[0]
    powers = np.exp(logits - logits.max())
    multi_label = metadata["task"] == "multi-label-image-classification"
    probabilities = 1 / (1 + np.exp(-logits)) if multi_label else powers / powers.sum()
    best = np.argsort(-probabilities)[:3]
    cells = [file, *(f"{labels[index]} {probabilities[index]:.2%}" for index in best)]
    # Names are text: a terminal would obey the control characters in them.
    print(*("".join(c if c.isprintable() else ascii(c)[1:-1] for c in cell) for cell in cells), sep="\t")

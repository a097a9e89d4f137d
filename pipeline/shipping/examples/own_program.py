"""Print what a photograph shows."""

import json

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

session = ort.InferenceSession("PHOTO.onnx")
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
[outputs] = session.run(["probabilities"], {"image": np.asarray(image)[None]})
probabilities = np.asarray(outputs)[0]
print(labels[probabilities.argmax()])

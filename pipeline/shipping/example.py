"""Classify photographs: pip install onnxruntime numpy pillow, then python predict.py PHOTO...

An image is its first frame, upright (EXIF), as RGB of 8 bits: 16-bit grey is divided by 257 and rounded, what
is transparent is seen on white, and a colour profile is ignored. The file crops and resizes it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")


def is_misread(image):
    """Return whether Pillow takes the values of this kind of file for others."""
    if image.format == "PNG":  # a transparent colour among values of 2, 4 or 16 bits
        return "transparency" in image.info and image.tile[0][3] in ("L;2", "L;4", "RGB;16B")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (1,))
    white_is_zero, planes = tags.get(262) == 0, tags.get(284) == 2 and tags.get(259, 1) == 1 and len(bits) > 1
    signed = 2 in tags.get(339, ()) and image.mode != "I"
    return signed or (8 < max(bits) <= 16 and (max(bits) < 16 or white_is_zero or planes))


def read(file):
    """Read an image file as RGB."""
    image = Image.open(file, formats=FORMATS)
    if is_misread(image):
        raise ValueError("Pillow would misread it; convert it to 8 bits per value")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("the range of its grey values is not known; convert them to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
        image = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba)
    return rgb


network = Path(__file__).with_name("PHOTO.onnx")
try:
    session = ort.InferenceSession(network)
except Exception as error:
    sys.exit(f"{network} cannot be read: {str(error).splitlines()[0]}")
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
if len(sys.argv) < 2:
    print(f"usage: python {sys.argv[0]} PHOTO...", file=sys.stderr)
    sys.exit(2)
status = 0
for file in sys.argv[1:]:
    try:
        image = read(file)
    except Exception as error:
        print(f"{file}: {error}", file=sys.stderr)
        status = 1
        continue
    [outputs] = session.run(["probabilities"], {"image": np.asarray(image)[None]})
    probabilities = np.asarray(outputs)[0]
    best = np.argsort(-probabilities)[:3]
    cells = [file, *(f"{labels[index]} {probabilities[index]:.2%}" for index in best)]
    # Names are text: a terminal would obey the control characters in them.
    print(*("".join(c if c.isprintable() else ascii(c)[1:-1] for c in cell) for cell in cells), sep="\t")
sys.exit(status)

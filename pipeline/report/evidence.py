"""What a run measured beyond scores and latency; each part may be missing."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Part = Mapping[str, Any]
"""A JSON file as it is; the library that wrote it says what its keys mean."""

QUALITY = 82
"""Of WebP, for pictures within the page."""


@dataclass(frozen=True)
class Evidence:
    """Parts that a cheaper or an older run does not have."""

    comparison: Part | None = None
    """Each variant against its parent, class by class and group by group."""
    costs: Part | None = None
    """Energy and CO2 of training and of inference."""
    robustness: Part | None = None
    """Corrupted, adversarial and foreign images."""
    sensitivity: Part | None = None
    """What each layer of the variants that others are made from can bear."""
    explanations: Part | None = None
    """Grad-CAM, flipped answers and confused pairs."""
    folder: Path = Path()
    """Where the pictures that ``explanations`` names lie."""


def read(
    *, comparison: Path, costs: Path, robustness: Path, sensitivity: Path, explanations: Path
) -> Evidence:
    """Read the parts that are there."""
    return Evidence(
        comparison=_read(comparison),
        costs=_read(costs),
        robustness=_read(robustness),
        sensitivity=_read(sensitivity),
        explanations=_read(explanations),
        folder=explanations.parent,
    )


def inline_picture(path: Path) -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _read(path: Path) -> Part | None:
    """A part; None where there is none, or its file says only why nothing was measured."""
    part = json.loads(path.read_text()) if path.is_file() else None
    return part if part and set(part) != {"note"} else None

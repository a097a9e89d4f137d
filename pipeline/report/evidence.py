"""Optional measurements of a run: costs, robustness, sensitivity, explanations and suspicious labels."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Part = Mapping[str, Any]
"""The content of a JSON file; the stage that writes the file documents its keys."""

QUALITY = 82
"""WebP quality of the pictures that the page contains."""


@dataclass(frozen=True)
class Evidence:
    """Measurements that are None where a run did not make them."""

    costs: Part | None = None
    """Energy and CO2 of training and of inference."""
    robustness: Part | None = None
    """Corrupted, adversarial and out-of-distribution images."""
    sensitivity: Part | None = None
    """Loss of accuracy when one layer at a time is pruned or quantised."""
    explanations: Part | None = None
    """Grad-CAM, answers that changed and classes that are confused."""
    suspects: Part | None = None
    """Labels of training images that the teacher contradicts."""
    litert: Part | None = None
    """Scores, agreement and latency of the LiteRT files."""
    folder: Path = Path()
    """Folder of the pictures that ``explanations`` and ``suspects`` name."""

    @property
    def corruptions(self) -> Part | None:
        """Accuracy on corrupted test images."""
        return (self.robustness or {}).get("corruptions")

    @property
    def adversarial(self) -> Part | None:
        """Accuracy under attack; None where no attack was run."""
        part = (self.robustness or {}).get("adversarial")
        return part if part and part["results"] else None

    @property
    def out_of_distribution(self) -> Part | None:
        """Confidence on images of none of the classes; None where no such images were scored."""
        part = (self.robustness or {}).get("out_of_distribution")
        return part if part and part["sets"] else None


def read(
    *,
    costs: Path,
    robustness: Path,
    sensitivity: Path,
    explanations: Path,
    suspects: Path,
    litert: Path | None = None,
) -> Evidence:
    """Read the parts that exist."""
    return Evidence(
        costs=_read(costs),
        robustness=_read(robustness),
        sensitivity=_read(sensitivity),
        explanations=_read(explanations),
        suspects=_read(suspects),
        litert=_read(litert) if litert else None,
        folder=explanations.parent,
    )


def inline_picture(path: Path) -> str:
    """The picture as a ``data:`` address, so that the page needs no other file."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _read(path: Path) -> Part | None:
    """A part; None where its file is missing, or says only why nothing was measured."""
    part = json.loads(path.read_text()) if path.is_file() else None
    return part if part and set(part) != {"note"} else None

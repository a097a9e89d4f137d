"""The folder that a variant ships in: the file, what describes it, and examples that run."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import DistilleryError
from pipeline.onnx.inference import GEOMETRY, Classifier
from pipeline.provenance import sha256

HERE = Path(__file__).parent
EXAMPLES = {"predict.py": HERE / "example.py", "predict.mjs": HERE / "example.mjs"}
"""Name in the folder, and the text that it is made from."""
PLACEHOLDER = "MODEL.onnx"
"""Stands in the examples for the name of the file."""
JAVASCRIPT = ("contract.mjs", "package.json", "package-lock.json")
"""What the example in JavaScript needs beside it."""
CARD = "model_card.md"
SUMS = "SHA256SUMS"


class ShippingError(DistilleryError):
    """Something cannot be written there. The message names the place and what is expected."""


def ship(classifier: Classifier, folder: Path, card: Path) -> list[Path]:
    """Write everything that somebody needs who gets the file without this repository.

    Args:
        classifier: the variant, as it was opened.
        folder: a new or an empty one.
        card: the model card; one that is not there is left out.

    Returns:
        What was written.

    Raises:
        ShippingError: the folder holds something already.
    """
    make_empty(folder)
    shutil.copyfile(classifier.path, folder / classifier.path.name)
    _write_json(folder / "labels.json", list(classifier.labels))
    _write_json(folder / "model.json", described(classifier))
    for name, template in EXAMPLES.items():
        (folder / name).write_text(template.read_text().replace(PLACEHOLDER, classifier.path.name))
    for name in JAVASCRIPT:
        shutil.copyfile(HERE / name, folder / name)
    if card.is_file():
        shutil.copyfile(card, folder / CARD)
    files = sorted(folder.iterdir())
    sums = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    (folder / SUMS).write_text(sums)
    return [*files, folder / SUMS]


def make_empty(folder: Path) -> None:
    """Make a folder, if it is not there, and see that nothing is in it.

    Raises:
        ShippingError: something is, or no folder can be made there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShippingError(f"{folder} is there already and not empty; give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShippingError(f"{folder} cannot be made: {error.strerror}") from error


def described(classifier: Classifier) -> dict[str, Any]:
    """What the file's metadata say to those whose runtime cannot read them."""
    return {
        "file": classifier.path.name,
        "task": classifier.metadata.get("task", "image-classification"),
        "input": {name: getattr(classifier.contract, name) for name in GEOMETRY},
    }


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")

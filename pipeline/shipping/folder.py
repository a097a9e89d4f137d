"""The folder that a variant ships in: the ONNX file, its description, and examples that run."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import resources
from pipeline.errors import DistilleryError
from pipeline.onnx.inference import GEOMETRY, Classifier
from pipeline.provenance import sha256
from pipeline.shipping import litert

HERE = Path(__file__).parent
EXAMPLES = {"predict.py": HERE / "example.py", "predict.mjs": HERE / "example.mjs"}
"""Name of each example in the folder, and the file that it is copied from."""
PLACEHOLDER = "MODEL.onnx"
"""Text in the examples that is replaced by the name of the ONNX file."""
JAVASCRIPT = ("contract.mjs", "package.json", "package-lock.json")
"""Files that the example in JavaScript needs."""
CARD = "model_card.md"
SUMS = "SHA256SUMS"


class ShippingError(DistilleryError):
    """The folder or the page cannot be written or served; the message says where and what is expected."""


def ship(classifier: Classifier, folder: Path, card: Path | None) -> list[Path]:
    """Write everything that is needed to use a variant without this repository.

    Args:
        classifier: the variant.
        folder: a new or an empty folder.
        card: the model card of this variant; the folder has none where it is None or its file is missing.

    Returns:
        The files that were written.

    Raises:
        ShippingError: the folder is not empty.
    """
    make_empty(folder)
    fresh = resources.temporary(folder)
    try:
        with resources.writing(folder):
            fresh.mkdir()
            names = _write(classifier, fresh, card)
            fresh.replace(folder)  # It is empty.
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)
    return [folder / name for name in names]


def _write(classifier: Classifier, folder: Path, card: Path | None) -> list[str]:
    """Write all files; returns their names."""
    shutil.copyfile(classifier.path, folder / classifier.path.name)
    _write_json(folder / "labels.json", list(classifier.labels))
    _write_json(folder / "model.json", description(classifier))
    for name, template in EXAMPLES.items():
        (folder / name).write_text(template.read_text().replace(PLACEHOLDER, classifier.path.name))
    for name in JAVASCRIPT:
        shutil.copyfile(HERE / name, folder / name)
    for file in litert.files_beside(classifier.path):
        shutil.copyfile(file, folder / file.name)
    if card is not None and card.is_file():
        shutil.copyfile(card, folder / CARD)
    files = sorted(folder.iterdir())
    sums = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    (folder / SUMS).write_text(sums)
    return [*(file.name for file in files), SUMS]


def make_empty(folder: Path) -> None:
    """Create a folder if it does not exist, and check that it is empty.

    Raises:
        ShippingError: the folder is not empty, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShippingError(f"{folder} exists already and is not empty; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShippingError(f"{folder} cannot be created: {error.strerror}") from error


def description(classifier: Classifier) -> dict[str, Any]:
    """The metadata of the file, for runtimes that cannot read them from it."""
    return {
        "file": classifier.path.name,
        "task": classifier.metadata.get("task", "image-classification"),
        "input": {name: getattr(classifier.contract, name) for name in GEOMETRY},
    }


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")

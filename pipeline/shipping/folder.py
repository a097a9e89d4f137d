"""The folder that a variant ships in: the ONNX files, their description, and examples that run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline import pixels, resources
from pipeline.errors import DistilleryError
from pipeline.escaping import code
from pipeline.onnx.inference import GEOMETRY, Classifier
from pipeline.provenance import sha256
from pipeline.shipping import litert, photographs
from pipeline.shipping.integrity import SUMS
from pipeline.shipping.photographs import Form

HERE = Path(__file__).parent
EXAMPLES = {
    "predict.py": HERE / "example.py",
    "predict.mjs": HERE / "example.mjs",
    "browser.mjs": HERE / "examples" / "browser.mjs",
    "predict.cpp": HERE / "examples" / "predict.cpp",
}
"""Name of each example in the folder, and the file that it is copied from."""
PLACEHOLDER, PHOTOGRAPH = "MODEL.onnx", "PHOTO.onnx"
"""Texts in the examples that are replaced by the names of the ONNX files: the one that takes squares, and the
one that takes photographs."""
JAVASCRIPT = ("package.json", "package-lock.json")
"""Files that the example for Node needs."""
SERVER = (HERE / "server.py", Path(pixels.__file__), HERE / "requirements-server.txt", HERE / "Dockerfile")
"""Files of the HTTP server and its container."""
CARD = "model_card.md"


class ShippingError(DistilleryError):
    """The folder or the page cannot be written or served; the message says where and what is expected."""


def ship(
    classifier: Classifier,
    folder: Path,
    card: Path | None,
    form: Form | None = None,
    *,
    for_phones: bool = False,
) -> list[Path]:
    """Write everything that is needed to use a variant without this repository.

    Args:
        classifier: the variant.
        folder: a new or an empty folder.
        card: the model card of this variant; the folder has none where it is None or its file is missing.
        form: the form of the variant that takes photographs; None makes one that is not measured.
        for_phones: whether the folder also has the files of ``mobile.convert``.

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
            if for_phones:
                from pipeline.shipping import mobile  # its libraries take a second to be imported

                mobile.convert(classifier.path, fresh)
            names = _write(classifier, fresh, card, form or photographs.build(classifier))
            fresh.replace(folder)  # It is empty.
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)
    return [folder / name for name in names]


def _write(classifier: Classifier, folder: Path, card: Path | None, form: Form) -> list[str]:
    """Write all files; returns their names."""
    photograph = photographs.name(classifier)
    shutil.copyfile(classifier.path, folder / classifier.path.name)
    (folder / photograph).write_bytes(form.content)
    _write_json(folder / "labels.json", list(classifier.labels))
    _write_json(folder / "model.json", {**description(classifier), "photograph_file": photograph})
    for name, template in EXAMPLES.items():
        text = template.read_text().replace(PLACEHOLDER, classifier.path.name)
        (folder / name).write_text(text.replace(PHOTOGRAPH, photograph))
    for name in JAVASCRIPT:
        shutil.copyfile(HERE / name, folder / name)
    for file in (*SERVER, *litert.files_beside(classifier.path)):
        shutil.copyfile(file, folder / file.name)
    if card is not None and card.is_file():
        (folder / CARD).write_text(f"{card.read_text()}\n{_two_forms(classifier, form)}")
    return write_sums(folder)


def write_sums(folder: Path) -> list[str]:
    """Write the SHA-256 of each file of a folder; returns the names of all files."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    sums = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    (folder / SUMS).write_text(sums)
    return [*(file.name for file in files), SUMS]


def _two_forms(classifier: Classifier, form: Form) -> str:
    """The section of the card about the two files."""
    contract = classifier.contract
    agreement = f"Measured in ONNX Runtime: {form.agreement}." if form.agreement else ""
    return f"""## Files

- {code(photographs.name(classifier))} takes a whole photograph: `image`, uint8 [1, height, width, 3], RGB,
  upright, of any size. It crops and resizes it, and gives the `probabilities` of the labels. {agreement}
- {code(classifier.path.name)} takes batches of squares that are resized already: `images`, uint8
  [batch, {contract.size}, {contract.size}, 3]. It gives `logits`, and is the file that was scored.

Both hold the same weights.
"""


def make_empty(folder: Path) -> None:
    """Create a folder if it does not exist, and check that it is empty and can be written.

    Raises:
        ShippingError: the folder is not empty, or cannot be created or written.
    """
    parts = (folder, *folder.parents)
    if file := next((part for part in parts if part.exists() and not part.is_dir()), None):
        raise ShippingError(f"{file} is not a folder; choose a new folder")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ShippingError(f"{folder} exists already and is not empty; choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShippingError(f"{folder} cannot be created: {error.strerror}") from error
    if not os.access(folder.absolute().parent, os.W_OK | os.X_OK):
        raise ShippingError(f"{folder.absolute().parent} cannot be written; choose a folder elsewhere")


def description(classifier: Classifier) -> dict[str, Any]:
    """The metadata of the file, for runtimes that cannot read them from it."""
    return {
        "file": classifier.path.name,
        "task": classifier.metadata.get("task", "image-classification"),
        "input": {name: getattr(classifier.contract, name) for name in GEOMETRY},
    }


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")

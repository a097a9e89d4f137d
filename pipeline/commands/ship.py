"""The command `ship`."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.commands import models
from pipeline.running.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.data.store import ImageSet
    from pipeline.onnx.inference import Classifier


def run(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    with one_line_errors():
        classifier = models.opened(arguments.model, threads=1, strict=True)
        written, notes = write(classifier, arguments.folder, for_phones=arguments.mobile)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def write(
    classifier: "Classifier", target: Path, *, for_phones: bool = False
) -> tuple[list[Path], list[str]]:
    """Write the folder; returns its files, and what its users should know.

    Raises:
        ShippingError: the folder is not empty.
    """
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table
    from pipeline.shipping import folder, photographs

    rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
    digest = sha256(classifier.path)
    card = next((paths.card(row.variant) for row in rows if row.sha256 == digest), None)
    folder.make_empty(target)  # before minutes are spent
    form = photographs.build(classifier, _test_split(classifier), paths.AGREEMENTS)
    written = folder.ship(classifier, target, card, form, for_phones=for_phones)
    notes = []
    if form.agreement is not None:
        notes.append(f"{photographs.name(classifier)} takes a whole photograph; {form.agreement}")
    if card is not None and not card.is_file():
        notes.append(f"the folder has no model card, because {card} does not exist")
    if digest not in {row.sha256 for row in rows}:
        notes.append(f"{paths.VARIANTS} has no results for this file, so that the folder has no model card")
    elif digest not in {row.sha256 for row in budget.accepted(rows)}:
        name = next(row.variant for row in rows if row.sha256 == digest)
        notes.append(f"the gate does not accept {name}: {budget.why_rejected(rows, name)}")
    return written, notes


def _test_split(classifier: "Classifier") -> "ImageSet | None":
    """The test split, if this folder has the data that the file was made with."""
    from pipeline.data import store

    if not ((paths.DATA / store.REPORT).is_file() and (paths.DATA / "test").is_dir()):
        return None
    digest = store.read_report(paths.DATA)["data_sha256"]
    return store.read(paths.DATA, "test") if classifier.metadata.get("data_sha256") == digest else None

"""The command `ship`."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.commands import models
from pipeline.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.data.store import ImageSet
    from pipeline.onnx.inference import Classifier


def run(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table
    from pipeline.shipping import folder, photographs

    with one_line_errors():
        classifier = models.opened(arguments.model, threads=1, strict=True)
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        digest = sha256(classifier.path)
        card = next((paths.card(row.variant) for row in rows if row.sha256 == digest), None)
        folder.make_empty(arguments.folder)  # before minutes are spent
        form = photographs.build(classifier, _test_split(classifier))
        written = folder.ship(classifier, arguments.folder, card, form)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    if form.agreement is not None:
        print(f"{photographs.name(classifier)} takes a whole photograph; {form.agreement}")
    if card is not None and not card.is_file():
        print(f"note: the folder has no model card, because {card} does not exist", file=sys.stderr)
    if digest not in {row.sha256 for row in rows}:
        print(
            f"note: {paths.VARIANTS} has no results for this file, so that the folder has no model card",
            file=sys.stderr,
        )
    elif digest not in {row.sha256 for row in budget.accepted(rows)}:
        name = next(row.variant for row in rows if row.sha256 == digest)
        print(f"note: the gate does not accept {name}: {budget.why_rejected(rows, name)}", file=sys.stderr)


def _test_split(classifier: "Classifier") -> "ImageSet | None":
    """The test split, if this folder has the data that the file was made with."""
    from pipeline.data import store

    if not ((paths.DATA / store.REPORT).is_file() and (paths.DATA / "test").is_dir()):
        return None
    digest = store.read_report(paths.DATA)["data_sha256"]
    return store.read(paths.DATA, "test") if classifier.metadata.get("data_sha256") == digest else None

"""The command `ship`."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import paths
from pipeline.commands import models
from pipeline.process import one_line_errors

if TYPE_CHECKING:
    from pipeline.onnx.inference import Classifier


def run(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    from pipeline.shipping import folder

    with one_line_errors():
        classifier = models.opened(arguments.model, threads=1, strict=True)
        card, notes = results_of(classifier)
        written = folder.ship(classifier, arguments.folder, card)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def results_of(classifier: "Classifier") -> tuple[Path | None, list[str]]:
    """The model card of a file that was measured, and what its users should know."""
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table

    rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
    digest = sha256(classifier.path)
    name = next((row.variant for row in rows if row.sha256 == digest), None)
    if name is None:
        reason = f"{paths.VARIANTS} has no results for this file, so that the folder has no model card"
        return None, [reason]
    card, notes = paths.card(name), []
    if not card.is_file():
        notes.append(f"the folder has no model card, because {card} does not exist")
    if digest not in {row.sha256 for row in budget.accepted(rows)}:
        notes.append(f"the gate does not accept {name}: {budget.why_rejected(rows, name)}")
    return card, notes

"""The command `ship`."""

import sys
from argparse import Namespace

from pipeline import paths
from pipeline.commands import models
from pipeline.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table
    from pipeline.shipping import folder

    with one_line_errors():
        classifier = models.opened(arguments.model, threads=1, strict=True)
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        digest = sha256(classifier.path)
        card = next((paths.card(row.variant) for row in rows if row.sha256 == digest), None)
        written = folder.ship(classifier, arguments.folder, card)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
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

"""The command `ship`."""

import sys
from argparse import Namespace

from pipeline import paths
from pipeline.commands import models
from pipeline.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Write the folder, and print what its users should know."""
    from pipeline.onnx import inference
    from pipeline.provenance import sha256
    from pipeline.selection import budget, table
    from pipeline.shipping import folder

    with one_line_errors():
        classifier = inference.open_classifier(models.path_of(arguments.model), threads=1)
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        written = folder.ship(classifier, arguments.folder, paths.REPORT / folder.CARD)
    for file in written:
        print(f"{file.stat().st_size:12,}  {file}")
    digest = sha256(classifier.path)
    if folder.CARD not in {file.name for file in written}:
        print(
            f"note: the folder has no model card, because {paths.REPORT / folder.CARD} does not exist",
            file=sys.stderr,
        )
    if digest not in {row.sha256 for row in rows}:
        print(f"note: {paths.VARIANTS} has no results for this file", file=sys.stderr)
    elif digest not in {row.sha256 for row in budget.accepted(rows)}:
        print("note: the gate rejects this variant or one of its ancestors", file=sys.stderr)

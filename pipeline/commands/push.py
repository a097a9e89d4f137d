"""The command `push`."""

import sys
from argparse import Namespace
from pathlib import Path

from pipeline import paths, resources
from pipeline.commands import models, ship
from pipeline.escaping import for_terminal
from pipeline.running.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Write what goes to the hub into a temporary folder, list it, and upload it unless it is a dry run."""
    from pipeline.shipping import hub

    with one_line_errors():
        hub.check_name(arguments.repository)
        classifier = models.opened(arguments.model, threads=1, strict=True)
        # transformers takes seconds to be imported.
        from pipeline.shipping import hub_folder

        name = classifier.path.stem
        is_exported = classifier.path.resolve() == paths.onnx(name).resolve()
        student = paths.model(name) if is_exported else None
        with resources.scratch() as scratch:
            folder = scratch / "repository"
            _, notes = ship.write(classifier, folder)
            reason = hub_folder.complete(classifier, folder, student, arguments.repository)
            for note in [*notes, *([f"no weights for transformers: {reason}"] if reason else [])]:
                print(f"note: {for_terminal(note)}", file=sys.stderr)
            _list(folder)
            if arguments.dry_run:
                print(
                    f"nothing was uploaded; without --dry-run it goes to {hub.address(arguments.repository)}"
                )
                return
            hub.upload(
                folder,
                arguments.repository,
                private=arguments.private,
                message=f"Upload {classifier.path.name}",
            )
        print(hub.address(arguments.repository))


def _list(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:12,}  {for_terminal(file.name)}")

"""The command `params`."""

from argparse import Namespace

from pipeline.running.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Write the composition of a file of `configs/` to `params.yaml`, as DVC's Hydra integration does."""
    from pipeline.parameters import composition
    from pipeline.upkeep import leftovers

    with one_line_errors():
        leftovers.check_parameters_unused()
        for note in composition.write(arguments.changes):
            print(f"note: {note}")

"""The command `compress`."""

import shlex
from argparse import Namespace

from pipeline.commands import run as planned
from pipeline.errors import DistilleryError
from pipeline.running.process import one_line_errors
from teachers import local_files


def run(arguments: Namespace) -> None:
    """Plan the compression of a trained network, or take the plan of before, and run it."""
    from pipeline.parameters import configuration
    from pipeline.upkeep import leftovers

    words = [arguments.checkpoint, str(arguments.folder), *arguments.changes]
    command = shlex.join(["python", "-m", "pipeline", "compress", *words])
    with one_line_errors():
        leftovers.check_parameters_unused()
        planned.check_folder(arguments.folder)
        if not local_files.may_be_checkpoint(arguments.checkpoint):
            raise DistilleryError(f"{arguments.checkpoint}: no such file or folder")
        # PyTorch takes seconds to be imported.
        print(f"{arguments.checkpoint}: reading the network, then the images", flush=True)
        from pipeline.planning import compression

        if (
            not arguments.anew
            and configuration.written_by() == command
            and compression.is_current(arguments.checkpoint)
        ):
            configuration.compose()
            print(f"going on with {configuration.FILE}; --anew plans anew")
        else:
            made = compression.make(arguments.checkpoint, arguments.folder, arguments.changes)
            planned.keep(made.lines(), lambda: compression.write(made, command))
        if arguments.plan:
            planned.say_how()
            return
        planned.carry_out()

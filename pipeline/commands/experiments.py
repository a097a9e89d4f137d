"""The command `experiments`."""

from argparse import Namespace

from pipeline.escaping import for_terminal
from pipeline.running.process import one_line_errors


def run(_: Namespace) -> None:
    """Print a table of the finished DVC experiments; those on other images have a table of their own."""
    from pipeline.selection import experiments

    with one_line_errors():
        finished, unfinished = experiments.read()
        if not finished:
            raise experiments.ExperimentError(experiments.NONE)
    for index, group in enumerate(experiments.group(finished)):
        place = group[0].parameters["data"]["path"]
        print("" if index == 0 else "\n", end="")
        number = f"{group[0].val_images:,} " if group[0].val_images else ""
        print(f"score on {number}val images of {for_terminal(place)}, % (* accepted by the gate)")
        print("\n".join(map(for_terminal, experiments.lines(group))))
    if unfinished:
        print(f"{unfinished} experiments are not finished")

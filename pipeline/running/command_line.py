"""The command line of the script that runs as the main program."""

import inspect
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

import yaml

from pipeline import paths

BUILDERS = ("distill", "load", "prune", "quantize")
"""Scripts of the stage ``build``, which write the same folder."""


class StageParser(ArgumentParser):
    """A parser whose errors are single lines, and whose help has an example."""

    known: Sequence[str] = ()
    """Names of the variants that the stage takes."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        allowed = f"; allowed: {', '.join(self.known)}" if self.known else ""
        self.exit(2, f"error: {message}{allowed} (--help describes the arguments)\n")


def check() -> None:
    """Check the command line of the stage that runs as the main program.

    Its function ``main`` says which arguments it takes, and its docstrings are the help. With ``--help`` or
    with other arguments, the process ends here, before any work starts.
    """
    program = sys.modules["__main__"]
    parser = StageParser(
        prog=f"python -m {program.__spec__.name}" if program.__spec__ else None,
        formatter_class=RawDescriptionHelpFormatter,
        description=f"{program.__doc__}\n{inspect.getdoc(program.main)}",
    )
    parameters = inspect.signature(program.main).parameters
    known = _variants(parser.prog.rpartition(".")[2]) if "variant" in parameters else []
    for name in parameters:
        parser.add_argument(name, help=f"one of {', '.join(known)}" if known else f"name of the {name}")
    parser.epilog = f"example:\n  {' '.join([parser.prog, *known[:1]])}"
    parser.known = known
    parser.parse_args()


def _variants(script: str) -> list[str]:
    """Names of the variants that `params.yaml` declares and, if a script builds variants, that it builds.

    None if the file cannot be read: what is wrong with it is said by whoever reads it for its values.
    """
    try:
        variants = yaml.safe_load(paths.PARAMETERS.read_text())["variants"]
        return [name for name, of in variants.items() if script not in BUILDERS or of["op"] == script]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return []

"""A plugin of Hydra, which DVC loads before it composes `params.yaml` from `-S KEY=VALUE`.

Hydra's own message about an unknown key has several lines and says how to add that key, which no stage
would read. This one names the key that was probably meant, as for `params.yaml`.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from dvc.exceptions import InvalidArgumentError
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

ROOT = str(Path(__file__).parents[2])


class Spelling(SearchPathPlugin):
    """Checks the keys of the command line; Hydra calls it before anything else."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:  # noqa: ARG002 - Hydra's interface
        """Check the keys; the search path stays as it is.

        Raises:
            InvalidArgumentError: a key or a file of a group does not exist.
        """
        parser = ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("-S", "--set-param", dest="words", action="append", default=[])
        words = parser.parse_known_args(sys.argv[1:])[0].words
        if not words:
            return
        sys.path.append(ROOT)
        try:
            from pipeline.errors import DistilleryError
            from pipeline.parameters import spelling
        finally:
            sys.path.remove(ROOT)
        try:
            spelling.check(words)
        except DistilleryError as error:
            raise InvalidArgumentError("; ".join(map(str, error.args))) from None

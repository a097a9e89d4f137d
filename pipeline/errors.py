"""The base of every error that a user can correct, and the hint at what a name was probably meant to be."""

import difflib
from collections.abc import Callable, Iterable


class DistilleryError(Exception):
    """An error whose message tells the user what is wrong, where, and what is allowed.

    Each argument is one problem. Stages and commands print it as one line per problem and exit with status 1;
    every other exception is a defect and ends in a traceback.
    """

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.args)


def did_you_mean(name: str, allowed: Iterable[str], write: Callable[[str], object] = "`{}`".format) -> str:
    """A hint at the allowed name that is nearest, for the end of a message; empty if none is near.

    Args:
        name: the name that does not exist.
        allowed: the names that exist.
        write: function that returns the near name as the user would write it.
    """
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {write(near[0])}?" if near else ""

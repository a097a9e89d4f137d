"""Errors of teachers and weights that a user can correct. No import here needs PyTorch."""

MOST = 300
"""Greatest number of characters of another library's error that a message repeats."""


class TeacherError(Exception):
    """A teacher or its weights cannot be used; the message says what was expected and what was found.

    Each argument is one problem, which is printed on a line of its own.
    """

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.args)


class WeightsError(TeacherError):
    """A file of weights is missing, damaged, or does not fit the architecture."""


def one_line(error: Exception) -> str:
    """The words of another library's error on one line, shortened; its type if it has none."""
    words = " ".join(str(error).split())
    return f"{words[:MOST]}..." if len(words) > MOST else words or type(error).__name__

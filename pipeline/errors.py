"""The base of every error that a user can correct."""


class DistilleryError(Exception):
    """An error whose message tells the user what is wrong, where, and what is allowed.

    Each argument is one problem. Stages and commands print it as one line per problem and exit with status 1;
    every other exception is a defect and ends in a traceback.
    """

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.args)

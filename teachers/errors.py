"""Errors of teachers and weights that a user can correct. No import here needs PyTorch."""


class TeacherError(Exception):
    """A teacher or its weights cannot be used; the message says what was expected and what was found."""


class WeightsError(TeacherError):
    """A file of weights is missing, damaged, or does not fit the architecture."""

"""All parameters of the pipeline: composed from the settings of the packages, and checked before any work."""

from pipeline.parameters.checks import ParameterError, check, load
from pipeline.parameters.sections import Parameters
from pipeline.parameters.variants import Distill, Prune, Quantize

__all__ = [
    "Distill",
    "ParameterError",
    "Parameters",
    "Prune",
    "Quantize",
    "check",
    "load",
]

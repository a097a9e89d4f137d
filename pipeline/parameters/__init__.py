"""All parameters of the pipeline: composed from the settings of the packages, and checked before any work."""

from pipeline.parameters.checks import check, load
from pipeline.parameters.messages import ParameterError
from pipeline.parameters.sections import Parameters, UnknownVariantError
from pipeline.parameters.variants import Distill, Load, Prune, Quantize

__all__ = [
    "Distill",
    "Load",
    "ParameterError",
    "Parameters",
    "Prune",
    "Quantize",
    "UnknownVariantError",
    "check",
    "load",
]

"""Estimates of energy and emissions. Nothing here is measured by hardware counters.

The method is that of Green Algorithms (Lannelongue et al. 2021, https://doi.org/10.1002/advs.202100707):
energy = time x (cores x power per core + memory x power per gigabyte) x power usage effectiveness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import lineage
from pipeline.measurement.settings import EnergySettings

JOULES_PER_KWH = 3.6e6

METHOD = {
    "note": "time x (cores x watts_per_core + memory_gigabytes x watts_per_gigabyte) x pue; the power is "
    "assumed, not measured; the time is that of training and of scoring on the validation split, without "
    "labelling, export and evaluation; accelerators are not included",
    "sources": [
        "Lannelongue, Grealey and Inouye 2021, Green Algorithms, doi:10.1002/advs.202100707: the formula, "
        "12 W per core of an unknown CPU, 0.3725 W per GB",
        "International Energy Agency 2019: 475 g CO2e per kWh, the world average",
    ],
}


def estimate(seconds: float, watts: float, assumptions: EnergySettings) -> dict[str, float]:
    """Estimate ``kwh`` and ``gram_co2`` for some ``seconds`` of work."""
    kwh = seconds * watts / JOULES_PER_KWH
    return {"seconds": seconds, "kwh": kwh, "gram_co2": kwh * assumptions.gram_co2_per_kwh}


def training(
    seconds: Mapping[str, float | None],
    parents: Mapping[str, str],
    *,
    cores: int,
    gigabytes: float,
    assumptions: EnergySettings,
) -> dict[str, Any]:
    """Estimate the training of the teacher and of each variant, alone (``own``) and with all its ancestors.

    Args:
        seconds: training time of the teacher and of each variant; None where it was not measured here.
        parents: parent of each variant.
        cores: number of cores that training kept busy.
        gigabytes: memory of the machine.
        assumptions: constants of the estimate.

    Returns:
        ``own`` and ``total`` of the teacher and of each variant, as ``estimate`` returns them, or None where
        a time is missing.
    """
    watts = assumptions.watts(cores, gigabytes)

    def together(names: Sequence[str]) -> dict[str, float] | None:
        known = [time for name in names if (time := seconds[name]) is not None]
        return estimate(sum(known), watts, assumptions) if len(known) == len(names) else None

    return {
        name: {"own": together([name]), "total": together([name, *lineage.ancestors(parents, name)])}
        for name in seconds
    }


def inference(
    milliseconds: Mapping[str, float],
    *,
    cores: int,
    gigabytes: Mapping[str, float],
    assumptions: EnergySettings,
) -> dict[str, Any]:
    """Estimate the classification of 1,000 images, one by one.

    Args:
        milliseconds: latency of each variant per image.
        cores: number of cores that one call keeps busy.
        gigabytes: peak memory of a process that runs the variant.
        assumptions: constants of the estimate.
    """
    result = {}
    for name, latency in milliseconds.items():
        # 1,000 images take as many seconds as one image takes milliseconds.
        figures = estimate(latency, assumptions.watts(cores, gigabytes[name]), assumptions)
        result[name] = {
            "ms_per_image": latency,
            "joule_per_image": figures["kwh"] * JOULES_PER_KWH / 1000,
            "kwh_per_1000": figures["kwh"],
            "gram_co2_per_1000": figures["gram_co2"],
        }
    return result

"""Energy and emissions: by the machine's counters where they can be read, else an estimate that is named so.

The estimate is that of Green Algorithms (Lannelongue et al. 2021, https://doi.org/10.1002/advs.202100707):
time x (cores x watts of a core + gigabytes x watts of a gigabyte) x what the building takes on top.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.measurement.settings import EnergySettings

JOULES_PER_KWH = 3.6e6

METHOD = {
    "kind": "estimate",
    "note": "time x (cores x watts_per_core + memory_gigabytes x watts_per_gigabyte) x pue; an assumed power "
    "and not a measured one; time is that of training steps and scoring on val, without the labelling of "
    "views, export and evaluation; accelerators are not counted",
    "sources": [
        "Lannelongue, Grealey and Inouye 2021, Green Algorithms, doi:10.1002/advs.202100707: the formula, "
        "12 W a core of an unknown CPU, 0.3725 W a GB",
        "International Energy Agency 2019: 475 g CO2e a kWh, the world's mean",
    ],
}


def spent(seconds: float, watts: float, assumed: EnergySettings) -> dict[str, float]:
    """``seconds``, ``kwh`` and ``gram_co2``."""
    kwh = seconds * watts / JOULES_PER_KWH
    return {"seconds": seconds, "kwh": kwh, "gram_co2": kwh * assumed.gram_co2_per_kwh}


def training(
    seconds: Mapping[str, float],
    parents: Mapping[str, str],
    *,
    cores: int,
    gigabytes: float,
    assumed: EnergySettings,
) -> dict[str, Any]:
    """What each step took by itself (``own``) and with all that it stands on (``total``).

    Args:
        seconds: of the teacher and of each variant.
        parents: variant to its parent.
        cores: that training kept busy.
        gigabytes: of memory that it held.
        assumed: the estimate's assumptions.
    """
    watts = assumed.watts(cores, gigabytes)
    result = {}
    for name in seconds:
        chain = [name]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
        result[name] = {
            "own": spent(seconds[name], watts, assumed),
            "total": spent(sum(seconds[step] for step in chain), watts, assumed),
        }
    return result


def inference(
    milliseconds: Mapping[str, float], *, cores: int, gigabytes: Mapping[str, float], assumed: EnergySettings
) -> dict[str, Any]:
    """Of 1,000 images, one by one; memory is what the variant's own process held at its peak."""
    result = {}
    for name, each in milliseconds.items():
        figures = spent(
            each, assumed.watts(cores, gigabytes[name]), assumed
        )  # milliseconds x 1,000 = seconds
        result[name] = {
            "ms_per_image": each,
            "joule_per_image": figures["kwh"] * JOULES_PER_KWH / 1000,
            "kwh_per_1000": figures["kwh"],
            "gram_co2_per_1000": figures["gram_co2"],
        }
    return result

"""Settings of the latency benchmark and of the energy estimate."""

from typing import Annotated

from pydantic import Field

from pipeline.settings import Distinct, Settings


class BenchmarkSettings(Settings):
    """How latency is measured: all numbers of threads with all batch sizes. The first pair is the
    headline."""

    threads: Distinct[Annotated[int, Field(ge=0, le=1024)]] = (1, 0)
    """Numbers of intra-op threads of ONNX Runtime, each on its own core; 0 takes all cores."""
    batch_sizes: Distinct[Annotated[int, Field(ge=1, le=4096)]] = (1, 16)
    """Numbers of images per call."""
    sessions: Annotated[int, Field(ge=2, le=1000)] = 8
    """Number of times that each file is opened, warmed up and timed, interleaved in random order; up to three
    times as many if `precision` is not reached."""
    precision: Annotated[float, Field(ge=0.0001, lt=1)] = 0.02
    """Relative half width of the confidence intervals of all ratios to fp32 at which measuring stops."""
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 20.0
    """Seconds per pair of threads and batch size after which no further session starts."""
    processes: Annotated[int, Field(ge=2, le=1000)] = 3
    """Number of fresh processes that load each file, for load time and peak memory."""


class EnergySettings(Settings):
    """Assumptions of the energy estimate by Green Algorithms (Lannelongue et al. 2021)."""

    watts_per_core: Annotated[float, Field(gt=0, le=10_000)] = 12.0
    """Power of a busy CPU core, in watts; Green Algorithms takes 12 for unknown CPUs."""
    watts_per_gigabyte: Annotated[float, Field(ge=0, le=10_000)] = 0.3725
    """Power of one gigabyte of memory, in watts."""
    pue: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Power usage effectiveness: power of the building per power of the machine. The mean of data centres is
    1.67."""
    gram_co2_per_kwh: Annotated[float, Field(ge=0, le=10_000)] = 475.0
    """Emissions of electricity, in grams of CO2 equivalent per kWh; 475 is the global mean (IEA 2019)."""

    def watts(self, cores: int, gigabytes: float) -> float:
        """Power of a machine with busy cores and used memory, including the building, in watts."""
        return (cores * self.watts_per_core + gigabytes * self.watts_per_gigabyte) * self.pue

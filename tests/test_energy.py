import pytest

from pipeline.measurement import energy
from pipeline.measurement.settings import EnergySettings

ASSUMPTIONS = EnergySettings(watts_per_core=10.0, watts_per_gigabyte=0.5, pue=1.5, gram_co2_per_kwh=400.0)


def test_power_counts_cores_memory_and_the_building() -> None:
    assert ASSUMPTIONS.watts(cores=2, gigabytes=20.0) == 1.5 * (2 * 10 + 20 * 0.5)


def test_an_hour_at_one_kilowatt_is_a_kilowatt_hour() -> None:
    result = energy.estimate(3600.0, 1000.0, ASSUMPTIONS)
    assert result == {"seconds": 3600, "kwh": pytest.approx(1), "gram_co2": pytest.approx(400)}


def test_the_total_of_a_variant_includes_all_its_ancestors() -> None:
    seconds = {"teacher": 100.0, "fp32": 200.0, "pruned": 50.0, "pruned-int8": 7.0, "int8": 3.0}
    parents = {"fp32": "teacher", "pruned": "fp32", "pruned-int8": "pruned", "int8": "fp32"}
    result = energy.training(seconds, parents, cores=2, gigabytes=4.0, assumptions=ASSUMPTIONS)
    totals = {name: figures["total"]["seconds"] for name, figures in result.items()}
    assert totals == {"teacher": 100, "fp32": 300, "pruned": 350, "pruned-int8": 357, "int8": 303}
    assert result["int8"]["own"]["seconds"] == 3


def test_a_training_that_was_not_measured_leaves_its_descendants_without_a_total() -> None:
    seconds = {"teacher": 100.0, "fp32": None, "pruned": 50.0, "other": 20.0}
    parents = {"fp32": "teacher", "pruned": "fp32", "other": "teacher"}
    result = energy.training(seconds, parents, cores=2, gigabytes=4.0, assumptions=ASSUMPTIONS)
    assert result["fp32"] == {"own": None, "total": None}
    assert result["pruned"]["own"]["seconds"] == 50
    assert result["pruned"]["total"] is None
    assert result["other"]["total"]["seconds"] == 120


def test_a_thousand_images_take_a_thousand_times_one() -> None:
    result = energy.inference({"fp32": 4.0}, cores=1, gigabytes={"fp32": 0.1}, assumptions=ASSUMPTIONS)[
        "fp32"
    ]
    watts = 1.5 * (10 + 0.05)
    assert result["joule_per_image"] == pytest.approx(0.004 * watts)
    assert result["kwh_per_1000"] == pytest.approx(4 * watts / 3.6e6)
    assert result["gram_co2_per_1000"] == pytest.approx(400 * 4 * watts / 3.6e6)

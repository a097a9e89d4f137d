"""Reckon the energy and the emissions of training and of use."""

import json

from pipeline import parameters, paths
from pipeline.measurement import energy
from pipeline.measurement.energy import Assumptions
from pipeline.models import storage
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/costs.json`."""
    p = parameters.load()
    benchmark = json.loads(paths.BENCHMARK.read_text())
    parents = {name: variant.parent for name, variant in p.variants.items()}
    folders = {"teacher": paths.TEACHER} | {name: paths.model(name) for name in parents}
    seconds = {
        name: sum((line["seconds"] for line in storage.read_history(folder)), 0.0)
        for name, folder in folders.items()
    }
    assumed = Assumptions(**p.energy.model_dump())
    cores = p.compute.threads or benchmark["machine"]["cores_usable"]
    gigabytes = benchmark["machine"]["memory_bytes"] / 1e9
    training = energy.training(seconds, parents, cores=cores, gigabytes=gigabytes, assumed=assumed)
    footprint, condition = benchmark["footprint"], benchmark["conditions"][0]
    result = {
        "method": {**energy.METHOD, **vars(assumed), "cores": cores, "memory_gigabytes": gigabytes},
        "training": training,
        "everything": energy.spent(sum(seconds.values()), assumed.watts(cores, gigabytes), assumed),
        "inference": energy.inference(
            {
                name: row["latency_ms_p50"] / condition["batch_size"]
                for name, row in condition["variants"].items()
            },
            cores=condition["threads"],
            gigabytes={name: row["memory_peak_bytes"] / 1e9 for name, row in footprint.items()},
            assumed=assumed,
        ),
    }
    paths.COSTS.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"estimated: {result['everything']['kwh']:.3f} kWh and {result['everything']['gram_co2']:.0f} g CO2e "
        "for all training"
    )


if __name__ == "__main__":
    with stage():
        main()

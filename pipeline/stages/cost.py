"""Estimate the energy and the emissions of training and of inference."""

import json

from pipeline import files, parameters, paths
from pipeline.measurement import energy
from pipeline.models import histories
from pipeline.running.process import stage


def main() -> None:
    """Write `artifacts/costs.json`."""
    p = parameters.load()
    benchmark = json.loads(paths.BENCHMARK.read_text())
    parents = p.parents()
    folders = {"teacher": paths.TEACHER, **{name: paths.model(name) for name in parents}}
    seconds = {
        name: histories.seconds(histories.read(folder, paths.timings)) for name, folder in folders.items()
    }
    measured = [time for time in seconds.values() if time is not None]
    missing = [name for name, time in seconds.items() if time is None]
    cores = p.compute.threads or benchmark["machine"]["cores_usable"]
    gigabytes = benchmark["machine"]["memory_bytes"] / 1e9
    condition = benchmark["conditions"][0]
    latencies = {
        name: row["latency_ms_p50"] / condition["batch_size"] for name, row in condition["variants"].items()
    }
    memory = {name: row["memory_peak_bytes"] / 1e9 for name, row in benchmark["footprint"].items()}
    result = {
        "method": {**energy.METHOD, **p.energy.model_dump(), "cores": cores, "memory_gigabytes": gigabytes},
        "training": energy.training(seconds, parents, cores=cores, gigabytes=gigabytes, assumptions=p.energy),
        "everything": energy.estimate(sum(measured), p.energy.watts(cores, gigabytes), p.energy),
        "not_measured": missing,
        "inference": energy.inference(
            latencies, cores=condition["threads"], gigabytes=memory, assumptions=p.energy
        ),
    }
    files.write(paths.COSTS, json.dumps(result, indent=2) + "\n")
    print(
        f"all training: {result['everything']['kwh']:.3f} kWh and "
        f"{result['everything']['gram_co2']:.0f} g CO2e (estimated)"
        + (f", without what was not measured on this machine: {', '.join(missing)}" if missing else "")
    )


if __name__ == "__main__":
    with stage():
        main()

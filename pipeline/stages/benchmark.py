"""Measure the latency of all variants, interleaved in one process."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import files, parameters, paths, progress
from pipeline.lineage import REFERENCE
from pipeline.measurement import latency
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/benchmark.json`."""
    p = parameters.load()
    onnx_files = {variant: paths.onnx(variant) for variant in p.variants}
    with progress.bar("benchmark", unit="sessions") as bar:
        result = latency.measure(onnx_files, **p.benchmark.model_dump(), seed=p.seed, progress=bar.update)
    files.write(paths.BENCHMARK, json.dumps(result, indent=2) + "\n")
    for variant, row in result["variants"].items():
        print(f"{variant}: {row['latency_ms_p50']:.2f} ms{_ratio(row)}")
    if result["noise"]["noisy"]:
        print(f"the machine was noisy: {'; '.join(result['noise']['reasons'])}")


def _ratio(row: Mapping[str, Any]) -> str:
    """The ratio in words; empty for the reference itself, and without one."""
    if row["ratio"] is None or row["ratio_lo"] == row["ratio_hi"]:
        return ""
    note = "" if row["distinguishable"] else ", no significant difference"
    interval = f"95 % CI {row['ratio_lo']:.2f} to {row['ratio_hi']:.2f}"
    return f", {row['ratio']:.2f} times the speed of {REFERENCE} ({interval}){note}"


if __name__ == "__main__":
    with stage():
        main()

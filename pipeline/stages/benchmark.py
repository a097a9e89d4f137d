"""Measure the latency of all variants, interleaved in one process."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.lineage import REFERENCE
from pipeline.measurement import latency, machine, occasions
from pipeline.parameters import Parameters
from pipeline.running import progress
from pipeline.running.process import stage


def main() -> None:
    """Write `artifacts/benchmark.json`. A new variant is measured beside the reference alone, and added to an
    earlier file, if everything else is as it was; if nothing at all is new, all variants are measured."""
    p = parameters.load()
    inputs = _inputs(p)
    before = earlier.read(paths.BENCHMARK)
    kept = earlier.kept(before, inputs)
    new = [name for name in p.variants if name not in kept]
    # Without the reference, there is nothing to compare two occasions by.
    if before.get("inputs") == inputs or (new and REFERENCE not in kept):
        kept, new = set(), list(p.variants)
    print(earlier.summary(new, sorted(kept)))
    result = before
    if new:
        with progress.bar("benchmark", unit="sessions") as bar:
            measured = latency.measure(
                {name: paths.onnx(name) for name in dict.fromkeys([*({REFERENCE} & kept), *new])},
                **p.benchmark.model_dump(),
                seed=p.seed,
                progress=bar.update,
            )
        result = occasions.add(before, measured, new) if kept else occasions.first(measured)
    result = {**occasions.select(result, list(p.variants)), "inputs": inputs}
    files.write(paths.BENCHMARK, json.dumps(result, indent=2) + "\n")
    for variant, row in result["variants"].items():
        print(f"{variant}: {row['latency_ms_p50']:.2f} ms{_ratio(row)}")
    if result["noise"]["noisy"]:
        print(f"the machine was noisy: {'; '.join(result['noise']['reasons'])}")


def _inputs(p: Parameters) -> dict[str, str]:
    """Digest of everything that makes measurements of a variant comparable; the reference is part of it."""
    shared = provenance.identity(
        code=earlier.digest(paths.CODE / "benchmark"),
        machine=occasions.conditions(machine.describe()),
        settings=p.benchmark.model_dump(mode="json"),
        seed=p.seed,
        reference=earlier.digest(paths.onnx(REFERENCE)) if REFERENCE in p.variants else None,
    )
    return {
        name: provenance.identity(shared=shared, file=earlier.digest(paths.onnx(name))) for name in p.variants
    }


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

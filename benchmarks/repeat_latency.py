"""Whether latency can be measured again: two quiet benchmarks, and one with a busy loop beside it.

    python -m benchmarks.repeat_latency

Reads `params.yaml` and `artifacts/onnx/`; takes three times as long as the benchmark stage.
"""

import subprocess
import sys
from typing import Any

from pipeline import parameters, paths
from pipeline.measurement import latency


def main() -> None:
    """Print each variant's ratio from each run, and what the machine was called."""
    p = parameters.load()
    files = {variant: paths.onnx(variant) for variant in p.variants}

    def run(seed: int) -> dict[str, Any]:
        return latency.measure(files, **p.benchmark.model_dump(), seed=seed)

    first, second = run(0), run(1)
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = run(2)
    finally:
        loop.kill()
        loop.wait()
    for number, condition in enumerate(first["conditions"]):
        print(f"{condition['threads']} threads, batch {condition['batch_size']}")
        for name, result in {"first": first, "second": second, "beside a busy loop": beside}.items():
            seen = result["conditions"][number]
            called = "; ".join(seen["noise"]["reasons"]) or "quiet"
            print(f"  {name}: {seen['sessions']} sessions, +-{seen['ratio_half_width']:.1%}, {called}")
        for variant in files:
            rows = [r["conditions"][number]["variants"][variant] for r in (first, second, beside)]
            intervals = (
                f"{row['ratio']:.3f} ({row['ratio_lo']:.3f} to {row['ratio_hi']:.3f})" for row in rows
            )
            agree = rows[0]["ratio_lo"] <= rows[1]["ratio_hi"] and rows[1]["ratio_lo"] <= rows[0]["ratio_hi"]
            print(f"    {variant}: {', '.join(intervals)}; {'agree' if agree else 'do not agree'}")


if __name__ == "__main__":
    main()

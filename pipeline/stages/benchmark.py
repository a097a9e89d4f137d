"""Time all variants, interleaved in one process."""

import json

from tqdm import tqdm

from pipeline import latency, parameters, paths
from pipeline.inference import ModelFileError
from pipeline.parameters import ParameterError
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/benchmark.json`."""
    p = parameters.load()
    files = {variant: paths.onnx(variant) for variant in p.variants}
    with tqdm(desc="benchmark", total=p.benchmark.warmup + p.benchmark.rounds, unit=" rounds") as bar:
        result = latency.measure(files, **p.benchmark.model_dump(), seed=p.seed, progress=bar.update)
    paths.BENCHMARK.write_text(json.dumps(result, indent=2) + "\n")
    for variant, row in result["variants"].items():
        ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f} times as fast as fp32"
        print(f"{variant}: {row['latency_ms_p50']:.2f} ms{ratio}")


if __name__ == "__main__":
    with stage(ParameterError, ModelFileError):
        main()

"""Write the LiteRT (TensorFlow Lite) files of all variants; verify, score and time them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.data import batches, sampling, store
from pipeline.data.batches import ViewSet
from pipeline.evaluation import scoring
from pipeline.lineage import REFERENCE
from pipeline.litert import export, interpreter
from pipeline.measurement import latency, litert_calls, machine
from pipeline.models import storage
from pipeline.models.storage import Model
from pipeline.onnx.export import metadata_for
from pipeline.parameters import Parameters
from pipeline.parity import litert
from pipeline.running import affinity, progress
from pipeline.running.process import stage
from pipeline.statistics.intervals import paired_interval

BATCH = 32
"""Number of images that are rendered at once; the files take one at a time."""


def main() -> None:
    """Write `artifacts/litert/<variant>.tflite` and `artifacts/litert/litert.json`. Files and scores of an
    earlier run that still hold stay; all files are timed anew, beside each other."""
    p = parameters.load()
    paths.LITERT.mkdir(parents=True, exist_ok=True)
    inputs = _inputs(p)
    before = earlier.read(paths.LITERT_RESULTS)
    kept = {name for name in earlier.kept(before, inputs) if _is_whole(name, before["variants"][name])}
    fresh = [name for name in p.variants if name not in kept]
    print(earlier.summary(fresh, sorted(kept)))
    models = {name: storage.load(paths.model(name)) for name in fresh}
    threads = affinity.threads(p.compute.threads)
    torch.set_num_threads(threads)
    written = {name: _write(p, model, threads) for name, model in models.items()}
    scored = _score(p, models, threads)
    made = {name: {**written[name], **scored[name]} for name in fresh}
    for file in set(paths.LITERT.glob("*.tflite")) - {paths.litert(name) for name in p.variants}:
        file.unlink()
    result = {
        "runtime": interpreter.runtime(),
        "machine": machine.describe(),
        "reference": REFERENCE,
        "variants": earlier.join(p.variants, made, before.get("variants")),
        "conditions": _time(p),
        "inputs": inputs,
    }
    files.write(paths.LITERT_RESULTS, json.dumps(result, indent=2) + "\n")
    times = result["conditions"][0]["variants"]
    for name, row in result["variants"].items():
        print(
            f"{name}: {row[row['metric']]:.2%}, as the ONNX file on {row['agreement']:.2%} of the images; "
            f"{row['size_bytes'] / 1e6:.2f} MB, {times[name]['latency_ms_p50']:.2f} ms"
        )


def _inputs(p: Parameters) -> dict[str, str]:
    """Digest of everything that a file and its scores depend on, by variant."""
    shared = provenance.identity(
        circumstances=earlier.digest(*paths.circumstances("litert")),
        parity=p.evaluation.parity,
        seed=p.seed,
    )
    return {
        name: provenance.identity(
            shared=shared, files=earlier.digest(*paths.network(name), paths.onnx(name), paths.metrics(name))
        )
        for name in p.variants
    }


def _is_whole(name: str, row: dict[str, Any]) -> bool:
    file = paths.litert(name)
    return file.is_file() and provenance.sha256(file) == row["sha256"]


def _write(p: Parameters, model: Model, threads: int) -> dict[str, Any]:
    """Write and verify the file of one variant; one that differs from its network is not left behind.

    Returns:
        ``min_runtime``, the first release of TensorFlow Lite that runs the file; and ``parity``, its rung.
    """
    file = paths.litert(model.card.variant)
    file.unlink(missing_ok=True)
    unverified = file.with_suffix(".unverified")
    details = metadata_for(model.card, model.quantization, provenance.git_commit())
    release = export.export(model, unverified, details)
    parity = _verify(p, model, unverified, threads)
    unverified.replace(file)
    return {"min_runtime": release, "parity": parity}


def _images(
    p: Parameters, views: ViewSet, indices: Sequence[int], description: str
) -> Iterator[torch.Tensor]:
    requests = batches.sequential(indices, None, views.contract.size, BATCH)
    loader = batches.load(torch.device("cpu"), views, requests, p.compute.workers)
    with progress.bar(description, len(indices)) as bar:
        for batch in loader:
            yield batch.images
            bar.update(len(batch.images))


def _verify(p: Parameters, model: Model, file: Path, threads: int) -> dict[str, Any] | None:
    """The rungs of the file on images of val; None where the parameters skip the comparison."""
    views = ViewSet(store.read(paths.DATA, "val"), None, model.card.input)
    count = len(views) if p.evaluation.parity is None else p.evaluation.parity
    if not count:
        return None
    sample = sampling.choose(views.images, count, p.seed)
    name = model.card.variant
    images = _images(p, views, sample.tolist(), f"parity {name}")
    labels = views.images.labels[sample]
    return {"split": "val", **litert.climb(model, file, paths.onnx(name), images, labels, threads=threads)}


def _score(p: Parameters, models: Mapping[str, Model], threads: int) -> dict[str, dict[str, Any]]:
    """Scores of the files on the whole test split; an image is rendered once for all that read it alike.

    Returns:
        What ``_compare`` returns, by variant.
    """
    test = store.read(paths.DATA, "test")
    sessions = {name: interpreter.open_file(paths.litert(name), threads=threads) for name in models}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in models}
    contracts = {name: model.card.input for name, model in models.items()}
    geometries = {name: (c.size, c.crop, c.interpolation) for name, c in contracts.items()}
    for geometry in dict.fromkeys(geometries.values()):
        alike = [name for name in models if geometries[name] == geometry]
        views = ViewSet(test, None, contracts[alike[0]])
        for images in _images(p, views, range(len(views)), "litert"):
            for name in alike:
                logits[name].append(sessions[name].run(images.numpy()))
    return {name: _compare(model, logits[name], test.labels) for name, model in models.items()}


def _compare(model: Model, logits: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """Scores of a file beside those of the ONNX file.

    Returns:
        ``n``, the ``metric`` and its value with interval; ``agreement``, the share of images with the ONNX
        file's answer; ``delta``, the difference of the scores, with its paired interval among classes; and
        the file's ``size_bytes`` and ``sha256``, beside the ONNX file's.
    """
    name = model.card.variant
    file = paths.litert(name)
    scores, _ = scoring.score_logits(file, model.card.labels, logits, labels)
    onnx = json.loads(paths.metrics(name).read_text())
    metric = scores["metric"]
    own, other = (np.array(scored["predictions"]) for scored in (scores, onnx))
    delta = {"delta": scores[metric] - onnx[metric], "delta_lo": None, "delta_hi": None}
    if own.ndim == 1:
        right, before = own == labels, other == labels
        gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
        delta["delta_lo"], delta["delta_hi"] = paired_interval(gained, lost, len(own))
        same = own == other
    else:
        same = ((own > 0) == (other > 0)).all(axis=1)
    return {
        **{key: scores[key] for key in ("n", "metric", metric, f"{metric}_lo", f"{metric}_hi")},
        "agreement": float(same.mean()),
        **delta,
        "size_bytes": file.stat().st_size,
        "sha256": provenance.sha256(file),
        "onnx_size_bytes": onnx["size_bytes"],
        "onnx_sha256": onnx["sha256"],
    }


def _time(p: Parameters) -> list[dict[str, Any]]:
    """Latency of all files, one image per call, for each number of threads of the benchmark."""
    cores = affinity.usable_cores()
    places = {name: paths.litert(name) for name in p.variants}
    settings = p.benchmark.model_dump(include={"sessions", "precision", "seconds"})
    random = np.random.default_rng(p.seed)
    conditions = []
    with progress.bar("litert", unit="sessions") as bar:
        for count in dict.fromkeys(min(count or len(cores), len(cores)) for count in p.benchmark.threads):
            conditions.append(
                latency.time_condition(
                    places,
                    litert_calls.open_litert,
                    provider="xnnpack",
                    cores=cores[-count:],
                    batch_size=1,
                    random=random,
                    reference=REFERENCE,
                    progress=bar.update,
                    **settings,
                )
            )
    return conditions


if __name__ == "__main__":
    with stage():
        main()

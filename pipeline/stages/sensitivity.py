"""Measure each layer's sensitivity: the score with fewer channels or eight bits in one layer at a time."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import earlier, files, parameters, paths, provenance
from pipeline.parameters import Parameters
from pipeline.running import affinity
from pipeline.running.process import stage


def main() -> None:
    """Write `artifacts/sensitivity.json`: every trained or loaded network that has pruned or quantised
    variants. Of an earlier file, the entries that are still valid stay."""
    p = parameters.load()
    parents = {op: [v.parent for v in p.variants.values() if v.op == op] for op in ("prune", "quantize")}
    changes = {
        name: {"channels": name in parents["prune"], "int8": name in parents["quantize"]}
        for name in p.uncompressed
    }
    changes = {name: parts for name, parts in changes.items() if any(parts.values())}
    if not p.sensitivity.images or not changes:
        files.write(paths.SENSITIVITY, json.dumps({"note": "not measured"}) + "\n")
        return
    shared = earlier.digest(*paths.circumstances("sensitivity"))
    inputs = {
        name: provenance.identity(
            shared=shared,
            settings=p.sensitivity.model_dump(mode="json"),
            seed=p.seed,
            parts=parts,
            network=earlier.digest(*paths.network(name)),
        )
        for name, parts in changes.items()
    }
    before = earlier.read(paths.SENSITIVITY)
    kept = earlier.kept(before, inputs)
    fresh = {name: parts for name, parts in changes.items() if name not in kept}
    print(earlier.summary(fresh, sorted(kept)))
    sources = [*([_measure(p, fresh)] if fresh else []), *([before] if kept else [])]
    variants = earlier.join(changes, *(source["variants"] for source in sources))
    result = {**sources[0], "inputs": inputs, "variants": variants}
    files.write(paths.SENSITIVITY, json.dumps(dict(sorted(result.items())), indent=2) + "\n")


def _measure(p: Parameters, changes: Mapping[str, Mapping[str, bool]]) -> dict[str, Any]:
    """Measure some students, and print their scores.

    Args:
        p: all parameters.
        changes: whether ``channels`` are removed and layers become ``int8``, by student.
    """
    # Slow to import, and not needed for a new variant of a student that was measured before.
    import torch

    from pipeline.data import store
    from pipeline.inspection import layer_sensitivity
    from pipeline.models import storage

    torch.set_num_threads(affinity.threads(p.compute.threads))
    result = layer_sensitivity.measure_students(
        {name: storage.load(paths.model(name)) for name in changes},
        changes,
        train=store.read(paths.DATA, "train"),
        val=store.read(paths.DATA, "val"),
        seed=p.seed,
        **p.sensitivity.model_dump(),
    )
    for name, scores in result["variants"].items():
        size = result["size"]
        images = f"{result['n']} validation images at {size} px"
        print(f"{name}: {scores['score']:.1%} on {images}, from which changed layers are counted")
    return result


if __name__ == "__main__":
    with stage():
        main()

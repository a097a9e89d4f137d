"""The part of a run's results that concerns one variant: its own, and those of its ancestors."""

from collections.abc import Collection
from dataclasses import replace

from pipeline import lineage
from pipeline.report.evidence import Evidence, Part
from pipeline.report.results import RunResults
from pipeline.selection.table import TEACHER


def of_variant(results: RunResults, variant: str) -> RunResults:
    """The results of a variant and its ancestors, the oldest first; ``closest`` is the variant."""
    parents = {row.variant: row.parent for row in results.table}
    path = [name for name in reversed([variant, *lineage.ancestors(parents, variant)]) if name != TEACHER]
    position = {row.variant: index for index, row in enumerate(results.table)}
    order = [position[name] for name in path]
    return replace(
        results,
        table=[results.table[index] for index in order],
        variants=[results.variants[index] for index in order],
        model_cards=[results.model_cards[index] for index in order],
        choice=replace(results.choice, closest=variant),
        evidence=_evidence(results.evidence, path),
    )


def _evidence(evidence: Evidence, path: Collection[str]) -> Evidence:
    costs, robustness = evidence.costs, evidence.robustness
    return replace(
        evidence,
        costs=costs and _costs(costs, list(path)),
        robustness=robustness and {name: _probed(part, path) for name, part in robustness.items()},
    )


def _costs(costs: Part, path: list[str]) -> Part:
    """The costs with the sums over the teacher and the path alone."""
    measured = [costs["training"][name]["own"] for name in (TEACHER, *path)]
    total = costs["training"][path[-1]]["total"] or {
        key: sum(own[key] for own in measured if own) for key in costs["everything"]
    }
    return {
        **costs,
        "everything": total,
        "not_measured": [name for name in costs["not_measured"] if name in (TEACHER, *path)],
        "inference": {name: of for name, of in costs["inference"].items() if name in path},
    }


def _probed(part: object, path: Collection[str]) -> object:
    """The part without other variants, wherever it names the variant of a measurement."""
    if isinstance(part, list):
        return [_probed(one, path) for one in part if not _of_another(one, path)]
    if not isinstance(part, dict):
        return part
    return {
        key: {name: of for name, of in inner.items() if name in path}
        if key == "variants"
        else _probed(inner, path)
        for key, inner in part.items()
    }


def _of_another(part: object, path: Collection[str]) -> bool:
    return isinstance(part, dict) and part.get("variant") not in (None, *path)

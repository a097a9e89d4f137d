"""Latencies that were measured on several occasions, put together in one result.

A new variant is timed on an occasion of its own, interleaved with the reference. Its ratio is paired there
and stays as it was measured. A machine is never exactly as fast as it was last week, so milliseconds of
different occasions do not compare: those of the new variant are put on the scale of the first occasion, by
the factor between the reference's two medians. Their interval includes the uncertainty of that factor.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import earlier
from pipeline.measurement import machine
from pipeline.measurement.machine import Noise

Part = Mapping[str, Any]

MILLISECONDS = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "latency_ms_min")
VARYING = ("frequency_mhz",)
"""What a machine says differently each time it is asked."""


def conditions(description: Part) -> dict[str, Any]:
    """What must be the same on both occasions of the result of ``machine.describe``."""
    return {key: value for key, value in description.items() if key not in VARYING}


def first(result: Part) -> dict[str, Any]:
    """A result of ``latency.measure`` as the first occasion, to which others can be added."""
    conditions = [_on_occasion(condition, 1) for condition in result["conditions"]]
    occasion = _occasion(result, list(result["variants"]))
    return {**result, "conditions": conditions, "occasions": [occasion]}


def add(result: Part, later: Part, names: Sequence[str]) -> dict[str, Any]:
    """Add variants that were measured later, together with the reference.

    Args:
        result: what ``first`` or this function returned.
        later: result of ``latency.measure`` under the same conditions.
        names: the variants to add.

    Returns:
        The result with their rows, whose ``scale`` is the factor. ``occasions`` says what was measured on
        each, and what disturbed it.
    """
    number = len(result["occasions"]) + 1
    reference = result["settings"]["reference"]
    together = [
        _join(old, _on_occasion(new, number), reference, names)
        for old, new in zip(result["conditions"], later["conditions"], strict=True)
    ]
    return {
        **result,
        "conditions": together,
        "footprint": result["footprint"] | earlier.join(names, later["footprint"]),
        "occasions": [*result["occasions"], _occasion(later, names)],
    }


def select(result: Part, names: Sequence[str]) -> dict[str, Any]:
    """The result with these variants alone, in this order. ``noise`` is the worst of their occasions."""
    conditions = [
        {**condition, "variants": earlier.join(names, condition["variants"])}
        for condition in result["conditions"]
    ]
    occasions = [
        {**occasion, "variants": [name for name in occasion["variants"] if name in names]}
        for occasion in result["occasions"]
    ]
    noises = [occasion["noise"] for occasion in occasions if occasion["variants"]]
    worst = Noise(**{name: max(noise[name] for noise in noises) for name in vars(machine.LIMITS)})
    return {
        **result,
        "noise": {**machine.verdict(worst), "limits": vars(machine.LIMITS)},
        "variants": conditions[0]["variants"],
        "conditions": conditions,
        "footprint": earlier.join(names, result["footprint"]),
        "occasions": occasions,
    }


def _occasion(result: Part, names: Sequence[str]) -> dict[str, Any]:
    """Who was measured on one occasion, and what disturbed it."""
    return {"variants": list(names), **{key: result[key] for key in ("load_average", "noise")}}


def _on_occasion(condition: Part, number: int) -> dict[str, Any]:
    rows = {name: {**row, "occasion": number} for name, row in condition["variants"].items()}
    return {**condition, "variants": rows}


def _join(old: Part, new: Part, reference: str, names: Sequence[str]) -> dict[str, Any]:
    """One condition with the new variants' rows on the scale of the old ones."""
    base, again = old["variants"][reference], new["variants"][reference]
    rows = {name: _scaled(new["variants"][name], base, again) for name in names}
    return {
        **old,
        "reached": old["reached"] and new["reached"],
        "ratio_half_width": max(old["ratio_half_width"], new["ratio_half_width"]),
        "variants": old["variants"] | rows,
    }


def _scaled(row: Part, base: Part, again: Part) -> dict[str, Any]:
    """A row on the scale of the reference's row ``base``, given the reference's row beside it, ``again``."""
    scale = base["latency_ms_p50"] / again["latency_ms_p50"]
    values = {name: row[name] * scale for name in MILLISECONDS}
    values["images_per_second"] = row["images_per_second"] / scale
    # The time is the reference's, divided by the ratio: two independent estimates.
    spread = math.exp(math.hypot(_width(base, "latency_ms_p50"), _width(row, "ratio")))
    for name in ("latency_ms_p50", "images_per_second"):
        values |= {f"{name}_lo": values[name] / spread, f"{name}_hi": values[name] * spread}
    return {**row, **values, "scale": scale}


def _width(row: Part, name: str) -> float:
    """Half the width of an interval of a positive figure, on the logarithmic scale."""
    return math.log(row[f"{name}_hi"] / row[f"{name}_lo"]) / 2

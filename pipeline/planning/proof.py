"""How many test images the gate needs, known before anything is trained."""

from collections.abc import Mapping
from typing import Any

from pipeline.parameters import Parameters
from pipeline.planning.survey import Survey
from pipeline.selection.budget import listed
from pipeline.statistics.intervals import images_needed

FEW_CHANGES = 0.0025
"""Share of the test images that an int8 file gets wrong although its parent gets them right, and the other
way round. Of int8-ptq, 0.15 % were measured on 10,000 images of Fashion-MNIST, and 0.1 % on 1,000
photographs."""
PARTS = 3
"""The plan gives at most one of so many parts of the images to test."""


def share_of_test(p: Parameters, images: int) -> int | float:
    """Test images to draw from a folder, as ``data.test``: as many as its variants need, where it has them.

    A folder of some hundred images keeps the usual share: a third of it would not be enough either, and the
    training needs the images more.
    """
    strictest = min(_limits(p).values())
    least, wanted = (images_needed(share, share, strictest) for share in (0.0, FEW_CHANGES))
    usual = p.data.test if isinstance(p.data.test, int) else round(p.data.test * images)
    most = images // PARTS
    if least is None or wanted is None or usual >= wanted or most < max(least, usual + 1):
        return p.data.test
    return min(wanted, most)


def lines(p: Parameters, survey: Survey) -> list[str]:
    """What the gate will reject whatever it is like, because the test split is small; nothing otherwise."""
    if survey.data.source == "attributes":
        return []  # the interval of their score has no formula
    test = survey.images["test"]
    needed: dict[int | None, list[str]] = {}
    for name, limit in _limits(p).items():
        count = images_needed(0, 0, limit)
        if count is None or count > test:
            needed.setdefault(count, []).append(name)
    if not needed:
        return []
    parts = [
        f"{listed(names)} ({'no number is enough' if count is None else f'{count:,} needed'})"
        for count, names in needed.items()
    ]
    keys = dict.fromkeys(
        f"gate.{p.variants[name].op}.max_drop" for names in needed.values() for name in names
    )
    more = "add photographs, raise data.test" if survey.test_is_drawn else "add test photographs"
    return [
        f"note: with {test:,} test images a variant is rejected even if none of its answers changes: "
        f"{', '.join(parts)}; {more}, or relax {listed(keys)}"
    ]


def _limits(p: Parameters) -> Mapping[str, Any]:
    """The loss that the gate allows to each variant."""
    return {name: getattr(p.gate, variant.op).max_drop for name, variant in p.variants.items()}

"""The page's charts of accuracy by groups of test images."""

from pipeline.report import findings, words
from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.page import charts
from pipeline.report.page.grid import DARKEST, Cell, Figure, Grid
from pipeline.report.results import RunResults


def groups(results: RunResults) -> list[Figure]:
    """Accuracy of the shipped variant in each group, one chart per column of image properties."""
    variant = results.closest.variant
    drawn = []
    for part in results.groupings:
        shipped = part["variants"][variant]
        shown = findings.largest_groups(shipped["groups"])
        names = [group["group"] for group in shipped["groups"]]
        bars = [
            charts.Bar(
                name=f"{words.third(part['column'], group['group'], names)}, {figure(group['n'])} images",
                value=100 * group["score"],
                lo=100 * group["lo"],
                hi=100 * group["hi"],
                note=f"{words.spaced(part['column'])} {group['group']}: {figure(group['score'], '%')}, "
                f"95 % CI {span(group['lo'], group['hi'], '%')}",
            )
            for group in shown
        ]
        name = words.spaced(part["column"])
        hidden = len(shipped["groups"]) - len(shown)
        note = words.sentence(part["note"][:1].upper() + part["note"][1:]) if part["note"] else ""
        if hidden:
            note += f" {words.counted(hidden, 'smaller group')} not shown."
        drawn.append(
            Figure(
                title=name.capitalize(),
                text=_gap(shipped),
                note=note.strip(),
                chart=charts.bars(bars, title=f"Accuracy of {variant} by {name}", unit=" %"),
            )
        )
    return drawn


def gaps(results: RunResults) -> Grid | None:
    """The gap between the best and the worst group, for every variant."""
    parts = [p for p in results.groupings if p["variants"][results.closest.variant]["gap"] is not None]
    if not parts:
        return None
    variants = list(parts[0]["variants"])
    rows = [
        (
            words.spaced(part["column"]),
            [
                Cell(
                    figure(of["gap"], "gap", bare=True),
                    small=f"worst: {words.third(part['column'], of['worst'], names)}",
                    shade=round(min(DARKEST, 200 * of["gap"])) if of["distinguishable"] else 0,
                    title=f"95 % CI {span(of['gap_lo'], of['gap_hi'], 'gap')} points, "
                    f"best: {words.third(part['column'], of['best'], names)}",
                )
                for of in (part["variants"][v] for v in variants)
                for names in ([group["group"] for group in of["groups"]],)
            ],
        )
        for part in parts
    ]
    note = (
        "Points of accuracy between the best and the worst group. Shaded where the gap is significant, "
        "corrected for the number of pairs of groups."
    )
    return Grid("gap by", [results.shown(name) for name in variants], rows, note)


def _gap(groups: Part) -> str:
    if groups["gap"] is None:
        return "not compared: fewer than two groups have enough images"
    significance = "" if groups["distinguishable"] else ", not significant"
    interval = span(groups["gap_lo"], groups["gap_hi"], "gap")
    return f"gap {figure(groups['gap'], 'gap')} ({interval}){significance}"

"""Figures as people read them: the one place that scales, rounds and signs values, and names their unit."""

from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Unit:
    """How a value of the artifacts is shown."""

    factor: int | float
    """Factor from the unit of the artifacts to the unit that is shown."""
    digits: int
    """Digits after the decimal point."""
    suffix: str
    signed: bool = False
    """Whether positive values have a plus sign."""


UNITS = {
    "%": Unit(100, 2, " %"),
    "points": Unit(100, 2, " points", signed=True),
    "gap": Unit(100, 1, " points"),
    "MB": Unit(1e-6, 2, " MB"),
    "KB": Unit(1e-3, 0, " KB"),
    "M": Unit(1e-6, 2, " M"),
    "ms": Unit(1, 2, " ms"),
    "s": Unit(1, 2, " s"),
    "minutes": Unit(1 / 60, 1, " minutes"),
    "hours": Unit(1 / 3600, 2, " hours"),
    "plain": Unit(1, 3, ""),
    "times": Unit(1, 2, "\N{MULTIPLICATION SIGN}"),
    "Wh": Unit(1000, 2, " Wh"),
    "mWh": Unit(1e6, 2, " mWh"),
    "g": Unit(1, 2, " g"),
    "mg": Unit(1000, 2, " mg"),
    "mJ": Unit(1000, 1, " mJ"),
    "/s": Unit(1, 0, " images/s"),
}
"""Artifacts hold fractions of 1, bytes, counts, milliseconds or seconds, kilowatt-hours, joules and grams."""


def figure(value: int | float, unit: str = "", digits: int | None = None, *, bare: bool = False) -> str:
    """The value with its unit; without a unit, a count or a plain number of at most four digits.

    Args:
        value: the value as the artifacts hold it.
        unit: a key of ``UNITS``, or nothing.
        digits: digits after the decimal point; by default those of the unit.
        bare: omit the unit, for cells below a header that names it.
    """
    if not unit:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.{4 if digits is None else digits}g}"
        return text.replace("-", MINUS)
    style = UNITS[unit]
    places = style.digits if digits is None else digits
    scaled = round(style.factor * value, places) + 0.0
    text = f"{scaled:{'+' if style.signed else ''},.{places}f}".replace("-", MINUS)
    return text if bare else text + style.suffix


def span(lo: int | float, hi: int | float, unit: str, digits: int | None = None) -> str:
    """An interval without its unit, which the figure beside it names."""
    return f"{figure(lo, unit, digits, bare=True)} to {figure(hi, unit, digits, bare=True)}"

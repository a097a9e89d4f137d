"""Tables and pictures with captions, from which the sections of the page are made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

DARKEST = 45
"""Per cent of colour in the strongest cell."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""
    """Text below, in small print."""
    shade: int = 0
    """Per cent of colour."""
    tone: str = "heat"
    """Name of the colour, a variable of the page."""
    picture: Markup | None = None
    title: str = ""
    """Text of the tooltip."""
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """One table of the page."""

    corner: str
    """Header of the first column."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    """Header and cells of each row."""
    note: str = ""
    """How to read the table."""
    title: str = ""

    def led_by(self, column: str) -> "Grid":
        """The table with this column first, if it has it."""
        if column not in self.columns:
            return self
        order = sorted(range(len(self.columns)), key=lambda place: self.columns[place] != column)
        return replace(
            self,
            columns=[self.columns[place] for place in order],
            rows=[(header, [cells[place] for place in order]) for header, cells in self.rows],
        )


@dataclass(frozen=True)
class Shot:
    """An image with the answers to it."""

    picture: str
    """Address of the image."""
    title: str
    lines: Sequence[tuple[str, bool]] = ()
    """Lines below the image, and whether each states a correct answer."""


@dataclass(frozen=True)
class Figure:
    """A chart with its caption."""

    title: str
    chart: Markup
    text: str = ""
    """Text below the title."""
    note: str = ""
    """Second line of text, in small print."""
    table: Grid | None = None
    """The values of the chart."""


def shade_of_loss(value: int | float, clean: int | float) -> int:
    """Per cent of colour for what is left of a score: none if all is left, the darkest if nothing is."""
    return round(DARKEST * min(1.0, max(0.0, 1 - value / clean))) if clean else 0

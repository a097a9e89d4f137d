"""The elements of an HTML page, to assert on ids, attributes and values."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"br", "img", "input", "link", "meta"})
INLINE = frozenset({"a", "code", "em", "strong"})  # part of the sentence around them


@dataclass
class Element:
    """One element with everything inside it."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside the element."""
        return " ".join("".join(self.parts).split())

    @property
    def numbers(self) -> list[float]:
        """All numbers in its text."""
        text = self.text.replace("\N{MINUS SIGN}", "-").replace(",", "")
        return [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", text)]

    def all(self, tag: str = "", **attributes: str) -> list["Element"]:
        """Every descendant with this tag and these attributes; underscores stand for hyphens."""
        wanted = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            one
            for one in self._descendants()
            if tag in ("", one.tag) and wanted.items() <= one.attributes.items()
        ]

    def one(self, tag: str = "", **attributes: str) -> "Element":
        """The only descendant with this tag and these attributes."""
        found = self.all(tag, **attributes)
        assert len(found) == 1, (tag, attributes, len(found))
        return found[0]

    def cells(self) -> dict[str, list["Element"]]:
        """Header of each row of a table to the other cells of that row."""
        rows = {
            row.attributes["data-row"]: row.all("td")
            for row in self.all("tr")
            if "data-row" in row.attributes
        }
        return {header: cells[1:] for header, cells in rows.items()}

    def _descendants(self) -> Iterator["Element"]:
        for child in self.children:
            yield child
            yield from child._descendants()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in INLINE:
            self.handle_data(" ")
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)


def parse(text: str) -> Element:
    """The document; every tag must be closed in order."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]

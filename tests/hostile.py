"""Names that pages, tables, terminals and spreadsheets would take for something else than text."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from markdown_it import MarkdownIt
from playwright.sync_api import Dialog, Page

from pipeline import escaping

FOLDERS = (
    "<img src=x onerror=alert(1)>",
    "\"><svg onload=alert(2)> '><b>",
    "<script>alert(3)<\u2028--><!--",
    '[x](javascript:alert(4)) ![y](x "z")',
    "a|b `c` **d** _e_ ~~f~~ $g$ :smile:",
    "line\nbreak\r\n\n# heading\n---\n- item",
    '=HYPERLINK("http:x","y")',
    "@SUM(A1), -1+1",
    "${{7*7}} {{7*7}} {% raw %} %s {0} \\n \\",
    "'; DROP TABLE runs;--",
    "\u202egnp.exe\u2066 e\u0301\u0301\u0301 \N{PILE OF POO}\u200b",
    "\x1b[31mred\x1b[0m\x07\t&lt;b&gt; &amp; \x9b2J",
    "---: " + "x" * 200 + " {a: b} # c",
)
"""Thirteen names that a folder can have."""
ATTRIBUTES = (
    "</script><script>alert(5)</script>",
    "</title></style></textarea><img src=x onerror=alert(6)>",
    "<a href=javascript:alert(7)>x</a> <https://example.com>",
    "https://example.com www.example.com @name",
    "]]></svg><script>alert(8)</script>",
)
"""Further names, with slashes, that only a table can have."""
NAMES = FOLDERS + ATTRIBUTES

Value = TypeVar("Value")


def shown(name: str) -> str:
    """The name as a page shows it."""
    return " ".join(escaping.visible(name).split())


def renamed(value: Value, new: Callable[[str], str]) -> Value:
    """The same value with other strings, however deep they lie; keys of mappings are not changed."""
    result: Any = value
    if type(value) is str:
        result = new(value)
    elif isinstance(value, Mapping):
        result = {key: renamed(inner, new) for key, inner in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        result = replace(value, **{name: renamed(getattr(value, name), new) for name in names})
    elif isinstance(value, Sequence) and not isinstance(value, str):
        result = [renamed(inner, new) for inner in value]
    return result


def hub(card: str) -> str:
    """A model card as a page that lets HTML through, without its front matter."""
    body = card.split("\n---\n", 1)[1] if card.startswith("---\n") else card
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    html = re.sub(r"<(img|br|hr)([^>]*?)\s*/?>", r"<\1\2>", markdown.render(body))
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"></head><body>{html}</body></html>'


def record_dialogs(view: Page) -> list[str]:
    """The messages of all dialogs that a page opens from now on; each is dismissed."""
    messages: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        messages.append(dialog.message)
        dialog.dismiss()

    view.on("dialog", dismiss)
    return messages

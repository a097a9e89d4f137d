"""How text that the pipeline did not write is shown: names of classes, files and groups, and messages.

Data keep every name as it is. What shows a name escapes it with the function of its language here, so that
the name appears as text, whatever it contains. YAML and JSON are written by their libraries alone.
"""

import re

from markupsafe import Markup, escape

HIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters, which terminals obey and XML forbids
    r"\u2028\u2029"  # line breaks that only some programs know
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # directions, which reorder the text around the name
    r"\u200b\u2060-\u2064\ufeff\ufff9-\ufffb"  # characters without width
    r"\ud800-\udfff]"  # bytes of file names that are not text
)
"""Characters that no page shows. The joiners of emoji and of Persian words are not among them."""

SPACE = re.compile(r"[\t\n\r]")

FORMULA = re.compile(
    r"'*[=+\-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}"
    r"\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}]"
)
"""Start of a cell that spreadsheets compute, or of one that has been marked as text already."""

PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/]+@")
"""User and password in an address."""

MARKS = {
    **{"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&bsol;", "`": "&grave;", "*": "&ast;", "_": "&lowbar;"},
    **{"[": "&lbrack;", "]": "&rbrack;", "{": "&lbrace;", "}": "&rbrace;", "|": "&vert;", "~": "&#126;"},
    **{"$": "&dollar;", "#": "&num;", ":": "&colon;", "@": "&commat;", ".": "&period;", "=": "&equals;"},
    **{"+": "&plus;", "-": "&#45;", ")": "&rpar;"},
}
"""Characters that mean something in Markdown as character references, which every dialect shows as text.
Dialects disagree about backslashes, and look for links, mentions and emoji in what follows them."""

MARKDOWN = re.compile(
    r"[&<>\\`*\[\]{}|~$#]"
    r"|(?<!\w)_|_(?!\w)"  # not emphasis within a word, as in file_name
    r"|:(?=\S)|@(?=\w)|(?<=www)\."  # addresses, emoji, mentions
    r"|^ ?(?:[-+](?=[-+\s]|$)|=|\d+[.)](?=\s|$))",  # lists, rules and headings
    re.IGNORECASE,
)
RISKY_LINK = re.compile(r"\](?=[(:]\s*(?!https?:|mailto:)[^\s/?#)]*:)", re.IGNORECASE)
"""End of the text of a link in Markdown whose address is neither relative nor that of a page or a mailbox."""


class Markdown(str):
    """Text in Markdown, in which everything that comes from elsewhere is escaped already."""

    __slots__ = ()


def visible(text: str) -> str:
    """The text with a Python escape for each character that no page shows, such as ``\\u202e``."""
    return HIDDEN.sub(_python_escape, text)


def for_terminal(text: object) -> str:
    """The text on one line, with Python escapes for line breaks, too: ``a\\nb``."""
    return SPACE.sub(_python_escape, visible(str(text)))


def without_passwords(text: object) -> str:
    """The text with three asterisks for the password of each address: ``postgresql://user:***@host``."""
    return PASSWORD.sub(r"\1:***@", str(text))


def for_html(text: object) -> Markup:
    """The text in HTML or SVG, within an element or a quoted attribute."""
    return escape(visible(str(text)))


def for_markdown(text: object) -> Markdown:
    """The text on one line of Markdown, also within a cell of a table; ``Markdown`` stays as it is."""
    if isinstance(text, Markdown):
        return text
    line = re.sub(r"\s+", " ", visible(str(text)))
    return Markdown(MARKDOWN.sub(lambda match: "".join(MARKS.get(c, c) for c in match[0]), line))


def code(text: object) -> Markdown:
    """The text as a code span of Markdown."""
    line = " ".join(visible(str(text)).split())
    ticks = _fence(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{pad}{line}{pad}{ticks}")


def code_block(text: str, language: str) -> Markdown:
    """The text as a block of code of Markdown, which no line of it can end."""
    lines = visible("\n".join(text.rstrip().splitlines()))
    ticks = _fence(lines, 3)
    return Markdown(f"{ticks}{language}\n{lines}\n{ticks}")


def prose(text: str) -> Markdown:
    """Markdown that a person wrote, in which HTML is shown as text and links run no script."""
    return Markdown(RISKY_LINK.sub("&rbrack;", visible(text).replace("&", "&amp;").replace("<", "&lt;")))


def for_csv(text: str) -> str:
    """A cell of text that no spreadsheet takes for a formula; ``from_csv`` returns the text."""
    return f"'{text}" if FORMULA.match(text) else text


def from_csv(cell: str) -> str:
    """The text of a cell that ``for_csv`` wrote."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def for_embedding(text: str) -> str:
    """The text for JSON or YAML that other programs put into their pages without escaping it.

    DVC does so with its plots, and MLflow with the head of a model card. A character without width keeps
    ``<`` from starting a tag or a comment, and ``]`` from ending the text of a link.
    """
    return re.sub(r"[<\]]", "\\g<0>\N{ZERO WIDTH NON-JOINER}", visible(text))


def _python_escape(match: re.Match[str]) -> str:
    # A byte of a file name that is not UTF-8 is shown as the byte.
    return match[0].encode("unicode_escape").decode().replace("\\udc", "\\x")


def _fence(text: str, least: int) -> str:
    """Backticks that are one longer than any in the text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])

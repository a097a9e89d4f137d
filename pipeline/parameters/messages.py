"""Validation errors as messages of one line each: file, key, value, and what is allowed."""

import difflib
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import DistilleryError
from pipeline.settings import Settings

LONGEST_VALUE = 200
"""Number of characters of a value that a message shows."""


class ParameterError(DistilleryError):
    """A parameter or its file is wrong. Each line of the message names the key, the value and what is
    allowed."""


def lines(error: ValidationError, origin: str, root: type[Settings]) -> list[str]:
    """One line per problem that Pydantic reports about ``root``; ``origin`` starts each line."""
    return [line(detail, origin, root) for detail in error.errors()]


def line(detail: ErrorDetails, origin: str, root: type[Settings], prefix: str = "") -> str:
    """One problem as one line; ``prefix`` is the key at which ``root`` lies."""
    # Pydantic's location also names the branch of a union, which is not a key that a user wrote.
    branches = ("constrained-", "function-", "literal[", "tuple[", "[key]")
    parts = [str(part) for part in detail["loc"] if not str(part).startswith(branches)]
    shown_parts = [part if part.isprintable() else repr(part) for part in parts]
    key = ".".join([*([prefix] if prefix else []), *shown_parts])
    start = f"{origin}: {key}" if origin else key
    if detail["type"] == "extra_forbidden":
        allowed = keys_at(root, parts[:-1])
        return unknown(start, "key", parts[-1], allowed)
    if detail["type"] == "missing":
        return f"{start}: this key is missing"
    message = detail["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    value = repr(detail["input"])
    shown = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]} ..."
    return f"{start} = {shown}: {message}"


def unknown(place: str, kind: str, name: str, allowed: Sequence[str]) -> str:
    """A sentence about a name that does not exist, with the one that was probably meant."""
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"{place}: no such {kind}{hint} (allowed: {', '.join(allowed)})"


def keys_at(root: type[Settings], parts: list[str]) -> list[str]:
    """The keys that are allowed at a location below ``root``."""
    fields = root.model_fields
    for part in (part for part in parts if not part.isdigit()):  # a number is a place in a list
        annotation = fields[part].annotation if part in fields else None
        options = getattr(annotation, "__args__", (annotation,))
        section = next((o for o in options if isinstance(o, type) and issubclass(o, Settings)), None)
        if section is None:
            return []
        fields = section.model_fields
    return list(fields)

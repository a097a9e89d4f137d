"""Validation errors as messages of one line each: file, key, value, and what is allowed."""

import datetime
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import DistilleryError, did_you_mean
from pipeline.settings import Settings

LONGEST_VALUE = 200
"""Number of characters of a value that a message shows."""


KINDS = {
    "dict_type": "must be keys with values",
    "mapping_type": "must be keys with values",
    "model_type": "must be keys with values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "path_type": "must be a path",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
}
"""Words for kinds of problems, in place of those that name Python's types."""


class ParameterError(DistilleryError):
    """A parameter or its file is wrong. Each line of the message names the key, the value and what is
    allowed."""


def lines(error: ValidationError, origin: str, root: type[Settings]) -> list[str]:
    """One line per problem that Pydantic reports about ``root``; ``origin`` starts each line."""
    return [line(detail, origin, root) for detail in details(error)]


def details(error: ValidationError) -> list[ErrorDetails]:
    """The problems that Pydantic reports, one per value.

    For a value that may be of several kinds, Pydantic reports one problem per kind, and for a list whose
    values are not valid also that it is too short.
    """
    reported = error.errors()
    keys = [_key(detail) for detail in reported]
    by_key: dict[tuple[str, ...], ErrorDetails] = {}
    for key, detail in zip(keys, reported, strict=True):
        if any(other[: len(key)] == key and len(other) > len(key) for other in keys):
            continue  # what is wrong within the value says more
        if key not in by_key or detail["type"] == "missing":
            by_key[key] = detail
        elif (more := _message(detail)) not in (message := _message(by_key[key])):
            by_key[key] = {**by_key[key], "type": "several", "msg": f"{message}, or {more}"}
    return list(by_key.values())


def line(detail: ErrorDetails, origin: str, root: type[Settings], prefix: str = "") -> str:
    """One problem as one line; ``prefix`` is the key at which ``root`` lies."""
    parts = list(_key(detail))
    if detail["loc"] and detail["loc"][-1] == "[key]" and not isinstance(detail["input"], str):
        return ": ".join(
            filter(None, [origin, ".".join([prefix, *parts[:-1]]).strip("."), _not_a_name(detail["input"])])
        )
    if detail["type"] == "invalid_key":
        return ": ".join(filter(None, [origin, prefix, _not_a_name(detail["input"])]))
    shown_parts = [part if part.isprintable() else repr(part) for part in parts]
    key = ".".join([*([prefix] if prefix else []), *shown_parts])
    start = f"{origin}: {key}" if origin else key
    if detail["type"] == "extra_forbidden":
        allowed = keys_at(root, parts[:-1])
        return unknown(start, "key", parts[-1], allowed)
    if detail["type"] == "missing":
        return f"{start}: this key is missing"
    value = repr(detail["input"])
    shown = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]} ..."
    return f"{start} = {shown}: {_message(detail)}"


def _key(detail: ErrorDetails) -> tuple[str, ...]:
    """The keys that lead to the value; Pydantic also names the branch of a union, which no user wrote."""
    branches = ("constrained-", "function-", "literal[", "tuple[", "[key]", "nullable[")
    parts = [str(part) for part in detail["loc"] if not str(part).startswith(branches)]
    # A variant may have such a name, too.
    return tuple(parts[:-1] if len(parts) > 2 and parts[-1] in ("int", "float", "str") else parts)


def _message(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in KINDS:
        return KINDS[kind]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "too_short":
        return f"must have at least {context['min_length']} values"
    if kind == "too_long":
        return f"must have at most {context['max_length']} values"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}"
    return detail["msg"].replace("Input should be", "must be").removeprefix("Value error, ")


def _not_a_name(value: Any) -> str:
    """What is wrong with a key that YAML does not read as a text."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", type(None): "nothing"}
    kind = "a date" if isinstance(value, datetime.date) else kinds.get(type(value), "no text")
    written = yaml.safe_dump(value, default_flow_style=True, width=LONGEST_VALUE).splitlines()[0]
    return f"the key {written} is {kind} for YAML; write quotes around it if it is a name"


def unknown(
    place: str, kind: str, name: str, allowed: Sequence[str], before: str = "", rest: str = ""
) -> str:
    """A sentence about a name that does not exist, with the one that was probably meant.

    Args:
        place: where the name stands.
        kind: what it names.
        name: the name.
        allowed: the names that exist.
        before: what stands before the name where it is written.
        rest: what stands behind it.
    """
    hint = did_you_mean(name, allowed, lambda near: f"`{before}{near}{rest}`")
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

"""YAML read strictly: no key twice, no number of two meanings, and aliases that cannot grow without limit."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, SequenceNode

from pipeline.parameters.messages import ParameterError

LARGEST = 100_000
"""Greatest number of values in a file, each alias counted in full."""

OCTAL = re.compile(r"[-+]?0[0-9_]+")
"""Numbers that are octal in YAML 1.1 and decimal in YAML 1.2, which DVC reads."""

BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
"""Numbers that YAML 1.1 reads in base 60, and YAML 1.2 as texts."""

COMPOSE = "`python -m pipeline params` writes the default run"


def read(file: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ParameterError: the file does not exist or is not valid.
    """
    if file.is_dir():
        raise ParameterError(f"{file} is a folder; allowed: a YAML file. Move it away; {COMPOSE}")
    if not file.is_file():
        raise ParameterError(f"{file}: no such file; run from the root of the repository")
    try:
        values = parse(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ParameterError(f"{file} is not text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ParameterError(f"{file} could not be read: {error.strerror}") from error
    except RecursionError as error:
        raise ParameterError(f"{file} is nested too deeply") from error
    # A number of thousands of digits is a ValueError, not YAML's own error.
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise ParameterError(f"{file} is empty; {COMPOSE}")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else f"{str(values)[:40]!r}"
        raise ParameterError(f"{file} holds {kind}; allowed: keys with values. {COMPOSE.capitalize()}")
    return values


def parse(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError, ValueError: it is not valid.
        AmbiguousNumberError: a number in it has two meanings.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    check_numbers(text)
    return _construct(loader, node)


def check_numbers(text: str) -> None:
    """Look for numbers that two versions of YAML read differently, in keys and in values.

    Raises:
        AmbiguousNumberError: there is one; the message names it and its line.
        yaml.YAMLError: the text is not valid YAML.
    """
    for event in yaml.parse(text, Loader=_Parser):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            octal = OCTAL.fullmatch(event.value) is not None
            if octal or BASE_60.fullmatch(event.value):
                what = (
                    "begins with a zero, so that it may be octal" if octal else "may be a number in base 60"
                )
                raise AmbiguousNumberError(
                    f"line {event.start_mark.line + 1}: {event.value} {what}; write a decimal number "
                    "without a leading zero, or quotes around a text"
                )


class AmbiguousNumberError(yaml.YAMLError):
    """A number that two versions of YAML read differently."""


_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(yaml.SafeLoader):
    """YAML's plain types, and no key twice in one mapping, of which YAML would take the last."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            keys.add(name)
        return super().construct_mapping(node, deep)


def _construct(loader: _Loader, node: Node) -> Any:
    if _size(node, {}, set()) > LARGEST:
        raise yaml.YAMLError(f"it holds more than {LARGEST:,} values, counting each alias in full")
    return loader.construct_document(node)


def _size(node: Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Number of values below a node; an alias is the node that it stands for."""
    if id(node) in open_nodes:
        raise yaml.YAMLError(f"an alias contains itself{node.start_mark}")
    if id(node) not in sizes:
        open_nodes.add(id(node))
        parts: list[Node] = []
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            parts = node.value
        sizes[id(node)] = 1 + sum(_size(part, sizes, open_nodes) for part in parts)
        open_nodes.remove(id(node))
    return sizes[id(node)]

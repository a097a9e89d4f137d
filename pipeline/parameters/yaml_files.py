"""`params.yaml` read strictly: no key twice, and aliases that cannot grow without a limit."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, SequenceNode

from pipeline.parameters.messages import ParameterError

LARGEST = 100_000
"""Greatest number of values in a file, each alias counted in full."""

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
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        values = None if node is None else _construct(loader, node)
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

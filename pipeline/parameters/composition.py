"""`params.yaml`, composed from `configs/` and from changes that are taken as they stand.

`dvc exp run -S KEY=VALUE` reads its values in Hydra's grammar, in which brackets, commas, `=`, blanks and
most letters outside ASCII have to be quoted. Here, no character of a text has a meaning.
"""

from collections.abc import Sequence
from types import NoneType
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import files, paths
from pipeline.errors import DistilleryError
from pipeline.parameters import checks, messages, spelling


class CompositionError(DistilleryError):
    """The parameters cannot be composed; the message names the key, the group or the file."""


def write(words: Sequence[str]) -> None:
    """Write `params.yaml`; with changes, check the values first.

    Args:
        words: a file of `configs/` without its ending, ``GROUP=NAME``, and ``KEY=VALUE``.

    Raises:
        CompositionError: the values cannot be composed.
        ParameterError: a file, a group or a key does not exist, or a value is not valid.
    """
    values = merged(words)
    if words and "=" in "".join(words):
        checks.check(values, str(paths.PARAMETERS))
    files.write(paths.PARAMETERS, dump(values))


def merged(words: Sequence[str]) -> dict[str, Any]:
    """The composed values with the changes."""
    names = [word for word in words if "=" not in word]
    pairs = [word.partition("=")[::2] for word in words if "=" in word]
    groups = [f"{key}={value}" for key, value in pairs if spelling.is_group(key)]
    if len(names) > 1:
        raise CompositionError(f"{' '.join(names)}: one file of {paths.CONFIGS}/ is allowed, or KEY=VALUE")
    for name in names:
        spelling.check_file(name)
    spelling.check(words)
    values = composed(names[0] if names else "config", groups)
    for key, text in pairs:
        if not spelling.is_group(key):
            _set(values, key, text)
    return values


def composed(name: str = "config", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a file of `configs/` and of the groups that it names."""
    try:
        with initialize_config_dir(str(paths.CONFIGS.resolve()), version_base=None):
            values = OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise CompositionError(f"{paths.CONFIGS}: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def dump(values: Any) -> str:
    """YAML in which a text stays a text for YAML 1.1 and 1.2; DVC reads the second, in which `1e3` is one
    thousand."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    place: Any = values
    for depth, part in enumerate(parents):
        if isinstance(place, dict) and part not in place:
            raise CompositionError(messages.unknown(key, "key", part, list(place)))
        place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise CompositionError(f"{key}: no such key ({'.'.join(parents[: depth + 1])} has no keys)")
    if not last:
        raise CompositionError(f"{key}={text}: the key is missing; allowed: KEY=VALUE")
    place[last] = _value(text, place.get(last))


def _value(text: str, default: Any) -> Any:
    """A text as it stands where a text belongs, and YAML elsewhere."""
    if isinstance(default, str) and text != "null":
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if isinstance(value, bool | int | float | list | dict | NoneType) else text


class _Dumper(yaml.SafeDumper):
    """Plain YAML, with quotes around texts that look like numbers in any version of YAML."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _looks_like_a_number(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _looks_like_a_number(text: str) -> bool:
    if text.isascii() and text[:2].lower() in ("0o", "0x"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii()


_Dumper.add_representer(str, _represent_text)

"""`params.yaml`, composed from `configs/` and from changes that are taken as they stand.

`dvc exp run -S KEY=VALUE` reads its values in Hydra's grammar, in which brackets, commas, `=`, blanks and
most letters outside ASCII have to be quoted. Here, no character of a text has a meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline import files, paths
from pipeline.errors import DistilleryError, did_you_mean
from pipeline.parameters import checks, messages, spelling, yaml_files
from pipeline.settings import merge

MISSING = "???"
"""Value of a key of a group that has to be given."""


class CompositionError(DistilleryError):
    """The parameters cannot be composed; the message names the key, the group or the file."""


def write(words: Sequence[str]) -> list[str]:
    """Write `params.yaml`; with changes, check the values first.

    Args:
        words: a file of `configs/` without its ending, ``GROUP=NAME``, and ``KEY=VALUE``.

    Returns:
        One sentence per group that takes precedence over values of the file.

    Raises:
        CompositionError: the values cannot be composed.
        ParameterError: a file, a group or a key does not exist, or a value is not valid.
    """
    values, notes = merged(words)
    if words and "=" in "".join(words):
        checks.check(values, str(paths.PARAMETERS))
    files.write(paths.PARAMETERS, dump(values))
    return notes


def merged(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The composed values with the changes, and one sentence per group that takes precedence over the file.

    Values of single keys take precedence over groups, and both over the values that the file itself sets,
    wherever they stand among the words.

    Raises:
        CompositionError: a file, a group or a key does not exist, or a value is not valid YAML.
    """
    spelling.check_once(words)
    names = [word for word in words if "=" not in word]
    pairs = [word.partition("=")[::2] for word in words if "=" in word]
    groups = {key: check_member(key, text) for key, text in pairs if _is_choice(key, text)}
    if len(names) > 1:
        raise CompositionError(f"{' '.join(names)}: one file of {paths.CONFIGS}/ is allowed, or KEY=VALUE")
    name = names[0] if names else "config"
    if name not in (files := sorted(file.stem for file in paths.CONFIGS.glob("*.yaml"))):
        allowed = f"allowed: {', '.join(files)}, GROUP=NAME and KEY=VALUE"
        raise CompositionError(f"{name!r}: no such file of {paths.CONFIGS}/{_hint(name, files)}; {allowed}")
    spelling.check([f"{key}={text}" for key, text in pairs if not _is_choice(key, text)])
    values, notes = _choose(name, groups)
    for key, text in pairs:
        if not _is_choice(key, text):
            _set(values, key, text)
    return values, notes


def composed(name: str = "config", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a file of `configs/` and of the groups that it names.

    Raises:
        CompositionError: they cannot be composed.
    """
    return _compose(name, overrides)[0]


def check_member(group: str, name: str) -> str:
    """The name, if it is that of a member of a group of `configs/`.

    Raises:
        CompositionError: there is no such member.
    """
    members = sorted(file.stem for file in (paths.CONFIGS / group).glob("*.yaml"))
    if name not in members:
        raise CompositionError(
            f"{group} = {name!r}: no such file of {paths.CONFIGS / group}/{_hint(name, members)}; "
            f"allowed: {', '.join(members)}"
        )
    return name


def dump(values: Any) -> str:
    """YAML in which a text stays a text for YAML 1.1 and 1.2; DVC reads the second, in which `1e3` is one
    thousand."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _is_choice(key: str, text: str) -> bool:
    """Whether a change chooses a member of a group, rather than giving all values of a section."""
    return spelling.is_group(key) and not text.lstrip().startswith(("{", "["))


def _hint(name: str, names: Sequence[str]) -> str:
    return did_you_mean(name.removeprefix(f"{paths.CONFIGS}/").removesuffix(".yaml"), names)


def _compose(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values, and the member of each group in the order in which they are composed."""
    _check_numbers()
    try:
        with initialize_config_dir(str(paths.CONFIGS.resolve()), version_base=None):
            config = compose(name, list(overrides), return_hydra_config=True)
            # Hydra lists them from the last to the first.
            choices = {
                str(group): str(member)
                for group, member in reversed(config.hydra.runtime.choices.items())
                if spelling.is_group(str(group))
            }
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            values = OmegaConf.to_container(config, resolve=True)
    # For files that are no configurations, Hydra raises errors of many kinds, such as TypeError.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CompositionError(f"{paths.CONFIGS}: {name} could not be composed: {reason}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}, choices


def _check_numbers() -> None:
    for file in sorted(paths.CONFIGS.rglob("*.yaml")):
        try:
            yaml_files.check_numbers(file.read_text(encoding="utf-8"))
        except yaml_files.AmbiguousNumberError as error:
            raise CompositionError(f"{file}, {error}") from None
        except (yaml.YAMLError, OSError, ValueError):
            continue  # Hydra says what is wrong, if the file is used


def _choose(name: str, groups: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Compose a file with other members of groups, whose values take precedence over those of the file."""
    values, choices = _compose(name, [f"{group}={member}" for group, member in groups.items()])
    together: dict[str, Any] = {}
    for group, member in choices.items() if groups else ():
        together = merge(together, composed(f"{group}/{member}"))
    notes = []
    for group, member in groups.items():
        chosen = _select(together, composed(f"{group}/{member}"))
        if differing := list(_differing(values, chosen)):
            file = paths.CONFIGS / f"{name}.yaml"
            notes.append(f"{group}={member} takes precedence over {file} in {', '.join(differing)}")
        values = merge(values, chosen)
    return values, notes


def _select(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The values at the given keys, at any depth, apart from those that have to be given."""
    return {
        key: _select(values[key], inner)
        if isinstance(inner, Mapping) and isinstance(values[key], Mapping)
        else values[key]
        for key, inner in keys.items()
        if values[key] != MISSING
    }


def _differing(values: Any, changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys at which ``changes`` has other values."""
    for key, value in changes.items():
        before = values.get(key) if isinstance(values, Mapping) else None
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _differing(before, value, f"{prefix}{key}.")
        elif value != before:
            yield f"{prefix}{key}"


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
    try:
        place[last] = _value(text, place.get(last))
    except yaml_files.AmbiguousNumberError as error:
        raise CompositionError(f"{key} = {text!r}: {error}") from None


def _value(text: str, default: Any) -> Any:
    """A text as it stands where a text belongs, and YAML elsewhere; a number in quotes is a text."""
    if isinstance(default, str) and text != "null":
        return text
    try:
        value = yaml_files.parse(text)
    except yaml_files.AmbiguousNumberError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if isinstance(value, str) and text[0] in "'\"" and not _is_text(value):
        return value
    return value if isinstance(value, bool | int | float | list | dict | NoneType) else text


def _is_text(text: str) -> bool:
    """Whether YAML reads a text as one."""
    try:
        return isinstance(yaml_files.parse(text), str)
    except yaml_files.AmbiguousNumberError:
        return False
    except (yaml.YAMLError, ValueError, RecursionError):
        return True


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

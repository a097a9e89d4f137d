"""Keys and files of `configs/` as a person types them: which do not exist, and what was probably meant."""

import difflib
from collections.abc import Iterator, Sequence

from pipeline import paths
from pipeline.parameters import messages
from pipeline.parameters.messages import ParameterError
from pipeline.parameters.sections import Parameters
from pipeline.parameters.variants import OPERATIONS


def check(words: Sequence[str]) -> None:
    """Check the keys of ``KEY=VALUE`` and the files of ``GROUP=NAME``.

    Hydra's signs for adding and removing keys, and what is below `variants`, are left to Hydra.

    Raises:
        ParameterError: some do not exist; the message names what was probably meant, and what is allowed.
    """
    problems = [problem for word in words for problem in _problems(word)]
    if problems:
        raise ParameterError(*problems)


def check_once(words: Sequence[str]) -> None:
    """Check that no key of ``KEY=VALUE`` or ``GROUP=NAME`` is given two values.

    Raises:
        ParameterError: one is; one line per key.
    """
    values: dict[str, list[str]] = {}
    for key, sign, value in (word.partition("=") for word in words):
        if sign and value not in values.setdefault(key, []):
            values[key].append(value)
    if problems := [
        f"{key}: it is given {len(v)} values ({', '.join(v)}); one is allowed"
        for key, v in values.items()
        if len(v) > 1
    ]:
        raise ParameterError(*problems)


def is_group(key: str) -> bool:
    """Whether a key is a folder of `configs/`, of which one file is taken."""
    return key.isidentifier() and (paths.CONFIGS / key).is_dir()


def check_file(name: str) -> None:
    """Check the name of a file directly below `configs/`, without its ending.

    Raises:
        ParameterError: there is no such file.
    """
    if name not in (names := _files("")):
        raise ParameterError(messages.unknown(f"{paths.CONFIGS}/{name}.yaml", "file", name, names))


def _problems(word: str) -> Iterator[str]:
    key, sign, value = word.partition("=")
    if not sign or not key or key[0] in "+~" or not {"@", "/"}.isdisjoint(key):
        return
    if is_group(key):
        names = _files(key)
        for name in value.split(","):  # several are a grid of experiments
            if name.isidentifier() and name not in names:
                yield messages.unknown(f"{key}={name}", f"file in {paths.CONFIGS}/{key}", name, names)
        return
    first, *rest = key.split(".")
    keys = list(Parameters.model_fields)
    if first not in keys:
        names = list(dict.fromkeys([*keys, *_groups()]))
        tail = "".join(f".{part}" for part in rest)
        near = next(iter(difflib.get_close_matches(first, keys, n=1)), None)
        yield messages.unknown(
            key, "key", first, names, rest="" if near is None or any(_problems(f"{near}{tail}=")) else tail
        )
        return
    if first == "variants":
        return
    section, depth = (OPERATIONS[first], 1) if first in OPERATIONS else (Parameters, 0)
    parts = [first, *rest][depth:]
    for index, part in enumerate(parts):
        allowed = messages.keys_at(section, parts[:index])
        if not allowed or part.isdigit():
            return  # a list, or values of any kind
        if part not in allowed:
            before = "".join(f"{name}." for name in key.split(".")[: index + depth])
            after = "".join(f".{name}" for name in parts[index + 1 :])
            yield messages.unknown(key, "key", part, allowed, before, after)
            return


def _files(group: str) -> list[str]:
    return sorted(file.stem for file in (paths.CONFIGS / group).glob("*.yaml"))


def _groups() -> list[str]:
    return sorted(folder.name for folder in paths.CONFIGS.iterdir() if is_group(folder.name))

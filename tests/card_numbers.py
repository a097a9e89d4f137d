"""Where the numbers of a model card come from."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SCALES = {
    "%": 100,
    " points": 100,
    " MB": 1e-6,
    " M": 1e-6,
    " ms": 1,
    " minutes": 1 / 60,
    " hours": 1 / 3600,
    " Wh": 1000,
    " mWh": 1e6,
    " g": 1,
    " mg": 1000,
    " images/s": 1,
    " times": 1,
}
"""From the unit in which the artifacts hold a value to the one in which the card shows it."""

NUMBER = re.compile(
    r"(?<![\w.,/-])([+\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?)"
    rf"({'|'.join(sorted(map(re.escape, SCALES), key=len, reverse=True))})?(?![\w])"
)
NO_PROSE = (r"\A---\n.*?\n---\n", r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)")
"""Front matter and code, which other tests read; and addresses."""
NO_FIGURES = (r"95% intervals? ?", r"90% or more", r"top-1")
"""Words that have digits in them."""

NOT_READ = {"predictions", "quantization"}
"""Long lists that no card tells of."""


def unexplained(card: str, artifacts: Path, parameters: Path) -> list[str]:
    """The numbers of a card that are in no artifact, each with what stands around it."""
    known, words = values(artifacts, parameters)
    text = prose(card, words)
    return [
        " ".join(text[max(0, start - 40) : end + 20].split())
        for start, end, number, unit in numbers(text)
        if not _is_known(number, unit, known)
    ]


def values(artifacts: Path, parameters: Path) -> tuple[set[float], set[str]]:
    """Numbers and words of all that is measured and configured, and the few that follow from them."""
    found = [value for value in _values(artifacts, parameters) if value is not None]
    return {float(v) for v in found if not isinstance(v, str)}, {
        v.rstrip(".") for v in found if isinstance(v, str)
    }


def prose(card: str, words: set[str]) -> str:
    """A card without front matter, code, and names and sentences that artifacts hold as they are."""
    text = card
    for pattern in NO_PROSE:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    for word in sorted(words, key=len, reverse=True):
        if re.search(r"\d", word) and re.search(r"[a-z]", word):
            text = text.replace(word, "").replace(word.replace("_", " "), "")
    for pattern in NO_FIGURES:
        text = re.sub(pattern, "", text)
    return text


def numbers(text: str) -> list[tuple[int, int, str, str | None]]:
    """Place, digits and unit of each number; the ends of an interval have the unit of its figure."""
    found: list[tuple[int, int, str, str | None]] = []
    for match in NUMBER.finditer(text):
        unit = match[2]
        if unit is None and found and text[found[-1][1] : match.start()] in (" (", " to "):
            unit = found[-1][3]
        found.append((match.start(), match.end(), match[1], unit))
    return found


def _is_known(number: str, unit: str | None, known: set[float]) -> bool:
    plain = number.replace(",", "").replace("\N{MINUS SIGN}", "-")
    half = 0.5 * 10 ** -len(plain.partition(".")[2]) * (1 + 1e-9)
    scale = 1 if unit is None else SCALES[unit]
    return any(abs(scale * value - float(plain)) <= half for value in known)


def _values(artifacts: Path, parameters: Path) -> Iterator[Any]:
    yield from _leaves(yaml.safe_load(parameters.read_text()))
    files = sorted(artifacts.glob("**/*.json"))
    assert artifacts / "benchmark.json" in files
    for file in files:
        if "checkpoints" not in file.parts:
            yield from _leaves(json.loads(file.read_text()))
    for file in artifacts.glob("**/history.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        yield from _leaves(lines)
        yield sum(line["seconds"] for line in lines)
    for line in csv.DictReader((artifacts / "report" / "variants.csv").read_text().splitlines()):
        for cell in line.values():
            try:
                yield float(cell)
            except ValueError:
                yield cell


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if {"n", "correct"} <= value.keys() and value["n"]:
            yield value["correct"] / value["n"]
        for key, inner in value.items():
            yield key
            if key not in NOT_READ:
                yield from _leaves(inner)
    elif isinstance(value, list):
        yield len(value)
        for inner in value:
            yield from _leaves(inner)
    elif not isinstance(value, bool):
        yield value

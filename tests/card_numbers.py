"""The numbers of a model card, and the values of the artifacts that they come from."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.report.figures import UNITS

SUFFIXES = sorted({unit.suffix for unit in UNITS.values() if unit.suffix}, key=len, reverse=True)
NUMBER = re.compile(
    r"(?<![\w.,/-])([+\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?)"
    rf"({'|'.join(map(re.escape, SUFFIXES))})?(?![\w])"
)
NO_PROSE = (r"\A---\n.*?\n---\n", r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)")
"""Front matter and code, which other tests read, and addresses."""
NO_FIGURES = (r"95 % intervals? ?", r"95 % CI", r"90 % or more", r"top-1")
"""Words that contain digits."""

NOT_READ = {"predictions", "quantization"}
"""Keys of long lists that no card shows."""


def values(artifacts: Path, parameters: Path) -> tuple[set[float], set[str]]:
    """Numbers and strings of everything that is measured and configured, and the few derived from them."""
    found = [value for value in _values(artifacts, parameters) if value is not None]
    return {float(v) for v in found if not isinstance(v, str)}, {
        v.rstrip(".") for v in found if isinstance(v, str)
    }


def prose(card: str, words: set[str]) -> str:
    """The card without front matter, code, and names and sentences that the artifacts contain."""
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
    """Start, end, digits and unit of each number; the ends of an interval have the unit of its figure."""
    found: list[tuple[int, int, str, str | None]] = []
    for match in NUMBER.finditer(text):
        unit = match[2]
        if unit is None and found and text[found[-1][1] : match.start()] in (" (", " to "):
            unit = found[-1][3]
        found.append((match.start(), match.end(), match[1], unit))
    return found


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

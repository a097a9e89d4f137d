"""The reference of all parameters, `docs/parameters.md`, written from the descriptions of the settings.

    python -m pipeline.parameters.reference

A test fails when the file no longer agrees with the settings and with `params.yaml`.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import paths
from pipeline.distillation.settings import Objective, StudentTraining, TeacherMember
from pipeline.parameters.sections import Parameters
from pipeline.parameters.variants import OPERATIONS, Variant
from pipeline.settings import Settings
from pipeline.training.settings import TrainingSettings

FILE = Path("docs/parameters.md")
INTRODUCTION = """\
# Parameters

All keys of `params.yaml`, with the values of the default run. `python -m pipeline.parameters.reference`
writes this file from the docstrings of `pipeline/*/settings.py`.

`dvc exp run -S KEY=VALUE` overrides one key, and `dvc exp run -S GROUP=NAME` takes another file of
`configs/GROUP/`. Each call starts from the defaults. Put permanent changes in `configs/`, then run
`make params` and `dvc repro`. All values are checked before any work starts.

`python -m pipeline params FILE GROUP=NAME KEY=VALUE` writes `params.yaml` from `configs/FILE.yaml`, or from
`config` if none is given. Values of keys take precedence over groups, and groups over what the file itself
sets. A text or path is taken as it stands. A number that begins with a zero (`010`) or looks like a time
(`1:30`) is refused, since YAML 1.1 and 1.2 read it differently; a text of that form needs quotes.
"""
SHARED: dict[str, tuple[str, type[Settings], tuple[str, ...]]] = {
    TrainingSettings.__name__: (
        "training",
        TrainingSettings,
        ("teacher.head", "teacher.full", "distill", "prune", "quantize"),
    ),
    Objective.__name__: (
        "objective",
        Objective,
        ("distill.objective", "prune.objective", "quantize.objective"),
    ),
}
"""Settings that lie at several keys, by class name: title, class, and these keys."""


def render(values: Mapping[str, Any]) -> str:
    """The reference as Markdown; ``values`` is the content of the default `params.yaml`."""
    parts = [INTRODUCTION]
    for name, field in Parameters.model_fields.items():
        kind = OPERATIONS.get(name, field.annotation)
        if name == "variants":
            listed = ", ".join(f"`{variant}`" for variant in values[name])
            more = (
                f"The default run has {listed}. All other keys of a variant are those of its operation, over "
                "whose section they take precedence for this variant alone."
            )
            parts.append(_section(name, Variant, {"default": {}}, prefix="variants.NAME.", more=more))
        elif isinstance(kind, type) and issubclass(kind, StudentTraining):
            more = "It has the keys of a [training](#training) and these:"
            inherited = [
                key for key in TrainingSettings.model_fields if key not in inspect.get_annotations(kind)
            ]
            places = {"default": values[name]}
            parts.append(_section(name, kind, places, prefix=f"{name}.", more=more, omit=inherited))
        elif isinstance(kind, type) and issubclass(kind, Settings):
            parts.append(_section(name, kind, {"default": values[name]}, prefix=f"{name}."))
        else:
            table = _table(
                Parameters, {"default": values}, "", [n for n in Parameters.model_fields if n != name]
            )
            parts.append(f"## `{name}`\n\n{table}")
    for title, kind, keys in SHARED.values():
        parts.append(_section(title, kind, {key: _at(values, key) for key in keys}, code=False))
    return "\n".join(parts)


def _section(
    title: str,
    kind: type[Settings],
    places: Mapping[str, Mapping[str, Any]],
    *,
    prefix: str = "",
    more: str = "",
    omit: Sequence[str] = (),
    code: bool = True,
) -> str:
    heading = f"`{title}`" if code else title.capitalize()
    texts = [
        f"## {heading}",
        " ".join((kind.__doc__ or "").split()),
        more,
        _table(kind, places, prefix, omit),
    ]
    return "\n\n".join(text for text in texts if text)


def _table(
    kind: type[Settings], places: Mapping[str, Mapping[str, Any]], prefix: str, omit: Sequence[str]
) -> str:
    columns = [
        "key",
        "value",
        *(place if place == "default" else f"`{place}`" for place in places),
        "description",
    ]
    if not kind.model_fields:
        return ""
    schema = kind.model_json_schema()
    rows = _rows(schema, schema.get("$defs", {}), prefix, list(places.values()), omit)
    return "".join(_line(row) for row in [columns, ["---"] * len(columns), *rows])


def _rows(
    schema: Mapping[str, Any],
    definitions: Mapping[str, Any],
    prefix: str,
    places: Sequence[Mapping[str, Any]],
    omit: Sequence[str] = (),
) -> Iterator[list[str]]:
    """One row per key, followed by the rows of the keys below it unless they have a table of their own."""
    for name, field in schema["properties"].items():
        if name in omit:
            continue
        key = f"{prefix}{name}"
        defaults = [_default(field, place, name) for place in places]
        yield [f"`{key}`", _allowed(field, definitions), *defaults, field.get("description", "")]
        for option in field.get("anyOf", [field]):
            reference = option.get("$ref") or option.get("items", {}).get("$ref")
            nested = reference and reference.rpartition("/")[2]
            if nested and nested not in SHARED and nested != TeacherMember.__name__:
                many = "items" in option
                inner = [{} if many else place.get(name) or {} for place in places]
                yield from _rows(definitions[nested], definitions, f"{key}{'[]' if many else ''}.", inner)


def _default(field: Mapping[str, Any], place: Mapping[str, Any], name: str) -> str:
    if name not in place and "default" not in field:
        return ""
    value = place.get(name, field.get("default"))
    return "below" if isinstance(value, Mapping) and value else f"`{_literal(value)}`"


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The allowed values in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(option, definitions) for option in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{_literal(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{_literal(schema['const'])}`"
    if "$ref" in schema:
        nested = schema["$ref"].rpartition("/")[2]
        if nested in SHARED:
            return f"[{SHARED[nested][0]}](#{SHARED[nested][0]})"
        return "keys above, except `ensemble`" if nested == TeacherMember.__name__ else "keys below"
    if schema.get("format") == "path":
        return "path"
    match schema["type"]:
        case "array" if "prefixItems" in schema:
            items = schema["prefixItems"]
            return f"list of {len(items)}; each item: {_allowed(items[0], definitions)}"
        case "array":
            return f"list; each item: {_allowed(schema['items'], definitions)}"
        case "boolean":
            return "`true`, `false`"
        case "object":
            return f"keys of any name; each value: {_allowed(schema['additionalProperties'], definitions)}"
        case kind:
            words = {
                "minimum": "from",
                "exclusiveMinimum": "above",
                "maximum": "to",
                "exclusiveMaximum": "below",
            }
            return kind + "".join(
                f" {word} {schema[key]:.15g}" for key, word in words.items() if key in schema
            )


def _at(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    for part in key.split("."):
        values = values[part]
    return values


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"


def main() -> None:
    """Write `docs/parameters.md`."""
    FILE.write_text(render(yaml.safe_load(paths.PARAMETERS.read_text())))


if __name__ == "__main__":
    main()

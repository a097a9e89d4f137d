"""The results page: `docs/results.md` and the tables in README.md, generated from `docs/results/*.json`.

    python -m benchmarks.results_page                        # write both pages from the data files
    python -m benchmarks.results_page record --minutes 31    # write default-run.json first

`record` reads the artifacts of a finished run of the default pipeline; the minutes are those of `make repro`.
The other data files are edited by hand after a benchmark: each measurement names its date, machine, images,
interval, versions and command; one with `readme` names the rows and columns of it that README.md shows, with
a sentence before and one after them. `tests/test_docs.py` fails when a page is not what the data files say.
"""

import argparse
import importlib.metadata
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.selection import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
DEFAULT_RUN = RESULTS / "default-run.json"
MACHINES = RESULTS / "machines.json"
SECTIONS = ("other-data", "int8-tools", "pruning-tools", "speed")
"""Data files of the sections below the default run, in the order of the page."""
BEGIN = "<!-- Generated from docs/results/*.json by `python -m benchmarks.results_page`. -->"
END = "<!-- End of what is generated. -->"
WIDTH = 100
"""Characters per line of prose."""
METRICS = {"top1": "top-1", "map": "mAP"}
PACKAGES = ("torch", "onnxruntime", "numpy")
"""Packages whose versions decide the figures of a run."""

Data = dict[str, Any]


def main() -> None:
    """Write the pages, after recording a run where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    command = commands.add_parser("record", help="write default-run.json from a finished run's artifacts")
    command.add_argument("--minutes", type=int, required=True, help="wall time of `make repro`")
    command.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: %(default)s")
    command.set_defaults(record=True)
    arguments = parser.parse_args()
    if "record" in arguments:
        run = record(arguments.artifacts, minutes=arguments.minutes, today=date.today())
        DEFAULT_RUN.write_text(json.dumps(run, indent=2) + "\n")
    PAGE.write_text(page())
    README.write_text(readme(README.read_text()))


def record(artifacts: Path, *, minutes: int, today: date) -> Data:
    """The figures of a finished run, as ``default-run.json`` holds them."""
    rows = table.read(artifacts / paths.REPORT.name / paths.VARIANTS.name)
    metric = rows[0].metric
    benchmark = json.loads((artifacts / "benchmark.json").read_text())
    teacher = json.loads((artifacts / "teacher" / "card.json").read_text())
    images = json.loads((artifacts / "data" / "report.json").read_text())["images"]
    machine = benchmark["machine"]
    return {
        "date": today.isoformat(),
        "command": "make repro",
        "minutes": minutes,
        "seeds": "one run, seed 0",
        "interval": "95 %: of scores over images, of differences over the same images as the parent's, "
        "of speeds over sessions",
        "metric": metric,
        "data": "Fashion-MNIST",
        "images": {split: images[split] for split in ("train", "val", "test")},
        "teacher": {
            "description": "EfficientNet-Lite0 from ImageNet weights",
            **{split: _percent(teacher[split][metric]) for split in ("val", "test")},
        },
        "machine": {
            "cpu": machine["cpu"],
            "flags": machine["flags"],
            "cores": machine["cores_usable"],
            "memory_gib": round(machine["memory_bytes"] / 2**30),
            "noise": "; ".join(benchmark["noise"]["reasons"]) or "quiet",
        },
        "timing": {
            "threads": 1,
            "batch_size": 1,
            "sessions": benchmark["settings"].get("sessions"),
        },
        "versions": {
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "python": machine["versions"]["python"],
        },
        "variants": [
            {
                "variant": row.variant,
                "parent": row.parent,
                "val": _percent(row.val_score),
                "score": [_percent(value) for value in (row.score, row.score_lo, row.score_hi)],
                "delta": [_percent(value) for value in (row.score_delta, row.delta_lo, row.delta_hi)],
                "verdict": row.verdict,
                "megabytes": row.size_bytes / 1e6,
                "macs_million": row.macs / 1e6,
                "latency_ms": round(row.latency_ms_p50, 3),
                "speed": [
                    round(benchmark["variants"][row.variant][f"ratio{end}"], 3) for end in ("", "_lo", "_hi")
                ],
            }
            for row in rows
        ],
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def page() -> str:
    """``docs/results.md``, from all data files."""
    run = _read(DEFAULT_RUN)
    sections = [_read(RESULTS / f"{name}.json") for name in SECTIONS]
    lines = [
        "# Results",
        "",
        "<!-- Generated from docs/results/*.json by `python -m benchmarks.results_page`; edit those. -->",
        "",
        _prose(
            "Every figure stands with its date, machine, number of images, interval, versions and command. "
            "Commands are those of their day: defaults may have changed since. The "
            "[dated records](results/README.md) hold every measurement in full, earlier ones too."
        ),
        "",
        _prose(
            " · ".join(
                f"[{title}](#{_anchor(title)})"
                for title in ("The default run", *(section["title"] for section in sections), "Machines")
            )
        ),
        "",
        *_default_run(run),
        *(line for section in sections for line in _section(section)),
        "## Machines",
        "",
        "All have 2 cores and 24 GiB of memory, no GPU, and are virtual machines on shared hosts.",
        "",
        *(_item(f"**{name}**: {words}.") for name, words in _read(MACHINES).items()),
    ]
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    """The README with the default run's table, and those that data files mark, between its markers anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    run = _read(DEFAULT_RUN)
    lines = [before + BEGIN, *_table(run), "", _prose(_about(run))]
    for name in SECTIONS:
        for measurement in _read(RESULTS / f"{name}.json")["measurements"]:
            if "readme" in measurement:
                lines += ["", *_excerpt(measurement, **measurement["readme"])]
    return "\n".join([*lines, END + after])


def _excerpt(measurement: Data, before: str, rows: list[str], columns: list[str], after: str) -> list[str]:
    """Some rows and columns of a measurement, in the order given."""
    header, lines = _cells(measurement)
    wanted = [header.index(name) for name in columns]
    by_name = {line[0]: [line[index] for index in wanted] for line in lines}
    return [
        _prose(before),
        "",
        *_markdown(columns, [by_name[name] for name in rows]),
        "",
        _prose(after),
    ]


def _default_run(run: Data) -> list[str]:
    images = "; ".join(f"{count:,} {split}" for split, count in run["images"].items())
    return [
        "## The default run",
        "",
        _prose(_about(run)),
        "",
        *_table(run, full=True),
        "",
        _facts(
            {
                "date": run["date"],
                "machine": _machine(run["machine"]),
                "images": images,
                "interval": run["interval"],
                "seeds": run["seeds"],
                "latency": f"{_count(run['timing']['threads'], 'thread')}, "
                f"{_count(run['timing']['batch_size'], 'image')}; machine noise: {run['machine']['noise']}",
                "versions": _versions(run["versions"]),
                "command": f"`{run['command']}`",
            }
        ),
        "",
    ]


def _about(run: Data) -> str:
    teacher, machine = run["teacher"], run["machine"]
    return (
        f"{run['data']}, {run['images']['train']:,} training images. The teacher, "
        f"{teacher['description']}, has {teacher['test']:.2f} % on the test split. Every file is scored on "
        f"all {run['images']['test']:,} test images in ONNX Runtime. `{run['command']}` took "
        f"{run['minutes']} minutes on {machine['cores']} cores ({_machine(machine)}); latency is that of one "
        "image on one thread."
    )


def _machine(machine: Data) -> str:
    flags = ", ".join(machine["flags"]).replace("_", "-").upper()
    return f"{machine['cpu']} with {flags}"


def _table(run: Data, *, full: bool = False) -> list[str]:
    metric = METRICS[run["metric"]]
    header = [
        "variant",
        f"{metric}, % (95 %)",
        "points vs parent (95 %)",
        "MB",
        "M MACs",
        "ms",
        "speed vs fp32 (95 %)",
    ]
    rows = [
        [
            row["variant"],
            _figure(row["score"], 2),
            f"{_figure(row['delta'], 2, signed=True)} vs {row['parent']}",
            _figure(row["megabytes"], 2),
            _figure(row["macs_million"], 0),
            _figure(row["latency_ms"], 2),
            _figure(row["speed"], 2),
            *([_figure(row["val"], 2), row["verdict"]] if full else []),
        ]
        for row in run["variants"]
    ]
    return _markdown([*header, *([f"{metric} on val, %", "gate"] if full else [])], rows)


def _section(section: Data) -> list[str]:
    lines = [f"## {section['title']}", "", _prose(section["summary"]), ""]
    for measurement in section["measurements"]:
        note = [_prose(measurement["note"]), ""] if "note" in measurement else []
        record = Path(measurement["record"])
        lines += [
            f"### {measurement['title']}",
            "",
            *_markdown(*_cells(measurement)),
            "",
            *note,
            _facts(
                {
                    "date": measurement["date"],
                    "machine": measurement["machine"],
                    "images": measurement["images"],
                    "interval": measurement["interval"],
                    "seeds": measurement["seeds"],
                    "versions": _versions(measurement["versions"]),
                    "command": f"`{measurement['command']}`",
                    "record": f"[{record.stem}]({'results' / record})",
                }
            ),
            "",
        ]
    return lines


def _cells(measurement: Data) -> tuple[list[str], list[list[str]]]:
    """The header of a measurement's table, and its rows."""
    columns = measurement["columns"]
    rows = [
        [
            _figure(value, column.get("digits"), signed=column.get("signed", False))
            for value, column in zip(row, columns, strict=True)
        ]
        for row in measurement["rows"]
    ]
    return [column["label"] for column in columns], rows


def _facts(facts: Mapping[str, str]) -> str:
    """One paragraph: the conditions under which a table was measured."""
    text = "; ".join(f"{name}: {value}" for name, value in facts.items())
    return _prose(text[0].upper() + text[1:] + ".")


def _figure(value: Any, digits: int | None, *, signed: bool = False) -> str:
    """A number, a number with the ends of its interval, or a text; a dash where nothing was measured."""
    if value is None:
        return "-"
    if isinstance(value, str) or digits is None:
        return str(value)
    sign = "+" if signed else ""
    if isinstance(value, list):
        point, low, high = value
        return f"{point:{sign},.{digits}f} ({low:{sign},.{digits}f} to {high:{sign},.{digits}f})"
    return f"{value:{sign},.{digits}f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _prose(text: str, indent: str = "") -> str:
    """Wrapped text; short code spans and links stay on one line."""
    whole = re.sub(r"`[^`]{1,60}`|\[[^]]{1,60}\]\([^)]*\)", lambda span: span[0].replace(" ", "\0"), text)
    wrapped = textwrap.fill(
        whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapped.replace("\0", " ")


def _item(text: str) -> str:
    return _prose(f"- {text}", indent="  ")


def _anchor(title: str) -> str:
    """GitHub's anchor of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def _read(path: Path) -> Data:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline.report import tables
from pipeline.report.card import card
from pipeline.report.evidence import Evidence
from pipeline.report.figures import figure
from pipeline.report.settings import CardSettings
from pipeline.report.tables import Entry, Row
from pipeline.selection import budget
from pipeline.tasks import METRICS
from tests import card_numbers
from tests.results import (
    DATA,
    TEACHER,
    TEACHER_HISTORY,
    as_attributes,
    benchmark,
    evidence,
    measured,
    results,
)

HEADINGS = """\
## Model Details
### Model Description
### Model Sources
## Uses
### Direct Use
### Downstream Use
### Out-of-Scope Use
### Bias, Risks, and Limitations
### Recommendations
## Training Details
### Training Data
### Training Procedure
#### Preprocessing
#### Training Hyperparameters
#### Speeds, Sizes, Times
## Evaluation
### Testing Data, Factors & Metrics
#### Testing Data
#### Factors
#### Metrics
### Results
#### Summary
## Model Examination
## Environmental Impact
## Technical Specification
### Model Architecture and Objective
### Compute Infrastructure
## Citation""".splitlines()
"""Of the card that was published for MobileNetV1 0.75/192."""

LABELS = (
    *(
        "Developed by",
        "Funded by",
        "Shared by",
        "Model type",
        "Language(s)",
        "License",
        "Finetuned from model",
    ),
    *("Repository", "Paper", "Demo"),
    *("Hardware Type", "Software Type", "Hours used", "Cloud Provider", "Carbon Emitted"),
)
SETTINGS = {
    "student": {"architecture": "mobilenet_v1", "width": 0.75, "size": 192},
    "views": {"per_image": 2, "crop_scale": [0.8, 1.0], "crop_ratio": [0.9, 1.1], "flip": 0.5},
    "budget": {"max_drop": 0.01, "max_size_bytes": 8_000_000},
    "card": CardSettings().model_dump(),
}
MEASURED = pytest.mark.parametrize("everything", [True, False], ids=["everything measured", "only scores"])


def written(
    folder: Path, everything: bool, max_drop: float = 0.02, said: Mapping[str, str] | None = None
) -> Path:
    """A run's artifacts, and the card made from them."""
    entries, answers, labels = results()
    table = tables.rows(entries, teacher=answers, labels=labels, max_drop=max_drop)
    entries = measured(entries) if everything else entries
    return write(
        folder,
        table,
        entries,
        evidence=evidence(entries, answers, folder / "explanations") if everything else None,
        benchmark=benchmark(entries, full=everything, noisy=everything),
        max_drop=max_drop,
        said=said,
    )


def write(
    folder: Path,
    table: list[Row],
    entries: list[Entry],
    *,
    evidence: Evidence | None,
    benchmark: dict[str, Any],
    max_drop: float = 0.02,
    said: Mapping[str, str] | None = None,
) -> Path:
    """Artifacts as the stages write them, and the card."""
    task = METRICS[table[0].metric]
    data = DATA | {"task": task.name}
    teacher = TEACHER | {"metric": task.metric, "test": {task.metric: 0.94, "n": 4000}}
    rule = {"size": 192, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear", "crop": 1.0}
    built = [
        {
            "variant": entry.variant,
            "parent": entry.parent,
            "op": entry.op,
            "start": "random weights",
            "settings": {"training": {"epochs": 3}},
            "arguments": {"channels": [24, 48]},
            "input": rule,
            "git_commit": "c0ffee",
            "versions": {"torch": "2.14.1"},
        }
        for entry in entries
    ]
    choice = budget.choose(table, **SETTINGS["budget"])
    text = card.render(
        table,
        entries,
        said=SETTINGS["card"] | dict(said or {}),
        student=SETTINGS["student"],
        built=built,
        views=SETTINGS["views"],
        teacher=teacher,
        teacher_history=TEACHER_HISTORY,
        data=data,
        benchmark=benchmark,
        max_drop=max_drop,
        choice=choice,
        evidence=evidence,
    )
    files = {
        "report/choice.json": asdict(choice),
        "benchmark.json": benchmark,
        "data/report.json": data,
        "teacher/card.json": teacher,
    }
    for entry, about in zip(entries, built, strict=True):
        own = {"parameters": entry.parameters, "macs": entry.macs}
        files[f"metrics/{entry.variant}.json"] = {**entry.scores, **own}
        files[f"models/{entry.variant}/card.json"] = about
    if evidence is not None:
        files |= {
            "comparison.json": evidence.comparison,
            "costs.json": evidence.costs,
            "robustness.json": evidence.robustness,
            "explanations/explanations.json": evidence.explanations,
        }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    histories = {"teacher": TEACHER_HISTORY} | {f"models/{entry.variant}": entry.history for entry in entries}
    for name, history in histories.items():
        (folder / name / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    tables.write_csv(folder / "report" / "variants.csv", table)
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS | {"gate": {"max_drop": max_drop}}))
    path = folder / "report" / "model_card.md"
    path.write_text(text)
    return path


def unexplained(path: Path, text: str | None = None) -> list[str]:
    folder = path.parents[1]
    return card_numbers.unexplained(text or path.read_text(), folder, folder / "params.yaml")


@MEASURED
def test_the_card_has_every_heading_and_field_of_the_published_one(tmp_path: Path, everything: bool) -> None:
    text = written(tmp_path, everything).read_text()
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = [line for line in outside_code.splitlines() if line.startswith("##")]
    assert headings == HEADINGS
    for above, below in itertools.pairwise(headings):
        between = text.split(f"\n{above}\n", 1)[1].split(f"\n{below}\n", 1)[0]
        assert between.strip() or below.startswith(above.split()[0] + "#"), above
    for label in LABELS:
        assert re.search(rf"^- \*\*{re.escape(label)}:\*\* \S.{{10,}}", text, re.MULTILINE), label


@MEASURED
def test_nothing_is_left_to_be_filled_in(tmp_path: Path, everything: bool) -> None:
    text = written(tmp_path, everything).read_text()
    prose = re.sub(r"```.*?```", "code", text, flags=re.DOTALL)
    assert not re.search(r"more information needed|\bnan\b|undefined|\{\{|\}\}", prose, re.IGNORECASE)
    assert not re.search(r"\bNone\b(?! of them| has been)", prose)
    assert "\n\n\n" not in prose


@MEASURED
def test_every_number_of_the_card_is_in_the_artifacts(tmp_path: Path, everything: bool) -> None:
    path = written(tmp_path, everything)
    assert unexplained(path) == []
    shown = card_numbers.numbers(path.read_text())
    assert len(shown) > (300 if everything else 100)


@MEASURED
def test_every_number_is_written_from_a_value_that_the_artifacts_hold_to_the_last_digit(
    tmp_path: Path, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    shown: Counter[str] = Counter()

    def recorded(value: int | float, *arguments: Any, **keywords: Any) -> str:
        text = figure(value, *arguments, **keywords)
        told.append(value)
        shown.update(number for _, _, number, _ in card_numbers.numbers(text))
        return text

    def recorded_span(lo: int | float, hi: int | float, unit: str, digits: int | None = None) -> str:
        return f"{recorded(lo, unit, digits, bare=True)} to {recorded(hi, unit, digits, bare=True)}"

    monkeypatch.setattr(card, "figure", recorded)
    monkeypatch.setattr(card, "span", recorded_span)
    path = written(tmp_path, everything)
    known, words = card_numbers.values(tmp_path, tmp_path / "params.yaml")
    # variants.csv has six decimals.
    held = known | {round(value, 6) for value in known}
    assert [value for value in told if value not in held and round(value, 6) not in held] == []
    # And the template writes none of its own.
    written_out = card_numbers.numbers(card_numbers.prose(path.read_text(), words))
    assert Counter(number for _, _, number, _ in written_out) - shown == Counter()


def test_a_number_that_was_changed_is_found_out(tmp_path: Path) -> None:
    path = written(tmp_path, everything=True)
    text = path.read_text()
    for number, wrong in (
        ("93.00%", "93.40%"),
        ("(92.17 to 93.75)", "(92.17 to 93.85)"),
        ("2.04 MB", "2.05 MB"),
        ("4,000 test images", "4,100 test images"),
        ("8.44 g", "8.54 g"),
        ("81.0% (79.0 to 83.0)", "81.3% (79.0 to 83.0)"),
    ):
        assert number in text
        assert unexplained(path, text.replace(number, wrong)), wrong


def test_hugging_face_reads_the_scores_from_the_front_matter(tmp_path: Path) -> None:
    path = written(tmp_path, everything=True, said={"license": "Apache-2.0", "language": "en"})
    read = ModelCard.load(path)
    assert str(read) == path.read_text()
    front = read.data.to_dict()
    assert (front["license"], front["language"]) == ("apache-2.0", "en")
    assert {"knowledge-distillation", "pruning", "quantization"} <= set(front["tags"])
    [result] = front["model-index"][0]["results"]
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        f"top-1 of {variant}.onnx": json.loads((tmp_path / f"metrics/{variant}.json").read_text())["top1"]
        for variant in ("fp32", "int8", "pruned", "pruned-int8")
    }


def test_what_nobody_configured_is_said_with_its_reason_and_its_key(tmp_path: Path) -> None:
    text = written(tmp_path, everything=False).read_text()
    assert (
        "- **Funded by:** Not stated: money leaves no trace in a training run, "
        "and `card.funded_by` of this run's configuration is null."
    ) in text
    said = {
        key: f"The {key} that was said."
        for key in CardSettings.model_fields
        if key not in ("license", "language")
    }
    text = written(tmp_path, everything=False, said=said).read_text()
    for sentence in said.values():
        assert sentence in text
    assert set(re.findall(r"`card\.(\w+)`", text)) == {"license"}


def test_what_was_not_measured_is_said_to_be_so(tmp_path: Path) -> None:
    text = written(tmp_path, everything=False).read_text()
    assert "- **Carbon Emitted:** not known: this run measured no energy." in text
    assert text.count("was not measured in this run") == 3
    everything = written(tmp_path, everything=True).read_text()
    assert "was not measured" not in everything
    assert "8.44 g of CO2" in everything
    assert "The machine was noisy (others took 0.8 cores)" in everything
    assert "- Object scale, of which nothing can be told: The background is not plain." in everything


def test_the_hyperparameters_are_those_that_were_applied(tmp_path: Path) -> None:
    path = written(tmp_path, everything=False)
    block = re.search(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    assert block is not None
    read = yaml.safe_load(block[1])
    assert read.pop("teacher") == TEACHER["settings"]
    for variant, settings in read.items():
        about = json.loads((tmp_path / f"models/{variant}/card.json").read_text())
        assert settings == {"parent": about["parent"], "op": about["op"], **about["settings"]}
    assert list(read) == ["fp32", "int8", "pruned", "pruned-int8"]


def test_the_card_says_that_training_images_were_reduced(tmp_path: Path) -> None:
    text = written(tmp_path, everything=False).read_text()
    assert "with more than 512 pixels in their shorter side were reduced to that" in text


def test_a_card_of_attributes_speaks_of_map(tmp_path: Path) -> None:
    entries, answers, labels = results()
    table = tables.rows(entries, teacher=answers, labels=labels, max_drop=0.02)
    path = write(tmp_path, *as_attributes(table, entries), evidence=None, benchmark=benchmark(entries))
    text = path.read_text()
    assert "mAP 93.00%" in text
    assert "an average precision of 91.7% on red, but 68.8% on green" in text
    assert not re.search(r"top-1|McNemar|Wilson", text)
    assert unexplained(path) == []


def test_a_run_without_an_accepted_variant_recommends_none(tmp_path: Path) -> None:
    text = written(tmp_path, everything=False, max_drop=0.0001).read_text()
    reason = "the gate accepts no variant together with all its ancestors"
    assert f"None of them is to be taken as it is: {reason}" in text
    assert "Ship none of them" in text
    assert f"None is recommended. By the budget, {reason}" in text


def test_the_card_recommends_what_the_budget_chooses_and_says_its_limits(tmp_path: Path) -> None:
    text = written(tmp_path, everything=False).read_text()
    assert "The one to take is **int8.onnx**" in text
    assert (
        "**int8** is recommended. By the budget, int8 is the most accurate accepted variant "
        "within 1.00 points of fp32 and 8,000,000 bytes: 93.00%"
    ) in text

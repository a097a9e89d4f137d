import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline.report import words
from pipeline.report.card import card
from pipeline.report.card import tables as card_tables
from pipeline.report.figures import figure, span
from pipeline.report.page import page
from pipeline.report.results import RunResults
from pipeline.report.settings import CardSettings
from pipeline.selection import budget, table
from tests import card_numbers, results

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
"""Headings of the card that was published for MobileNetV1 0.75/192."""

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
LIMITS = {"max_drop": 0.01, "max_size_bytes": 8_000_000}
MEASURED = pytest.mark.parametrize("everything", [True, False], ids=["everything measured", "only scores"])


def rendered(
    folder: Path | None = None,
    statements: Mapping[str, str] | None = None,
    variant: str = "int8",
    **options: Any,
) -> str:
    """The card of a variant; with a folder, of a run that has measured everything."""
    run = results.run(folder, limits=LIMITS, **options)
    return card.render(replace(run, statements={**run.statements, **(statements or {})}), variant)


def write(folder: Path, run: RunResults) -> None:
    """The artifacts of a run, as the stages write them."""
    evidence = run.evidence
    files = {
        "report/choice.json": asdict(run.choice),
        "benchmark.json": run.benchmark,
        "comparison.json": run.comparison,
        "data/report.json": run.data,
        "teacher/card.json": run.teacher,
        "costs.json": evidence.costs,
        "robustness.json": evidence.robustness,
        "explanations/explanations.json": evidence.explanations,
        "explanations/suspicious_labels.json": evidence.suspects,
        "litert/litert.json": evidence.litert,
    }
    histories = {"teacher": run.teacher_history}
    for one, about in zip(run.variants, run.model_cards, strict=True):
        own = {"parameters": one.parameters, "macs": one.macs}
        files[f"metrics/{one.variant}.json"] = {**one.scores, **own}
        files[f"models/{one.variant}/card.json"] = about
        histories[f"models/{one.variant}"] = one.history
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content))
    for name, history in histories.items():
        (folder / name / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    table.write(folder / "report" / "variants.csv", run.table)
    settings = {"student": run.student, "views": run.views, "budget": LIMITS, "card": dict(run.statements)}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))


def section(text: str, heading: str) -> str:
    """The text below one heading, up to the next."""
    return re.split(r"\n#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]


def labelled(text: str, label: str) -> str:
    """The text of one field, such as ``Funded by``."""
    found = re.search(rf"^- \*\*{re.escape(label)}:\*\* (.*)", text, re.MULTILINE)
    assert found is not None, label
    return found[1]


def rows(text: str, header: str) -> dict[str, list[str]]:
    """First cell to the other cells of each row of the table whose header begins like this."""
    lines = text[text.index(f"| {header}") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: line[1:] for line in cells[2:]}


@MEASURED
def test_the_card_has_every_heading_and_field_of_the_published_one(tmp_path: Path, everything: bool) -> None:
    text = rendered(tmp_path if everything else None)
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = [line for line in outside_code.splitlines() if line.startswith("##")]
    assert headings == HEADINGS
    for above, below in itertools.pairwise(headings):
        between = text.split(f"\n{above}\n", 1)[1].split(f"\n{below}\n", 1)[0]
        assert between.strip() or below.startswith(above.split()[0] + "#"), above
    for label in LABELS:
        assert len(labelled(text, label)) > 10, label


@MEASURED
def test_nothing_is_left_to_be_filled_in(tmp_path: Path, everything: bool) -> None:
    text = rendered(tmp_path if everything else None)
    prose = re.sub(r"```.*?```", "code", text, flags=re.DOTALL)
    assert not re.search(r"more information needed|\bnan\b|undefined|\{\{|\}\}", prose, re.IGNORECASE)
    assert not re.search(r"\bNone\b(?! of them)", prose)
    assert "\n\n\n" not in prose
    assert not re.search(r"\S *- \*\*|\S\n#", prose)


@MEASURED
def test_every_number_is_written_from_a_value_that_the_artifacts_hold_to_the_last_digit(
    tmp_path: Path, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[float] = []
    shown: Counter[str] = Counter()

    def recorded(value: int | float, *arguments: Any, **keywords: Any) -> str:
        text = figure(value, *arguments, **keywords)
        values.append(value)
        shown.update(number for _, _, number, _ in card_numbers.numbers(text))
        return text

    def recorded_span(lo: int | float, hi: int | float, unit: str, digits: int | None = None) -> str:
        return f"{recorded(lo, unit, digits, bare=True)} to {recorded(hi, unit, digits, bare=True)}"

    for module in (card, card_tables, words):
        monkeypatch.setattr(module, "figure", recorded)
        if hasattr(module, "span"):
            monkeypatch.setattr(module, "span", recorded_span)
    run = results.run(tmp_path if everything else None, limits=LIMITS)
    text = card.render(run, "pruned-int8")
    write(tmp_path, run)
    known, strings = card_numbers.values(tmp_path, tmp_path / "params.yaml")
    # variants.csv has six decimals; a loss is written as a positive number.
    held = {sign * value for value in known for sign in (1, -1)}
    held |= {round(value, 6) for value in held}
    assert [value for value in values if value not in held and round(value, 6) not in held] == []
    # And the template writes no number of its own.
    written = card_numbers.numbers(card_numbers.prose(text, strings))
    assert Counter(number for _, _, number, _ in written) - shown == Counter()
    assert sum(shown.values()) > (250 if everything else 90)


def test_labels_that_a_table_gave_are_counted_on_the_card(tmp_path: Path) -> None:
    run = results.run(tmp_path, limits=LIMITS)
    noisy = replace(run, data={**run.data, "relabelled": 2257})
    assert figure(2257) in section(card.render(noisy, "int8"), "### Training Data")
    assert figure(2257) not in section(card.render(run, "int8"), "### Training Data")


def test_hugging_face_reads_the_scores_from_the_front_matter(tmp_path: Path) -> None:
    text = rendered(tmp_path, {"license": "Apache-2.0", "language": "en"})
    (tmp_path / "card.md").write_text(text)
    read = ModelCard.load(tmp_path / "card.md")
    assert str(read) == text
    front = read.data.to_dict()
    assert (front["license"], front["language"]) == ("apache-2.0", "en")
    assert {"knowledge-distillation", "quantization"} <= set(front["tags"])
    assert "pruning" not in front["tags"]
    [result] = front["model-index"][0]["results"]
    [score] = [row.score for row in results.run().table if row.variant == "int8"]
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {"top-1 of int8.onnx": score}


def test_a_field_that_nobody_configured_names_its_key() -> None:
    text = rendered()
    for label, key in (("Funded by", "funded_by"), ("Demo", "demo"), ("Cloud Provider", "cloud_provider")):
        assert f"`card.{key}`" in labelled(text, label)
    statements = {
        key: f"The stated {key}." for key in CardSettings.model_fields if key not in ("license", "language")
    }
    text = rendered(statements=statements)
    for statement in statements.values():
        assert statement in text
    assert set(re.findall(r"`card\.(\w+)`", text)) == {"license"}


def test_the_card_says_what_was_not_measured(tmp_path: Path) -> None:
    text, everything = rendered(), rendered(tmp_path)
    assert section(text, "### Bias, Risks, and Limitations").count("not measured") == 3
    assert "not measured" not in section(everything, "### Bias, Risks, and Limitations")
    assert not re.search(r"\d", labelled(text, "Carbon Emitted"))
    assert labelled(everything, "Carbon Emitted").startswith("2.71 g")
    assert "others took 0.8 cores" in section(everything, "#### Speeds, Sizes, Times")


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("Hugging Face /home/me/my models/imagenet", "Hugging Face imagenet"),
        ("Hugging Face ../weights/imagenet", "Hugging Face imagenet"),
        ("timm ~/weights/best.pth", "timm best.pth"),
        ("Hugging Face google/mobilenet_v1_0.75_192", "Hugging Face google/mobilenet_v1_0.75_192"),
        ("variant fp32 of an earlier run (/data/run/models/fp32)", "variant fp32 of an earlier run (fp32)"),
        ("random weights", "random weights"),
    ],
)
def test_the_card_does_not_tell_the_folders_of_the_machine_that_trained(origin: str, shown: str) -> None:
    assert words.without_folders(origin) == shown


@MEASURED
@pytest.mark.parametrize("variant", results.CHAIN)
def test_the_numbers_of_every_card_are_those_of_its_variant(
    variant: str, tmp_path: Path, everything: bool
) -> None:
    run = results.run(tmp_path if everything else None, limits=LIMITS)
    text = card.render(run, variant)
    [row] = [row for row in run.table if row.variant == variant]
    lead = text.split("# Model Card for ", 1)[1].split("\n\n", 2)[1]
    assert lead.startswith(f"**{variant}.onnx**")
    for value in (
        f"{figure(row.score, '%')} (95 % interval {span(row.score_lo, row.score_hi, '%')})",
        figure(row.size_bytes, "MB"),
        figure(row.latency_ms_p50, "ms"),
    ):
        assert value in lead
    front = yaml.safe_load(text.split("---\n")[1])["model-index"][0]
    [scored] = front["results"][0]["metrics"]
    assert (scored["name"], scored["value"]) == (f"top-1 of {variant}.onnx", row.score)
    assert f'InferenceSession("{variant}.onnx")' in text
    made_from = {"fp32", *(["pruned"] if variant == "pruned-int8" else []), variant}
    others = set(results.CHAIN) - made_from - {str(run.choice.variant)}
    for other in others:
        assert not re.search(rf"(?<![\w-]){other}(?![\w-])", text), other
    assert set(rows(text, "variant | made by")) == {f"{name}.onnx" for name in made_from}
    verdict = section(text, "### Recommendations")
    assert ("Do not use" in verdict) == (row not in budget.accepted(run.table))


def test_only_the_card_of_the_recommended_variant_recommends_it() -> None:
    run = results.run(limits=LIMITS)
    assert run.choice.variant == "int8"
    cards = {row.variant: card.render(run, row.variant) for row in run.table}
    assert [name for name, text in cards.items() if run.choice.reason in text] == ["int8"]
    for text in cards.values():
        assert "int8" in section(text, "#### Summary")


def test_the_card_shows_every_measurement(tmp_path: Path) -> None:
    text = rendered(tmp_path, variant="pruned-int8")
    found = section(text, "### Results")
    run = results.run(tmp_path)
    for row in (row for row in run.table if row.variant != "int8"):
        cells = rows(found, "variant | made by")[f"{row.variant}.onnx"]
        assert cells[1].startswith(figure(row.score, "%"))
        assert cells[2].startswith(figure(row.score_delta, "points"))
        assert cells[3] == row.verdict
    assert rows(found, "corruption")["fog"] == ["59.4 %"] * 3
    assert rows(found, "images | variant")["noise"] == ["pruned-int8", "48.6 %", "5.8 %", "0.957"]
    assert rows(found, "variant | ECE")["teacher"][0] == "2.10 % (1.70 to 2.50)"
    assert rows(found, "brightness")["0.10 to 0.42"] == ["2,000", "91.4 % (90.2 to 92.6)"]
    assert rows(found, "class")["red"][0] == "1,334"


def test_the_hyperparameters_are_those_that_were_applied() -> None:
    run = results.run()
    block = re.search(r"```yaml\n(.*?)```", rendered(), re.DOTALL)
    assert block is not None
    read = yaml.safe_load(block[1])
    assert read.pop("teacher") == run.teacher["settings"]
    assert read == {
        about["variant"]: {"parent": about["parent"], "op": about["op"], **about["settings"]}
        for about in run.model_cards
        if about["variant"] in ("fp32", "int8")
    }
    assert list(read) == ["fp32", "int8"]


def test_the_card_says_to_which_size_training_images_were_reduced() -> None:
    assert "512 pixels" in section(rendered(), "### Training Data")


def test_a_card_of_attributes_shows_map_and_no_statistics_of_classes() -> None:
    text = rendered(attributes=True)
    assert rows(text, "variant | made by | mAP")["int8.onnx"][1].startswith("93.00 %")
    risks = section(text, "### Bias, Risks, and Limitations")
    assert {"91.7 %", "68.8 %"} <= set(re.findall(r"[\d.]+ %", risks))
    assert not re.search(r"top-1|McNemar|Wilson", text)


def test_a_run_without_an_accepted_variant_recommends_none() -> None:
    run = results.run(max_drop=0.0001, limits=LIMITS)
    assert run.choice.variant is None
    for row in run.table:
        text = card.render(run, row.variant)
        summary, advice = section(text, "#### Summary"), section(text, "### Recommendations")
        assert run.choice.reason in summary
        assert "**" not in summary
        assert "Do not use" in advice


def test_the_card_recommends_what_the_budget_chooses_and_says_why() -> None:
    run = results.run(limits=LIMITS)
    text = rendered()
    assert run.choice.variant == "int8"
    assert "**int8**" in section(text, "#### Summary")
    assert run.choice.reason in section(text, "#### Summary")
    assert "fp32 \N{RIGHTWARDS ARROW} int8" in section(text, "### Recommendations")


def test_a_training_of_another_machine_has_no_duration_on_the_card_and_on_the_page(tmp_path: Path) -> None:
    run = results.run(tmp_path)
    bare = [
        replace(one, history=[{k: v for k, v in line.items() if k != "seconds"} for line in one.history])
        for one in run.variants
    ]
    costs: Any = json.loads(json.dumps(run.evidence.costs))
    costs["training"]["fp32"] = {"own": None, "total": None}
    costs["not_measured"] = ["fp32"]
    run = replace(run, variants=bare, evidence=replace(run.evidence, costs=costs))
    # Durations, energy and CO2 of fp32 on the card; what the sum lacks; and the same on the page.
    assert card.render(run, "int8").count(words.NOT_MEASURED) >= 5
    assert page.render(run).count(words.NOT_MEASURED) >= 7


def test_the_card_of_a_variant_that_lacks_test_images_says_so_and_nothing_false() -> None:
    run = results.run(max_drop=0.0105)
    (undecided, *_) = budget.undecided(run.table)
    text = card.render(run, undecided.variant)
    lead, advice = text.split("## Model Details")[0], section(text, "### Recommendations")
    rejected = budget.first_rejected(run.table, undecided.variant)
    assert rejected is not None
    assert run.change(rejected.variant)["reason"] in lead
    assert "loses more than" not in lead
    assert "Do not use" not in advice
    assert "more images" in advice

"""The model card of a variant in the format of Hugging Face.

The card describes one file: its own figures, and those of its ancestors where it is compared with them.
Every number in its prose and tables comes through ``figures`` from a value of the artifacts. The card says
what a run did not measure, and which key of the configuration provides what people have to state. Every value
that the template shows is escaped, unless it is ``Markdown`` already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline import escaping
from pipeline.escaping import Markdown
from pipeline.report import findings, words
from pipeline.report.card import scope, tables
from pipeline.report.evidence import Part
from pipeline.report.figures import figure, span
from pipeline.report.results import RunResults, VariantResults
from pipeline.selection import budget
from pipeline.selection.budget import listed
from pipeline.selection.table import TEACHER, Row
from pipeline.tasks import Task

ARCHITECTURES = {"mobilenet_v1": "MobileNetV1"}
"""Architectures as their papers spell them."""

TAGS = {"distill": "knowledge-distillation", "prune": "pruning", "quantize": "quantization"}
"""Operation to the tag of the variants that it makes."""

METRIC_IDS = {"top1": "accuracy", "map": "mean_average_precision"}
"""Metric to its name at Hugging Face."""

PARAGRAPHS = ("direct_use", "downstream_use", "out_of_scope_use", "risks", "recommendations")
"""Statements that may have several paragraphs; the others stand within a line of the card."""

LONG_SETTINGS = ("candidates",)
"""Recorded settings that are lists of trials; ``card.json`` of the variant has them."""

LOCAL_CHANGES = "-dirty"
"""End of a commit's name whose checkout had other changes."""

PTQ_SETTINGS = ("method", "calibration", "ptq", "float_layers", "weight_bits")
"""Settings of a quantisation that trains nothing."""


@dataclass(frozen=True)
class Card:
    """Everything that ``card.md`` shows beside the results of the run themselves."""

    limits: str
    """Greatest losses that the gate allows, by step."""
    name: str
    architecture: str
    data_name: str
    noun: str
    nouns: str
    recommended: str | None
    """Name of the variant to ship, which may be another one; None where none fits the budget."""
    accepted: bool
    """Whether the gate accepts this variant and all its ancestors."""
    rejected: str
    """The oldest of them that it rejects; empty if it accepts all."""
    rejection: str
    """The gate's reason for that; empty as well."""
    undecided: bool
    """Whether the only reason is that there are too few test images."""
    shipped: Row
    """The variant that the card describes."""
    result: VariantResults
    """Measurements behind the row ``shipped``."""
    change: Part
    """Comparison of ``shipped`` with its parent."""
    path: Sequence[str]
    """The ancestors of ``shipped`` and itself, the oldest first, without the teacher."""
    model_card: Part
    """``card.json`` of the oldest ancestor."""
    normalised: bool
    """Whether the file subtracts a mean or divides by a standard deviation."""
    calibration: Part | None
    attack: Part | None
    """The strongest attack of the smallest radius on ``shipped``."""
    extremes: tuple[Part, Part] | None
    """The class with the highest score and the one with the lowest."""
    mistakes: Sequence[Part]
    stated: Mapping[str, Markdown | None]
    """What people state about the model; None where they state nothing."""
    reason: Markdown
    """Why the budget chooses this variant, or none; empty where it chooses another one."""
    commit: str
    local_changes: bool
    """Whether the checkout had changes beside the commit."""
    snippet: Markdown
    settings: Markdown
    """The settings of every training, as YAML."""
    results: Markdown
    speeds: Markdown
    efforts: Markdown
    classes: Markdown
    verdicts: Markdown
    corruptions: Markdown
    attacks: Markdown
    out_of_distribution: Markdown
    groups: Sequence[Markdown]
    calibrations: Markdown
    energy: Markdown
    litert: Markdown


def render(results: RunResults, variant: str) -> str:
    """The card of one variant of a run, with its YAML front matter."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "card"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    environment.globals |= {
        "figure": figure,
        "span": span,
        "listed": listed,
        "missing": _missing,
        "group": words.group,
        "spaced": words.spaced,
        "sentence": words.sentence,
        "without_folders": words.without_folders,
        "left_out": words.left_out,
        "counted": words.counted,
        "code": escaping.code,
    }
    own = scope.of_variant(results, variant)
    card = _card(own, results)
    text = environment.get_template("card.md").render(card=card, run=own)
    return str(ModelCard(f"---\n{_metadata(card.name, own).to_yaml()}\n---\n\n{text}"))


def _card(results: RunResults, everything: RunResults) -> Card:
    """What the card shows.

    Args:
        results: what concerns the variant and its ancestors.
        everything: the results of all variants, of which one is recommended.
    """
    student, shipped = results.student, results.closest
    contract = results.model_cards[0]["input"]
    recommended, reason = everything.choice.variant, everything.choice.reason
    architecture: str = ARCHITECTURES.get(student["architecture"]) or student["architecture"]
    data_name = words.data_name(results.data)
    shape = f"{figure(student['width'])}/{figure(student['size'])}"
    rejected = budget.first_rejected(everything.table, shipped.variant)
    limits = {row.op: results.change(row.variant)["limits"]["max_drop"] for row in results.table}
    return Card(
        limits=listed([f"{op} {figure(limit, 'gap')}" for op, limit in limits.items()]),
        name=results.statements["name"] or f"{architecture} {shape} for {data_name}, {shipped.variant}",
        architecture=architecture,
        data_name=data_name,
        noun=words.noun(results.task),
        nouns=words.noun(results.task, 2),
        recommended=recommended,
        accepted=shipped in budget.accepted(everything.table),
        rejected=rejected.variant if rejected else "",
        rejection=everything.change(rejected.variant)["reason"] if rejected else "",
        undecided=shipped in budget.undecided(everything.table),
        shipped=shipped,
        result=results.closest_results,
        change=results.change(shipped.variant),
        path=[row.variant for row in results.table],
        model_card=results.model_cards[0],
        normalised=any(contract["mean"]) or set(contract["std"]) != {1},
        calibration=results.closest_results.scores.get("calibration"),
        attack=findings.first_attack(results),
        extremes=findings.extremes(results.closest_results),
        mistakes=findings.mistakes(results.closest_results),
        stated=_stated(results.statements),
        reason=Markdown(words.sentence(reason) if recommended in (None, shipped.variant) else ""),
        commit=results.git_commit.removesuffix(LOCAL_CHANGES),
        local_changes=results.git_commit.endswith(LOCAL_CHANGES),
        snippet=escaping.code_block(words.snippet(shipped.variant), "python"),
        settings=_settings(results.teacher, results.model_cards),
        results=tables.results_table(results),
        speeds=tables.speeds(results),
        efforts=tables.efforts(results),
        classes=tables.classes(results),
        verdicts=tables.verdicts(results),
        corruptions=tables.corruptions(results),
        attacks=tables.attacks(results),
        out_of_distribution=tables.out_of_distribution(results),
        groups=tables.groups(results),
        calibrations=tables.calibrations(results),
        energy=tables.energy(results),
        litert=tables.litert(results),
    )


def _metadata(name: str, results: RunResults) -> ModelCardData:
    statements, data, table, task = results.statements, results.data, results.table, results.task
    tags = [results.student["architecture"], *(TAGS[row.op] for row in table if row.op in TAGS)]
    return ModelCardData(
        language=_embedded(statements["language"]) if statements["language"] else None,
        license=_embedded(statements["license"] or "unknown").lower(),
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["image-classification", "onnx", *tags],
        metrics=[METRIC_IDS[task.metric]],
        model_name=_embedded(name),
        eval_results=[_evaluation(results.closest, data, task)],
    )


def _evaluation(row: Row, data: Part, task: Task) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=_embedded(words.data_name(data)),
        dataset_name=_embedded(words.data_name(data)),
        dataset_split="test",
        dataset_revision=data["data_sha256"],
        metric_type=METRIC_IDS[task.metric],
        metric_name=f"{task.words} of {row.variant}.onnx",
        metric_value=round(row.score, 6),
    )


def _finalize(value: Any) -> Any:
    return escaping.for_markdown(value) if isinstance(value, str) else value


def _stated(statements: Mapping[str, str | None]) -> dict[str, Markdown | None]:
    """The statements as Markdown, on one line except for those that have paragraphs of their own."""
    stated: dict[str, Markdown | None] = {}
    for key, text in statements.items():
        if not text:
            stated[key] = None
        elif key == "citation":
            stated[key] = escaping.code_block(text, "bibtex")
        else:
            stated[key] = escaping.prose(text if key in PARAGRAPHS else " ".join(text.split()))
    return stated


def _embedded(text: str) -> str:
    return escaping.for_embedding(" ".join(text.split()))


def _missing(key: str) -> Markdown:
    return Markdown(f"not provided (set `card.{key}`)")


def _settings(teacher: Part, model_cards: Sequence[Part]) -> Markdown:
    """The settings of every training, as YAML."""
    settings: dict[str, Any] = {TEACHER: teacher["settings"]}
    for card in model_cards:
        applied = {key: value for key, value in card["settings"].items() if key not in LONG_SETTINGS}
        if applied.get("method") == "ptq":
            applied = {key: applied[key] for key in PTQ_SETTINGS}
        settings[card["variant"]] = {"parent": card["parent"], "op": card["op"], **applied}
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)
    return escaping.code_block(text, "yaml")

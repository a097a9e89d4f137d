"""Everything that the report shows: one value, which the page, the card and the plots share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.models import histories
from pipeline.report.evidence import Evidence, Part
from pipeline.selection.budget import Choice
from pipeline.selection.table import TEACHER, Row
from pipeline.tasks import TASKS, Task


@dataclass(frozen=True)
class VariantResults:
    """The measurements of one variant."""

    variant: str
    parent: str
    op: str
    scores: Mapping[str, Any]
    """Scores of the shipped file on the test split, as the stage `evaluate` writes them."""
    parameters: int
    macs: int
    val: float
    """Score of the module on the validation split; int8 modules compute as ONNX Runtime does."""
    latency: Mapping[str, Any]
    """The variant's part of ``latency.measure``'s result."""
    history: Sequence[Mapping[str, Any]] = ()
    """One line per epoch: ``epoch``, ``step``, ``loss``, validation score, named loss terms, and ``seconds``
    where the training was measured on this machine."""


@dataclass(frozen=True)
class RunResults:
    """One run of the pipeline, as the stage `report` reads it from the artifacts."""

    table: Sequence[Row]
    """The rows of ``variants.csv``."""
    variants: Sequence[VariantResults]
    """Measurements behind the rows, in the same order."""
    comparison: Part
    """Each variant against its parent, as the stage `compare` writes it."""
    teacher: Part
    """The teacher's ``card.json``."""
    teacher_history: Sequence[Part]
    """One line per epoch of the teacher's training; empty where nothing was trained."""
    model_cards: Sequence[Part]
    """``card.json`` of each variant, in the order of the table."""
    data: Part
    """The data report: counts, rejected files, classes."""
    benchmark: Part
    """Result of ``latency.measure``."""
    student: Part
    """Section ``student`` of the parameters."""
    views: Part
    """Section ``views`` of the parameters."""
    statements: Mapping[str, str | None]
    """Section ``card`` of the parameters: what people state about the model."""
    choice: Choice
    """The variant that fits the budget best, or the reason why none does."""
    git_commit: str
    """Commit of the checkout that wrote the report."""
    versions: Mapping[str, str]
    """Package to its installed version, for the packages that results depend on."""
    evidence: Evidence = field(default_factory=Evidence)
    """Optional measurements."""

    @property
    def task(self) -> Task:
        return TASKS[self.data["task"]]

    @property
    def best(self) -> Row | None:
        """The variant to ship; None where none fits the budget."""
        return self.closest if self.choice.variant else None

    @cached_property
    def closest(self) -> Row:
        """The variant to ship, or the one that comes closest to the budget."""
        return next(row for row in self.table if row.variant == self.choice.closest)

    @cached_property
    def closest_results(self) -> VariantResults:
        """Measurements behind the row ``closest``."""
        return next(one for one in self.variants if one.variant == self.choice.closest)

    @property
    def is_distilled(self) -> bool:
        """Whether any variant was distilled, so that there is a teacher beside the network itself."""
        return any(row.op == "distill" for row in self.table)

    @property
    def teacher_name(self) -> str:
        """The teacher in words: a network that is only loaded teaches no other one."""
        return TEACHER if self.is_distilled else "given network"

    def shown(self, name: str) -> str:
        """A variant, or the teacher in words."""
        return self.teacher_name if name == TEACHER else name

    @property
    def teacher_score(self) -> float:
        """Score of the teacher on the test split."""
        return self.teacher["test"][self.task.metric]

    def change(self, variant: str) -> Part:
        """The part of ``comparison`` that compares one variant with its parent."""
        return self.comparison["variants"][variant]

    @property
    def groupings(self) -> list[Part]:
        """The columns that divide the test images into groups, such as brightness; only those with groups."""
        return [part for part in self.comparison["slices"] if part["groups"]]


def gather(
    declared: Mapping[str, tuple[str, str]],
    *,
    metrics: Callable[[str], Path],
    folder: Callable[[str], Path],
    timings: histories.Place,
    benchmark: Part,
) -> list[VariantResults]:
    """Read what the earlier stages wrote about each variant.

    Args:
        declared: variant to its parent and operation.
        metrics: path of a variant's scores.
        folder: path of the folder with a variant's model and history.
        timings: where the timings of a history are.
        benchmark: result of ``latency.measure``.
    """
    results = []
    for variant, (parent, op) in declared.items():
        scores = json.loads(metrics(variant).read_text())
        card = json.loads((folder(variant) / paths.CARD).read_text())
        results.append(
            VariantResults(
                variant=variant,
                parent=parent,
                op=op,
                scores=scores,
                parameters=scores["parameters"],
                macs=scores["macs"],
                val=card["val"][scores["metric"]],
                latency=benchmark["variants"][variant],
                history=histories.read(folder(variant), timings),
            )
        )
    return results

"""The sections of `params.yaml`, each declared by the package that uses it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.data.settings import DataSettings, ViewSettings
from pipeline.distillation.settings import TeacherSettings
from pipeline.errors import DistilleryError
from pipeline.evaluation.settings import EvaluationSettings, GateSettings
from pipeline.inspection.settings import ExplainSettings, ProbeSettings, SensitivitySettings
from pipeline.litert.settings import LiteRtSettings
from pipeline.measurement.settings import BenchmarkSettings, EnergySettings
from pipeline.models.settings import StudentSettings
from pipeline.parameters import messages
from pipeline.parameters.variants import OPERATIONS, Operation, Variant, VariantName
from pipeline.report.settings import CardSettings
from pipeline.selection.settings import BudgetSettings
from pipeline.settings import Settings, merge
from pipeline.tracking.settings import TrackingSettings
from pipeline.training.settings import ComputeSettings


class UnknownVariantError(DistilleryError):
    """A variant is not declared in the parameters."""


class Parameters(Settings):
    """The content of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of all random choices."""
    compute: ComputeSettings
    data: DataSettings
    teacher: TeacherSettings
    views: ViewSettings
    student: StudentSettings
    load: Mapping[str, Any] = {}
    """Settings of all variants with the operation `load`, which has none."""
    distill: Mapping[str, Any]
    """Settings of all variants with the operation `distill`, unless a variant overrides them."""
    prune: Mapping[str, Any]
    """Settings of all variants with the operation `prune`, unless a variant overrides them."""
    quantize: Mapping[str, Any]
    """Settings of all variants with the operation `quantize`, unless a variant overrides them."""
    variants: dict[VariantName, Variant]
    """The variants by name."""
    benchmark: BenchmarkSettings
    evaluation: EvaluationSettings
    probe: ProbeSettings
    explain: ExplainSettings
    sensitivity: SensitivitySettings
    energy: EnergySettings
    litert: LiteRtSettings = LiteRtSettings()
    gate: GateSettings
    budget: BudgetSettings
    card: CardSettings = CardSettings()
    tracking: TrackingSettings

    def parents(self) -> dict[str, str]:
        """The parent of every variant."""
        return {name: variant.parent for name, variant in self.variants.items()}

    @property
    def uncompressed(self) -> list[str]:
        """The variants that are trained or loaded, and neither pruned nor quantised."""
        return [name for name, variant in self.variants.items() if variant.op in ("distill", "load")]

    @property
    def students(self) -> list[str]:
        """The variants that are distilled from the teacher and start from the initial weights."""
        return [name for name, v in self.variants.items() if (v.op, v.parent) == ("distill", "teacher")]

    @property
    def first_step(self) -> Literal["distill", "load"]:
        """Operation of the variants whose parent is the teacher: `load` if none of them is distilled."""
        return "distill" if any(v.op == "distill" for v in self.variants.values()) else "load"

    def find(self, variant: str) -> Variant:
        """The declaration of one variant.

        Raises:
            UnknownVariantError: there is no such variant.
        """
        if variant not in self.variants:
            raise UnknownVariantError(
                messages.unknown(repr(variant), "variant in params.yaml", variant, list(self.variants))
            )
        return self.variants[variant]

    def settings(self, variant: str, kind: type[Operation]) -> Operation:
        """The settings of one variant: the section of its operation with the keys of the variant on top.

        Raises:
            UnknownVariantError: there is no such variant, or another operation makes it.
        """
        declared = self.find(variant)
        if not issubclass(OPERATIONS[declared.op], kind):
            operation = next(name for name, of in OPERATIONS.items() if of is kind)
            raise UnknownVariantError(f"{variant!r} is made by `{declared.op}`, not by `{operation}`")
        merged = merge(getattr(self, declared.op), declared.model_extra or {})
        return kind.model_validate(merged)

    def place(self, variant: str, *location: int | str) -> str:
        """Where a variant has a setting from: `variants.NAME` if it sets this key itself, else the section of
        its operation."""
        declared = self.find(variant)
        own = _contains(declared.model_extra or {}, location)
        return f"variants.{variant}" if own else declared.op

    def declared(self) -> dict[str, tuple[str, str, dict[str, Any]]]:
        """The parent, the operation and the settings of every variant, as plain values."""
        return {
            name: (v.parent, v.op, self.settings(name, OPERATIONS[v.op]).model_dump(mode="json"))
            for name, v in self.variants.items()
        }

    def recipe(self, name: str) -> dict[str, Any]:
        """All settings that determine the teacher or a variant, as plain values."""
        shared = self.model_dump(mode="json", include={"data", "seed", "teacher", "views"})
        # One text, since the name of a folder may not stand in a key of MLflow.
        if names := self.data.names:
            shared["data"]["names"] = ", ".join(f"{folder}: {name}" for folder, name in names.items())
        if name == "teacher":
            return shared
        parent, op, settings = self.declared()[name]
        identity = {
            "variant": name,
            "parent": parent,
            "op": op,
            "student": self.student.model_dump(mode="json"),
        }
        # A null setting takes the shared value.
        overrides = {key: value for key, value in settings.items() if value is not None}
        return {**shared, "teacher": {"name": self.teacher.name}, **identity, **overrides}


def _contains(values: Mapping[str, Any], location: Sequence[int | str]) -> bool:
    inner: Any = values
    for part in location:
        if not isinstance(inner, Mapping) or part not in inner:
            return False
        inner = inner[part]
    return True

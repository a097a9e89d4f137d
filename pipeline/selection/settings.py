"""Settings of the selection of the variant to ship."""

from typing import Annotated

from pydantic import Field

from pipeline.settings import Fraction, Settings


class BudgetSettings(Settings):
    """Limits of the variant to ship; null sets no limit. `pipeline.selection.budget` describes the
    selection."""

    max_drop: Fraction | None = None
    """Maximum loss of score against the variant distilled from the teacher (`fp32`), as a fraction of 1."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Maximum median latency in milliseconds, as `benchmark` measures it."""
    max_size_bytes: Annotated[int, Field(ge=1)] | None = None
    """Maximum size of the ONNX file, in bytes."""

"""Settings of quantisation to eight-bit integers."""

from typing import Any, Literal

from pydantic import field_validator

from pipeline.settings import Count, Fraction, Settings

Step = Literal[
    "entropy_ranges",
    "percentile_ranges",
    "greatest_weights",
    "equalisation",
    "adaptive_rounding",
    "bias_correction",
]
"""A step of post-training quantisation beyond least-squares ranges, least-squares steps of weights and
nearest rounding."""


class QuantizationSettings(Settings):
    """How a student becomes integers: after training (ptq) or with training (qat)."""

    method: Literal["ptq", "qat"]
    """Post-training quantisation, or quantisation-aware training with NNI."""
    ptq: Literal["auto"] | tuple[Step, ...] = "auto"
    """Steps of post-training quantisation beyond least-squares ranges and rounding to nearest. `auto` selects
    them on validation images by the KL divergence from the outputs of the parent."""
    calibration: Count = 512
    """Number of training images, stratified by class, from which the activation ranges are taken."""
    float_layers: Literal["auto"] | tuple[str, ...] = ()
    """Layers that stay in float because they are faster so; they are recorded in the metadata of the file.
    `auto` takes the fewest first layers whose file is within 8 % of the fastest, according to the measured
    cost of layers in ONNX Runtime on the machine that trains."""
    saturation_safe: bool = True
    """Whether weights are limited to 7 bits, so that 16-bit sums cannot saturate on CPUs without VNNI
    (`vpmaddubsw`)."""
    freeze_norms: Fraction = 0.0
    """Share of the training, in whole epochs, after which the statistics of batch norm stay fixed."""
    learn_ranges: bool = False
    """Whether the quantisation steps of weights and activations are trained too (LSQ, Esser et al. 2020),
    from least-squares values; otherwise steps follow the ranges of weights and activations."""

    @field_validator("ptq")
    @classmethod
    def _at_most_one_kind_of_range(cls, ptq: Literal["auto"] | tuple[Step, ...]) -> Any:
        if len(ranges := [step for step in ptq if step.endswith("_ranges")]) > 1:
            raise ValueError(f"{' and '.join(ranges)} exclude each other; at most one is allowed")
        return ptq

    @property
    def weight_limit(self) -> int:
        """Maximum magnitude of an integer weight."""
        return 63 if self.saturation_safe else 127

"""Settings of quantisation: to eight-bit integers, or to float16."""

from typing import Any, Literal

from pydantic import field_validator

from pipeline.settings import Count, Settings

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
    """How a student becomes integers, after training (ptq) or with training (qat), or float16 (fp16)."""

    method: Literal["ptq", "qat", "fp16"]
    """Post-training quantisation, or quantisation-aware training with NNI. The latter begins with the result
    of the former, and is kept where it lowers the loss on validation images. Its `learning_rate` is in
    quantisation steps. `fp16` rounds to float16 instead, for GPUs and phones: no other key applies but
    `calibration`."""
    ptq: Literal["auto"] | tuple[Step, ...] = "auto"
    """Steps of post-training quantisation beyond least-squares ranges and rounding to nearest. `auto` selects
    them on validation images by the KL divergence from the outputs of the parent."""
    calibration: Count = 512
    """Number of training images, stratified by class, from which the activation ranges are taken. With
    `fp16`, no output on these images may be beyond 65504."""
    float_layers: Literal["auto"] | tuple[str, ...] = ()
    """Layers that stay in float because they are faster so; they are recorded in the metadata of the file.
    `auto` takes the fewest first layers whose file is within 8 % of the fastest, according to the measured
    cost of layers in ONNX Runtime on the machine that trains."""
    weight_bits: Literal[4, 7, 8] = 7
    """Number of bits of a weight. With 7, 16-bit sums cannot saturate on CPUs without VNNI (`vpmaddubsw`);
    with 4, the file is half as large."""
    learn_steps: bool = False
    """Whether qat trains the quantisation steps of weights and activations too (LSQ, Esser et al. 2020);
    otherwise they stay as post-training quantisation has set them."""

    @field_validator("ptq")
    @classmethod
    def _at_most_one_kind_of_range(cls, ptq: Literal["auto"] | tuple[Step, ...]) -> Any:
        if len(ranges := [step for step in ptq if step.endswith("_ranges")]) > 1:
            raise ValueError(f"{' and '.join(ranges)} exclude each other; at most one is allowed")
        return ptq

    @property
    def weight_limit(self) -> int:
        """Maximum magnitude of an integer weight."""
        return 2 ** (self.weight_bits - 1) - 1

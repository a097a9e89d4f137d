"""Settings of the student's architecture and of its initial weights."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.settings import ImageSize, Name, Settings


class InitSettings(Settings):
    """The weights that a student starts from."""

    source: Literal["hugging_face", "timm", "torch", "slim", "run"]
    """Format of the weights: a key of `pipeline.models.initialisation.SOURCES`. `torch` is a file
    with a state dict, `run` a student of an earlier run."""
    path: Name
    """Folder, file, checkpoint prefix, hub id or model name, depending on `source`."""


class StudentSettings(Settings):
    """The network that `distill` trains, or that `load` takes as it is."""

    architecture: Literal["mobilenet_v1"] = "mobilenet_v1"
    """Architecture: a key of `students.ARCHITECTURES`."""
    width: Annotated[float, Field(ge=0.05, le=2)] = 0.75
    """Width multiplier. With `init.source: run` the widths of that student are used instead, including pruned
    ones, and with `load` those of the network."""
    size: ImageSize = 192
    """Height and width of the input of the shipped model, in pixels."""
    init: InitSettings | None = None
    """Initial weights; null draws random ones."""
    activation: Literal["relu", "relu6"] | None = None
    """Activation function. Null takes that of the initial weights, or else ReLU, which has no fixed upper
    bound and quantises better."""
    padding: Literal["symmetric", "same"] | None = None
    """Padding of convolutions; `same` is that of TensorFlow. Null takes that of the initial weights, or else
    `symmetric`."""
    norm_eps: Annotated[float, Field(ge=1e-8, le=1)] | None = None
    """Epsilon of batch norm. Null takes that of the initial weights, or else the published 0.001."""
    norm_momentum: Annotated[float, Field(ge=0.00001, le=1)] = 0.1
    """Weight of one batch in the running statistics of batch norm. The published weights used 0.0003."""
    dropout: Annotated[float, Field(ge=0, le=0.95)] = 0.0
    """Dropout probability before the classifier. The published weights used 0.001."""

    def overrides(self) -> dict[str, Any]:
        """Arguments of the architecture that take precedence over those of the initial weights."""
        return self.model_dump(include={"activation", "padding", "norm_eps"}, exclude_none=True)

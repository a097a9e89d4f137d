"""Settings of channel pruning."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings import Settings


class PruningSettings(Settings):
    """Which channels are removed, and how many."""

    criterion: Literal["auto", "l1", "l2", "fpgm", "taylor"] = "auto"
    """Importance score of a channel, by NNI. `auto` tries l1, fpgm and taylor and takes the one with the
    least cross entropy on validation images, once it is fitted to the parent."""
    shape: Literal["auto", "uniform", "sensitivity"] = "auto"
    """Distribution of the removed channels over the layers. `uniform` removes the same share everywhere;
    `sensitivity` removes more where it costs little accuracy for what it saves; `auto` takes `uniform` unless
    the other one scores higher on validation images by 2 points and is about as fast."""
    macs: Annotated[float, Field(ge=0.01, lt=1)] | None = None
    """Share of the parent's multiply-accumulates that remains. Exactly one of `macs` and `speedup` is
    given."""
    speedup: Annotated[float, Field(gt=1, le=20)] | None = None
    """Least speed of the float file in ONNX Runtime on the machine that trains, as a multiple of its
    parent's. Networks whose widths differ by 3 % are measured as a whole, and the widest that is fast enough
    is taken. Exactly one of `macs` and `speedup` is given."""
    multiple: Annotated[int, Field(ge=1, le=64)] = 16
    """Number that divides all channel counts; the kernels of the runtime prefer multiples of 16."""
    steps: Annotated[int, Field(ge=1, le=20)] = 1
    """Number of rounds in which channels are removed, in equal ratios. Half of the epochs are spent between
    rounds."""

    def criteria(self) -> tuple[Literal["l1", "l2", "fpgm", "taylor"], ...]:
        """The criteria to try; l2 is left out of `auto`, since it nearly always agrees with l1."""
        return ("l1", "fpgm", "taylor") if self.criterion == "auto" else (self.criterion,)

    def shapes(self) -> tuple[Literal["uniform", "sensitivity"], ...]:
        """The shapes to try."""
        return ("uniform", "sensitivity") if self.shape == "auto" else (self.shape,)

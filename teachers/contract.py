"""The contract of a classifier's input, which travels with its weights."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float, UInt8
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # a shipped file runs without PyTorch, which takes seconds to import

Interpolation = Literal["bilinear", "bicubic"]
RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_CONSTANTS: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
"""Tensors that are subtracted and multiplied, by mean, standard deviation and device. They are cached, since
the host waits for the device with each copy to a GPU."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the source image."""


@dataclass(frozen=True)
class InputContract:
    """How an image becomes the tensor that a classifier was trained on."""

    size: int
    """Height and width in pixels."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from RGB values in [0, 1]."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides the RGB values after the mean is subtracted."""
    interpolation: Interpolation = "bilinear"
    """Antialiased resampling method of Pillow."""
    crop: float = 1.0
    """Side of the centred square that is evaluated, as a share of the shorter side."""

    @property
    def is_plain(self) -> bool:
        """Whether the input values are bytes divided by 255 and nothing else."""
        return not any(self.mean) and set(self.std) == {1.0}

    @property
    def zero_point(self) -> int | None:
        """The byte that becomes 0, where values are bytes less a whole number, divided by 255; else None."""
        bytes_of_means = {255 * mean for mean in self.mean}
        zero_point = round(255 * self.mean[0])
        whole = all(abs(mean - zero_point) < 1e-6 for mean in bytes_of_means) and 0 <= zero_point <= 255
        return zero_point if whole and set(self.std) == {1.0} else None

    def centre_box(self, width: int, height: int) -> Box:
        """Compute the centred square that is evaluated, for an image of this width and height in pixels."""
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def render(self, image: Image.Image, box: Box) -> Image.Image:
        """Crop an RGB image to the box and resize it to ``size`` by ``size`` pixels, in one step."""
        return image.resize((self.size, self.size), RESAMPLING[self.interpolation], box=box)

    def normalise(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Bring raw pixels to the classifier's range; the result is in channels-last memory."""
        x = images.permute(0, 3, 1, 2).float()
        key = self.mean, self.std, x.device
        if key not in _CONSTANTS:
            scale = x.new_tensor(self.std).mul_(255).reciprocal_().view(1, 3, 1, 1)
            _CONSTANTS[key] = x.new_tensor(self.mean).mul_(255).view(1, 3, 1, 1), scale
        shift, scale = _CONSTANTS[key]
        return x.sub_(shift).mul_(scale) if any(self.mean) else x.mul_(scale)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a card or a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InputContract":
        """Invert ``to_dict``, also after a round trip through JSON."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

"""Settings of the inspection of finished variants."""

from typing import Annotated

from pydantic import Field

from pipeline.settings import Count, Distinct, ImageSize, OptionalPath, Settings


class ProbeSettings(Settings):
    """How variants are tested on images unlike those that they were trained on."""

    corrupted: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Number of test images, stratified by class, to which 15 corruptions are applied at 5 severities; 0
    skips them."""
    attacked: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Number of test images, stratified by class, that are attacked; 0 skips the attacks."""
    radii: Distinct[Annotated[int, Field(ge=1, le=255)]] = (1, 4)
    """Maximum changes of a pixel value by an attack, in units of 1/255."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of steps of projected gradient descent per attack."""
    out_of_distribution: OptionalPath = None
    """Folder of images that belong to none of the classes; `configs/none` for none."""
    out_of_distribution_images: Count = 250
    """Number of images per kind of out-of-distribution input, which are compared with all test images."""


class ExplainSettings(Settings):
    """Which images are drawn with Grad-CAM, and how many with suspicious labels are shown."""

    images: Annotated[int, Field(ge=1, le=1000)] = 8
    """Number of test images with a Grad-CAM map for every variant."""
    flips: Annotated[int, Field(ge=0, le=1000)] = 6
    """Number of images per variant that became correct, and that became wrong, compared with the parent."""
    suspects: Annotated[int, Field(ge=0, le=1000)] = 12
    """Number of training images with a suspicious label that are shown. The list has all of them."""


class SensitivitySettings(Settings):
    """How the sensitivity of each layer to pruning and to quantisation is measured."""

    images: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Number of validation images, stratified by class, on which networks are scored; 0 skips the
    measurement."""
    size: ImageSize | None = 128
    """Height and width of these images in pixels, at most that of the student's input; null takes the
    student's."""
    ratios: Distinct[Annotated[float, Field(ge=0.01, le=0.99)]] = (0.25, 0.5)
    """Shares of the channels of a layer that remain."""
    settling: Count = 32
    """Number of training images from which batch-norm statistics and activation ranges are taken."""

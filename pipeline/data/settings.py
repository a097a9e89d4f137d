"""Settings of the data and of the views that are drawn from each image."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator

from pipeline import paths
from pipeline.settings import Fraction, Name, Settings


def _check_amount(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            "must be a number of images (a whole number, 1 or more) or a share of them (above 0, below 0.5)"
        ) from None


Amount = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=0.5)], WrapValidator(_check_amount)
]
"""A part of the images, as a number or as a share."""


class Download(Settings):
    """An archive of images that its publisher offers."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S*[^\s/]$")]
    """Address of the archive, a `.tgz` or another kind of tar file. Its only folder becomes `data.path`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the archive. Another one is not unpacked."""
    size: Annotated[int, Field(ge=1, le=2**43)]
    """Number of bytes of the archive."""
    images: Annotated[int, Field(ge=1, le=2**31)]
    """Number of image files in the archive, by which a folder that is not whole is recognised."""


class LabelTable(Settings):
    """A CSV table of labels for training, such as those that a web search gives."""

    table: Name
    """Place of the table in `data.path`, where DVC notices that it changes."""
    column: Name
    """Name of the column with the labels: names of class folders, or those of `data.names`."""
    files: Name = "file_name"
    """Name of the column with the places of the images, relative to the folder of the table."""


class DataSettings(Settings):
    """The images and how they are split."""

    source: Literal["attributes", "fashion_mnist", "folder"]
    """Format of the data. `fashion_mnist`: IDX files. `folder`: one folder per class, or such folders below
    train, validation and test. `attributes`: images with any number of attributes, listed in `metadata.csv`
    or in the way of CelebA."""
    path: Path
    """Folder that contains the files."""
    layout: Literal["auto", "classes", "splits"] = "auto"
    """What the folders of the source `folder` are. `auto`: splits if their names say so (`train`, `Testing`,
    `val_set`, ...) and they hold class folders; what can be read in two ways is an error. `classes`: all
    folders are classes, whatever their names. `splits`: folders with such names are splits."""
    max_rejected: Fraction = 0.1
    """Greatest share of image files that may be damaged, missing or in a format that is not read (HEIC, raw
    data, unknown suffixes), and of the pictures of a class that may be in another class, too. Other files,
    hidden ones and duplicates do not count."""
    train: Annotated[int, Field(ge=1)] | None = None
    """Number of training images, drawn stratified by class; null takes all."""
    val: Amount = 0.1
    """Validation images, as a number (1 or more) or as a share (below 0.5), taken from the training images if
    the source has no validation split."""
    test: Amount = 0.2
    """Test images, as a number (1 or more) or as a share (below 0.5); used only if the source has no test
    split."""
    splits: Literal["original", "new", "val_as_test"] = "original"
    """What happens to splits that the source has: `original` uses them, `new` draws all three splits from all
    images. `val_as_test` tests on the published validation split, for sets such as ImageNet whose test labels
    are not published, and draws `val` from the training images."""
    train_side: Annotated[int, Field(ge=32)] | None = None
    """Length of the shorter side, in pixels, to which larger training images are reduced once, so that no
    epoch decodes images of several megapixels. Validation and test images stay as they are. Small crops
    (`views.crop_scale`) need a greater length. Null keeps the files."""
    license: str = "unknown"
    """Licence of the images, recorded in every shipped file."""
    names: Mapping[str, Name] = {}
    """Name of a class by the name of its folder, such as `n02086240: Shih-Tzu`, for the source `folder`.
    Other classes have the names of their folders. The order of the classes is that of the folders' names in
    any case, so that a new name changes no label."""
    labels: LabelTable | None = None
    """Labels that take the place of the class folders for training images, for the source `folder`. Val and
    test images keep the labels of their folders."""
    verified: LabelTable | Amount | None = None
    """Training images whose labels are known to be right, for the source `folder`: a table of them, whose
    labels take precedence over all others; or a number or a share of the training images, drawn stratified by
    class, which keep the labels of their folders. A training with `images: verified` uses them alone, and
    their views are mixed with each other only."""
    download: Download | None = None
    """Archive that `python -m pipeline fetch` downloads to `path` if nothing is there. A `path` that is not
    below `artifacts/raw` is a copy of one's own, and must exist."""

    @property
    def is_downloaded(self) -> bool:
        """Whether `path` is where `python -m pipeline fetch` puts the images, so that it may be missing."""
        own = self.source == "fashion_mnist" and self.path == paths.RAW_FASHION_MNIST
        return own or (self.download is not None and paths.RAW in self.path.parents)


class Augmentation(Settings):
    """The distribution of the random views of an image: crops, flips, colours and mixtures."""

    crop_scale: tuple[Annotated[float, Field(ge=0.01, le=1)], Annotated[float, Field(ge=0.01, le=1)]]
    """Minimum and maximum area of the crop, as a share of the area of the image."""
    crop_ratio: tuple[Annotated[float, Field(ge=0.1, le=10)], Annotated[float, Field(ge=0.1, le=10)]]
    """Minimum and maximum aspect ratio of the crop: width divided by height."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Maximum relative change of brightness, contrast and saturation."""
    mixup: Fraction = 0.0
    """Probability that the view is blended with a view of another image (mixup, Zhang et al. 2018)."""
    cutmix: Fraction = 0.0
    """Probability that a rectangle of another image covers a part of the view (CutMix, Yun et al. 2019).
    `mixup` and `cutmix` add up to 1 at most."""


class ViewSettings(Augmentation):
    """The random views of the training images. Each is a function of the seed, the image and its number.

    A teacher that is adapted to the data sees crops and flips only.
    """

    per_image: Annotated[int, Field(ge=1, le=1000)] = 4
    """Number of views per training image for which the outputs of the teacher are stored."""
    top: Annotated[int, Field(ge=1, le=65535)] | None = 50
    """Number of classes stored per teacher output, together with the probability of all others, if there are
    more than twice as many classes; null stores all."""
    eval_crop: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    """Side of the centred square that evaluation and shipped files use, as a share of the shorter side."""

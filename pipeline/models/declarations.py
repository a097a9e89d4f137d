"""What files beside weights declare of them: a configuration of Hugging Face, or the card of a student."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from teachers.errors import WeightsError, one_line

Model = TypeVar("Model", bound="Declaration")

Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1)]


def _square(size: Any) -> Any:
    """The side of square images, which is written as a number, a list, or one number per side."""
    if isinstance(size, dict):
        size = [side for key in ("shortest_edge", "height", "width") if (side := size.get(key))] or None
    if isinstance(size, list):
        if len({*map(str, size)}) != 1:
            raise ValueError("square images are expected")
        return size[0]
    return size


SquareSide = Annotated[Side | None, BeforeValidator(_square)]
"""Side in pixels of square images; None if it is not declared."""


class Declaration(BaseModel):
    """The keys of a JSON file that are read; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)


class Configuration(Declaration):
    """`config.json` of a MobileNetV1 of Hugging Face."""

    model_type: str | None = None
    hidden_act: str = "relu6"
    tf_padding: bool = True
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    id2label: dict[str, str] | None = None


class Preparation(Declaration):
    """`preprocessor_config.json` of Hugging Face, without the colours, which `scaling` reads."""

    size: SquareSide = None
    crop_size: SquareSide = None
    do_center_crop: bool | None = None


class Contract(Declaration):
    """The input contract within a student's card."""

    size: Side
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    crop: Annotated[float, Field(gt=0, le=1)]


class StudentCard(Declaration):
    """What a student's card says of the network."""

    variant: str
    arguments: dict[str, Any]
    labels: tuple[str, ...]
    input: Contract
    quantization: Any = None


def read(file: Path) -> dict[str, Any]:
    """Read a JSON file with keys and values in UTF-8.

    Raises:
        WeightsError: it is missing, or is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: a JSON file is expected ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: a JSON file with keys and values is expected; found {str(content)[:40]}")
    return content


def parse(kind: type[Model], values: dict[str, Any], file: Path) -> Model:
    """Check what a file declares.

    Raises:
        WeightsError: a key is missing or its value is not valid; the message names the first.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        shown = "" if detail["type"] == "missing" else f" = {repr(detail['input'])[:80]}"
        problem = detail["msg"].removeprefix("Value error, ")
        raise WeightsError(f"{file}: {key}{shown}: {problem}") from None

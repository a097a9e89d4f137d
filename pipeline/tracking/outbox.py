"""What MLflow could not be told yet, kept with all its files until it is delivered."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline import files, resources
from pipeline.tracking.records import ExportedFile, PipelineState, TrackingError, TrainedModel

CONTENT = "delivery.json"

Logged = TypeVar("Logged", PipelineState, TrainedModel, ExportedFile)


@dataclass(frozen=True)
class Delivery:
    """Everything that MLflow is told of one state of the pipeline."""

    experiment: str
    """Name of the experiment that was in effect."""
    state: PipelineState
    teacher: TrainedModel
    variants: Sequence[ExportedFile]


_FORM = TypeAdapter(Delivery)


def keep(folder: Path, delivery: Delivery) -> Path:
    """Copy a delivery with its files into a folder of its own, in place of an earlier copy.

    Raises:
        TrackingError: the copy could not be written.
    """
    place = folder / delivery.state.sha256
    fresh = resources.temporary(place)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        copied = _with_files(delivery, fresh, copy=True)
        files.write(fresh / CONTENT, json.dumps(_FORM.dump_python(copied), default=str))
        shutil.rmtree(place, ignore_errors=True)
        fresh.replace(place)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise TrackingError(f"{place}: the results could not be kept for MLflow: {error}") from error
    return place


def waiting(folder: Path) -> list[Path]:
    """The folders of all kept deliveries, the oldest first."""
    written = [content.parent for content in folder.glob(f"[!.]*/{CONTENT}")]
    return sorted(written, key=lambda place: (place / CONTENT).stat().st_mtime_ns)


def read(place: Path) -> Delivery:
    """Read a kept delivery.

    Raises:
        TrackingError: it is damaged.
    """
    try:
        return _with_files(_FORM.validate_json((place / CONTENT).read_bytes()), place, copy=False)
    except (OSError, ValidationError) as error:
        raise TrackingError(
            f"{place}: this kept delivery could not be read ({str(error).splitlines()[0]}); remove the folder"
        ) from error


def remove(place: Path) -> None:
    """Remove a delivery that was made."""
    shutil.rmtree(place, ignore_errors=True)


def size(folder: Path) -> int:
    """Number of bytes of all kept deliveries."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _with_files(delivery: Delivery, place: Path, *, copy: bool) -> Delivery:
    """The delivery with the paths of its copied files: made here with ``copy``, or completed on reading."""
    count = 0

    def move(path: Path) -> Path:
        nonlocal count
        if not copy:
            return place / path
        relative = Path("files") / str(count) / path.name
        count += 1
        target = place / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return relative

    def moved(logged: Logged) -> Logged:
        return replace(logged, files=[(folder, move(path)) for folder, path in logged.files])

    variants = [replace(moved(exported), file=move(exported.file)) for exported in delivery.variants]
    return replace(delivery, state=moved(delivery.state), teacher=moved(delivery.teacher), variants=variants)

"""Whether an ONNX file is still the one that was exported and measured: its checksum beside those on record.

The files themselves hold no checksum. SHA-256 is on record in `artifacts/metrics/` and in `variants.csv`,
MD5 in `dvc.lock`, and SHA-256 again in the ``SHA256SUMS`` of every shipped folder.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline import paths
from pipeline.errors import DistilleryError
from pipeline.provenance import sha256
from pipeline.selection import table
from pipeline.selection.table import TableError
from pipeline.shipping.folder import SUMS
from pipeline.tracking import records

SHOWN = 12
"""Number of digits of a checksum in messages."""


class IntegrityError(DistilleryError):
    """A file is not the one that is on record; the message names both checksums."""


def check(path: Path, metadata: Mapping[str, str], *, strict: bool = False) -> str | None:
    """Compare a file with what is on record for it.

    Args:
        path: the file.
        metadata: what the file says about itself, in strings.
        strict: whether a file from elsewhere that calls itself a variant of this run, with the same data,
            must be the one on record.

    Returns:
        None if the file is the one on record, or why that cannot be told: a file that was copied from
        elsewhere may be damaged, or may come from another run.

    Raises:
        IntegrityError: the file lies in `artifacts/onnx/` or in a shipped folder and is another one than the
            one on record there, or ``strict`` forbids it.
    """
    digest = sha256(path)
    beside = _sums(path.parent).get(path.name)
    if beside is not None:
        if beside == digest:
            return None
        raise IntegrityError(
            f"{path} is damaged or was changed: its SHA-256 is {_short(digest)}, and {path.parent / SUMS} "
            f"says {_short(beside)}; copy or ship it again"
        )
    measured = list(_measured())
    if path.resolve().parent == paths.ONNX.resolve():
        return _check_exported(path, digest, {recorded for name, recorded in measured if name == path.stem})
    if any(recorded == digest for _, recorded in measured):
        return None
    variant = metadata.get("variant", "")
    expected = {recorded for name, recorded in measured if name == variant}
    if not expected and variant and paths.onnx(variant).is_file():
        expected = {sha256(paths.onnx(variant))}
        if digest in expected:
            return check(paths.onnx(variant), metadata)
    if not expected or not _shares_data(metadata):
        return _unknown(path)
    reason = (
        f"{path} calls itself {variant}, and is not the {variant} of this run: its SHA-256 is "
        f"{_short(digest)}, and {_listing(expected)} is on record; it is damaged, or comes from another run"
    )
    if strict:
        raise IntegrityError(f"{reason}; use it in the folder of that run")
    return reason


def _check_exported(path: Path, digest: str, measured: set[str]) -> str | None:
    """Compare a file in `artifacts/onnx/` with what was measured, or with what DVC has noted since then."""
    if digest in measured:
        return None
    exported = _exported(path)
    if exported == _md5(path):
        return None
    expected = measured | ({exported} if exported else set())
    if not expected:
        return _unknown(path)
    raise IntegrityError(
        f"{path} is not the file that was exported or measured: its checksum is {_short(digest)}, and "
        f"{_listing(expected)} is on record; it is damaged, or newer than its figures; `dvc repro` makes "
        "both anew"
    )


def _unknown(path: Path) -> str:
    return f"{path} could not be verified, because no checksum of it is on record"


def _shares_data(metadata: Mapping[str, str]) -> bool:
    """Whether a file was made with the data of this folder, as far as both say so."""
    try:
        data = json.loads((paths.DATA / "report.json").read_text())["data_sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return True
    return metadata.get("data_sha256", data) == data


def _measured() -> Iterator[tuple[str, str]]:
    """Variant and SHA-256 of each file that was measured."""
    for file in sorted(paths.METRICS.glob("*.json")):
        try:
            yield file.stem, str(json.loads(file.read_text())["sha256"])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # a file that is being written, or is damaged, has no record
    with suppress(TableError):
        yield from [(row.variant, row.sha256) for row in table.read(paths.VARIANTS)]


def _exported(path: Path) -> str | None:
    """MD5 that DVC has noted of an exported file; None if it has none."""
    if not paths.LOCK.is_file():
        return None
    try:
        outputs = records.dvc_outputs(paths.LOCK)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return outputs.get(f"export@{path.stem}", {}).get(str(paths.onnx(path.stem)))


def _sums(folder: Path) -> dict[str, str]:
    """Checksum by name of file, from the sums of a shipped folder; empty without them."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[1].removeprefix("*"): pair[0].lower() for pair in pairs if len(pair) == 2}


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _listing(digests: set[str]) -> str:
    return " or ".join(map(_short, sorted(digests)))


def _short(digest: str) -> str:
    return f"{digest[:SHOWN]}..."

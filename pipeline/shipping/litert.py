"""The LiteRT file that ships beside an ONNX file of the same network."""

import json
from pathlib import Path

from pipeline import paths
from pipeline.provenance import sha256


def files_beside(onnx: Path) -> list[Path]:
    """The LiteRT file of the network in an ONNX file; empty without one.

    A LiteRT file that was changed since it was measured is no such file.
    """
    digest = sha256(onnx)
    try:
        variants = json.loads(paths.LITERT_RESULTS.read_text())["variants"]
        recorded = {
            paths.litert(name): row["sha256"]
            for name, row in variants.items()
            if row["onnx_sha256"] == digest
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [file for file, expected in recorded.items() if file.is_file() and sha256(file) == expected]

"""A static page on which a browser runs all variants side by side."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.onnx.inference import Classifier
from pipeline.provenance import sha256
from pipeline.selection.table import Row
from pipeline.shipping.folder import HERE, ShippingError, described, make_empty

PAGE = ("index.html", "page.css", "page.mjs", "worker.mjs")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The part of ONNX Runtime Web that runs on CPUs."""
RUNTIME_FOLDER = HERE / "node_modules" / "onnxruntime-web" / "dist"
MANIFEST = "manifest.json"
LOOPBACK = "127.0.0.1"


def build(folder: Path, classifiers: Sequence[Classifier], table: Mapping[str, Row]) -> None:
    """Write the page, ONNX Runtime and the variants' files into a folder that any web server can serve.

    Args:
        folder: a new or an empty one, or that of an earlier page, which goes.
        classifiers: the variants, in the order of the page.
        table: figures by the file's SHA-256; those of a file that is not there are left out.

    Raises:
        ShippingError: ONNX Runtime Web is not installed, or the folder holds something else.
    """
    missing = [name for name in RUNTIME if not (RUNTIME_FOLDER / name).is_file()]
    if missing:
        raise ShippingError(
            f"{RUNTIME_FOLDER / missing[0]} does not exist; `make demo` installs it (npm ci --prefix {HERE})"
        )
    page = (
        *(HERE / "page" / name for name in PAGE),
        HERE / "contract.mjs",
        *(RUNTIME_FOLDER / name for name in RUNTIME),
    )
    own = {MANIFEST, *(source.name for source in page)}
    if folder.is_dir() and all(file.name in own or file.suffix == ".onnx" for file in folder.iterdir()):
        shutil.rmtree(folder)
    make_empty(folder)
    for source in (*page, *(classifier.path for classifier in classifiers)):
        shutil.copyfile(source, folder / source.name)
    variants = [_entry(classifier, table.get(sha256(classifier.path))) for classifier in classifiers]
    (folder / MANIFEST).write_text(json.dumps(variants, ensure_ascii=False))


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A web server of a folder, for this machine alone; port 0 takes a free one.

    Raises:
        ShippingError: the port is taken.
    """
    try:
        return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        raise ShippingError(f"port {port} cannot be served ({reason}); --port takes another") from error


class _Handler(SimpleHTTPRequestHandler):
    """Files with the types that browsers insist on, asked for anew whenever they have changed."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 - declared so by the base class
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of what went well."""


def _entry(classifier: Classifier, row: Row | None) -> dict[str, Any]:
    entry = {
        "variant": classifier.path.stem,
        "labels": classifier.labels,
        "size_bytes": classifier.path.stat().st_size,
        **described(classifier),
    }
    if row is not None:
        entry |= {
            "metric": row.metric,
            "score": row.score,
            "score_lo": row.score_lo,
            "score_hi": row.score_hi,
            "verdict": row.verdict,
        }
    return entry

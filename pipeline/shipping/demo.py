"""A static page that runs all variants side by side in the browser."""

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
from pipeline.shipping.folder import HERE, ShippingError, description, make_empty

PAGE = ("index.html", "page.css", "page.mjs", "worker.mjs")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of ONNX Runtime Web that run models on the CPU."""
RUNTIME_FOLDER = HERE / "node_modules" / "onnxruntime-web" / "dist"
MANIFEST = "manifest.json"
LOOPBACK = "127.0.0.1"


def build(folder: Path, classifiers: Sequence[Classifier], table: Mapping[str, Row]) -> None:
    """Write the page, ONNX Runtime and the variants into a folder that any web server can serve.

    Args:
        folder: a new or an empty folder, or the folder of an earlier page, which is replaced.
        classifiers: the variants, in the order of the page.
        table: rows of ``variants.csv`` by SHA-256 of the ONNX file; a variant without a row shows no scores.

    Raises:
        ShippingError: ONNX Runtime Web is not installed, or the folder contains other files.
    """
    missing = [name for name in RUNTIME if not (RUNTIME_FOLDER / name).is_file()]
    if missing:
        raise ShippingError(
            f"{RUNTIME_FOLDER / missing[0]} does not exist; run `make demo` to install it "
            f"(npm ci --prefix {HERE})"
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
    """A web server for a folder, which only this machine can reach; port 0 picks a free port.

    Raises:
        ShippingError: the port is in use or is not valid.
    """
    try:
        return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the highest port is 65535"
        raise ShippingError(f"port {port} cannot be served ({reason}); choose another with --port") from error


class _Handler(SimpleHTTPRequestHandler):
    """Serves files with the types that browsers require, without caching files that have changed."""

    protocol_version = "HTTP/1.1"
    extensions_map = {  # noqa: RUF012 - the base class declares it like this
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def _entry(classifier: Classifier, row: Row | None) -> dict[str, Any]:
    entry = {
        "variant": classifier.path.stem,
        "labels": classifier.labels,
        "size_bytes": classifier.path.stat().st_size,
        **description(classifier),
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

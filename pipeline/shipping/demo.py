"""A static page that runs all variants side by side in the browser."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from pipeline.onnx.inference import Classifier
from pipeline.onnx.weight import number_format
from pipeline.provenance import sha256
from pipeline.selection.table import Row
from pipeline.shipping.folder import HERE, ShippingError, description, make_empty
from pipeline.shipping.samples import Sample

PAGE = ("index.html", "page.css", "page.mjs", "worker.mjs")
RUNTIME = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)
"""The files of ONNX Runtime Web: those for the CPU, and those for the CPU and WebGPU. A browser loads one of
the two sets."""
RUNTIME_FOLDER = HERE / "node_modules" / "onnxruntime-web" / "dist"
MANIFEST = "manifest.json"
SAMPLE = re.compile(r"sample-\d+\.(png|jpg)")
"""Names of the files of samples."""
LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")
"""Names of this machine, at any port, since a tunnel may have another one. A site whose name has been pointed
to this machine is asked for under its own name."""
IDLE_SECONDS = 30
"""Seconds after which a connection that sends nothing is closed."""
HEADERS = {
    "Cache-Control": "no-cache",
    # ONNX Runtime compiles WebAssembly.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every answer. The policy is that of ``index.html``, which other web servers send without it."""


def build(
    folder: Path,
    classifiers: Sequence[Classifier],
    table: Mapping[str, Row],
    samples: Sequence[Sample] = (),
    recommendation: str = "",
) -> None:
    """Write the page, ONNX Runtime and the variants into a folder that any web server can serve.

    Args:
        folder: a new or an empty folder, or the folder of an earlier page, which is replaced.
        classifiers: the variants, in the order of the page.
        table: rows of ``variants.csv`` by SHA-256 of the ONNX file; a variant without a row shows no scores.
        samples: photographs to try, with their right answers.
        recommendation: which variant to ship and what that loses, in sentences; empty if it is not known.

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
    if folder.is_dir() and all(
        file.name in own or file.suffix == ".onnx" or SAMPLE.fullmatch(file.name) for file in folder.iterdir()
    ):
        shutil.rmtree(folder)
    make_empty(folder)
    models = (classifier.path for classifier in classifiers)
    for source in (*page, *models, *(sample.file for sample in samples)):
        shutil.copyfile(source, folder / source.name)
    variants = [_entry(classifier, table.get(sha256(classifier.path))) for classifier in classifiers]
    photographs = [{"file": sample.file.name, "labels": sample.labels} for sample in samples]
    manifest = {"variants": variants, "samples": photographs, "recommendation": recommendation}
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False))


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
    """Serves the files of one folder to pages of this machine, with the types that browsers require."""

    protocol_version = "HTTP/1.1"
    server_version = "Distillery"
    sys_version = ""
    timeout = IDLE_SECONDS
    extensions_map = {  # noqa: RUF012 - the base class declares it like this
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".onnx": "application/octet-stream",
        ".wasm": "application/wasm",
    }

    def send_head(self) -> BytesIO | BinaryIO | None:
        """Refuse other hosts than this machine, and everything but the files of the folder."""
        name = unquote(self.path.partition("?")[0].partition("#")[0]).removeprefix("/") or PAGE[0]
        if self.headers.get("Host", "").partition(":")[0].lower() not in HOSTS:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif name not in _regular_files(self.directory):
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            return super().send_head()
        return None

    def refuse(self) -> None:
        """Answer a method that would change something."""
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = refuse

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests."""


def _regular_files(folder: str) -> set[str]:
    """Names of the files in a folder, without links, which may lead elsewhere."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def _entry(classifier: Classifier, row: Row | None) -> dict[str, Any]:
    entry = {
        "variant": classifier.path.stem,
        "labels": classifier.labels,
        "size_bytes": classifier.path.stat().st_size,
        "numbers": number_format(classifier.path),
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

"""Downloads of large files: continued where they stopped, and used only with the published SHA-256."""

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from pipeline import provenance, resources
from pipeline.data.listing import SourceError
from pipeline.data.settings import Download
from pipeline.running import progress

SECONDS = 5.0
"""Seconds in which a server has to answer a request, and that a download may stand still."""

PAUSE_SECONDS = 1.0
"""Seconds before an interrupted download is continued."""

ATTEMPTS = 5
"""Number of requests in a row that may bring nothing new."""

BLOCK = 2**18
"""Most bytes that are read at once."""


class DownloadError(SourceError):
    """A file could not be downloaded; the message names its address and the reason."""


class _InterruptedError(Exception):
    """A request failed, and another one may succeed."""


def download(source: Download, part: Path) -> None:
    """Download a file, or what is missing of it.

    Args:
        source: address, size and SHA-256 of the file.
        part: the file. If it is there, the download goes on at its end; it is kept if the download is
            interrupted, and removed if its content is wrong in the end.

    Raises:
        DownloadError: the server does not answer, or offers another file.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = _length(part) > 0
    _complete(source, part)
    if provenance.sha256(part) != source.sha256 and resumed:
        # What was left by an earlier run may have been damaged, by a power cut for example.
        part.unlink()
        _complete(source, part)
    if (found := provenance.sha256(part)) != source.sha256:
        part.unlink()
        raise DownloadError(
            f"{source.url}: the SHA-256 of the download is {found}; {source.sha256} is expected "
            "(data.download.sha256), so that it was removed"
        )


def _complete(source: Download, part: Path) -> None:
    """Ask for what is missing until the file has its size."""
    idle, received = 0, False
    if _length(part) > source.size:
        part.unlink()
    with progress.bar(f"download {source.url.rpartition('/')[2]}", source.size, "bytes") as bar:
        while (before := _length(part)) < source.size:
            _show(bar, before)
            try:
                _request(source, part, bar)
                reason = "the connection was closed"
            except _InterruptedError as error:
                reason = str(error)
            now = _length(part)
            received = received or now > before
            idle = 0 if now > before else idle + 1
            # A server that has sent nothing yet is not waited for: there may be no network.
            if now < source.size and (not received or idle >= ATTEMPTS):
                kept = f"; {resources.size(now)} of {resources.size(source.size)} are kept" if now else ""
                raise DownloadError(f"{source.url} could not be downloaded: {reason}{kept}")
            if now < source.size:
                time.sleep(PAUSE_SECONDS)
        _show(bar, source.size)


def _request(source: Download, part: Path, bar: progress.tqdm) -> None:
    """Ask once for the bytes after those that are there, and append what comes.

    A server that does not serve ranges sends the whole file, which is then written from its beginning.
    """
    begin = _length(part)
    response = _open(source.url, begin)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _InterruptedError("a page came instead of the file; is it this network's page for a login?")
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
        if response.status == http.client.PARTIAL_CONTENT and given and int(given[1]) == begin:
            total = int(given[2]) if given[2] != "*" else None
        else:
            begin, length = 0, response.headers.get("Content-Length") or ""
            total = int(length) if length.isdigit() else None
        if total not in (None, source.size):
            raise DownloadError(
                f"{source.url} has {total:,} bytes; {source.size:,} are expected (data.download.size): "
                "the server offers another file"
            )
        with resources.writing(part), part.open("r+b" if begin else "wb") as file:
            file.seek(begin)
            _show(bar, begin)
            while block := _read(response):
                if file.tell() + len(block) > source.size:
                    raise DownloadError(
                        f"{source.url} has more than the {source.size:,} bytes that are expected "
                        "(data.download.size): the server offers another file"
                    )
                file.write(block)
                bar.update(len(block))


def _open(url: str, begin: int) -> http.client.HTTPResponse:
    """Ask for a file from a byte on.

    Raises:
        DownloadError: the server refuses.
        _InterruptedError: it does not answer in time.
    """
    answers: list[http.client.HTTPResponse | Exception] = []
    headers = {"User-Agent": "distillery"} | ({"Range": f"bytes={begin}-"} if begin else {})

    def ask() -> None:
        try:
            answers.append(
                urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SECONDS)
            )
        except Exception as error:  # names, proxies, certificates and sockets fail in many ways
            answers.append(error)

    # A name that cannot be looked up takes longer than any limit of a socket: hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    answer = answers[0] if answers else TimeoutError(f"no answer in {SECONDS:g} seconds")
    if isinstance(answer, http.client.HTTPResponse):
        return answer
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
        reason = f"HTTP status {answer.code} ({answer.reason})"
        if answer.code < http.client.INTERNAL_SERVER_ERROR:
            raise DownloadError(f"{url} could not be downloaded: {reason}")
        raise _InterruptedError(reason)
    raise _InterruptedError(_one_line(answer))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_one_line(error)) from error


def _one_line(error: object) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(getattr(reason, "strerror", None) or reason).split()) or type(reason).__name__


def _length(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _show(bar: progress.tqdm, count: int) -> None:
    bar.update(count - bar.n)

"""Downloads of archives of images, from a server of this machine."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from small_servers import BEHAVIOURS, serve

from pipeline import paths
from pipeline.data import downloads, fetch
from pipeline.data.downloads import DownloadError
from pipeline.data.listing import SourceError
from pipeline.data.settings import DataSettings, Download

CLASSES, PER_CLASS = ("cat", "dog"), 4


def add(archive: tarfile.TarFile, name: str, content: bytes, **properties: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in properties.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 40 + number).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pack(more: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    """An archive like those that are published: one folder, with a licence and what macOS leaves behind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        add(archive, "._pets", b"macOS")
        add(archive, "pets/LICENSE.txt", b"CC BY 2.0")
        for label in CLASSES:
            for number in range(PER_CLASS):
                add(archive, f"pets/{label}/{number}.jpg", picture(number))
        if more is not None:
            more(archive)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive() -> bytes:
    return pack()


@dataclass
class Site:
    """A server of one file, and what it was asked for."""

    content: bytes
    ranges: bool = True
    cut: int | None = None
    """Number of bytes after which it closes each connection."""
    status: int = 200
    hidden: bool = False
    """Whether it does not say how many bytes there are."""
    page: bool = False
    """Whether it calls the file a page, as networks do that ask for a login."""
    asked: list[str | None] = field(default_factory=list)
    address: str = ""

    def source(self, content: bytes | None = None, **changes: object) -> Download:
        """The settings for a content, by default the one that is served."""
        content = self.content if content is None else content
        values = {
            "url": f"{self.address}/files/pets.tgz",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "images": len(CLASSES) * PER_CLASS,
        }
        return Download.model_validate({**values, **changes})


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(asked := self.headers.get("Range"))
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0  # type: ignore[index]
            if site.status != 200:
                self.send_error(site.status)
                return
            self.send_response(206 if begin else 200)
            if begin:
                size = len(site.content)
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
            if not site.hidden:
                self.send_header("Content-Length", str(len(site.content) - begin))
            if site.page:
                self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(site.content[begin:][: site.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.address = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(os, "sync", lambda: None)  # it waits for whatever else this machine writes
    return tmp_path / "raw" / "pets-1"


def part_of(target: Path, source: Download) -> Path:
    target.parent.mkdir(exist_ok=True)
    return target.with_name(f".{target.name}.{source.sha256[:16]}.part")


def pictures(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.jpg"))


WHOLE = [f"{label}/{number}.jpg" for label in CLASSES for number in range(PER_CLASS)]


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_an_archive_becomes_the_folder_and_leaves_nothing_else(target: Path, archive: bytes) -> None:
    lines: list[str] = []
    with serving(Site(archive)) as site:
        fetch.fetch_archive(target, site.source(), lines.append)
        assert pictures(target) == WHOLE
        assert (target / "LICENSE.txt").is_file()
        assert visible(target.parent) == ["pets-1"]
        fetch.fetch_archive(target, site.source(), lines.append)
    assert site.asked == [None]
    assert len(lines) == 2
    assert all(str(target) in line for line in lines)


def test_an_interrupted_download_goes_on_where_it_stopped(target: Path, archive: bytes) -> None:
    with serving(Site(archive)) as site:
        part_of(target, site.source()).write_bytes(archive[:1000])
        fetch.fetch_archive(target, site.source())
    assert site.asked == ["bytes=1000-"]
    assert pictures(target) == WHOLE


def test_a_connection_that_breaks_again_and_again_is_continued(target: Path, archive: bytes) -> None:
    with serving(Site(archive, cut=len(archive) // 3)) as site:
        fetch.fetch_archive(target, site.source())
    assert [int((asked or "bytes=0-")[6:-1]) for asked in site.asked] == [
        number * (len(archive) // 3) for number in range(len(site.asked))
    ]
    assert len(site.asked) > 2
    assert pictures(target) == WHOLE


@pytest.mark.parametrize("hidden", [False, True])
def test_a_server_without_ranges_sends_the_whole_file_again(
    target: Path, archive: bytes, hidden: bool
) -> None:
    with serving(Site(archive, ranges=False, hidden=hidden)) as site:
        part_of(target, site.source()).write_bytes(archive[:1000])
        fetch.fetch_archive(target, site.source())
    assert pictures(target) == WHOLE


def test_a_server_that_never_sends_the_end_is_one_line_and_what_came_is_kept(
    target: Path, archive: bytes
) -> None:
    with serving(Site(archive, ranges=False, cut=2000)) as site:
        source = site.source()
        with pytest.raises(DownloadError, match=re.escape(source.url)):
            fetch.fetch_archive(target, source)
    assert part_of(target, source).stat().st_size == 2000
    assert len(site.asked) == 1 + downloads.ATTEMPTS
    assert not target.exists()


def test_a_page_instead_of_the_file_takes_nothing_of_what_is_there(target: Path, archive: bytes) -> None:
    with serving(Site(b"<html>Log in</html>", ranges=False, hidden=True, page=True)) as site:
        source = site.source(archive)
        part_of(target, source).write_bytes(archive[:1000])
        with pytest.raises(DownloadError, match=re.escape(source.url)):
            fetch.fetch_archive(target, source)
    assert part_of(target, source).read_bytes() == archive[:1000]


def test_a_damaged_beginning_of_an_earlier_run_is_downloaded_anew(target: Path, archive: bytes) -> None:
    with serving(Site(archive)) as site:
        part_of(target, site.source()).write_bytes(bytes(1000))
        fetch.fetch_archive(target, site.source())
    assert site.asked == ["bytes=1000-", None]
    assert pictures(target) == WHOLE


@pytest.mark.parametrize("left", [0, 500, 10**6])
def test_another_content_of_the_same_size_is_not_unpacked(target: Path, archive: bytes, left: int) -> None:
    other = bytes(reversed(archive))
    with serving(Site(other)) as site:
        source = site.source(archive)
        part_of(target, source).write_bytes(bytes(left))
        with pytest.raises(DownloadError) as caught:
            fetch.fetch_archive(target, source)
    message = str(caught.value)
    for part in (source.url, source.sha256, hashlib.sha256(other).hexdigest(), "data.path=FOLDER"):
        assert part in message
    assert visible(target.parent) == []


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("change", [-100, 100])
def test_an_archive_of_another_size_is_recognised(
    target: Path, archive: bytes, change: int, hidden: bool
) -> None:
    served = archive[:change] if change < 0 else archive + bytes(change)
    with serving(Site(served, hidden=hidden)) as site:
        source = site.source(archive)
        with pytest.raises(DownloadError) as caught:
            fetch.fetch_archive(target, source)
    assert source.url in str(caught.value)
    assert not target.exists()
    if not hidden:
        assert f"{len(served):,}" in str(caught.value)
        assert len(site.asked) == 1


def test_a_truncated_archive_with_the_expected_checksum_leaves_no_folder(
    target: Path, archive: bytes
) -> None:
    short = archive[: len(archive) // 2]
    with serving(Site(short)) as site, pytest.raises(SourceError, match="could not be unpacked"):
        fetch.fetch_archive(target, site.source())
    assert not target.exists()


def hostile_path(name: str) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: add(archive, name, b"outside")


def hostile_link(name: str) -> Callable[[tarfile.TarFile], None]:
    def more(archive: tarfile.TarFile) -> None:
        add(archive, "pets/way", b"", type=tarfile.SYMTYPE, linkname=name)
        add(archive, "pets/way/outside.txt", b"outside")

    return more


@pytest.mark.parametrize(
    "more",
    [
        hostile_path("../outside.txt"),
        hostile_path("pets/../../outside.txt"),
        hostile_link("../../.."),
        hostile_link("/tmp"),
        lambda archive: add(archive, "pets/pipe", b"", type=tarfile.FIFOTYPE),
    ],
)
def test_nothing_is_written_outside_of_the_folder(
    target: Path, tmp_path: Path, more: Callable[[tarfile.TarFile], None]
) -> None:
    with serving(Site(pack(more))) as site, pytest.raises(SourceError, match="could not be unpacked"):
        fetch.fetch_archive(target, site.source())
    assert not target.exists()
    assert not list(tmp_path.rglob("outside.txt"))


def test_an_archive_with_too_few_images_is_not_taken_for_whole(target: Path, archive: bytes) -> None:
    with serving(Site(archive)) as site, pytest.raises(SourceError, match=r"data\.download\.images"):
        fetch.fetch_archive(target, site.source(images=9))
    assert not target.exists()


def test_a_folder_that_lacks_images_is_not_taken_for_whole(target: Path, archive: bytes) -> None:
    with serving(Site(archive)) as site:
        fetch.fetch_archive(target, site.source())
        (target / "cat" / "0.jpg").unlink()
        with pytest.raises(SourceError) as caught:
            fetch.fetch_archive(target, site.source())
    assert str(target) in str(caught.value)
    assert len(site.asked) == 1


def test_an_archive_beside_the_folder_needs_no_network_and_stays(target: Path, archive: bytes) -> None:
    target.mkdir(parents=True)  # an empty folder is none
    own = target.with_name("pets.tgz")
    own.write_bytes(archive)
    fetch.fetch_archive(target, Site(archive, address="http://127.0.0.1:9").source())
    assert pictures(target) == WHOLE
    assert own.read_bytes() == archive


def test_a_wrong_archive_beside_the_folder_is_named(target: Path, archive: bytes) -> None:
    target.parent.mkdir()
    own = target.with_name("pets.tgz")
    own.write_bytes(archive[:-1])
    with pytest.raises(SourceError, match=re.escape(str(own))):
        fetch.fetch_archive(target, Site(archive, address="http://127.0.0.1:9").source())
    assert own.is_file()


@pytest.mark.parametrize("name", ["hangs", "trickles", "closes", "404", "500", "a page", "garbage"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_server_that_fails_is_one_line_with_the_address_and_the_way_without_it(
    target: Path, archive: bytes, name: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SECONDS", 0.3)
    began = time.monotonic()
    with serve(BEHAVIOURS[name]) as address:
        source = Site(archive, address=address).source()
        part = part_of(target, source)
        part.write_bytes(archive[:left])
        with pytest.raises(DownloadError) as caught:
            fetch.fetch_archive(target, source)
    message = str(caught.value)
    assert source.url in message
    assert "data.path=FOLDER" in message
    assert len(message.splitlines()) == 1
    assert time.monotonic() - began < 3
    assert part.read_bytes() == archive[:left]


SETTINGS = {"source": "folder", "path": "artifacts/raw/pets", "license": "CC0-1.0"}


def test_only_a_path_below_the_downloads_is_downloaded(
    target: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = target.parent.parent
    monkeypatch.chdir(tmp_path)
    with serving(Site(archive)) as site:
        of = {**SETTINGS, "download": site.source()}
        for other in ({"path": "photos"}, {"path": str(tmp_path)}, {"download": None}):
            fetch.fetch(DataSettings.model_validate(of | other))
        assert not site.asked
        fetch.fetch(DataSettings.model_validate(of))
    assert pictures(paths.RAW / "pets") == WHOLE


def test_a_run_that_was_killed_before_the_folder_was_whole_goes_on(target: Path, archive: bytes) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from pipeline.data import fetch
from pipeline.data.settings import Download
os.sync = lambda: os.kill(os.getpid(), signal.SIGKILL)
fetch.fetch_archive(Path(sys.argv[1]), Download.model_validate_json(sys.argv[2]))
"""
    with serving(Site(archive)) as site:
        source = site.source()
        killed = subprocess.run(
            [sys.executable, "-c", program, target, source.model_dump_json()], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert not target.exists()
        assert part_of(target, source).read_bytes() == archive
        fetch.fetch_archive(target, source)
    assert site.asked == [None]
    assert pictures(target) == WHOLE

"""Download of the images that the settings name: Fashion-MNIST, or an archive."""

import gzip
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from pipeline import files, provenance, resources
from pipeline.data import downloads, reading, trees
from pipeline.data.downloads import DownloadError
from pipeline.data.settings import DataSettings, Download
from pipeline.data.sources import SourceError
from pipeline.running import locks, progress

FILES = tuple(
    f"{stem}-{kind}-ubyte.gz" for stem in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")


def fetch(data: DataSettings, report: Callable[[str], None] = print) -> None:
    """Download what the settings name, unless it is there already or is a copy of one's own.

    Args:
        data: settings of the data.
        report: receives one line that says where the files are.

    Raises:
        SourceError: the images cannot be downloaded, or those that are there are not whole.
    """
    if not data.is_downloaded:
        return
    if data.download is None:
        fetch_fashion_mnist(data.path, report)
    else:
        fetch_archive(data.path, data.download, report)


def fetch_archive(target: Path, source: Download, report: Callable[[str], None] = print) -> None:
    """Download and unpack an archive of images, unless it is there already.

    The folder appears when it is whole. An interrupted download is kept beside it and continued. An archive
    that a person has put beside it under its own name is taken instead.

    Args:
        target: the folder.
        source: the archive.
        report: receives one line that says where the images are.

    Raises:
        SourceError: it cannot be downloaded, is not the published one, or holds a path that leads elsewhere;
            or the folder that is there lacks images.
    """
    if not _is_filled(target):
        archive = target.with_name(source.url.rpartition("/")[2])
        part = target.with_name(f".{target.name}.{source.sha256[:16]}.part")
        with locks.alone(target.with_name(f".{target.name}.lock")):
            if archive.is_file():
                _check_archive(archive, source)
                _unpack(archive, target, source.images)
            elif not _is_filled(target):
                try:
                    downloads.download(source, part)
                except DownloadError as error:
                    raise DownloadError(
                        f"{error}; give the command again, set data.path=FOLDER to a local copy, or put the "
                        f"archive at {archive}"
                    ) from error
                _unpack(part, target, source.images)
                part.unlink()
    if (count := _count_images(target)) < source.images:
        raise SourceError(
            f"{target} has {count:,} image files; {source.url} has {source.images:,}: remove the folder, and "
            "the same command downloads it again, or set data.path=FOLDER to a copy of your own"
        )
    report(f"{source.images:,} images are in {target}")


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _count_images(folder: Path) -> int:
    return sum(reading.is_picture(file) for file in trees.walk(folder).files)


def _check_archive(archive: Path, source: Download) -> None:
    if (found := provenance.sha256(archive)) != source.sha256:
        raise SourceError(
            f"{archive}: its SHA-256 is {found}; {source.sha256} is expected (data.download.sha256); remove "
            f"it, and the same command downloads {source.url}"
        )


def _unpack(archive: Path, target: Path, images: int) -> None:
    """Unpack an archive beside the folder, and give the folder its name when it is whole."""
    if not hasattr(tarfile, "data_filter"):
        raise SourceError(f"{archive} cannot be unpacked safely by this Python; 3.11.4 or newer is needed")
    with resources.scratch(target.parent) as scratch:
        folder = scratch / "unpacked"
        folder.mkdir()
        try:
            with (
                tarfile.open(archive) as packed,
                progress.bar(f"unpack {target.name}", images, "files") as bar,
            ):
                for member in packed:
                    packed.extract(member, folder, filter="data")
                    bar.update()
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(f"{archive} could not be unpacked: {' '.join(str(error).split())}") from error
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        inner = visible[0] if len(visible) == 1 and visible[0].is_dir() else folder
        if (count := _count_images(inner)) < images:
            raise SourceError(
                f"{archive} has {count:,} image files; {images:,} are expected (data.download.images)"
            )
        os.sync()  # A power cut must not leave a folder with its final name whose files are not written.
        if target.is_dir():
            target.rmdir()
        inner.rename(target)


def fetch_fashion_mnist(target: Path, report: Callable[[str], None] = print) -> None:
    """Put the four gzipped IDX files into ``target``, unless they are there already.

    Three ways are tried in turn: the folder of an installed Debian package, torchvision's download, and the
    Debian package itself, unpacked without root.

    Args:
        target: folder of the files.
        report: receives one line that says where the files are.

    Raises:
        SourceError: no way works; the message gives the reason for each.
    """
    if all((target / name).is_file() for name in FILES):
        report(f"Fashion-MNIST is in {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for download in (_installed, _torchvision, _debian):
        with resources.scratch(target.parent) as scratch:
            try:
                folder = download(scratch)
                for name in FILES:
                    with files.replacing(target / name) as fresh:
                        shutil.copyfile(folder / name, fresh)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                if resources.is_exhausted(error):
                    raise
                failures.append(f"{download.__name__.strip('_')}: {' '.join(str(error).split())}")
                continue
        report(f"Fashion-MNIST is in {target} (from {download.__name__.strip('_')})")
        return
    raise SourceError("Fashion-MNIST could not be downloaded. " + "; ".join(failures))


def _installed(_scratch: Path) -> Path:
    return Path("/") / DEBIAN_FOLDER


def _torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST  # slow to import

    FashionMNIST(scratch, download=True)
    return scratch / "FashionMNIST" / "raw"


def _debian(scratch: Path) -> Path:
    run = {"cwd": scratch, "check": True, "capture_output": True, "text": True, "timeout": 300}
    subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)
    package = next(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package.name, "unpacked"], **run)
    return scratch / "unpacked" / DEBIAN_FOLDER

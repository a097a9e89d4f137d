"""Download of Fashion-MNIST, from whichever place offers it."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import FashionMNIST

from pipeline import files, resources
from pipeline.data.sources import SourceError

FILES = tuple(
    f"{stem}-{kind}-ubyte.gz" for stem in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")


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
    FashionMNIST(scratch, download=True)
    return scratch / "FashionMNIST" / "raw"


def _debian(scratch: Path) -> Path:
    run = {"cwd": scratch, "check": True, "capture_output": True, "text": True, "timeout": 300}
    subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)
    package = next(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package.name, "unpacked"], **run)
    return scratch / "unpacked" / DEBIAN_FOLDER

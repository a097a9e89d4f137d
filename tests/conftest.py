"""Tiny images and students that all tests share."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

# Shapes in annotations are checked while the tests run; not in students, whose forward torch.fx traces
# with proxies that are no tensors.
install_import_hook(["pipeline", "teachers"], "beartype.beartype")


USERS = pytest.StashKey[str | None]()
CACHE = "DISTILLERY_CACHE"
"""Variable that names the folder of this machine's measurements."""
WORKERS = "PYTEST_XDIST_WORKER_COUNT"
"""Variable that holds the number of processes that share the tests."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests and the processes that they start a folder of measurements of their own."""
    config.stash[USERS] = os.environ.get(CACHE)
    os.environ[CACHE] = tempfile.mkdtemp(prefix="distillery-tests-")
    if WORKERS in os.environ:
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(os.environ[WORKERS]))))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True)
    if (own := config.stash[USERS]) is not None:
        os.environ[CACHE] = own


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes with 24 JPEGs each, of varied size; the class is the colour."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for label, colour in {"blue": (40, 60, 210), "green": (50, 200, 60), "red": (210, 40, 50)}.items():
        (root / label).mkdir()
        for number in range(24):
            height, width = random.integers(24, 56, size=2)
            noise = random.normal(0, 30, (height, width, 3))
            pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:02}.jpg", quality=95)
    return root


@pytest.fixture
def colours(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prepared data of the classes blue, green and red, as the current one."""
    from pipeline import paths
    from pipeline.data import sources, splits, writing

    listing = sources.folder(photographs)
    made = splits.assign(listing.labelled, train=None, val=0.4, test=0.2, seed=0)
    facts = {"source": "folder", "path": "x", "license": "CC0-1.0"}
    writing.write(tmp_path / paths.DATA, listing, made, facts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """The same photographs as the pipeline prepares them: 43 to train, 11 of val and 18 of test."""
    from pipeline.data import sources, splits, writing

    folder = tmp_path_factory.mktemp("prepared") / "data"
    listing = sources.folder(photographs)
    made = splits.assign(listing.labelled, train=None, val=0.2, test=0.25, seed=0)
    writing.write(folder, listing, made, {"source": "folder", "path": "x", "license": "CC0-1.0"})
    return folder

"""Calls of LiteRT files for ``latency.time_condition``."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.litert import interpreter
from pipeline.measurement import latency
from pipeline.measurement.latency import Call


def open_litert(file: Path, cores: Sequence[int], random: np.random.Generator) -> Call:
    """An ``Opener`` for LiteRT with XNNPACK; the call classifies one random image.

    Raises:
        LiteRtError: the file cannot be opened.
    """
    # XNNPACK's threads take over the cores of the thread that opens the file.
    with latency.pinned(cores):
        session = interpreter.open_file(file, threads=len(cores))
    side = session.side
    return partial(session.outputs, random.integers(0, 256, (1, side, side, 3), dtype=np.uint8))

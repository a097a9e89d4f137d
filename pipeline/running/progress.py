"""Progress bars: one style and one pace for all stages."""

import sys

from tqdm import tqdm

SCREEN_SECONDS, LOG_SECONDS = 0.5, 20.0
"""Seconds between two updates of a bar, on a screen and in a log, where each update is a line."""

DELAY_SECONDS = 2.0
"""Seconds of work after which a bar appears."""


def bar(description: str, total: int | None = None, unit: str = "images", initial: int = 0) -> tqdm:
    """A progress bar on standard error, to be closed or used as a context.

    Args:
        description: what is done.
        total: number of units in all; None if it is not known.
        unit: what is counted, in the plural.
        initial: number of units that were done before.
    """
    pace = SCREEN_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=f" {unit}",
        unit_scale=True,
        delay=DELAY_SECONDS,
        mininterval=pace,
        maxinterval=max(pace, 10 * SCREEN_SECONDS),
    )

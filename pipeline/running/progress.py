"""Progress bars: one style and one pace for all stages."""

import sys

from tqdm import tqdm

SCREEN_SECONDS, LOG_SECONDS = 0.5, 20.0
"""Seconds between two updates of a bar, on a screen and in a log, where each update is a line."""

DELAY_SECONDS = 2.0
"""Seconds of work after which a bar appears."""


class Bar(tqdm):
    """A progress bar whose line ends when it is closed, also if only a new postfix has displayed it."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Display the bar with a postfix; its delay is over then, which tqdm does not notice."""
        super().set_postfix_str(s, refresh)
        if refresh:
            self.delay = 0.0


def bar(description: str, total: int | None = None, unit: str = "images", initial: int = 0) -> Bar:
    """A progress bar on standard error, to be closed or used as a context.

    Args:
        description: what is done.
        total: number of units in all; None if it is not known.
        unit: what is counted, in the plural.
        initial: number of units that were done before.
    """
    pace = SCREEN_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    return Bar(
        desc=description,
        total=total,
        initial=initial,
        unit=f" {unit}",
        # Without a scale, tqdm counts in whole numbers; with one, from 1,000 on, in thousands.
        unit_scale=total is None or total >= 1000,
        delay=DELAY_SECONDS,
        mininterval=pace,
        maxinterval=max(pace, 10 * SCREEN_SECONDS),
    )

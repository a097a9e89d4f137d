"""What renders views: the device where they are needed, or processes on the CPU."""

from typing import Literal

Renderer = Literal["device", "workers"]
Preference = Literal["auto", "device", "workers"]

_preferred: Preference = "auto"


def prefer(renderer: Preference) -> None:
    """Set what renders views in this process from now on.

    Args:
        renderer: ``auto`` renders on a GPU if the images fit there and many of them are asked for, ``device``
            on any device where they fit, ``workers`` never on the device.
    """
    global _preferred
    _preferred = renderer


def preferred() -> Preference:
    """What was set last."""
    return _preferred

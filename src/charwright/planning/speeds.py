"""Training speed by width, interpolated between measured widths."""

from __future__ import annotations

import math
from collections.abc import Mapping

REFERENCE = {64: 400.0, 128: 350.0, 256: 220.0, 512: 100.0, 1024: 39.0}
"""Speed by width on the machine of the trials, in thousands of characters per second."""


def speed_at(speeds: Mapping[int, float], units: int) -> float:
    """Characters per second at any width: log-linear interpolation between the measured widths.

    Outside of them the speed changes as on the reference machine, and above its widest with the square of the width.
    """
    nearest = min(max(units, min(speeds)), max(speeds))
    return _interpolated(speeds, nearest) * _reference(units) / _reference(nearest)


def _reference(units: int) -> float:
    widest, narrowest = max(REFERENCE), min(REFERENCE)
    return _interpolated(REFERENCE, min(max(units, narrowest), widest)) * min(1.0, widest / units) ** 2


def _interpolated(speeds: Mapping[int, float], units: int) -> float:
    """The speed at a width within the range of `speeds`."""
    if units in speeds:
        return speeds[units]
    above = min(width for width in speeds if width > units)
    below = max(width for width in speeds if width < units)
    share = math.log(units / below) / math.log(above / below)
    return math.exp((1 - share) * math.log(speeds[below]) + share * math.log(speeds[above]))

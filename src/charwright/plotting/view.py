"""What a plot shows, whatever draws it: curves with units, labels, and the best losses in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from charwright.plotting.curves import AXES, Floats
from charwright.plotting.groups import Group

UNITS = {"nats": "nats per character", "bits": "bits per character", "perplexity": "perplexity per character"}
"""What the vertical axis may count, and its label."""
HOURS_FROM = 180
"""Minutes from which on the axis counts hours."""


def converted(nats: Floats, unit: str) -> Floats:
    """Losses in nats per character in another unit; the perplexity is exp(nats)."""
    if unit == "bits":
        return nats / math.log(2)
    return np.exp(nats) if unit == "perplexity" else nats


@dataclass(frozen=True)
class View:
    """The curves of some groups of runs, with the units of a plot."""

    groups: tuple[Group, ...]
    x: str
    y: str
    notes: tuple[str, ...] = ()
    """A line about each run that was resumed, is not finished, has no validation, or could not be read."""

    @property
    def x_label(self) -> str:
        """The label of the horizontal axis."""
        return "hours of training" if self._in_hours else AXES[self.x]

    @property
    def x_scale(self) -> float:
        """What positions on the horizontal axis are multiplied with."""
        return 1 / 60 if self._in_hours else 1.0

    @property
    def y_label(self) -> str:
        """The label of the vertical axis."""
        return UNITS[self.y]

    @property
    def _in_hours(self) -> bool:
        lines = [curve.judged.at["minutes"] for group in self.groups for curve in group.curves]
        return self.x == "minutes" and max(float(np.nanmax(line, initial=0)) for line in lines) > HOURS_FROM

    def table(self) -> list[str]:
        """A line for each curve: its best loss, where that was, and the spread between seeds."""
        return [f"{group.name}: {self.summary(group)}" for group in self.groups]

    def summary(self, group: Group) -> str:
        """The best loss of a group in words."""
        best = group.best(self.x)
        each = converted(best.each, self.y)
        what = "best validation" if group.validated else "lowest training loss"
        words = f"{what} {self.figure_of(best.nats)} at step {best.step:,}"
        if len(each) > 1:
            words += f", median of {len(each)} seeds {np.median(each):.4f}, highest {each.max():.4f}"
        return words

    def figure_of(self, nats: float) -> str:
        """A loss in the unit of the plot."""
        return f"{converted(np.array([nats]), self.y)[0]:.4f}"

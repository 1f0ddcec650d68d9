"""Runs that differ only in their seed, summarized: the median of their curves, and the range between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from charwright.plotting.curves import Curve, Floats, Line

MOST_POINTS = 400


@dataclass(frozen=True)
class Band:
    """The median, lowest and highest loss (N,) of some runs in nats per character, at positions (N,) on an axis."""

    x: Floats
    median: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Best:
    """The lowest loss of a group in nats per character, where it was, and the best losses (R,) of all its runs."""

    x: float
    nats: float
    step: int
    each: Floats


@dataclass(frozen=True)
class Group:
    """One or several runs that are one curve in a plot."""

    name: str
    curves: tuple[Curve, ...]

    @property
    def validated(self) -> bool:
        """Whether all of its runs have a validation."""
        return all(len(curve.validation) for curve in self.curves)

    def band(self, axis: str, *, training: bool) -> Band:
        """The training or the validation loss on an axis, over the part of it that all runs have."""
        lines = [curve.training if training else curve.validation for curve in self.curves]
        return _band([_on_axis(line, axis) for line in lines if len(line)])

    def best(self, axis: str) -> Best:
        """The best point of its runs: of the validations if all have one, otherwise of the training."""
        by_validation = self.validated
        lines = [curve.judged if by_validation or not len(curve.training) else curve.training for curve in self.curves]
        each = np.array([line.nats.min() for line in lines])
        line = lines[int(np.argmin(each))]
        index = int(np.argmin(line.nats))
        return Best(float(line.at[axis][index]), float(each.min()), int(line.at["steps"][index]), each)


def grouped(curves: Sequence[Curve], *, apart: bool = False) -> list[Group]:
    """The groups of some curves, in their order; `apart` leaves each on its own."""
    found: dict[str, list[Curve]] = {}
    for index, curve in enumerate(curves):
        found.setdefault(f"{index}" if apart else curve.identity, []).append(curve)
    groups = []
    for members in found.values():
        seeds = len({curve.seed for curve in members})
        if len(members) == 1 or seeds < len(members):  # The same seed twice is the same run, or a repetition of it.
            groups += [Group(curve.name, (curve,)) for curve in members]
        else:
            groups.append(Group(f"{_common_name(members)}, {seeds} seeds", tuple(members)))
    return groups


def _common_name(curves: Sequence[Curve]) -> str:
    """What the names of some runs begin with, without the word for the seed."""
    letters = zip(*(curve.name for curve in curves), strict=False)
    common = "".join(one[0] for one in takewhile(lambda one: len(set(one)) == 1, letters))
    shortened = re.sub(r"[-_. ]*(seed|s)?[-_.= ]*$", "", common, flags=re.IGNORECASE)
    return shortened if re.search(r"[^/\\]$", shortened) else curves[0].name


def _on_axis(line: Line, axis: str) -> tuple[Floats, Floats]:
    """Positions and losses, where the position is known."""
    x = line.at[axis]
    known = np.isfinite(x)
    return x[known], line.nats[known]


def _band(lines: Sequence[tuple[Floats, Floats]]) -> Band:
    lines = [(x, nats) for x, nats in lines if len(x)]
    if not lines:
        nothing = np.zeros(0)
        return Band(nothing, nothing, nothing, nothing)
    if len(lines) == 1:
        [(x, nats)] = lines
        return Band(x, nats, nats, nats)
    begin, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.unique(np.concatenate([x for x, _ in lines]))
    grid = grid[(grid >= begin) & (grid <= end)]
    if len(grid) > MOST_POINTS:
        grid = np.linspace(begin, end, MOST_POINTS)
    each = np.array([np.interp(grid, x, nats) for x, nats in lines])
    if not len(grid):
        return Band(grid, grid, grid, grid)
    return Band(grid, np.median(each, axis=0), each.min(axis=0), each.max(axis=0))

"""Learning curves as text: each curve has its letter, so neither colours nor a terminal are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

import numpy as np
from uniplot import plot_to_string

from charwright.plotting.colors import ON_ANY_BACKGROUND
from charwright.plotting.curves import Floats
from charwright.plotting.view import View, converted

BEST, RANGE = "*", "."
AXIS_WIDTH = 14
"""Columns for the labels of the vertical axis and for the frame."""
NARROWEST, LOWEST = 20, 5
MARGIN = 0.01
"""The part of an axis that is free at either end."""
COLUMNS_PER_TICK, ROWS_PER_TICK = 15, 5
HUGE = 1e9
"""Numbers from here on are written as powers of ten."""


def drawn(curves: View, width: int, height: int, *, color: bool) -> str:
    """The curves with a legend below. Capital letters are validation losses, small ones training losses."""
    layers: list[tuple[Floats, Floats, bool, str, str]] = []  # x, y, whether joined, symbol, colour
    legend = []
    for index, group in enumerate(curves.groups):
        hue = ON_ANY_BACKGROUND[index % len(ON_ANY_BACKGROUND)]
        capital, small = ascii_uppercase[index % 26], ascii_lowercase[index % 26]
        for training in (True, False):
            band = group.band(curves.x, training=training)
            if not len(band):
                continue
            x, several = band.x * curves.x_scale, len(group.curves) > 1
            if several and (not training or not group.validated):
                layers += [(x, converted(edge, curves.y), True, RANGE, hue) for edge in (band.low, band.high)]
            layers.append((x, converted(band.median, curves.y), True, small if training else capital, hue))
        best = group.best(curves.x)
        at = np.array([best.x * curves.x_scale])
        layers.append((at, converted(np.array([best.nats]), curves.y), False, BEST, hue))
        symbols = f"{capital} {small}" if group.validated else f"  {small}"
        legend.append(f"{symbols}  {group.name}: {curves.summary(group)}")
    # The best points are drawn last, above all lines.
    layers.sort(key=lambda layer: (layer[3] == BEST, layer[3] != RANGE))
    xs, ys, joined, symbols_of, hues = (list(column) for column in zip(*layers, strict=True))
    (left, right), (low, high) = _limits(xs), _limits(ys)
    columns, rows = max(NARROWEST, width - AXIS_WIDTH), max(LOWEST, height)
    plot = plot_to_string(
        ys,
        xs,
        lines=joined,
        character_set="ascii",
        force_ascii_characters=symbols_of,
        color=hues if color else False,
        width=columns,
        height=rows,
        x_min=left,
        x_max=right,
        y_min=low,
        y_max=high,
        x_gridlines=[],
        y_gridlines=[],
        x_labels=False,
        y_labels=False,
    )
    lines = [line.rstrip() for line in str(plot).splitlines()]
    for value, label in ticks(low, high, rows // ROWS_PER_TICK):
        lines[rows - _place(value, low, high, rows)] += f" {label}"
    below = ""
    for value, label in ticks(left, right, columns // COLUMNS_PER_TICK):
        begin = 1 + _place(value, left, right, columns) - len(label) // 2
        if begin > len(below) and begin + len(label) <= columns + AXIS_WIDTH:
            below = below.ljust(begin) + label
    several = any(len(group.curves) > 1 for group in curves.groups)
    keys = f"A validation, a training, {BEST} best" + (f", {RANGE} lowest and highest of the seeds" if several else "")
    return "\n".join([curves.y_label, *lines, below, f"{curves.x_label}   ({keys})", *legend])


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """About `most` round numbers in a range, and how they are written: all with the decimals that they need."""
    least = 0.75 * (high - low) / max(most, 2)
    power = math.floor(math.log10(least))
    step = next(scale * 10.0**power for scale in (1, 2, 5, 10) if scale * 10.0**power >= least)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    style = f",.{decimals}f" if max(abs(low), abs(high)) < HUGE else ".6g"
    return [(number * step, format(number * step, style)) for number in numbers]


def _limits(curves: Sequence[Floats]) -> tuple[float, float]:
    """The range of an axis."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def _place(value: float, low: float, high: float, places: int) -> int:
    return min(int((value - low) / (high - low) * places), places - 1)

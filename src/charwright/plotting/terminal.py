"""Learning curves as text: each curve has its letter, so neither colours nor a terminal are needed."""

from __future__ import annotations

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
    plot = plot_to_string(
        ys,
        xs,
        lines=joined,
        character_set="ascii",
        force_ascii_characters=symbols_of,
        color=hues if color else False,
        width=max(NARROWEST, width - AXIS_WIDTH),
        height=max(LOWEST, height),
        x_gridlines=[],
        y_gridlines=[],
    )
    several = any(len(group.curves) > 1 for group in curves.groups)
    keys = f"A validation, a training, {BEST} best" + (f", {RANGE} lowest and highest of the seeds" if several else "")
    lines = [line.rstrip() for line in str(plot).splitlines()]
    return "\n".join([curves.y_label, *lines, f"{curves.x_label}   ({keys})", *legend])

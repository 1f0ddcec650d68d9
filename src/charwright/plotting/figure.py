"""Learning curves as a figure of matplotlib: legible without colour, because dashes and markers differ too."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from charwright.plotting.colors import COLORS
from charwright.plotting.groups import Band, Group
from charwright.plotting.view import View, converted

DASHES: tuple[Any, ...] = ("-", (0, (7, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)), (0, (7, 2, 2, 2, 2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_MARKERS = 12
"""Markers on a line, evenly over its points."""
CHINESE: tuple[str, ...] = (
    "Noto Sans CJK TC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang TC",
    "Microsoft JhengHei",
)
CHINESE += ("WenQuanYi Zen Hei", "Arial Unicode MS")


def figure_of(curves: View) -> Figure:
    """Draw the curves: validation thick, training thin, the band of the seeds shaded, the best point with its value."""
    with _settings():
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for index, group in enumerate(curves.groups):
            color, dashes = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            marker = MARKERS[index % len(MARKERS)]
            for training in (False, True):
                band = group.band(curves.x, training=training)
                if not len(band):
                    continue
                leading = not training or not group.validated
                label = f"{group.name}, {'training' if training else 'validation'}"
                style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.8}
                if leading:
                    label += f", best {curves.figure_of(group.best(curves.x).nats)}"
                    style = {"linewidth": 2.0, "marker": marker, "markevery": _every(band), "zorder": 3}
                x, median = band.x * curves.x_scale, converted(band.median, curves.y)
                axes.plot(x, median, color=color, ls=dashes, label=_plain(label), **style)
                if len(group.curves) > 1:
                    low, high = converted(band.low, curves.y), converted(band.high, curves.y)
                    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0.5, edgecolor=color)
            _mark_best(axes, curves, group, color, marker, index)
        axes.set(xlabel=curves.x_label, ylabel=curves.y_label)
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.margins(x=0.02, y=0.09)
        axes.grid(visible=True, alpha=0.3)
        legend = axes.legend(loc="upper right", fontsize="small", handlelength=4.5)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def saved(figure: Figure, file: BinaryIO, kind: str, description: str) -> None:
    """Write a figure; the same curves give the same bytes."""
    metadata: dict[str, str | None] = {"Title": "Learning curves"}
    if kind == "svg":
        metadata |= {"Date": None, "Description": description}
    elif kind == "pdf":
        metadata |= {"CreationDate": None, "Subject": description}
    else:
        metadata |= {"Description": description}
    with _settings():
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)


def _mark_best(axes: Any, curves: View, group: Group, color: str, marker: str, index: int) -> None:
    """A ring around the best point, and its value below or above it."""
    best = group.best(curves.x)
    x, y = best.x * curves.x_scale, converted(np.array([best.nats]), curves.y)[0]
    axes.plot([x], [y], marker=marker, ms=9, mfc="white", mec=color, mew=2.0, ls="none", zorder=5)
    axes.annotate(
        f"{curves.figure_of(best.nats)}",
        (x, y),
        xytext=(0, 9 if index % 2 else -16),  # Neighbours are often close.
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=color,
        zorder=6,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
    )


def _every(band: Band) -> int:
    return max(1, len(band) // MOST_MARKERS)


def _plain(label: str) -> str:
    """A label that the legend does not leave out, as it does with those that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


@contextmanager
def _settings() -> Iterator[None]:
    """The settings of figures: text stays text in SVG, and Chinese names have a font if there is one."""
    known = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in CHINESE if name in known)]
    level = logging.getLogger("matplotlib.font_manager")
    before = level.level
    with mpl.rc_context({"font.family": fonts, "svg.fonttype": "none", "svg.hashsalt": "charwright"}):
        level.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                # A name in a script without a font is drawn with boxes, which is no reason to stop.
                warnings.filterwarnings("ignore", message="Glyph .* missing from")
                yield
        finally:
            level.setLevel(before)

"""Charts as SVG, which need no script and scale without loss; every one stands beside a table of its numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.explanation.results import EmbeddingMap, Memory
from charwright.webpage.sentence import Sentence, in_attribute

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
SMALLEST = 1e-4
"""Bits, below which the rounding of float32 shows."""
SIDE = 640

VISIBLE = {"\n": "↵", " ": "␣", "\t": "⇥", "\u00a0": "⍽", "\u3000": "□", "\r": "␍"}
NAMES = {"\n": "newline", " ": "space", "\t": "tab", "\u00a0": "no-break space", "\u3000": "ideographic space"}


def visible(token: str) -> str:
    """A token as it is drawn: a sign for one without ink."""
    if token in VISIBLE:
        return VISIBLE[token]
    return token if token.isprintable() else f"U+{ord(token):04X}" if len(token) == 1 else token


def named(token: str) -> str:
    """A token as it is read aloud."""
    return NAMES.get(token, visible(token))


def memory_chart(memory: Memory) -> str:
    """The effect of replacing the character k back, over k, both on logarithmic scales, with two standard errors."""
    high = 10 ** math.ceil(math.log10(max(float(memory.bits.max()), 10 * SMALLEST)))
    decades = round(math.log10(high / SMALLEST))
    last = max(memory.lags[-1], 2)

    def x(k: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(k) / math.log(last)

    def y(bits: float) -> float:
        share = math.log10(max(bits, SMALLEST) / SMALLEST) / decades
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(share, 1)

    points = measurable(memory)
    upper = [f"{x(k):.1f},{y(bits + 2 * error):.1f}" for k, bits, error in points]
    lower = [f"{x(k):.1f},{y(bits - 2 * error):.1f}" for k, bits, error in reversed(points)]
    curve = " ".join(f"{x(k):.1f},{y(bits):.1f}" for k, bits, _ in points)
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= last]
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(b):.1f}" y2="{y(b):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(b) + 4:.1f}" text-anchor="end">{b:g}</text>'
        for b in (SMALLEST * 10**n for n in range(decades + 1))
    ]
    parts += [
        f'<text x="{x(k):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{k}</text>'
        f'<line class="axis" x1="{x(k):.1f}" x2="{x(k):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        for k in ticks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = Sentence(
        "The effect of the {unit} k back on the prediction falls from {first} bits at k = 1 to {last} bits at "
        "k = {lag}.",
        unit=Sentence(memory.unit),
        first=f"{memory.bits[0]:.2g}",
        last=f"{memory.bits[-1]:.2g}",
        lag=memory.lags[-1],
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {in_attribute("aria-label", title)}>'
        f"{''.join(parts)}"
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<polygon class="band" points="{" ".join([*upper, *lower])}"/><polyline class="curve" points="{curve}"/>'
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">k, {memory.unit}s back</text>'
        f'<text x="12" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(TOP + HEIGHT - BOTTOM) / 2})">bits</text></svg>'
    )


def smoothed(memory: Memory) -> Iterator[tuple[float, float, float]]:
    """Lag, effect and error, averaged from k = 10 on over neighbouring lags that a logarithmic scale draws as one."""
    begin = 0
    while begin < len(memory.lags):
        end = begin + max(1, memory.lags[begin] // 8)
        part = slice(begin, end)
        # The lags of one bin share their positions, so their errors are not independent.
        yield (
            float(np.mean(memory.lags[part])),
            float(memory.bits[part].mean()),
            float(memory.errors[part].mean()),
        )
        begin = end


def measurable(memory: Memory) -> list[tuple[float, float, float]]:
    """The smoothed effects up to the last that is not below `SMALLEST`; beyond it there is nothing to draw."""
    points = list(smoothed(memory))
    while len(points) > 1 and points[-1][1] < SMALLEST:
        points.pop()
    return points


def shown_lags(memory: Memory) -> Iterator[int]:
    """The indices of the lags that a table shows: 1, 2, 3, 5, 10, 20, 50 ... and the last."""
    wanted = {1, 2, 3, 5, 10, 20, 30, 50, 100, 200, memory.lags[-1]}
    return (index for index, lag in enumerate(memory.lags) if lag in wanted)


def embedding_chart(found: EmbeddingMap) -> str:
    """The tokens at their places; where two would cover each other, the more frequent one is drawn."""
    points = found.points
    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-9)
    placed = (points - low) / span * (SIDE - 60) + 30
    drawn: list[str] = []
    for token, (x, y), free in zip(found.tokens, placed.tolist(), uncovered(placed, (11, 13)), strict=True):
        if not free:
            drawn.append(f'<circle class="fill" cx="{x:.1f}" cy="{SIDE - y:.1f}" r="1.5"/>')
            continue
        drawn.append(
            f'<text x="{x:.1f}" y="{SIDE - y + 5:.1f}" text-anchor="middle">{html.escape(visible(token))}</text>'
        )
    label = Sentence(
        "{number} characters at the places of their embeddings; the table has the neighbours of each.",
        number=len(found.tokens),
    )
    said = in_attribute("aria-label", label)
    return f'<svg class="map" viewBox="0 0 {SIDE} {SIDE}" role="img" translate="no" {said}>{"".join(drawn)}</svg>'


def uncovered(points: npt.NDArray[np.floating[Any]], reach: tuple[float, float]) -> list[bool]:
    """Whether a token at each place (N, 2) is clear of those before it that are drawn, by this distance in x or y."""
    free: list[bool] = []
    for point in points:
        drawn = points[: len(free)][free]
        free.append(not bool((np.abs(drawn - point) < reach).all(axis=1).any()))
    return free


def bar(share: float, width: int = 80) -> str:
    """A small bar for a number between 0 and 1, which stands beside it."""
    filled = round(width * min(max(share, 0), 1), 1)
    return (
        f'<svg class="bar" width="{width}" height="10" viewBox="0 0 {width} 10" aria-hidden="true">'
        f'<rect class="track" width="{width}" height="10"/><rect class="fill" width="{filled}" height="10"/></svg>'
    )

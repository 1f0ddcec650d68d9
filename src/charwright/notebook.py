"""How results show themselves in a notebook: small pieces of HTML, legible in light and dark, with figures as text.

The classes that are shown build on these in `_repr_html_`. Colours are those of the page around them. What comes from a
text, a model or a path is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Protocol, TypeVar

MOST_POINTS = 200  # of a curve: more than its pixels show nothing
WIDTH, HEIGHT = 480, 140  # of a curve, in pixels
LEFT = "text-align: left"
PRE = "font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.3em 0"

Item = TypeVar("Item")
Points = Sequence[tuple[float, float]]


class Handle(Protocol):
    """Something that is on display, and can be replaced."""

    def update(self, data: Mapping[str, str], *, raw: bool) -> None:
        """Replace it by another bundle of representations."""


def show(bundle: Mapping[str, str]) -> Handle | None:
    """Display a bundle of representations, by their MIME types, in the notebook that this program runs in.

    Returns None when it does not run in one, so that nothing is displayed. Jupyter, VS Code and Colab show the bundle
    as an output of the cell and keep it in the file; a widget would be empty when the notebook is opened again.
    """
    ipython: Any = sys.modules.get("IPython")  # A notebook has imported it.
    shell = None if ipython is None else getattr(ipython, "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    handle: Handle = ipython.display.display(bundle, raw=True, display_id=True)
    return handle


def lines(listed: Iterable[str]) -> str:
    """Lines of text."""
    return "".join(f"<div>{escape(line)}</div>" for line in listed)


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values, under a title."""
    body = "".join(
        f'<tr><th scope="row" style="{LEFT}">{escape(name)}</th><td style="{LEFT}">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table>{_caption(title)}<tbody>{body}</tbody></table>"


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "right") -> str:
    """A table with a row of headings, under a title; a column without content is left out."""
    listed = [list(row) for row in rows]
    kept = [
        i for i in range(max(map(len, listed), default=0)) if any(row[i : i + 1] not in ([], [""]) for row in listed)
    ]
    style = f'style="text-align: {align}"'
    cells = "".join(f'<th scope="col" {style}>{escape(columns[i])}</th>' for i in kept if columns)
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    body = "".join(
        "<tr>" + "".join(f"<td {style}>{escape(row[i])}</td>" for i in kept if i < len(row)) + "</tr>" for row in listed
    )
    return f"<table>{_caption(title)}{head}<tbody>{body}</tbody></table>"


def passage(text: str, *, prompt: str = "", note: str = "") -> str:
    """A text as it is, line by line, after its prompt in bold and before a note. It finds its own direction."""
    bold = f"<b>{escape(prompt)}</b>" if prompt else ""
    small = f"<div><small>{escape(note)}</small></div>" if note else ""
    # HTML drops a newline directly behind the tag.
    return f'<pre dir="auto" style="{PRE}">\n{bold}{escape(text)}</pre>{small}'


def tokens(title: str, listed: Sequence[str], most: int = 100) -> str:
    """Tokens with their ids, in rows of ten."""
    shown = [f"{number} {visible(token)}" for number, token in enumerate(listed[:most])]
    rows = [shown[begin : begin + 10] for begin in range(0, len(shown), 10)]
    rest = f"<div>and {len(listed) - most:,} more</div>" if len(listed) > most else ""
    return grid(title, (), rows) + rest


def bar(fraction: float, note: str) -> str:
    """A progress bar and a note."""
    shown = f"{max(0.0, min(1.0, fraction)):.3f}"
    return f'<div><progress value="{shown}" max="1" aria-label="training"></progress> {escape(note)}</div>'


def curve(points: Points, title: str) -> str:
    """A curve through points, with the lowest and highest value in figures; "" for fewer than two points."""
    points = thinned(points)
    if len(points) < 2:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across, up = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    left, top, bottom = 56, 12, HEIGHT - 24
    path = " ".join(
        f"{left + (x - min(xs)) / across * (WIDTH - left - 8):.1f},{bottom - (y - low) / up * (bottom - top):.1f}"
        for x, y in points
    )
    label = f"{title}: from {ys[0]:.3f} at {xs[0]:,.0f} to {ys[-1]:.3f} at {xs[-1]:,.0f}; lowest {low:.3f}"
    texts = (
        (left - 6, top + 4, "end", f"{high:.2f}"),
        (left - 6, bottom + 4, "end", f"{low:.2f}"),
        (left, HEIGHT - 6, "start", f"{xs[0]:,.0f}"),
        (WIDTH - 8, HEIGHT - 6, "end", f"{xs[-1]:,.0f}"),
        ((left + WIDTH) // 2, HEIGHT - 6, "middle", title),
    )
    drawn = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11" fill="currentColor">{escape(words)}</text>'
        for x, y, anchor, words in texts
    )
    axes = f'<path d="M{left},{top} V{bottom} H{WIDTH - 8}" fill="none" stroke="currentColor" opacity="0.4"/>'
    line = f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="width: 100%; max-width: {WIDTH}px">{axes}{line}{drawn}</svg>'
    )


def thinned(points: Sequence[Item], most: int = MOST_POINTS) -> Sequence[Item]:
    """At most so many points, evenly chosen, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def visible(character: str) -> str:
    """A character; a space in quotes, and the escape of what cannot be seen."""
    shown = repr(character)
    return (
        character if character.isprintable() and not character.isspace() else shown if character == " " else shown[1:-1]
    )


def _caption(title: str) -> str:
    return f'<caption style="caption-side: top; {LEFT}"><b>{escape(title)}</b></caption>'

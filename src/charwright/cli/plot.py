"""`charwright plot`: the learning curves of one or several runs, in the terminal or as a figure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from charwright.cli.options import NamedPath, say, without_teachers
from charwright.errors import UsageError

PIPE_WIDTH = 80
TALLEST, HEIGHT = 40, 20
AROUND = 8
"""Rows of a terminal that are not the plot: labels, legend and prompt."""


@click.command(short_help="Plot the learning curves of runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--x",
    type=click.Choice(["minutes", "characters", "epochs", "steps"]),
    default="minutes",
    show_default=True,
    help="Horizontal axis: time of training, characters read, epochs, or steps.",
)
@click.option(
    "--y",
    type=click.Choice(["nats", "bits", "perplexity"]),
    default="nats",
    show_default=True,
    help="Vertical axis: nats or bits per character, or exp(nats).",
)
@click.option(
    "-o",
    "--out",
    type=NamedPath(),
    metavar="FILE",
    help="Save a figure as .png, .svg or .pdf instead of drawing in the terminal.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--apart", is_flag=True, help="Show runs that differ only in their seed as curves of their own.")
def plot(runs: tuple[str, ...], x: str, y: str, out: Path | None, force: bool, apart: bool) -> None:
    """Plot the training and validation losses of each RUN, with its best point.

    Runs that differ only in their seed are one curve: their median, and a band from the lowest to the highest.
    """
    from charwright.plotting import plots

    if force and out is None:
        raise UsageError("--force replaces the file of -o; add -o FILE")
    if out is not None:
        plots.checked_place(out, force=force)
    curves = plots.plot(without_teachers(runs), x=x, y=y, apart=apart)
    if out is None:
        width, height, color = _screen()
        click.echo(curves.text(width, height, color=color))
    for note in curves.notes:
        say(note)
    if out is not None:
        path = curves.save(out, force=force)
        for line in curves.table():
            say(line)
        say(f"wrote {path}")


def _screen() -> tuple[int, int, bool]:
    """The columns and rows for a plot, and whether it may have colours."""
    if not sys.stdout.isatty():
        return PIPE_WIDTH, HEIGHT, False
    import shutil

    size = shutil.get_terminal_size()
    # The colours are exact ones; a terminal that does not say that it has them might show any others.
    color = os.environ.get("COLORTERM") in ("truecolor", "24bit") and not os.environ.get("NO_COLOR")
    return size.columns, max(HEIGHT // 2, min(TALLEST, size.lines - AROUND)), color

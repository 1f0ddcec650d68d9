"""Plots of learning curves: read the runs, then show them in a terminal or save a figure."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charwright.arguments import require
from charwright.errors import CharwrightError, MissingExtraError, RunError, UsageError
from charwright.plotting.curves import AXES, Curve, read_curve
from charwright.plotting.groups import grouped
from charwright.plotting.view import UNITS, View
from charwright.storage import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class LearningCurves(View):
    """The curves of some runs, ready to be shown. In a notebook it shows itself.

    Of runs that differ only in their seed, the curve is the median, with a band from the lowest to the highest loss.
    """

    def text(self, width: int = 80, height: int = 20, *, color: bool = False) -> str:
        """The plot as text of at most `width` columns; letters tell the curves apart, also without colour.

        Raises:
            MissingExtraError: when uniplot is not installed.
        """
        try:
            from charwright.plotting.terminal import drawn
        except ImportError as error:
            raise MissingExtraError("a plot in the terminal", "plot") from error
        return drawn(self, width, height, color=color)

    def figure(self) -> Figure:
        """The plot as a figure of matplotlib.

        Raises:
            MissingExtraError: when matplotlib is not installed.
        """
        try:
            from charwright.plotting.figure import figure_of
        except ImportError as error:
            raise MissingExtraError("a figure", "plot") from error
        return figure_of(self)

    def image(self, kind: str = "png") -> bytes:
        """The figure as a file: png, svg or pdf.

        Raises:
            MissingExtraError: when matplotlib is not installed.
            UsageError: for another kind.
        """
        if kind not in FORMATS:
            raise UsageError(f"a plot is saved as {', '.join(FORMATS)}, not {kind!r}")
        figure = self.figure()
        from charwright.plotting.figure import saved

        buffer = io.BytesIO()
        saved(figure, buffer, kind, "; ".join(self.table()))
        return buffer.getvalue()

    def save(self, file: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the figure to a file, whose ending says how: .png, .svg or .pdf; .png is added where it has none.

        Raises:
            RunError: when the file exists and `force` is not given, or the system refuses.
            MissingExtraError: when matplotlib is not installed.
            UsageError: when the ending is another.
        """
        path = checked_place(file, force=force)
        write_file(path, self.image(path.suffix[1:].lower()))
        return path

    def _repr_png_(self) -> bytes | None:
        try:
            return self.image()
        except MissingExtraError:
            return None

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        count = sum(len(group.curves) for group in self.groups)
        return f"<LearningCurves of {count} {'run' if count == 1 else 'runs'}: {self.y_label} over {self.x}>"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """What IPython prints, and keeps in a notebook beside the figure."""
        try:
            printer.text(str(self))
        except MissingExtraError:
            printer.text(repr(self))


def checked_place(file: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path of a figure to write; its ending is added where it has none.

    Raises:
        UsageError: when the ending is not one of a figure, or for `-`, standard output.
        RunError: when the file exists and `force` is not given, or there is no such folder.
    """
    if os.fspath(file) == "-":
        raise UsageError("a figure is saved in a file, not written to standard output; choose another file")
    path = Path(file)
    path = path if path.suffix or path.is_dir() else path.with_name(f"{path.name}.png")
    if path.is_dir():
        raise RunError(f"{path} is a folder; name a file")
    if path.suffix[1:].lower() not in FORMATS:
        *others, last = (f".{kind}" for kind in FORMATS)
        raise UsageError(f"{path} does not end with {', '.join(others)} or {last}")
    if path.exists() and not force:
        raise RunError(f"{path} exists; choose another file, or replace it with --force")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {path.parent}")
    return path


def plot(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    x: str = "minutes",
    y: str = "nats",
    apart: bool = False,
) -> LearningCurves:
    """The learning curves of one or several runs: `plot(["runs/gru", "runs/lstm"], y="bits").save("curves.svg")`.

    Args:
        runs: run folders. One that cannot be read is left out, with a line in `notes`.
        x: `minutes` (of training; hours from 180 on), `characters` (read), `epochs` or `steps`.
        y: `nats` or `bits` per character, or `perplexity`, which is exp(nats).
        apart: show runs that differ only in their seed as curves of their own.

    Raises:
        RunError: when none of the runs can be read.
        UsageError: when there is no such axis.
    """
    for name, value, known in (("x", x, AXES), ("y", y, UNITS)):
        if value not in known:
            raise UsageError(f"--{name} must be one of {', '.join(known)}, not {value!r}")
    require(runs, (str, os.PathLike, Iterable), "a run is named by its folder")
    listed = [runs] if isinstance(runs, str | os.PathLike) else runs
    folders = list(dict.fromkeys(os.fspath(run) for run in listed))
    if not folders:
        raise UsageError("there are no runs to plot; name at least one")
    curves, notes = [], []
    for folder in folders:
        try:
            curve = _read(folder)
        except CharwrightError as error:
            if len(folders) == 1:
                raise
            notes.append(f"left out: {error.for_shell}")
            continue
        curves.append(curve)
        notes += curve.notes
    if not curves:
        raise RunError(f"none of the {len(folders)} runs can be plotted; {notes[0].removeprefix('left out: ')}")
    return LearningCurves(tuple(grouped(curves, apart=apart)), x, y, tuple(notes))


def _read(folder: str) -> Curve:
    try:
        return read_curve(folder)
    except OSError as error:
        raise RunError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error

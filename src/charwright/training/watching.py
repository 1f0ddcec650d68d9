"""Shows a training run while it goes on: in a notebook, on a terminal, or as plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import StringIO
from typing import TextIO

from charwright import notebook
from charwright.training.events import End, Epoch, Event, Rollback, Sample, Start, Step, Validation
from charwright.training.progress import (
    PlainProgress,
    Writer,
    describe_rollback,
    describe_start,
    format_seconds,
    terminal_progress,
)

REDRAW_EVERY_S = 0.25
MOST_ROWS = 12
COLUMNS = ("epoch", "step", "loss", "validation", "bits/char", "chars/s", "time")


def watch(events: Iterable[Event], stream: TextIO | None = None) -> Iterator[Event]:
    """Show the progress of a training run, and pass its events on.

    >>> for event in charwright.watch(charwright.fit(model, dataset, config)): ...     # doctest: +SKIP

    A notebook shows a bar, a table of the epochs and the curve of the loss, which the file keeps. Elsewhere `stream`,
    by default standard error, gets a progress bar if it is a terminal, and plain lines if it is not.
    """
    writer = progress_here(stream)
    try:
        for event in events:
            writer.write(event)
            yield event
    finally:
        writer.close()


@contextmanager
def shown(
    progress: bool | None, on_event: Callable[[Event], None], notify: Callable[[str], None]
) -> Iterator[tuple[Callable[[Event], None], Callable[[str], None]]]:
    """`on_event` and `notify`, which also show the progress in the block: always, never, or in a notebook (None)."""
    handle = None if progress is False else notebook.show(NotebookProgress.BEFORE)
    if not progress and handle is None:
        yield on_event, notify
        return
    writer = terminal_progress(sys.stderr) if handle is None else NotebookProgress(handle)

    def event_shown(event: Event) -> None:
        on_event(event)
        writer.write(event)

    def line_shown(line: str) -> None:
        notify(line)
        if isinstance(writer, NotebookProgress):
            writer.note(line)
        else:
            with suppress(BrokenPipeError):
                print(line, file=sys.stderr)

    try:
        yield event_shown, line_shown
    finally:
        writer.close()


def progress_here(stream: TextIO | None = None) -> Writer:
    """The writer of progress for the place that this program runs in."""
    handle = notebook.show(NotebookProgress.BEFORE)
    return terminal_progress(stream or sys.stderr) if handle is None else NotebookProgress(handle)


class NotebookProgress:
    """Progress in a notebook: a display of the cell that is replaced up to four times a second."""

    BEFORE: Mapping[str, str] = {"text/plain": "starting", "text/html": "starting"}

    def __init__(self, handle: notebook.Handle) -> None:
        """Show everything in a display that exists."""
        self.handle = handle
        self.lines = StringIO()
        self.plain = PlainProgress(self.lines, every_s=float("inf"))
        self.notes: list[str] = []
        self.rows: list[tuple[str, ...]] = []
        self.losses: list[tuple[float, float]] = []
        self.step: Step | None = None
        self.sample, self.status = "", ""
        self.drawn_s = 0.0

    def note(self, line: str) -> None:
        """Show a line about something that the user may want to know."""
        self.notes.append(line)
        print(line, file=self.lines)
        self._draw()

    def write(self, event: Event) -> None:
        """Show an event. A step is drawn a moment later if the display is fresh."""
        self.plain.write(event)
        match event:
            case Start():
                self.notes.append(describe_start(event))
            case Step():
                self.step = event
                self.losses.append((event.step, event.loss))
                if event.time_s - self.drawn_s < REDRAW_EVERY_S:
                    return
            case Validation():
                self.rows.append(_row(event))
            case Sample():
                self.sample = event.text
            case Rollback():
                self.notes.append(describe_rollback(event))
            case End():
                self.status = f"{event.reason}: step {event.step:,} after {format_seconds(event.time_s)}"
            case _:
                return
        self.drawn_s = event.time_s
        self._draw()

    def close(self) -> None:
        """Show the end; a run that did not reach it was interrupted."""
        self.status = self.status or "interrupted"
        self._draw()

    def _draw(self) -> None:
        parts = [notebook.lines([*self.notes, self.status])]
        if self.step is not None and not self.status:
            parts.append(notebook.bar(self.step.fraction, _note(self.step)))
        if self.rows:
            parts.append(notebook.grid("Training", COLUMNS, self.rows[-MOST_ROWS:]))
        parts.append(notebook.curve(self.losses, "training loss by step, nats per token"))
        if self.sample:
            parts.append(notebook.passage(self.sample, note="a sample of the model so far"))
        plain = self.lines.getvalue() + self.status
        self.handle.update({"text/plain": plain, "text/html": f"<div>{''.join(parts)}</div>"}, raw=True)


def _note(event: Step) -> str:
    return (
        f"epoch {event.epoch}, step {event.step:,}, loss {event.loss:.3f}, {event.chars_per_s:,.0f} chars/s, "
        f"{format_seconds(event.remaining_s)} left"
    )


def _row(event: Validation) -> tuple[str, ...]:
    validated = event.validation_loss is not None and event.bits_per_char is not None
    speed, time = "", ""
    if isinstance(event, Epoch):
        speed, time = f"{event.chars_per_s:,.0f}", format_seconds(event.elapsed_s)
    return (
        f"{event.epoch}",
        f"{event.step:,}",
        "" if event.train_loss is None else f"{event.train_loss:.4f}",
        f"{event.validation_loss:.4f}{' (best)' if event.best else ''}" if validated else "",
        f"{event.bits_per_char:.3f}" if validated else "",
        speed,
        time,
    )

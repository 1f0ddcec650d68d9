"""Writers of events: a progress bar, plain lines, TensorBoard."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from charwright.errors import MissingExtraError
from charwright.terminal_bar import terminal_bar
from charwright.training.events import (
    Checkpoint,
    End,
    Epoch,
    Event,
    Resume,
    Rollback,
    Sample,
    Start,
    Step,
    Validation,
)

PLAIN_LINE_EVERY_S = 10.0
WIDE = 72  # columns of a terminal, from which on a bar has more than the loss and the time left beside it
EPOCH_LINE_EVERY_S = 1.0  # for epochs without validation, of which a tiny text has hundreds per minute


class Writer(Protocol):
    """Receives events."""

    def write(self, event: Event) -> None:
        """Receive one event."""

    def close(self) -> None:
        """Finish: no more events follow."""


def terminal_progress(stream: TextIO | None = None) -> Writer:
    """A progress bar on a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    return BarProgress(stream) if stream.isatty() else PlainProgress(stream)


def describe_start(event: Start) -> str:
    """A line about the model, the batches and the device."""
    prefix = f"resuming at step {event.step:,}: " if isinstance(event, Resume) else ""
    return (
        f"{prefix}{event.parameters:,} parameters, {event.steps_per_epoch:,} step{'s' * (event.steps_per_epoch > 1)} "
        f"of {event.batch} x {event.seq_length} per epoch, {event.precision} on {event.device}"
        + (f" with {event.threads} thread{'s' * (event.threads > 1)}" if event.device == "cpu" else "")
    )


def describe_epoch(event: Epoch) -> str:
    """A line about an epoch."""
    line = f"epoch {event.epoch}  {_losses(event)}"
    return line + f"  {event.chars_per_s:,.0f} chars/s  {format_seconds(event.elapsed_s)}"


def describe_validation(event: Validation) -> str:
    """A line about a validation within an epoch."""
    return f"step {event.step:,}  {_losses(event)}"


def _losses(event: Validation) -> str:
    parts = [] if event.train_loss is None else [f"loss {event.train_loss:.4f}"]
    if event.validation_loss is not None:
        parts.append(f"validation {event.validation_loss:.4f} ({event.bits_per_char:.3f} bits/char)")
        parts += ["best so far"] if event.best else []
    return "  ".join(parts)


def describe_rollback(event: Rollback) -> str:
    """A line about a rollback."""
    return (
        f"diverged near step {event.diverged_step:,}: rolling back to step {event.step:,} with a learning rate of "
        f"{event.learning_rate:.2g}"
    )


def format_seconds(seconds: float | None) -> str:
    """A duration for people: 8 s, 2:05, 1:02:03."""
    if seconds is None:
        return "?"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class EpochLines:
    """Selects the epochs to show: validated ones, and at most one per second of the others."""

    def __init__(self) -> None:
        self.last_s: float | None = None

    def worth_a_line(self, event: Epoch) -> bool:
        """Whether to show this epoch."""
        often_enough = self.last_s is not None and event.time_s - self.last_s < EPOCH_LINE_EVERY_S
        if event.validation_loss is None and often_enough:
            return False
        self.last_s = event.time_s
        return True


class PlainProgress:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, stream: TextIO, every_s: float = PLAIN_LINE_EVERY_S) -> None:
        self.stream, self.every_s = stream, every_s
        self.last_s = 0.0
        self.epochs = EpochLines()

    def write(self, event: Event) -> None:
        """Print the events that matter."""
        match event:
            case Start():
                self.last_s = event.time_s
                self._line(describe_start(event))
            case Step() if event.time_s - self.last_s >= self.every_s:
                self.last_s = event.time_s
                self._line(
                    f"epoch {event.epoch}  step {event.step:,}  loss {event.loss:.4f}  "
                    f"{event.chars_per_s:,.0f} chars/s  {format_seconds(event.remaining_s)} left"
                )
            case Epoch():
                if self.epochs.worth_a_line(event):
                    self._line(describe_epoch(event))
            case Validation():
                self._line(describe_validation(event))
            case Rollback():
                self._line(describe_rollback(event))
            case Sample():
                self._line("\n".join("    " + line for line in event.text.splitlines()))
            case _:
                pass

    def close(self) -> None:
        """Nothing to do."""

    def _line(self, text: str) -> None:
        # A closed pipe (`2>&1 | head`) does not stop training.
        with suppress(BrokenPipeError):
            print(text, file=self.stream, flush=True)


class BarProgress:
    """A progress bar, with epochs and samples above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.progress import BarColumn, TextColumn

        self.epochs = EpochLines()
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(None), TextColumn("{task.fields[note]}"))
        self.bar = terminal_bar(*columns, stream=stream, expand=True)
        self.console = self.bar.console
        self.task = self.bar.add_task("", total=1.0, epoch=1, note="starting")

    def write(self, event: Event) -> None:
        """Update the bar, or print above it."""
        match event:
            case Start():
                self._print(describe_start(event))
                self.bar.start()
            case Step():
                parts = [f"loss {event.loss:.3f}", f"{format_seconds(event.remaining_s)} left"]
                if self.console.width >= WIDE:
                    parts = [f"step {event.step:,}", parts[0], f"{event.chars_per_s:,.0f} chars/s", parts[1]]
                note = "  ".join(parts)
                self.bar.update(self.task, completed=event.fraction, epoch=event.epoch, note=note)
            case Epoch():
                if self.epochs.worth_a_line(event):
                    self._print(describe_epoch(event), "bold")
            case Validation():
                self._print(describe_validation(event), "bold")
            case Rollback():
                self._print(describe_rollback(event), "yellow")
            case Sample():
                self._print("\n".join("  " + line for line in event.text.splitlines()) + "\n", "dim")
            case End():
                self.bar.stop()
            case _:
                pass

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()

    def _print(self, text: str, style: str | None = None) -> None:
        # Generated text may look like markup.
        self.bar.console.print(text, style=style, markup=False, soft_wrap=True)


class TensorBoard:
    """Losses, learning rates and samples for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.require()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    @staticmethod
    def require() -> None:
        """Check that the package is installed.

        Raises:
            MissingExtraError: with the command that installs it.
        """
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error

    def write(self, event: Event) -> None:
        """Record the values of an event at its step."""
        match event:
            case Step():
                self.writer.add_scalar("train/loss", event.loss, event.step)
                self.writer.add_scalar("train/learning_rate", event.learning_rate, event.step)
                self.writer.add_scalar("train/chars_per_s", event.chars_per_s, event.step)
            case Validation():
                if isinstance(event, Epoch):
                    self.writer.add_scalar("epoch/train_loss", event.train_loss, event.step)
                if event.validation_loss is not None:
                    self.writer.add_scalar("epoch/validation_loss", event.validation_loss, event.step)
            case Sample():
                self.writer.add_text("sample", event.text, event.step)
            case Checkpoint():
                self.writer.flush()
            case _:
                pass

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()

"""Events shown to people and kept for programs: the terminal, plain lines, TensorBoard."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from charwright.errors import MissingExtraError
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
EPOCH_LINE_EVERY_S = 1.0  # of epochs that nothing was measured in: a tiny text has hundreds a minute


class Writer(Protocol):
    """Something that takes events."""

    def write(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """No more will come."""


class Writers(AbstractContextManager["Writers"]):
    """Several writers as one; all are closed at the end."""

    def __init__(self, *writers: Writer) -> None:
        self.writers = writers

    def write(self, event: Event) -> None:
        """Hand the event to each."""
        for writer in self.writers:
            writer.write(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self.writers:
            writer.close()


def terminal_progress(stream: TextIO | None = None) -> Writer:
    """A bar where a person is looking, plain lines elsewhere."""
    stream = stream or sys.stderr
    return BarProgress(stream) if stream.isatty() else PlainProgress(stream)


def describe_start(event: Start) -> str:
    """One line about the work ahead."""
    going = f"going on at step {event.step:,}: " if isinstance(event, Resume) else ""
    return (
        f"{going}{event.parameters:,} parameters, {event.steps_per_epoch:,} step{'s' * (event.steps_per_epoch > 1)} of "
        f"{event.batch} x {event.seq_length} an epoch, {event.precision} on {event.device}"
        + (f" with {event.threads} thread{'s' * (event.threads > 1)}" if event.device == "cpu" else "")
    )


def describe_epoch(event: Epoch) -> str:
    """One line about an epoch."""
    line = f"epoch {event.epoch}  {_losses(event)}"
    return line + f"  {event.chars_per_s:,.0f} chars/s  {format_seconds(event.elapsed_s)}"


def describe_validation(event: Validation) -> str:
    """One line about a validation inside an epoch."""
    return f"step {event.step:,}  {_losses(event)}"


def _losses(event: Validation) -> str:
    line = f"loss {event.train_loss:.4f}"
    if event.validation_loss is not None:
        line += f"  validation {event.validation_loss:.4f} ({event.bits_per_char:.3f} bits/char)"
        line += "  best so far" if event.best else ""
    return line


def describe_rollback(event: Rollback) -> str:
    """One line about a fall."""
    return (
        f"diverged near step {event.diverged_step:,}: going on from step {event.step:,} with a learning rate of "
        f"{event.learning_rate:.2g}"
    )


def format_seconds(seconds: float | None) -> str:
    """Seconds as people say them: 8 s, 2:05, 1:02:03."""
    if seconds is None:
        return "?"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class EpochLines:
    """Which epochs are shown: those that were measured, and of the others one a second."""

    def __init__(self) -> None:
        self.last_s: float | None = None

    def worth_a_line(self, event: Epoch) -> bool:
        """Whether to show this one."""
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
        """Print what is worth a line."""
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
        # Training goes on when nobody listens any more (`2>&1 | head`).
        with suppress(BrokenPipeError):
            print(text, file=self.stream, flush=True)


class BarProgress:
    """One line that grows, with the samples above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.epochs = EpochLines()
        self.console = Console(file=stream, highlight=False)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            expand=True,
        )
        self.task = self.bar.add_task("", total=1.0, epoch=1, note="starting")

    def write(self, event: Event) -> None:
        """Move the bar, or print above it."""
        match event:
            case Start():
                self._print(describe_start(event))
                self.bar.start()
            case Step():
                note = (
                    f"step {event.step:,}  loss {event.loss:.3f}  {event.chars_per_s:,.0f} chars/s  "
                    f"{format_seconds(event.remaining_s)} left"
                )
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
        """Take the bar away."""
        self.bar.stop()

    def _print(self, text: str, style: str | None = None) -> None:
        # The model may well write something that looks like markup.
        self.bar.console.print(text, style=style, markup=False, soft_wrap=True)


class TensorBoard:
    """Losses, rates and samples for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.require()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    @staticmethod
    def require() -> None:
        """See that the package is there.

        Raises:
            MissingExtraError: with the command that installs it.
        """
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error

    def write(self, event: Event) -> None:
        """Record the event's numbers at its step."""
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
        """Write what is left."""
        self.writer.close()

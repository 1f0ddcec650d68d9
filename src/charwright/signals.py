"""Signal handlers that are installed for the duration of a block and restored after it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handling(names: Sequence[str], handler: Handler) -> Iterator[dict[int, Any]]:
    """Handle the named signals that the platform has; yield the previous handlers by signal number.

    An ignored signal stays ignored: a background job must not react to Ctrl-C meant for another job.
    """
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    previous = {number: old for number, old in previous.items() if old not in {signal.SIG_IGN, None}}
    for number in previous:
        signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def stop_asked(message: bytes) -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns the name of the signal that requested a stop, or None.

    SIGINT, SIGTERM, SIGHUP (the terminal is closed) and SIGBREAK (Ctrl-Break on Windows) do. The first signal writes
    `message` to stderr; a second one raises KeyboardInterrupt.
    """
    caught: list[str] = []

    def request_stop(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)
        # Not print: the signal may interrupt a print, which is not reentrant. The same Ctrl-C ends what reads a pipe.
        with suppress(OSError):
            os.write(2, message)

    with handling(("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"), request_stop):
        yield lambda: caught[0] if caught else None

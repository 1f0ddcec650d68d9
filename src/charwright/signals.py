"""Signal handlers that are installed for the duration of a block and restored after it."""

from __future__ import annotations

import os
import signal
import threading
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


STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOPPING = b"\nstopping after this step; press again to stop at once\n"


@contextmanager
def stop_asked(message: bytes, names: Sequence[str] = STOP_SIGNALS) -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns the name of the signal that requested a stop, or None.

    By default SIGINT, SIGTERM, SIGHUP (the terminal is closed) and SIGBREAK (Ctrl-Break on Windows) do. The first
    signal writes `message` to stderr; a second one raises KeyboardInterrupt.
    """
    caught: list[str] = []

    def request_stop(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)
        # Not print: the signal may interrupt a print, which is not reentrant. The same Ctrl-C ends what reads a pipe.
        with suppress(OSError):
            os.write(2, message)

    with handling(names, request_stop):
        yield lambda: caught[0] if caught else None


@contextmanager
def interrupted_at_end(message: bytes) -> Iterator[Callable[[], str | None]]:
    """As `stop_asked` for Ctrl-C in a Python program, where the end of the block raises KeyboardInterrupt.

    A program that handles SIGINT itself keeps its handler, and in another thread than the main one nothing is handled.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    with stop_asked(message, ("SIGINT",)) as asked:
        yield asked
    if asked():
        raise KeyboardInterrupt

"""Signals heard for as long as a command works, and left as they were."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handling(names: Sequence[str], handler: Handler) -> Iterator[dict[int, Any]]:
    """Handle signals by name, as far as the system has them; gives the former handlers by number.

    What is ignored stays ignored: a job in the background is not to hear what is typed for another.
    """
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    former = {number: signal.getsignal(number) for number in numbers}
    former = {number: before for number, before in former.items() if before not in {signal.SIG_IGN, None}}
    for number in former:
        signal.signal(number, handler)
    try:
        yield former
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextmanager
def stop_asked(word: bytes) -> Iterator[Callable[[], str | None]]:
    """Gives a function that tells the name of the signal by which Ctrl-C or SIGTERM asked for a stop, if one did.

    `word` goes to the terminal then; a second signal does not wait.
    """
    caught: list[str] = []

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)
        # Not print: the signal may have come in the middle of one, which allows no second inside it.
        os.write(2, word)

    with handling(("SIGINT", "SIGTERM"), note):
        yield lambda: caught[0] if caught else None

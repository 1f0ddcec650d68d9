"""The guards of a model, which `max_copy` needs: made once for each value, in a thread, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from charwright.generation.draft import Guard
from charwright.serve.hosting import HostedModel

KEPT = 4
"""Guards that are kept: each takes eight bytes for every character of the training text."""


class Guards:
    """The guards of one model. All but `_make` runs in the event loop.

    Callers take turns: however many values one of them asks for, another waits for the guard that is being made, and
    for one of each other caller.
    """

    def __init__(self, hosted: HostedModel) -> None:
        """Start without any."""
        self._hosted = hosted
        self._kept: dict[int, Guard] = {}  # the one that was used last is the last
        self._wanted: dict[str, list[int]] = {}  # values to be made for each caller, in the order of their turns
        self._coming: dict[int, asyncio.Future[Guard]] = {}  # for each of these values and the one that is made
        self._making: int | None = None
        self._turn = ""  # the caller for whom it is made

    async def get(self, max_copy: int, caller: str) -> Guard:
        """The guard for a value of `max_copy`, which is made if it is not there.

        Raises:
            CharwrightError: if the training text cannot be read.
        """
        if max_copy in self._kept:
            self._kept[max_copy] = guard = self._kept.pop(max_copy)
            return guard
        with self._queued(max_copy, caller):
            return await asyncio.shield(self._coming[max_copy])

    @contextlib.contextmanager
    def _queued(self, max_copy: int, caller: str) -> Iterator[None]:
        """Want a value within the block. What nobody wants any more is not made."""
        if max_copy not in self._coming:
            self._coming[max_copy] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(caller, []).append(max_copy)
        try:
            self._make_next()
            yield
        finally:
            self._wanted[caller].remove(max_copy)
            if not self._wanted[caller]:
                del self._wanted[caller]
            if max_copy != self._making and not any(max_copy in values for values in self._wanted.values()):
                self._coming.pop(max_copy, None)

    def _make_next(self) -> None:
        """Begin with the next value that is wanted, if none is being made."""
        if self._making is not None:
            return
        if self._turn in self._wanted:
            self._wanted[self._turn] = self._wanted.pop(self._turn)
        for caller, values in self._wanted.items():
            value = next((value for value in values if value in self._coming), None)
            if value is not None:
                self._turn = caller
                # It reads and indexes a whole text. Unlike the loop's own threads, a daemon does not delay the end.
                threading.Thread(target=self._make, args=(asyncio.get_running_loop(), value), daemon=True).start()
                self._making = value
                return

    def _make(self, loop: asyncio.AbstractEventLoop, max_copy: int) -> None:
        made: Guard | Exception
        try:
            made = self._hosted.guard(max_copy)
        except Exception as error:
            made = error
        with contextlib.suppress(RuntimeError):  # The service has ended.
            loop.call_soon_threadsafe(self._done, max_copy, made)

    def _done(self, max_copy: int, made: Guard | Exception) -> None:
        future, self._making = self._coming.pop(max_copy), None
        if isinstance(made, Exception):
            future.set_exception(made)
            future.exception()  # Nobody may be waiting for it any more.
        else:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[max_copy] = made
            future.set_result(made)
        self._make_next()

"""The guards of a model, which `max_copy` needs: made once for each value, in a thread, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from charwright.generation.draft import Guard
from charwright.serve.hosting import HostedModel
from charwright.serve.refusals import busy

KEPT = 4
"""Guards that are kept: each takes eight bytes for every character of the training text."""


class Guards:
    """The guards of one model. All but `_make` runs in the event loop."""

    def __init__(self, hosted: HostedModel) -> None:
        """Start without any."""
        self._hosted = hosted
        self._kept: dict[int, Guard] = {}  # the one that was used last is the last
        self._making: tuple[int, asyncio.Future[Guard]] | None = None

    async def get(self, max_copy: int) -> Guard:
        """The guard for a value of `max_copy`, which is made if it is not there.

        Raises:
            Refusal: 503 while the guard for another value is made.
            CharwrightError: if the training text cannot be read.
        """
        if max_copy in self._kept:
            self._kept[max_copy] = guard = self._kept.pop(max_copy)
            return guard
        if self._making is None:
            loop = asyncio.get_running_loop()
            self._making = max_copy, loop.create_future()
            self._making[1].add_done_callback(self._done)
            # It reads and indexes a whole text. Unlike the loop's own threads, a daemon does not delay the end.
            threading.Thread(target=self._make, args=(loop, *self._making), daemon=True).start()
        value, future = self._making
        if value != max_copy:
            raise busy(503, "the service is preparing another value of max_copy", 1, "guard")
        return await asyncio.shield(future)

    def _make(self, loop: asyncio.AbstractEventLoop, max_copy: int, future: asyncio.Future[Guard]) -> None:
        try:
            guard = self._hosted.guard(max_copy)
        except Exception as error:
            problem = error
            finish = lambda: future.set_exception(problem)  # noqa: E731
        else:
            finish = lambda: future.set_result(guard)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # The service has ended.
            loop.call_soon_threadsafe(finish)

    def _done(self, future: asyncio.Future[Guard]) -> None:
        assert self._making is not None
        max_copy, self._making = self._making[0], None
        if future.exception() is None:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[max_copy] = future.result()

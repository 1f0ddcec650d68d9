"""A job: the texts of one request, from their admission to their end, as its client sees them."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from charwright.config import GenerationConfig
from charwright.generation.draft import Draft, Guard
from charwright.serve.refusals import Refusal, busy
from charwright.serve.requests import CompletionRequest
from charwright.serve.scheduler import Delivery, Order, Text
from charwright.serve.service import ServedModel, Service

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed the connection."""


class Job:
    """The texts of one request. Everything happens in the event loop."""

    def __init__(
        self,
        service: Service,
        served: ServedModel,
        request: CompletionRequest,
        config: GenerationConfig,
        *,
        caller: str,
        began: float,
    ) -> None:
        """Describe the job, which `began` at this time of the event loop."""
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.request, self.config, self.served = request, config, served
        self.prompts = [prompt for prompt in request.prompt for _ in range(request.n or 1)]
        """The prompt of each text."""
        self.caller = caller
        self.generated = 0
        """Characters generated so far."""
        self._service, self._began = service, began
        self._loop = asyncio.get_running_loop()
        self._news: deque[tuple[int, Delivery]] = deque()
        self._wake = asyncio.Event()
        self._cut = False
        self._unfinished = len(self.prompts)
        self._texts: list[Text] = []
        self._started: dict[int, float] = {}
        self._read: set[int] = set()  # prompts of the request that are counted
        self._ended: set[int] = set()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count the texts of the job; at the end of the block, cancel what is left of them.

        Raises:
            Refusal: if there is no room.
        """
        self.served.admission.admit(self.caller, len(self.prompts))
        self._service.jobs.add(self)
        try:
            yield
        finally:
            self._service.jobs.discard(self)
            if not self._texts:
                for _ in self.prompts:
                    self.served.admission.end(self.caller, None)
            elif rest := [text for index, text in enumerate(self._texts) if index not in self._ended]:
                self.served.scheduler.cancel(rest)

    def submit(self, guard: Guard | None = None) -> None:
        """Hand the texts to the scheduler."""
        request = self.request
        orders = [
            Order(
                prompt,
                self.config,
                index,
                request.length,
                self.caller,
                logprobs=request.logprobs is not None,
                alternatives=request.logprobs or 0,
                echo=bool(request.echo),
                guard=guard,
                label=request.label,
            )
            for index, prompt in enumerate(self.prompts)
        ]
        self._texts = [Text(order, functools.partial(self._receive, order.index)) for order in orders]
        self.served.scheduler.submit(self._texts)

    async def result_of(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Wait for something that the job needs.

        Raises:
            Refusal: 503 if the service ends first.
        """
        task = asyncio.create_task(awaited)
        task.add_done_callback(lambda _: self._wake.set())
        try:
            while not task.done():
                await self._woken()
            return task.result()
        finally:
            task.cancel()

    async def turn(self) -> None:
        """Wait until the first text has got a place.

        Raises:
            Refusal: 503 if the service ends first.
        """
        while not self._news:
            await self._woken()

    async def news(self) -> list[tuple[int, Delivery]]:
        """Wait for deliveries; each has the index of its text. An empty list is the end of all texts.

        Raises:
            Refusal: 500 if the engine failed, 503 if the service ends before the texts.
        """
        while not self._news and self._unfinished:
            await self._woken()
        news, self._news = list(self._news), deque()
        self._unfinished -= sum(delivery.ended is not None for _, delivery in news)
        if any(delivery.ended == "failed" for _, delivery in news):
            raise Refusal(500, "the engine failed; this is a defect of charwright", code="failed", reason="failed")
        return news

    @property
    def finished(self) -> bool:
        """Whether `news` has returned everything."""
        return not self._news and not self._unfinished

    def draft(self, index: int) -> Draft:
        """The draft of a text that has got a place."""
        draft = self._texts[index].draft
        assert draft is not None
        return draft

    def label(self, index: int) -> str | None:
        """The label of a text that has got a place."""
        return self._texts[index].label

    def cut(self) -> None:
        """End the job, since the service ends."""
        self._cut = True
        self._wake.set()

    async def _woken(self) -> None:
        if not self._cut:
            self._wake.clear()
            await self._wake.wait()
        if self._cut:
            raise busy(503, "the service ended before the text", 1, "drain")

    def _receive(self, index: int, delivery: Delivery) -> None:
        """Take a delivery from the scheduler, and count."""
        now, admission = self._loop.time(), self.served.admission
        if delivery.ended is not None:
            self._ended.add(index)
            started = self._started.get(index)
            admission.end(self.caller, None if started is None else now - started)
        elif index not in self._started:
            self._started[index] = now
            admission.start()
            self._count_prompt(index)
        self._count(delivery)
        self._news.append((index, delivery))
        self._wake.set()

    def _count_prompt(self, index: int) -> None:
        """Count the prompt of a text, unless another text has the same one: as in the usage, each counts once."""
        number = index // (self.request.n or 1)
        if number not in self._read:
            self._read.add(number)
            name = self.served.hosted.name
            self._service.metrics.characters.labels(name, "prompt").inc(len(self.prompts[index]))

    def _count(self, delivery: Delivery) -> None:
        if not delivery.fragment.text:
            return
        metrics, model = self._service.metrics, self.served.hosted.name
        metrics.characters.labels(model, "generated").inc(len(delivery.fragment.text))
        first = self.generated == 0
        self.generated += len(delivery.fragment.text)
        if first:
            metrics.first_character_s.labels(model).observe(self._loop.time() - self._began)

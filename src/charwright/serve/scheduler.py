"""Continuous batching in a thread: texts join the batch of their model at any step, and leave it at their end.

The event loop hands texts over and takes their fragments back. The lock guards only the list of new texts; nothing is
locked while the engine computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from charwright.config import GenerationConfig
from charwright.generation.draft import Draft, Fragment, Guard
from charwright.generation.engine import MOST_STREAMS
from charwright.generation.generator import Generator
from charwright.generation.session import Session

FRAGMENTS_PER_S = 640
"""Most fragments a second of all texts together: sending one takes a tenth of a millisecond of a core."""
FIRST_STEPS = 8
"""Steps beyond the prompt in the first call of a text, so that its first characters come soon."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is to be generated: one text."""

    prompt: str
    config: GenerationConfig
    index: int
    """The index of the text among those of its seed."""
    length: int
    """Characters to generate. With 0, the prompt is only read."""
    caller: str = ""
    """Who asks: free places go to whoever has the fewest."""
    logprobs: bool = False
    alternatives: int = 0
    echo: bool = False
    guard: Guard | None = None
    label: str | None = None


class Delivery(NamedTuple):
    """What is new about a text: the first one of each text comes when it has got a place."""

    fragment: Fragment
    ended: str | None = None
    """Why the text ended: `stop`, `length` and so on, `cancelled`, or `failed`; None while it goes on."""


@dataclass(eq=False)
class Text:
    """One text in the service. `deliver` is called in the event loop."""

    order: Order
    deliver: Callable[[Delivery], None]
    draft: Draft | None = field(default=None, repr=False)
    """Set by the thread when the text gets a place, like the next."""
    label: str | None = None
    """The label that was asked for or drawn, if the model has labels."""
    shown: int = 0
    """Characters delivered."""
    due_s: float = 0.0
    """When the next fragment is due, on the scheduler's clock."""


Post = Callable[[list[tuple[Text, Delivery]]], None]
"""Takes deliveries from the thread to the event loop."""


class Scheduler:
    """Generates the texts of one model in a thread of its own."""

    def __init__(
        self, generator: Generator, name: str, post: Post, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Create the thread; `start` starts it."""
        self._generator, self._post, self._clock = generator, post, clock
        self._session = self._new_session()
        self._condition = threading.Condition()
        self._new: list[Text] = []  # guarded by the condition, as are the next two
        self._gone: list[Text] = []
        self._stopping = False
        self._waiting: list[Text] = []  # in the order of their arrival
        self._texts: dict[Draft, Text] = {}
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the present call. Texts in progress stay as they are."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def submit(self, texts: Iterable[Text]) -> None:
        """Generate texts, as soon as there is a place for each."""
        with self._condition:
            self._new += texts
            self._condition.notify()

    def cancel(self, texts: Iterable[Text]) -> None:
        """Stop texts; each is delivered a last time, as `cancelled`, unless it has ended."""
        with self._condition:
            self._gone += texts
            self._condition.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                if not self._take_changes():
                    return
                self._advance()
            except Exception:  # A defect must not end the service: the texts of this batch fail, later ones may not.
                logger.exception("the engine failed")
                self._fail_all()

    def _take_changes(self) -> bool:
        """Wait for something to do, and take what the event loop has handed over. False ends the thread."""
        with self._condition:
            while not (self._new or self._gone or self._stopping or self._texts or self._waiting):
                self._condition.wait()
            if self._stopping:
                return False
            new, self._new = self._new, []
            gone, self._gone = self._gone, []
        self._waiting += new
        if gone:
            self._post([(text, Delivery(Fragment(), "cancelled")) for text in gone if self._removed(text)])
        return True

    def _removed(self, text: Text) -> bool:
        """Remove a text that has not ended."""
        if text.draft is not None:
            if self._texts.pop(text.draft, None) is None:
                return False
            self._session.leave(text.draft)
            return True
        if text not in self._waiting:
            return False
        self._waiting.remove(text)
        return True

    def _advance(self) -> None:
        """Give free places to waiting texts, run a few steps, and deliver what is new."""
        joined = self._join()
        if joined:
            self._post(joined)
        hurry = [draft.stream.unread + FIRST_STEPS for draft in self._texts if draft.stream.drawn == 0]
        drafts = self._session.advance(min(hurry) if hurry else None)
        now = self._clock()
        self._post(
            [(self._texts[draft], Delivery(draft.take(), draft.ended)) for draft in drafts if self._due(draft, now)]
        )
        for draft in drafts:
            if draft.ended is not None:
                del self._texts[draft]

    def _due(self, draft: Draft, now: float) -> bool:
        """Whether something is to be delivered of a text: its end, its first characters, or a fragment that is due."""
        text = self._texts[draft]
        if draft.ended is None and (draft.shown == text.shown or now < text.due_s):
            return False
        text.shown, text.due_s = draft.shown, now + len(self._texts) / FRAGMENTS_PER_S
        return True

    def _join(self) -> list[tuple[Text, Delivery]]:
        deliveries = []
        while self._waiting and len(self._texts) < MOST_STREAMS:
            text = self._next()
            try:
                draft = text.draft = self._begin(text)
            except Exception:  # A defect, since requests are checked before: only this text fails.
                logger.exception("a text could not be started")
                deliveries.append((text, Delivery(Fragment(), "failed")))
                continue
            deliveries.append((text, Delivery(Fragment())))
            if draft.ended is None:
                self._texts[draft] = text
            else:  # It has nothing to generate.
                deliveries.append((text, Delivery(draft.take(), draft.ended)))
        return deliveries

    def _next(self) -> Text:
        """The text that gets the next place: the first of those whose callers have the fewest texts in the batch."""
        have = Counter(text.order.caller for text in self._texts.values())
        text = min(self._waiting, key=lambda waiting: have[waiting.order.caller])
        self._waiting.remove(text)
        return text

    def _begin(self, text: Text) -> Draft:
        generator, order = self._generator, text.order
        opening = generator.opening(order.config.seed or 0, order.index, label=order.label)
        text.label = opening.label
        return self._session.join(
            order.prompt,
            order.config,
            order.index,
            guard=order.guard,
            context=opening.ids,
            record_end=generator.record_end,
            logprobs=order.logprobs,
            alternatives=order.alternatives,
            echo=order.echo,
            score_only=order.length == 0,
        )

    def _new_session(self) -> Session:
        return Session(self._generator.engine, self._generator.vocabulary)

    def _fail_all(self) -> None:
        failed = [*self._texts.values(), *self._waiting]
        self._texts.clear()
        self._waiting.clear()
        self._session = self._new_session()
        self._post([(text, Delivery(Fragment(), "failed")) for text in failed])

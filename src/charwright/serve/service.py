"""The service: the hosted models, each with its scheduler and its admission, and what all share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from charwright.serve.admission import Admission
from charwright.serve.guards import Guards
from charwright.serve.hosting import HostedModel
from charwright.serve.limits import ServiceConfig
from charwright.serve.metrics import Metrics
from charwright.serve.refusals import Refusal
from charwright.serve.scheduler import Delivery, Scheduler, Text


class InProgress(Protocol):
    """A request that is accepted and not answered to the end."""

    def cut(self) -> None:
        """End with an error."""


class ServedModel:
    """A hosted model that generates."""

    def __init__(self, hosted: HostedModel, limits: ServiceConfig, callers: Counter[str]) -> None:
        """Prepare the scheduler; `start` starts it."""
        self.hosted = hosted
        self.admission = Admission(limits, callers)
        self.guards = Guards(hosted)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.scheduler = Scheduler(hosted.generator, hosted.name, self._post)

    def start(self) -> None:
        """Start the engine's thread; it delivers to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.scheduler.start()

    def _post(self, deliveries: list[tuple[Text, Delivery]]) -> None:
        """Called in the thread of the scheduler."""
        if deliveries and self._loop is not None:
            self._loop.call_soon_threadsafe(_deliver, deliveries)


def _deliver(deliveries: list[tuple[Text, Delivery]]) -> None:
    for text, delivery in deliveries:
        text.deliver(delivery)


class Service:
    """All models of the process, their limits and metrics."""

    def __init__(self, hosted: Mapping[str, HostedModel], limits: ServiceConfig) -> None:
        """Prepare the models."""
        self.limits = limits
        callers: Counter[str] = Counter()
        self.models = {name: ServedModel(model, limits, callers) for name, model in hosted.items()}
        self.metrics = Metrics({name: model.facts for name, model in hosted.items()})
        self.jobs: set[InProgress] = set()
        """The requests in progress."""
        self.draining = False
        """Whether new requests are refused, since the service is about to end."""

    def start(self) -> None:
        """Start the engines, inside the event loop."""
        for model in self.models.values():
            model.start()

    def stop(self) -> None:
        """End the engines."""
        for model in self.models.values():
            model.scheduler.stop()

    def model(self, name: str) -> ServedModel:
        """The model of this name.

        Raises:
            Refusal: 404 if there is none.
        """
        if name not in self.models:
            raise Refusal(404, f"there is no model {name!r}", param="model", code="model_not_found")
        return self.models[name]

    @property
    def ready(self) -> bool:
        """Whether requests can be carried out."""
        return not self.draining and all(model.scheduler.alive for model in self.models.values())

    @property
    def held(self) -> int:
        """Texts that are accepted and not ended."""
        return sum(model.admission.held for model in self.models.values())

    def cut(self) -> None:
        """End all requests in progress with an error."""
        for job in list(self.jobs):
            job.cut()

    def metrics_text(self) -> bytes:
        """The metrics, with the present lengths of the queues."""
        for name, model in self.models.items():
            self.metrics.waiting.labels(name).set(model.admission.waiting)
            self.metrics.active.labels(name).set(model.admission.started)
        self.metrics.ready.set(self.ready)
        return self.metrics.text()

"""The metrics of the service for Prometheus. Labels have few values: never one that a client can invent."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

from charwright import __version__

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_CHARACTER_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
REQUEST_S = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self, models: Mapping[str, Mapping[str, str]]) -> None:
        """Start at zero for each model, of which the facts are shown."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "charwright_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_s = Histogram(
            "charwright_request_seconds", "Duration of requests.", ["route"], buckets=REQUEST_S, registry=self.registry
        )
        self.refusals = Counter(
            "charwright_refusals",
            "Refused requests by reason: what was wrong (invalid, size, idle, head, http), who asked (key, host,"
            " origin), load (caller, full, wait, guard, connections, drain, time), or a defect (failed).",
            ["reason"],
            registry=self.registry,
        )
        self.characters = Counter(
            "charwright_characters",
            "Characters read (prompt) and generated.",
            ["model", "kind"],
            registry=self.registry,
        )
        self.first_character_s = Histogram(
            "charwright_first_character_seconds",
            "Time from a request to its first generated character.",
            ["model"],
            buckets=FIRST_CHARACTER_S,
            registry=self.registry,
        )
        self.waiting = Gauge("charwright_waiting_texts", "Texts in the queue.", ["model"], registry=self.registry)
        self.active = Gauge("charwright_active_texts", "Texts in the batch.", ["model"], registry=self.registry)
        self.streams = Gauge("charwright_streams", "Open event streams.", registry=self.registry)
        self.abandoned = Counter(
            "charwright_abandoned_requests", "Requests whose client left before the end.", registry=self.registry
        )
        self.ready = Gauge("charwright_ready", "1 if requests are carried out, otherwise 0.", registry=self.registry)
        Info("charwright_build", "The version of charwright.", registry=self.registry).info({"version": __version__})
        served = Info("charwright_model", "The models: when and with which weights.", ["model"], registry=self.registry)
        for model, facts in models.items():
            served.labels(model).info(dict(facts))
            self.waiting.labels(model)
            self.active.labels(model)
            self.first_character_s.labels(model)
            for kind in ("prompt", "generated"):
                self.characters.labels(model, kind)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

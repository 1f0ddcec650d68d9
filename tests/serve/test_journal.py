"""What a request leaves in the metrics, in the order in which clients can see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charwright.serve.journal import Entry, Journal, RefusalAnswers
from charwright.serve.metrics import Metrics
from charwright.serve.refusals import busy


async def refused(scope: Scope, receive: Receive, send: Send) -> None:
    raise busy(503, "the service is full", retry_s=1, reason="full")


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


def request(app: ASGIApp, seen: Callable[[Message], None]) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        seen(message)

    asyncio.run(app({"type": "http", "method": "GET", "path": "/v1/models"}, receive, send))  # type: ignore[arg-type]


@pytest.mark.parametrize(("app", "status", "reason"), [(refused, 503, "full"), (broken, 500, "failed")])
def test_refusal_is_counted_once_before_the_client_has_the_answer(app: ASGIApp, status: int, reason: str) -> None:
    metrics, entries, counted = Metrics({}), list[Entry](), list[float]()

    def seen(message: Message) -> None:
        assert message.get("status", status) == status
        counted.append(metrics.registry.get_sample_value("charwright_refusals_total", {"reason": reason}) or 0)

    answers = RefusalAnswers(app, metrics=metrics)
    journal = Journal(
        answers, metrics=metrics, log=lambda entry, _: entries.append(entry), headers=[], ending=lambda: False
    )
    request(journal, seen)
    assert set(counted) == {1}
    assert [entry.refusal and entry.refusal.reason for entry in entries] == [reason]

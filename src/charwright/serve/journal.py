"""The outermost layer: numbers, times, counts and logs each request. And the log, and answers to what is refused."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charwright.serve.access import PROBES
from charwright.serve.jobs import ClientGoneError, Job
from charwright.serve.lines import Lines
from charwright.serve.metrics import Metrics
from charwright.serve.refusals import Headers, Refusal, json_bytes

CLIENT_CLOSED = 499
"""The status in logs and metrics when the client left before an answer, as nginx has it."""
KNOWN_ROUTES = frozenset(
    {"/", "/docs", "/healthz", "/metrics", "/openapi.json", "/readyz", "/v1/completions", "/v1/models"}
)

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """What is known about a request."""

    method: str
    path: str
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(8)}")
    status: int | None = None
    began_s: float = field(default_factory=time.perf_counter)
    refusal: Refusal | None = None
    job: Job | None = None
    abandoned: bool = False
    """Whether the client left before the end."""

    @property
    def route(self) -> str:
        """The route for the metrics, which have no room for every path."""
        if self.path.startswith("/v1/models/"):
            return "/v1/models/{model}"
        return self.path if self.path in KNOWN_ROUTES else "other"


Log = Callable[[Entry, float], None]


class Journal:
    """Keeps an entry for each request."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, log: Log | None, headers: Headers, ending: Callable[[], bool]
    ) -> None:
        """Log with `log`, if any; add `headers` to all answers.

        Connections are not kept while the service is `ending`.
        """
        self._app, self._metrics, self._log, self._headers, self._ending = app, metrics, log, headers, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out a request, whatever it raises."""
        if scope["type"] != "http":
            return
        entry = Entry(scope["method"], scope["path"])
        state = scope.setdefault("state", {})
        state["id"] = entry.id

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                own = [(b"x-request-id", entry.id.encode()), *self._headers]
                if self._ending():
                    own.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        async def receive_valid() -> Message:
            message = await receive()
            if "invalid_body" in state:
                raise state["invalid_body"]
            return message

        try:
            if "refusal" in state:  # The protocol has refused what came instead of a request.
                await _refuse(state["refusal"], self._metrics, scope, receive, send_noting)
            else:
                await self._app(scope, receive_valid, send_noting)
        except ClientGoneError:
            pass
        except Exception:
            logger.exception("request %s failed; this is a defect of charwright", entry.id)
            if entry.status is not None:
                raise  # The answer has begun: the server closes the connection.
            problem = Refusal(500, f"request {entry.id} failed; this is a defect of charwright", reason="failed")
            await _refuse(problem, self._metrics, scope, receive, send_noting)
        finally:
            entry.job, entry.refusal = state.get("job"), state.get("refusal")
            entry.abandoned = "abandoned" in state
            self._finish(entry)

    def _finish(self, entry: Entry) -> None:
        seconds = time.perf_counter() - entry.began_s
        entry.status = entry.status or CLIENT_CLOSED
        self._metrics.requests.labels(entry.route, str(entry.status)).inc()
        self._metrics.request_s.labels(entry.route).observe(seconds)
        if self._log is not None:
            self._log(entry, seconds)


class RefusalAnswers:
    """Turns what the application refuses into an answer, which is counted before the client has it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        """Answer for `app`."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out a request, or answer with what it was refused for."""
        try:
            await self._app(scope, receive, send)
        except Refusal as refusal:
            await _refuse(refusal, self._metrics, scope, receive, send)


async def _refuse(refusal: Refusal, metrics: Metrics, scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"]["refusal"] = refusal
    metrics.refusals.labels(refusal.reason).inc()
    response = Response(json_bytes(refusal.body()), refusal.status, media_type="application/json")
    response.raw_headers += refusal.headers
    await response(scope, receive, send)


class RequestLog:
    """Writes one line for each request. What clients write is in it only if `prompts`."""

    def __init__(self, *, as_json: bool, prompts: bool, stream: TextIO | Lines) -> None:
        """Write to `stream`, which must not block, as text or as one JSON object a line."""
        self._json, self._prompts, self._stream = as_json, prompts, stream

    def __call__(self, entry: Entry, seconds: float) -> None:
        """Write the line."""
        if entry.route in PROBES:
            return
        values = self._values(entry, seconds)
        line = json.dumps(values, ensure_ascii=False) if self._json else _line(values)
        self._stream.write(line + "\n")

    def _values(self, entry: Entry, seconds: float) -> dict[str, Any]:
        values: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "id": entry.id,
            "method": entry.method,
            "path": entry.route,
            "status": entry.status,
            "seconds": round(seconds, 4),
        }
        if entry.refusal is not None:
            values |= {"refused": entry.refusal.reason}
        if entry.abandoned:
            values |= {"abandoned": True}
        if (job := entry.job) is not None:
            values |= {
                "model": job.served.hosted.name,
                "texts": len(job.prompts),
                "prompt_characters": sum(map(len, job.request.prompt)),
                "characters": job.generated,
            }
            if self._prompts:
                values["prompt"] = job.request.prompt
        return values


def _line(values: dict[str, Any]) -> str:
    head = f"{values.pop('time')} {values.pop('method')} {values.pop('path')} {values.pop('status')}"
    return " ".join([head, *(f"{name}={_plain(value)}" for name, value in values.items())])


def _plain(value: Any) -> str:
    """A value without spaces around it as it is, anything else as JSON, so that the line stays one."""
    word = isinstance(value, str) and value.isprintable() and " " not in value
    return value if word else json.dumps(value, ensure_ascii=False)


class Problems(logging.Formatter):
    """Problems of the service in the form of the log: lines, or JSON objects with the traceback in them."""

    def __init__(self, *, as_json: bool) -> None:
        """Choose the form."""
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        self._json = as_json

    def notice(self, message: str) -> str:
        """The line of a message that has no record."""
        return self.format(logging.makeLogRecord({"levelname": "WARNING", "msg": message}))

    def format(self, record: logging.LogRecord) -> str:
        """One line, or with a traceback several unless it is JSON."""
        if not self._json:
            return super().format(record)
        values = {"time": self.formatTime(record, self.datefmt), "level": record.levelname}
        values["message"] = record.getMessage()
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)

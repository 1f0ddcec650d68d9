"""uvicorn's HTTP protocol with limits on connections, on the head of a request, and on the time a client may take."""

from __future__ import annotations

import asyncio
import re
from asyncio import TimerHandle
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from charwright.serve.refusals import Refusal, json_bytes

MOST_HEAD_BYTES = 64 << 10
"""The first line of a request and its headers together."""
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    idle_s = 30.0
    """Longest wait for a request to begin on a new connection, for its head, and for the client to read."""
    most_connections = 1000
    refused: Callable[[str], None] = staticmethod(lambda _: None)
    """Counts refusals by reason."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, or close the connection if there are too many."""
        super().connection_made(transport)
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._completed = False  # whether a request was complete in the part that is read
        if len(self.connections) > self.most_connections:
            self._refuse(Refusal(503, "the service has too many connections", code="overloaded", reason="connections"))
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, and see that its head has an end."""
        if self.transport.is_closing():
            return
        if self._in_head and self._head_bytes == 0:
            data = _without_upgrade(data)
        before, self._completed = self._head_bytes, False
        super().data_received(data)
        if self._in_head:
            self._head_bytes = 1 if self._completed else before + len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                message = f"the head of the request is larger than {MOST_HEAD_BYTES:,} bytes"
                self._refuse(Refusal(431, message, reason="head"))
        if self._idle:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Go on to the body, for which the application waits."""
        self._in_head, self._head_bytes = False, 0
        self._stop_reading()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Go on to the head of the next request."""
        self._in_head, self._head_bytes, self._completed = True, 0, True
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._stop_writing()
        self._writing = self.loop.call_later(self.idle_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting: the client has read."""
        self._stop_writing()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing behind; uvicorn's timer would keep the memory of a connection that was reset."""
        self._stop_reading()
        self._stop_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the form of all refusals."""
        self._refuse(Refusal(400, msg.rstrip(".").lower(), reason="http"))

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        """Wait for the rest of a request, whatever has arrived of it. An answer in progress is never interrupted."""
        if self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.idle_s, self._give_up)

    def _give_up(self) -> None:
        self._reading = None
        if self._idle:
            self.transport.abort()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without the application, and close the connection."""
        self.refused(refusal.reason)
        body = json_bytes(refusal.body())
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        if self._idle:
            self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """The beginning of a request without an offer to speak HTTP/2, after which the parser would not read its body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest if b"pgrade" in head else data

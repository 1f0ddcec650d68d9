"""uvicorn's HTTP protocol with limits on connections, on the head of a request, and on the time a client may take.

What is refused here goes through the application like a request: there it is numbered, counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from charwright.serve.access import PROBES
from charwright.serve.refusals import Refusal, busy

MOST_HEAD_BYTES = 64 << 10
"""The first line of a request and its headers together."""
TLS_HELLO = b"\x16\x03"
EXCESS = 64
"""Connections beyond the limit that may probe: a watchdog must not take a busy service for a dead one."""
EXCESS_S = 2.0
"""Longest wait for the head of a request on one of them: there are few, and a probe is sent at once. When there are too
many connections, a head on any other that takes longer makes room too."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    idle_s = 30.0
    """Longest wait for a request to begin on a new connection, for its head, and for the client to read."""
    most_connections = 1000
    """Connections that may ask for everything. `EXCESS` more are answered one probe each."""
    idle: dict[LimitedProtocol, None]
    """The connections between two requests, and those whose client is slow to send one, the longest idle first; all
    connections of a service share it."""
    abandoned: Callable[[], None] = staticmethod(lambda: None)
    """Counts answers that were complete for the application, and that the client did not read to their end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request. If there are too many connections, close idle ones, or take only a probe."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # However little the client has not read, the wait for it has an end.
        self._reading: TimerHandle | None = None
        self._hesitating: TimerHandle | None = None
        self._slow = False  # whether the head of a request takes longer than `EXCESS_S`
        self._writing: TimerHandle | None = None
        self._head_bytes = 0  # of the head that is read, or since the last part of the body
        self._body_read = False  # whether there was a part of a body in the part that is read
        self._in_head = True  # or before it
        self._begun = False  # whether a part of a request has arrived
        self._completed = False  # whether a request was complete in the part that is read
        self._problem: Refusal | None = None  # what is wrong with the head that is read
        self._refused = False  # whether what follows is ignored
        self._tls = False  # whether the client began with TLS
        while self._crowded and self._close_longest_idle():
            pass
        self._excess = self._crowded  # whether only a probe is answered
        if len(self.connections) > self.most_connections + EXCESS:
            self._refuse(_too_many())
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, and see that its head has an end."""
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.idle.pop(self, None)
        before, self._completed, self._body_read = self._head_bytes, False, False
        self._tls = self._in_head and not self._begun and data.startswith(TLS_HELLO)
        try:
            self._parse(memoryview(data))
        except HttpParserError:
            self._refuse_invalid()
            return
        self._head_bytes = 0 if self._completed or self._body_read else before + len(data)
        if self._head_bytes > MOST_HEAD_BYTES:
            self._problem = _large_head() if self._in_head else _large_trailer()
            self._refuse_invalid()
            return
        if self._idle:
            self._wait_for_head()
            self._note_idle()

    def on_message_begin(self) -> None:
        """Begin with the head of a request."""
        self._begun, self._slow = True, False
        self._wait_for_slow()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. The fields after a body in chunks are none, and are ignored: the head was acted upon."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_read = True
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Go on to the body, for which the application waits."""
        self._excess &= self._crowded  # There may be room by now.
        self._problem = self._problem_of_head()
        if self._problem is not None:
            raise self._problem  # The parser stops, and raises an error of its own.
        if self.parser.should_upgrade():
            return  # `_parse` does without the offer.
        super().on_headers_complete()
        if self._excess:
            self.cycle.keep_alive = False
        if self.parser.get_http_version() == "1.0":
            end_by_closing(self.cycle)
        self._in_head, self._head_bytes = False, 0
        self._stop_reading()

    def on_message_complete(self) -> None:
        """Go on to the head of the next request."""
        if self.parser.should_upgrade():
            return
        self._in_head, self._head_bytes, self._begun, self._completed = True, 0, False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._note_idle()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Stop waiting: the client has read."""
        self._stop_writing()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing behind; uvicorn's timer would keep the memory of a connection that was reset."""
        self.idle.pop(self, None)
        self._stop_reading()
        self._stop_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _parse(self, data: memoryview) -> None:
        """Read requests, with offers to speak another protocol left out.

        The parser leaves the body of a request with an offer to the other protocol. Such a request is therefore read
        again from its head, without the offer.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            self.parser.feed_data(self._head_without_offer())

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _problem_of_head(self) -> Refusal | None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MOST_HEAD_BYTES:
            return _large_head()
        if self.parser.get_method() == b"CONNECT":
            return Refusal(400, "this service is no proxy", reason="http")
        if self._excess and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
            return _too_many()
        return None

    @property
    def _crowded(self) -> bool:
        """Whether there are more connections than may ask for everything."""
        return len(self.connections) > self.most_connections

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _note_idle(self) -> None:
        """Take a place among the idle connections, if this one waits for its client."""
        waits = self._in_head and (self._slow or not self._begun)
        if self._idle and waits and not self.transport.is_closing():
            self.idle[self] = None

    def _close_longest_idle(self) -> bool:
        """Make room for this connection: whether another one could be closed without harm."""
        for other in self.idle:
            if not other.flow.write_paused:  # Otherwise its client still reads the last answer.
                del self.idle[other]
                self.connections.discard(other)
                other.transport.close()
                return True
        return False

    def _wait_for_head(self) -> None:
        """Wait for the rest of a request, whatever has arrived of it. An answer in progress is never interrupted."""
        if self._reading is None and not self.transport.is_closing():
            wait_s = min(self.idle_s, EXCESS_S) if self._excess else self.idle_s
            self._reading = self.loop.call_later(wait_s, self._give_up)
            self._wait_for_slow()

    def _give_up(self) -> None:
        self._reading = None
        if self._idle:
            self.transport.abort()

    def _wait_for_slow(self) -> None:
        if self._hesitating is not None:
            self._hesitating.cancel()
        self._hesitating = self.loop.call_later(min(self.idle_s, EXCESS_S), self._note_slow)

    def _note_slow(self) -> None:
        self._slow = True
        self._note_idle()

    def _stop_reading(self) -> None:
        for timer in (self._reading, self._hesitating):
            if timer is not None:
                timer.cancel()
        self._reading = self._hesitating = None
        self._slow = False

    def _wait_for_reader(self) -> None:
        self._stop_writing()
        self._writing = self.loop.call_later(self.idle_s, self._see_reader, _unsent_bytes(self.transport))

    def _see_reader(self, before: int) -> None:
        """Wait on for a client that has read something, however slow it is; leave one that has not."""
        if _unsent_bytes(self.transport) < before:
            self._wait_for_reader()
            return
        if self._idle:  # Otherwise the application notices it, and counts.
            self.abandoned()
        self.transport.abort()

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _refuse_invalid(self) -> None:
        """Answer what is not HTTP. What follows cannot be told apart, and is ignored."""
        refusal = self._problem or Refusal(400, "invalid http request received", reason="http")
        if self._tls:
            refusal = Refusal(400, "this port speaks plain HTTP, not HTTPS: use http://", reason="http")
        if self._in_head:
            self._refuse(refusal)
            return
        self._refused = True
        if self.cycle.response_complete:
            self.transport.close()
            return
        self.cycle.keep_alive = False
        self.cycle.scope["state"]["invalid_body"] = refusal
        self.cycle.message_event.set()  # The application may be waiting for the body.

    def _refuse(self, refusal: Refusal) -> None:
        """Answer as soon as the requests before are answered, then close the connection."""
        self._refused = True
        self._stop_reading()
        super().on_message_begin()
        self.scope["method"], self.scope["path"] = "-", ""
        self.scope["raw_path"], self.scope["query_string"] = b"", b""
        self.scope["state"]["refusal"] = refusal
        answering, self.cycle = not self._idle, self._new_cycle()
        if answering:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            task = self.loop.create_task(self.cycle.run_asgi(self.app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    def _new_cycle(self) -> RequestResponseCycle:
        return RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )


def end_by_closing(cycle: RequestResponseCycle) -> None:
    """Let the end of the connection be that of an answer of unknown length: HTTP/1.0 has no chunks (RFC 9112, 6.1)."""
    framed, chunked = cycle.send, False

    async def send(message: Any) -> None:
        nonlocal chunked
        if message["type"] == "http.response.start":
            chunked = all(name != b"content-length" for name, _ in message.get("headers", ()))
            if chunked:
                cycle.chunked_encoding, cycle.keep_alive = False, False
        elif chunked:
            cycle.expected_content_length = len(message.get("body", b""))
        await framed(message)

    cycle.send = send  # type: ignore[method-assign]


def _large_head() -> Refusal:
    return Refusal(431, f"the head of the request is larger than {MOST_HEAD_BYTES:,} bytes", reason="head")


def _large_trailer() -> Refusal:
    return Refusal(431, f"what follows the body of the request is larger than {MOST_HEAD_BYTES:,} bytes", reason="head")


def _too_many() -> Refusal:
    return busy(503, "the service has too many connections", 1, "connections")


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """What the client has not taken yet: with what is in the system's buffer, which may be large, if it tells."""
    unsent = transport.get_write_buffer_size()
    if sys.platform == "linux":
        import fcntl
        import termios

        with contextlib.suppress(OSError):
            held = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unsent += int.from_bytes(held, sys.byteorder)
    return unsent

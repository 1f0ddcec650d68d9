"""The process: listens, runs the application on uvicorn, and ends when a signal asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from asyncio import TimerHandle
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from charwright.errors import UsageError
from charwright.serve.app import Access, create_app
from charwright.serve.journal import Log
from charwright.serve.service import Service
from charwright.signals import handling

BACKLOG = 1024
KEEP_ALIVE_S = 130
"""How long an idle connection stays open: longer than proxies keep theirs (nginx 60 s, Caddy 120 s), so that they close
it, and no request meets a connection that is being closed."""
CLOSING_S = 2
"""How long the last answers may take to be sent when the service ends."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What reaches a service that listens on all addresses."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        UsageError: if that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host: {host} is no address of this machine ({error.strerror})") from error
    try:
        if sys.platform != "win32":  # Elsewhere it lets a restarted service listen at once; there it would share ports.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}, port {port}: {_reason(error, port)}") from error
    return listener


def _reason(error: OSError, port: int) -> str:
    return f"{error.strerror}; choose another with --port" if port else f"{error.strerror}"


def url_of(listener: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = ANY_ADDRESS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    service: Service,
    access: Access,
    listener: socket.socket,
    *,
    log: Log | None = None,
    trusted_proxies: str | None = None,
    say: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C, then let the accepted requests end; return the exit code.

    `trusted_proxies` are the addresses whose X-Forwarded-For is believed, separated by commas.
    """
    server = Server(service, create_app(service, access, log=log), say=say, trusted_proxies=trusted_proxies)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return server.exit_code


class Server(uvicorn.Server):
    """uvicorn's server, with our start and end."""

    def __init__(
        self, service: Service, app: ASGIApp, *, say: Callable[[str], None], trusted_proxies: str | None = None
    ) -> None:
        """Prepare to serve `app`; `say` takes messages for the user."""
        limits = service.limits
        # uvicorn's own messages are for developers; what a user needs to know is logged by the journal.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Protocol", (_Protocol,), {"idle_s": limits.idle_s}),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=trusted_proxies is not None,
                forwarded_allow_ips=trusted_proxies or "",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSING_S,
                backlog=BACKLOG,
            )
        )
        self._service, self._say = service, say
        self._deadline: float | None = None  # on the event loop's clock, after the first signal
        self._announced = False
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engines before the first request."""
        self._service.start()
        await super().startup(sockets)
        places = " and ".join(url_of(listener) for listener in sockets or [])
        self._say(f"serving {', '.join(self._service.models)} at {places}")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: end when the accepted requests have ended, or at the deadline.

        Until then the service listens, so that a balancer can see that it is not ready.
        """
        if self._deadline is not None:
            self._announce_end()
            late = asyncio.get_running_loop().time() >= self._deadline
            if late and self._service.jobs:
                self._say(f"{_requests(len(self._service.jobs))} did not end in time")
            self.should_exit |= late or not self._service.jobs
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is left, then the engines."""
        self._service.cut()
        await super().shutdown(sockets)
        self._service.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals without raising them again at the end, as uvicorn does: the exit code tells."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handling(("SIGINT", "SIGTERM"), self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to end at the first signal, and end at once at the second."""
        if self._service.draining:
            self.should_exit, self.exit_code = True, 128 + sig
            return
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.limits.drain_s

    def _announce_end(self) -> None:
        """Say once what is still to be done. The handler of the signal may have interrupted another message."""
        if not self._announced and (count := len(self._service.jobs)):
            self._say(f"ending after {_requests(count)} in progress; Ctrl-C again ends at once")
        self._announced = True


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which closes connections whose client neither sends its request nor reads the answer."""

    idle_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._patience: TimerHandle | None = None
        self._wait()

    def on_message_begin(self) -> None:
        """Wait for the headers of a request."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Stop waiting: the application waits for the body."""
        self._stop_waiting()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        self._unset_keepalive_if_required()  # After a reset, the timer would keep the connection's memory.
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(self.idle_s, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

"""The process: listens, runs the application on uvicorn, and ends when a signal asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from charwright.errors import UsageError
from charwright.serve.app import Access, create_app
from charwright.serve.journal import Log
from charwright.serve.protocol import LimitedProtocol
from charwright.serve.service import Service
from charwright.signals import handling

BACKLOG = 1024
MACOS_FILES = 10_240
REPORT_EVERY_S = 10.0
KEEP_ALIVE_S = 130
"""How long an idle connection stays open: longer than proxies keep theirs (nginx 60 s, Caddy 120 s), so that they close
it, and no request meets a connection that is being closed."""
CLOSING_S = 2
"""How long the last answers may take to be sent when the service ends."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What reaches a service that listens on all addresses."""

logger = logging.getLogger(__name__)


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
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise UsageError(f"--host {host} is no address of this machine: {reason}") from error
    try:
        if sys.platform == "win32":  # Otherwise another program could listen on the port too.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # A restarted service can listen at once.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}, port {port}: {_reason(error)}") from error
    return listener


def _reason(error: OSError) -> str:
    taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
    return f"{error.strerror}; choose another with --port" if taken else f"{error.strerror}"


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
    """Serve until SIGTERM, SIGHUP or Ctrl-C, then let the accepted requests end; return the exit code.

    `trusted_proxies` are the addresses whose X-Forwarded-For is believed, separated by commas.
    """
    _allow_many_files()
    server = Server(service, create_app(service, access, log=log), say=say, trusted_proxies=trusted_proxies)
    with handling(("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"), server.handle_exit):
        server.run(sockets=[listener])
    return server.exit_code


def _allow_many_files() -> None:
    """Raise the limit of open files, of which each connection is one, as far as the system allows."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        except (OSError, ValueError):  # macOS allows this many, whatever it says.
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (MACOS_FILES, most))


def _protocol(service: Service) -> type[LimitedProtocol]:
    """The protocol with the limits of a service."""
    limits = service.limits
    return type(
        "Protocol",
        (LimitedProtocol,),
        {
            "idle_s": limits.idle_s,
            "most_connections": limits.max_connections,
            "idle": {},
            "abandoned": staticmethod(service.metrics.abandoned.inc),
        },
    )


class Server(uvicorn.Server):
    """uvicorn's server, with our start and end."""

    def __init__(
        self, service: Service, app: ASGIApp, *, say: Callable[[str], None], trusted_proxies: str | None = None
    ) -> None:
        """Prepare to serve `app`; `say` takes messages for the user."""
        # uvicorn's own messages are for developers; what a user needs to know is logged by the journal.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(service),
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
        self._reported_s = -REPORT_EVERY_S
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engines before the first request."""
        asyncio.get_running_loop().set_exception_handler(self._report)
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
        """Leave the signals to `serve`: uvicorn would raise them again at the end."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to end at the first signal, and end at once at the second."""
        if self._service.draining:
            self.should_exit, self.exit_code = True, 128 + sig
            return
        self._service.draining = True
        self._deadline = time.monotonic() + self._service.limits.drain_s

    def _report(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what goes wrong outside of requests; a lack of open files once in a while, not for each connection."""
        problem = context.get("exception")
        if isinstance(problem, ConnectionError) and "socket" not in context:
            return  # A client that has gone.
        if not isinstance(problem, OSError):
            logger.error("%s", context["message"], exc_info=problem)
        elif (now := time.monotonic()) - self._reported_s > REPORT_EVERY_S:
            self._reported_s = now
            logger.error("cannot accept connections: %s", problem.strerror)

    def _announce_end(self) -> None:
        """Say once what is still to be done. The handler of the signal may have interrupted another message."""
        if not self._announced and (count := len(self._service.jobs)):
            self._say(f"ending after {_requests(count)} in progress; Ctrl-C again ends at once")
        self._announced = True


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"

"""Reads the bodies of requests, within limits."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope

from charwright.serve.jobs import ClientGoneError
from charwright.serve.limits import ServiceConfig
from charwright.serve.refusals import Refusal

JSON = b"application/json"
CLOSE = (b"connection", b"close")
MOST_DIGITS = 18  # of a length in bytes


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header of the request, by its lower-case name."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def read_body(scope: Scope, receive: Receive, limits: ServiceConfig) -> bytes:
    """Read a JSON body.

    A page of another site can send forms and plain text without asking, but not JSON: hence the check of the type.

    Raises:
        Refusal: 415 if it is not JSON, 413 if it is too large, 408 if it does not arrive.
        ClientGoneError: if the client left.
    """
    kind = (header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != JSON:
        message = "the body must be JSON, with the header Content-Type: application/json"
        raise Refusal(415, message, headers=[CLOSE])
    if (encoding := header(scope, b"content-encoding")) not in (None, b"identity"):
        message = f"the body must not be compressed ({(encoding or b'').decode('latin-1')})"
        raise Refusal(415, message, headers=[CLOSE])
    declared = (header(scope, b"content-length") or b"").lstrip(b"0")
    if declared.isdigit() and (len(declared) > MOST_DIGITS or int(declared) > limits.max_body_bytes):
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.idle_s):
            return await _whole_body(receive, limits)
    except TimeoutError:
        raise Refusal(408, "the body did not arrive in time", headers=[CLOSE], reason="idle") from None


async def _whole_body(receive: Receive, limits: ServiceConfig) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: ServiceConfig) -> Refusal:
    message = f"the body is larger than {limits.max_body_bytes:,} bytes"
    return Refusal(413, message, headers=[CLOSE], reason="size")

"""Refusals: everything that a client did wrong or that the service cannot do now, as OpenAI's error object."""

from __future__ import annotations

import json
from typing import Any

Headers = list[tuple[bytes, bytes]]

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818
    """A request that is not carried out: an HTTP status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers | None = None,
        reason: str = "invalid",
    ) -> None:
        """Describe the refusal; `param` is the parameter at fault, `reason` its label in the metrics."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers, self.reason = headers or [], reason

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(param: str | None, message: str, code: str | None = None) -> Refusal:
    """A refusal of the parameter `param`, whose name begins the message."""
    return Refusal(400, f"{param}: {message}" if param else message, param=param, code=code)


def busy(status: int, message: str, retry_s: int, reason: str) -> Refusal:
    """A refusal because of load: 429 if the caller has too many texts, 503 if the service is full."""
    code = "rate_limit_exceeded" if status == 429 else "overloaded"
    retry = f"; try again in {retry_s} s"
    headers = [(b"retry-after", str(retry_s).encode())]
    return Refusal(status, message + retry, code=code, headers=headers, reason=reason)


def json_bytes(value: Any) -> bytes:
    """A value as JSON, in ASCII: some clients split a stream at U+2028 and similar characters."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")

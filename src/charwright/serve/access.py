"""Who may ask: the names of the host, the origins of web pages, and API keys. Every route but health is guarded."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from charwright.errors import UsageError
from charwright.serve.bodies import header
from charwright.serve.keys import Keys
from charwright.serve.refusals import Refusal

OPEN = frozenset({"/healthz", "/readyz"})
"""Routes without a key, under any host name."""
PROBES = OPEN | {"/metrics"}
"""Routes of those that watch the service: they are answered however busy it is, and not logged."""
PAGES = frozenset({"/", "/docs"})
"""Routes that a browser opens: it asks the user for the key as a password."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class HostCheck:
    """Refuse requests under a name that is not ours: a page of another site may have made its name point here.

    That attack (DNS rebinding) needs a name, so that addresses are allowed wherever the service listens beyond the
    loopback interface. Balancers ask for the health of the service under any name or none, and it is no secret.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str], addresses: bool) -> None:
        """Allow `names` (`*` for all) and the loopback names, and all IP addresses with `addresses`."""
        self._app = app
        self._names = {name.lower() for name in names} | LOOPBACK_NAMES
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on.

        Raises:
            Refusal: 403 if it has another name.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if scope["path"] not in OPEN and not (len(hosts) == 1 and self._allowed(host_name(hosts[0]))):
            message = "this host name is not allowed; the service's --allow-host names those that are"
            if not hosts:
                message = "the request has no Host header"
            raise Refusal(403, message, code="host_not_allowed", reason="host")
        await self._app(scope, receive, send)

    def _allowed(self, name: str | None) -> bool:
        if name is None:
            return False
        return "*" in self._names or name in self._names or (self._addresses and is_address(name))


class OriginCheck:
    """Refuse what pages of other sites send, unless their origin is allowed."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        """Allow the service's own pages and these origins."""
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on.

        Raises:
            Refusal: 403 if it comes from another origin.
        """
        origin = header(scope, b"origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            text = origin.decode("latin-1")
            if text not in self._origins and not _is_own(origin, header(scope, b"host") or b""):
                message = "this origin is not allowed; the service's --cors-origin names those that are"
                raise Refusal(403, message, code="origin_not_allowed", reason="origin")
        await self._app(scope, receive, send)


class KeyCheck:
    """Ask for an API key, and note who the caller is: the key, or without keys the address."""

    def __init__(self, app: ASGIApp, *, keys: Keys | None) -> None:
        """Accept these keys, or everyone if there are none."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on.

        Raises:
            Refusal: 401 without an accepted key.
        """
        caller: str | None = str((scope.get("client") or ("unknown",))[0])
        if self._keys is not None and scope["path"] not in OPEN:
            key = _key(header(scope, b"authorization"))
            caller = None if key is None else self._keys.caller(key)
            if caller is None:
                raise _no_key(given=key is not None, page=scope["path"] in PAGES)
        scope["state"]["caller"] = caller
        await self._app(scope, receive, send)


def _is_own(origin: bytes, host: bytes) -> bool:
    """Whether an origin (`https://name:port`) is that of the service. A proxy may have changed the scheme."""
    scheme, separator, place = origin.partition(b"://")
    own = host_and_port(place)
    return bool(separator) and scheme in (b"http", b"https") and own is not None and own == host_and_port(host)


def _no_key(*, given: bool, page: bool) -> Refusal:
    wanted = b'Basic realm="charwright: any user name, the API key as password", charset="UTF-8"' if page else b"Bearer"
    message = "the API key is wrong" if given else "an API key is required: Authorization: Bearer KEY"
    code = "invalid_api_key"
    return Refusal(401, message, code=code, headers=[(b"www-authenticate", wanted)], reason="key")


def _key(authorization: bytes | None) -> bytes | None:
    """The key of a Bearer header, or the password of a Basic one."""
    scheme, _, value = (authorization or b"").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip() or None
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2] or None
    except binascii.Error:
        return None


def host_and_port(host: bytes) -> tuple[str, str] | None:
    """The name in lower case and the port, without those that need no mention; None if it is malformed."""
    try:
        parts = urlsplit(b"//" + host)
        port = parts.port
        name = (parts.hostname or b"").decode("ascii").removesuffix(".")
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or b"@" in host:
        return None
    return name, "" if port in (None, 80, 443) else str(port)


def host_name(host: bytes) -> str | None:
    """The name of a Host header in lower case, without its port; None if it is malformed."""
    parts = host_and_port(host)
    return None if parts is None else parts[0]


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def check_exposure(host: str, *, keys: bool, no_auth: bool) -> None:
    """Check that a service which others can reach asks for keys, unless the user wants none.

    Raises:
        UsageError: if it does not.
    """
    if keys and no_auth:
        raise UsageError("--api-key-file and --no-auth contradict each other; remove one")
    if not host:
        raise UsageError("--host needs an address, such as 127.0.0.1")
    if not (is_loopback(host) or keys or no_auth):
        raise UsageError(
            f"--host {host} can be reached from other machines: give --api-key-file FILE, or --no-auth if anyone may"
            " generate"
        )


def check_names(hosts: Iterable[str], origins: Iterable[str], proxies: Iterable[str]) -> None:
    """Check that the names which the user allows have the form in which clients send them.

    Raises:
        UsageError: if one of them could never match.
    """
    for host in hosts:
        if host != "*" and (host_name(host.encode("utf-8", "replace")) or "") != host.strip("[]").lower():
            raise UsageError(
                f"--allow-host takes a name without http:// and port, such as text.example.com, not {host!r}"
            )
    for origin in origins:
        if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin) or origin.endswith((":80", ":443")):
            raise UsageError(
                f"--cors-origin takes an origin as browsers send it, such as https://example.org, not {origin!r}"
            )
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise UsageError(f"--trusted-proxy takes an IP address or network, not {proxy!r}: {error}") from error

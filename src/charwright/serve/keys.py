"""API keys, kept and compared as SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from charwright.errors import UsageError

SHORTEST_KEY = 16


class Keys:
    """The keys that the service accepts."""

    def __init__(self, digests: Sequence[bytes]) -> None:
        """Accept the keys with these SHA-256 digests."""
        self._digests = tuple(digests)

    @classmethod
    def parse(cls, text: str, where: str) -> Keys:
        """Read the text of a file: one key a line, or `sha256:` and its SHA-256 in hexadecimal; # begins a comment.

        Raises:
            UsageError: if a line is no key, or there is none. The key itself is not shown.
        """
        digests = [
            _digest(line.strip(), f"{where}, line {number}")
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not digests:
            raise UsageError(f"{where} has no key; write one key a line")
        return cls(digests)

    def caller(self, key: bytes) -> str | None:
        """A name for whoever has this key, or None if it is not accepted. All digests are compared in equal time."""
        digest = hashlib.sha256(key).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return f"key {found.index(True) + 1}" if any(found) else None


def _digest(line: str, where: str) -> bytes:
    if line[:7].lower() == "sha256:":
        if not re.fullmatch(r"[0-9a-fA-F]{64}", line[7:]):
            raise UsageError(f"{where}: sha256: must be followed by 64 hexadecimal digits")
        return bytes.fromhex(line[7:])
    if len(line) < SHORTEST_KEY or not line.isascii() or not line.isprintable() or " " in line:
        raise UsageError(f"{where}: a key must have at least {SHORTEST_KEY} ASCII characters and no spaces")
    return hashlib.sha256(line.encode()).digest()

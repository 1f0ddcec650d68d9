"""Pages in one file without outside resources, and the Content-Security-Policy that holds them to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from charwright.webpage.template import filled, hash_of, source


@dataclass(frozen=True)
class Page:
    """A page as UTF-8, and the Content-Security-Policy to send with it."""

    body: bytes
    policy: str


def page_of(name: str, parts: Mapping[str, str]) -> Page:
    """The page `page/name` with its {{parts}} filled in.

    The policy allows the inline styles and scripts by their hashes, requests to the service itself, and nothing else.
    """
    body = filled(source("serve", name), parts)
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(r"<script>(.*?)</script>", body),
        "style-src": _hashes(r"<style>(.*?)</style>", body),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(body.encode("utf-8"), "; ".join(f"{name} {value}" for name, value in policy.items()))


def _hashes(pattern: str, body: str) -> str:
    """The source expressions that allow these inline elements; each covers every character between its tags."""
    return " ".join(map(hash_of, re.findall(pattern, body, re.DOTALL))) or "'none'"

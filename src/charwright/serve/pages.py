"""Pages in one file without outside resources, and the Content-Security-Policy that holds them to it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

FOLDER = files("charwright.serve").joinpath("page")


@dataclass(frozen=True)
class Page:
    """A page as UTF-8, and the Content-Security-Policy to send with it."""

    body: bytes
    policy: str


def page_of(name: str, parts: Mapping[str, str]) -> Page:
    """The page `page/name` with its {{parts}} filled in.

    The policy allows the inline styles and scripts by their hashes, requests to the service itself, and nothing else.
    """
    body = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], source(name))
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


def source(name: str) -> str:
    """The text of a file in `page/`."""
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


def _hashes(pattern: str, body: str) -> str:
    """The source expressions that allow these inline elements; each covers every character between its tags."""
    found = [hashlib.sha256(inline.encode("utf-8")).digest() for inline in re.findall(pattern, body, re.DOTALL)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in found) or "'none'"

"""Pages in one file without outside resources: the sources, their templates, and the hashes of what is inline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files

LANGUAGES = ("zh-Hant",)
"""Those besides English. `language.js` has their names."""


def shared(name: str) -> str:
    """The text of a file that all pages share."""
    return files("charwright.webpage").joinpath(name).read_text(encoding="utf-8")


def source(package: str, name: str) -> str:
    """The text of a file in the folder `page/` of a package."""
    return files(f"charwright.{package}").joinpath("page", name).read_text(encoding="utf-8")


def translations(package: str) -> str:
    """What a page says in other languages, as JSON for a script element: {language: {English: translated}}."""
    tables = {
        name: json.loads(shared(f"{name}.json")) | json.loads(source(package, f"{name}.json")) for name in LANGUAGES
    }
    # An HTML parser ends a script at the first </script>, so the JSON must contain no <.
    return json.dumps(tables, ensure_ascii=False).replace("<", "\\u003c")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with its {{parts}} filled in; what is filled in stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def hash_of(inline: str) -> str:
    """The source expression of a Content-Security-Policy that allows an inline element, of all between its tags."""
    digest = hashlib.sha256(inline.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

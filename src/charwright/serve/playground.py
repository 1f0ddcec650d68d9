"""The playground: a page that tries the service in a browser, in one file without outside resources."""

from __future__ import annotations

from charwright.serve.pages import Page, page_of


def playground(*, keys: bool) -> Page:
    """The playground; `keys` says that requests need an API key."""
    return page_of("playground.html", {"keys": str(keys).lower()})

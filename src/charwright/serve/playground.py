"""The playground: a page that tries the service in a browser, in one file without outside resources."""

from __future__ import annotations

from charwright.serve.pages import Page, page_of
from charwright.webpage.template import shared, source, translations


def playground(*, keys: bool) -> Page:
    """The playground; `keys` says that requests need an API key, which the code that the page shows then has."""
    parts = {
        "style": shared("house.css") + source("serve", "playground.css"),
        "words": translations("serve"),
        "language": shared("language.js"),
        "client": source("serve", "client.js"),
        "surprise_text": shared("surprise.js"),
        "controls": source("serve", "playground.js"),
        "keys": str(keys).lower(),
    }
    return page_of("playground.html", parts)

"""Sentences with values, which a page can say in several languages."""

from __future__ import annotations

import html
import json
from typing import Any


class Sentence(str):
    """An English text that remembers what it was made of; `language.js` makes it again in another language.

    The values of a sentence may be sentences.

    >>> Sentence("{count} of {all}", count=2, all=Sentence("{count} neurons", count=1000))
    '2 of 1000 neurons'
    """

    sentence: str
    values: dict[str, str]

    def __new__(cls, sentence: str, **values: object) -> Sentence:
        """Fill the values into the sentence, of which each {name} is replaced."""
        texts = {name: value if isinstance(value, str) else str(value) for name, value in values.items()}
        made = super().__new__(cls, sentence.format(**texts))
        made.sentence, made.values = sentence, texts
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        """What copies and pickles are made from."""
        return (self.sentence,), self.values


def in_html(text: str, tag: str = "span") -> str:
    """A text as HTML. A plain one is a text node, which a page also translates if it is a whole sentence."""
    if not isinstance(text, Sentence):
        return html.escape(text)
    return f'<{tag} data-sentence="{_parts(text)}">{html.escape(text)}</{tag}>'


def in_attribute(name: str, text: str) -> str:
    """The attribute of an element that says a text. An element has at most one, and then no sentence in it."""
    said = f'{name}="{html.escape(text)}"'
    return f'{said} data-attribute="{name}" data-sentence="{_parts(text)}"' if isinstance(text, Sentence) else said


def _parts(text: str) -> str:
    return html.escape(json.dumps(_plain(text), ensure_ascii=False))


def _plain(text: str) -> Any:
    if not isinstance(text, Sentence):
        return text
    return {"sentence": text.sentence, "values": {name: _plain(value) for name, value in text.values.items()}}

"""The web pages in other languages: each of their sentences has a translation, and each translation a sentence."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browsing import Opened
from charwright.interop import html_export
from charwright.interop.model_card import model_card
from charwright.webpage.template import shared, source, translations
from writers import LABELLED, save_records

playwright = pytest.importorskip("playwright.sync_api")

TABLES = json.loads(translations())
PAGES = {
    "interop": ("page.html", "network.js", "writer.js", "see.js", "screen.js"),
    "serve": ("playground.html", "client.js", "playground.js"),
}
SAME = {"", "curl", "Python", "1", "0.80", "line", "paragraph", "sentence"}
"""Texts of the pages that are the same in all languages."""
BUILT = {"1 record", "{number} records", "1 character", "{number} characters", "character", "byte"}
"""Sentences whose parts are put together."""


class Sentences(HTMLParser):
    """The texts of a page, and the attributes that are read out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.found |= {value or "" for name, value in attrs if name in ("aria-label", "placeholder", "title")}

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag not in ("script", "style", "title") and "{{" not in data and "JavaScript" not in data:
            self.found.add(data.strip())


def sources(package: str) -> dict[str, str]:
    """The files of a page, and those that all pages share."""
    return {name: source(package, name) for name in PAGES[package]} | {
        name: shared(name) for name in ("language.js", "surprise.js")
    }


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("package", PAGES)
def test_every_sentence_has_a_translation(package: str, table: str) -> None:
    for name, text in sources(package).items():
        if name.endswith(".html"):
            found = Sentences(text).found - SAME
        else:
            string = r'"((?:[^"\\]|\\.)*)"'
            calls = re.findall(rf"(?:translated|say|ServiceError|sayIn)\((?:[\w.]+, |\w+ === 1 \? )?{string}", text)
            found = {json.loads(f'"{call}"') for call in calls}
        assert found <= set(TABLES[table]), name


@pytest.mark.parametrize("table", TABLES)
def test_every_translation_has_a_sentence(table: str) -> None:
    everything = "".join(text for package in PAGES for text in sources(package).values())
    everything += Path(html_export.__file__).read_text(encoding="utf-8")
    stale = [
        sentence
        for sentence in TABLES[table]
        if sentence not in BUILT and sentence not in everything and json.dumps(sentence)[1:-1] not in everything
    ]
    assert not stale


@pytest.mark.parametrize("table", TABLES)
def test_translations_have_the_values_of_their_sentences(table: str) -> None:
    for sentence, translation in TABLES[table].items():
        values = [sorted(re.findall(r"\{\w+\}", text)) for text in (sentence, translation)]
        assert values[0] == values[1], sentence
        assert translation.strip(), sentence


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """An exported page of a model with labels."""
    path = tmp_path / "page.html"
    run = save_records(tmp_path / "run", LABELLED)
    path.write_bytes(html_export.page_bytes(run, model_card(run, "1.2")))
    return path


def shown(page: Any) -> str:
    """What a reader sees, without what the model has written."""
    return str(page.evaluate("document.querySelector('#text').hidden = true, document.body.innerText"))


@pytest.mark.parametrize("locale", ["zh-TW", "zh-HK", "zh"])
def test_page_is_in_the_language_of_the_browser(browser: Any, page_file: Path, locale: str) -> None:
    opened = Opened(browser, page_file, locale=locale)
    page = opened.page
    assert page.evaluate("document.documentElement.lang") == "zh-Hant"
    page.get_by_label("看它的驚訝程度").check()
    page.get_by_label("開頭").fill("a?")
    page.get_by_role("button", name="產生").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("完成：10 筆，")
    playwright.expect(page.get_by_role("status")).to_contain_text("開頭有 1 個字元不在詞彙表裡。")
    page.locator("summary").click()
    page.locator("#text").focus()
    page.keyboard.press("ArrowRight")
    words = set(re.findall(r"[A-Za-z][A-Za-z-]+", shown(page)))
    assert words <= {
        "bits",
        "Ctrl",
        "Enter",
        "Escape",
        "GRU",
        "token",
        "charwright",
        "run",
        "English",
        "one",
        "two",
        "three",
    }
    assert opened.messages == []
    opened.context.close()


def test_language_can_be_changed_and_is_kept(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file, locale="fr-FR")
    page = opened.page
    playwright.expect(page.get_by_role("status")).to_have_text("Ready.")
    english = shown(page)
    page.get_by_role("button", name="正體中文").click()
    playwright.expect(page.get_by_role("status")).to_have_text("準備好了。")
    page.reload()
    playwright.expect(page.get_by_role("status")).to_have_text("準備好了。")
    page.get_by_role("button", name="English").click()
    assert shown(page) == english
    assert page.evaluate("document.documentElement.lang") == "en"
    opened.context.close()

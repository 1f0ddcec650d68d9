"""The web pages in other languages: each of their sentences has a translation, and each translation a sentence."""

from __future__ import annotations

import ast
import copy
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import charwright
from browsing import Opened
from charwright.config import ModelConfig
from charwright.data.labels import LabelledVocabulary
from charwright.explanation.features import features_of
from charwright.explanation.overview import INPUT_RESET
from charwright.interop import html_export
from charwright.interop.model_card import model_card
from charwright.run import Run
from charwright.webpage.sentence import Sentence, in_html
from charwright.webpage.template import LANGUAGES, shared, source, translations
from writers import LABELLED, LETTERS, save_records, weights_of

playwright = pytest.importorskip("playwright.sync_api")

PAGES = {
    "interop": ("page.html", "network.js", "writer.js", "see.js", "screen.js"),
    "serve": ("playground.html", "client.js", "playground.js"),
    "explanation": ("page.html", "see.js"),
}
TABLES = [(package, name) for package in PAGES for name in LANGUAGES]
SAME = {"", "curl", "Python", "1", "0.80", "line", "paragraph", "sentence"}
"""Texts of the pages that are the same in all languages."""
COUNTED = {"1 character", "{number} characters"}
NETWORK = {"{cell}, one layer of {units} units", "{cell}, {layers} layers of {units} units"}
FEATURES = {text for feature in features_of("") for text in (feature.name, feature.meaning)}
BUILT = {
    "interop": {"1 record", "{number} records", "character", "byte"} | COUNTED | NETWORK,
    "serve": COUNTED,
    "explanation": {"Characters back", "Bytes back", "k, characters back", "k, bytes back", "1 byte", "{number} bytes"}
    | {"character", "byte", INPUT_RESET}
    | COUNTED
    | NETWORK
    | FEATURES,
}
"""Sentences that are put together."""


def table_of(package: str, name: str) -> dict[str, str]:
    return dict(json.loads(translations(package))[name])


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


def strings_of(package: str) -> tuple[set[str], set[str]]:
    """The sentences with values that the modules of a package make, and all their other strings."""
    sentences: set[str] = set()
    strings: set[str] = set()
    for path in (Path(charwright.__file__).parent / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Sentence":
                sentences |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return sentences, strings


@pytest.mark.parametrize(("package", "name"), TABLES)
def test_every_sentence_has_a_translation(package: str, name: str) -> None:
    table = set(table_of(package, name))
    for file, text in sources(package).items():
        if file.endswith(".html"):
            found = Sentences(text).found - SAME
        else:
            string = r'"((?:[^"\\]|\\.)*)"'
            calls = re.findall(rf"(?:translated|say|sayIn)\((?:[\w.]+, |[\w. =]+ \? )?{string}", text)
            found = {json.loads(f'"{call}"') for call in calls}
        assert found <= table, file
    sentences, _ = strings_of(package)
    assert sentences | BUILT[package] <= table


@pytest.mark.parametrize(("package", "name"), TABLES)
def test_every_translation_has_a_sentence(package: str, name: str) -> None:
    pages = "".join(sources(package).values())
    _, strings = strings_of(package)
    used = strings | BUILT[package]
    inside = "".join(strings)  # A sentence in HTML is a part of a string.
    own = json.loads(source(package, f"{name}.json"))
    assert [
        key
        for key in own
        if key not in used
        and not any(text in pages + inside for text in (key, json.dumps(key, ensure_ascii=False)[1:-1]))
    ] == []
    everywhere = set(json.loads(shared(f"{name}.json")))
    assert not everywhere & set(own)


@pytest.mark.parametrize(("package", "name"), TABLES)
def test_translations_have_the_values_of_their_sentences(package: str, name: str) -> None:
    for sentence, translation in table_of(package, name).items():
        values = [sorted(re.findall(r"\{\w+\}", text)) for text in (sentence, translation)]
        assert values[0] == values[1], sentence
        assert translation or sentence == " "


def test_a_sentence_remembers_its_values() -> None:
    sentence = Sentence("{count} of {all}", count=2, all=Sentence("{count} <neurons>", count=1000))
    assert sentence == "2 of 1000 <neurons>"
    assert copy.deepcopy(sentence).values == sentence.values
    shown = in_html(sentence)
    assert shown.endswith(">2 of 1000 &lt;neurons&gt;</span>")
    [parts] = re.findall('data-sentence="([^"]*)"', shown)
    inner = {"sentence": "{count} <neurons>", "values": {"count": "1000"}}
    assert json.loads(html.unescape(parts)) == {"sentence": "{count} of {all}", "values": {"count": "2", "all": inner}}


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
    page.get_by_label("顯示它的驚訝程度").check()
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


NAMES = ["none", "toString", "Copy", "{number}", "output"]


def test_names_of_the_user_are_never_translated(browser: Any, tmp_path: Path) -> None:
    vocabulary = LabelledVocabulary("\nab ", NAMES)
    run, path = save_records(tmp_path / "constructor", vocabulary), tmp_path / "page.html"
    path.write_bytes(html_export.page_bytes(run, model_card(run, "1.2")))
    opened = Opened(browser, path, locale="zh-TW")
    opened.page.get_by_role("button", name="產生").click()
    playwright.expect(opened.page.get_by_role("status")).to_contain_text("完成：10 筆，")
    assert opened.page.locator("#label option").all_text_contents()[1:] == NAMES
    assert set(opened.page.locator("[data-label]").evaluate_all("all => all.map(e => e.dataset.label)")) <= set(NAMES)
    assert opened.page.locator("h1").text_content() == "constructor"
    assert opened.page.title() == "constructor"
    assert opened.messages == []
    opened.context.close()


@pytest.mark.parametrize("name", ["output", "constructor", "{number}"])
def test_names_in_sentences_stay(browser: Any, tmp_path: Path, name: str) -> None:
    config = ModelConfig(units=8, embedding_size=4)
    run = Run.save(tmp_path / name, config, weights_of(config, len(LETTERS)), LETTERS)
    path = tmp_path / "page.html"
    path.write_bytes(charwright.explain(run, "abc ABC\n" * 20, source=name).page())
    opened = Opened(browser, path, locale="zh-TW")
    assert opened.page.title() == opened.page.locator("h1").text_content() == f"{name} 學到了什麼"
    assert f"{name}，全部 160 個字元" in opened.page.locator("header").inner_text()
    opened.context.close()

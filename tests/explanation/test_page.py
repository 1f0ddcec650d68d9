"""The page of an explanation in a real browser, opened from disk: what a person does, sees and hears."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charwright as cw
from browsing import Opened
from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.explanation.html_page import COLOURS, _ink_on
from charwright.explanation.results import Activations
from charwright.run import Run
from writers import weights_of

playwright = pytest.importorskip("playwright.sync_api")

SCRIPTS = {
    "chinese": "道可道，非常道。\n名可名（𠀀），非常名！\n",
    "right-to-left": "שלום עולם (טוב)\nمرحبا بالعالم، كيف\nabc\n",
    "nasty": "</script><!--<script>alert(1)</script> &amp; \u2028\t\x07\n",
    "joined": "e\u0301 👩‍👩‍👧 क्षि\n",
}


class Open(Opened):
    """A page that is ready."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        super().__init__(browser, path, **options)
        self.page.wait_for_selector("html[data-ready]")

    def character(self, at: int) -> Any:
        return self.page.locator("#text span").nth(at)

    def says(self, part: str | re.Pattern[str]) -> None:
        playwright.expect(self.page.locator("#announce")).to_contain_text(part)

    def shows(self, part: str) -> None:
        playwright.expect(self.page.locator("#readout")).to_contain_text(part)

    @property
    def place(self) -> int:
        """The index of the character that has the focus."""
        return int(self.page.evaluate("spans.indexOf(document.activeElement)"))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages: list[Open] = []

    def open_page(explanation: cw.Explanation, **options: Any) -> Open:
        path = tmp_path / "page.html"
        path.write_bytes(explanation.page())
        pages.append(Open(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


def explanation_of(folder: Path, text: str, *, level: str = "character", name: str = "run") -> cw.Explanation:
    """An explanation of a network with random weights."""
    vocabulary = ByteVocabulary() if level == "byte" else Vocabulary.from_text(text)
    config = ModelConfig(units=16, embedding_size=8)
    run = Run.save(folder / name, config, weights_of(config, len(vocabulary)), vocabulary)
    return cw.explain(run, text)


def test_nothing_is_requested_and_nothing_complains(opened: Any, explained: cw.Explanation, tmp_path: Path) -> None:
    page = opened(explained)
    assert page.requests == [(tmp_path / "page.html").as_uri()]
    assert page.messages == []
    assert page.page.locator("#text").evaluate("element => element.textContent") == explained.text


def test_policy_allows_only_the_page_itself(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained)
    page.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'broken'";
        document.body.append(script);
    }""")
    assert page.page.title() == f"What {explained.name} has learned"
    assert any("Content Security Policy" in message for message in page.messages)


def test_each_character_shows_its_surprise_and_what_was_expected(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained)
    page.character(17).hover()
    page.shows(f"Surprise {explained.surprise.bits[17]:.2f} bits")
    rows = page.page.locator("#expected li").all_text_contents()
    expected = explained.surprise.choices[17]
    assert len(rows) == len(expected) == 5
    for row, (token, share) in zip(rows, expected, strict=True):
        assert ("newline" if token == "\n" else token) in row
        assert f"{100 * share:.1f} %" in row
    page.page.locator("h1").hover()
    page.shows("Nothing predicts the first character")


def test_keys_move_and_announce(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained)
    page.character(0).focus()
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("Control+End", 999),
        ("ArrowRight", 999),
    ):
        page.page.keyboard.press(key)
        assert page.place == place
    page.says("character 1,000 of 1,000")
    page.says(f"Surprise {explained.surprise.bits[999]:.2f} bits")
    page.says("Expected:")
    page.page.keyboard.press("Control+Home")
    newline = explained.text.index("\n")
    page.page.keyboard.press("End")
    assert page.place == newline
    page.says("newline, character")
    page.page.keyboard.press("Home")
    assert page.place == 0
    page.page.keyboard.press("ArrowDown")
    down = page.place
    assert down > 0
    boxes = [page.character(at).bounding_box() for at in (0, down)]
    assert abs(boxes[0]["x"] - boxes[1]["x"]) < boxes[0]["width"]
    assert boxes[1]["y"] > boxes[0]["y"]
    page.page.keyboard.press("ArrowUp")
    assert page.place == 0
    # One stop of the Tab key, wherever one is in the text.
    assert page.page.locator("#text [tabindex]").count() == 1


def test_buttons_and_taps_do_the_same(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained, has_touch=True)
    page.page.get_by_role("button", name="Next", exact=True).click()
    page.says("character 2 of 1,000")
    page.page.get_by_role("button", name="Previous").click()
    page.says("character 1 of 1,000")
    page.character(40).tap()
    page.says("character 41 of 1,000")
    surprising = [at for at, bits in enumerate(explained.surprise.bits) if bits >= 8]
    page.page.get_by_role("button", name="Next surprise").click()
    page.says(f"character {surprising[0] + 1:,} of" if surprising else "No character has 8 bits or more")


def test_neurons_colour_the_text(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained)
    best = explained.neurons.found[0]
    track = explained.activations.values[0]
    page.page.get_by_role("button", name=f"Show Neuron {best.unit} in the text").first.click()
    playwright.expect(page.page.locator("#view")).to_have_value("0")
    spread = max(track.max() - track.min(), 1e-9)
    classes = page.page.locator("#text span").evaluate_all("spans => spans.map(span => span.className)")
    for at in range(0, 1000, 37):
        step = round(10 * (track[at] - track.min()) / spread)
        assert any(f"n{near}" in classes[at].split() for near in (step - 1, step, step + 1))
    page.character(17).hover()
    value = f"{track[17]:+.2f}".replace("-", "−")
    page.shows(f"Neuron {best.unit}: {value[0]}")
    legend = page.page.locator("#neuronLegend .swatch").all_text_contents()
    assert legend[0].startswith(f"{track.min():+.1f}".replace("-", "−")[:3])
    # Every neuron of this small network can be chosen.
    assert page.page.locator("#view option").count() == 1 + 16
    page.page.locator("#view").select_option("-1")
    assert page.page.locator("#surpriseLegend").is_visible()


@pytest.mark.parametrize(
    ("width", "scale", "scheme"), [(320, 2, "dark"), (640, 2, "light"), (1280, 1, "light"), (1280, 1, "dark")]
)
def test_page_is_accessible(opened: Any, explained: cw.Explanation, width: int, scale: int, scheme: str) -> None:
    """On a phone, at 200 % zoom (half the width in CSS pixels), and on a desktop."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(explained, viewport={"width": width, "height": 450}, device_scale_factor=scale, color_scheme=scheme)

    page.page.evaluate("document.querySelectorAll('details').forEach(details => (details.open = true))")
    page.page.locator("#view").select_option("1")
    page.character(30).click()
    found = axe.Axe().run(page.page)
    assert found.violations_count == 0, found.generate_report()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) > 384
    assert light == (scheme == "light")


def test_page_is_in_the_language_of_the_browser(opened: Any, explained: cw.Explanation) -> None:
    page = opened(explained, locale="zh-TW")
    page.character(17).click()
    page.says("個字元中的第 18 個")
    page.shows("模型預期：")
    page.page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    options = page.page.locator("#view option").all_text_contents()
    assert options[0] == "驚訝程度"
    assert all(option.startswith("神經元 ") for option in options[1:])
    hidden = "document.querySelectorAll('#text, #expected, #what, code, #embedding').forEach(e => e.hidden = true)"
    words = re.findall(r"[A-Za-z][A-Za-z-]+", str(page.page.evaluate(f"{hidden}, document.body.innerText")))
    terms = {"GRU", "token", "n-grams", "bits", "log", "Kullback-Leibler", "input-reset", "multiplicative"}
    assert set(words) <= terms | {"run", "charwright", "Home", "End", "Ctrl", "English"}
    page.page.get_by_role("button", name="English").click()
    page.shows("The model expected:")
    assert page.page.locator("#view option").first.text_content() == "Surprise"
    assert page.messages == []


def test_colours_survive_grey_print_and_letters_are_readable_on_them() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    shades = [luminance(colour) for colour in COLOURS]
    assert shades == sorted(shades)
    for colour, shade in zip(COLOURS, shades, strict=True):
        ink = luminance(_ink_on(colour))
        assert (max(ink, shade) + 0.05) / (min(ink, shade) + 0.05) >= 4.5


@pytest.mark.parametrize("level", ["character", "byte"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_shown(opened: Any, tmp_path: Path, script: str, level: str) -> None:
    text = SCRIPTS[script] * 8
    name = "<img src=x onerror=boo()>&amp;" if script == "nasty" else "run"
    page = opened(explanation_of(tmp_path, text, level=level, name=name))
    assert page.page.locator("#text").evaluate("element => element.textContent") == text
    assert page.messages == []
    assert page.page.locator("main img").count() == 0
    assert page.page.title() == f"What {name} has learned"
    last = len(text) - 1
    page.character(0).focus()
    page.page.keyboard.press("Control+End")
    assert page.place == last
    page.says(f"character {last + 1} of {len(text)}")


def test_arrow_keys_follow_the_direction_of_the_line(opened: Any, tmp_path: Path) -> None:
    text = SCRIPTS["right-to-left"] * 8
    page = opened(explanation_of(tmp_path, text))
    page.character(0).focus()
    page.page.keyboard.press("ArrowLeft")
    assert page.place == 1
    boxes = [page.character(at).bounding_box() for at in (0, 1)]
    assert boxes[1]["x"] < boxes[0]["x"]
    latin = text.index("a")
    page.character(latin).click()
    page.page.keyboard.press("ArrowRight")
    assert page.place == latin + 1
    boxes = [page.character(at).bounding_box() for at in (latin, latin + 1)]
    assert boxes[1]["x"] > boxes[0]["x"]


def test_page_of_a_wide_network_stays_small(explained: cw.Explanation) -> None:
    text = (explained.text * 5)[:5000]
    random = np.random.Generator(np.random.Philox(1))
    count = 4096
    wide = dataclasses.replace(
        explained,
        text=text,
        surprise=dataclasses.replace(
            explained.surprise,
            bits=np.concatenate([[np.nan], random.exponential(2, 4999)]),
            choices=((), *((("a", 0.5), ("b", 0.2), ("中", 0.1), ("d", 0.05), ("🙂", 0.01)),) * 4999),
        ),
        activations=Activations(
            (explained.neurons.found[0].layer,) * count,
            tuple(range(1, count + 1)),
            random.uniform(-1, 1, (count, 5000)).astype(np.float32),
            count,
        ),
    )
    page = wide.page()
    assert 2_000_000 < len(page) < 3_000_000
    assert b"are left out to keep it small" in page


def test_a_notebook_shows_a_summary_without_scripts(explained: cw.Explanation) -> None:
    shown = explained._repr_html_()
    assert "<script" not in shown
    assert len(shown) < 200_000
    assert "inside ( )" in shown
    text = shown.split("<pre")[1].split("</pre>")[0].partition(">")[2]
    assert re.sub(r"<[^>]*>", "", text) == f"\n{explained.text[:600]}"
    lines = str(explained).splitlines()
    assert any("inside ( )" in line for line in lines)
    assert json.dumps(explained.to_json(), allow_nan=False)


def test_save_writes_what_the_name_says(explained: cw.Explanation, tmp_path: Path) -> None:
    explained.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == explained.page()
    pytest.importorskip("matplotlib")
    explained.save(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")

"""The exported page in a real browser, opened from the disk: the text of `generate --precision q8`, and controls."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charwright.config import ModelConfig
from charwright.data.vocabulary import ByteVocabulary, Vocabulary
from charwright.generation.generator import Generator
from charwright.generation.quantized import tanh_table
from charwright.generation.sampling import exponential, uniform
from charwright.interop.card import model_card
from charwright.interop.web_page import page_bytes
from charwright.run import Run
from writers import LETTERS, weights_of

playwright = pytest.importorskip("playwright.sync_api")

# Nothing is looked up on any network, and root has no sandbox.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
CHINESE = Vocabulary("\n，。不可名天地常有欲無道非")
MODELS = {
    "gru": (ModelConfig(units=40, embedding=8), LETTERS),
    "gru 2 tied": (ModelConfig(layers=2, units=24, embedding=24, tied=True), LETTERS),
    "lstm 2": (ModelConfig(cell="lstm", layers=2, units=33, embedding=8), LETTERS),
    "rnn": (ModelConfig(cell="rnn", units=24, embedding=8), LETTERS),
    "chinese": (ModelConfig(units=24, embedding=8), CHINESE),
    "bytes": (ModelConfig(units=24, embedding=8), ByteVocabulary()),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHARWRIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("there is no chromium here; CHARWRIGHT_CHROMIUM can name one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield browser
        browser.close()


def page_of(folder: Path, config: ModelConfig, vocabulary: Vocabulary, name: str = "run") -> tuple[Path, Generator]:
    """A page on the disk, and the generator whose text it must write."""
    weights = weights_of(config, len(vocabulary))
    run = Run.save(folder / name, config, weights, vocabulary)
    path = folder / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    return path, Generator(config, weights, vocabulary, "q8", threads=1)


class Open:
    """A page in the browser, and what it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(path.as_uri())
        self.wait_for("Ready.")

    def wait_for(self, status: str) -> None:
        playwright.expect(self.page.get_by_role("status")).to_contain_text(status, timeout=60_000)

    def write(self, prompt: str, *, length: int, temperature: float = 0.8, seed: int = 7) -> str:
        self.page.get_by_label("Begin with").fill(prompt)
        self.page.get_by_label("Characters").fill(str(length))
        self.page.get_by_label("Seed").fill(str(seed))
        self.page.get_by_label("Temperature").fill(str(temperature))
        self.page.get_by_role("button", name="Write").click()
        self.wait_for(f"Done: {length:,} characters")
        return self.text

    @property
    def text(self) -> str:
        return str(self.page.locator("#text").evaluate("element => element.textContent"))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages: list[Open] = []

    def open_page(path: Path, **options: Any) -> Open:
        pages.append(Open(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


@pytest.mark.parametrize("name", MODELS)
def test_it_writes_what_the_command_writes(opened: Any, tmp_path: Path, name: str) -> None:
    config, vocabulary = MODELS[name]
    path, writer = page_of(tmp_path, config, vocabulary)
    prompt = "道可道é" if vocabulary is not LETTERS else "abc é?"
    page = opened(path)
    expected = writer.generate(prompt, length=2000, temperature=0.8, seed=7)[0]
    assert page.write(prompt, length=2000) == prompt + expected.continuation
    assert page.asked == [path.as_uri()]
    assert page.complaints == []


@pytest.mark.parametrize(
    ("prompt", "temperature", "seed"), [("", 0.8, 7), ("ab", 0.0, 7), ("ab", 2.0, 0), ("ab", 0.05, 2**53 - 1)]
)
def test_all_settings_are_heeded(opened: Any, tmp_path: Path, prompt: str, temperature: float, seed: int) -> None:
    path, writer = page_of(tmp_path, *MODELS["gru"])
    expected = writer.generate(prompt, length=300, temperature=temperature, seed=seed)[0]
    text = opened(path).write(prompt, length=300, temperature=temperature, seed=seed)
    assert text == prompt + expected.continuation


def test_the_numbers_are_the_same(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0]).page
    assert page.evaluate("Array.from(TANH)") == tanh_table().tolist()
    points = -np.random.Generator(np.random.Philox(1)).exponential(30, 2000)
    points = np.concatenate([points, [0.0, -0.0, -708.0, -707.9999, -1e-300, -1e9]])
    assert page.evaluate("points => points.map(exponential)", points.tolist()) == exponential(points).tolist()
    drawn = "seed => { const u = new Uniform(seed, 3); return Array.from({ length: 9 }, () => u.next()); }"
    for seed in (0, 1, 2**32, 2**53 - 1):
        assert page.evaluate(drawn, seed) == [uniform(seed, 3, at) for at in range(9)]


def test_the_widest_sums_are_exact(opened: Any, tmp_path: Path) -> None:
    """Two rows share a number there: their sums must not reach each other, whatever the weights are."""
    page = opened(page_of(tmp_path, *MODELS["gru"])[0]).page
    multiplied = """columns => {
        const rows = [[127, 127], [-127, 127], [127, -127], [-127, -127], [0, 1]];
        const row = ([a, b]) => Array.from({ length: columns }, (_, k) => (k % 3 ? a : b));
        const weights = Int8Array.from(rows.flatMap(row));
        const matrix = { pairs: paired(weights, 5, columns), multipliers: new Int32Array(5).fill(1), columns,
                         sums: new Float64Array(8) };
        multiply(matrix, new Float64Array(columns).fill(-127), new Int32Array(5));
        return Array.from(matrix.sums.slice(0, 5));
    }"""
    for columns in (1, 7, 2048, 2049, 16384):
        weights = np.array([[127, 127], [-127, 127], [127, -127], [-127, -127], [0, 1]])
        chosen = np.where(np.arange(columns) % 3 != 0, weights[:, :1], weights[:, 1:])
        assert page.evaluate(multiplied, columns) == (chosen.sum(axis=1) * -127).tolist()


def test_writing_can_be_stopped(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for stop in (
        lambda: page.page.get_by_role("button", name="Stop").click(),
        lambda: page.page.keyboard.press("Escape"),
    ):
        page.page.get_by_label("Characters").fill("1000000")
        page.page.get_by_role("button", name="Write").click()
        playwright.expect(page.page.locator("#written")).to_have_text(re.compile(".{50}", re.DOTALL))
        stop()
        page.wait_for("Stopped after")
        playwright.expect(page.page.get_by_role("button", name="Write")).to_be_enabled()
    # And what is written next is not mixed up with it.
    first = page.write("ab", length=50)
    assert page.write("ab", length=50) == first
    assert len(first) == 52


def test_characters_that_it_does_not_know_are_counted(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    page.write("ab🙂xab", length=50)
    page.wait_for("The model does not know 2 of the characters that it began with.")
    page.write("ab", length=50)
    playwright.expect(page.page.get_by_role("status")).not_to_contain_text("does not know")


def test_the_keyboard_is_enough(opened: Any, tmp_path: Path) -> None:
    path, _ = page_of(tmp_path, *MODELS["gru"])
    page = opened(path)
    page.page.keyboard.press("Tab")
    page.page.keyboard.type("ab")
    page.page.keyboard.press("Control+Enter")
    page.wait_for("Done: 1,000 characters")
    assert page.text.startswith("ab")
    before = page.page.get_by_label("Seed").input_value()
    page.page.get_by_role("button", name="Another").press("Enter")
    page.wait_for("Done: 1,000 characters")
    assert page.page.get_by_label("Seed").input_value() != before
    playwright.expect(page.page.get_by_role("button", name="Another")).to_be_focused()


def test_it_can_be_copied(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    text = page.write("ab", length=50)
    page.page.get_by_role("button", name="Copy").click()
    page.wait_for("Copied.")
    page.page.get_by_label("Begin with").fill("")
    page.page.get_by_label("Begin with").focus()
    page.page.keyboard.press("Meta+V" if sys.platform == "darwin" else "Control+V")
    assert page.page.get_by_label("Begin with").input_value().replace("\r\n", "\n") == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened: Any, tmp_path: Path, scheme: str) -> None:
    path, _ = page_of(tmp_path, *MODELS["gru"], name="a-very-long-name-of-a-run-that-does-not-fit-on-a-phone-at-all")
    page = opened(path, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.write("ab", length=500)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 320
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) > 384
    assert light == (scheme == "light")


def test_everything_has_a_name(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for name in ("Begin with", "Temperature", "Characters", "Seed"):
        playwright.expect(page.page.get_by_label(name)).to_have_count(1)
    page.write("ab", length=50)
    region = page.page.get_by_role("region", name="What was written")
    playwright.expect(region).to_have_attribute("aria-busy", "false")


def test_names_and_characters_are_no_markup(opened: Any, tmp_path: Path) -> None:
    vocabulary = Vocabulary("\n!-/<>abcimgprst\"'&\\\u2028")
    path, writer = page_of(
        tmp_path, ModelConfig(units=24, embedding=8), vocabulary, name="<img src=x onerror=boo()>&amp;"
    )
    page = opened(path)
    assert page.page.title() == "<img src=x onerror=boo()>&amp;"
    prompt = "</script><!--<script>"
    expected = writer.generate(prompt, length=200, temperature=0.8, seed=7)[0]
    assert page.write(prompt, length=200) == prompt + expected.continuation
    assert page.page.locator("main img").count() == 0
    assert page.complaints == []


def test_numbers_out_of_range_are_not_taken(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for label, value in (("Characters", "0"), ("Characters", ""), ("Seed", "-1"), ("Seed", "1.5")):
        page.page.get_by_label(label).fill(value)
        page.page.get_by_role("button", name="Write").click()
        assert page.text == ""
        page.wait_for("Ready.")
        page.page.get_by_label(label).fill("1")

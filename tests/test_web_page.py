"""The exported page in a real browser, opened from disk: the text of `generate --precision q8`, and the controls."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browsing import Opened
from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.generation.generator import Generator
from charwright.generation.portable_exp import exponential
from charwright.generation.quantized import tanh_table
from charwright.generation.sampling import uniform
from charwright.interop.html_export import page_bytes
from charwright.interop.model_card import model_card
from charwright.ngrams import offsets_of
from charwright.run import Run
from charwright.workflow.loading import generator_of
from writers import LABELLED, LETTERS, save_records, weights_of

playwright = pytest.importorskip("playwright.sync_api")

CHINESE = Vocabulary("\n，。不可名天地常有欲無道非")
MODELS = {
    "gru": (ModelConfig(units=40, embedding_size=8), LETTERS),
    "gru 2 tied": (ModelConfig(layers=2, units=24, embedding_size=24, tied=True), LETTERS),
    "igru 2": (ModelConfig(cell="igru", layers=2, units=33, embedding_size=8), LETTERS),
    "lstm 2": (ModelConfig(cell="lstm", layers=2, units=33, embedding_size=8), LETTERS),
    "rnn": (ModelConfig(cell="rnn", units=24, embedding_size=8), LETTERS),
    "chinese": (ModelConfig(units=24, embedding_size=8), CHINESE),
    "bytes": (ModelConfig(units=24, embedding_size=8), ByteVocabulary()),
    "n-grams": (ModelConfig(layers=2, units=24, embedding_size=8, ngram_bits=10), LETTERS),
    "n-grams of bytes": (
        ModelConfig(cell="lstm", units=24, embedding_size=8, ngram_bits=12, ngram_order=8),
        ByteVocabulary(),
    ),
    "multiplicative": (ModelConfig(units=40, embedding_size=8, multiplicative=True), LETTERS),
    "multiplicative igru": (
        ModelConfig(cell="igru", units=40, embedding_size=8, ngram_bits=10, multiplicative=True),
        LETTERS,
    ),
    "multiplicative lstm 2": (
        ModelConfig(cell="lstm", layers=2, units=33, embedding_size=8, ngram_bits=10, multiplicative=True),
        LETTERS,
    ),
    "n-grams of chinese": (
        ModelConfig(cell="rnn", units=16, embedding_size=8, ngram_bits=20, ngram_order=2),
        CHINESE,
    ),
}


def page_of(folder: Path, config: ModelConfig, vocabulary: Vocabulary, name: str = "run") -> tuple[Path, Generator]:
    """Write a page to disk; return it with the generator whose text it must reproduce."""
    weights = weights_of(config, len(vocabulary))
    run = Run.save(folder / name, config, weights, vocabulary)
    path = folder / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    return path, Generator(config, weights, vocabulary, "q8", threads=1)


class Open(Opened):
    """A page that is ready."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        super().__init__(browser, path, **options)
        self.wait_for("Ready.")

    def wait_for(self, status: str) -> None:
        playwright.expect(self.page.get_by_role("status")).to_contain_text(status, timeout=60_000)

    def generate(self, prompt: str, *, length: int | None = None, temperature: float = 0.8, seed: int = 7) -> str:
        self.page.get_by_label("Prompt").fill(prompt)
        if length is not None:
            self.page.get_by_label("Characters").fill(str(length))
        self.page.get_by_label("Seed").fill(str(seed))
        self.page.get_by_label("Temperature").fill(str(temperature))
        self.page.get_by_role("button", name="Generate").click()
        self.wait_for("Done: " if length is None else f"Done: {length:,} characters")
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
def test_page_generates_the_text_of_the_command(opened: Any, tmp_path: Path, name: str) -> None:
    config, vocabulary = MODELS[name]
    path, generator = page_of(tmp_path, config, vocabulary)
    prompt = "道可道é" if vocabulary is not LETTERS else "abc é?"
    page = opened(path)
    expected = generator.generate(prompt, length=2000, temperature=0.8, seed=7)[0]
    assert page.generate(prompt, length=2000) == prompt + expected.continuation
    assert page.requests == [path.as_uri()]
    assert page.messages == []


@pytest.mark.parametrize("prompt", ["", "ab"])
def test_a_record_begins_behind_the_end_of_another(opened: Any, tmp_path: Path, prompt: str) -> None:
    run, path = save_records(tmp_path / "run", end="b\n"), tmp_path / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    expected = generator_of(run).generate(prompt, length=300, temperature=0.8, seed=7)[0]
    assert opened(path).generate(prompt, length=300) == str(expected)


@pytest.mark.parametrize("label", [None, "two"])
@pytest.mark.parametrize("end", ["\n", "ab", "aab"])
@pytest.mark.parametrize("prompt", ["", "ba"])
def test_records_with_labels_are_those_of_the_command(
    opened: Any, tmp_path: Path, prompt: str, end: str, label: str | None
) -> None:
    run, path = save_records(tmp_path / "run", LABELLED, end), tmp_path / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    page = opened(path)
    if label:
        page.page.get_by_label("Label").select_option(label)
    page.page.get_by_label("Records").fill("30")
    expected = generator_of(run).generate(prompt, num=30, temperature=0.8, seed=7, label=label)
    assert page.generate(prompt) == "".join(prompt + record.continuation + end for record in expected)
    drawn = page.page.locator("[data-label]").evaluate_all("records => records.map(r => r.dataset.label)")
    assert drawn == ([] if label else [record.label for record in expected])
    count = sum(len(record.continuation) for record in expected)
    page.wait_for(f"Done: 30 records, {count:,} characters")


def test_records_with_labels_show_their_surprise(opened: Any, tmp_path: Path) -> None:
    run, path = save_records(tmp_path / "run", LABELLED), tmp_path / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    page = opened(path)
    text = page.generate("a")
    page.page.get_by_label("See its surprise").check()
    assert page.generate("a") == text
    runs = page.page.locator("[data-label]").evaluate_all(
        "records => records.map(r => [...r.children].slice(1).map(e => e.textContent).join(''))"
    )
    assert runs == [record[1:] for record in text.split("\n")[:-1]]


def labelled_page(opened: Any, tmp_path: Path) -> Any:
    run, path = save_records(tmp_path / "run", LABELLED), tmp_path / "page.html"
    path.write_bytes(page_bytes(run, model_card(run, "1.2")))
    return opened(path)


def test_many_records_do_not_take_longer_and_longer(opened: Any, tmp_path: Path) -> None:
    page = labelled_page(opened, tmp_path)
    page.page.get_by_label("Records").fill("5000")
    page.generate("")
    page.wait_for("Done: 5,000 records, ")
    assert page.text.count("\n") == 5000


@pytest.mark.parametrize("seen", [False, True])
def test_a_record_that_is_stopped_is_removed(opened: Any, tmp_path: Path, seen: bool) -> None:
    page = labelled_page(opened, tmp_path)
    page.page.get_by_label("See its surprise").set_checked(seen)
    page.page.get_by_label("Records").fill("100000")
    page.page.get_by_role("button", name="Generate").click()
    playwright.expect(page.page.locator("#generated")).to_contain_text("a")
    page.page.keyboard.press("Escape")
    page.wait_for("Stopped after")
    count = page.text.count("\n")
    page.wait_for(f"Stopped after {count:,} records, ")
    assert page.text.endswith("\n")
    if seen:
        page.page.locator("#text").focus()
        page.page.keyboard.press("ArrowRight")
        assert page.page.locator("#readout").text_content()
    assert page.messages == []


def test_a_prompt_with_the_end_of_a_record_is_refused(opened: Any, tmp_path: Path) -> None:
    page = labelled_page(opened, tmp_path)
    page.page.get_by_label("Prompt").fill("a\nb")
    page.page.get_by_role("button", name="Generate").click()
    page.wait_for("The prompt has the end of a record")
    assert page.text == ""
    page.generate("a")


@pytest.mark.parametrize("name", MODELS)
def test_seeing_the_surprise_changes_no_text(opened: Any, tmp_path: Path, name: str) -> None:
    config, vocabulary = MODELS[name]
    path, generator = page_of(tmp_path, config, vocabulary)
    page = opened(path)
    page.page.get_by_label("See its surprise").check()
    [expected] = generator.generate("abc", length=600, temperature=0.8, seed=7, logprobs=True)
    assert page.generate("abc", length=600) == "abc" + expected.continuation
    assert page.messages == []
    bits = page.page.evaluate("""() => {
        const model = readModel(JSON.parse(document.getElementById("model").textContent),
                                fromBase64(document.getElementById("weights").textContent));
        const writer = new Writer(model, { prompt: "abc", temperature: 0.8, seed: 7, measured: true }), found = [];
        while (writer.read());
        while (found.length < 100) found.push(...writer.next().map(([, bits]) => bits));
        return found.slice(0, 100);
    }""")
    assert expected.logprobs is not None
    assert bits == pytest.approx([-value / np.log(2) for value in expected.logprobs[:100]], abs=1e-6)
    page.wait_for("bits per character")
    # Every character is in an element of its level.
    runs = page.page.locator("#generated span").evaluate_all("runs => runs.map(r => [r.className, r.textContent])")
    assert "".join(text for _, text in runs) == expected.continuation
    if vocabulary.level != "byte":  # Random bytes make marks, which share the element of a character before them.
        levels = [f"level{sum(b >= bound for bound in (1, 2, 4, 8))}" for b in bits]
        assert [level for level, text in runs for _ in text][:100] == levels


def test_surprise_is_read_by_pointer_and_by_keyboard(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    assert not page.page.locator("#surprise").is_visible()
    page.generate("ab", length=300)
    page.page.get_by_label("See its surprise").check()
    page.wait_for("The next text is coloured")
    page.generate("ab", length=300)
    page.page.locator("#text").focus()
    page.page.keyboard.press("ArrowRight")
    first = str(page.page.locator("#readout").text_content())
    assert re.search(r"\d\.\d\d bits, probability", first)
    page.page.keyboard.press("ArrowRight")
    page.page.locator("#generated span").first.hover(position={"x": 2, "y": 5})
    assert page.page.locator("#readout").text_content() == first
    colour = "getComputedStyle(document.querySelector('#generated .level2')).backgroundColor"
    coloured = page.page.evaluate(colour)
    page.page.get_by_label("See its surprise").uncheck()
    assert page.page.evaluate(colour) != coloured
    assert not page.page.locator("#surprise").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(opened: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(page_of(tmp_path, *MODELS["gru"])[0], viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.page.get_by_label("See its surprise").check()
    page.generate("ab", length=500)
    found = axe.Axe().run(page.page)
    assert found.violations_count == 0, found.generate_report()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize(
    ("prompt", "temperature", "seed"), [("", 0.8, 7), ("ab", 0.0, 7), ("ab", 2.0, 0), ("ab", 0.05, 2**53 - 1)]
)
def test_settings_are_used(opened: Any, tmp_path: Path, prompt: str, temperature: float, seed: int) -> None:
    path, generator = page_of(tmp_path, *MODELS["gru"])
    expected = generator.generate(prompt, length=300, temperature=temperature, seed=seed)[0]
    text = opened(path).generate(prompt, length=300, temperature=temperature, seed=seed)
    assert text == prompt + expected.continuation


def test_arithmetic_matches_python(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0]).page
    assert page.evaluate("Array.from(TANH)") == tanh_table().tolist()
    points = -np.random.Generator(np.random.Philox(1)).exponential(30, 2000)
    points = np.concatenate([points, [0.0, -0.0, -708.0, -707.9999, -1e-300, -1e9]])
    assert page.evaluate("points => points.map(exponential)", points.tolist()) == exponential(points).tolist()
    draw = "seed => { const u = new Uniform(seed, 3); return Array.from({ length: 9 }, () => u.next()); }"
    for seed in (0, 1, 2**32, 2**53 - 1):
        assert page.evaluate(draw, seed) == [uniform(seed, 3, at) for at in range(9)]


def test_offsets_of_ngrams_match_python(opened: Any, tmp_path: Path) -> None:
    """Up to the largest ids and every number of bits; the votes of an array that counts are the offsets."""
    page = opened(page_of(tmp_path, *MODELS["gru"])[0]).page
    random = np.random.Generator(np.random.Philox(3))
    beginnings = np.tri(8, dtype=np.int64) * 5  # the first tokens of a text
    marks = np.concatenate([random.integers(0, 1_114_113, (50, 8)), beginnings, [[1_114_112] * 8]])
    sums = """([bits, order, rows]) => rows.map((marks) => {
        const logits = new Float64Array(1), found = [];
        const votes = new Proxy([], { get: (_, at) => (found.push(Number(at)), Number(at)) });
        vote({ bits, order, votes }, marks, logits);
        return [...found, logits[0]];
    })"""
    for bits, order in ((1, 8), (2, 4), (13, 2), (27, 5), (28, 8)):
        offsets = offsets_of(marks[:, 0] - 1, marks[:, 1:order], bits)
        expected = np.concatenate([offsets, 32 * offsets.sum(axis=0, keepdims=True)]).T
        assert page.evaluate(sums, [bits, order, marks[:, :order].tolist()]) == expected.tolist()


def test_largest_packed_sums_are_exact(opened: Any, tmp_path: Path) -> None:
    """Two rows share one double: their sums must not overlap, whatever the weights are."""
    page = opened(page_of(tmp_path, *MODELS["gru"])[0]).page
    multiply = """columns => {
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
        assert page.evaluate(multiply, columns) == (chosen.sum(axis=1) * -127).tolist()


def test_generation_can_be_stopped(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for stop in (
        lambda: page.page.get_by_role("button", name="Stop").click(),
        lambda: page.page.keyboard.press("Escape"),
    ):
        page.page.get_by_label("Characters").fill("1000000")
        page.page.get_by_role("button", name="Generate").click()
        playwright.expect(page.page.locator("#generated")).to_have_text(re.compile(".{50}", re.DOTALL))
        stop()
        page.wait_for("Stopped after")
        playwright.expect(page.page.get_by_role("button", name="Generate")).to_be_enabled()
    # The next text is not mixed up with the stopped one.
    first = page.generate("ab", length=50)
    assert page.generate("ab", length=50) == first
    assert len(first) == 52


def test_unknown_prompt_characters_are_counted(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    page.generate("ab🙂xab", length=50)
    page.wait_for("Unknown prompt characters: 2.")
    page.generate("ab", length=50)
    playwright.expect(page.page.get_by_role("status")).not_to_contain_text("Unknown")


def test_keyboard_operates_every_control(opened: Any, tmp_path: Path) -> None:
    path, _ = page_of(tmp_path, *MODELS["gru"])
    page = opened(path)
    for _ in ("language", "prompt"):
        page.page.keyboard.press("Tab")
    page.page.keyboard.type("ab")
    page.page.keyboard.press("Control+Enter")
    page.wait_for("Done: 1,000 characters")
    assert page.text.startswith("ab")
    before = page.page.get_by_label("Seed").input_value()
    page.page.get_by_role("button", name="New seed").press("Enter")
    page.wait_for("Done: 1,000 characters")
    assert page.page.get_by_label("Seed").input_value() != before
    playwright.expect(page.page.get_by_role("button", name="New seed")).to_be_focused()


def test_text_can_be_copied(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    text = page.generate("ab", length=50)
    page.page.get_by_role("button", name="Copy").click()
    page.wait_for("Copied.")
    page.page.get_by_label("Prompt").fill("")
    page.page.get_by_label("Prompt").focus()
    page.page.keyboard.press("Meta+V" if sys.platform == "darwin" else "Control+V")
    assert page.page.get_by_label("Prompt").input_value().replace("\r\n", "\n") == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(opened: Any, tmp_path: Path, scheme: str) -> None:
    path, _ = page_of(tmp_path, *MODELS["gru"], name="a-very-long-name-of-a-run-that-does-not-fit-on-a-phone-at-all")
    page = opened(path, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.generate("ab", length=500)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 320
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) > 384
    assert light == (scheme == "light")


def test_controls_have_accessible_names(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for name in ("Prompt", "Temperature", "Characters", "Seed"):
        playwright.expect(page.page.get_by_label(name)).to_have_count(1)
    page.generate("ab", length=50)
    region = page.page.get_by_role("region", name="Generated text")
    playwright.expect(region).to_have_attribute("aria-busy", "false")


def test_names_and_characters_are_escaped(opened: Any, tmp_path: Path) -> None:
    vocabulary = Vocabulary("\n!-/<>abcimgprst\"'&\\\u2028")
    path, generator = page_of(
        tmp_path, ModelConfig(units=24, embedding_size=8), vocabulary, name="<img src=x onerror=boo()>&amp;"
    )
    page = opened(path)
    assert page.page.title() == "<img src=x onerror=boo()>&amp;"
    prompt = "</script><!--<script>"
    expected = generator.generate(prompt, length=200, temperature=0.8, seed=7)[0]
    assert page.generate(prompt, length=200) == prompt + expected.continuation
    assert page.page.locator("main img").count() == 0
    assert page.messages == []


def test_numbers_out_of_range_are_rejected(opened: Any, tmp_path: Path) -> None:
    page = opened(page_of(tmp_path, *MODELS["gru"])[0])
    for label, value in (("Characters", "0"), ("Characters", ""), ("Seed", "-1"), ("Seed", "1.5")):
        page.page.get_by_label(label).fill(value)
        page.page.get_by_role("button", name="Generate").click()
        assert page.text == ""
        page.wait_for("Ready.")
        page.page.get_by_label(label).fill("1")

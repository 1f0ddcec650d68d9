"""The playground in a real browser: what a person does, sees, and must not lose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from browsing import Opened
from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.generation.generator import Generator
from charwright.run import Run
from charwright.serve.app import Access
from charwright.serve.keys import Keys
from charwright.serve.playground import playground
from services import Running, hosted, start
from writers import LABELLED, LETTERS, random_writer, record_writer, weights_of

playwright = pytest.importorskip("playwright.sync_api")

ENDLESS = 10_000_000  # characters: more than a test waits for
VOCABULARIES = {
    "letters": LETTERS,
    "道德經": Vocabulary("\n，。不可名天地常有欲無道非𠀀"),
    "right-to-left": Vocabulary("\n ،.ابتثجحخدذرزسشكلمنهويَِّשלוםעבריתהא"),
    "bytes": ByteVocabulary(),
    "<img>&amp;'\"": LETTERS,
}
SLOW = ModelConfig(units=768, embedding_size=8)  # a text that can be watched while it grows
# What is special to a shell, to JSON, to Python, to HTML or to curl.
NASTY = "-d @x $HOME `id` $(id) !! 'one' \"two\" \\n \\ %s {a}\n\ttab\u2028道可道 אב 🙂 </script><!--"
PASTE = "Meta+V" if sys.platform == "darwin" else "Control+V"


class Process:
    """`charwright serve` in a process of its own, which can crash."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "charwright", "serve", f"letters={folder}", "--port", str(port)]
        command += [
            "--log",
            "off",
            "--threads",
            "1",
            "--max-tokens",
            str(ENDLESS),
            "--max-request",
            str(9 * ENDLESS),
            "--drain-s",
            "0",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        assert self.process.stderr is not None
        said = ""
        while not (found := re.search(r"^serving .* at (http://\S+):(\d+)$", said, re.MULTILINE)):
            line = self.process.stderr.readline()
            assert line, said
            said += line
        self.url, self.port = f"{found[1]}:{found[2]}", int(found[2])

    def crash(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate()


class Open(Opened):
    """The page of a service."""

    def __init__(self, browser: Any, url: str, ready: str = "Ready.", **options: Any) -> None:
        super().__init__(browser, f"{url}/", **options)
        self.status(ready)

    def status(self, line: str) -> None:
        playwright.expect(self.page.get_by_role("status")).to_contain_text(line, timeout=30_000)

    def alert(self, *lines: str) -> None:
        for line in lines:
            playwright.expect(self.page.get_by_role("alert")).to_contain_text(line, timeout=30_000)

    def fill(self, **values: Any) -> None:
        """Set controls by the names of their parameters."""
        for name, value in values.items():
            control = self.page.locator(f"#{name}")
            if not control.is_visible():
                self.page.get_by_text("More options").click()
            if name == "model":
                control.select_option(value)
            elif name == "logprobs":
                control.set_checked(value)
            else:
                control.fill(str(value))

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def generate(self, **values: Any) -> list[str]:
        """Generate texts to their end."""
        self.fill(**values)
        self.press("Generate")
        self.status("Done")
        return self.texts

    def begin(self, **values: Any) -> None:
        """Start a text that does not end, and wait for its first characters."""
        self.fill(max_tokens=ENDLESS, **({"model": "slow"} | values))
        self.press("Generate")
        self.status("Generating")  # Until the service has accepted the request, the texts before stay on the page.
        text = self.page.locator(".generated").first
        playwright.expect(text).to_have_text(re.compile(".{40}", re.DOTALL), timeout=30_000)

    def stop(self) -> None:
        self.press("Stop")
        self.status("Stopped")

    @property
    def texts(self) -> list[str]:
        """The generated texts, without the prompt."""
        return list(self.page.locator(".generated").evaluate_all("texts => texts.map(text => text.textContent)"))

    def code(self, name: str) -> str:
        return str(self.page.locator(f"#{name}").evaluate("element => element.textContent"))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with a model for each vocabulary, and a slow one."""
    models = {name: hosted(name, random_writer(vocabulary)) for name, vocabulary in VOCABULARIES.items()}
    service = start({**models, "slow": hosted("slow", slow_writer())}, max_tokens=ENDLESS)
    yield service
    assert service.is_empty()
    service.stop()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start services in processes, which end with the test."""
    started: list[Process] = []
    Run.save(tmp_path / "slow", SLOW, weights_of(SLOW, len(LETTERS)), LETTERS)

    def begin(port: int = 0) -> Process:
        started.append(Process(tmp_path / "slow", port))
        return started[-1]

    yield begin
    for each in started:
        if each.process.returncode is None:
            each.crash()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Open]]:
    pages: list[Open] = []

    def open_page(url: str, **options: Any) -> Open:
        pages.append(Open(browser, url, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


def slow_writer() -> Generator:
    return Generator(SLOW, weights_of(SLOW, len(LETTERS)), LETTERS, "q8", threads=1)


def texts_of(running: Running, **parameters: Any) -> list[str]:
    """The texts that the service gives without the page."""
    return [choice["text"] for choice in running.complete(**{"temperature": 0.8, **parameters}).json["choices"]]


def test_page_shows_the_texts_of_the_service(running: Running, opened: Any) -> None:
    page = opened(running.url)
    expected = texts_of(running, prompt="abc", max_tokens=700, n=3, seed=7)
    assert page.generate(prompt="abc", max_tokens=700, n=3, seed=7) == expected
    page.status("2,100 characters")
    page.status("finish: length, seed 7")
    playwright.expect(page.page.get_by_label("Text 2", exact=True)).to_have_text(f"abc{expected[1]}")
    assert {url.removeprefix(running.url) for url in page.requests} == {"/", "/v1/models", "/v1/completions"}
    assert page.messages == []


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"top_p": 0.5, "top_k": 4, "min_p": 0.1},
        {"repetition_penalty": 1.5},
        {"until": "2 lines"},
        {"stop": ["a\n", "\\"]},
        {"seed": 2**63 - 1},
    ],
    ids=str,
)
def test_options_are_used(running: Running, opened: Any, options: dict[str, Any]) -> None:
    page = opened(running.url)
    typed = {**options, "stop": "a\\n\n\\\\"} if "stop" in options else options
    request: dict[str, Any] = {"prompt": "ab", "max_tokens": 300, "seed": 3, **options}
    assert page.generate(**{**request, **typed}) == texts_of(running, **request)


def test_the_seed_that_was_drawn_can_be_kept(running: Running, opened: Any) -> None:
    page = opened(running.url)
    first = page.generate(max_tokens=100)
    assert page.generate() != first
    second = page.texts
    page.press("Keep the seed")
    assert page.generate() == second


def test_text_is_visible_before_its_end_and_stop_frees_the_place(running: Running, opened: Any) -> None:
    page = opened(running.url)
    for stop in (lambda: page.press("Stop"), lambda: page.page.keyboard.press("Escape")):
        page.begin(n=2)
        assert running.service.held == 2
        playwright.expect(page.page.locator("#progress")).to_contain_text("characters/s")
        stop()
        page.status("Stopped")
        assert running.is_empty()
    # The next text is not mixed up with the stopped one.
    expected = texts_of(running, prompt="b", max_tokens=50, seed=1)
    assert page.generate(model="letters", prompt="b", max_tokens=50, n=1, seed=1) == expected
    assert page.messages == []


def test_closing_the_page_frees_the_place(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.begin()
    page.page.close()
    assert running.is_empty()


def test_events_may_be_split_anywhere(running: Running, opened: Any) -> None:
    page = opened(running.url).page
    split = """async ([text, size]) => {
        const bytes = new TextEncoder().encode(text), found = [];
        const body = new ReadableStream({
            start(controller) {
                for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
                controller.close();
            },
        });
        for await (const data of eventsOf(body)) found.push(data);
        return found;
    }"""
    events = (
        ': comment\n\ndata: {"text": "道𠀀é"}\r\n\r\ndata:two\ndata: lines\n\nevent: other\n\ndata: [DONE]\n\ndata: cut'
    )
    for size in (1, 2, 3, 5, 1000):
        assert page.evaluate(split, [events, size]) == ['{"text": "道𠀀é"}', "two\nlines", "[DONE]"]


def test_surprise_is_shown(running: Running, opened: Any) -> None:
    page = opened(running.url)
    (text,) = page.generate(prompt="ab", max_tokens=400, seed=5, temperature=2, logprobs=True)
    assert text == texts_of(running, prompt="ab", max_tokens=400, seed=5, temperature=2)[0]
    spans = page.page.locator(".generated span")
    levels = spans.evaluate_all("spans => spans.map(span => span.className)")
    assert all(first != second for first, second in pairwise(levels))
    assert set(levels) >= {"level0", "level2", "level3"}
    playwright.expect(page.page.locator(".facts")).to_contain_text("bits per character")
    # With the keyboard, and with the mouse.
    page.page.locator(".text").focus()
    for _ in range(3):
        page.page.keyboard.press("ArrowRight")
    name = {"\n": "newline", " ": "space"}.get(text[2], f"“\u2068{text[2]}\u2069”")
    playwright.expect(page.page.locator("#readout")).to_have_text(re.compile(rf"^{re.escape(name)}: \d+\.\d\d bits, p"))
    assert page.page.evaluate("getSelection().toString()") == text[2]
    place = page.page.evaluate("() => { const { x, y, width, height } = panes[0].rangeOf(9).getBoundingClientRect();"
                               "return [x + 0.7 * width, y + height / 2]; }")  # fmt: skip
    page.page.mouse.move(*place)
    assert page.page.evaluate("([x, y]) => panes[0].indexAt(x, y)", place) == 9
    bits = page.page.evaluate("panes[0].bits[9]")
    playwright.expect(page.page.locator("#readout")).to_contain_text(f": {bits:.2f} bits")
    assert page.messages == []


def test_surprise_is_that_of_the_service(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.generate(prompt="ab", max_tokens=200, n=2, seed=5, logprobs=True)
    choices = running.complete(prompt="ab", max_tokens=200, n=2, seed=5, logprobs=0, temperature=0.8).json["choices"]
    for at, choice in enumerate(choices):
        shown = page.page.evaluate("at => panes[at].bits.map((bits) => -bits * Math.LN2)", at)
        assert shown == pytest.approx(choice["logprobs"]["token_logprobs"])


@pytest.mark.parametrize("prompt", [NASTY, "", "-"], ids=["nasty", "empty", "minus"])
@pytest.mark.parametrize(
    "options", [{}, {"n": 2, "top_k": 5, "until": "40 lines", "stop": "\\\\\n'\n$"}], ids=["plain", "more"]
)
def test_code_gives_the_text_of_the_page(
    running: Running, opened: Any, tmp_path: Path, prompt: str, options: dict[str, Any]
) -> None:
    page = opened(running.url)
    texts = page.generate(model="bytes", prompt=prompt, max_tokens=300, seed=2**62 + 1, **options)
    if shutil.which("curl"):
        ran = subprocess.run(["sh", "-c", page.code("curl")], capture_output=True, check=True, cwd=tmp_path)
        assert [choice["text"] for choice in json.loads(ran.stdout)["choices"]] == texts
    pytest.importorskip("openai")
    environment = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", page.code("python")]
    ran = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert ran.stdout.decode() == "".join(f"{text}\n" for text in texts).replace("\n", os.linesep)


@pytest.mark.parametrize(("button", "name"), [("Copy curl", "curl"), ("Copy Python", "python")])
def test_code_can_be_copied(running: Running, opened: Any, button: str, name: str) -> None:
    page = opened(running.url)
    page.fill(prompt=NASTY)
    page.page.get_by_text("The request as code").click()
    page.press(button)
    page.status("Copied.")
    page.page.get_by_label("Prompt").fill("")
    page.page.get_by_label("Prompt").focus()
    page.page.keyboard.press(PASTE)
    pasted = page.page.get_by_label("Prompt").input_value()
    page.fill(prompt=NASTY)
    assert pasted == page.code(name)


def test_text_can_be_copied(running: Running, opened: Any) -> None:
    page = opened(running.url)
    texts = page.generate(prompt="ab", max_tokens=50, n=2)
    page.press("Copy text 2")
    page.status("Copied.")
    page.fill(prompt="")
    page.page.get_by_label("Prompt").focus()
    page.page.keyboard.press(PASTE)
    assert page.page.get_by_label("Prompt").input_value() == f"ab{texts[1]}"


def test_keys(serve: Any, opened: Any) -> None:
    """The browser asks for the key once. The code has a place for it, and never the key itself."""
    key = "a-key-of-the-service-0123456789"
    running = serve(access=Access(Keys.parse(key, "keys")))
    page = opened(running.url, http_credentials={"username": "me", "password": key})
    (text,) = page.generate(max_tokens=60, seed=3)
    assert key not in page.code("curl") + page.code("python")
    environment = {**os.environ, "CHARWRIGHT_API_KEY": key, "PYTHONUTF8": "1"}
    if shutil.which("curl"):
        ran = subprocess.run(["sh", "-c", page.code("curl")], capture_output=True, check=True, env=environment)
        assert json.loads(ran.stdout)["choices"][0]["text"] == text
    # The key may be withdrawn while the page is open.
    page.context.route(
        "**/v1/completions",
        lambda route: route.continue_(headers={**route.request.headers, "authorization": "Bearer wrong"}),
    )
    page.press("Generate")
    page.alert("Error 401", "API key")
    assert page.texts == [text]
    pytest.importorskip("openai")
    ran = subprocess.run([sys.executable, "-c", page.code("python")], capture_output=True, check=True, env=environment)
    assert ran.stdout.decode() == f"{text}\n".replace("\n", os.linesep)


@pytest.mark.parametrize("how", [Process.crash, Process.end], ids=["crash", "end"])
def test_page_survives_the_service(processes: Any, opened: Any, how: Callable[[Process], None]) -> None:
    service = processes()
    page = opened(service.url)
    page.begin(model="letters", prompt="ab", seed=7)
    how(service)
    page.status("Failed")
    playwright.expect(page.page.get_by_role("alert")).not_to_be_empty()
    kept = page.texts
    assert len(kept[0]) >= 40
    page.press("Generate")
    page.alert("cannot be reached")
    assert page.texts == kept
    assert page.page.get_by_label("Prompt").input_value() == "ab"
    processes(service.port)
    # The text has the same beginning as the one that broke off.
    assert page.generate(max_tokens=40) == [kept[0][:40]]
    playwright.expect(page.page.get_by_role("alert")).to_be_empty()


def test_page_that_was_opened_too_early_works_later(running: Running, opened: Any) -> None:
    """A proxy may have the page while the service does not answer."""
    page = opened(running.url)
    page.context.route("**/v1/models", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    page.page.reload()
    page.status("Not connected.")
    page.alert("Error 502: Bad Gateway")
    page.context.unroute("**/v1/models")
    page.context.route("**/v1/models", lambda route: route.fulfill(status=200, body="<html>Log in</html>"))
    page.press("Generate")
    page.alert("The answer cannot be read")
    page.context.unroute("**/v1/models")
    assert len(page.generate(max_tokens=30)[0]) == 30


def test_refusals_are_shown_in_the_words_of_the_service(serve: Any, opened: Any) -> None:
    running = serve({"slow": hosted("slow", slow_writer())}, max_per_caller=2, max_tokens=ENDLESS)
    page, other = opened(running.url), opened(running.url)
    kept = page.generate(max_tokens=50)
    page.fill(until="3 chapters")
    page.press("Generate")
    page.alert("Error 400: until", "sentence")
    until = page.page.locator("#until")
    playwright.expect(until).to_have_attribute("aria-invalid", "true")
    assert page.texts == kept
    other.begin()
    page.fill(until="", n=2)
    page.press("Generate")
    page.alert("Error 429", "the limit is 2; try again in")
    playwright.expect(until).not_to_have_attribute("aria-invalid", "true")
    other.stop()
    assert running.is_empty()
    assert [len(text) for text in page.generate()] == [50, 50]


def test_model_that_is_gone(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.page.evaluate("page.model.append(new Option('gone', 'gone', true, true))")
    page.press("Generate")
    page.alert("Error 404", "gone")
    playwright.expect(page.page.locator("#model option")).to_have_count(len(VOCABULARIES) + 1)
    page.generate(max_tokens=20)


def test_service_that_is_full_is_tried_again_by_hand(running: Running, opened: Any) -> None:
    page = opened(running.url)
    error = {"error": {"message": "the service is full", "type": "server_error", "param": None, "code": "overloaded"}}
    headers = {"Retry-After": "3", "Content-Type": "application/json"}
    page.context.route("**/v1/completions", lambda route: route.fulfill(status=503, headers=headers, json=error))
    page.press("Generate")
    page.alert("Error 503: the service is full; try again in 3 s")
    page.context.unroute("**/v1/completions")
    page.generate(max_tokens=20)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('data: {"error": {"message": "the engine broke", "param": null, "code": null}}\n\n', "the engine broke"),
        ("", "The connection broke before the end"),
    ],
    ids=["error", "silence"],
)
def test_stream_that_ends_early_says_so(running: Running, opened: Any, end: str, message: str) -> None:
    page = opened(running.url)
    chunk = {"seed": 5, "choices": [{"index": 0, "text": "half a", "logprobs": None, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n{end}"
    page.context.route("**/v1/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.press("Generate")
    page.status("Failed: 6 characters")
    page.alert(message)
    assert page.texts == ["half a"]


def test_inputs_survive_a_reload(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.fill(model="道德經", prompt=NASTY, max_tokens=77, n=3, temperature=1.35, logprobs=True, top_k=9, stop="a\nb")
    page.page.reload()
    page.status("Ready.")
    code = page.code("python")
    for line in ('model="道德經"', "max_tokens=77", "n=3", "temperature=1.35", "logprobs=0", '"top_k": 9', '["a","b"]'):
        assert line in code
    assert page.page.get_by_label("Prompt").input_value() == NASTY
    assert page.context.cookies() == []


def test_labels_are_offered_and_shown(serve: Any, opened: Any) -> None:
    running = serve({"letters": hosted("letters", random_writer()), "names": hosted("names", record_writer(LABELLED))})
    page = opened(running.url)
    label = page.page.locator("#label")
    playwright.expect(label).to_be_hidden()
    page.generate(max_tokens=20)
    page.fill(model="names")
    options = label.locator("option").evaluate_all("options => options.map(option => option.textContent)")
    assert options == ["drawn at random", "one", "two", "three"]
    drawn = [choice["label"] for choice in running.complete(model="names", n=4, seed=3).json["choices"]]
    page.generate(n=4, seed=3)
    assert [
        each.partition("label: ")[2].partition(",")[0] for each in page.page.locator(".facts").all_inner_texts()
    ] == drawn
    label.select_option("two")
    assert page.generate(n=2) == texts_of(running, model="names", label="two", n=2, seed=3, max_tokens=20)
    assert '"label": "two"' in page.code("python")
    page.page.reload()
    page.status("Ready.")
    assert label.input_value() == "two"
    page.fill(model="letters")
    playwright.expect(label).to_be_hidden()
    assert "label" not in page.code("curl")
    page.generate(n=1)
    assert page.messages == []


def test_page_is_in_the_language_of_the_browser(running: Running, opened: Any) -> None:
    page = opened(running.url, ready="準備好了。", locale="zh-TW")
    page.page.get_by_label("模型").select_option("letters")
    page.page.get_by_label("依驚訝程度上色").check()
    page.page.get_by_label("開頭").fill("a?")
    page.press("產生")
    page.status("完成：500 個字元，每秒 ")
    page.status("模型從沒見過開頭裡的這些字元：?")
    page.page.get_by_text("更多選項").click()
    page.page.locator("article .text").focus()
    page.page.keyboard.press("ArrowRight")
    hidden = "for (const element of document.querySelectorAll('.text, select, #code')) element.hidden = true"
    words = set(re.findall(r"[A-Za-z][A-Za-z-]+", str(page.page.evaluate(f"{{ {hidden} }} document.body.innerText"))))
    assert words <= {
        "HTTP",
        "Top-p",
        "Top-k",
        "Min-p",
        "Ctrl",
        "Enter",
        "Mac",
        "Cmd",
        "Escape",
        "English",
        "bits",
        "length",
    }
    assert page.messages == []


def test_all_of_the_page_follows_a_change_of_the_language(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.generate(model="letters", max_tokens=20, logprobs=True)
    page.page.locator("article .text").focus()
    page.page.keyboard.press("ArrowRight")
    page.fill(until="nothing")
    page.press("Generate")
    page.alert("Error 400")
    page.press("正體中文")
    page.alert("錯誤 400：")
    assert page.page.locator("article h2").text_content() == "第 1 篇"
    assert str(page.page.locator("article .facts").text_content()).startswith("20 個字元，")
    playwright.expect(page.page.locator("#readout")).to_contain_text("機率")
    playwright.expect(page.page.get_by_role("button", name="複製第 1 篇")).to_have_text("複製")
    assert page.page.title() == "試寫 – charwright"
    page.press("English")
    page.alert("Error 400")
    assert page.page.locator("article h2").text_content() == "Text 1"
    assert [message for message in page.messages if "400" not in message] == []


def test_page_works_with_blocked_storage(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.context.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    page.page.reload()
    page.status("Ready.")
    assert len(page.generate(max_tokens=20)[0]) == 20
    assert page.messages == []


@pytest.mark.parametrize("path", ["/below/", "/below"])
def test_page_works_below_a_path_of_a_proxy(running: Running, browser: Any, path: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    there = lambda route: route.fetch(url=route.request.url.replace("/below", ""))  # noqa: E731
    context.route("**/below**", lambda route: route.fulfill(response=there(route)))
    page.goto(running.url + path)
    playwright.expect(page.get_by_role("status")).to_contain_text("Ready.")
    page.get_by_role("button", name="Generate").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("Done: 500 characters")
    assert f"curl -sS '{running.url}/below/v1/completions'" in page.locator("#curl").evaluate("pre => pre.textContent")
    context.close()


@pytest.mark.parametrize("name", ["道德經", "right-to-left"])
def test_scripts(running: Running, opened: Any, name: str) -> None:
    page = opened(running.url, viewport={"width": 320, "height": 640})
    prompt = {"道德經": "道可道，𠀀", "right-to-left": "سلام שלום"}[name]
    request: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": 300, "n": 2, "seed": 4}
    expected = texts_of(running, **request)
    for surprise in (False, True):
        assert page.generate(**request, logprobs=surprise) == expected
        direction = page.page.locator(".text").first.evaluate("text => getComputedStyle(text).direction")
        assert direction == ("rtl" if name == "right-to-left" else "ltr")
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 320
    # A mark stays with the letter that it stands on.
    starts = page.page.locator(".generated span").evaluate_all("spans => spans.map(span => span.textContent)")
    assert not any(start[0] in "َِّ" for start in starts[1:])
    page.page.locator(".text").first.focus()
    page.page.keyboard.press("ArrowLeft" if name == "right-to-left" else "ArrowRight")
    page.page.keyboard.press("ArrowLeft" if name == "right-to-left" else "ArrowRight")
    assert page.page.evaluate("panes[0].reading") == 1
    assert page.messages == []


def test_names_and_texts_are_never_html(running: Running, opened: Any) -> None:
    page = opened(running.url)
    for name in VOCABULARIES:
        page.generate(model=name, prompt="<img src=x onerror=boo()>&amp;", max_tokens=30)
    assert page.page.locator("main img, main script").count() == 0
    playwright.expect(page.page.locator(".prompt")).to_have_text("<img src=x onerror=boo()>&amp;")
    names = page.page.locator("#model option").evaluate_all("options => options.map(option => option.textContent)")
    assert names == [*VOCABULARIES, "slow"]
    assert page.messages == []


def test_every_control_is_reached_with_the_keyboard(running: Running, opened: Any) -> None:
    page = opened(running.url)
    page.generate(max_tokens=30, n=2)
    page.page.get_by_text("More options").click()
    page.page.get_by_text("The request as code").click()
    page.page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    reached: list[str] = []
    name = """() => {
        const focused = document.activeElement;
        const visible = focused === document.body || getComputedStyle(focused).outlineStyle !== "none";
        const name = focused.id || focused.getAttribute("aria-label") || focused.textContent;
        return visible ? name : `invisible: ${name}`;
    }"""
    page.page.get_by_role("heading", name="Playground").click()
    for _ in range(40):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate(name))
    wanted = "docs model prompt temperature max_tokens n logprobs top_p top_k min_p repetition_penalty until seed stop"
    wanted += " generate stopButton keepSeed copyCurl curl copyPython python"
    expected = [*wanted.split(), "Text 1", "Copy text 2", "More options", "The request as code"]
    assert [each for each in expected if each not in reached] == []
    assert not [each for each in reached if each.startswith("invisible")]


def test_keyboard_alone_is_enough(running: Running, opened: Any) -> None:
    page = opened(running.url).page
    page.get_by_label("Prompt").focus()
    page.keyboard.type("ab")
    page.keyboard.press("Control+Enter")
    playwright.expect(page.get_by_role("status")).to_contain_text("Done: 500 characters")
    playwright.expect(page.get_by_label("Prompt")).to_be_focused()
    page.get_by_label("Model").select_option("slow")
    page.get_by_label("Characters").fill(str(ENDLESS))
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("status")).to_contain_text("Generating")
    page.keyboard.press("Escape")
    playwright.expect(page.get_by_role("status")).to_contain_text("Stopped")
    # A text may be told to a screen reader when it is wanted, but not each character as it arrives.
    assert page.locator("#texts [aria-live], #progress:not([aria-hidden])").count() == 0


def test_wrong_numbers_are_refused_by_the_form(running: Running, opened: Any) -> None:
    page = opened(running.url)
    for name, value, right in (("n", "9", "1"), ("max_tokens", "", "5"), ("seed", "-1", ""), ("top_p", "2", "")):
        page.fill(**{name: value})
        page.page.get_by_text("More options").click()  # A control with a mistake is shown.
        page.press("Generate")
        playwright.expect(page.page.locator(f"#{name}")).to_be_visible()
        page.status("Ready.")
        page.fill(**{name: right})
    assert page.messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_page_is_accessible(running: Running, opened: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(running.url, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")

    def check() -> None:
        found = axe.Axe().run(page.page)
        assert found.violations_count == 0, found.generate_report()

    check()
    page.page.get_by_text("The request as code").click()
    page.generate(prompt="ab", max_tokens=800, n=3, logprobs=True, seed=7)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) > 384
    assert light == (scheme == "light")
    check()
    page.fill(until="nothing", prompt="a" * 400)
    page.press("Generate")
    page.alert("Error 400")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    check()


def test_page_and_its_policy(running: Running) -> None:
    page, reply = playground(keys=False), running.get("/")
    assert reply.body == page.body
    assert reply.headers["content-security-policy"] == page.policy
    assert "unsafe" not in page.policy
    body = page.body.decode()
    assert body.count("</script") - 1 == body.count("<script>") == 4
    assert body.count('<script type="application/json" id="words">') == 1
    assert re.findall(r"""(?:src|href)="(?!data:)([^"]*)""", body) == ["docs"]

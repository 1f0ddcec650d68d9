"""How results and a training show themselves in a notebook, and in plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import charwright as cw
from charwright import notebook
from charwright.generation.completions import Completion, Completions
from charwright.run import Run
from charwright.training.events import Checkpoint, End, Epoch, Rollback, Sample, Start, Step
from charwright.training.watching import NotebookProgress, watch
from writers import weights_of

EVIL = '<script>alert("x")</script> & [bold]'
START = Start(0, 0.0, 1000, 5, 4, 16, "cpu", "f32", "fused", 1)


def step_at(step: int, time_s: float) -> Step:
    return Step(step, time_s, 1, 3.0 - step / 100, 1e-3, 1234.5, 0.5, 125.0)


def elements(html: str) -> ElementTree.Element:
    """The parsed HTML; what is not well-formed raises an error."""
    return ElementTree.fromstring(f"<body>{html}</body>")


def words(html: str) -> str:
    return " ".join(" ".join(elements(html).itertext()).split())


def check(html: str) -> None:
    """What every view has to keep to: well-formed, escaped, without colours of its own, tables and pictures named."""
    body = elements(html)
    assert {"script", "style", "link"}.isdisjoint(element.tag for element in body.iter())
    for element in body.iter():
        assert {element.get("fill"), element.get("stroke")} <= {None, "none", "currentColor"}
        assert "color" not in element.get("style", "") + element.get("background", "")
    assert all(table.find("caption") is not None for table in body.iter("table"))
    for tag in ("svg", "progress"):
        assert all(element.get("aria-label") for element in body.iter(tag))


class Display:
    """A display of a notebook that remembers what it showed."""

    def __init__(self) -> None:
        self.shown: list[Mapping[str, str]] = []

    def update(self, data: Mapping[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(dict(data))

    @property
    def html(self) -> str:
        return self.shown[-1]["text/html"]

    @property
    def plain(self) -> str:
        return self.shown[-1]["text/plain"]


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Display]]:
    """Pretend that this program runs in a notebook; gives the displays that it makes."""
    made: list[Display] = []

    def display(bundle: Mapping[str, str], *, raw: bool, display_id: bool) -> Display:
        assert raw
        assert display_id
        made.append(Display())
        made[-1].shown.append(dict(bundle))
        return made[-1]

    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return made


def trained_run(folder: Path) -> Run:
    vocabulary = cw.Vocabulary("\n abc")
    config = cw.ModelConfig(units=4, embedding_size=2)
    corpus = cw.Corpus.from_text("abc abc\n" * 9, name=EVIL)
    run = Run.save(folder, config, weights_of(config, len(vocabulary)), vocabulary, corpus=corpus)
    for step, loss in ((10, 2.5), (20, 2.25), (30, 2.375)):
        run.append_log(Epoch(step, 1.0, 1, 2.75, loss, loss / 0.693, loss == 2.25, 100.0, 1.0).to_json())
    return run


def test_a_run_shows_its_network_its_text_and_its_curve(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "a <b> & c")
    html = run._repr_html_()
    check(html)
    assert "1 layer of 4 GRU units" in words(html)
    assert "72 characters" in words(html)
    assert EVIL in words(html)
    assert "validation loss, nats per character 2.2500 at step 20, the lowest of 3" in words(html)
    assert "from 2.500 at 10 to 2.375 at 30; lowest 2.250" in str(elements(html).find(".//svg").attrib)  # type: ignore[union-attr]
    assert repr(run) == f"Run({str(run.folder)!r}: 1 layer of 4 GRU units, 138 parameters)"


def test_a_run_without_a_history_shows_itself_too(tmp_path: Path) -> None:
    vocabulary, config = cw.Vocabulary("ab"), cw.ModelConfig(units=4, embedding_size=2, layers=2, cell="lstm")
    html = Run.save(tmp_path / "run", config, weights_of(config, 3), vocabulary)._repr_html_()
    check(html)
    assert "2 layers of 4 LSTM units" in words(html)
    assert "<svg" not in html


def test_an_evaluation_shows_its_figures() -> None:
    html = cw.Evaluation(1.5, 2.164, 12345, 3, "carried")._repr_html_()
    check(html)
    rows = [[cell.text for cell in row] for row in elements(html).iter("tr")]
    assert rows == [
        ["nats per character", "1.5000"],
        ["bits per character", "2.1640"],
        ["characters", "12,345"],
        ["of them outside the vocabulary", "3"],
        ["protocol", "carried"],
    ]


class Printer:
    """IPython's printer of plain text."""

    def __init__(self) -> None:
        self.written = ""

    def text(self, text: str) -> None:
        self.written += text


def plain(value: Any) -> str:
    printer = Printer()
    value._repr_pretty_(printer, False)
    return printer.written


def test_texts_show_themselves_with_their_lines_and_nothing_of_their_markup() -> None:
    first = Completion(EVIL, " one\n  two", 7, 0)
    second = Completion("", "שלום", 7, 1, "stop")
    texts = Completions([first, second])
    check(texts._repr_html_())
    pre = list(elements(texts._repr_html_()).iter("pre"))
    # A browser drops the newline directly behind the tag, and so keeps one with which a text begins.
    assert ["".join(element.itertext()) for element in pre] == [f"\n{EVIL} one\n  two", "\nשלום"]
    assert pre[0].find("b").text == EVIL  # type: ignore[union-attr]
    assert pre[1].find("b") is None
    assert {element.get("dir") for element in pre} == {"auto"}
    assert "seed 7, text 1, ended by stop" in words(second._repr_html_())
    assert plain(texts) == f"{EVIL} one\n  two\n\nשלום"
    assert texts == [first, second]


def test_records_show_their_label_and_what_was_thrown_away() -> None:
    records = Completions([Completion("", "anna", seed=7, stream=3, ended="record", label=EVIL)])
    records.note = f"threw away 1: {EVIL}"
    check(records._repr_html_())
    assert f"seed 7, text 3, label {EVIL}, ended by record" in words(records._repr_html_())
    assert words(records._repr_html_()).endswith(f"threw away 1: {EVIL}")
    assert plain(records) == f"anna\n\nthrew away 1: {EVIL}"
    assert "note" not in words(Completions(records)._repr_html_())


def test_generate_returns_texts_that_show_themselves() -> None:
    config = cw.ModelConfig(units=4, embedding_size=2)
    made = cw.Generator(config, weights_of(config, 4), cw.Vocabulary("abc")).generate(["a", "b"], length=5)
    assert isinstance(made, Completions)
    assert made._repr_html_().count("<pre") == 2


def test_a_corpus_and_a_vocabulary_show_themselves() -> None:
    corpus = cw.Corpus.from_text("a<b> \n" * 3, name=EVIL)
    check(corpus._repr_html_())
    assert f"Corpus {EVIL} characters 18 different characters 6" in words(corpus._repr_html_())
    vocabulary = cw.Vocabulary.from_text(corpus.text + "".join(map(chr, range(0x4E00, 0x4E00 + 200))))
    html = vocabulary._repr_html_()
    check(html)
    cells = [cell.text for cell in elements(html).iter("td")]
    assert cells[:6] == ["0 [UNK]", r"1 \n", "2 ' '", "3 <", "4 >", "5 a"]
    assert len(cells) == 100
    assert "and 107 more" in words(html)


def test_a_plan_shows_its_reasons() -> None:
    from charwright.planning.plan import make_plan
    from charwright.planning.profile import TextProfile

    plan = make_plan(TextProfile(20_000, 60, "Latin", 20_000), {"steps": 50, "units": 32}, {})
    html = plan._repr_html_()
    check(html)
    rows = [[cell.text for cell in row] for row in elements(html).iter("tr")]
    assert rows[0] == ["option", "value", "reason"]
    assert ["units", "32", "given by hand"] in rows
    assert "32 multiplicative input-reset GRU units and n-grams for 50 steps" in words(html)
    assert plain(plan).splitlines()[0] == plan.summary()[0]
    assert "--units  32  given by hand" in plain(plan).splitlines()


def test_a_curve_has_few_points_and_its_figures_as_text() -> None:
    svg = notebook.curve([(step, 5 - step / 1000) for step in range(1, 1001)], "loss <nats>")
    check(svg)
    line = elements(svg).find(".//polyline")
    assert line is not None
    assert len(line.attrib["points"].split()) == notebook.MOST_POINTS
    assert "loss <nats>" in words(svg)
    assert "4.00" in words(svg)
    assert notebook.curve([(1, 2.0)], "loss") == ""
    check(notebook.curve([(1, 2.0), (2, 2.0)], "flat"))


# Training.


def test_progress_is_drawn_four_times_a_second_and_keeps_the_last_view() -> None:
    display = Display()
    progress = NotebookProgress(display)
    progress.write(START)
    for number in range(1, 101):
        progress.write(step_at(number, number / 20))
    assert 18 <= len(display.shown) <= 22
    check(display.html)
    assert elements(display.html).find(".//progress").attrib["value"] == "0.500"  # type: ignore[union-attr]
    assert "epoch 1, step 100, loss 2.000, 1,234 chars/s, 2:05 left" in words(display.html)
    progress.write(Epoch(100, 5.0, 1, 2.5, None, None, False, 1234.5, 5.0))
    assert "validation" not in words(display.html)
    progress.write(Epoch(200, 9.0, 2, 2.25, 2.0, 2.885, True, 1234.5, 4.0))
    progress.write(Rollback(150, 9.5, 210, 0.002))
    progress.write(Checkpoint(200, 9.5))
    progress.write(Sample(200, 9.5, EVIL))
    progress.write(End(200, 10.0, "done", 2.0, 200))
    progress.close()
    check(display.html)
    assert elements(display.html).find(".//progress") is None
    assert "done: step 200 after 10 s" in words(display.html)
    assert "2.0000 (best)" in words(display.html)
    assert EVIL in words(display.html)
    assert "diverged near step 210" in words(display.html)
    assert "epoch 2  loss 2.2500  validation 2.0000 (2.885 bits/char)  best so far" in display.plain
    assert EVIL in display.plain
    assert "interrupted" not in display.plain


def test_an_interrupted_training_says_so() -> None:
    display = Display()
    progress = NotebookProgress(display)
    progress.write(START)
    progress.close()
    assert "interrupted" in words(display.html)
    assert "interrupted" in display.plain


def fit_of(steps: int) -> Iterator[Any]:
    text = "abc abd\n" * 100
    vocabulary = cw.Vocabulary.from_text(text)
    model = cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=2), len(vocabulary))
    dataset = cw.Windows(vocabulary.encode(text), 8, 4)
    return cw.fit(model, dataset, cw.TrainingConfig(steps=steps))


def test_watch_passes_the_events_on_and_prints_plain_lines(one_thread: None) -> None:
    stream = StringIO()
    names = [event.name for event in watch(fit_of(20), stream)]
    assert names[0] == "start"
    assert names[-1] == "end"
    assert "5 steps" not in stream.getvalue()
    assert "of 4 x 8 per epoch" in stream.getvalue()
    assert "epoch 1  loss" in stream.getvalue()


def test_watch_shows_a_display_in_a_notebook(in_notebook: list[Display], one_thread: None) -> None:
    stream = StringIO()
    events = watch(fit_of(20), stream)
    assert next(events).name == "start"
    events.close()  # type: ignore[attr-defined]
    [display] = in_notebook
    assert "interrupted" in display.plain
    assert stream.getvalue() == ""


def test_train_shows_itself_in_a_notebook(in_notebook: list[Display], tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "words.txt").write_text("a few words, and a few more\n" * 200, encoding="utf-8")
    seen: list[str] = []
    run = cw.train(
        tmp_path / "words.txt", out=tmp_path / "run", steps=20, units=8, batch=4, on_event=lambda e: seen.append(e.name)
    )
    [display] = in_notebook
    check(display.html)
    assert "plan: 1 layer of 8 multiplicative input-reset GRU units" in display.plain
    assert "done: step 20" in words(display.html)
    assert seen[-1] == "end"
    cw.resume(run, steps=30)
    assert "done: step 30" in in_notebook[1].plain
    cw.resume(run, steps=40, progress=False)
    assert len(in_notebook) == 2


def test_train_is_silent_elsewhere_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    (tmp_path / "words.txt").write_text("a few words, and a few more\n" * 200, encoding="utf-8")
    options: dict[str, Any] = {"steps": 10, "units": 8, "batch": 4, "force": True, "out": tmp_path / "run"}
    cw.train(tmp_path / "words.txt", **options)
    assert capsys.readouterr() == ("", "")
    cw.train(tmp_path / "words.txt", progress=True, **options)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "plan: 1 layer of 8 multiplicative input-reset GRU units" in shown.err
    assert "epoch 1  loss" in shown.err


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=None)])
def test_a_terminal_with_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch, shell: Any) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert notebook.show({"text/plain": "x"}) is None

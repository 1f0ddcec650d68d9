"""What an explanation says of itself in words: short ones, and true ones where little was found."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

import charwright as cw
from charwright.config import ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.explanation import neurons
from charwright.explanation.picture import SURPRISE
from charwright.explanation.results import Memory, NeuronSearch
from charwright.run import Run
from writers import weights_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = "the first (and the last) word\n" * 36
NOT_SEARCHED = (
    "The neurons were not searched: the text has 1,080 characters, and 2,000 are needed; "
    "name a longer text after the run."
)


class Printer:
    """What IPython passes to `_repr_pretty_`."""

    printed = ""

    def text(self, words: str) -> None:
        self.printed += words


def printed(value: cw.Explanation | cw.LearningCurves) -> str:
    printer = Printer()
    value._repr_pretty_(printer, False)
    return printer.printed


def memory(bits: list[float]) -> Memory:
    return Memory(tuple(range(1, len(bits) + 1)), np.array(bits), np.zeros(len(bits)), 20, "character")


def test_its_own_views_are_short(explained: cw.Explanation) -> None:
    assert printed(explained) == str(explained)
    assert len(printed(explained)) < 2000
    assert len(repr(explained)) < 2000
    assert explained.name in repr(explained)


def test_those_of_learning_curves_too(bracket_run: cw.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = cw.plot(bracket_run.folder)
    assert repr(curves) == "<LearningCurves of 1 run: nats per character over minutes>"
    monkeypatch.setattr(type(curves), "text", lambda _: "a plot")
    assert printed(curves) == "a plot"
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "charwright.plotting.terminal", None)
    assert printed(curves) == repr(curves)


def test_a_short_text_is_said_to_be_short(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_text(SHORT)
    config = ModelConfig(units=16, embedding_size=8)
    run = Run.save(tmp_path / "run", config, weights_of(config, len(vocabulary)), vocabulary)
    found = cw.explain(run, SHORT)
    assert found.neurons.unsearched == NOT_SEARCHED
    page = found.page().decode("utf-8").partition('<script type="application/json" id="words">')[0]
    for shown in (str(found), found._repr_html_(), page):
        assert NOT_SEARCHED in shown
        assert "no neuron follows" not in shown
        assert "<b>No neuron passes" not in shown
        assert "were compared with" not in shown


def test_a_longer_text_is_searched_instead_of_a_short_validation_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(SHORT, encoding="utf-8")
    run = cw.train(
        tmp_path / "text.txt", out=tmp_path / "run", steps=1, units=8, embedding_size=4, batch=2, seq_length=8
    )
    found = cw.explain(run, SHORT * 2)
    assert found.neurons.characters == 2160
    assert found.neurons.unsearched == ""
    assert "the validation text of the run has fewer than 2,000 characters" in found.notes[0]
    assert cw.explain(run, SHORT).neurons.text == "the validation text of the run"


def test_a_text_without_features_is_not_searched(explained: cw.Explanation) -> None:
    tested = tuple(dataclasses.replace(t, reason="too rare") for t in explained.neurons.tested)
    search = NeuronSearch((), tested, "a text", 3000, 16, 0.01)
    assert search.unsearched == "The neurons were not searched: every feature is too rare in the text."
    assert explained.neurons.unsearched == ""


def test_both_halves_have_to_be_as_strong_as_the_weakest(
    bracket_run: cw.Run, explained: cw.Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = max(explained.neurons.found, key=lambda n: abs(n.confirmed) - abs(n.correlation))
    assert abs(best.correlation) < abs(best.confirmed)
    monkeypatch.setattr(neurons, "WEAKEST", (abs(best.correlation) + abs(best.confirmed)) / 2)
    found = cw.explain(bracket_run, length=100).neurons.found
    assert (best.layer, best.unit, best.feature) not in {(n.layer, n.unit, n.feature) for n in found}


def test_memory_that_outlasts_the_measurement_is_more_than_its_last_lag() -> None:
    found = memory([1.0] * 256)
    assert (found.half, found.reach) == (None, None)
    assert found.in_words(found.half) == "more than 256 characters"


def test_half_counts_from_the_largest_effect() -> None:
    found = memory([0.4, 0.1, 1.0, 0.6, 0.5, 0.005])
    assert (found.half, found.reach) == (5, 5)
    assert found.in_words(found.half) == "5 characters"
    assert found.in_words(1) == "1 character"


def test_the_words_of_the_memory(explained: cw.Explanation) -> None:
    found = dataclasses.replace(explained, memory=memory([0.5, 0.001]))
    assert "remembers 1 character back (0.01 bits); half is gone after 2 characters" in str(found)
    found = dataclasses.replace(explained, memory=memory([0.5] * 256))
    assert "remembers more than 256 characters back" in str(found)
    assert "Half of the largest effect is gone after more than 256 characters" in found.page().decode("utf-8")
    assert found.to_json()["memory"]["half"] is None


def test_the_colours_of_a_notebook_have_numbers(explained: cw.Explanation) -> None:
    shown = explained._repr_html_()
    for label in ("under 1", "1 to 2", "2 to 4", "4 to 8", "8 or more"):
        assert f">{label}</span>" in shown


def test_the_colours_of_the_picture_have_numbers(explained: cw.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from PIL import Image

    drawn: list[str] = []
    plain = Figure.add_subplot

    def add_subplot(figure: Figure, *args: object, **options: object) -> object:
        axes = plain(figure, *args, **options)
        legend = axes.legend

        def noted(**given: object) -> object:
            made = legend(**given)
            drawn.extend(text.get_text() for text in made.get_texts())
            return made

        axes.legend = noted
        return axes

    monkeypatch.setattr(Figure, "add_subplot", add_subplot)
    picture = explained.picture(dpi=150)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3).astype(np.int64)
    for colour in SURPRISE:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=1) <= 2).sum() > 50, colour
    assert drawn == ["under 1", "1 to 2", "2 to 4", "4 to 8", "8 or more"]


def test_the_text_before_a_prediction_has_its_own_direction(explained: cw.Explanation) -> None:
    assert b'The prediction after</span> <code dir="auto" lang="" translate="no">' in explained.page()


class Counted(str):
    """A text that notes how much of it is read."""

    most = 0

    def __getitem__(self, key: object) -> str:
        part = super().__getitem__(key)
        type(self).most = max(self.most, len(part))
        return part


def test_no_more_of_a_long_text_is_read_than_is_needed(bracket_run: cw.Run) -> None:
    text = Counted("the (first) word\n" * 60_000)
    found = cw.explain(bracket_run, text, length=200)
    assert found.source == "the first 200 of the 1,020,000 characters of the given text"
    assert Counted.most == 40_000

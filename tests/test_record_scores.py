"""The scores of records, against sums computed one id at a time and against `evaluate`."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation import record_scores
from charwright.generation.cutter import Cutter, Segment
from charwright.generation.record_scores import MOST_TEXT, Score
from ramps import fill_with_ramps

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHABET = "\n abcdefgh"


def generator_of(
    vocabulary: Vocabulary, precision: str = "f32", **options: object
) -> tuple[cw.LanguageModel, cw.Generator]:
    model = fill_with_ramps(cw.LanguageModel(ModelConfig(units=6, embedding_size=4, **options), len(vocabulary)))
    return model, cw.Generator.of(model, vocabulary, precision)


def lines_of(count: int) -> str:
    """Lines of different lengths, some of them empty."""
    return "".join("".join(ALPHABET[1 + (i * j + i) % 9] for j in range(i * 7 % 53)) + "\n" for i in range(count))


def total(scores: list[Score]) -> float:
    return sum(score.bits for score in scores) / sum(score.chars for score in scores)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_thousand_lines_cost_what_evaluate_gives(cell: str) -> None:
    text = lines_of(1000)
    model, generator = generator_of(Vocabulary(ALPHABET), cell=cell, layers=2)
    scores = list(generator.score(text))
    expected = cw.evaluate(model, generator.vocabulary, text)
    assert [score.text for score in scores] == text.splitlines()
    assert [score.line for score in scores] == list(range(1, 1001))
    assert total(scores) == pytest.approx(expected.bits_per_char, abs=1e-6)
    assert sum(score.chars for score in scores) == expected.chars
    assert sum(score.cold for score in scores) == len(text) // 1000 - 1


@pytest.mark.parametrize("by", ["line", "blank", "file", "character"])
@pytest.mark.parametrize(
    "text", ["道可道，非常道。\n\n名可名，非常名。\n無名，天地之始；", "ab\n\n\ncx\r\n", "ab", "x\n"]
)
@pytest.mark.parametrize("vocabulary", [Vocabulary("\nab道可名，。"), ByteVocabulary()], ids=["characters", "bytes"])
def test_all_kinds_of_records_cost_the_same_together(by: str, text: str, vocabulary: Vocabulary) -> None:
    model, generator = generator_of(vocabulary)
    scores = list(generator.score(text, by=by))
    expected = cw.evaluate(model, vocabulary, text)
    assert total(scores) == pytest.approx(expected.bits_per_char, abs=1e-6)
    assert sum(score.unknown_chars for score in scores) == expected.unknown_chars
    assert scores[-1].nats == pytest.approx(scores[-1].bits * math.log(2))


@given(
    st.text("ab \r\n\u3000", max_size=40),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from(["line", "blank", ";"]),
)
def test_records_do_not_depend_on_the_pieces(text: str, cuts: list[int], kind: str) -> None:
    cutter = Cutter(separator="aab") if kind == ";" else Cutter(kind)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [("x", text[begin:end]) for begin, end in pairwise(bounds) if begin < end]

    def records(segments: Iterator[Segment]) -> list[str]:
        whole, ends = "", []
        for segment in segments:
            ends += [len(whole) + int(end) for end in segment.ends]
            whole += segment.text
        assert whole == text
        return [whole[begin:end] for begin, end in pairwise([0, *ends, len(whole)])]

    found = records(cutter.segments(pieces))
    assert found == records(cutter.segments([("x", text)] if text else []))
    if kind == "line":
        assert [record for record in found if record] == text.splitlines(keepends=True) or "\r" in text
    if kind == "blank":
        lines = text.split("\n")[1:-1]
        assert (len([record for record in found if record]) > 1) <= any(not line.strip() for line in lines)
    if kind == ";":
        assert [cutter.stripped(record) for record in found] == text.split("aab")


@pytest.mark.parametrize("blank", ["", " ", " \t ", "\u3000", "\r", "  \r"])
def test_a_line_of_blanks_is_blank(blank: str) -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    text = f"a b \n{blank}\n{blank}\n  c\nd\n{blank}\n"
    for pieces in (text, list(text)):
        found = [(score.text, score.line) for score in generator.score(pieces, by="blank")]
        assert found == [("a b ", 1), ("  c\nd", 4)]


def test_a_separator_that_overlaps_itself() -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    pieces = ["a-", "--", "--b--", "-c"]
    assert [score.text for score in generator.score(pieces, separator="---")] == ["a", "--b", "c"]


def test_line_and_column_are_where_a_record_begins() -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    for pieces in (["ab,c\nd,,e"], list("ab,c\nd,,e")):
        found = [(score.line, score.column, score.text) for score in generator.score(pieces, separator=",")]
        assert found == [(1, 1, "ab"), (1, 4, "c\nd"), (2, 3, ""), (2, 4, "e")]


def test_each_independent_record_is_read_after_a_newline() -> None:
    """As the second line of two, so its first character is predicted."""
    _, generator = generator_of(Vocabulary(ALPHABET))
    text = lines_of(200) + "abc"
    for pieces in ([text], [text[begin : begin + 7] for begin in range(0, len(text), 7)]):
        scores = list(generator.score(pieces, independent=True))
        assert len(scores) == 201
        assert sum(score.chars for score in scores) == len(text)
        for score, line in zip(scores, text.splitlines(keepends=True), strict=True):
            [expected] = generator.engine.scores([generator.vocabulary.encode("\n" + line)])
            assert score.nats == pytest.approx(-expected.sum(), rel=1e-5)
    again = list(generator.score(text.splitlines(keepends=True)[150], independent=True))
    assert again[0].bits == pytest.approx(scores[150].bits, rel=1e-6)


def test_a_text_of_several_blocks_is_read_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warm-up longer than the memory of the model, the cuts make no difference."""
    _, generator = generator_of(Vocabulary(ALPHABET))
    text = lines_of(300)
    [exact] = generator.engine.scores([generator.vocabulary.encode(text)])
    monkeypatch.setattr(record_scores, "BLOCK", 3001)
    warm = list(generator.score(text, by="character", warm_up=200))
    assert np.allclose([score.nats for score in warm[1:]], -exact, atol=1e-5)
    assert not any(score.cold for score in warm)
    cold = list(generator.score(text, by="character"))
    starts = [index for index, score in enumerate(cold) if score.cold]
    assert len(starts) == sum((min(3001, len(text) - at)) // 1000 - 1 for at in range(0, len(text) - 1000, 3001))
    differ = np.flatnonzero(np.abs([score.nats for score in cold[1:]] + exact) > 1e-3) + 1
    assert set(starts) <= set(differ.tolist())
    in_pieces = [(score.text, score.line) for score in generator.score(iter(text))]
    assert in_pieces == [(score.text, score.line) for score in generator.score(text)]


def test_long_records_keep_only_their_beginning() -> None:
    _, generator = generator_of(Vocabulary(ALPHABET), "q8")
    [score] = generator.score("ab" * MOST_TEXT)
    assert (len(score.text), score.chars) == (MOST_TEXT, 2 * MOST_TEXT - 1)


def test_memory_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    _, generator = generator_of(Vocabulary(ALPHABET), "q8")
    monkeypatch.setattr(record_scores, "BLOCK", 20_000)

    def peak(blocks: int, **options: bool) -> int:
        tracemalloc.start()
        for _ in generator.score(("abcdefg hgfedcba\n" * 1000 for _ in range(blocks)), **options):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    for options in ({}, {"independent": True}):
        peak(2, **options)
        assert peak(40, **options) < 1.3 * peak(4, **options) + 100_000


@pytest.mark.parametrize("text", ["", [], ["", ""]])
def test_nothing_has_no_records(text: str | list[str]) -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    assert list(generator.score(text)) == []
    assert list(generator.score(text, independent=True)) == []


def test_the_first_character_alone_has_no_figure() -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    [score] = generator.score("a")
    assert (score.chars, score.bits, score.bits_per_char) == (0, 0.0, None)


def test_the_other_bytes_of_the_first_character_are_in_the_bits_as_in_evaluate() -> None:
    model, generator = generator_of(ByteVocabulary())
    first, second = generator.score("道德", by="character")
    assert (first.chars, first.bits_per_char, second.chars) == (0, None, 1)
    assert first.bits > 0
    expected = cw.evaluate(model, generator.vocabulary, "道德")
    assert first.bits + second.bits == pytest.approx(expected.bits_per_char * expected.chars, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "lines"}, "must be one of line, blank, file, character"),
        ({"separator": ""}, "at least one character"),
        ({"independent": True, "warm_up": 5}, "`warm_up` belongs to"),
        ({"independent": True, "by": "character"}, "several characters"),
        ({"warm_up": -1}, "at least 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    _, generator = generator_of(Vocabulary(ALPHABET))
    with pytest.raises(UsageError, match=message):
        generator.score("ab", **options)  # type: ignore[arg-type]

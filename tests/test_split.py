"""Splitting a text into training and validation parts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import SplitConfig
from charwright.data.split import split_corpus
from charwright.errors import UsageError


def numbered(length: int) -> str:
    """A text of distinct characters: each one shows its position."""
    return "".join(chr(0x10000 + i) for i in range(length))


splits = st.builds(SplitConfig, val_fraction=st.floats(0, 0.5), val_split=st.sampled_from(["lines", "blocks", "tail"]))


@given(length=st.integers(2, 6000), config=splits)
def test_no_character_is_lost_repeated_or_reordered(length, config):
    text = numbered(length)
    training, validation = split_corpus(text, config)
    assert sorted(training + validation) == list(text)
    assert list(training) == sorted(training)
    assert list(validation) == sorted(validation)


@given(length=st.integers(2, 6000), config=splits)
def test_both_parts_are_usable(length, config):
    training, validation = split_corpus(numbered(length), config)
    assert len(training) >= 2
    assert len(validation) != 1
    if validation:
        assert length * config.val_fraction - 1e-6 <= len(validation) < length * config.val_fraction + 1


def test_the_published_tail_of_tiny_shakespeare(tinyshakespeare):
    training, validation = split_corpus(tinyshakespeare, SplitConfig(val_fraction=0.1, val_split="tail"))
    assert len(training) == 1_003_854  # int(0.9 * length), as in published results
    assert len(validation) == 111_540
    assert training + validation == tinyshakespeare


def test_blocks_are_spread_evenly():
    text = numbered(20_000)
    training, validation = split_corpus(text, SplitConfig(val_fraction=0.1, val_split="blocks"))
    assert len(validation) == 2000
    for section in range(20):
        begin = section * 1000
        assert validation[section * 100 : section * 100 + 100] == text[begin + 900 : begin + 1000]
        assert training[section * 900 : section * 900 + 900] == text[begin : begin + 900]


def test_blocks_sample_every_letter_of_an_alphabetical_list():
    text = "".join(letter * 1000 for letter in "abcdefghijklmnopqrst")
    assert set(split_corpus(text, SplitConfig(val_split="blocks"))[1]) == set(text)
    assert set(split_corpus(text, SplitConfig(val_split="tail"))[1]) < set(text)


def test_short_texts_have_fewer_blocks_of_at_least_100_characters():
    text = numbered(3000)
    validation = split_corpus(text, SplitConfig(val_fraction=0.1))[1]
    assert validation == text[900:1000] + text[1900:2000] + text[2900:3000]


prose = st.text(alphabet="ab. \n。", min_size=2, max_size=3000)


@given(text=prose, fraction=st.floats(0, 0.5))
def test_blocks_of_lines_are_about_as_long_as_requested(text: str, fraction: float) -> None:
    training, validation = split_corpus(text, SplitConfig(val_fraction=fraction))
    assert len(training) >= 2
    assert len(training) + len(validation) == len(text)
    wanted = len(split_corpus(text, SplitConfig(val_fraction=fraction, val_split="blocks"))[1])
    blocks = max(1, min(20, wanted // 100))
    assert wanted // 2 - blocks <= len(validation) <= 2 * wanted + blocks


def test_blocks_are_cut_at_the_nearest_lines() -> None:
    lines = [f"{i:03d} " + "x" * (i % 37) + "\n" for i in range(1000)]
    training, validation = split_corpus("".join(lines), SplitConfig())
    assert {*training.splitlines(True), *validation.splitlines(True)} == {*lines}, "no line is cut"
    assert len(validation) == pytest.approx(len("".join(lines)) / 10, rel=0.05)
    held_out = [int(line[:3]) for line in validation.splitlines()]
    assert [b - a > 1 for a, b in itertools.pairwise(held_out)].count(True) == 19, "20 blocks"


def test_without_lines_close_by_a_cut_is_at_the_end_of_a_sentence_or_a_word() -> None:
    sentences = "他說：「今天的天氣很好。」我們就出門了。" * 300
    assert split_corpus(sentences, SplitConfig())[1].startswith(("我", "他"))
    words = "alpha beta gamma delta " * 300
    training, validation = split_corpus(words, SplitConfig())
    assert {*training.split(), *validation.split()} == {"alpha", "beta", "gamma", "delta"}


@pytest.mark.parametrize("kind", ["lines", "blocks", "tail"])
@pytest.mark.parametrize(("length", "fraction"), [(1000, 0), (2, 0.5), (3, 0.5), (10, 0.05)])
def test_no_validation_text_when_none_is_requested_or_possible(kind, length, fraction):
    text = numbered(length)
    assert split_corpus(text, SplitConfig(val_fraction=fraction, val_split=kind)) == (text, "")


def test_records_stay_records() -> None:
    records = cw.Records.of(["ab", "c", "de"] * 20, "\n", ["x", "y", "z"] * 20)
    training, held_out = cw.split_corpus(records, cw.SplitConfig())
    assert isinstance(held_out, cw.Records)
    assert training.count + held_out.count == 60
    assert training.labels is not None
    with pytest.raises(UsageError, match="60 records and 1 labels"):
        cw.Records.of(["ab"] * 60, "\n", ["x"])


@pytest.mark.parametrize(("length", "fraction", "held_out"), [(4, 0.5, 2), (20, 0.1, 2), (19, 0.1, 2), (10, 0.1, 0)])
def test_two_characters_are_the_least_to_hold_out(length: int, fraction: float, held_out: int) -> None:
    config = SplitConfig(val_fraction=fraction, val_split="tail")
    assert len(split_corpus(numbered(length), config)[1]) == held_out


def test_what_is_no_text_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="pass its text"):
        split_corpus(cw.Corpus.from_text("abc", "x"))  # type: ignore[call-overload]
    with pytest.raises(UsageError) as refused:
        split_corpus(b"abc")  # type: ignore[call-overload]
    assert "pass its text" not in str(refused.value)

"""Beam search: it finds the most likely of all texts if all can be tried."""

from __future__ import annotations

from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.beams import Found, beam_search
from charwright.generation.generator import Generator
from charwright.generation.masks import allowed
from charwright.generation.session import prompt_ids
from charwright.generation.streams import Stream
from writers import LETTERS, random_writer

FEW = Vocabulary("\nab.")


@cache
def writer(vocabulary: Vocabulary = FEW, precision: str = "f32", cell: str = "gru", ngram_bits: int = 0) -> Generator:
    return random_writer(vocabulary, precision, cell=cell, ngram_bits=ngram_bits)


def search(of: Generator, prompt: str, beams: int, **options: Any) -> Found:
    config = GenerationConfig(**options)
    return beam_search(
        of.engine, of.vocabulary, prompt_ids(of.vocabulary, prompt), ~allowed(of.vocabulary, config),
        beams=beams, length=config.length, stop=config.stop, until=config.until,
    )  # fmt: skip


def total(of: Generator, prompt: str, text: str) -> float:
    return sum(of.logprobs(prompt + text)[len(prompt) - 1 :])


@pytest.mark.parametrize("precision", ["q8", "f32"])
@pytest.mark.parametrize(("cell", "ngram_bits"), [("gru", 0), ("igru", 0), ("lstm", 0), ("rnn", 10)])
@pytest.mark.parametrize("prompt", ["a", "ba.\n", "bbb"])
def test_with_enough_beams_it_finds_the_most_likely_of_all(
    precision: str, cell: str, ngram_bits: int, prompt: str
) -> None:
    of = writer(precision=precision, cell=cell, ngram_bits=ngram_bits)
    every = ["".join(letters) for letters in product(FEW.characters, repeat=4)]
    best = max(every, key=lambda text: total(of, prompt, text))
    found = search(of, prompt, 4**4, length=4)
    assert found.text == best
    assert found.ended == "length"
    np.testing.assert_allclose(found.logprobs, of.logprobs(prompt + best)[len(prompt) - 1 :], rtol=1e-9)


@pytest.mark.parametrize("prompt", ["a", "ba.\n", "bbb", "b"])
@pytest.mark.parametrize("stop", ["ab", "\n", ".", "aa"])
def test_with_a_stop_string_it_finds_the_most_likely_for_its_length(prompt: str, stop: str) -> None:
    """The stop string counts: otherwise an empty text would be the most likely."""
    of, ends = writer(), {}
    for letters in product(FEW.characters, repeat=4):
        text = "".join(letters)
        size = text.index(stop) + len(stop) if stop in text else 4
        ends[text[:size]] = total(of, prompt, text[:size]) / size
    best = max(ends, key=lambda text: ends[text])
    found = search(of, prompt, 4**4, length=4, stop=(stop,))
    assert found.text == best.removesuffix(stop) if stop in best else best
    assert (found.ended, found.stop) == (("stop", stop) if stop in best else ("length", None))
    assert found.mean == pytest.approx(ends[best])
    assert len(found.logprobs) == len(found.text)


@pytest.mark.parametrize("vocabulary", [FEW, LETTERS])
@pytest.mark.parametrize("precision", ["q8", "f32"])
def test_one_beam_is_temperature_0(vocabulary: Vocabulary, precision: str) -> None:
    of = writer(vocabulary, precision)
    for prompt, options in [("a", {}), ("bab", {"ban": "a"}), ("b", {"stop": ("ab", ".")}), ("", {"until": "line"})]:
        greedy = of.generate(prompt, length=60, temperature=0, **options)[0]
        found = search(of, prompt, 1, length=60, **options)
        assert (found.text, found.ended, found.stop) == (greedy.continuation, greedy.ended, greedy.stop)


@pytest.mark.parametrize("cell", ["gru", "igru", "lstm", "rnn"])
@pytest.mark.parametrize("prompt", ["a", "b.\n", "cab", "é中"])
def test_more_beams_find_more_likely_texts(cell: str, prompt: str) -> None:
    """Not in general, but here; and never a less likely one than greedy decoding."""
    of = writer(LETTERS, cell=cell)
    found = [total(of, prompt, search(of, prompt, beams, length=30).text) for beams in (1, 4, 32)]
    assert found[0] <= found[1] + 1e-9
    assert found[0] <= found[2] + 1e-9


def test_masked_ids_are_not_generated() -> None:
    of = writer(LETTERS)
    assert set(search(of, "a", 5, length=40, only="ab\n").text) <= set("ab\n")
    assert not set(search(of, "a", 5, length=40, ban="ab\n").text) & set("ab\n")


@pytest.mark.parametrize("beams", [1, 3, 8])
@pytest.mark.parametrize("until", ["line", "2 lines", "sentence"])
def test_it_ends_where_a_sampled_text_would(beams: int, until: str) -> None:
    found = search(writer(), "ab", beams, length=60, until=until)
    assert len(found.logprobs) == len(found.text)
    if found.ended == "sentence":
        assert found.text.endswith(".")
    elif found.ended != "length":
        assert found.text.strip("\n").count("\n") == int(until[0] == "2")


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_byte_level_model_generates_whole_characters(beams: int, length: int) -> None:
    of = writer(ByteVocabulary())
    found = search(of, "中", beams, length=length)
    assert len(found.text) == len(found.logprobs) == length
    found.text.encode("utf-8")


class Chain:
    """A stand-in for the engine, of bytes that each have their followers: {"a": {"b": 0.9, "c": 0.1}}."""

    vocabulary_size = 257

    def __init__(self, followers: dict[str, dict[str, float]]) -> None:
        self.table = np.full((257, 257), -1e9)
        for before, chances in followers.items():
            for after, chance in chances.items():
                # Within a character of several bytes, each follows the one before.
                ids = [ord(before) + 1, *(byte + 1 for byte in after.encode())]
                for index, (one, other) in enumerate(pairwise(ids)):
                    self.table[one, other] = np.log(chance) if index == 0 else 0.0

    def zero_state(self, streams: int = 1) -> np.ndarray:
        return np.zeros((streams, 1, 1, 16), dtype=np.int32)

    def step(self, ids: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self.table[ids]

    def advance(self, streams: list[Stream], steps: int) -> None:
        for stream in streams:
            stream.at += steps
            assert stream.logits is not None
            stream.logits[:] = self.table[stream.ids[stream.at - 1]]


def follow(chain: Chain, beams: int, **options: Any) -> Found:
    masked = np.zeros(257, dtype=np.bool_)
    return beam_search(chain, ByteVocabulary(), np.array([ord("x") + 1], np.int32), masked, beams=beams, **options)  # type: ignore[arg-type]


def test_two_beams_find_what_one_misses() -> None:
    """The more likely first character has no likely continuation."""
    chain = Chain({"x": {"a": 0.6, "b": 0.4}, "a": dict.fromkeys("cdef", 0.25), "b": {"b": 0.9, "c": 0.1}})
    assert follow(chain, 1, length=2).text[0] == "a"
    found = follow(chain, 2, length=2)
    assert found.text == "bb"
    np.testing.assert_allclose(found.logprobs, np.log([0.4, 0.9]))
    assert found.mean == pytest.approx(np.log(0.36) / 2)


def test_shorter_texts_are_compared_per_character() -> None:
    """A stop string at once, of ln 0.3 in one character, against ln 0.7 + ln 0.5 in two."""
    chain = Chain({"x": {"!": 0.3, "a": 0.7}, "a": {"a": 0.5, "b": 0.5}})
    found = follow(chain, 4, length=2, stop=("!",))
    assert (found.text, found.ended) == ("aa", "length")
    chain = Chain({"x": {"!": 0.7, "a": 0.3}, "a": {"a": 0.5, "b": 0.5}})
    found = follow(chain, 4, length=2, stop=("!",))
    assert (found.text, found.ended, found.stop, found.logprobs) == ("", "stop", "!", [])


def test_logprobs_of_bytes_are_sums_over_characters() -> None:
    chain = Chain({"x": {"中": 0.6, "a": 0.4}, "\xad": {"a": 0.5, "é": 0.5}, "a": {"b": 1.0}, "\xa9": {"a": 1.0}})
    for beams in (1, 2, 9):
        found = follow(chain, beams, length=1)
        assert found.text == "中"
        np.testing.assert_allclose(found.logprobs, np.log([0.6]))
    found = follow(chain, 4, length=4)
    assert found.text == "中éab"
    np.testing.assert_allclose(found.logprobs, np.log([0.6, 0.5, 1, 1]), atol=1e-12)


def test_a_long_prompt_is_read_as_any_text_is() -> None:
    of = writer(LETTERS)
    prompt = "ab.\nc" * 900
    assert search(of, prompt, 1, length=20).text == of.generate(prompt, length=20, temperature=0)[0].continuation


def test_the_generator_gives_a_text() -> None:
    of = writer(LETTERS)
    text = of.beam_search("ab", GenerationConfig(length=20, stop=(".",)), 4)
    found = search(of, "ab", 4, length=20, stop=(".",))
    assert (text.prompt, text.continuation, text.ended) == ("ab", found.text, found.ended)
    assert text.logprobs == tuple(found.logprobs)


@pytest.mark.parametrize("beams", [0, -1])
def test_a_search_without_beams_is_refused(beams: int) -> None:
    with pytest.raises(UsageError, match=f"at least one beam, not {beams}"):
        writer().beam_search("a", GenerationConfig(length=5), beams)

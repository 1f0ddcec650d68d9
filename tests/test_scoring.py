"""The scores of characters: those of a prompt, the alternatives to each, and taking them piece by piece."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.draft import Draft
from charwright.generation.generator import Generator
from charwright.generation.session import MOST_ALTERNATIVES, Session
from charwright.generation.streams import Alternatives, Stream
from writers import LETTERS, Scripted, random_writer

KINDS = [("q8", None), ("f32", None), ("q8", "none"), ("bf16", "none")]


@cache
def writer(precision: str = "q8", variant: str | None = None, level: str = "character") -> Generator:
    return random_writer(ByteVocabulary() if level == "byte" else LETTERS, precision, variant=variant)


def session(of: Generator | None = None) -> Session:
    of = of or writer()
    return Session(of.engine, of.vocabulary)


def finish(texts: Session, draft: Draft, most: int | None = None) -> str:
    text = draft.pop()
    while draft.ended is None:
        texts.advance(most)
        text += draft.pop()
    return text


def nameless(length: int = 30, **options: object) -> GenerationConfig:
    return GenerationConfig(length=length, seed=4, temperature=1.5, **options)  # type: ignore[arg-type]


# The prompt.


@pytest.mark.parametrize(("precision", "variant"), KINDS)
@settings(max_examples=15)
@given(st.text("ab\n 中ЖЩ🙂", min_size=1, max_size=40), st.integers(1, 9), st.booleans())
@example("Ж", 1, True)
@example("aЖa", 1, False)
def test_each_character_of_a_prompt_is_scored(
    precision: str, variant: str | None, prompt: str, most: int, score_only: bool
) -> None:
    of = writer(precision, variant)
    texts = session(of)
    draft = texts.join(prompt, nameless(), logprobs=True, echo=True, score_only=score_only)
    finish(texts, draft, most)
    ids = LETTERS.encode(prompt)
    unknown = math.log(1_114_112 - len(LETTERS))
    expected = [math.nan, *of.engine.scores([ids])[0] - unknown * (ids[1:] == 0)]
    np.testing.assert_allclose(draft.prompt_logprobs, expected, rtol=1e-12)
    assert draft.prompt_alternatives == []


@pytest.mark.parametrize("variant", [None, "none"])
@pytest.mark.parametrize("length", [256, 257, 2100, 6000])
def test_a_prompt_longer_than_the_buffer_is_scored(variant: str | None, length: int) -> None:
    """Also when another text keeps the calls short."""
    of = writer("q8", variant)
    random = np.random.Generator(np.random.Philox(3))
    prompt = "".join(random.choice(list("abcde ЖA.\n"), length))
    texts = Session(of.engine, of.vocabulary, call_s=3600)  # The steps of a call do not depend on the clock.
    draft = texts.join(prompt, nameless(5), alternatives=3, echo=True, score_only=True)
    other = texts.join("a", nameless(2000), logprobs=True)
    for _ in range(length // 100):
        texts.advance(100)
        without_room(draft.stream)
    finish(texts, draft)
    finish(texts, other)
    ids = LETTERS.encode(prompt)
    expected = of.engine.scores([ids])[0] - math.log(1_114_112 - len(LETTERS)) * (ids[1:] == 0)
    np.testing.assert_allclose(draft.prompt_logprobs[1:], expected, rtol=1e-12)
    assert len(draft.prompt_alternatives) == length
    assert draft.stream.forgotten > 0 or length < 6000


def without_room(stream: Stream) -> None:
    """So that it drops what it has read long ago in order to read on."""
    assert stream.scores is not None
    assert stream.alternatives is not None
    used, others = slice(0, stream.length), stream.alternatives
    stream.ids, stream.scores = stream.ids[used].copy(), stream.scores[used].copy()
    stream.alternatives = Alternatives(others.ids[used].copy(), others.scores[used].copy())


@settings(max_examples=25)
@given(st.text("aé\u07ff\u0800中🙂\ud800", min_size=1, max_size=12), st.integers(1, 5))
@example("中", 1)
@example("🙂", 2)
def test_the_scores_of_bytes_are_added_up(prompt: str, most: int) -> None:
    of = writer(level="byte")
    texts = session(of)
    draft = texts.join(prompt, nameless(3), logprobs=True, echo=True)
    finish(texts, draft, most)
    scores = [math.nan, *of.engine.scores([of.vocabulary.encode(prompt)])[0]]
    expected, at = [], 0
    for character in prompt:
        size = len(character.encode("utf-8", "surrogatepass"))
        expected.append(sum(scores[at : at + size]))
        at += size
    np.testing.assert_allclose(draft.prompt_logprobs, expected, rtol=1e-12)


def test_the_scores_of_a_prompt_are_there_before_the_text_ends() -> None:
    texts = session()
    draft = texts.join("abc", nameless(), logprobs=True, echo=True)
    texts.advance(1)
    assert draft.prompt_logprobs == []
    texts.advance(1)
    assert len(draft.prompt_logprobs) == 3
    assert draft.ended is None


def test_without_echo_or_without_scores_the_prompt_has_none() -> None:
    texts = session()
    for options in ({"logprobs": True}, {"echo": True}, {"alternatives": 2}):
        draft = texts.join("abc", nameless(), **options)
        finish(texts, draft)
        assert draft.prompt_logprobs == draft.prompt_alternatives == []


def test_an_empty_prompt_is_not_scored() -> None:
    """What the model reads instead is not part of the text."""
    texts = session()
    draft = texts.join("", nameless(), alternatives=2, echo=True)
    text = finish(texts, draft)
    assert draft.prompt_logprobs == draft.prompt_alternatives == []
    assert len(draft.logprobs) == len(text) == 30
    assert texts.join("", nameless(), alternatives=2, echo=True, score_only=True).ended == "length"


# Only the prompt.


@pytest.mark.parametrize("prompt", ["a", "ab", "ab" * 800])
def test_a_text_that_is_only_scored_draws_nothing(prompt: str) -> None:
    """And the texts beside it are as they would be."""
    texts = session()
    other = texts.join("b", nameless(300), 1)
    draft = texts.join(prompt, nameless(max_copy=3), guard=lambda _: np.ones(len(LETTERS), np.bool_), score_only=True,
                       logprobs=True, echo=True)  # fmt: skip
    assert finish(texts, draft) == ""
    assert (draft.ended, draft.shown, draft.stream.drawn, draft.logprobs) == ("length", 0, 0, [])
    assert len(draft.prompt_logprobs) == len(prompt)
    alone = session()
    assert finish(texts, other) == finish(alone, alone.join("b", nameless(300), 1))


def test_a_text_that_is_only_scored_ends_at_once_if_there_is_nothing_to_score() -> None:
    texts = session()
    for options in ({}, {"logprobs": True}, {"echo": True}):
        assert texts.join("abc", nameless(), score_only=True, **options).ended == "length"
    assert texts.join("a", nameless(), score_only=True, logprobs=True, echo=True).prompt_logprobs != []
    assert texts.drafts == []


def test_a_text_may_be_written_after_a_prompt_that_was_only_scored() -> None:
    texts = session()
    draft = texts.join("abc", nameless(), score_only=True, logprobs=True, echo=True)
    finish(texts, draft)
    again = texts.join("", nameless(), start=draft.paused())
    assert finish(texts, again) == finish(texts, texts.join("abc", nameless()))


# Alternatives.


@pytest.mark.parametrize(("precision", "variant"), KINDS)
@settings(max_examples=10)
@given(st.text("ab\n 中Ж", min_size=1, max_size=9), st.integers(1, 7), st.sampled_from([(), ("a", "b.")]))
def test_each_character_has_its_alternatives(
    precision: str, variant: str | None, prompt: str, most: int, stop: tuple[str, ...]
) -> None:
    """The most likely characters of the model itself, also where the sampler may not choose them."""
    of = writer(precision, variant)
    texts = session(of)
    draft = texts.join(prompt, nameless(top_k=2, ban="cd", stop=stop), alternatives=4, echo=True)
    text = finish(texts, draft, most)
    assert len(draft.alternatives) == len(draft.logprobs) == len(text)
    assert len(draft.prompt_alternatives) == len(draft.prompt_logprobs) == len(prompt)
    assert draft.prompt_alternatives[0] == ()
    state = of.engine.zero_state()
    for index, found in zip(
        LETTERS.encode(prompt + text)[:-1], (draft.prompt_alternatives + draft.alternatives)[1:], strict=True
    ):
        logits = of.engine.step(np.array([index]), state)[0]
        scores = logits - np.logaddexp.reduce(logits)
        best = np.argsort(-logits, kind="stable")[:4]
        assert [token for token, _ in found] == [LETTERS.tokens[i] for i in best]
        np.testing.assert_allclose([score for _, score in found], scores[best], rtol=1e-9)


def test_unknown_characters_are_an_alternative_like_others() -> None:
    of = random_writer(unknown_bias=30.0)
    texts = session(of)
    draft = texts.join("a", nameless(), alternatives=2)
    assert "[UNK]" not in finish(texts, draft)
    assert {found[0][0] for found in draft.alternatives} == {"[UNK]"}
    assert all(found[0][1] > -1e-6 for found in draft.alternatives)


def test_there_are_no_more_alternatives_than_tokens() -> None:
    of = random_writer(Vocabulary("ab"))
    texts = session(of)
    draft = texts.join("a", nameless(), alternatives=20, echo=True)
    finish(texts, draft)
    assert all({token for token, _ in found} == {"[UNK]", "a", "b"} for found in draft.alternatives)
    total = sum(math.exp(score) for _, score in draft.alternatives[0])
    assert total == pytest.approx(1)


def test_what_cannot_be_scored_is_refused() -> None:
    texts = session()
    for count in (-1, MOST_ALTERNATIVES + 1):
        with pytest.raises(UsageError, match=f"from 0 to 20 alternatives, not {count}"):
            texts.join("a", nameless(), alternatives=count)
    with pytest.raises(UsageError, match="generates bytes: only a model of characters has alternatives"):
        Session(Scripted.of_bytes(b"ab"), ByteVocabulary()).join("a", nameless(), alternatives=1)  # type: ignore[arg-type]
    draft = texts.join("a", nameless())
    finish(texts, draft)
    for options in ({"echo": True}, {"score_only": True}):
        with pytest.raises(UsageError, match="prompt of a continued text cannot be scored"):
            texts.join("b", nameless(), start=draft.paused(), **options)
    assert texts.drafts == []


@pytest.mark.parametrize("wanted", [True, False])
def test_a_continued_text_has_the_scores_that_were_requested_for_it(wanted: bool) -> None:
    """Whatever was requested before the pause; what was sampled before it has no scores."""
    texts = session()
    draft = texts.join("a", nameless(stop=("zz",), until="50 lines"), alternatives=0 if wanted else 3)
    texts.advance(5)
    texts.leave(draft)
    start = draft.paused()
    start.unshown = LETTERS.encode("ab")
    again = texts.join("", nameless(9), start=start, alternatives=2 if wanted else 0)
    text = finish(texts, again)
    assert text[:2] == "ab"
    assert len(again.logprobs) == len(again.alternatives) == (9 if wanted else 0)
    assert [len(found) for found in again.alternatives] == ([0, 0] + [2] * 7 if wanted else [])
    assert np.isnan(again.logprobs[:2]).all()
    assert (again.stream.scores is None) == (again.stream.alternatives is None) == (not wanted)


# Piece by piece.


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["take", "pop", "wait"])), max_size=12),
    st.sampled_from([(), ("a", "b."), ("中 ",)]),
    st.sampled_from([None, "line", "sentence"]),
    st.sampled_from(["character", "byte"]),
)
def test_the_pieces_are_the_whole(
    acts: list[tuple[int, str]], stop: tuple[str, ...], until: str | None, level: str
) -> None:
    """Each piece with the scores of its own characters, however it was cut."""
    of, count = writer(level=level), 2 if level == "character" else 0
    config = dataclasses.replace(nameless(40), stop=stop, until=until)
    whole, texts = session(of), session(of)
    expected, draft = (each.join("ab", config, logprobs=True, alternatives=count) for each in (whole, texts))
    text = finish(whole, expected)
    at = 0
    for most, act in [*acts, *[(7, "take")] * 200]:
        if act == "pop":
            at += len(draft.pop())
        elif act == "take":
            piece = draft.take()
            end = at + len(piece.text)
            assert piece.text == text[at:end]
            assert piece.logprobs == expected.logprobs[at:end]
            assert piece.alternatives == expected.alternatives[at:end]
            at = end
            assert len(draft.logprobs) <= 5  # what may be an ending is held back
        if draft.ended is None:
            texts.advance(most)
    assert at == len(text)
    assert draft.take().text == ""
    assert draft.logprobs == draft.alternatives == []


def test_a_fragment_without_scores() -> None:
    texts = session()
    draft = texts.join("a", nameless(6))
    texts.advance(1)
    assert len((piece := draft.take()).text) == 1
    assert piece.logprobs == piece.alternatives == []

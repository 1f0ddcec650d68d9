"""Batches of texts: each as it would be alone, in steps of any size, and paused at any step."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, OptionError, UsageError
from charwright.generation.draft import Draft
from charwright.generation.engine import MOST_STEPS
from charwright.generation.generator import Generator
from charwright.generation.masks import allowed
from charwright.generation.repetition import PENALTY_WINDOW
from charwright.generation.session import MOST_PROMPT, Session, prompt_ids
from charwright.generation.streams import ROOM
from writers import LETTERS, Scripted, random_writer

KINDS = [("q8", None), ("f32", None), ("q8", "none"), ("f32", "none"), ("bf16", None)]


@cache
def writer(precision: str = "q8", variant: str | None = None) -> Generator:
    return random_writer(precision=precision, variant=variant)


def session(of: Generator | None = None, *, one_by_one: bool = False) -> Session:
    of = of or writer()
    return Session(of.engine, of.vocabulary, one_by_one=one_by_one)


def scripted(data: bytes, **options: Any) -> Session:
    """A session whose texts are these bytes, over and over."""
    return Session(Scripted.of_bytes(data), ByteVocabulary(), **options)  # type: ignore[arg-type]


def finish(texts: Session, draft: Draft) -> str:
    text = draft.pop()
    while draft.ended is None:
        texts.advance()
        text += draft.pop()
    return text


CONFIGS = st.builds(
    GenerationConfig,
    length=st.integers(1, 60),
    temperature=st.sampled_from([0, 0.5, 1, 2.5]),
    top_k=st.none() | st.integers(1, 6),
    top_p=st.none() | st.sampled_from([0.3, 0.9]),
    min_p=st.none() | st.just(0.1),
    repetition_penalty=st.sampled_from([1, 3]),
    ban=st.sampled_from(["", "ab"]),
    only=st.none() | st.just("ab \n."),
    stop=st.sampled_from([(), ("a",), ("b ", "aa"), ("éé", "中")]),
    until=st.sampled_from([None, "line", "2 lines", "paragraph", "sentence"]),
    seed=st.integers(0, 2**63 - 1),
)
PROMPTS = st.text("ab\n 中Ж", max_size=12)
VISITORS = st.lists(
    st.tuples(PROMPTS, CONFIGS, st.integers(0, 5), st.integers(0, 12), st.none() | st.integers(1, 30)),
    min_size=1,
    max_size=6,
)  # prompt, config, stream, when it joins, and after how many calls it leaves


@pytest.mark.parametrize(("precision", "variant"), KINDS)
@settings(max_examples=20)
@given(VISITORS, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_a_text_does_not_depend_on_the_others(
    precision: str, variant: str | None, visitors: list, most: list[int], one_by_one: bool
) -> None:
    texts = session(writer(precision, variant), one_by_one=one_by_one)
    drafts: dict[int, Draft] = {}
    for call in range(400):
        for number, (prompt, config, stream, joins, stays) in enumerate(visitors):
            if joins == call:
                drafts[number] = texts.join(prompt, config, stream)
            elif stays is not None and joins + stays == call and drafts[number] in texts.drafts:
                texts.leave(drafts[number])
        texts.advance(most[call % len(most)])
    assert not texts.drafts
    for number, (prompt, config, stream, _, stays) in enumerate(visitors):
        draft, alone = drafts[number], session(writer(precision, variant))
        expected = alone.join(prompt, config, stream)
        text = finish(alone, expected)
        if draft.ended is None:
            assert stays is not None
            assert text.startswith(draft.pop())
        else:
            assert (draft.pop(), draft.ended, draft.endings.stop) == (text, expected.ended, expected.endings.stop)


def test_leaving_removes_the_right_text() -> None:
    texts = session()
    first, second, third = (texts.join("a", GenerationConfig(length=9, seed=1), index) for index in range(3))
    texts.leave(second)
    assert texts.drafts == [first, third]
    texts.leave(third)
    assert texts.drafts == [first]


def test_advance_returns_its_texts_and_removes_those_that_ended() -> None:
    texts = session()
    short, long = (texts.join("a", GenerationConfig(length=length, seed=1)) for length in (2, 20))
    assert texts.advance(1) == [short, long]
    assert texts.advance(1) == [short, long]
    assert (short.ended, short.shown, short.left) == ("length", 2, 0)
    assert (long.ended, long.shown, long.left) == (None, 2, 18)
    assert texts.drafts == [long]
    assert texts.advance(1) == [long]
    finish(texts, long)
    assert texts.advance() == []


def test_the_same_key_gives_the_same_text_and_another_another() -> None:
    config = GenerationConfig(length=50, seed=7, temperature=1.2)

    def text(stream: int, seed: int = 7) -> str:
        texts = session()
        return finish(texts, texts.join("a", dataclasses.replace(config, seed=seed), stream))

    assert text(0) == text(0)
    assert len({text(0), text(1), text(7), text(0, seed=8), text(7, seed=0)}) == 5


# Masks and endings.


@settings(max_examples=40)
@given(CONFIGS, PROMPTS)
def test_a_text_obeys_its_options(config: GenerationConfig, prompt: str) -> None:
    texts = session()
    draft = texts.join(prompt, config)
    text = finish(texts, draft)
    assert len(text) <= config.length
    assert not set(text) & set(config.ban)
    assert config.only is None or set(text) <= set(config.only)
    assert not any(stop in text for stop in config.stop)
    assert (len(text) == config.length) or draft.ended != "length"
    assert draft.ended == "stop" or draft.endings.stop is None
    if config.until == "line":
        assert "\n" not in text.lstrip(" \n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ""}, "`only`: must name at least one character"),
        ({"only": "ЖЩ"}, "`only`: the model knows none of the characters in 'ЖЩ'"),
        ({"ban": LETTERS.characters}, "`ban`: the model has no character left to generate"),
        ({"only": "ab", "ban": "bac"}, "`only` and `ban`: the model has no character left to generate"),
    ],
)
def test_no_character_allowed(options: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        session().join("a", GenerationConfig(**options))
    assert str(caught.value) == said
    assert caught.value.options == tuple(options)


def test_only_and_ban_are_characters_that_a_model_of_bytes_writes_in_one() -> None:
    vocabulary = ByteVocabulary()
    with pytest.raises(UsageError, match="`ban`: this model generates bytes"):
        allowed(vocabulary, GenerationConfig(ban="中"))
    assert np.flatnonzero(allowed(vocabulary, GenerationConfig(only="ab\n"))).tolist() == [11, 98, 99]


def test_unknown_characters_may_be_banned_and_named_and_unknown_is_never_generated() -> None:
    assert not allowed(LETTERS, GenerationConfig(ban="Ж"))[0]
    assert LETTERS.decode(np.flatnonzero(allowed(LETTERS, GenerationConfig(only="Жa")))) == "a"


def test_prompts_are_read_to_a_length() -> None:
    assert len(prompt_ids(LETTERS, "a" * MOST_PROMPT)) == MOST_PROMPT
    with pytest.raises(UsageError, match="more than 1,000,000 characters"):
        prompt_ids(LETTERS, "a" * (MOST_PROMPT + 1))


# The guard.


@pytest.mark.parametrize("prompt", ["", "ab" * 700])
def test_a_guard_is_applied_at_every_step(prompt: str) -> None:
    """It forbids repeating the last id, and an `a` before the tenth character."""
    seen: list[int] = []
    a = int(LETTERS.encode("a")[0])

    def guard(ids: np.ndarray) -> np.ndarray:
        seen.append(len(ids))
        forbidden = np.zeros(len(LETTERS), dtype=np.bool_)
        forbidden[ids[-1]] = True
        forbidden[a] = len(seen) < 10
        return forbidden

    texts = session()
    draft = texts.join(prompt, GenerationConfig(length=40, seed=1, ban="b", temperature=2), guard=guard)
    text = finish(texts, draft)
    first = max(1, len(prompt))
    assert seen == list(range(first, first + 40))
    assert "b" not in text
    assert "a" not in text[:9]
    assert "a" in text
    assert all(one != other for one, other in pairwise(text))


def test_a_guard_that_forbids_everything_is_ignored() -> None:
    texts = session()
    draft = texts.join(
        "a", GenerationConfig(length=40, seed=1, ban="b"), guard=lambda _: np.ones(len(LETTERS), dtype=np.bool_)
    )
    alone = session()
    assert finish(texts, draft) == finish(alone, alone.join("a", GenerationConfig(length=40, seed=1, ban="b")))


# Log-probabilities.


@pytest.mark.parametrize(("precision", "variant"), KINDS)
@settings(max_examples=10)
@given(CONFIGS, PROMPTS.filter(bool))
def test_logprobs_are_the_models_own(
    precision: str, variant: str | None, config: GenerationConfig, prompt: str
) -> None:
    of = writer(precision, variant)
    texts = session(of)
    draft = texts.join(prompt, config, logprobs=True)
    text = finish(texts, draft)
    expected = of.logprobs(prompt + text)[len(prompt) - 1 :] if len(prompt + text) > 1 else []
    np.testing.assert_allclose(draft.logprobs, expected, rtol=1e-9)


def test_logprobs_of_bytes_are_sums_over_characters() -> None:
    """Draw n of the stand-in has an ln p of -n."""
    texts = scripted("aé中🙂".encode())
    draft = texts.join("x", GenerationConfig(length=5), logprobs=True)
    assert finish(texts, draft) == "aé中🙂a"
    assert draft.logprobs == [-1, -2 - 3, -4 - 5 - 6, -7 - 8 - 9 - 10, -11]


def test_logprobs_of_broken_bytes() -> None:
    texts = scripted(b"a\xe4b")
    draft = texts.join("x", GenerationConfig(length=5), logprobs=True)
    assert finish(texts, draft) == "a\ufffdba\ufffd"
    assert draft.logprobs == [-1, -2 - 3, 0, -4, -5 - 6]


# Bytes.


def test_characters_of_several_bytes_come_whole() -> None:
    texts = scripted("aé中🙂".encode())
    draft = texts.join("x", GenerationConfig(length=6))
    pieces = []
    while draft.ended is None:
        texts.advance(1)
        pieces.append(draft.pop())
    assert [piece for piece in pieces if piece] == ["a", "é", "中", "🙂", "a", "é"]


def test_stop_strings_of_several_bytes() -> None:
    texts = scripted("你好🙂世界".encode())
    draft = texts.join("x", GenerationConfig(stop=("🙂世", "界你")))
    assert (finish(texts, draft), draft.ended, draft.endings.stop) == ("你好", "stop", "🙂世")


# Long texts.


def test_a_long_text_takes_no_more_memory_than_a_short_one() -> None:
    texts = session()
    draft = texts.join("a", GenerationConfig(length=40_000, seed=1))
    written = 0
    while draft.ended is None:
        texts.advance()
        written += len(draft.pop())
        assert len(draft.stream.ids) <= max(ROOM, 2 * (PENALTY_WINDOW + MOST_STEPS + 2))
    assert written == 40_000
    assert draft.stream.forgotten > 30_000


def test_a_prompt_of_any_length_is_read_in_pieces() -> None:
    """No call takes long, so that Ctrl-C is heard, and what comes behind is what would come at once."""
    prompt = "ab\ncd é" * 3000
    texts, others = session(), session()
    draft = texts.join(prompt, GenerationConfig(length=30, seed=1))
    calls = 0
    while draft.ended is None:
        texts.advance()
        calls += 1
    assert calls > 10
    other = others.join(prompt, GenerationConfig(length=30, seed=1))
    while other.ended is None:
        others.advance(7)
    assert draft.pop() == other.pop()


# Put aside, and on again.


def in_parts(texts: Session, prompt: str, config: GenerationConfig, calls: list[tuple[int, int]]) -> tuple[str, Draft]:
    """The text of a draft that is put aside again and again: each time after so many calls, of so many steps."""
    draft = texts.join(prompt, config, 3)
    text = ""
    for count, most in calls:
        for _ in range(count):
            texts.advance(most)
        text += draft.pop()
        if draft.ended is None:
            texts.leave(draft)
            rest = dataclasses.replace(config, length=config.length - len(text), seed=None)
            draft = texts.join("", rest, start=draft.paused())
    return text + finish(texts, draft), draft


CALLS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=5)


@pytest.mark.parametrize("one_by_one", [False, True])
@settings(max_examples=40)
@given(PROMPTS, CONFIGS, CALLS)
def test_a_text_goes_on_as_if_it_had_not_been_put_aside(
    one_by_one: bool, prompt: str, config: GenerationConfig, calls: list[tuple[int, int]]
) -> None:
    """Wherever it was interrupted, also inside of what may be a stop text.

    A line that was begun before a pause is another one behind it, so this does without.
    """
    config = dataclasses.replace(config, until=None)
    whole = session()
    expected = whole.join(prompt, config, 3)
    text = finish(whole, expected)
    found, draft = in_parts(session(one_by_one=one_by_one), prompt, config, calls)
    assert (found, draft.ended, draft.endings.stop) == (text, expected.ended, expected.endings.stop)


BROKEN = st.lists(
    st.sampled_from(["中".encode(), "🙂".encode(), b"\xe4", b"\xb8", b"\xf0\x9f", b"a", b".", b" ", b"\xff"])
)


@given(BROKEN.filter(bool).map(b"".join), CALLS, st.integers(1, 30), st.sampled_from([(), ("a",), ("a.", "中中", " ")]))
@example(b"\xe4a", [], 1, ())
def test_no_byte_is_lost_or_shown_twice(
    script: bytes, calls: list[tuple[int, int]], length: int, stop: tuple[str, ...]
) -> None:
    config = GenerationConfig(length=length, stop=stop)
    whole = scripted(script)
    expected = whole.join("x", config)
    text = finish(whole, expected)
    found, draft = in_parts(scripted(script), "x", config, calls)
    assert (found, draft.ended, draft.endings.stop) == (text, expected.ended, expected.endings.stop)


@given(BROKEN.filter(bool).map(b"".join), st.lists(st.integers(1, 7), min_size=1, max_size=6))
@example(b"\xe4a", [1, 1])
@example(b"\xe4\xe4", [1, 1])
def test_texts_of_given_lengths_make_one_text(script: bytes, lengths: list[int]) -> None:
    texts = scripted(script, one_by_one=True)
    whole = scripted(script)
    expected = finish(whole, whole.join("x", GenerationConfig(length=sum(lengths))))
    text, draft = "", None
    for length in lengths:
        config = GenerationConfig(length=length)
        draft = texts.join("" if draft else "x", config, start=draft.paused() if draft else None)
        text += finish(texts, draft)
    assert text == expected


@pytest.mark.parametrize(
    ("options", "between"),
    [
        ({"stop": ("b", "a\n")}, None),
        ({"until": "line"}, "\n"),
        ({"until": "2 lines"}, "\n"),
        ({"until": "sentence"}, ""),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_texts_that_end_where_they_like_make_one_text(
    options: dict[str, Any], between: str | None, one_by_one: bool, seed: int
) -> None:
    """With the stop texts and the ends of the lines, which are not written, between them."""
    texts, draft, text = session(one_by_one=one_by_one), None, ""
    for _ in range(8):
        config = GenerationConfig(seed=None if draft else seed, temperature=1.5, **options)
        draft = texts.join("" if draft else "ab", config, start=draft.paused() if draft else None)
        text += finish(texts, draft)
        assert draft.ended != "length"
        text += draft.endings.stop or between or ""
    whole = session()
    length = len(text)
    assert text == finish(whole, whole.join("ab", GenerationConfig(length=length, seed=seed, temperature=1.5)))


def test_a_prompt_comes_between() -> None:
    """What was not shown is not shown behind a prompt either; the model has read it, and reads the prompt."""
    texts = scripted(b"one. two", one_by_one=True)
    draft = texts.join("x", GenerationConfig(until="sentence"))
    assert finish(texts, draft) == "one."
    again = texts.join("And", GenerationConfig(length=3), start=draft.paused())
    assert finish(texts, again) == "two"
    ids = again.stream.ids[: again.stream.length]
    assert (ids - 1).astype(np.uint8).tobytes() == b"xone. Andtwo"


def test_a_text_that_goes_on_may_end_with_what_was_not_shown() -> None:
    texts = scripted(b"one. two")
    draft = texts.join("x", GenerationConfig(until="sentence"))
    while draft.ended is None:
        texts.advance(8)
    assert draft.pop() == "one."
    again = texts.join("", GenerationConfig(length=1), start=draft.paused())
    assert (again.ended, again.pop()) == ("length", " ")
    assert texts.drafts == []
    last = texts.join("", GenerationConfig(length=5), start=again.paused())
    assert finish(texts, last)[0] == "t"


def test_what_was_drawn_before_a_pause_has_no_logprob() -> None:
    texts = scripted("中ab".encode())
    draft = texts.join("x", GenerationConfig(stop=("b!",)), logprobs=True)
    texts.advance(1)
    texts.advance(1)
    texts.leave(draft)
    again = texts.join("", GenerationConfig(length=3), start=draft.paused(), logprobs=True)
    assert finish(texts, again) == "中ab"
    np.testing.assert_array_equal(again.logprobs, [np.nan, -4, -5])


def test_a_new_seed_takes_new_random_numbers() -> None:
    def second_half(seed: int | None) -> str:
        texts = session()
        draft = texts.join("a", GenerationConfig(length=20, seed=1, temperature=1.5))
        finish(texts, draft)
        return finish(texts, texts.join("", GenerationConfig(length=40, seed=seed), start=draft.paused()))

    assert second_half(None) == second_half(None)
    assert second_half(5) == second_half(5)
    assert len({second_half(None), second_half(5), second_half(6)}) == 3


def test_a_long_text_goes_on_too() -> None:
    """One whose first ids were let go."""
    texts, whole = session(), session()
    draft = texts.join("a", GenerationConfig(length=10_000, seed=1, repetition_penalty=2))
    text = finish(texts, draft)
    assert draft.stream.forgotten > 0
    again = texts.join("", GenerationConfig(length=50, repetition_penalty=2), start=draft.paused())
    text += finish(texts, again)
    assert text == finish(whole, whole.join("a", GenerationConfig(length=10_050, seed=1, repetition_penalty=2)))


def test_a_guard_sees_as_far_back_as_the_longest_copy() -> None:
    """However long the text is, and across a pause."""
    least: list[int] = []

    def guard(ids: np.ndarray) -> np.ndarray:
        least.append(len(ids))
        return np.zeros(len(LETTERS), dtype=np.bool_)

    longest = 1000
    GenerationConfig(max_copy=longest)
    with pytest.raises(ConfigError, match="`max_copy` must be at most 1000"):
        GenerationConfig(max_copy=longest + 1)
    texts = session()
    draft = texts.join("a" * longest, GenerationConfig(length=6000, seed=1), guard=guard)
    finish(texts, draft)
    assert draft.stream.forgotten > 0
    assert min(least) >= longest


def test_vocabularies_of_one_character() -> None:
    of = random_writer(Vocabulary("a"))
    texts = session(of)
    assert finish(texts, texts.join("", GenerationConfig(length=5))) == "aaaaa"


def test_more_texts_than_go_together() -> None:
    """Each is as it is alone, and the first are done first."""
    of = writer()
    texts = session(of)
    drafts = [texts.join("ab", GenerationConfig(length=5 + index % 7, seed=3), index) for index in range(150)]
    while texts.drafts:
        texts.advance()
    for index in (0, 63, 64, 65, 128, 149):
        alone = session(of)
        expected = alone.join("ab", drafts[index].config, index)
        assert drafts[index].pop() == finish(alone, expected)

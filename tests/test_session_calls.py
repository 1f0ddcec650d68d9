"""How a session divides its texts into calls of the engine: no text shows it."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.errors import UsageError
from charwright.generation import session as session_module
from charwright.generation.draft import Draft
from charwright.generation.engine import MOST_STEPS, MOST_STREAMS
from charwright.generation.generator import Generator
from charwright.generation.session import CALL_S, MANY_CALL_S, Session
from charwright.generation.streams import Stream
from writers import LETTERS, Scripted, random_writer

KINDS = [("q8", None), ("f32", None), ("q8", "none")]


@cache
def writer(precision: str = "q8", variant: str | None = None, level: str = "character") -> Generator:
    return random_writer(ByteVocabulary() if level == "byte" else LETTERS, precision, variant=variant)


def session(of: Generator | None = None, **options: Any) -> Session:
    of = of or writer()
    return Session(of.engine, of.vocabulary, **options)


def other_than_last(ids: np.ndarray) -> np.ndarray:
    """A guard against the same id twice in a row."""
    return np.arange(257 if ids.max() >= len(LETTERS) else len(LETTERS)) == ids[-1]


# The texts.

REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.text("ab\n 中Ж", max_size=12) | st.just("ab\n中" * 200),
        "length": st.integers(1, 90),
        "seed": st.integers(0, 99),
        "stop": st.sampled_from([(), ("a",), ("b ", "aa")]),
        "until": st.sampled_from([None, "line", "sentence"]),
        "guard": st.booleans(),
        "logprobs": st.booleans(),
        "alternatives": st.sampled_from([0, 0, 3]),
        "echo": st.booleans(),
        "score_only": st.sampled_from([False, False, False, True]),
        "joins": st.integers(0, 5),
        "leaves": st.none() | st.integers(6, 12),
    }
)


def joined(texts: Session, request: dict[str, Any]) -> Draft:
    config = GenerationConfig(temperature=1.5, **{key: request[key] for key in ("length", "seed", "stop", "until")})
    options = {key: request[key] for key in ("logprobs", "alternatives", "echo", "score_only")}
    return texts.join(request["prompt"], config, guard=other_than_last if request["guard"] else None, **options)


def outcome(draft: Draft, text: str) -> tuple[Any, ...]:
    scores = (draft.logprobs, draft.alternatives, draft.prompt_logprobs[1:], draft.prompt_alternatives)
    return (text, draft.ended, draft.endings.stop, draft.shown, *scores)


@pytest.mark.parametrize(("precision", "variant"), KINDS)
@settings(max_examples=25)
@given(st.lists(REQUESTS, min_size=1, max_size=7), st.lists(st.none() | st.integers(1, 60), min_size=1), st.booleans())
def test_a_text_is_the_same_however_its_calls_are_cut(
    precision: str, variant: str | None, requests: list[dict[str, Any]], most: list[int | None], one_by_one: bool
) -> None:
    """With its scores and its end, in any company, as it is alone in single steps."""
    of = writer(precision, variant)
    texts, drafts, call = session(of, one_by_one=one_by_one), {}, 0
    while texts.drafts or call < 13:
        for number, request in enumerate(requests):
            if request["joins"] == call:
                drafts[number] = joined(texts, request)
            elif request["leaves"] == call and drafts[number] in texts.drafts:
                texts.leave(drafts[number])
        texts.advance(most[call % len(most)])
        call += 1
    for number, request in enumerate(requests):
        alone = session(of)
        expected = joined(alone, request)
        while expected.ended is None:
            alone.advance(1)
        text, found = expected.pop(), drafts[number]
        if found.ended is None:
            assert request["leaves"] is not None
            assert text.startswith(found.pop())
        else:
            assert outcome(found, found.pop()) == outcome(expected, text)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([(), ("é",)])), min_size=1, max_size=6),
    st.lists(st.none() | st.integers(1, 30), min_size=1),
)
def test_texts_of_bytes_end_where_they_would_alone(
    requests: list[tuple[int, tuple[str, ...]]], most: list[int | None]
) -> None:
    script = "aé中🙂".encode() + b"\xe4b\xf0\x9f"
    texts = Session(Scripted.of_bytes(script), ByteVocabulary())  # type: ignore[arg-type]
    configs = [GenerationConfig(length=length, stop=stop) for length, stop in requests]
    drafts = [texts.join("x", config, logprobs=True) for config in configs]
    call = 0
    while texts.drafts:
        texts.advance(most[call % len(most)])
        call += 1
    for draft, config in zip(drafts, configs, strict=True):
        alone = Session(Scripted.of_bytes(script), ByteVocabulary())  # type: ignore[arg-type]
        expected = alone.join("x", config, logprobs=True)
        while expected.ended is None:
            alone.advance(1)
        assert outcome(draft, draft.pop()) == outcome(expected, expected.pop())


@pytest.mark.parametrize("level", ["character", "byte"])
def test_a_text_goes_on_behind_its_end_even_if_it_sampled_further(level: str) -> None:
    """Beside a longer text; what it had sampled already comes first."""
    of = writer(level=level)
    texts, whole = session(of), session(of)
    long = texts.join("a", GenerationConfig(length=300, seed=2, only="ab \n"), 1)
    draft = texts.join("a", GenerationConfig(length=20, seed=1, only="ab \n"))
    texts._steps = 64
    texts.advance()
    assert draft.ended == "length"
    assert draft.stream.drawn > 20
    text = draft.pop()
    again = texts.join("", GenerationConfig(length=100, only="ab \n"), start=draft.paused())
    while texts.drafts:
        texts.advance()
    text += again.pop()
    expected = whole.join("a", GenerationConfig(length=120, seed=1, only="ab \n"))
    while whole.drafts:
        whole.advance()
    assert text == expected.pop()
    assert long.shown == 300


# The calls.


class Clocked(Scripted):
    """Notes the streams and the steps of each call; a step takes a millisecond of its clock."""

    def __init__(self) -> None:
        super().__init__([2, 3, 4])
        self.calls: list[tuple[int, int]] = []
        self.now = 0.0

    def advance(self, streams: list[Stream], steps: int) -> None:
        super().advance(streams, steps)
        self.calls.append((len(streams), steps))
        self.now += steps * 0.001


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    engine = Clocked()
    monkeypatch.setattr(session_module, "time", SimpleNamespace(perf_counter=lambda: engine.now))
    return engine


def clocked_session(engine: Clocked, **options: Any) -> Session:
    return Session(engine, ByteVocabulary(), **options)  # type: ignore[arg-type]


def of_length(length: int, **options: Any) -> GenerationConfig:
    return GenerationConfig(length=length, seed=1, **options)


def unguarded(ids: np.ndarray) -> np.ndarray:
    return np.zeros(257, dtype=np.bool_)


def test_a_short_text_does_not_shorten_the_calls_of_a_long_one(clocked: Clocked) -> None:
    texts = clocked_session(clocked, call_s=1)
    texts._steps = 1024
    short, long = texts.join("a", of_length(3)), texts.join("ab", of_length(500))
    texts.advance()
    assert clocked.calls == [(2, 501)]  # as long as the longest needs, and no longer
    assert (short.ended, short.pop(), long.ended) == ("length", "\x01\x02\x03", "length")
    assert texts.drafts == []


def test_one_by_one_a_call_ends_with_the_first_text(clocked: Clocked) -> None:
    texts = clocked_session(clocked, call_s=1, one_by_one=True)
    texts._steps = 1024
    texts.join("a", of_length(3)), texts.join("ab", of_length(500))
    texts.advance()
    assert clocked.calls == [(2, 3)]
    texts.advance()
    assert clocked.calls == [(2, 3), (1, 498)]
    texts.join("a", of_length(300, stop=("zz",)))
    texts.advance()
    assert clocked.calls[2:] == [(1, 1)]


def test_a_text_that_is_only_scored_reads_no_further_than_its_prompt(clocked: Clocked) -> None:
    texts = clocked_session(clocked, call_s=1)
    texts._steps = 1024
    texts.join("a", of_length(500))
    scored = texts.join("abcdef", of_length(9), score_only=True, echo=True, logprobs=True)
    texts.advance()
    assert clocked.calls == [(2, 5)]
    assert scored.ended == "length"


def test_a_guard_leaves_the_calls_of_the_others_alone(clocked: Clocked) -> None:
    """The guarded texts take single steps, for as long as the call of the others took."""
    texts = clocked_session(clocked)
    texts._steps = 8
    texts.join("a", of_length(500))
    guarded = [texts.join("abc", of_length(500), guard=unguarded) for _ in range(2)]
    texts.advance()
    assert clocked.calls == [(3, 2)]  # all but the last characters of the prompts are read together
    texts.advance()
    assert clocked.calls[1:] == [(1, 8), *[(2, 1)] * 8]
    assert [draft.shown for draft in guarded] == [8, 8]
    texts.advance(3)
    assert clocked.calls[10:] == [(1, 3), *[(2, 1)] * 3]


def test_guarded_texts_alone_take_as_many_steps_as_fit_a_call(clocked: Clocked) -> None:
    texts = clocked_session(clocked)
    draft, other = (texts.join("a", of_length(length), guard=unguarded) for length in (500, 3))
    texts.advance()
    assert clocked.calls[:4] == [(2, 1), (2, 1), (2, 1), (1, 1)]
    assert len(clocked.calls) == pytest.approx(CALL_S / 0.001, abs=1)
    assert other.ended == "length"
    assert draft.shown == len(clocked.calls)
    before = draft.shown
    texts.advance(3)
    assert draft.shown == before + 3


def test_no_more_than_64_of_each_kind_form_a_batch(clocked: Clocked) -> None:
    texts = clocked_session(clocked)
    for number in range(150):
        texts.join("a", of_length(30), guard=unguarded if number % 2 else None)
    taking = texts.advance(2)
    assert clocked.calls == [(MOST_STREAMS, 1), (MOST_STREAMS, 1)]
    assert [draft for draft in texts.drafts if draft.shown] == sorted(taking, key=texts.drafts.index)
    while texts.advance():
        pass
    assert max(streams for streams, _ in clocked.calls) == MOST_STREAMS


@pytest.mark.parametrize(
    ("call_s", "count", "expected"), [(None, 2, CALL_S), (None, 9, MANY_CALL_S), (0.004, 9, 0.004)]
)
def test_calls_take_about_the_time_they_should(
    clocked: Clocked, call_s: float | None, count: int, expected: float
) -> None:
    texts = clocked_session(clocked, call_s=call_s)
    for _ in range(count):
        texts.join("a", of_length(5000))
    for _ in range(20):
        texts.advance()
    steps = [steps for _, steps in clocked.calls]
    assert steps[:2] == [1, 2]
    assert expected / 2 <= steps[-1] * 0.001 <= 2 * expected
    assert max(steps) <= MOST_STEPS


@pytest.mark.parametrize("call_s", [0, -0.01])
def test_a_call_takes_time(call_s: float) -> None:
    with pytest.raises(UsageError, match="a call takes more than"):
        session(call_s=call_s)

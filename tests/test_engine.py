"""The engine against the model that trained the weights, in every precision, on all arithmetic that runs here.

And against itself: what a stream is does not depend, to the last bit, on how it was stepped and beside whom.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charwright import kernels, ngrams
from charwright.config import STATES, ModelConfig
from charwright.errors import UsageError
from charwright.generation import native_backend as native
from charwright.generation.engine import PRECISIONS, Engine
from charwright.generation.layout import as_gru, to_bf16_and_back
from charwright.generation.repetition import PENALTY_WINDOW
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Alternatives, Stream
from charwright.model.language_model import LanguageModel
from ramps import ramp_arrays

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 23  # tokens
KINDS = list(product(["gru", "igru", "lstm", "rnn"], [1, 2], [False, True]))
VARIANTS = [*kernels.available(), "none"]
BACKENDS = list(product(VARIANTS, PRECISIONS))


def model_config(
    cell: str, layers: int = 1, tied: bool = False, units: int = 40, *, ngram_bits: int = 0, ngram_order: int = 4,
    multiplicative: bool = False,
) -> ModelConfig:  # fmt: skip
    size = units if tied else 10
    return ModelConfig(
        cell=cell, layers=layers, units=units, embedding_size=size, tied=tied, ngram_bits=ngram_bits,
        ngram_order=ngram_order, multiplicative=multiplicative,
    )  # fmt: skip


def random_ids(*shape: int, size: int = SIZE, seed: int = 5) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, size, shape)


def threaded(engine: Engine, threads: int) -> Engine:
    """The engine with a fixed number of threads."""
    if isinstance(engine._backend, native.NativeBackend):
        engine._backend._threads.counts = [threads]
    return engine


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def stepped(engine: Engine, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (T, B, V) and the last state, one `Engine.step` after another: ids (T, B)."""
    state = engine.zero_state(ids.shape[1])
    return np.stack([engine.step(row, state) for row in ids]), state


# --- The engine against the model ---


@dataclass(frozen=True)
class Known:
    """A model's output on a text of its own: ids (T, B), logits (T, B, V), the final state."""

    config: ModelConfig
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    logits: np.ndarray
    state: tuple[np.ndarray, ...]

    def loss(self, logprobs: np.ndarray) -> float:
        """The nats per character of logprobs (T, B, V) over the text."""
        return -float(np.take_along_axis(logprobs[:-1], self.ids[1:, :, None], axis=-1).mean())


@cache
def known(
    cell: str,
    layers: int,
    tied: bool,
    units: int = 40,
    size: int = SIZE,
    steps: int = 400,
    *,
    multiplicative: bool = False,
) -> Known:
    config = model_config(cell, layers, tied, units, multiplicative=multiplicative)
    weights = ramp_arrays(config, size)
    writer, streams = Engine(config, weights, "f32", threads=1), []
    for index in range(3):
        streams.append(Stream(writer.zero_state()[0], np.array([1], np.int32), 1, sampler=Sampler(seed=index)))
    writer.advance(streams, steps - 1)
    ids = np.stack([stream.ids[: stream.length] for stream in streams], axis=1).astype(np.int64)
    with torch.no_grad():
        logits, last = LanguageModel.from_arrays(config, weights)(torch.from_numpy(ids))
    return Known(config, weights, ids, logits.numpy().astype(np.float64), tuple(part.numpy() for part in last))


# The largest difference of logits from the model's, as a share of their spread, and of a text's loss.
CLOSE = {"bf16": (0.01, 2e-4), "q8": (0.03, 5e-4)}


def check_logits(precision: str, logits: np.ndarray, expected: np.ndarray) -> None:
    if precision == "f32":
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
    else:
        assert np.sqrt(((logits - expected) ** 2).mean()) < CLOSE[precision][0] * expected.std()


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS)
@pytest.mark.parametrize("multiplicative", [False, True])
def test_the_engine_equals_the_model(
    cell: str, layers: int, tied: bool, multiplicative: bool, variant: str, precision: str
) -> None:
    """Logits, states and losses; step by step, in pieces and at once, alone and in a batch."""
    model = known(cell, layers, tied, multiplicative=multiplicative)
    engine = Engine(model.config, model.weights, precision, variant=variant, threads=2)
    logits, state = stepped(engine, model.ids[:60])
    check_logits(precision, logits, model.logits[:60])

    alone, alone_state = stepped(engine, model.ids[:60, 1:2])
    np.testing.assert_array_equal(alone[:, 0], logits[:, 1])
    np.testing.assert_array_equal(alone_state[0], state[1])

    rows = [row.astype(np.int32) for row in model.ids.T]
    together, one = engine.scores(rows), engine.scores(rows[1:2])
    np.testing.assert_array_equal(one[0], together[1])
    own = np.take_along_axis(log_softmax(logits), model.ids[1:61, :, None], axis=-1)[:, :, 0]
    np.testing.assert_allclose(np.array(together).T[:60], own, rtol=1e-12, atol=1e-12)  # at once, and in pieces
    expected = model.loss(log_softmax(model.logits))
    assert abs(-np.mean(together) - expected) < (1e-6 if precision == "f32" else CLOSE[precision][1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS)
@pytest.mark.parametrize("multiplicative", [False, True])
def test_the_state_is_the_models(cell: str, layers: int, tied: bool, multiplicative: bool, variant: str) -> None:
    """(B, L, S, H): the first units are the model's, the padding is zero."""
    model = known(cell, layers, tied, multiplicative=multiplicative)
    engine = Engine(model.config, model.weights, "f32", variant=variant)
    state = engine.zero_state(3)
    assert state.shape == (3, layers, STATES[cell], 48)
    assert state.dtype == np.float32
    streams = [Stream(state[row], ids.astype(np.int32), len(ids), drawing=False) for row, ids in enumerate(model.ids.T)]
    engine.advance(streams, len(model.ids))
    for part, expected in enumerate(model.state):  # (L, B, H)
        np.testing.assert_allclose(state[:, :, part, :40], expected.swapaxes(0, 1), atol=1e-5, rtol=1e-5)
    whole = Engine(model.config, model.weights, "q8", variant=variant)
    _, whole_state = stepped(whole, model.ids[:60])
    assert whole_state.dtype == np.int32
    assert np.abs(whole_state[:, :, 0, :40]).max() > 2**12
    assert not whole_state[..., 40:].any()


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize("units", [1, 5, 16, 24, 40, 100])
def test_units_need_not_be_a_multiple_of_16(units: int, variant: str, precision: str) -> None:
    for (cell, layers), multiplicative in product((("gru", 2), ("igru", 2), ("lstm", 1), ("rnn", 1)), (False, True)):
        model = known(cell, layers, False, units, steps=30, multiplicative=multiplicative)
        engine = Engine(model.config, model.weights, precision, variant=variant, threads=2)
        if units > 1:
            check_logits(precision, stepped(engine, model.ids)[0], model.logits)
        assert engine.zero_state().shape[-1] % 16 == 0


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("units", [16, 40, 100])
def test_an_input_reset_gru_is_a_gru_without_products_of_r(
    units: int, multiplicative: bool, variant: str, precision: str
) -> None:
    """To the last bit: adding zeros does not round."""
    config = model_config("igru", 2, units=units, multiplicative=multiplicative, ngram_bits=6)
    weights = ramp_arrays(config, SIZE, scale=2)
    assert weights["recurrent.1.weight_hh"].shape == (2 * units, units)
    plain, whole = as_gru(config, weights)
    for streams in (1, 9):
        ids = random_ids(20, streams)
        expected = stepped(Engine(plain, whole, precision, variant=variant), ids)
        own = stepped(Engine(config, weights, precision, variant=variant), ids)
        for found, array in zip(own, expected, strict=True):
            if variant == "none" and precision != "q8":  # NumPy's sums depend on the shape of a matrix
                np.testing.assert_allclose(found, array, atol=1e-5, rtol=1e-5)
            else:
                np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize("size", [2, 17, 66, 300, 5000])
def test_any_size_of_vocabulary(size: int, variant: str, precision: str) -> None:
    model = known("gru", 1, False, 24, size, 12)
    engine = Engine(model.config, model.weights, precision, variant=variant, threads=3)
    logits, _ = stepped(engine, np.tile(model.ids, (1, 3)))
    assert logits.shape == (12, 9, size)
    for third in range(3):
        check_logits(precision, logits[:, 3 * third : 3 * third + 3], model.logits)
    alone, _ = stepped(engine, model.ids[:, :1])
    np.testing.assert_array_equal(alone[:, 0], logits[:, 0])


# --- N-grams ---


def without_ngrams(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, ngram_bits=0)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize(
    ("cell", "layers", "bits", "order"), [("gru", 1, 1, 4), ("igru", 2, 10, 4), ("lstm", 2, 10, 8), ("rnn", 1, 14, 2)]
)
def test_ngrams_add_to_the_logits(
    cell: str, layers: int, bits: int, order: int, variant: str, precision: str
) -> None:  # fmt: skip
    """The numbers of each context, to the logits of the same network without n-grams."""
    config = model_config(cell, layers, ngram_bits=bits, ngram_order=order)
    weights = ramp_arrays(config, SIZE)
    weights["ngrams.weight"] *= 10
    ids = random_ids(30, 5)
    logits, state = stepped(threaded(Engine(config, weights, precision, variant=variant, threads=3), 3), ids)
    others = {name: array for name, array in weights.items() if name != "ngrams.weight"}
    plain, plain_state = stepped(Engine(without_ngrams(config), others, precision, variant=variant), ids)
    votes, before = [], np.zeros((5, order - 1), dtype=np.int64)
    for row in ids:
        offsets = ngrams.offsets_of(row, before, bits)
        votes.append(sum(weights["ngrams.weight"][offset[:, None] + np.arange(SIZE)] for offset in offsets))
        before = ngrams.moved_on(row, before)
    rounding = (order - 1) * 2.0**-12 if precision == "q8" else 1e-5
    np.testing.assert_allclose(logits - plain, votes, atol=rounding)
    np.testing.assert_array_equal(state[:, :layers], plain_state)
    np.testing.assert_array_equal(state[:, layers, 0, : order - 1], ids[:-order:-1].T + 1)
    assert state.shape == (5, layers + 1, STATES[cell], 48)
    assert not state[:, layers, 0, order - 1 :].any()
    assert not state[:, layers, 1:].any()


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize(("bits", "order"), [(1, 8), (13, 4), (16, 2), (20, 8)])
def test_the_offsets_are_those_of_the_definition(bits: int, order: int, variant: str, precision: str) -> None:
    """For any tokens before, as many as 2^21: each number of the array tells where it is.

    Also in a network with fewer units than there are tokens before.
    """
    config = model_config("rnn", units=1, ngram_bits=bits, ngram_order=order)
    weights = {name: np.zeros_like(array) for name, array in ramp_arrays(config, 500).items()}
    at = np.arange(len(weights["ngrams.weight"]))
    weights["ngrams.weight"][:] = (at * 40503 % 65535 - 32767) / 2**11
    engine = Engine(config, weights, precision, variant=variant)
    ids, before = random_ids(600, size=500), random_ids(600, order - 1, size=2**21)
    for row in range(order):
        before[row, row:] = 0
    for begin in range(0, 600, 60):
        some = slice(begin, begin + 60)
        state = engine.zero_state(60)
        state[:, 1, 0, : order - 1] = before[some]
        offsets = ngrams.offsets_of(ids[some], before[some], bits)
        expected = weights["ngrams.weight"][offsets[..., None] + np.arange(500)].sum(axis=0)
        np.testing.assert_array_equal(engine.step(ids[some], state), expected)
        np.testing.assert_array_equal(state[:, 1, 0, : order - 1], ngrams.moved_on(ids[some], before[some]))


FORBIDDEN = random_ids(2000, SIZE) % 2 == 0


def greedy(engine: Engine, length: int) -> list[int]:
    """The most likely of half of the ids, a different half each time: otherwise weights like these would soon loop."""
    mask = np.zeros(engine.vocabulary_size, dtype=np.bool_)
    stream = Stream(engine.zero_state()[0], np.array([1], np.int32), 1, sampler=Sampler(temperature=0, masked=mask))
    written = [1]
    for at in range(length):
        mask[:] = FORBIDDEN[at]
        engine.advance([stream], 1)
        written.append(int(stream.ids[stream.length - 1]))
    return written


@pytest.mark.parametrize(("cell", "layers", "tied"), KINDS)
def test_greedy_text_is_the_models(cell: str, layers: int, tied: bool) -> None:
    """2,000 characters: at each position the model, given the text before, selects the same id.

    Where two are as likely up to the last bits, another machine's sums may have the other one ahead.
    """
    config = model_config(cell, layers, tied)
    weights = ramp_arrays(config, SIZE)
    written = greedy(Engine(config, weights, "f32"), 2000)
    with torch.no_grad():
        logits = LanguageModel.from_arrays(config, weights)(torch.tensor(written[:-1])[:, None])[0][:, 0].numpy()
    logits[FORBIDDEN] = -np.inf
    behind = logits.max(axis=1) - logits[np.arange(2000), written[1:]]
    assert behind.max() < 1e-5
    assert np.count_nonzero(behind) <= 1
    assert len(set(written)) > 10


@torch.no_grad()
def test_greedy_text_is_the_models_step_by_step() -> None:
    config = model_config("gru", 2)
    weights = ramp_arrays(config, SIZE)
    model, state, written = LanguageModel.from_arrays(config, weights), None, [1]
    for at in range(500):
        logits, state = model(torch.tensor([written[-1:]]), state)
        logits[0, 0, torch.from_numpy(FORBIDDEN[at])] = -torch.inf
        written.append(int(logits.argmax()))
    for variant in VARIANTS:
        assert greedy(Engine(config, weights, "f32", variant=variant), 500) == written


# --- A stream to the last bit ---

SAMPLERS = [
    Sampler(0.8, seed=3),
    Sampler(1.0, top_k=5, seed=4),
    Sampler(1.2, top_p=0.9, seed=3),
    Sampler(1.0, min_p=0.1, repetition_penalty=1.3, seed=2**63 - 1),
    Sampler(0),
    Sampler(0.7, masked=np.arange(SIZE) % 3 == 0, seed=9),
]


def new_stream(engine: Engine, number: int, read: int = 0) -> Stream:
    """Stream `number` of some that all differ: in prompt, length of prompt, options and seed.

    With `read` it only reads so many ids.
    """
    prompt = random_ids(read or 1 + number * 3 % 17, seed=number).astype(np.int32)
    sampler = SAMPLERS[number % len(SAMPLERS)]
    stream = Stream(engine.zero_state()[0], drawing=not read, sampler=sampler, logits=np.zeros(engine.vocabulary_size))
    if number % 2:
        stream.scores = np.zeros(0)
    if number % 3:
        stream.alternatives = Alternatives.of(number)
    stream.feed(prompt)
    return stream


def bits(stream: Stream) -> tuple[Any, ...]:
    """Everything in a stream."""
    assert stream.logits is not None
    scores = b"" if stream.scores is None else stream.scores[1 : stream.length].tobytes()
    others = stream.alternatives
    alternatives = [] if others is None else [part[1 : stream.length].tobytes() for part in (others.ids, others.scores)]
    numbers = (stream.length, stream.at, stream.drawn, stream.forgotten)
    ids = stream.ids[: stream.length].tolist()
    return (ids, scores, alternatives, stream.state.tobytes(), stream.logits.tobytes(), numbers)


def chunks(steps: int, seed: int) -> Iterator[int]:
    """Numbers that add up to `steps`."""
    random = np.random.Generator(np.random.Philox(seed))
    while steps:
        some = int(random.integers(1, min(steps, 9) + 1))
        yield some
        steps -= some


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize(
    ("cell", "layers", "tied", "units", "ngram_bits", "multiplicative"),
    [
        ("gru", 2, True, 5, 0, False),
        ("lstm", 1, False, 64, 0, False),
        ("rnn", 2, False, 24, 0, False),
        ("gru", 1, False, 16, 10, False),
        ("gru", 2, False, 40, 0, True),
        ("igru", 2, False, 40, 0, False),
        ("igru", 2, False, 100, 10, True),
        ("lstm", 1, False, 16, 10, True),
        ("rnn", 1, False, 24, 0, True),
    ],
)
def test_a_streams_bits_depend_only_on_itself(
    cell: str,
    layers: int,
    tied: bool,
    units: int,
    ngram_bits: int,
    multiplicative: bool,
    variant: str,
    precision: str,
) -> None:
    """Not on the other streams, its position among them, the threads, or the number of calls."""
    config = model_config(
        cell, layers, tied, units, ngram_bits=ngram_bits, ngram_order=8, multiplicative=multiplicative
    )
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant, threads=1)
    steps = 20
    alone = []
    for number in range(18):
        stream = new_stream(engine, number)
        for _ in range(steps):
            engine.advance([stream], 1)
            assert stream.unread >= 1
        alone.append(bits(stream))
    assert len({str(stream[0]) for stream in alone}) == 18

    for threads, order in (
        (1, list(range(18))),
        (2, list(range(17, -1, -1))),
        (3, [17, 3, 7, 0]),
        (2, [5]),
        (3, [1, 2]),
    ):
        streams = [new_stream(threaded(engine, threads), number) for number in order]
        for some in chunks(steps, seed=threads):
            engine.advance(streams, some)
        assert [bits(stream) for stream in streams] == [alone[number] for number in order]
        at_once = [new_stream(engine, number) for number in order]
        engine.advance(at_once, steps)
        assert [bits(stream) for stream in at_once] == [alone[number] for number in order]


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_streams_that_join_and_leave_are_as_if_alone(variant: str, precision: str) -> None:
    config = model_config("gru", 2, ngram_bits=10, ngram_order=2)
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant, threads=2)
    waiting = [(number, new_stream(engine, number), 10 + number % 5 * 7) for number in range(12)]
    present: list[tuple[int, Stream, int]] = []
    ended = {}
    while waiting or present:
        present += [waiting.pop() for _ in range(min(len(waiting), 2))]
        present.sort(key=lambda entry: entry[0] * 5 % 12)
        some = min(3, *(left for _, _, left in present), 3)
        engine.advance([stream for _, stream, _ in present], some)
        present = [(number, stream, left - some) for number, stream, left in present]
        ended |= {number: bits(stream) for number, stream, left in present if not left}
        present = [entry for entry in present if entry[2]]
    for number in range(12):
        stream = new_stream(engine, number)
        engine.advance([stream], 10 + number % 5 * 7)
        assert ended[number] == bits(stream)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_what_is_read_and_what_is_sampled(variant: str, precision: str) -> None:
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant)
    reader = new_stream(engine, 1, read=20)
    engine.advance([reader], 15)
    assert (reader.unread, reader.length, reader.drawn) == (5, 20, 0)
    engine.advance([reader], 5)
    assert (reader.unread, reader.length, reader.drawn) == (0, 20, 0)

    writer, prompt = Stream(engine.zero_state()[0], sampler=Sampler(seed=1)), random_ids(20, seed=1)
    writer.feed(prompt.astype(np.int32))
    assert writer.unread == 20
    engine.advance([writer], 19)  # reads all but one
    assert (writer.unread, writer.length, writer.drawn) == (1, 20, 0)
    engine.advance([writer], 1)
    assert (writer.unread, writer.length, writer.drawn) == (1, 21, 1)
    assert writer.state.tobytes() == reader.state.tobytes()
    assert writer.ids[:20].tolist() == prompt.tolist()
    assert writer.ids[20] == Sampler(seed=1).draw(np.array(reader.logits), writer.ids[:20], 0)

    # Appended ids are read before anything is sampled again.
    writer.feed(np.array([3, 4], dtype=np.int32))
    assert writer.unread == 3
    engine.advance([writer], 2)
    assert (writer.unread, writer.length, writer.drawn) == (1, 23, 1)
    engine.advance([writer], 3)
    assert (writer.unread, writer.length, writer.drawn) == (1, 26, 4)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_reading_a_generated_text_gives_the_same_stream(variant: str, precision: str) -> None:
    """The state, the logits and the scores are those of generating it."""
    config = model_config("lstm", 2, ngram_bits=8, ngram_order=8)
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant, threads=2)
    writers = [new_stream(engine, number) for number in range(1, 8, 2)]
    engine.advance(writers, 40)
    texts = [writer.ids[: writer.length].copy() for writer in writers]
    for writer, text, scores in zip(writers, texts, engine.scores(texts), strict=True):
        reader = Stream(engine.zero_state()[0], text, writer.at, drawing=False, logits=np.zeros(SIZE))
        engine.advance([reader], writer.at)
        assert reader.state.tobytes() == writer.state.tobytes()
        assert reader.logits is not None
        assert writer.logits is not None
        assert reader.logits.tobytes() == writer.logits.tobytes()
        assert writer.scores is not None
        np.testing.assert_array_equal(writer.scores[1 : writer.length], scores)


def test_no_streams_and_no_steps_are_accepted() -> None:
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE))
    engine.advance([], 5)
    stream = new_stream(engine, 0)
    before = bits(stream)
    engine.advance([stream], 0)
    assert bits(stream) == before
    assert engine.step(np.zeros(0, dtype=np.int64), engine.zero_state(0)).shape == (0, SIZE)
    assert engine.scores([]) == []


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_step_changes_the_state_in_place_and_streams_do_not_mix(variant: str, precision: str) -> None:
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant)
    state = engine.zero_state(4)
    logits = engine.step(np.array([1, 2, 1]), state[:3])
    assert logits.dtype == np.float64
    np.testing.assert_array_equal(logits[0], logits[2])
    assert not np.array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(state[0], state[2])
    assert state[0].any()
    assert not state[3].any()
    assert not np.array_equal(engine.step(np.array([1]), state[:1])[0], logits[0])


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_scores_of_texts_of_any_length(variant: str, precision: str) -> None:
    """Including none, one, and more than one call reads."""
    config = model_config("gru", units=16)
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant, threads=2)
    rows = [random_ids(length, seed=length).astype(np.int32) for length in (0, 1, 2, 3, 1025, 40, 1200)]
    found = engine.scores(rows)
    assert [len(scores) for scores in found] == [0, 0, 1, 2, 1024, 39, 1199]
    for row, scores in zip(rows[2:], found[2:], strict=True):
        logits, _ = stepped(engine, row[:40, None])
        own = log_softmax(logits[:-1, 0])[np.arange(len(logits) - 1), row[1:40]]
        np.testing.assert_allclose(scores[: len(own)], own, rtol=1e-12, atol=1e-12)
        assert np.isfinite(scores).all()
    for same in (rows[5].astype(np.int64), np.repeat(rows[5], 2)[::2], rows[5].tolist()):
        np.testing.assert_array_equal(engine.scores([same])[0], found[5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_target_nats_are_the_scores_of_each_column(variant: str) -> None:
    config = model_config("gru", units=16)
    engine = Engine(config, ramp_arrays(config, SIZE), variant=variant)
    text = random_ids(12, 70)
    inputs, targets = text[:-1], text[1:].copy()
    targets[8:, 69] = -1
    rows = [*text.T[:69].astype(np.int32), text[:9, 69].astype(np.int32)]
    nats = engine.target_nats(inputs, targets)
    assert nats.shape == targets.shape
    for column, scores in enumerate(engine.scores(rows)):
        np.testing.assert_allclose(nats[: len(scores), column], -scores, rtol=1e-12)
    assert not nats[targets < 0].any()


def test_target_nats_are_those_of_texts_read_from_end_to_end() -> None:
    config = model_config("gru", units=16)
    engine = Engine(config, ramp_arrays(config, SIZE))
    text = random_ids(6, 2)
    inputs, targets = text[:-1], text[1:].copy()
    other, gap, negative, unknown = inputs.copy(), targets.copy(), targets.copy(), targets.copy()
    other[2, 0] = (other[2, 0] + 1) % SIZE
    gap[1, 0] = -1
    negative[-1, 1] = -5
    unknown[-1, 1] = SIZE
    for wrong, match in (
        ((other, targets), "must be the target before it"),
        ((inputs, gap), "-1 only at the end"),
        ((inputs, negative), "-1 only at the end"),
        ((inputs, unknown), "outside the vocabulary"),
        ((inputs[:-1], targets), "have one shape"),
        ((inputs[:, :1], targets), "have one shape"),
    ):
        with pytest.raises(UsageError, match=match):
            engine.target_nats(*wrong)


# --- Long texts ---


def everything(engine: Engine, stream: Stream, sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    """All ids and scores of a stream that is advanced by these numbers of steps, read before they are dropped."""
    ids, scores, seen = [], [], 0
    for steps in sizes:
        engine.advance([stream], steps)
        fresh = slice(seen - stream.forgotten, stream.length)
        ids += stream.ids[fresh].tolist()
        assert stream.scores is not None
        scores += stream.scores[fresh].tolist()
        seen = stream.forgotten + stream.length
    return ids, scores


@pytest.mark.parametrize(
    ("variant", "precision", "steps"),
    [*((variant, precision, 20_500) for variant, precision in BACKENDS if variant != "none"), ("none", "f32", 9000)],
)
def test_a_text_that_never_ends(variant: str, precision: str, steps: int) -> None:
    """Old ids are dropped, which affects neither the text nor its scores."""
    config = model_config("gru", units=16)
    engine = Engine(config, ramp_arrays(config, SIZE), precision, variant=variant, threads=1)
    penalty = 1.0 if variant == "none" else 1.05  # NumPy is slow on a window of a thousand ids

    def fresh() -> Stream:
        stream = Stream(engine.zero_state()[0], sampler=Sampler(repetition_penalty=penalty, seed=1))
        stream.scores = np.zeros(0)
        stream.feed(np.array([1, 2, 3], dtype=np.int32))
        return stream

    short, whole = fresh(), fresh()
    ids, scores = everything(engine, short, [500] * (steps // 500))
    expected_ids, expected_scores = everything(engine, whole, [steps])
    assert len(ids) == steps + 1
    assert ids == expected_ids
    assert scores == expected_scores
    assert whole.forgotten == 0
    assert short.forgotten > 4000
    assert len(short.ids) < 6000
    assert short.drawn == whole.drawn == steps - 2
    np.testing.assert_array_equal(short.state, whole.state)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["feed", "read", "room"]), st.integers(0, 3000)), max_size=25))
def test_making_room_keeps_the_penaltys_window(acts: list[tuple[str, int]]) -> None:
    stream, all_ids = Stream(np.zeros(1)), np.zeros(0, dtype=np.int32)
    stream.scores = np.zeros(0)
    for act, count in acts:
        before = stream.forgotten + stream.at
        if act == "feed":
            fresh = np.arange(len(all_ids), len(all_ids) + count, dtype=np.int32)
            stream.feed(fresh)
            all_ids = np.concatenate([all_ids, fresh])
            stream.scores[stream.length - count : stream.length] = -fresh
        elif act == "read":
            stream.at += min(count, stream.unread)
            before = stream.forgotten + stream.at
        else:
            stream.make_room(count)
            assert len(stream.ids) >= stream.length + count
        assert stream.scores is not None
        assert len(stream.scores) == len(stream.ids)
        assert stream.forgotten + stream.at == before
        assert stream.forgotten + stream.length == len(all_ids)
        assert stream.at >= min(before, PENALTY_WINDOW)  # the penalty's window is kept
        np.testing.assert_array_equal(stream.ids[: stream.length], all_ids[stream.forgotten :])
        np.testing.assert_array_equal(stream.scores[: stream.length], -all_ids[stream.forgotten :].astype(np.float64))


# --- Weights ---


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_the_weights_are_neither_changed_nor_read_again(variant: str, precision: str) -> None:
    config = model_config("lstm", 2, ngram_bits=10, multiplicative=True)
    weights = ramp_arrays(config, SIZE)
    engine = Engine(config, weights, precision, variant=variant)
    first = stepped(engine, random_ids(5, 2))[0]
    for name, array in ramp_arrays(config, SIZE).items():
        np.testing.assert_array_equal(weights[name], array)
    if variant != "none":
        for array in weights.values():
            array[:] = 0
        np.testing.assert_array_equal(stepped(engine, random_ids(5, 2))[0], first)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize("cell", ["gru", "igru", "lstm", "rnn"])
def test_saturated_gates_do_not_overflow(cell: str, variant: str, precision: str) -> None:
    config = model_config(cell, 2, ngram_bits=6, ngram_order=8)
    weights = {name: array * np.float32(1e4) for name, array in ramp_arrays(config, SIZE).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine(config, weights, precision, variant=variant)
        streams = [new_stream(engine, number) for number in range(5)]
        engine.advance(streams, 50)
    for stream in streams:
        assert stream.logits is not None
        assert np.isfinite(stream.logits).all()
        assert np.isfinite(stream.state).all()


# --- Threads, variants, errors ---


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "none"])
def test_engines_may_be_used_from_several_python_threads(variant: str) -> None:
    """The kernels release the GIL; each caller has its own memory."""
    config = model_config("gru", 2)
    weights = ramp_arrays(config, SIZE)
    one, other = (threaded(Engine(config, weights, variant=variant), 2) for _ in range(2))
    expected = [new_stream(one, number) for number in range(8)]
    one.advance(expected, 150)
    found = [new_stream(one, number) for number in range(8)]

    def work(engine: Engine, streams: list[Stream]) -> None:
        for _ in range(50):
            engine.advance(streams, 3)

    workers = [threading.Thread(target=work, args=(engine, found[part::3])) for part, engine in
               enumerate((one, one, other))]  # fmt: skip
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [bits(stream) for stream in found] == [bits(stream) for stream in expected]


def test_an_unknown_precision_is_refused() -> None:
    config = model_config("gru")
    with pytest.raises(UsageError, match="`precision` must be one of q8, bf16, f32, not 'f64'"):
        Engine(config, ramp_arrays(config, SIZE), "f64")


@pytest.mark.skipif(len(VARIANTS) == 1, reason="the C kernels are not built here")
def refused(engine: Engine, message: str, **fields: Any) -> None:
    ids = np.array([1, 2, 3, 0, 0, 0, 0, 0], dtype=np.int32)
    given = {"state": engine.zero_state()[0], "ids": ids, "length": 3} | fields
    with pytest.raises(UsageError, match=message):
        engine.advance([Stream(**given)], 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_arrays_of_a_stream_are_checked(variant: str) -> None:
    """The kernels read and write them wherever they lie."""
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE), "f32", variant=variant)
    size, ids = engine.vocabulary_size, np.array([1, 2, 3, 0, 0, 0, 0, 0], dtype=np.int32)
    refused(engine, "logits must be", logits=np.zeros(1))
    refused(engine, "mask must be", sampler=Sampler(masked=np.zeros(1, dtype=np.bool_)))
    for wrong in (size, -7, 2**31 - 1):
        after = np.array([1, 2, wrong], dtype=np.int32)
        refused(engine, f"id {wrong} is outside", ids=after, drawing=False, scores=np.zeros(3))
        before = np.array([wrong, 2, 3, 0, 0, 0], dtype=np.int32)
        refused(engine, f"id {wrong} is outside", ids=before, at=1, sampler=Sampler(repetition_penalty=1.5))
    ids.flags.writeable = False
    refused(engine, "writable", ids=ids)
    read = Stream(engine.zero_state()[0], ids, 3, drawing=False)
    engine.advance([read], 2)
    assert read.at == 2


def test_an_unknown_variant_is_refused() -> None:
    config = model_config("gru")
    with pytest.raises(UsageError, match=r"^the kernel variant avx1024 does not run here: this machine runs"):
        Engine(config, ramp_arrays(config, SIZE), variant="avx1024")


def test_the_environment_names_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config("gru")
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "none")
    assert not isinstance(Engine(config, ramp_arrays(config, SIZE))._backend, native.NativeBackend)
    for variant in VARIANTS[:-1]:
        monkeypatch.setenv("CHARWRIGHT_KERNELS", variant)
        backend = Engine(config, ramp_arrays(config, SIZE))._backend
        assert isinstance(backend, native.NativeBackend)
        assert backend._kernels.name == variant


def test_the_engine_needs_no_pytorch() -> None:
    code = (
        "import sys, numpy as np; from charwright.generation.engine import *;"
        "c = ModelConfig(units=16, embedding_size=4);"
        "w = {n: np.ones(s, dtype=np.float32) for n, s in c.weight_shapes(5).items()};"
        "e = Engine(c, w); s = Stream(e.zero_state()[0], np.zeros(1, dtype=np.int32), 1); e.advance([s], 9);"
        "assert s.length == 10; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


OTHER_WEIGHTS = {
    "no embedding": (lambda w: w.pop("embedding.weight"), "'embedding.weight' is missing"),
    "one more": (lambda w: w.update(more=np.zeros(1, np.float32)), "'more' is unknown"),
    "a short head": (lambda w: w.update({"head.bias": w["head.bias"][:1]}), r"'head.bias' has shape \(1,\)"),
    "other units": (lambda w: w.update({"recurrent.0.weight_hh": np.zeros((9, 3), np.float32)}), "has shape"),
    "doubles": (lambda w: w.update({"head.bias": w["head.bias"].astype(np.float64)}), "is float64, not float32"),
    "not a number": (lambda w: w["head.weight"].__setitem__((0, 0), np.nan), "a value that is not finite"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", OTHER_WEIGHTS)
def test_weights_of_another_model_are_refused(kind: str, precision: str) -> None:
    """The kernels would read outside of them, or compute something else."""
    config = model_config("gru")
    weights = ramp_arrays(config, SIZE)
    change, message = OTHER_WEIGHTS[kind]
    change(weights)
    with pytest.raises(UsageError, match=message):
        Engine(config, weights, precision)


@pytest.mark.parametrize("changed", [{"cell": "igru"}, {"cell": "lstm"}, {"ngram_bits": 20}, {"layers": 2}])
def test_weights_of_another_configuration_are_refused(changed: dict[str, Any]) -> None:
    config = model_config("gru")
    with pytest.raises(UsageError, match="not the weights of the model"):
        Engine(dataclasses.replace(config, **changed), ramp_arrays(config, SIZE))


def test_an_engine_is_not_copied() -> None:
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE))
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="cannot be copied or pickled"):
            copied(engine)


def test_ids_are_whole_numbers() -> None:
    config = model_config("gru")
    engine = Engine(config, ramp_arrays(config, SIZE))
    with pytest.raises(UsageError, match="ids must be integers, not float64"):
        engine.step(np.array([0.7]), engine.zero_state())


def test_nan_is_one_in_bfloat16_too() -> None:
    """The bits of some would be rounded to those of zero."""
    values = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000], np.uint32).view(np.float32)
    assert np.isnan(to_bf16_and_back(values)).all()
    np.testing.assert_array_equal(to_bf16_and_back(np.array([np.inf, -np.inf, 1.0], np.float32)), [np.inf, -np.inf, 1])

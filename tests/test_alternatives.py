"""The most likely ids of each position, beside those that were read or sampled."""

from __future__ import annotations

import numpy as np
import pytest

from charwright import kernels
from charwright.config import ModelConfig
from charwright.errors import UsageError
from charwright.generation.engine import PRECISIONS, Engine
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Alternatives, Stream
from writers import weights_of

SIZE = 37
BACKENDS = [(variant, precision) for variant in [*kernels.available(), "none"] for precision in PRECISIONS]
CONFIG = ModelConfig(cell="gru", units=16, embedding_size=8)


def engine_of(variant: str, precision: str, size: int = SIZE) -> Engine:
    return Engine(CONFIG, weights_of(CONFIG, size), precision, threads=2, variant=variant)


def stream_of(engine: Engine, count: int | None, *, prompt: int = 9, seed: int = 1, **options: object) -> Stream:
    sampler = Sampler(0.7, top_k=5, masked=np.arange(engine.vocabulary_size) % 3 == 0, seed=seed)
    stream = Stream(engine.zero_state()[0], sampler=sampler, **options)  # type: ignore[arg-type]
    stream.alternatives = None if count is None else Alternatives.of(count)
    stream.feed((np.arange(prompt) * 7 % engine.vocabulary_size).astype(np.int32))
    return stream


def expected_alternatives(engine: Engine, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids and scores for the positions from 1: every id's ln p, sorted."""
    state, rows = engine.zero_state(), []
    for index in ids[:-1]:
        logits = engine.step(np.array([index]), state)[0]
        rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    scores = np.array(rows)
    order = np.array([sorted(range(len(row)), key=lambda index: (-row[index], index)) for row in scores])[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
@pytest.mark.parametrize("count", [1, 5, 20, SIZE])
def test_alternatives_are_the_most_likely_ids(variant: str, precision: str, count: int) -> None:
    """Of every position that was read or sampled, whatever the sampler's options; masked ids are among them."""
    engine = engine_of(variant, precision)
    streams = [stream_of(engine, count, prompt=prompt, seed=prompt) for prompt in (1, 9, 20)]
    for steps in (1, 4, 15):
        engine.advance(streams, steps)
    for stream in streams:
        assert stream.alternatives is not None
        ids, scores = expected_alternatives(engine, stream.ids[: stream.length], count)
        np.testing.assert_array_equal(stream.alternatives.ids[1 : stream.length], ids)
        np.testing.assert_allclose(stream.alternatives.scores[1 : stream.length], scores, rtol=1e-12, atol=1e-12)
        assert count == 1 or (ids % 3 == 0).any()


@pytest.mark.parametrize("variant", [*kernels.available(), "none"])
def test_of_equally_likely_ids_the_smaller_come_first(variant: str) -> None:
    weights = weights_of(CONFIG, SIZE)
    weights["head.weight"][:] = 0
    weights["head.bias"][:] = 0
    weights["head.bias"][[4, 30]] = 1
    engine = Engine(CONFIG, weights, "f32", variant=variant)
    stream = stream_of(engine, 6)
    engine.advance([stream], 12)
    assert stream.alternatives is not None
    expected = np.tile([4, 30, 0, 1, 2, 3], (stream.length - 1, 1))
    np.testing.assert_array_equal(stream.alternatives.ids[1 : stream.length], expected)


@pytest.mark.parametrize(("variant", "precision"), BACKENDS)
def test_asking_changes_nothing_else(variant: str, precision: str) -> None:
    """Neither the ids, nor the state, nor the scores; and they do not need the scores."""
    engine = engine_of(variant, precision)
    plain, asked = (stream_of(engine, count, scores=np.zeros(0)) for count in (None, 7))
    without = stream_of(engine, 7)
    engine.advance([plain, without, asked], 25)
    for other in (asked, without):
        np.testing.assert_array_equal(other.ids[: other.length], plain.ids[: plain.length])
        np.testing.assert_array_equal(other.state, plain.state)
    assert plain.scores is not None
    assert asked.scores is not None
    np.testing.assert_array_equal(asked.scores[1 : asked.length], plain.scores[1 : plain.length])
    assert without.alternatives is not None
    assert asked.alternatives is not None
    np.testing.assert_array_equal(without.alternatives.ids, asked.alternatives.ids)


def test_the_score_of_an_id_is_that_among_its_alternatives() -> None:
    engine = engine_of("none", "q8")
    stream = stream_of(engine, SIZE, scores=np.zeros(0))
    engine.advance([stream], 30)
    others = stream.alternatives
    assert others is not None
    assert stream.scores is not None
    for at in range(1, stream.length):
        place = others.ids[at].tolist().index(stream.ids[at])
        assert others.scores[at, place] == stream.scores[at]


def test_a_long_stream_keeps_its_alternatives_in_step() -> None:
    engine = engine_of("none", "q8", 5)
    short, whole = stream_of(engine, 3), stream_of(engine, 3)
    engine.advance([whole], 6000)
    for _ in range(12):
        engine.advance([short], 500)
    assert short.forgotten > 0
    assert short.alternatives is not None
    assert whole.alternatives is not None
    assert len(short.alternatives.ids) == len(short.alternatives.scores) == len(short.ids)
    kept = slice(short.forgotten, whole.length)
    np.testing.assert_array_equal(short.alternatives.ids[: short.length], whole.alternatives.ids[kept])
    np.testing.assert_array_equal(short.alternatives.scores[: short.length], whole.alternatives.scores[kept])


@pytest.mark.parametrize(
    ("alternatives", "said"),
    [
        (Alternatives.of(0), "1 to 37 of them"),
        (Alternatives.of(SIZE + 1), "1 to 37 of them"),
        (Alternatives(np.zeros((9, 2), dtype=np.int32), np.zeros((9, 3))), "1 to 37 of them"),
        (Alternatives(np.zeros((9, 2), dtype=np.int32)[:, ::2], np.zeros((9, 1))), "must be contiguous arrays"),
        (Alternatives(np.zeros((9, 2), dtype=np.int64), np.zeros((9, 2))), "1 to 37 of them"),
        (Alternatives(np.zeros((4, 2), dtype=np.int32), np.zeros((4, 2))), "1 to 37 of them"),
    ],
)
def test_alternatives_that_do_not_fit_are_refused(alternatives: Alternatives, said: str) -> None:
    """The kernels would write outside their memory."""
    engine = engine_of("none", "q8")
    stream = Stream(engine.zero_state()[0], np.arange(9, dtype=np.int32), 9, alternatives=alternatives)
    with pytest.raises(UsageError, match=said):
        engine.advance([stream], 1)

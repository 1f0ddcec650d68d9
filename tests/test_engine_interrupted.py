"""The engine after a fork, after Ctrl-C, and with invalid ids or states."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from charwright.config import GenerationConfig, ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, UsageError
from charwright.generation.engine import Engine
from charwright.generation.generator import Generator
from charwright.generation.session import Session
from charwright.generation.streams import Stream
from charwright.kernels import load

VOCABULARY = Vocabulary("\n abcdefgh")
CONFIG = ModelConfig(units=64, embedding_size=16)


def weights() -> dict[str, np.ndarray]:
    random = np.random.Generator(np.random.Philox(4))
    shapes = CONFIG.weight_shapes(len(VOCABULARY))
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def writer() -> Generator:
    return Generator(CONFIG, weights(), VOCABULARY, threads=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # about forks in threaded processes, which this test is about
@pytest.mark.parametrize("threads", ["of our own", "of PyTorch"])
def test_a_forked_process_has_its_own_threads(writer: Generator, threads: str) -> None:
    """A child has none of its parent's threads, and its locks may be in any state."""
    if threads == "of PyTorch":  # as after a training in the same process
        kernel_calls = pytest.importorskip("charwright.model.kernel_calls")
        kernels = load()
        if kernels is None:
            pytest.skip("no kernels were built")
        kernel_calls.share_threads(kernels)
    expected = writer.generate("ab", length=400, seed=1)[0].continuation
    time.sleep(0.05)  # the other thread is asleep now
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            same = all(
                writer.generate("ab", length=400, seed=1)[0].continuation == expected and time.sleep(0.01) is None
                for _ in range(3)
            )
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert writer.generate("ab", length=400, seed=1)[0].continuation == expected


@pytest.mark.parametrize("variant", [None, "none"])
def test_a_text_continues_correctly_after_ctrl_c_inside_a_call(variant: str | None) -> None:
    engine = Engine(CONFIG, weights(), variant=variant)
    expected = Generator(CONFIG, weights(), VOCABULARY).generate("ab", length=3000, seed=1)[0].continuation
    wrong = interrupted = 0
    for trial in range(8):
        session = Session(engine, VOCABULARY)
        draft = session.join("ab", GenerationConfig(length=3000, seed=1))
        timer = threading.Timer(0.0005 + 0.001 * trial, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            while draft.ended is None:
                session.advance()
            timer.join()
        except KeyboardInterrupt:
            interrupted += 1
            while draft.ended is None:
                session.advance()
        wrong += draft.pop() != expected
    assert interrupted >= 4
    # A signal may arrive between two lines of Python, but not inside a call.
    assert wrong <= 1


@pytest.mark.parametrize("variant", [None, "none"])
@pytest.mark.parametrize("bad", [-1, len(VOCABULARY), 70_000])
def test_an_invalid_id_is_refused(variant: str | None, bad: int) -> None:
    engine = Engine(CONFIG, weights(), variant=variant)
    with pytest.raises(UsageError, match=f"id {bad} is outside the vocabulary of 11"):
        engine.step(np.array([1, bad]), engine.zero_state(2))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        engine.scores([np.array([1, 2, bad])])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        engine.advance([Stream(engine.zero_state()[0], np.array([1, bad], dtype=np.int32), 2)], 4)


@pytest.mark.parametrize(
    "state",
    [
        np.zeros((1, 1, 1, 64), dtype=np.float32),
        np.zeros((1, 1, 1, 63), dtype=np.int32),
        np.zeros((1, 2, 1, 64), dtype=np.int32),
        np.zeros((1, 1, 1, 128), dtype=np.int32)[..., ::2],
    ],
)
def test_a_state_that_does_not_fit_is_refused(writer: Generator, state: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"int32 arrays of shape \(streams, 1, 1, 64\)"):
        writer.engine.step(np.array([1]), state)
    with pytest.raises(UsageError, match="zero_state"):
        writer.engine.advance([Stream(state[0], np.array([1], dtype=np.int32), 1)], 1)


def test_too_few_ids_to_read_are_refused(writer: Generator) -> None:
    state = writer.engine.zero_state()[0]
    with pytest.raises(UsageError, match="2 ids to read, too few for 3 steps"):
        writer.engine.advance([Stream(state, np.array([1, 2], dtype=np.int32), 2, drawing=False)], 3)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="`threads` must be at least 1, not -1"):
        Engine(CONFIG, weights(), threads=-1)


def test_a_session_advances_by_one_step_or_more(writer: Generator) -> None:
    with pytest.raises(UsageError, match="at least one step, not 0"):
        Session(writer.engine, VOCABULARY).advance(0)


def test_max_copy_without_a_guard_is_refused(writer: Generator) -> None:
    """Without the training text, copying cannot be prevented."""
    with pytest.raises(UsageError, match="max_copy requires a guard"):
        writer.generate("ab", length=10, max_copy=5)


def test_more_texts_than_fit_a_batch_are_the_same_texts(writer: Generator) -> None:
    many = writer.generate("a", num=150, length=12, seed=3)
    assert [text.stream for text in many] == list(range(150))
    assert writer.generate("a", num=70, length=12, seed=3) == many[:70]

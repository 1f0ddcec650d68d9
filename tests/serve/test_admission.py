"""When a full service says that clients should try again."""

from __future__ import annotations

from collections import Counter

import pytest

from charwright.generation.engine import MOST_STREAMS
from charwright.serve.admission import LONGEST_RETRY_S, Admission
from charwright.serve.limits import ServiceConfig


class Held:
    """An admission on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.admission = Admission(ServiceConfig(), Counter(), clock=lambda: self.now)

    def start(self, texts: int) -> None:
        self.admission.admit("a", texts)
        for _ in range(texts):
            self.admission.start()

    def end(self, texts: int, seconds: float) -> None:
        for _ in range(texts):
            self.admission.end("a", seconds)


@pytest.fixture
def held() -> Held:
    return Held()


def test_new_service_says_a_second(held: Held) -> None:
    assert held.admission.retry_s() == 1


def test_long_texts_count_before_they_end(held: Held) -> None:
    held.start(MOST_STREAMS)
    held.now += 5
    assert held.admission.retry_s() == 10
    held.now += 100
    assert held.admission.retry_s() == LONGEST_RETRY_S
    held.end(MOST_STREAMS, 105)
    held.start(MOST_STREAMS)
    assert held.admission.retry_s() == LONGEST_RETRY_S


def test_first_texts_count_in_full(held: Held) -> None:
    held.start(2)
    held.now += 20
    held.end(2, 20)
    assert held.admission.retry_s() == 20


def test_texts_that_wait_make_it_longer(held: Held) -> None:
    held.start(MOST_STREAMS)
    held.now += 5
    held.admission.admit("a", MOST_STREAMS)
    assert held.admission.retry_s() == 20


def test_ages_are_those_of_the_texts_in_progress(held: Held) -> None:
    held.start(1)
    held.now += 30
    held.start(1)
    held.end(1, 30)
    held.now += 10
    assert held.admission.retry_s() == 30  # the mean; the other text is 10 s old
    held.now += 10
    assert held.admission.retry_s() == 40

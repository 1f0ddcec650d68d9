"""The number of threads follows the machine's load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from charwright.threads import GENERATION, TRAINING, ThreadChooser, Trials, fastest_count, thread_counts

Seconds = Callable[[int], float]


class Machine:
    """A machine whose calls take as long as its load determines, and a clock that advances with them."""

    def __init__(self, most: int = 2, trials: Trials = TRAINING, start: int = 2) -> None:
        self.now = 100.0
        self.chooser = ThreadChooser(most, lambda: self.now, trials, start=start)
        self.used: list[int] = []

    def run(self, calls: int, seconds: Seconds, size: int = 0) -> None:
        for _ in range(calls):
            count = self.chooser.count(size)
            self.used.append(count)
            self.now += seconds(count)
            self.chooser.took(count, seconds(count), size)


def quiet(count: int) -> float:
    return 0.02 if count == 2 else 0.035


def busy(count: int) -> float:
    return 0.3 if count == 2 else 0.05


def test_training_on_a_quiet_machine_tries_one_thread_once() -> None:
    machine = Machine()
    machine.run(5000, quiet)
    assert machine.used.count(1) <= 3
    assert machine.chooser.count() == 2


def test_training_on_a_busy_machine_uses_one_thread_from_the_first_second() -> None:
    machine = Machine()
    machine.run(2000, busy)
    assert machine.used[:2] == [2, 2]
    assert machine.used.count(2) <= 18, "all threads are tried ever more rarely"


def test_training_follows_the_load() -> None:
    machine = Machine()
    machine.run(1000, quiet)
    machine.run(200, busy)
    assert machine.chooser.count() == 1
    machine.run(3000, quiet)
    assert machine.chooser.count() == 2
    machine.run(200, busy)
    assert machine.chooser.count() == 1


def test_a_single_thread_stays_alone() -> None:
    machine = Machine(most=1)
    machine.run(100, busy)
    assert set(machine.used) == {1}


def test_a_hopeless_trial_ends_after_one_call() -> None:
    machine = Machine()
    machine.run(5000, lambda count: 0.02 if count == 2 else 0.05)
    assert machine.used.count(1) == 1


@pytest.mark.parametrize("best", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("start", [1, 12])
@pytest.mark.parametrize("trials", [GENERATION, TRAINING], ids=["generation", "training"])
def test_climbing_reaches_the_fastest_count(best: int, start: int, trials: Trials) -> None:
    machine = Machine(12, trials, start)
    machine.run(200, lambda count: 0.01 * (1 + abs(math.log2(count / best))))
    assert machine.chooser.count() == best
    assert machine.used[-100:].count(best) >= 90


def test_generation_climbs_at_once() -> None:
    machine = Machine(8, GENERATION, 1)
    machine.run(20, lambda count: 0.008 / count)
    assert machine.used == [1, 1, 2, 2, 4, 4, *[8] * 14]


def test_generation_tries_again_every_second() -> None:
    machine = Machine(2, GENERATION, 1)
    machine.run(1000, lambda count: 0.008 if count == 2 else 0.01)
    assert machine.chooser.count() == 2
    assert 2 + 2 * 7 <= machine.used.count(1) <= 2 + 2 * 8
    machine.run(150, lambda count: 0.1 if count == 2 else 0.01)
    assert machine.chooser.count() == 1


def test_a_moment_of_disturbance_does_not_cost_a_second() -> None:
    machine = Machine(2, GENERATION, 2)
    machine.run(500, lambda count: 0.005 if count == 2 else 0.01)
    disturbed = iter([0.05] * 4)
    machine.run(2000, lambda count: next(disturbed, 0.005) if count == 2 else 0.01)
    assert machine.chooser.count() == 2
    assert machine.used[500:].count(1) <= 2 * 12


def test_a_gain_below_ten_percent_changes_nothing() -> None:
    machine = Machine(2, GENERATION, 1)
    machine.run(1000, lambda count: 0.0092 if count == 2 else 0.01)
    assert machine.chooser.count() == 1


def test_each_size_has_its_own_count() -> None:
    machine = Machine(2, GENERATION, 1)
    for _ in range(50):
        machine.run(1, lambda count: 0.001 * count, size=1)
        machine.run(1, lambda count: 0.01 / count, size=4)
    assert (machine.chooser.count(1), machine.chooser.count(4)) == (1, 2)


def test_a_time_with_another_count_is_ignored() -> None:
    """Two threads may use one engine: a time counts only for the count it was measured with."""
    chooser = ThreadChooser(4, itertools.count().__next__, GENERATION)
    for _ in range(10):
        chooser.took(4, 1e-9)
    assert chooser.count() == 1


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_candidates(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


def test_the_fastest_count_is_found_in_order() -> None:
    speeds = {4: 10.0, 2: 12.0, 1: 11.0}
    measured: list[int] = []

    def measure(count: int) -> float:
        measured.append(count)
        return speeds[count]

    assert fastest_count([4, 2, 1], measure) == (2, 12.0)
    assert measured == [4, 2, 1]
    measured.clear()
    assert fastest_count([1, 4, 2], measure) == (1, 11.0)
    assert measured == [1, 4]

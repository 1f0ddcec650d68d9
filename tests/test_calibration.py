"""What the machine can do: threads that follow its load, and the speeds that a plan is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from charwright.config import SequenceConfig
from charwright.training.calibration import measure_speeds
from charwright.training.recipes import speed_at
from charwright.training.threads import Threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """A machine whose steps take as long as its load says, and a clock that goes with them."""

    def __init__(self) -> None:
        self.now = 100.0
        self.threads = Threads(lambda: self.now)
        self.used: list[int] = []

    def run(self, steps: int, seconds: Callable[[int], float]) -> None:
        for _ in range(steps):
            count = torch.get_num_threads()
            assert count == self.threads.count
            self.used.append(count)
            self.now += seconds(count)
            self.threads.step_took(seconds(count))


def quiet(count: int) -> float:
    return 0.02 if count == 2 else 0.035


def busy(count: int) -> float:
    return 0.3 if count == 2 else 0.05


def test_a_quiet_machine_is_asked_once() -> None:
    machine = Machine()
    machine.run(5000, quiet)
    assert machine.used.count(1) <= 3
    assert machine.threads.count == 2


def test_a_busy_machine_trains_with_one_thread_from_the_first_second() -> None:
    machine = Machine()
    machine.run(2000, busy)
    assert machine.used[:2] == [2, 2]
    assert machine.used.count(2) <= 15, "and all threads are tried ever more rarely"
    machine.threads.give_back()
    assert torch.get_num_threads() == 2


def test_threads_follow_the_load() -> None:
    machine = Machine()
    machine.run(1000, quiet)
    machine.run(200, busy)
    assert machine.threads.count == 1
    machine.run(3000, quiet)
    assert machine.threads.count == 2
    machine.run(200, busy)
    assert machine.threads.count == 1


def test_a_single_thread_stays_alone() -> None:
    torch.set_num_threads(1)
    machine = Machine()
    machine.run(100, busy)
    assert set(machine.used) == {1}


def test_speeds_are_measured_within_their_time() -> None:
    """Narrow widths first; a clock that jumps lets only the first be measured."""
    ticks = iter(range(10_000))
    sequences = SequenceConfig(batch=2, seq_length=4)
    arguments = (9, sequences, 60.0)
    device, precision = torch.device("cpu"), torch.float32
    slow = measure_speeds(*arguments, device=device, precision=precision, clock=lambda: float(next(ticks)))
    assert list(slow) == [256]
    still = measure_speeds(9, sequences, 1e9, device=device, precision=precision)
    assert list(still)[:2] == [256, 512]
    assert all(speed > 0 for speed in still.values())
    assert torch.get_num_threads() == 2


def test_speeds_between_the_widths() -> None:
    speeds = {128: 400.0, 512: 100.0}
    assert speed_at(speeds, 128) == 400
    assert speed_at(speeds, 256) == pytest.approx(200)
    assert speed_at(speeds, 1024) == pytest.approx(39), "beyond, the shape is that of the machine of the trials"

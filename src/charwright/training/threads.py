"""How many threads train: all of them, or one, when another program takes their cores away."""

from __future__ import annotations

from collections.abc import Callable

import torch

SLOWER = 1.5  # times as long as the quickest steps were: something is in the way
QUICKER = 0.9  # of the time: worth a change
TRIAL = 3  # steps
FIRST_S = 0.5  # from the beginning, when nobody knows yet whether something is in the way
SOON_S, LATE_S = 5.0, 60.0  # between two trials; those that change nothing become rarer


class Threads:
    """Chooses between one thread and all of them by the time of the steps.

    Threads that meet hundreds of times in a step wait for the one whose core is taken: with another busy program on two
    cores, two threads can be many times slower than one. So a single thread is tried in the beginning and when steps
    become slow, and while one thread is in use all of them are tried now and then.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with as many threads as PyTorch uses."""
        self.most = self.count = torch.get_num_threads()
        self._clock = clock
        self._mean_s: float | None = None
        self._quickest_s: dict[int, float] = {}
        self._trial: list[float] | None = None
        self._wait_s, self._next_s = SOON_S, clock() + FIRST_S
        self._compared = False

    def step_took(self, seconds: float) -> None:
        """A training step took so long; the next one may be done by another number of threads."""
        if self.most == 1:
            return
        if self._trial is not None:
            self._trial.append(seconds)
            self._judge(self._trial)
            return
        self._mean_s = seconds if self._mean_s is None else 0.8 * self._mean_s + 0.2 * seconds
        known = self._quickest_s.get(self.count, self._mean_s)
        self._quickest_s[self.count] = min(known, self._mean_s)
        slow = self.count == 1 or self._mean_s > SLOWER * self._quickest_s[self.count]
        if (slow or not self._compared) and self._clock() >= self._next_s:
            self._trial = []
            self._use(1 if self.count > 1 else self.most)

    def _judge(self, steps_s: list[float]) -> None:
        """See whether the number of threads on trial is to stay."""
        assert self._mean_s is not None
        hopeless = steps_s[0] > 2 * self._mean_s
        if len(steps_s) < TRIAL and not hopeless:
            return
        if min(steps_s) < QUICKER * self._mean_s:
            self._mean_s, self._wait_s = min(steps_s), SOON_S
        else:
            self._use(1 if self.count > 1 else self.most)
            self._wait_s = min(LATE_S, 2 * self._wait_s)
        self._trial, self._compared = None, True
        self._next_s = self._clock() + self._wait_s

    def _use(self, count: int) -> None:
        self.count = count
        torch.set_num_threads(count)

    def give_back(self) -> None:
        """Training is over: PyTorch has its threads again."""
        if self.count != self.most:
            self._use(self.most)

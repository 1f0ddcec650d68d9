"""Choose how many threads to use, by timing the work itself.

More threads are not always faster: threads that synchronize hundreds of times in a step wait for the one whose core
another program is using. `ThreadChooser` climbs to the fastest count while the work runs and follows the machine's
load; `fastest_count` compares counts once.

    chooser = ThreadChooser(most=8, clock=time.perf_counter, trials=TRAINING, start=8)
    while True:
        count = chooser.count()             # apply it: torch.set_num_threads(count), or pass it to a kernel
        began = clock()
        work()
        chooser.took(count, clock() - began)

Work of different sizes (the number of streams, say) has its own best count: pass `size` to both methods.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

KEEP = 0.9
"""A trial is kept if it takes less than this share of the current count's time."""
WARM = 2
"""Calls with the current count before a trial: the first may create threads and fill caches."""


@dataclass(frozen=True)
class Trials:
    """When another count is tried, and for how long."""

    first_s: float
    """Seconds before the first trial."""
    shortest_s: float
    """Seconds between trials; doubles with each trial that changes nothing."""
    longest_s: float
    calls: int
    """Calls of a trial. The fastest of them counts."""
    slower: float = 0.0
    """After the first trial, try fewer threads only when calls take this many times the best time of the count."""
    hopeless: float = math.inf
    """Abandon a trial whose first call takes this many times the current count's time."""


GENERATION = Trials(first_s=0.0, shortest_s=1.0, longest_s=1.0, calls=2)
TRAINING = Trials(first_s=0.5, shortest_s=5.0, longest_s=60.0, calls=3, slower=1.5, hopeless=2.0)


@dataclass
class _Work:
    """What is known about work of one size."""

    index: int  # of the current count
    next_s: float  # time of the next trial
    wait_s: float
    mean_s: float = math.inf  # of a call with the current count: exponential moving average
    timed: int = 0  # calls with the current count
    best_s: dict[int, float] = field(default_factory=dict)  # lowest mean, by index
    steps: list[int] = field(default_factory=list)  # neighbors to try in this round; the first one is on trial
    trial_s: list[float] = field(default_factory=list)
    confirm_s: list[float] | None = None  # calls with the current count again, before it gives way to fewer threads
    moved: bool = False  # in this round
    compared: bool = False  # a round has ended

    def add(self, seconds: float, calls: int) -> None:
        """Count a call with the current count. The first few set the mean to the fastest of them."""
        self.timed += 1
        self.mean_s = min(self.mean_s, seconds) if self.timed <= calls else 0.8 * self.mean_s + 0.2 * seconds
        self.best_s[self.index] = min(self.best_s.get(self.index, math.inf), self.mean_s)

    def move(self, step: int, seconds: float, calls: int) -> None:
        """Make the neighboring count the current one."""
        self.index += step
        self.mean_s, self.timed, self.moved = seconds, calls, True
        self.best_s[self.index] = min(self.best_s.get(self.index, math.inf), seconds)


class ThreadChooser:
    """Choose among 1, 2, 4, ... `most` threads by hill climbing on the time of the calls.

    A trial runs a few calls with a neighboring count, and keeps it if it is at least 10 % faster; then the next count
    in the same direction is tried. Fewer threads are kept only if a few more calls with the present count confirm it.
    Trials recur, more rarely as long as they change nothing.
    """

    def __init__(self, most: int, clock: Callable[[], float], trials: Trials, *, start: int = 1) -> None:
        """Start with the largest candidate that is at most `start`. `clock` returns seconds."""
        self.counts = thread_counts(most)
        self._clock, self._trials = clock, trials
        self._start = max(index for index, count in enumerate(self.counts) if count <= max(1, start))
        self._works: dict[int, _Work] = {}
        self._began_s = clock()
        self._lock = threading.Lock()  # Several Python threads may share an engine.

    def count(self, size: int = 0) -> int:
        """The number of threads to use for the next call of this size."""
        with self._lock:
            return self._count(self._work(size))

    def took(self, count: int, seconds: float, size: int = 0) -> None:
        """Record the time of a call of this size with `count` threads. The next call may get another count."""
        with self._lock:
            work = self._work(size)
            if len(self.counts) == 1 or count != self._count(work):
                return
            if work.steps:
                self._try(work, seconds)
                return
            work.add(seconds, self._trials.calls)
            if work.timed >= WARM and self._clock() >= work.next_s:
                work.steps = self._neighbors(work)

    def _count(self, work: _Work) -> int:
        on_trial = work.steps and work.confirm_s is None
        return self.counts[work.index + (work.steps[0] if on_trial else 0)]

    def _work(self, size: int) -> _Work:
        if size not in self._works:
            self._works[size] = _Work(self._start, self._began_s + self._trials.first_s, self._trials.shortest_s)
        return self._works[size]

    def _neighbors(self, work: _Work) -> list[int]:
        """The directions to try: fewer threads if that is due, and more."""
        slow = work.mean_s > self._trials.slower * work.best_s[work.index]
        down = [-1] if work.index > 0 and (slow or not work.compared) else []
        up = [1] if work.index + 1 < len(self.counts) else []
        return down + up

    def _try(self, work: _Work, seconds: float) -> None:
        """Record a call of the trial, and end the trial when it has had enough calls."""
        calls = work.trial_s if work.confirm_s is None else work.confirm_s
        calls.append(seconds)
        hopeless = work.trial_s[0] > self._trials.hopeless * work.mean_s
        if len(calls) < self._trials.calls and not hopeless:
            return
        faster = min(work.trial_s) < KEEP * (work.mean_s if work.confirm_s is None else min(work.confirm_s))
        if faster and work.steps[0] < 0 and work.confirm_s is None:
            work.confirm_s = []  # Another program may have disturbed the threads for a moment only.
            return
        self._end_trial(work, faster=faster)

    def _end_trial(self, work: _Work, *, faster: bool) -> None:
        """Keep the count on trial if it is faster, and choose what to try next, and when."""
        best_s, step = min(work.trial_s), work.steps.pop(0)
        work.trial_s, work.confirm_s = [], None
        if faster:
            work.move(step, best_s, self._trials.calls)
            work.steps = [step] if 0 <= work.index + step < len(self.counts) else []
        if not work.steps:
            trials = self._trials
            work.wait_s = trials.shortest_s if work.moved else min(trials.longest_s, 2 * work.wait_s)
            work.next_s = self._clock() + work.wait_s
            work.moved, work.compared = False, True


def thread_counts(most: int) -> list[int]:
    """The candidates: the powers of two below `most`, and `most`."""
    return sorted({min(most, 1 << i) for i in range(most.bit_length() + 1)})


def fastest_count(candidates: Iterable[int], measure: Callable[[int], float]) -> tuple[int, float]:
    """The fastest count and its speed, as `measure(count)` returns it.

    Candidates are measured in order until one is slower than the one before.
    """
    best, best_speed = 0, -math.inf
    for count in candidates:
        speed = measure(count)
        if speed < best_speed:
            break
        best, best_speed = count, speed
    return best, best_speed

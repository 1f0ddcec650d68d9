"""Applies the number of threads that a `ThreadChooser` selects to PyTorch, while training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from charwright.config import TrainingConfig
from charwright.threads import TRAINING, ThreadChooser
from charwright.training.ranks import ALONE, Ranks


class TrainingThreads:
    """Times the steps and sets PyTorch's thread count before each; without a chooser the count stays as it is."""

    def __init__(self, chooser: ThreadChooser | None, clock: Callable[[], float]) -> None:
        self._chooser, self._clock = chooser, clock

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Run one step in this block."""
        if self._chooser is None:
            yield
            return
        count = self._chooser.count()
        if count != torch.get_num_threads():
            torch.set_num_threads(count)
        began = self._clock()
        yield
        self._chooser.took(count, self._clock() - began)


@contextmanager
def training_threads(
    config: TrainingConfig, device: torch.device, clock: Callable[[], float], ranks: Ranks = ALONE
) -> Iterator[TrainingThreads]:
    """Choose the number of CPU threads during the block, and restore it afterwards.

    Only a budget in minutes allows a choice: with steps or epochs, no bit of the weights may depend on the clock.
    Several ranks try nothing: all wait for the one whose trial is slower.
    """
    most = torch.get_num_threads()
    adaptive = config.minutes is not None and device.type == "cpu" and ranks.size == 1
    try:
        yield TrainingThreads(ThreadChooser(most, clock, TRAINING, start=most) if adaptive else None, clock)
    finally:
        if torch.get_num_threads() != most:
            torch.set_num_threads(most)

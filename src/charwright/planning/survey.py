"""Measures every way in which this machine can compute: `charwright info --machine --measure`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from charwright.config import SequenceConfig
from charwright.model.compute import Compute
from charwright.planning.choice import FAILURES, every_candidate
from charwright.planning.measurement import Deadline, Workload, mean_speed
from charwright.planning.recipes import DEFAULT

TYPICAL = Workload(
    dataclasses.replace(DEFAULT.model, units=512, dropout=0.1, recurrent_dropout=0.1, multiplicative=True),
    66,
    SequenceConfig(),
)
EACH_S = 1.0


@dataclass(frozen=True)
class Surveyed:
    """A candidate and its speed in characters per second, or None and why it failed.

    `masked` is false for a core that has neither recurrent dropout nor a multiplicative layer: its speed is that of a
    simpler model.
    """

    compute: Compute
    speed: float | None
    masked: bool = True
    why: str = ""

    @property
    def label(self) -> str:
        """Core, precision and variant, and what sets the model apart."""
        return self.compute.label + ("" if self.masked else ", plain layer without recurrent dropout")


def survey(
    device: str = "auto", workload: Workload = TYPICAL, *, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Surveyed]:
    """Measure every way in which a device can compute, one after the other."""
    plain = dataclasses.replace(workload.model, recurrent_dropout=0.0, multiplicative=False)
    unmasked = dataclasses.replace(workload, model=plain)
    for compute in every_candidate(device):
        masked = compute.core != "torch"  # With a mask it computes as `fused` does.
        deadline = Deadline(clock, clock() + 2 * EACH_S)
        try:
            speed = mean_speed(workload if masked else unmasked, compute, deadline, EACH_S)
            yield Surveyed(compute, speed, masked)
        except FAILURES as error:
            yield Surveyed(compute, None, masked, " ".join(str(error).split()) or type(error).__name__)


def best_of(found: list[Surveyed]) -> Surveyed | None:
    """The fastest on the same model: what `auto` would choose for it."""
    same = [one for one in found if one.masked and one.speed is not None]
    return max(same, key=lambda one: one.speed or 0.0, default=None)

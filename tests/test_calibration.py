"""The measured training speeds that a plan is based on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from charwright.config import SequenceConfig
from charwright.model.compute import Compute
from charwright.planning.calibration import measure_speeds


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_speeds_are_measured_within_the_time_limit() -> None:
    """Narrow widths first; with a clock that jumps, only the first is measured."""
    ticks = iter(range(10_000))
    sequences = SequenceConfig(batch=2, seq_length=4)
    slow = measure_speeds(9, sequences, 60.0, Compute(), clock=lambda: float(next(ticks)))
    assert list(slow) == [256]
    measured = measure_speeds(9, sequences, 1e9, Compute())
    assert list(measured)[:2] == [256, 512]
    assert all(speed > 0 for speed in measured.values())
    assert torch.get_num_threads() == 2

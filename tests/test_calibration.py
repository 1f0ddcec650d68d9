"""The measured training speeds that a plan is based on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from charwright.config import SequenceConfig
from charwright.model.compute import Compute, Wanted
from charwright.planning import calibration
from charwright.planning.calibration import Calibration
from charwright.planning.measurement import Workload
from charwright.planning.profile import TextProfile


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def measured_speeds(budget_s: float, clock: Callable[[], float] = time.perf_counter) -> dict[int, float]:
    sequences = SequenceConfig(batch=2, seq_length=4)
    with Calibration([Compute()], 9, sequences, budget_s, clock).running() as calibration:
        return calibration.speeds()


def test_speeds_are_measured_within_the_time_limit() -> None:
    """Narrow widths first; with a clock that jumps, only the first is measured."""
    ticks = iter(range(10_000))
    slow = measured_speeds(60.0, lambda: float(next(ticks)))
    assert list(slow) == [256]
    measured = measured_speeds(1e9)
    assert list(measured)[:2] == [256, 512]
    assert all(speed > 0 for speed in measured.values())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("options", "ngrams"),
    [({}, (22, 8)), ({"ngram_bits": 12}, (12, 8)), ({"ngram_order": 3}, (22, 3)), ({"ngram_bits": 0}, (0, 8))],
)
def test_what_is_measured_has_the_planned_n_grams(
    options: dict[str, int], ngrams: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def speed(work: Workload, *_: Any) -> float:
        seen.add((work.model.ngram_bits, work.model.ngram_order))
        return 1e5

    monkeypatch.setattr(calibration, "mean_speed", speed)
    monkeypatch.setattr(calibration, "brief_speed", speed)
    text = TextProfile(1_000_000, 66, "Latin", 1_000_000)
    plan, _ = calibration.plan_here(text, {"minutes": 1.0, **options}, Wanted())
    assert plan.recipe.model.ngram_bits == ngrams[0]
    assert {(bits, order) for bits, order in seen if bits} == ({ngrams} if ngrams[0] else set())
    assert {bits for bits, _ in seen} == {ngrams[0]}


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({}, ("igru", True)),
        ({"multiplicative": False}, ("igru", False)),
        ({"cell": "gru"}, ("gru", True)),
        ({"cell": "lstm", "multiplicative": False}, ("lstm", False)),
    ],
)
def test_what_is_measured_is_the_planned_layer(
    options: dict[str, Any], layer: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def speed(work: Workload, *_: Any) -> float:
        seen.add((work.model.cell, work.model.multiplicative))
        return 1e5

    monkeypatch.setattr(calibration, "mean_speed", speed)
    monkeypatch.setattr(calibration, "brief_speed", speed)
    text = TextProfile(1_000_000, 66, "Latin", 1_000_000)
    calibration.plan_here(text, {"minutes": 1.0, **options}, Wanted())
    assert seen == {layer}

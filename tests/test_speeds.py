"""Training speed by width, interpolated between measured widths."""

from __future__ import annotations

import pytest

from charwright.planning.speeds import speed_at

SPEEDS = {128: 350e3, 256: 220e3, 512: 100e3, 1024: 39e3}


def test_speeds_between_and_beyond_the_measured_widths() -> None:
    speeds = {128: 400.0, 512: 100.0}
    assert speed_at(speeds, 128) == 400
    assert speed_at(speeds, 256) == pytest.approx(200)
    assert speed_at(speeds, 1024) == pytest.approx(39), "beyond them, the speed changes as on the reference machine"


def test_one_measured_width_is_enough() -> None:
    """A machine half as fast as the reference machine, with only the narrowest width measured."""
    for units in (128, 256, 512, 1024):
        assert speed_at({128: 175e3}, units) == pytest.approx(SPEEDS[units] / 2)
    assert speed_at({128: 175e3}, 2048) == pytest.approx(SPEEDS[1024] / 8)
    assert speed_at(SPEEDS, 16) == pytest.approx(400e3)

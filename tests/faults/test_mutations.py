"""Broken files are refused with one line, in bounded time and memory."""

from __future__ import annotations

import pytest

import mutations


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_broken_files_are_refused_with_one_line(count: int) -> None:
    report = mutations.run(count, seed=1)
    assert report.outcomes.total() == count
    assert not report.problems, "\n".join(report.problems[:5])

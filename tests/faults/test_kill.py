"""Processes that are killed at random instants; `kill.py` does it a thousand times."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("optuna")
if os.name == "nt":
    pytest.skip("Windows cannot fork", allow_module_level=True)

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "kill.py"


@pytest.mark.parametrize("count", [5, *(pytest.param(count, marks=pytest.mark.slow) for count in (20, 300))])
def test_a_kill_leaves_everything_whole(count: int) -> None:
    """In a process of its own: one with threads cannot be forked safely."""
    command = [sys.executable, SCRIPT, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} processes killed" in done.stdout

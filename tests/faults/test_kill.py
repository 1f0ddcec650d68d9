"""Processes that are killed at random instants; `kill.py` does it a thousand times."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("optuna")
if os.name == "nt":
    pytest.skip("Windows cannot fork", allow_module_level=True)

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "kill.py"


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(5, ["--quick"], id="few"),
        pytest.param(40, ["--quick"], id="bounded", marks=pytest.mark.slow),
        pytest.param(300, [], id="many", marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_everything_whole(count: int, options: list[str]) -> None:
    """In a process of its own: one with threads cannot be forked safely."""
    command = [sys.executable, SCRIPT, "--count", str(count), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"^(\d+) processes killed", done.stdout, re.MULTILINE)
    assert killed is not None
    assert count <= int(killed[1]) <= count + 1

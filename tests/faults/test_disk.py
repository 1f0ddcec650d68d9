"""Disks that are full, broken or read-only from any operation on; `disk.py` breaks them two hundred times."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")
if sys.platform != "linux" or shutil.which("cc") is None:
    pytest.skip("needs Linux and a C compiler", allow_module_level=True)

SCRIPT = Path(__file__).parent / "disk.py"


@pytest.mark.parametrize("count", [5, *(pytest.param(count, marks=pytest.mark.slow) for count in (20, 200))])
def test_a_broken_disk_is_one_line_and_breaks_nothing_else(count: int) -> None:
    command = [sys.executable, SCRIPT, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} injections" in done.stdout

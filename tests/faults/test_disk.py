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


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(5, ["--quick"], id="few"),
        pytest.param(28, ["--quick"], id="bounded", marks=pytest.mark.slow),
        pytest.param(200, [], id="many", marks=pytest.mark.slow),
    ],
)
def test_a_broken_disk_is_one_line_and_breaks_nothing_else(count: int, options: list[str]) -> None:
    command = [sys.executable, SCRIPT, "--count", str(count), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} injections" in done.stdout

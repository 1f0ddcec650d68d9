"""Where the output goes: a terminal beside a file, and streams that are closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import TEXT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and closed streams are POSIX")


@pytest.mark.parametrize("options", [[], ["--json"], ["--csv"], ["--worst", "3"]])
def test_scores_go_to_a_file_while_the_terminal_has_the_bar(trained: Path, tmp_path: Path, options: list[str]) -> None:
    import pty

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    command = [sys.executable, "-m", "charwright", "score", trained, tmp_path / "text.txt", *options]
    expected = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    ours, its = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(command, stdout=out, stderr=its, check=True, timeout=60)
    os.close(its)
    os.close(ours)
    assert (tmp_path / "out").read_bytes() == expected
    assert expected.count(b"\n") > 2


@pytest.mark.parametrize(
    "words", [["score", "RUN", "FILE"], ["plot", "RUN"], ["info", "RUN"], ["cache"], ["generate", "RUN"]], ids=" ".join
)
@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_is_no_defect(trained: Path, tmp_path: Path, words: list[str], closed: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    places = {"RUN": str(trained), "FILE": str(tmp_path / "text.txt")}
    command = [sys.executable, "-m", "charwright", *(places.get(word, word) for word in words)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command], capture_output=True, check=False, timeout=60
    )
    assert b"Traceback" not in done.stdout + done.stderr
    assert done.returncode == 0

"""Where the output goes: a terminal beside a file, and streams that are closed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
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


PRINTING = pytest.mark.parametrize(
    "words",
    [["score", "RUN", "FILE"], ["plot", "RUN"], ["info", "RUN"], ["cache"], ["generate", "RUN"], ["--help"]],
    ids=" ".join,
)


def run_with_closed(
    stream: int, trained: Path, folder: Path, words: Sequence[str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a command that the shell starts with a closed stream."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    places = {"RUN": str(trained), "FILE": str(folder / "text.txt")}
    command = [sys.executable, "-m", "charwright", *(places.get(word, word) for word in words)]
    shell = ["sh", "-c", f'exec "$@" {stream}>&-', "sh"]
    return subprocess.run([*shell, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)


@PRINTING
def test_output_that_has_nowhere_to_go_is_a_failure(trained: Path, tmp_path: Path, words: list[str]) -> None:
    done = run_with_closed(1, trained, tmp_path, words)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "charwright: standard output is closed; redirect it to a file, or to /dev/null to discard it"
    ]


def test_a_command_that_prints_no_result_needs_no_output(trained: Path, tmp_path: Path) -> None:
    words = ["export", "RUN", "--to", "numpy", "--out", str(tmp_path / "weights.npz")]
    done = run_with_closed(1, trained, tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "weights.npz").exists()


@PRINTING
def test_closed_messages_are_no_defect(trained: Path, tmp_path: Path, words: list[str]) -> None:
    done = run_with_closed(2, trained, tmp_path, words)
    assert done.returncode == 0
    assert done.stdout


def test_a_reader_that_has_enough_is_no_failure(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--length", "100000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0

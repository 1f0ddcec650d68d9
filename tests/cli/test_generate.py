"""`charwright generate`: the text on stdout, all else on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from charwright.run import Run
from commands import TEXT, Terminal, process


def test_stdout_holds_the_text_and_nothing_else(charwright: Terminal, trained: Path) -> None:
    from charwright import Generator

    result = charwright("generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7")
    assert (result.code, result.err) == (0, "")
    run = Run.open(trained)
    expected = Generator(run.model, run.weights(), run.vocabulary).generate("To be", length=50, seed=7)
    assert result.out == f"{expected[0]}\n"


def test_the_same_seed_in_a_new_process(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "50", "--seed", "7"]
    assert process(*words) == charwright(*words)


def test_without_a_seed_each_text_is_new(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "80"]
    assert charwright(*words).out != charwright(*words).out


def test_num_writes_so_many(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To ", "--length", "30", "--seed", "7", "--temperature", "1.5"]
    many = charwright(*words, "--num", "3")
    assert many.err.splitlines() == ["--- 1 of 3 ---", "--- 2 of 3 ---", "--- 3 of 3 ---"]
    assert many.out.startswith(charwright(*words).out)
    assert len(many.out) == 3 * (3 + 30 + 1)
    texts = [many.out[i * 34 : (i + 1) * 34] for i in range(3)]
    assert all(text.startswith("To ") and text.endswith("\n") for text in texts)
    assert len(set(texts)) == 3


def test_no_prompt_leaves_the_prompt_out(charwright: Terminal, trained: Path) -> None:
    words = ["generate", trained, "--prompt", "To be", "--length", "20", "--seed", "7"]
    assert "To be" + charwright(*words, "--no-prompt").out == charwright(*words).out


@pytest.mark.parametrize("option", [[], ["--prompt", "-"]])
@pytest.mark.parametrize("stdin", [b"To be", b"To be\n", b"To be\r\n"])
def test_the_prompt_comes_from_a_pipe(charwright: Terminal, trained: Path, option: list[str], stdin: bytes) -> None:
    words = ["generate", trained, "--length", "20", "--seed", "7"]
    assert process(*words, *option, stdin=stdin) == charwright(*words, "--prompt", "To be")


def test_a_prompt_that_is_no_text(trained: Path) -> None:
    result = process("generate", trained, stdin=b"To \xff")
    assert result.code == 1
    assert "byte 3" in result.line


def test_unknown_characters_of_the_prompt_are_named_once(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", "中中文", "--length", "20", "--num", "2")
    assert result.code == 0
    assert result.err.count("never seen") == 1
    assert "'中' '文'" in result.err
    assert result.out.count("中中文") == 2
    assert "[UNK]" not in result.out


def test_a_very_long_prompt(charwright: Terminal, trained: Path) -> None:
    result = charwright("generate", trained, "--prompt", TEXT, "--length", "5", "--seed", "1")
    assert result.out.startswith(TEXT)
    assert len(result.out) == len(TEXT) + 6


def test_a_terminal_that_lacks_the_characters(trained: Path) -> None:
    result = process("generate", trained, "--prompt", "中", "--length", "5", PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert result.out.startswith("?")


@pytest.mark.skipif(os.name == "nt", reason="this test needs a POSIX shell")
def test_a_pipe_that_closes_early_is_no_error(trained: Path) -> None:
    script = (
        '"$0" -m charwright generate "$1" --length 100000000 --prompt "To be" | head -c 20; echo " ${PIPESTATUS[0]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, str(trained)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == b""
    assert done.stdout.endswith(b" 0\n")
    assert done.stdout.startswith(b"To be")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signal")
def test_ctrl_c_while_generating_is_130(trained: Path) -> None:
    command = [sys.executable, "-m", "charwright", "generate", str(trained), "--length", "100000000"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as generating:
        assert generating.stdout is not None
        assert len(generating.stdout.read(50)) == 50  # It is writing now.
        generating.send_signal(signal.SIGINT)
        _, err = generating.communicate(timeout=30)
    assert generating.returncode == 130
    assert err.strip() == b""

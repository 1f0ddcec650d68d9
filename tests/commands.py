"""Run commands in this process, or in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from charwright import cli

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 30
SMALL = ["--units", "16", "--embedding-size", "8", "--batch", "4", "--seq-length", "16"]


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The single line of an error."""
        assert self.out == ""
        assert re.fullmatch(r"charwright: [^\n]+\n", self.err), self.err
        return self.err


class Terminal:
    """Runs commands in this process, which imports PyTorch only once."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self.capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *self.capsys.readouterr())


def process(*arguments: str | Path, stdin: bytes | None = b"", prelude: str = "", **environment: str) -> Result:
    """Run a command in a process of its own."""
    command = [sys.executable, "-c", f"import sys; {prelude}\nfrom charwright.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    return Result(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))

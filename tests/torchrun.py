"""Start real groups of ranks with torchrun, on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 120.0  # seconds; only a very busy machine needs that long


def torchrun(ranks: int, *options: str) -> list[str]:
    """The command that starts ranks on this machine; what follows is the module's."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]


def start(command: list[str], *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start a training with what `torchrun` returned."""
    return subprocess.Popen(
        [*command, "-m", "charwright", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end: the exit code, and what went to stderr."""
    try:
        _, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    return process.returncode, stderr


def train(ranks: int, *arguments: str | Path, **environment: str) -> str:
    """Train on some ranks, or without torchrun on one; returns what went to stderr."""
    command = torchrun(ranks) if ranks > 1 else [sys.executable]
    code, stderr = finish(start(command, *arguments, **environment))
    assert code == 0, stderr
    return stderr


def our_lines(stderr: str) -> list[str]:
    """The lines of errors, among those of torchrun."""
    return re.findall(r"^charwright: .*$", stderr, re.MULTILINE)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks that a torchrun has started, in their order."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == process.pid:
            found.append(int(path.parent.name))
    return sorted(found)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running process does."""
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log(run: Path) -> list[dict[str, Any]]:
    """The events of a run so far."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def losses(run: Path) -> list[float]:
    """All losses of a run: of its steps, and of its validations."""
    found = []
    for event in log(run):
        found += [event[name] for name in ("loss", "train_loss", "validation_loss") if event.get(name) is not None]
    return found

"""`charwright serve` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-m", "charwright", "serve", "--port", "0")


@contextmanager
def serving(
    *arguments: str | Path,
    command: Sequence[str | Path] = COMMAND,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the service; yields its process and its port as soon as it is ready, and ends it."""
    process = subprocess.Popen(
        [*map(str, command), *map(str, arguments)],
        cwd=folder,
        env=dict(environment) if environment is not None else os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving "):
                break
        found = re.search(r"^serving .* at http://127\.0\.0\.1:(\d+)", "".join(said), re.MULTILINE)
        assert found is not None, "".join(said)
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()

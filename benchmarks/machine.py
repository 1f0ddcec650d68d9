"""What the benchmarks share: the description of the machine, summaries of measurements, TensorFlow's environment."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

TENSORFLOW = "tensorflow==2.21.0"
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def describe_machine() -> str:
    """The processor, its cores, the system and today's date, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    # A virtual machine often has a name that several generations of processors share.
    name += f", family {facts['cpu family']}, model {facts['model']}" if "cpu family" in facts else ""
    flags = facts.get("flags", "").split()
    has = ", ".join(flag for flag in FLAGS if flag in flags)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} ({has or platform.machine()}), {cores} cores, {platform.system()}, {date.today().isoformat()}"


Side = TypeVar("Side")


def take_turns(sides: Mapping[Side, Callable[[float], float]], rounds: int, seconds: float) -> dict[Side, list[float]]:
    """What each side measures in each round, in about `seconds`; first each runs once, as briefly as it can."""
    for measure in sides.values():
        measure(0)
    found: dict[Side, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            found[side].append(measure(seconds))
    return found


def ratio_and_spread(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The median, minimum and maximum of the pairwise ratios ours / theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def tensorflow_python(folder: Path) -> Path:
    """The interpreter of an environment with TensorFlow, which is created if it does not exist."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        subprocess.check_call([sys.executable, "-m", "venv", str(folder)])
        subprocess.check_call([str(python), "-m", "pip", "install", "--quiet", TENSORFLOW])
        ready.touch()
    return python

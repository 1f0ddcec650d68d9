"""Real file systems that break in the middle of a training: small ones, which root mounts for this process alone."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from breakable import RUN, Examples, check, check_readable, check_tidy, weights_of
from forks import Ended, Strike, forked

CLONE_NEWNS = 0x20000
IMAGE_BYTES = 8 << 20
ALL = ("--keep-checkpoints", "all")

Complaints = Callable[[Ended, Path], list[str]]

Round = Callable[[random.Random], tuple[bool, list[str]]]
"""Breaks a file system once: whether the command noticed, and what did not hold."""


def why_not() -> str | None:
    """The reason why nothing can be mounted here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting needs root on Linux"
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return f"mounting is refused: {done.stderr.decode().strip()}" if done.returncode else None


def system(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def mounted_rounds(of: Examples, complaints: Complaints) -> dict[str, Round]:
    """What can be broken here, by name."""
    # The mounts of this process end with it, however it ends.
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    system("mount", "--make-rprivate", "/")
    rounds = {"full tmpfs": lambda chance: _full(of, complaints, chance)}
    if shutil.which("mkfs.ext4") is not None and Path("/dev/loop-control").exists():
        rounds["read-only ext4"] = lambda chance: _read_only(of, complaints, chance)
        rounds["lost blocks"] = lambda chance: _lost_blocks(of, complaints, chance)
    return rounds


def _full(of: Examples, complaints: Complaints, chance: random.Random) -> tuple[bool, list[str]]:
    """A file system in memory that has room for some of the checkpoints."""
    folder = of.place / "mounted"
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={chance.randrange(16, 300)}k", "none"):
        ended = forked(lambda: of.train(folder / RUN, *ALL), folder)
        found = _ended(ended, folder, complaints)
        system("mount", "-o", "remount,size=64m", folder)
        return ended.code != 0, found + _completed(of, folder)


def _read_only(of: Examples, complaints: Complaints, chance: random.Random) -> tuple[bool, list[str]]:
    """A file system that the kernel makes read-only, as it does after an error; what is not on disk is lost."""
    folder = of.place / "mounted"
    with _image(of.place, of.place / "image") as image:
        with _mounted(folder, "-o", "loop", image):
            abort = lambda: system("mount", "-o", "remount,abort", folder)  # noqa: E731
            ended = forked(lambda: of.train(folder / RUN, *ALL), folder, strike=_within_training(folder, chance, abort))
            found = _ended(ended, folder, complaints)
        _repair(image)
        with _mounted(folder, "-o", "loop", image):
            return ended.code != 0, found + _completed(of, folder)


def _lost_blocks(of: Examples, complaints: Complaints, chance: random.Random) -> tuple[bool, list[str]]:
    """A disk whose unwritten blocks give an input/output error: it has less room than it pretends."""
    folder, below = of.place / "mounted", of.place / "below"
    with _mounted(below, "-t", "tmpfs", "-o", "size=32m", "none"), _image(of.place, below / "image") as image:

        def fill() -> None:
            with (below / "balloon").open("wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 4096):
                        pass
                except OSError:
                    return

        with _mounted(folder, "-o", "loop", image):
            ended = forked(lambda: of.train(folder / RUN, *ALL), folder, strike=_within_training(folder, chance, fill))
            found = _ended(ended, folder, complaints)
            (below / "balloon").unlink(missing_ok=True)
        _repair(image)
        with _mounted(folder, "-o", "loop", image):
            return ended.code != 0, found + _completed(of, folder)


def _within_training(folder: Path, chance: random.Random, act: Callable[[], None]) -> Strike:
    """Act when the log has a random number of lines."""
    lines = chance.randrange(12)

    def strike(process: int) -> None:
        log = folder / RUN / "log.jsonl"
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if log.exists() and log.read_bytes().count(b"\n") >= lines:
                time.sleep(chance.random() * 0.02)
                act()
                return
            time.sleep(0.001)

    return strike


def _ended(ended: Ended, folder: Path, complaints: Complaints) -> list[str]:
    return [] if ended.code == 0 else complaints(ended, folder)


def _completed(of: Examples, folder: Path) -> list[str]:
    """All is whole, and the work is completed."""
    try:
        check_readable(folder / RUN)
        of.complete(folder, lambda _: Ended(None, 0, "", ""), of.train)
        check(weights_of(folder / RUN) == of.done["train"], "the weights differ from an undisturbed run")
        check_tidy(folder)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return []


@contextmanager
def _mounted(folder: Path, *options: str | Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    system("mount", *options, folder)
    try:
        yield
    finally:
        system("umount", folder)


@contextmanager
def _image(place: Path, image: Path) -> Iterator[Path]:
    """A file with an empty file system."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    system("mkfs.ext4", "-q", "-F", image)
    try:
        yield image
    finally:
        image.unlink()


def _repair(image: Path) -> None:
    """What a system does at its start."""
    subprocess.run(["e2fsck", "-f", "-y", image], capture_output=True, check=False)

"""The place of a new run: what it may replace, and how it is either there as a whole or not at all.

    .NAME.new-PROCESS        a run that is being written beside the one that it replaces
    .NAME.replaced-PROCESS   the run that was replaced, until it is removed

A process that is killed leaves one of them behind, or a folder with a lock file and no config.json. The next command
that writes to the same place removes them; if the old run was moved away and the new one did not arrive, it moves the
old one back.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from charwright.data.mapped_text import MappedText
from charwright.data.texts import Text
from charwright.errors import RunError, RunExistsError, RunLockedError, for_shell
from charwright.locks import LOCK, alone_in, check_free
from charwright.processes import is_running
from charwright.schema import quoted
from charwright.storage import move, remove_temporary_files, sync_folder, write_file

OF_A_CREATION = {LOCK, "vocabulary.json", "model.safetensors", "corpus"}
"""What a creation has written before it writes config.json, which makes the folder a run."""
OF_A_RUN = OF_A_CREATION | {"config.json", "checkpoints", "tensorboard", "launch.json", "log.jsonl"}
"""What a run folder has, which `--force` replaces."""


TEACHERS = "-teachers"
LISTED = 5
"""Runs that a message lists, at most."""


def numbered(folder: Path) -> Iterator[Path]:
    """A folder, and then NAME-2, NAME-3, ... beside it."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))


def teachers_folder(folder: Path) -> Path:
    """The folder of the teachers of a run, beside it."""
    return folder.with_name(folder.name + TEACHERS)


def holds_teachers(folder: Path) -> bool:
    """Whether a folder is that of the teachers of a run."""
    return folder.name.endswith(TEACHERS) and (folder / "1" / "config.json").is_file()


def no_run_message(path: Path) -> str:
    """What is wrong with a path that is no run folder, and which runs are near it."""
    if path.is_file():
        trained = Path("runs") / path.stem
        hint = f"; a run is in {trained}" if (trained / "config.json").is_file() else ""
        return f"{path} is a file, not a run folder{hint}"
    if path.exists():
        return f"{path} is not a run folder: it has no config.json"
    places = [path.parent] if path.parent != Path() else [Path(), Path("runs")]
    runs = sorted(item.parent for place in places if place.is_dir() for item in place.glob("*/config.json"))
    exact = [run.name.lower() for run in runs if run.name.lower() == path.name.lower()]
    like = exact or difflib.get_close_matches(path.name.lower(), [run.name.lower() for run in runs], n=2)
    if close := [str(run) for run in runs if run.name.lower() in like]:
        return f"there is no run {str(path)!r}; did you mean {' or '.join(close)}?"
    more = f" and {len(runs) - LISTED:,} more" if len(runs) > LISTED else ""
    known = f"; there are {', '.join(map(str, runs[:LISTED]))}{more}" if runs else ""
    return f"there is no run {str(path)!r}{known}"


def check_place(folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that a new run would not overwrite anything.

    Raises:
        RunExistsError: when the folder exists and is not a run, or `force` is not given.
        RunLockedError: when another process trains in it.
        RunError: when a folder cannot be created there.
    """
    path = Path(folder)
    above = next((parent for parent in path.absolute().parents if parent.exists()), path)
    if not above.is_dir():
        raise RunError(f"cannot create the run folder {path}: {above} is not a folder; choose another with --out")
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not is_interrupted_creation(path))):
        is_run = (path / "config.json").is_file() and (path / "vocabulary.json").is_file()
        if not (force and is_run):
            raise RunExistsError(_exists_message(path, is_run))
        _check_replaceable(path)
    check_free(path)


def _check_replaceable(path: Path) -> None:
    """Check that nothing but a run is lost where a run is replaced.

    Raises:
        RunError: when the folder holds something else, or this process works in it.
    """
    others = sorted(e.name for e in path.iterdir() if e.name not in OF_A_RUN and not e.name.startswith("."))
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise RunError(
            f"--force would remove {path / others[0]}{more}, which is not the run's; move it, or choose another --out"
        )
    with suppress(OSError):  # The current folder may have been removed.
        if Path.cwd().is_relative_to(path.resolve()):
            raise RunError(f"--force would remove the current folder, {Path.cwd()}; start from another one")


def resolved(path: Path) -> Path:
    """A path without symbolic links.

    Raises:
        RunError: when they lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError as error:  # as Python before 3.13 says it
        raise RunError(f"{path} is a symbolic link that leads back to itself") from error


@contextmanager
def new_place(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write a new run into, config.json last; it is at `path` after the block.

    Until then a run that is replaced stays whole. After an error in the block everything is as it was before.

    Raises:
        RunError: (or a subclass) as for `check_place`, or when the system refuses.
    """
    place = resolved(path)  # A symbolic link stays one, and `.` gets a name.
    try:
        if not place.exists():
            remove_leftovers(place)
        check_place(path, force=force)
        replaces = (place / "config.json").is_file()
        with _beside(path, place) if replaces else _within(path, place) as new:
            yield new
    except (RunExistsError, RunLockedError):
        raise
    except (OSError, RunError) as error:
        reason = error.strerror if isinstance(error, OSError) else for_shell(error)
        advice = "" if "--out" in str(reason) else "; choose another with --out"
        raise RunError(f"cannot create the run folder {path}: {reason}{advice}") from error


@contextmanager
def _within(path: Path, place: Path) -> Iterator[Path]:
    """The folder itself: what is written into it is not a run before it has a config.json."""
    made = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with alone_in(place):
            # Another process may have created a run since the first look.
            _check_inside(path, place)
            try:
                remove_leftovers(place)
                _clear(place)
                yield place
            except BaseException:
                with suppress(OSError):
                    (place / "config.json").unlink()
                _clear(place)
                raise
    except BaseException:
        if made:
            with suppress(OSError):  # Not if another process uses it.
                place.rmdir()
        raise


def _check_inside(path: Path, place: Path) -> None:
    """Check that a folder whose lock this process holds is still free.

    Raises:
        RunExistsError: when another process has created a run in it.
    """
    if not is_interrupted_creation(place):
        raise RunExistsError(_exists_message(path, (place / "config.json").is_file()))


@contextmanager
def _beside(path: Path, place: Path) -> Iterator[Path]:
    """A folder beside the run that it replaces after the block."""
    new, old = (place.with_name(f".{place.name}.{kind}-{os.getpid()}") for kind in ("new", "replaced"))
    try:
        with alone_in(path):
            remove_leftovers(place)
            new.mkdir()
            yield new
            sync_folder(new)
            if os.name != "nt":
                _swap(place, new, old)
        if os.name == "nt":  # A folder with an open file cannot be moved there.
            _swap(place, new, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    with suppress(OSError):  # Without it, the rest is no run that could be moved back.
        (old / "config.json").unlink()
    shutil.rmtree(old, ignore_errors=True)


def _swap(place: Path, new: Path, old: Path) -> None:
    move(place, old)
    try:
        move(new, place)
    except BaseException:
        move(old, place)
        raise
    sync_folder(place.parent)


def remove_leftovers(place: Path) -> None:
    """Remove what killed processes left at a place and beside it; a run whose successor never arrived moves back.

    `place` is resolved.
    """
    for folder in (place, place / "corpus"):
        remove_temporary_files(folder)
    beside = re.compile(rf"\.{re.escape(place.name)}\.(new|replaced)-(\d+)")
    for path in place.parent.glob(f".{glob.escape(place.name)}.*"):
        match = beside.fullmatch(path.name)
        if match is None or is_running(int(match[2])):
            continue
        if match[1] == "replaced" and not place.exists() and (path / "config.json").is_file():
            with suppress(OSError):
                move(path, place)
        shutil.rmtree(path, ignore_errors=True)


def is_interrupted_creation(path: Path) -> bool:
    """Whether a folder has nothing but what a creation writes before its end, under the creation's lock file."""
    names = {entry.name for entry in path.iterdir()}
    temporary = {name for name in names if re.fullmatch(r"\..+\.\d+\.tmp", name)}
    return LOCK in names and names - temporary <= OF_A_CREATION


def _clear(place: Path) -> None:
    """Remove the files of a creation that did not come to its end."""
    for name in ("vocabulary.json", "model.safetensors", "corpus/stdin.txt"):
        with suppress(OSError):
            (place / name).unlink()
    with suppress(OSError):
        (place / "corpus").rmdir()


def _exists_message(path: Path, is_run: bool) -> str:
    if not is_run:
        return f"{path} exists and is not a run; choose another with --out"
    resume = f"charwright train --resume {quoted(path)}"
    return f"{path} already holds a run; continue it with `{resume}`, replace it with --force, or choose another --out"


def keep_text(path: Path, text: Text) -> None:
    """Write a text that cannot be read again into a run, as UTF-8."""
    path.parent.mkdir(exist_ok=True)
    pieces = text.pieces() if isinstance(text, MappedText) else [text[:]]
    write_file(path, (piece.encode("utf-8") for piece in pieces))

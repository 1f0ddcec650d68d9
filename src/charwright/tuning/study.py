"""The folder of a search: its Optuna study, opened by one process at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna

from charwright.config import RENAMED, Recipe
from charwright.errors import DamagedRunError, RunError, UsageError
from charwright.locks import LOCK, locked
from charwright.schema import flag
from charwright.storage import drop_cut_line
from charwright.tuning.storages import Journal

JOURNAL = "journal.jsonl"
MARKER = "study.json"
"""In the folder of a worker whose study is in a storage: which one."""

NAME = "search"
COMPARED = 5  # complete trials before one is pruned for being worse than their median


@contextmanager
def open_study(folder: Path, start: Callable[[], Recipe], protocol: Mapping[str, Any]) -> Iterator[optuna.Study]:
    """The study in a folder, new or continued, locked for this process.

    Two searches at once would compete for the cores, and a trial is judged by what it learns in its time.

    Args:
        folder: created if it does not exist.
        start: makes the recipe of the first trial of a new search.
        protocol: what makes two trials comparable, by option; that of the text is `text`. It must have `--seed` and
            `--minutes-per-trial`.

    Raises:
        RunError: when the folder holds something else, another process searches in it, or the system refuses.
        UsageError: when the search in the folder has another protocol.
        DamagedRunError: when its journal cannot be read.
    """
    with searching_alone(folder), quiet():
        yield _opened(folder, start, protocol)


@contextmanager
def searching_alone(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a search folder, created if it does not exist; `shared` if its study is in a storage.

    Raises:
        RunError: when the folder holds something else, or another process searches in it.
    """
    check_place(folder, shared=shared)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create the folder {folder}: {error.strerror}; choose another with --out") from error
    with locked(folder / LOCK) as alone:
        if not alone:
            raise RunError(f"another process is searching in {folder}; wait for it, or choose another --out")
        try:
            yield
        except BaseException:
            if is_new:
                _remove_unused(folder)
            raise


def _remove_unused(folder: Path) -> None:
    """Remove a folder of a search that could not begin: nothing but its lock is in it."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def check_place(folder: Path, *, shared: bool = False) -> None:
    """Check that a folder is free or holds a search; `shared` if its study is in a storage.

    Raises:
        RunError: when it holds something else.
    """
    mine, other = (MARKER, JOURNAL) if shared else (JOURNAL, MARKER)
    if (folder / other).is_file():
        problem = "keeps its study in the folder: leave --storage out" if shared else "has its study in a --storage"
        raise RunError(f"{folder} is a search that {problem}, or choose another place with --out")
    if not folder.exists() or (folder / mine).is_file():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise RunError(f"{folder} exists and is not a search; choose another place with --out")


def _opened(folder: Path, start: Callable[[], Recipe], protocol: Mapping[str, Any]) -> optuna.Study:
    path = folder / JOURNAL
    drop_cut_line(path)
    with suppress(OSError):  # What an earlier version left when its process was killed.
        (folder / f"{JOURNAL}.lock").unlink()
    try:
        study = new_study(optuna.storages.JournalStorage(Journal(path)), NAME)
        attributes = study.user_attrs
    except (
        DamagedRunError,
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = error.for_shell if isinstance(error, DamagedRunError) else repr(error)
        raise DamagedRunError(f"{path} is damaged: {reason[:200]}; start a new search with another --out") from error
    if "protocol" not in attributes:
        study.set_user_attr("start", start().to_json())
        study.set_user_attr("protocol", dict(protocol))
    refuse_other_protocol(str(folder), study.user_attrs["protocol"], protocol, "--out")
    return study


def new_study(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """The study of this name, created if it does not exist."""
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPARED),
        load_if_exists=True,
    )


def refuse_other_protocol(named: str, stored: Mapping[str, Any], given: Mapping[str, Any], option: str) -> None:
    """Check that new trials can be compared with those of a search; `option` chooses another place.

    Raises:
        UsageError: naming what differs.
    """
    old_names = {flag(old): flag(new) for old, new in RENAMED.items()}
    stored = {old_names.get(name, name): value for name, value in stored.items()}
    # The stored values have been through JSON, which has no tuples.
    for name, value in json.loads(json.dumps(dict(given))).items():
        if stored.get(name) == value or (name == "--core" and value == "auto" and name in stored):
            continue  # An earlier version stored the core that `auto` selected, and a search goes on with its core.
        if name == "text":
            raise UsageError(f"{named} is a search for another text; choose another place with {option}")
        raise UsageError(
            f"{named} is a search with {name} {_shown(stored.get(name))}, not {_shown(value)}; its trials cannot be"
            f" compared with new ones; choose another place with {option}"
        )


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's own log and warnings."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)

"""Where a search of several workers keeps its study: a journal file that they share, or a database."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from charwright.errors import DamagedRunError, MissingExtraError, RunError
from charwright.locks import held
from charwright.storage import trim_cut_line

ATTEMPTS, RETRY_S = 10, 0.3  # at creating the tables of an empty database


class _NoLock(JournalFileOpenLock):
    """The journal is locked by `Journal` itself."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Journal(JournalFileBackend):
    """Optuna's journal file, under a lock that the system releases when a worker is killed.

    Optuna's own lock files stay behind then, and a line that was cut off would make the whole journal unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._place = path
        with self._reporting():
            super().__init__(str(path), _NoLock(str(path)))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, alone, after a whole line."""
        with self._reporting(), held(self._place) as file:
            trim_cut_line(file)
            super().append_logs(logs)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read the entries from a number on."""
        with self._reporting():
            yield from super().read_logs(log_number_from)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot use {self._place}: {error.strerror or error}") from error
        except ValueError as error:
            raise DamagedRunError(f"{self._place} is not a journal of searches: {error}") from error


@contextmanager
def open_storage(spec: str) -> Iterator[BaseStorage]:
    """The storage that `--storage` names: the address of a database, or a file that is created if it does not exist.

    What goes wrong with it during the block is reported as one line.

    Raises:
        RunError: when it cannot be used.
        MissingExtraError: when the driver of PostgreSQL is not installed.
    """
    if "://" not in spec:
        yield optuna.storages.JournalStorage(Journal(Path(spec)))
        return
    with _reporting(spec):
        database = _database(_with_driver(spec))
        try:
            yield database
        finally:
            database.remove_session()
            database.engine.dispose()


def _database(address: str) -> optuna.storages.RDBStorage:
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for attempt in range(ATTEMPTS):
        try:
            # A connection that broke while a trial ran is noticed, and made anew.
            return optuna.storages.RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # Another worker creates the same tables at this moment.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(RETRY_S)
    raise AssertionError("unreachable")


def shown(spec: str) -> str:
    """A storage for people, without its password."""
    if "://" not in spec:
        return spec
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(spec).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"{spec.partition('://')[0]}://..."


@contextmanager
def _reporting(spec: str) -> Iterator[None]:
    """Report what goes wrong with a storage as one line.

    Raises:
        RunError: when the file or the database cannot be used.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause: BaseException = error
        while isinstance(cause, optuna.exceptions.StorageInternalError) and cause.__cause__ is not None:
            cause = cause.__cause__
        first = str(cause).strip().partition("\n")[0]
        raise RunError(f"cannot use the database {shown(spec)}: {first}") from error


def _with_driver(spec: str) -> str:
    """The address with the name of a driver that is installed, if it is one of PostgreSQL without a driver."""
    scheme, _, rest = spec.partition("://")
    if scheme not in {"postgresql", "postgres"}:
        return spec
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a search in PostgreSQL", "postgres") from error
    return f"postgresql+psycopg://{rest}"

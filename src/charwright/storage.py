"""Plain data on disk: files and folders that are written atomically, and JSON that is read strictly.

A file is written to a temporary file in the same folder, flushed to disk and moved into place, so that it is complete
or unchanged. A file that is read has exactly the expected keys and types, or the error names the file and the key.
Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from charwright.errors import DamagedRunError, RunError
from charwright.processes import is_running

FORMAT = 1
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
UNSYNCED = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
"""The errors of a file system, or a folder, whose entries cannot be flushed; the files are there nevertheless."""
Checked = TypeVar("Checked", str, int, dict[str, Any], list[Any])


def move(source: Path, target: Path) -> None:
    """Move a file or folder into place. On Windows another program may hold it for a while, such as a virus scanner."""
    into_place = source.rename if source.is_dir() else source.replace
    for pause_s in PAUSES_S if os.name == "nt" else ():
        with suppress(PermissionError):
            into_place(target)
            return
        time.sleep(pause_s)
    into_place(target)


def write_file(path: Path, data: bytes | Iterable[bytes | memoryview], mode: int | None = None) -> None:
    """Write a file atomically: a temporary file, flushed and moved into place; then the folder's entry is flushed.

    `data` may come in parts. With `mode`, the file has these permissions before it has any content.

    Raises:
        RunError: when the system refuses; an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if mode is not None:
                with suppress(OSError):  # Not every file system has them.
                    temporary.chmod(mode)
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes left that were killed while they wrote the same file or folder."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(tmp|new|old)")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = ours.fullmatch(left.name)
        if match and int(match[1]) != os.getpid() and not is_running(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(left) if match[2] != "tmp" else left.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that `write_file` left in a folder when its process was killed."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            with suppress(OSError):
                path.unlink()


_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `path` once it is complete; a symbolic link stays one.

    Raises:
        RunError: when the system refuses; an existing folder is unchanged.
    """
    path = path.resolve()
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{ending}") for ending in ("new", "old"))
    for left in (new, old):  # A killed process may have had the same number.
        shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        for folder in (new, *(inner for inner in new.rglob("*") if inner.is_dir())):
            sync_folder(folder)
        if path.exists():
            move(path, old)
        move(new, path)
        sync_folder(path.parent)
        _remove_abandoned(path)
    except OSError as error:
        if old.exists() and not path.exists():
            with suppress(OSError):
                move(old, path)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():  # Otherwise the old one could not be moved back, and is all that there is.
            shutil.rmtree(old, ignore_errors=True)


def file_identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that replaced it: inode, size and time of change; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the system can do that: some network file systems cannot."""
    if os.name == "nt":
        return  # Windows cannot open folders.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


# JSON.


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        # A file name may not be valid Unicode; escaped, it survives the round trip.
        data = json.dumps(values, indent=1, allow_nan=False).encode("ascii")
    write_file(path, data + b"\n")


def read_json(path: Path, advice: str = "") -> Any:
    """Read a JSON file.

    Raises:
        DamagedRunError: when it is missing or not JSON, with advice after the message.
    """
    with reading(path, ValueError, RecursionError, advice=advice):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def reading(path: Path, *damages: type[Exception], advice: str = "") -> Iterator[None]:
    """In the block, a file is read; `damages` are the errors of content that is none of its format.

    Raises:
        DamagedRunError: when the file is missing, cannot be read or is damaged, with advice after the message.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path} is missing{advice}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except damages as error:
        raise DamagedRunError(f"{path} is damaged: {error}{advice}") from error


def json_sha256(path: Path) -> str:
    """The SHA-256 of the values of a JSON file, however they are laid out."""
    return hashlib.sha256(json.dumps(read_json(path), sort_keys=True).encode("ascii")).hexdigest()


def unreadable(path: Path, error: OSError) -> DamagedRunError:
    """A file that is there and cannot be read, for which an older one serves as it does for a damaged one."""
    return DamagedRunError(f"cannot read {path}: {error.strerror or error}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a line to a file with one JSON object per line."""
    line = json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                line = b"\n" + line  # A kill truncated the last line; this one must not be lost with it.
            file.write(line)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of such a file, none if there is no file; a truncated line is skipped.

    Raises:
        DamagedRunError: when the system cannot read it.
    """
    if path.is_file():
        # Not splitlines(): a sample may contain other line separators of Unicode.
        for line in _read(path).split(b"\n"):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                yield values


def drop_cut_line(path: Path) -> None:
    """Remove a last line that a kill truncated, from a file that other libraries append to."""
    data = _read(path) if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_file(path, data[: data.rfind(b"\n") + 1])


def trim_cut_line(file: BinaryIO) -> None:
    """The same for a file that is open and locked, and that others read meanwhile."""
    if file.seek(0, os.SEEK_END) and not _ends_with_newline(file):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


# Checks of JSON values.


def exact_object(values: Any, keys: set[str], where: str) -> dict[str, Any]:
    """A JSON object with exactly these keys; `where` names the place in messages."""
    if not isinstance(values, dict):
        raise DamagedRunError(f"{where} is damaged: expected an object")
    for key in sorted(set(values) ^ keys):
        raise DamagedRunError(f"{where}: the key {key!r} is {'unknown' if key in values else 'missing'}")
    return values


def checked(value: Any, kind: type[Checked], where: str) -> Checked:
    """A value of exactly this type."""
    if type(value) is not kind:
        raise DamagedRunError(f"{where} must be {_KINDS[kind]}, not {json.dumps(value)[:40]}")
    return value


_KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a float",
    dict: "an object",
    list: "a list",
}


def check_format(values: Any, where: str) -> None:
    """Refuse a later format by its number, before its content looks damaged."""
    version = values.get("format") if isinstance(values, dict) else None
    if version is not None and (type(version) is not int or version < 1):
        raise DamagedRunError(f"{where}: format must be an integer of at least 1, not {json.dumps(version)[:40]}")
    if version is not None and version > FORMAT:
        raise DamagedRunError(f"{where} has format {version}; this charwright reads up to {FORMAT}: update it")


# Manifests: a folder that is valid only if all its files are intact.


def write_manifest(folder: Path, step: int) -> None:
    """Write the sizes and SHA-256 hashes of the files in a folder; written last, it marks the folder as complete."""
    listed = {path.name: _size_and_hash(path) for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", {"format": FORMAT, "step": step, "files": listed})


def check_manifest(folder: Path) -> list[str]:
    """The files of a folder, each checked against the manifest."""
    where = str(folder / "manifest.json")
    values = read_json(folder / "manifest.json")
    check_format(values, where)
    manifest = exact_object(values, {"format", "step", "files"}, where)
    files = checked(manifest["files"], dict, f"{where}: files")
    present = {path.name for path in folder.iterdir() if path.is_file()}
    for name, expected in files.items():
        # Only a name in the listing is opened: another may be too long, or lead out of the folder.
        if name not in present or _size_and_hash(folder / name) != expected:
            raise DamagedRunError(f"{folder / name[:80]} is missing or differs from manifest.json")
    return list(files)


def _size_and_hash(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": sha256}
    except OSError as error:
        raise unreadable(path, error) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        DamagedRunError: when it cannot be read.
    """
    return str(_size_and_hash(path)["sha256"])

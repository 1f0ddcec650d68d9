"""Plain data on the disk, safetensors and JSON: written whole or not at all, read strictly.

A file is written beside its place, flushed to the disk and moved there, so that it is whole or as it was before. What
is read has just the keys and the types that it should have, or the error names the file and the key. Nothing is
unpickled, ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from charwright.errors import DamagedRunError, RunError

FORMAT = 1
Arrays = dict[str, npt.NDArray[np.float32]]
Checked = TypeVar("Checked", str, int, dict[str, Any], list[Any])


def write_file(path: Path, data: bytes) -> None:
    """A temporary file in the same folder, flushed to the disk, moved into place; then the folder's own entry.

    Raises:
        RunError: when the system refuses; what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which stands in its place only once it is filled; what stood there before goes then.

    Raises:
        RunError: when the system refuses; what stood there before is untouched.
    """
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{ending}") for ending in ("new", "old"))
    try:
        new.mkdir()
        yield new
        for folder in (new, *(inner for inner in new.rglob("*") if inner.is_dir())):
            sync_folder(folder)
        if path.exists():
            path.rename(old)
        new.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush to the disk which names a folder holds."""
    if os.name == "nt":
        return  # Windows has no handle for folders.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file meanwhile; False where another process holds it.

    The system lets go of it with the process, however that ends, so that a lock which is left behind does not exist.

    Raises:
        RunError: when the file cannot be made.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    with file:
        yield _lock(file)


def _lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# Arrays.


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.numpy import save

    write_file(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file of float32 arrays.

    Raises:
        DamagedRunError: when it is cut off, no safetensors, or of another type.
    """
    return read_mixed_arrays(path, {"F32"})


def read_mixed_arrays(path: Path, kinds: Set[str]) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file of arrays whose types are among `kinds`, by the names that the format gives them.

    Raises:
        DamagedRunError: when it is cut off, no safetensors, or of another type.
    """
    from safetensors import SafetensorError, safe_open

    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                # Asked before it is read: numpy does not have all of the format's types.
                if (kind := file.get_slice(name).get_dtype()) not in kinds:
                    raise DamagedRunError(f"{path}: {name!r} is {kind}, not {' or '.join(sorted(kinds))}")
                arrays[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path} is missing") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedRunError(f"{path} is damaged: {error}") from error
    return arrays


# JSON.


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        # The name of a file need not be valid text; escaped, it still comes back as it was.
        data = json.dumps(values, indent=1, allow_nan=False).encode("ascii")
    write_file(path, data + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DamagedRunError: when it is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path} is damaged: {error}") from error


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line to a file that has a JSON object on each."""
    line = json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                line = b"\n" + line  # A kill cut the last line off; this one must not be lost with it.
            file.write(line)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of such a file, none where there is no file; a line that was cut off is passed over."""
    if path.is_file():
        # Not splitlines(): a sample may hold one of the other characters that end a line for Unicode.
        for line in path.read_bytes().split(b"\n"):
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                yield values


def drop_cut_line(path: Path) -> None:
    """Take the last line of a file away where a kill cut it off; for files that others add lines to."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_file(path, data[: data.rfind(b"\n") + 1])


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


# What JSON values must be.


def exact_object(values: Any, keys: set[str], where: str) -> dict[str, Any]:
    """A JSON object with just these keys; `where` names the place in messages."""
    if not isinstance(values, dict):
        raise DamagedRunError(f"{where} is damaged: an object was expected")
    for key in sorted(set(values) ^ keys):
        raise DamagedRunError(f"{where}: the key {key!r} is {'unknown' if key in values else 'missing'}")
    return values


def checked(value: Any, kind: type[Checked], where: str) -> Checked:
    """A value that is of just this type."""
    if type(value) is not kind:
        raise DamagedRunError(f"{where} must be {_KINDS[kind]}, not {json.dumps(value)[:40]}")
    return value


_KINDS: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number with a point",
    dict: "an object",
    list: "a list",
}


def check_format(values: Any, where: str) -> None:
    """Refuse a later format by its number, before anything in it looks odd."""
    version = values.get("format") if isinstance(values, dict) else None
    if version is not None and (type(version) is not int or version < 1):
        raise DamagedRunError(f"{where}: format must be a whole number from 1 on, not {json.dumps(version)[:40]}")
    if version is not None and version > FORMAT:
        raise DamagedRunError(f"{where} has format {version}; this charwright reads up to {FORMAT}: update it")


# Manifests: a folder of files that counts only as a whole.


def write_manifest(folder: Path, step: int) -> None:
    """List the files of a folder with their sizes and SHA-256; written last, it vouches for all of them."""
    listed = {path.name: _size_and_hash(path) for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", {"format": FORMAT, "step": step, "files": listed})


def check_manifest(folder: Path) -> list[str]:
    """The files of a folder, after each was found to be what the manifest says."""
    where = str(folder / "manifest.json")
    values = read_json(folder / "manifest.json")
    check_format(values, where)
    manifest = exact_object(values, {"format", "step", "files"}, where)
    files = checked(manifest["files"], dict, f"{where}: files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or _size_and_hash(path) != expected:
            raise DamagedRunError(f"{path} is missing or not what manifest.json says")
    return list(files)


def _size_and_hash(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

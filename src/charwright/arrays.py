"""Arrays on disk: safetensors files with a checksum, written atomically, read strictly, and never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.errors import DamagedRunError
from charwright.storage import reading, write_file

Arrays = dict[str, npt.NDArray[np.float32]]

KINDS = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32",
    "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The format's names of the types that are written, in the order of their arrays in a file."""
CHECKSUM = "charwright_sha256"
"""The entry of the metadata with the SHA-256 of all that follows the header."""


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with a checksum beside the `metadata`.

    The format: the length of the header in 8 bytes, the header in JSON padded to a multiple of 8 bytes, the arrays. The
    library's `save` would copy all arrays in memory.
    """
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    order = _in_file_order(whole)
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), CHECKSUM: _checksum(whole)}}
    end = 0
    for name in order:
        begin, end = end, end + whole[name].nbytes
        kind, shape = KINDS[whole[name].dtype.name], list(whole[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    write_file(path, chain([len(text).to_bytes(8, "little"), text], (_bytes_of(whole[name]) for name in order)))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError):
        return {}


def _in_file_order(arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    ranks = {kind: rank for rank, kind in enumerate(KINDS)}
    return sorted(arrays, key=lambda name: (ranks[arrays[name].dtype.name], name))


def _checksum(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in _in_file_order(arrays):
        digest.update(_bytes_of(arrays[name]))
    return digest.hexdigest()


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """SHA-256 over all arrays and their names, in whatever file. That of the weights identifies a model."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.digest()


def problem_of(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What keeps arrays from being weights of these names and shapes; None if they are."""
    for name in sorted(set(arrays) ^ set(shapes)):
        return f"the weight {name!r} is {'unknown' if name in arrays else 'missing'}"
    for name, shape in shapes.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            return f"the weight {name!r} is no array of NumPy: pass model.arrays()"
        if array.shape != shape:
            return f"the weight {name!r} has shape {array.shape}, not {shape}"
        if array.dtype != np.float32:
            return f"the weight {name!r} is {array.dtype}, not float32"
        if not np.isfinite(array).all():
            return f"the weight {name!r} has a value that is not finite"
    return None


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file of float32 arrays.

    Raises:
        DamagedRunError: when it is truncated, changed, not safetensors, or of another type.
    """
    return read_mixed_arrays(path, {"F32"})


def read_mixed_arrays(path: Path, kinds: Set[str]) -> dict[str, npt.NDArray[Any]]:
    """The same with types among `kinds`, by the names of the format."""
    return read_with_metadata(path, kinds)[0]


def read_with_metadata(path: Path, kinds: Set[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The same with the metadata of the file.

    Raises:
        DamagedRunError: when it is truncated, changed, not safetensors, or of another type.
    """
    from safetensors import SafetensorError, safe_open

    arrays: dict[str, npt.NDArray[Any]] = {}
    with reading(path, SafetensorError, ValueError):
        path.open("rb").close()  # The library calls what it may not read missing.
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a dictionary)
                # Checked before reading: numpy lacks some of the format's types.
                if (kind := file.get_slice(name).get_dtype()) not in kinds:
                    raise DamagedRunError(f"{path}: {name!r} is {kind}, not {' or '.join(sorted(kinds))}")
                arrays[name] = file.get_tensor(name)
            metadata: dict[str, str] = file.metadata() or {}
    if CHECKSUM in metadata and _checksum(arrays) != metadata[CHECKSUM]:
        raise DamagedRunError(
            f"{path} is damaged: its content has changed since it was written (a program that edits weights leaves "
            f"out {CHECKSUM} of the metadata)"
        )
    return arrays, metadata

"""Texts put aside: all that it takes to go on exactly where they stopped, in one safetensors file.

For each text the network's state, the last ids, and the key and count of its random numbers; and a hash of the
weights, so that it does not go on with another model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.errors import DamagedRunError, UsageError
from charwright.generation.engine import PRECISIONS, Engine, Stream
from charwright.generation.sampling import PENALTY_WINDOW, Sampler
from charwright.storage import read_mixed_arrays, write_arrays

FORMAT = 1
KINDS = {"F32", "I32", "I64", "U64", "U8"}


def fingerprint(weights: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.digest()


def write_paused(path: Path, engine: Engine, model: bytes, streams: Sequence[Stream]) -> None:
    """Put texts aside; `model` is the fingerprint of the weights."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "format": np.array([FORMAT, PRECISIONS.index(engine.precision), len(streams)], dtype=np.int64),
        "model": np.frombuffer(model, dtype=np.uint8),
    }
    for index, stream in enumerate(streams):
        first = max(0, min(stream.at, stream.length - PENALTY_WINDOW))
        key = [stream.sampler.seed, stream.sampler.stream, stream.drawn, stream.at - first]
        arrays[f"{index}.state"] = stream.state
        arrays[f"{index}.ids"] = stream.ids[first : stream.length]
        arrays[f"{index}.random"] = np.array(key, dtype=np.uint64)
    write_arrays(path, arrays)


def paused_precision(path: Path) -> str:
    """The precision that the texts in a file were written with."""
    return PRECISIONS[int(_head(path, read_mixed_arrays(path, KINDS))[1])]


def read_paused(path: Path, engine: Engine, model: bytes) -> list[Stream]:
    """The texts of a file, ready to go on.

    Raises:
        UsageError: when they were written with another model or precision.
        DamagedRunError: when the file is something else.
    """
    arrays = read_mixed_arrays(path, KINDS)
    head = _head(path, arrays)
    if arrays.get("model", np.zeros(0)).tobytes() != model:
        raise UsageError(f"{path} was written with another model; go on with the run that it comes from")
    if (precision := PRECISIONS[int(head[1])]) != engine.precision:
        raise UsageError(f"{path} was written with --precision {precision}; go on with the same")
    return [_stream(path, arrays, str(index), engine) for index in range(int(head[2]))]


def _head(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    head = arrays.get("format", np.zeros(0))
    if head.shape != (3,) or head.dtype != np.int64 or head[0] < 1 or head[2] < 1:
        raise DamagedRunError(f"{path} holds no text to go on with; --state-out writes such a file")
    if head[0] > FORMAT or not 0 <= head[1] < len(PRECISIONS):
        raise DamagedRunError(f"{path} comes from a later version")
    return head


def _stream(path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str, engine: Engine) -> Stream:
    zero = engine.zero_state()[0]
    try:
        state, ids, random = (arrays[f"{name}.{part}"] for part in ("state", "ids", "random"))
    except KeyError as error:
        raise DamagedRunError(f"{path} is damaged: {error.args[0]!r} is missing") from error
    if state.shape != zero.shape or state.dtype != zero.dtype or not np.isfinite(state).all():
        raise DamagedRunError(f"{path} is damaged: '{name}.state' is no state of this model")
    if ids.ndim != 1 or ids.dtype != np.int32 or not len(ids) or ids.min() < 0 or ids.max() >= engine.vocabulary_size:
        raise DamagedRunError(f"{path} is damaged: '{name}.ids' are no ids of this model")
    if random.shape != (4,) or random.dtype != np.uint64 or random[3] >= len(ids):
        raise DamagedRunError(f"{path} is damaged: '{name}.random' does not fit")
    seed, stream, drawn, at = (int(number) for number in random)
    sampler = Sampler(seed=seed, stream=stream)
    return Stream(state.copy(), ids.copy(), len(ids), at, sampler=sampler, drawn=drawn)

"""Texts put aside: all that it takes to go on exactly where they stopped, in one safetensors file.

For each text the network's state, the last ids, those that were not shown yet, and the key and count of its random
numbers; a hash of the weights, so that it does not go on with another model, and one of all this.
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
from charwright.generation.session import Paused
from charwright.storage import read_mixed_arrays, write_arrays

FORMAT = 1
KINDS = {"F32", "I32", "I64", "U64", "U8"}


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """SHA-256 over all arrays and their names: of the weights, what tells one model from another."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.digest()


def write_paused(path: Path, engine: Engine, model: bytes, texts: Sequence[Paused]) -> None:
    """Put texts aside; `model` is the fingerprint of the weights.

    Raises:
        RunError: when the system refuses; then there is no file, or the one that was there before.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "format": np.array([FORMAT, PRECISIONS.index(engine.precision), len(texts)], dtype=np.int64),
        "model": np.frombuffer(model, dtype=np.uint8),
    }
    for index, text in enumerate(texts):
        stream = text.stream
        first = max(0, min(stream.at, stream.length - PENALTY_WINDOW))
        key = [stream.sampler.seed, stream.sampler.stream, stream.drawn, stream.at - first]
        arrays[f"{index}.state"] = stream.state
        arrays[f"{index}.ids"] = stream.ids[first : stream.length]
        arrays[f"{index}.random"] = np.array(key, dtype=np.uint64)
        arrays[f"{index}.unshown"] = text.unshown
    write_arrays(path, arrays | {"check": np.frombuffer(fingerprint(arrays), dtype=np.uint8)})


def paused_precision(path: Path) -> str:
    """The precision that the texts in a file were written with.

    Raises:
        DamagedRunError: when the file is something else.
    """
    return PRECISIONS[int(_arrays(path)["format"][1])]


def read_paused(path: Path, engine: Engine, model: bytes) -> list[Paused]:
    """The texts of a file, ready to go on.

    Raises:
        UsageError: when they were written with another model or precision.
        DamagedRunError: when the file is something else.
    """
    arrays = _arrays(path)
    _, precision, count = arrays["format"].tolist()
    if arrays.get("model", np.zeros(0)).tobytes() != model:
        raise UsageError(f"{path} was written with another model; go on with the run that it comes from")
    if PRECISIONS[precision] != engine.precision:
        raise UsageError(f"{path} was written with --precision {PRECISIONS[precision]}; go on with the same")
    try:
        return [_text(arrays, str(index), engine) for index in range(count)]
    except (KeyError, ValueError) as error:
        raise DamagedRunError(f"{path} is damaged: {error.args[0]}") from error


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What the file holds, when it is such a file and whole."""
    try:
        arrays = read_mixed_arrays(path, KINDS)
    except DamagedRunError as error:
        if not path.is_file():
            raise
        raise DamagedRunError(f"{error}; --state-in goes on with a whole file that --state-out has written") from error
    head = arrays.get("format", np.zeros(0))
    if head.shape != (3,) or head.dtype != np.int64 or head[0] < 1:
        raise DamagedRunError(f"{path} holds no text to go on with; --state-out writes such a file")
    if head[0] > FORMAT or not 0 <= head[1] < len(PRECISIONS):
        raise DamagedRunError(f"{path} comes from a later version")
    check = arrays.pop("check", np.zeros(0))
    if check.tobytes() != fingerprint(arrays):
        raise DamagedRunError(f"{path} is damaged: it is not what was written")
    return arrays


def _text(arrays: Mapping[str, npt.NDArray[Any]], name: str, engine: Engine) -> Paused:
    """One of the texts; what does not fit the engine would make it read where nothing is."""
    state, random = arrays[f"{name}.state"], arrays[f"{name}.random"]
    ids, unshown = (_ids(arrays[f"{name}.{part}"], engine) for part in ("ids", "unshown"))
    zero = engine.zero_state()[0]
    if state.shape != zero.shape or state.dtype != zero.dtype or not np.isfinite(state).all():
        raise ValueError(f"{name}.state is no state of this model")
    if random.shape != (4,) or random.dtype != np.uint64 or random[3] >= len(ids):
        raise ValueError(f"{name}.random does not fit")
    seed, stream, drawn, at = random.tolist()
    sampler = Sampler(seed=seed, stream=stream)
    return Paused(Stream(state.copy(), ids.copy(), len(ids), at, sampler=sampler, drawn=drawn), unshown)


def _ids(ids: npt.NDArray[Any], engine: Engine) -> npt.NDArray[np.int32]:
    if (
        ids.ndim != 1
        or ids.dtype != np.int32
        or (len(ids) and not 0 <= ids.min() <= ids.max() < engine.vocabulary_size)
    ):
        raise ValueError("it has ids that this model does not know")
    return ids

"""Paused texts: everything needed to continue them exactly where they stopped, in one safetensors file.

For each text: the network's state, the last ids, the ids not shown yet, and the key and count of its random numbers.
For the file: a hash of the weights, so that it is not continued with another model, and a checksum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.arrays import fingerprint, read_mixed_arrays, write_arrays
from charwright.errors import DamagedRunError, UsageError
from charwright.generation.draft import Paused
from charwright.generation.engine import PRECISIONS, Engine
from charwright.generation.repetition import PENALTY_WINDOW
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Stream

FORMAT = 1
KINDS = {"F32", "I32", "I64", "U64", "U8"}


def write_paused(path: Path, engine: Engine, model: bytes, texts: Sequence[Paused]) -> None:
    """Write paused texts. `model` is the fingerprint of the weights.

    Raises:
        RunError: if the file cannot be written; a file that existed before is unchanged.
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
    """The precision with which the texts of a file were generated.

    Raises:
        DamagedRunError: if it is not a file of paused texts.
    """
    return PRECISIONS[int(_arrays(path)["format"][1])]


def holds_paused(path: Path) -> bool:
    """Whether a file is one of paused texts, which a newer one may replace."""
    try:
        _arrays(path)
    except DamagedRunError:
        return False
    return True


def read_paused(path: Path, engine: Engine, model: bytes) -> list[Paused]:
    """Read the paused texts of a file.

    Raises:
        UsageError: if they were generated with another model or precision.
        DamagedRunError: if it is not a file of paused texts.
    """
    arrays = _arrays(path)
    _, precision, count = arrays["format"].tolist()
    if arrays.get("model", np.zeros(0)).tobytes() != model:
        raise UsageError(f"{path} belongs to another model; use the run that it was saved with")
    if PRECISIONS[precision] != engine.precision:
        raise UsageError(f"{path} was saved with --precision {PRECISIONS[precision]}; use the same")
    try:
        return [_text(arrays, str(index), engine) for index in range(count)]
    except (KeyError, ValueError) as error:
        raise DamagedRunError(f"{path} is damaged: {error.args[0]}") from error


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a file and verify its format and checksum."""
    try:
        arrays = read_mixed_arrays(path, KINDS)
    except DamagedRunError as error:
        if not path.is_file():
            raise
        raise DamagedRunError(f"{path} is damaged, or was not written by --state-out") from error
    head = arrays.get("format", np.zeros(0))
    if head.shape != (3,) or head.dtype != np.int64 or head[0] < 1:
        raise DamagedRunError(f"{path} does not contain a paused text; --state-out writes one")
    if head[0] > FORMAT or not 0 <= head[1] < len(PRECISIONS):
        raise DamagedRunError(f"{path} was saved by a later version of charwright; update charwright to read it")
    check = arrays.pop("check", np.zeros(0))
    if check.tobytes() != fingerprint(arrays):
        raise DamagedRunError(f"{path} is damaged: its checksum does not match")
    return arrays


def _text(arrays: Mapping[str, npt.NDArray[Any]], name: str, engine: Engine) -> Paused:
    """One of the texts. Arrays that do not fit the engine would make it read outside their memory."""
    state, random = arrays[f"{name}.state"], arrays[f"{name}.random"]
    ids, unshown = (_ids(arrays[f"{name}.{part}"], engine) for part in ("ids", "unshown"))
    if not _is_state(state, engine):
        raise ValueError(f"{name}.state does not fit this model")
    if random.shape != (4,) or random.dtype != np.uint64 or random[3] >= len(ids):
        raise ValueError(f"{name}.random does not fit")
    seed, stream, drawn, at = random.tolist()
    sampler = Sampler(seed=seed, stream=stream)
    return Paused(Stream(state.copy(), ids.copy(), len(ids), at, sampler=sampler, drawn=drawn), unshown)


def _is_state(state: npt.NDArray[Any], engine: Engine) -> bool:
    zero = engine.zero_state()[0]
    if state.shape != zero.shape or state.dtype != zero.dtype or not np.isfinite(state).all():
        return False
    config = engine.config
    before = state[-1, 0, : config.ngram_order - 1] if config.ngram_bits else np.zeros(1)  # 1 + id of each token, or 0
    return bool(before.min() >= 0 and before.max() <= engine.vocabulary_size)


def _ids(ids: npt.NDArray[Any], engine: Engine) -> npt.NDArray[np.int32]:
    if (
        ids.ndim != 1
        or ids.dtype != np.int32
        or (len(ids) and not 0 <= ids.min() <= ids.max() < engine.vocabulary_size)
    ):
        raise ValueError("it has ids outside this model's vocabulary")
    return ids

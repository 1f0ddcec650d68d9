"""`--to numpy`: the plain weights in one `.npz`, for whoever ports the network. The layout: docs/how-to/export.md."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from charwright.interop.card import as_json
from charwright.run import Run


def npz_bytes(run: Run, card: Mapping[str, Any]) -> bytes:
    """The weights by the names of `ModelConfig.weight_shapes`, float32; `characters` (V - 1) and `card` beside them.

    `characters` are code points as uint32, that of id i at i - 1; none where one token is a byte. `card` is JSON. No
    array needs pickle to be read.
    """
    characters = np.array([ord(character) for character in run.vocabulary.characters], dtype=np.uint32)
    memory = io.BytesIO()
    np.savez(memory, characters=characters, card=np.array(as_json(card)), **run.weights())  # type: ignore[arg-type]
    return memory.getvalue()

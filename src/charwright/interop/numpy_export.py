"""`--to numpy`: the plain weights in one `.npz` file, for porting the network. The layout: docs/how-to/export.md."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from charwright.generation.layout import as_gru
from charwright.interop.model_card import as_json
from charwright.run import Run


def npz_bytes(run: Run, card: Mapping[str, Any]) -> bytes:
    """Return the weights by their `ModelConfig.weight_shapes` names, float32, plus `characters` (C,) and `card`.

    `characters` are code points as uint32, that of id i at i - 1, and empty for byte-level models. `card` is JSON, and
    has the labels, whose ids come after those of the characters. No array needs pickle. An input-reset GRU becomes the
    equal GRU, so that a port needs one GRU only.
    """
    _, weights = as_gru(run.model, run.weights())
    characters = np.array([ord(character) for character in run.vocabulary.characters], dtype=np.uint32)
    memory = io.BytesIO()
    np.savez(memory, characters=characters, card=np.array(as_json(card)), **weights)  # type: ignore[arg-type]
    return memory.getvalue()

"""A made-up text in which one thing has to be remembered: whether a bracket is open."""

from __future__ import annotations

import numpy as np


def bracket_text(length: int, seed: int) -> str:
    """Random letters, in which `(` and `)` alternate after any number of them."""
    random = np.random.Generator(np.random.Philox(seed))
    pieces, inside = [], False
    for chance, letter in zip(random.random(length), random.integers(8, size=length), strict=True):
        if chance < 0.08:
            pieces.append(")" if inside else "(")
            inside = not inside
        elif chance < 0.1 and not (pieces and pieces[-1] == "\n"):
            pieces.append("\n")
        else:
            pieces.append("abcdefgh"[letter])
    return "".join(pieces)

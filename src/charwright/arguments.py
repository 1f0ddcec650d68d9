"""Checks of what Python callers pass: a slip is named here, where NumPy or PyTorch would speak of its own insides."""

from __future__ import annotations

import os
from collections.abc import Iterable

from charwright.errors import UsageError

PATHS = "a corpus is a path, an address or a name, or several of them"

MOST_THREADS = 256
"""As many as the C kernels use."""


def require(value: object, kind: type | tuple[type, ...], wanted: str, advice: str = "") -> None:
    """Check that an argument is of its kind: `require(text, str, "a text is a str", "pass its text")`.

    Raises:
        UsageError: with what is wanted, the type of the value, and the advice.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{wanted}, not {type(value).__name__}{advice and f': {advice}'}")


def require_paths(value: object) -> None:
    """Check that an argument names a corpus, or several.

    Raises:
        UsageError: when it is no path, and nothing that could hold some.
    """
    require(value, (str, os.PathLike, Iterable), PATHS)
    if isinstance(value, bytes):
        raise UsageError(f"{PATHS}, not bytes")

"""The interface between the engine and its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from charwright.generation.streams import Stream


class Backend(Protocol):
    """The arithmetic of an engine: the C kernels, or NumPy."""

    units: int
    state_type: type[np.float32] | type[np.int32]

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        """Run `steps` steps of all streams. Each has an id to read at every step, or samples it."""

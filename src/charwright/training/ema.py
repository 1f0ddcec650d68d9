"""An exponential moving average (EMA) of the weights, which is steadier than the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from charwright.arrays import Arrays
from charwright.model.language_model import LanguageModel

EVERY = 8
"""Steps between updates: often enough for the mean, and rare enough to cost nothing."""


class EMA:
    """A moving average over a fixed fraction of the steps so far (Polyak & Juditsky, 1992).

    The window grows with the run, so the average needs no budget in advance: a run that stops half way has weights as
    steady as one that completes.
    """

    def __init__(self, model: LanguageModel, window: float) -> None:
        """Average the weights of `model`, starting from their present values; `window` is a fraction of the steps."""
        self.window = window
        self._model = model
        self._parameters: list[Tensor] = list(model.weights.values())
        self._mean = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after `step`."""
        updates = self.window * step / EVERY  # the length of the window in updates
        if updates < 1 or step % EVERY == 0:
            torch._foreach_lerp_(self._mean, self._parameters, 1 / max(1.0, updates))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the duration of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def arrays(self) -> Arrays:
        """A copy of the average, by weight name."""
        with self.applied():
            return self._model.arrays()

    def load(self, arrays: Arrays) -> None:
        """Restore what `arrays` returned."""
        with self.applied():
            self._model.load_arrays(arrays)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        # The values are exchanged, not the tensors: the optimizer identifies its parameters by object identity.
        for parameter, mean in zip(self._parameters, self._mean, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)

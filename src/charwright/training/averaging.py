"""The mean of the weights over the last part of the steps: steadier than the last weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from charwright.model.language_model import Arrays, LanguageModel

EVERY = 8
"""Steps between two looks at the weights: the mean hardly notices, and the looks cost nothing."""


class Average:
    """An exponential mean that looks back on a share of the steps so far (Polyak & Juditsky, 1992).

    As the window grows with the run, the mean is of use at any time and needs no budget to be known: what a run that is
    stopped half way has learned is as steady as what it ends with.
    """

    def __init__(self, model: LanguageModel, share: float) -> None:
        """Average the weights of `model`, at present equal to its own, over the last `share` of the steps."""
        self.share = share
        self._model = model
        self._parameters: list[Tensor] = list(model.weights.values())
        self._mean = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def count_step(self, step: int) -> None:
        """The weights of `step` are there."""
        window = self.share * step / EVERY  # in looks
        if window < 1 or step % EVERY == 0:
            torch._foreach_lerp_(self._mean, self._parameters, 1 / max(1.0, window))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds the mean; afterwards its own weights again."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def arrays(self) -> Arrays:
        """A copy of the mean, by the weights' names."""
        with self.in_place():
            return self._model.arrays()

    def load(self, arrays: Arrays) -> None:
        """Go on from what `arrays` returned."""
        with self.in_place():
            self._model.load_arrays(arrays)

    @torch.no_grad()
    def swap(self) -> None:
        """The model's weights and the mean change places."""
        # The numbers change places, not the tensors: the optimizer knows its parameters by identity.
        for parameter, mean in zip(self._parameters, self._mean, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)

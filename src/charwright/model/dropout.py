"""Dropout on a layer's outputs and on the hidden state, with one mask for a whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from charwright.config import ModelConfig


class Dropout:
    """Variational dropout (Gal & Ghahramani, 2016): a mask is drawn once per sequence and used at every step.

    A rate of 0 changes nothing and draws nothing.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        """Draw masks from `generator`, which may be None if both rates are 0.

        Raises:
            ValueError: when a mask has to be drawn and there is no generator.
        """
        if generator is None and (config.dropout or config.recurrent_dropout):
            raise ValueError("training with dropout draws its masks from a generator; pass generator=...")
        self._config, self._generator = config, generator

    def outputs(self, x: Tensor) -> Tensor:
        """Dropout on a layer's outputs (T, B, H), with one mask (1, B, H)."""
        mask = self._mask(x[:1], self._config.dropout)
        return x if mask is None else x * mask

    def state_mask(self, h: Tensor) -> Tensor | None:
        """The mask (B, H) of recurrent dropout, which multiplies the state inside the recurrent product."""
        return self._mask(h, self._config.recurrent_dropout)

    def _mask(self, like: Tensor, rate: float) -> Tensor | None:
        if rate == 0:
            return None
        mask = torch.empty_like(like, requires_grad=False).bernoulli_(1 - rate, generator=self._generator)
        return mask.div_(1 - rate)

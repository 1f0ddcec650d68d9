"""Dropout on a layer's outputs and on the hidden state, with one mask for a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charwright.config import ModelConfig


class Dropout:
    """Variational dropout (Gal & Ghahramani, 2016): a mask is drawn once per sequence and used at every step.

    A rate of 0 changes nothing and draws nothing.
    """

    def __init__(
        self, config: ModelConfig, generator: torch.Generator | None, drawn: Sequence[Tensor] | None = None
    ) -> None:
        """Draw masks from `generator`, or take those of `draw_masks`; both may be None if both rates are 0.

        Raises:
            ValueError: when a mask has to be drawn and there is no generator.
        """
        if generator is None and drawn is None and (config.dropout or config.recurrent_dropout):
            raise ValueError("training with dropout draws its masks from a generator; pass generator=...")
        self._config, self._generator = config, generator
        self._drawn = None if drawn is None else iter(drawn)

    def output_mask(self, x: Tensor) -> Tensor | None:
        """The mask (1, B, H) float32 of dropout, which multiplies a layer's outputs (T, B, H)."""
        return self._mask((1, *x.shape[1:]), self._config.dropout, x.device)

    def state_mask(self, h: Tensor) -> Tensor | None:
        """The mask (B, H) float32 of recurrent dropout, which multiplies the state inside the recurrent product."""
        return self._mask(h.shape, self._config.recurrent_dropout, h.device)

    def all_masks(self, batch: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """The masks (B, H) float32 of the states and those of the outputs, of all layers; drawn layer by layer.

        Raises:
            ValueError: if a mask of a state that is drawn already has another type or shape.
        """
        state_masks, output_masks = [], []
        shape = (batch, self._config.units)
        for _ in range(self._config.layers):
            mask = self._mask(shape, self._config.recurrent_dropout, device)
            if mask is not None:
                if mask.dtype != torch.float32 or mask.shape != shape:
                    found = f"{mask.dtype} {tuple(mask.shape)}"
                    raise ValueError(f"the mask of the state must be float32 {shape}, not {found}")
                state_masks.append(mask.contiguous())
            mask = self._mask((1, *shape), self._config.dropout, device)
            if mask is not None:
                output_masks.append(mask.expand(1, *shape)[0].float().contiguous())
        return state_masks, output_masks

    def _mask(self, shape: tuple[int, ...], rate: float, device: torch.device) -> Tensor | None:
        if rate == 0:
            return None
        if self._drawn is not None:
            return next(self._drawn)
        return _draw(torch.empty(shape, device=device), rate, self._generator)


def empty_masks(config: ModelConfig, batch: int, like: Tensor) -> list[Tensor]:
    """Memory for the masks of a batch, in the order in which the layers ask for them."""
    return [like.new_empty(shape) for _, shape in _rates_and_shapes(config, batch)]


def draw_masks(config: ModelConfig, masks: Sequence[Tensor], generator: torch.Generator) -> None:
    """Draw the masks that the layers would draw from `generator` themselves into memory from `empty_masks`."""
    for mask, (rate, _) in zip(masks, _rates_and_shapes(config, 0), strict=True):
        _draw(mask, rate, generator)


def _rates_and_shapes(config: ModelConfig, batch: int) -> list[tuple[float, tuple[int, ...]]]:
    state = (config.recurrent_dropout, (batch, config.units))
    outputs = (config.dropout, (1, batch, config.units))
    return [one for one in (state, outputs) * config.layers if one[0]]


def _draw(mask: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    return mask.bernoulli_(1 - rate, generator=generator).div_(1 - rate)

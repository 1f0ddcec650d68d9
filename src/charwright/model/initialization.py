"""Initial weights, as Keras draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from charwright.config import ModelConfig
from charwright.model.compute import keeping_threads


@torch.no_grad()
def initialize(
    config: ModelConfig, weights: Mapping[str, Tensor], generator: torch.Generator, embedding_range: float
) -> None:
    """Keras's defaults: uniform embedding, Glorot input and output weights, orthogonal recurrence, zero biases.

    The scale of a multiplicative layer begins as 1 everywhere, and the array of n-grams as zeros.
    `weights` are filled in place, in the order of `ModelConfig.weight_shapes`.
    """
    for name, weight in weights.items():
        if name == "embedding.weight":
            weight.uniform_(-embedding_range, embedding_range, generator=generator)
        elif name.endswith("weight_hh"):
            _make_orthogonal(weight, generator)
        elif name.endswith("weight_ih") or name == "head.weight":
            limit = math.sqrt(6 / sum(weight.shape))  # Glorot & Bengio, 2010, equation 16
            weight.uniform_(-limit, limit, generator=generator)
        else:
            weight.zero_()
        if config.cell == "lstm" and name.endswith("bias_ih"):
            weight[config.units : 2 * config.units] = 1  # the forget gate (Jozefowicz et al., 2015)


def _make_orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    """As PyTorch does, on one thread: on several the bits depend on their number, and a busy core makes them wait."""
    with keeping_threads():
        torch.set_num_threads(1)
        nn.init.orthogonal_(weight, generator=generator)


@torch.no_grad()
def start_from_frequencies(bias: Tensor, counts: npt.NDArray[np.integer]) -> None:
    """Set the output bias (V,) so that the zero state predicts how often ids occur in a text, `counts` (V,) times.

    Adam moves a bias by no more than the learning rate in a step, so from zero the bias of a rare character takes
    longer than a short training lasts. Each count is increased by one, so that every character has a positive
    probability (Laplace); the mean of the bias is zero.
    """
    logs = np.log(counts + 1.0)
    bias.copy_(torch.from_numpy(logs - logs.mean()))

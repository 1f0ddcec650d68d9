"""What a training step is given: one batch, where its streams stand, and randomness of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from charwright.model.cells import State
from charwright.model.language_model import LanguageModel


@dataclass
class Batch:
    """One batch for `train_step`.

    `state` is what the batch starts from (None is zero); a step that wants it carried on leaves the last state here.
    `generator` is this batch's own randomness, for dropout and the like: a function of the seed and the step alone.
    """

    inputs: Tensor  # (T, B) int64
    targets: Tensor  # (T, B) int64
    state: State | None
    generator: torch.Generator


TrainStep = Callable[[LanguageModel, Batch, torch.optim.Optimizer], Tensor]


def batch_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of one step's batch, a function of the two numbers alone."""
    return torch.Generator(device).manual_seed(_mixed(seed, step))


def _mixed(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers (the finalizer of splitmix64), so that neighbours have nothing in common."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1

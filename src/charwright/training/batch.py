"""The input of a training step: a batch on the device, the carried hidden state, and the step's random generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.config import TrainingConfig
from charwright.data.sequences import Pair
from charwright.errors import UsageError
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel
from charwright.training.sharing import Part, part_of_masks


@dataclass
class Batch:
    """One batch for `train_step`.

    `state` is the hidden state the batch starts from (None is zero); a step that carries the state stores the last one
    here. `generator` is the randomness of this batch, for dropout and the like: a function of the seed and the step.
    `masks` are those of dropout if they are drawn already, as for the rows of one rank.
    """

    inputs: Tensor  # (T, B) int64
    targets: Tensor  # (T, B) int64
    state: State | None
    generator: torch.Generator
    masks: Sequence[Tensor] | None = None


def checked_loss(loss: object) -> Tensor:
    """What a training step returned, detached.

    Raises:
        UsageError: if it is not a tensor with one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"a train_step returns the mean loss of the batch, a tensor with one number, not {found}")
    return loss.detach()


TrainStep = Callable[[LanguageModel, Batch, torch.optim.Optimizer], Tensor]


def make_batch(pair: Pair, hidden: State | None, config: TrainingConfig, step: int, device: torch.device) -> Batch:
    """Move a pair of arrays (T, B) to the device, with the hidden state carried from the batch before."""
    generator = batch_generator(config.seed, step, device)
    inputs, targets = (_to_device(array, device) for array in pair)
    rows = inputs.shape[1]
    return Batch(inputs, targets, reset_streams(hidden, config.state_reset, generator, slice(rows), rows), generator)


def make_part(
    pair: Pair, hidden: State | None, config: TrainingConfig, step: int, model: LanguageModel, part: Part
) -> Batch:
    """The rows of one rank, a pair of arrays (T, rows), with the masks and resets that one process would draw.

    `hidden` is carried by these rows.
    """
    device = model.weight("head.bias").device
    generator = batch_generator(config.seed, step, device)
    inputs, targets = (_to_device(array, device) for array in pair)
    hidden = reset_streams(hidden, config.state_reset, generator, part.rows, part.total)
    return Batch(inputs, targets, hidden, generator, part_of_masks(model, part, generator))


def _to_device(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        # A copy from pinned memory does not wait for the steps before it.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


def reset_streams(
    hidden: State | None, probability: float, generator: torch.Generator, rows: slice, total: int
) -> State | None:
    """Set the hidden state of random rows to zero; `hidden` is that of `rows`, out of `total` for which is drawn.

    A model that never sees the zero state in training generates poorly from a prompt, which starts there.
    """
    if hidden is None or probability == 0:
        return hidden
    drawn = torch.rand(total, generator=generator, device=generator.device)[rows]
    if drawn.device.type == "cpu" and all(one > probability for one in drawn.tolist()):
        return hidden  # as in most steps; a GPU would have to be waited for
    kept = drawn >= probability
    return tuple(part * kept[None, :, None] for part in hidden)


def batch_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random generator of one step: a function of the seed and the step."""
    return torch.Generator(device).manual_seed(_mixed(seed, step))


def _mixed(seed: int, step: int) -> int:
    """Mix two numbers into a 63-bit seed (the finalizer of splitmix64), so that neighbors are uncorrelated."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1

"""All that a resume needs, as plain arrays and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.config import Config
from charwright.errors import DamagedRunError
from charwright.model.cells import State
from charwright.model.language_model import Arrays, LanguageModel


@dataclass
class Position(Config):
    """Where training is. Randomness needs no place here: all of it is a function of (seed, epoch, step)."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    epoch_s: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    best_blocks: tuple[float, ...] = ()
    worse: int = 0  # validations in a row that were worse than the best by more than their noise
    rate_scale: float = 1.0  # what diverging has left of the learning rate
    done: bool = False
    done_minutes: float | None = None  # the budget that was spent when training was done

    def __post_init__(self) -> None:
        """Nothing to check: it changes with each step."""


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a training run at one step."""

    position: Position
    weights: Arrays
    optimizer: Arrays
    state: Arrays = field(default_factory=dict)
    average: Arrays = field(default_factory=dict)
    best: Arrays = field(default_factory=dict)

    @property
    def to_use(self) -> Arrays:
        """The weights to generate with: the best by validation loss, or the last, averaged where they are averaged."""
        return self.best or self.average or self.weights


def optimizer_arrays(model: LanguageModel, optimizer: torch.optim.Optimizer) -> Arrays:
    """What the optimizer remembers of each weight, as `WHAT.WEIGHT`."""
    arrays: Arrays = {}
    for key, parameter in model.weights.items():
        for what, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            arrays[f"{what}.{key}"] = tensor.detach().to("cpu", torch.float32).numpy().copy()
    return arrays


def load_optimizer(model: LanguageModel, optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Give an optimizer back what `optimizer_arrays` took."""
    for name, array in arrays.items():
        what, _, key = name.partition(".")
        if key not in model.weights:
            raise DamagedRunError(f"the checkpoint's optimizer remembers {key!r}, which the model does not have")
        parameter = model.weights[key]
        optimizer.state[parameter][what] = torch.from_numpy(array.copy()).to(parameter.device)


def state_arrays(state: State | None) -> Arrays:
    """The hidden state that streams carry, as arrays (L, B, H)."""
    return {} if state is None else {f"state.{i}": part.cpu().numpy().copy() for i, part in enumerate(state)}


def load_state(arrays: Arrays, device: torch.device) -> State | None:
    """The hidden state back from `state_arrays`."""
    tensors: list[Tensor] = [torch.from_numpy(arrays[name].copy()).to(device) for name in sorted(arrays)]
    return tuple(tensors) or None


def all_finite(arrays: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether every number is a number."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())

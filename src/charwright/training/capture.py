"""Takes a snapshot of a training run, and restores one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.arrays import Arrays
from charwright.config import TrainingConfig
from charwright.errors import DamagedRunError
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel
from charwright.training.divergence import diverged_error
from charwright.training.ema import EMA
from charwright.training.optimizer import learning_rate_of
from charwright.training.ranks import ALONE, Ranks
from charwright.training.sharing import Part
from charwright.training.snapshot import Position, Snapshot
from charwright.training.state import TrainingState


def initial_state(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    resume: Snapshot | None,
    ranks: Ranks = ALONE,
    part: Part | None = None,
) -> TrainingState:
    """The state before the first step: that of a snapshot, or the beginning."""
    position = copy.copy(resume.position) if resume is not None else Position()
    average = EMA(model, config.ema) if config.ema else None
    state = TrainingState(model, optimizer, position, average, ranks=ranks, part=part)
    if resume is not None:
        state.best = resume.best
        restore(state, resume)
    return state


def take_snapshot(state: TrainingState, time_s: float) -> Snapshot:
    """Copy everything that a resume needs, the carried state of all ranks included. All ranks have to call this.

    Raises:
        DivergedError: when a value is not finite, so that a damaged state is never saved.
    """
    state.read_losses()
    state.position.elapsed_s = time_s
    snapshot = Snapshot(
        position=copy.copy(state.position),
        weights=state.model.arrays(),
        optimizer=optimizer_arrays(state.model, state.optimizer),
        state=_hidden_arrays(_whole(state)),
        average=state.ema.arrays() if state.ema else {},
        best=state.best,
    )
    kept = (snapshot.weights, snapshot.optimizer, snapshot.state, snapshot.average)
    if not all(state.ranks.gather(all(map(_all_finite, kept)))):
        raise diverged_error(state.position.step, learning_rate_of(state.optimizer))
    return snapshot


def restore(state: TrainingState, snapshot: Snapshot) -> None:
    """Restore weights, optimizer, hidden state and EMA; the position is left to the caller."""
    state.model.load_arrays(snapshot.weights)
    load_optimizer(state.model, state.optimizer, snapshot.optimizer)
    state.hidden = _load_hidden(snapshot.state, state.device, state.part)
    if state.ema is not None:
        state.ema.load(snapshot.average or snapshot.weights)


def optimizer_arrays(model: LanguageModel, optimizer: torch.optim.Optimizer) -> Arrays:
    """The optimizer's state of each weight, as `QUANTITY.WEIGHT`."""
    arrays: Arrays = {}
    for key, parameter in model.weights.items():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            arrays[f"{quantity}.{key}"] = tensor.detach().to("cpu", torch.float32).numpy().copy()
    return arrays


def load_optimizer(model: LanguageModel, optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Restore what `optimizer_arrays` returned."""
    for name, array in arrays.items():
        quantity, _, key = name.partition(".")
        if key not in model.weights:
            raise DamagedRunError(f"the checkpoint has optimizer state for {key!r}, which is not a weight of the model")
        parameter = model.weights[key]
        optimizer.state[parameter][quantity] = torch.from_numpy(array.copy()).to(parameter.device)


def _hidden_arrays(hidden: State | None) -> Arrays:
    """The hidden state that streams carry, as arrays (L, B, H)."""
    return {} if hidden is None else {f"state.{i}": part.cpu().numpy().copy() for i, part in enumerate(hidden)}


def _whole(state: TrainingState) -> State | None:
    """The carried state (L, B, H) of all ranks."""
    if state.hidden is None or state.part is None:
        return state.hidden
    total = state.part.total
    return tuple(state.ranks.whole(part, total) for part in state.hidden)


def _load_hidden(arrays: Arrays, device: torch.device, part: Part | None) -> State | None:
    rows = slice(None) if part is None else part.rows
    tensors: list[Tensor] = [torch.from_numpy(arrays[name][:, rows].copy()).to(device) for name in sorted(arrays)]
    return tuple(tensors) or None


def _all_finite(arrays: dict[str, npt.NDArray[Any]]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values())

"""What an evaluation asks for: -ln p of each token. A model, an engine and a group of ranks answer alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.data.carried import MOST_STREAMS
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel

CHUNK = 128
"""Time steps of a call, fewer if their logits exceed 16 MB; they do not change the result."""
MOST_LOGITS = 2**22

Array = npt.NDArray[np.int64]
TargetNats = Callable[[Array, Array], npt.NDArray[np.floating[Any]]]
ContinuedNats = Callable[[Array, Array, Any], tuple[npt.NDArray[np.floating[Any]], Any]]


class Reader(Protocol):
    """Reads ids in columns, and says what each target costs."""

    def target_nats(self, inputs: Array, targets: Array, /) -> npt.NDArray[np.floating[Any]]:
        """-ln p of each target (T, B), 0 for negative ones, given inputs (T, B); each column from a zero state."""

    def continued_nats(self, inputs: Array, targets: Array, state: Any, /) -> tuple[npt.NDArray[np.floating[Any]], Any]:
        """The same of at most 64 columns after a state (None is zero), and the state after them."""


class ModelReader:
    """A model that is being trained or was."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def target_nats(self, inputs: Array, targets: Array, /) -> npt.NDArray[np.float32]:
        """-ln p of all targets (T, B), 0 for negative ones; 64 columns and one chunk of time per call."""
        nats = np.empty(targets.shape, dtype=np.float32)
        for column in range(0, inputs.shape[1], MOST_STREAMS):
            columns = slice(column, column + MOST_STREAMS)
            nats[:, columns], _ = self.continued_nats(inputs[:, columns], targets[:, columns], None)
        return nats

    @torch.no_grad()
    def continued_nats(
        self, inputs: Array, targets: Array, state: State | None, /
    ) -> tuple[npt.NDArray[np.float32], State | None]:
        """-ln p of targets (T, B), 0 for negative ones, after a state (None is zero), and the state after them."""
        model = self._model
        device, was_training = model.weight("head.bias").device, model.training
        model.eval()
        nats = np.empty(targets.shape, dtype=np.float32)
        chunk = max(1, min(CHUNK, MOST_LOGITS // (MOST_STREAMS * model.vocabulary_size)))
        try:
            for begin in range(0, len(inputs), chunk):
                piece = slice(begin, begin + chunk)
                x, y = _tensor(inputs[piece], device), _tensor(targets[piece], device)
                logits, state = model(x, state)
                losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
                nats[piece] = losses.view(y.shape).cpu().numpy()
        finally:
            model.train(was_training)
        return nats, state


def _tensor(array: Array, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)

"""Distillation: a model learns what others predict, beside what the text says (Hinton et al., 2015).

The mean prediction of several models is better than that of each. A model that learns from it comes close, or below,
and generates as fast as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.config import SequenceConfig
from charwright.data.sequences import Dataset, make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel
from charwright.training.batch import Batch
from charwright.training.optimizer import descends_by_rows

HARD = 0.3
"""The weight of the text's own token in what a model learns from that text; the rest are the predictions."""
STREAMS = 64
STEPS = 64


@dataclass(frozen=True)
class Lessons:
    """A text of ids (N,) int64, the predictions for the token after each of them, and whose text it is.

    `predictions` are probabilities (N, V) float16. `own` (N,) bool is where the text is the user's: what follows there
    is learned too, while a teacher's text is only an occasion for its predictions. All are on the model's device.
    """

    ids: Tensor
    predictions: Tensor
    own: Tensor

    def dataset(self, sequences: SequenceConfig, seed: int) -> tuple[Dataset, str | None]:
        """Batches of positions in the text for `step`, in the order of a text; and a notice when they are smaller.

        Raises:
            CorpusError: when the text is too short.
        """
        fitting, notice = shrink_to_fit(len(self.ids), sequences)
        return make_dataset(np.arange(len(self.ids)), fitting, seed), notice

    def step(self, model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """A training step on a batch of `dataset`; returns the cross-entropy with what is to be learned."""
        following = self.ids[batch.targets]
        share = HARD * self.own[batch.inputs].float()[..., None]
        wanted = self.predictions[batch.inputs].float() * (1 - share)
        wanted.scatter_add_(-1, following[..., None], share)
        with model.collecting_ngram_gradients(descends_by_rows(optimizer)):
            logits, state = model(self.ids[batch.inputs], batch.state, generator=batch.generator)
            loss: Tensor = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        batch.state = tuple(part.detach() for part in state)
        return loss.detach()


def taking_turns(
    own: npt.NDArray[np.integer], written: npt.NDArray[np.integer], times: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The user's ids (M,), `times` times, each behind an equal part of what was written: (N,), and which are own."""
    pieces = [piece for part in np.array_split(written, times) for piece in (part, own)]
    whose = [np.full(len(piece), bool(index % 2)) for index, piece in enumerate(pieces)]
    return np.concatenate(pieces).astype(np.int64), np.concatenate(whose)


@torch.no_grad()
def mean_predictions(
    teachers: Sequence[LanguageModel], ids: npt.NDArray[np.integer], between: Callable[[], None] = lambda: None
) -> Tensor:
    """The mean probabilities (N, V) float16 that models give to the token after each of the ids (N,).

    The text is read in 64 contiguous streams, each from a zero state, with the states carried. `between` is called
    after every 64 steps, and may raise.
    """
    rows = min(STREAMS, len(ids))
    length = -(-len(ids) // rows)
    streams = torch.from_numpy(np.resize(ids, rows * length).reshape(rows, length).astype(np.int64))
    vocabulary = teachers[0].vocabulary_size
    device = teachers[0].weight("head.bias").device
    found = torch.empty(rows, length, vocabulary, dtype=torch.float16, device=device)
    states: list[State | None] = [None] * len(teachers)
    for begin in range(0, length, STEPS):
        part = streams[:, begin : begin + STEPS].T.contiguous().to(device)
        mean = torch.zeros(*part.shape, vocabulary, device=device)
        for index, teacher in enumerate(teachers):
            logits, states[index] = teacher(part, states[index])
            mean += logits.softmax(-1)
        found[:, begin : begin + STEPS] = (mean / len(teachers)).transpose(0, 1)
        between()
    return found.view(-1, vocabulary)[: len(ids)]

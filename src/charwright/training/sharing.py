"""What the ranks of a training run share: rows and masks, gradients, the clock, the wish to stop, and validations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.data.sequences import Dataset, Pair, Streams, Windows
from charwright.errors import UsageError
from charwright.evaluation.readers import Array, ModelReader, Reader
from charwright.model.cells import State
from charwright.model.dropout import draw_masks, empty_masks
from charwright.model.language_model import LanguageModel
from charwright.model.votes import RowGradient, joined
from charwright.training.ranks import Ranks
from charwright.training.sums import turns_of


@dataclass(frozen=True)
class Part:
    """A rank's rows of a batch of `total` rows."""

    rows: slice
    total: int

    @property
    def share(self) -> float:
        """These rows as a fraction of the batch."""
        return len(range(self.total)[self.rows]) / self.total


def part_of(batch: int, ranks: Ranks) -> Part | None:
    """The rows of each batch that belong to this rank; None if all do.

    Raises:
        UsageError: when there are fewer rows than ranks.
    """
    if ranks.size == 1:
        return None
    if batch < ranks.size:
        raise UsageError(f"{ranks.size} ranks cannot share batches of {batch} rows; raise --batch or start fewer ranks")
    return Part(ranks.rows(batch), batch)


def rows_of(dataset: Dataset, part: Part | None) -> Dataset:
    """The dataset of these rows of each batch; the library's own read no others."""
    if part is None:
        return dataset
    return dataset.part(part.rows) if isinstance(dataset, Windows | Streams) else _Rows(dataset, part.rows)


class _Rows:
    """Rows of the batches of another dataset, cut out."""

    def __init__(self, dataset: Dataset, rows: slice) -> None:
        self._dataset, self._rows = dataset, rows
        self.carries, self.batch = dataset.carries, dataset.batch
        self.seq_length, self.steps_per_epoch = dataset.seq_length, dataset.steps_per_epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        for inputs, targets in self._dataset.batches(epoch, start):
            yield inputs[:, self._rows], targets[:, self._rows]


def share_weights(model: LanguageModel, ranks: Ranks) -> None:
    """Give all ranks the weights of rank 0, since another machine may have drawn other ones."""
    if ranks.size > 1:
        model.load_arrays(ranks.first(model.arrays))


def part_of_masks(model: LanguageModel, part: Part, generator: torch.Generator) -> list[Tensor]:
    """The masks of dropout for these rows: drawn for the whole batch, as one rank would, and cut out."""
    masks = empty_masks(model.config, part.total, model.weight("head.bias"))
    draw_masks(model.config, masks, generator)
    return [mask[..., part.rows, :].contiguous() for mask in masks]


@contextmanager
def summed_gradients(
    model: LanguageModel, optimizer: torch.optim.Optimizer, ranks: Ranks, part: Part | None
) -> Iterator[None]:
    """Before each optimizer step of the block, replace the gradients by those of the whole batch.

    A rank's gradients are of the mean over its own rows, so they count by its share of the rows.
    """
    if part is None:
        yield
        return
    weights = model.named_weights()
    array = weights.pop("ngrams.weight", None)
    parameters = list(weights.values())
    turns = cycle(turns_of(parameters, ranks))

    def add_up(*_: object) -> None:
        turn = next(turns)
        for view, weight in zip(turn.own, parameters, strict=True):
            if weight.grad is None:
                view.zero_()
            else:
                torch.mul(weight.grad, part.share, out=view)
        turn.add_up()
        for total, weight in zip(turn.total, parameters, strict=True):
            weight.grad = total
        if array is not None and array.grad is not None:  # of a step that does not collect rows
            ranks.sum(array.grad.mul_(part.share))
        if rows := model.ngram_gradients:
            rows[:] = [_of_all_rows(joined(rows), ranks, part)]

    hook = optimizer.register_step_pre_hook(add_up)
    try:
        yield
    finally:
        hook.remove()


def _of_all_rows(gradient: RowGradient, ranks: Ranks, part: Part) -> RowGradient:
    """The gradient of the n-grams from this rank's rows of a batch -> that from the whole batch.

    Positions are numbered by time, then by row; other ranks have the other rows.
    """
    own, contexts = len(range(part.total)[part.rows]), len(gradient.offsets)
    offsets = gradient.offsets.view(contexts, -1, own)  # (K, T, own)
    d_logits = gradient.d_logits.view(-1, own, gradient.d_logits.shape[1])  # (T, own, V)
    all_offsets = offsets.new_zeros(contexts, offsets.shape[1], part.total)
    all_d_logits = d_logits.new_zeros(len(d_logits), part.total, d_logits.shape[2], dtype=torch.float32)
    all_offsets[..., part.rows] = offsets
    all_d_logits[:, part.rows] = d_logits.float() * part.share
    return RowGradient(ranks.sum(all_offsets).flatten(1), ranks.sum(all_d_logits).flatten(0, 1))


def mean_losses(losses: Sequence[Tensor], ranks: Ranks, part: Part | None) -> list[float]:
    """The mean losses of whole batches, from those of this rank's rows."""
    if part is None or not losses:
        return [float(loss) for loss in losses]
    own = torch.stack([loss.detach() for loss in losses]).to("cpu", torch.float64)
    return [float(loss) for loss in ranks.sum(own * part.share)]


STOPPED = "stopped"
"""The reason of a stop for which none is given."""


class Agreement:
    """What depends on the outside, and has to be the same on all ranks: the time, and whether to stop.

    Everything else that training decides is a function of these two and of sums over the ranks, so all ranks decide
    alike. The time is that of rank 0 at the last `tick` or `stop`, which all ranks call in the same order.
    """

    def __init__(self, ranks: Ranks, clock: Callable[[], float], should_stop: Callable[[], str | None]) -> None:
        self._ranks, self._clock, self._should_stop = ranks, clock, should_stop
        self._now_s = 0.0
        self.tick()

    def now(self) -> float:
        """The agreed time, in seconds; that of the clock for one rank alone."""
        return self._clock() if self._ranks.size == 1 else self._now_s

    def tick(self, *, stop: bool = False) -> bool:
        """Bring the agreed time up to date; whether any rank says `stop`."""
        if self._ranks.size == 1:
            return stop
        own = [self._clock() if self._ranks.rank == 0 else 0.0, float(stop)]
        self._now_s, stopping = self._ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return bool(stopping)

    def stop(self) -> str | None:
        """The reason to stop of the first rank that has one; False is none, and True is one without words."""
        asked: object = self._should_stop()
        reason = None if not asked else asked if isinstance(asked, str) else STOPPED
        if self._ranks.size == 1:
            return reason
        if not self.tick(stop=reason is not None):
            return None
        return next(filter(None, self._ranks.gather(reason)))


class RanksReader:
    """A model whose columns are divided among the ranks; all get the costs of all columns."""

    def __init__(self, ranks: Ranks, model: LanguageModel) -> None:
        self._ranks, self._own = ranks, ModelReader(model)

    def target_nats(self, inputs: Array, targets: Array, /) -> npt.NDArray[np.float32]:
        """-ln p of all targets (T, B); each rank computes its columns, which all start from a zero state."""
        own, nats = self._ranks.rows(inputs.shape[1]), np.zeros(targets.shape, dtype=np.float32)
        nats[:, own] = self._own.target_nats(inputs[:, own], targets[:, own])
        self._ranks.sum(torch.from_numpy(nats))
        return nats

    def continued_nats(
        self, inputs: Array, targets: Array, state: State | None, /
    ) -> tuple[npt.NDArray[np.float32], State | None]:
        """As `target_nats`, of the next piece of a text; the state is that of this rank's columns."""
        own, nats = self._ranks.rows(inputs.shape[1]), np.zeros(targets.shape, dtype=np.float32)
        if inputs[:, own].size:
            nats[:, own], state = self._own.continued_nats(inputs[:, own], targets[:, own], state)
        self._ranks.sum(torch.from_numpy(nats))
        return nats, state


def reader_of(model: LanguageModel, ranks: Ranks) -> Reader:
    """What reads the validation text: the model alone, or all ranks together."""
    return ModelReader(model) if ranks.size == 1 else RanksReader(ranks, model)

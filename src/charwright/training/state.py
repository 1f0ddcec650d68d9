"""The mutable state of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from charwright.arrays import Arrays
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel
from charwright.training.divergence import DivergenceDetector, diverged_error
from charwright.training.ema import EMA
from charwright.training.optimizer import learning_rate_of
from charwright.training.ranks import ALONE, Ranks
from charwright.training.sharing import Part, mean_losses
from charwright.training.snapshot import Position


@dataclass
class TrainingState:
    """Everything that changes from step to step; a `Snapshot` is a copy of it."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    position: Position
    ema: EMA | None
    hidden: State | None = None
    """The hidden state that streams carry to the next batch, of this rank's rows."""
    best: Arrays = field(default_factory=dict)
    """The weights with the lowest validation loss so far."""
    unread: list[Tensor] = field(default_factory=list)
    """Losses that are still on the device."""
    unreported: list[float] = field(default_factory=list)
    """Losses since the last step event."""
    since_report: list[float] = field(default_factory=list)
    """Losses since the last validation or end of an epoch."""
    ranks: Ranks = ALONE
    """The processes that train together."""
    part: Part | None = None
    """This rank's rows of each batch; None is all of them."""

    def __post_init__(self) -> None:
        """Watch for divergence from here on."""
        self.detector = DivergenceDetector(self.model.vocabulary_size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.weight("head.bias").device

    def read_losses(self) -> None:
        """Copy the losses from the device and add them to the epoch's.

        Raises:
            DivergedError: when they show divergence.
        """
        losses = mean_losses(self.unread, self.ranks, self.part)
        self.unread = []
        self.unreported += losses
        for loss in losses:
            self.position.loss_sum += loss
            self.position.loss_count += 1
            self.since_report.append(loss)
            if self.detector.diverged(loss):
                raise diverged_error(self.position.step, learning_rate_of(self.optimizer))

    def forget_losses(self) -> None:
        """Start watching anew, after a rollback."""
        self.unread, self.unreported, self.since_report = [], [], []
        self.detector = DivergenceDetector(self.model.vocabulary_size)

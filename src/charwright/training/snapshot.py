"""A snapshot: the complete state of a training run as plain arrays and numbers, for a resume."""

from __future__ import annotations

from dataclasses import dataclass, field

from charwright.arrays import Arrays
from charwright.schema import Config


@dataclass
class Position(Config):
    """Where training is. The random state is not part of it: randomness is a function of (seed, epoch, step)."""

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
    worse: int = 0  # consecutive validations that are significantly worse than the best
    rate_scale: float = 1.0  # the factor that rollbacks have left on the learning rate
    done: bool = False
    done_minutes: float | None = None  # the budget in minutes at the time training was done

    def __post_init__(self) -> None:
        """Skip the checks: a position changes with each step."""


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a training run at one step."""

    position: Position
    weights: Arrays
    optimizer: Arrays
    state: Arrays = field(default_factory=dict)
    average: Arrays = field(default_factory=dict)
    best: Arrays = field(default_factory=dict)

    @property
    def to_use(self) -> Arrays:
        """The weights to generate with: the best by validation loss, else the EMA, else the last."""
        return self.best or self.average or self.weights

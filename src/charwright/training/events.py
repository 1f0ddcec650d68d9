"""What the training loop says while it works; `log.jsonl` holds them, a line each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """`time_s` is the training time so far, before and after a resume; `step` counts batches from the beginning."""

    name: ClassVar[str] = "event"
    step: int
    time_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"event": self.name, **asdict(self)}


@dataclass(frozen=True)
class Start(Event):
    """Training begins: how big the work is."""

    name: ClassVar[str] = "start"
    parameters: int
    steps_per_epoch: int
    batch: int
    seq_length: int
    device: str
    precision: str
    core: str
    threads: int


@dataclass(frozen=True)
class Resume(Start):
    """Training goes on from a checkpoint."""

    name: ClassVar[str] = "resume"


@dataclass(frozen=True)
class Step(Event):
    """A step is done; `loss` is the mean since the last such event, `remaining_s` the time left by its pace."""

    name: ClassVar[str] = "step"
    epoch: int
    loss: float
    learning_rate: float
    chars_per_s: float
    fraction: float
    remaining_s: float | None


@dataclass(frozen=True)
class Validation(Event):
    """The model is measured, here inside an epoch, which may be longer than the whole budget; losses in nats per id."""

    name: ClassVar[str] = "validation"
    epoch: int
    train_loss: float
    validation_loss: float | None
    bits_per_char: float | None
    best: bool


@dataclass(frozen=True)
class Epoch(Validation):
    """A pass over the text is done, or what the budget left of one; it may have been measured or not."""

    name: ClassVar[str] = "epoch"
    chars_per_s: float
    elapsed_s: float


@dataclass(frozen=True)
class Rollback(Event):
    """Training diverged and goes on from `step`, the last good state; `learning_rate` is the highest from now on."""

    name: ClassVar[str] = "rollback"
    diverged_step: int
    learning_rate: float


@dataclass(frozen=True)
class Sample(Event):
    """What the model writes now."""

    name: ClassVar[str] = "sample"
    text: str


@dataclass(frozen=True)
class Checkpoint(Event):
    """Everything that a resume needs is saved."""

    name: ClassVar[str] = "checkpoint"


@dataclass(frozen=True)
class End(Event):
    """Training ends.

    `reason` is done (the budget is spent), target (the loss that was asked for is reached), turned (the validation loss
    has turned), or the name of the signal that stopped it.
    """

    name: ClassVar[str] = "end"
    reason: str
    best_loss: float | None = None
    best_step: int | None = None

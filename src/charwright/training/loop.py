"""The training loop: `train_step` does one batch and may be replaced, `fit` does the rest and yields events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from charwright.config import TrainingConfig
from charwright.data.sequences import Dataset
from charwright.errors import DivergedError
from charwright.evaluate import Evaluation
from charwright.model.language_model import LanguageModel
from charwright.model.machine import keep_memory
from charwright.training.batch import Batch, TrainStep
from charwright.training.events import (
    End,
    Event,
)
from charwright.training.snapshot import (
    Snapshot,
)
from charwright.training.trainer import Helpers, Trainer


def train_step(model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
    """Forward, backward, update: the mean loss of the batch in nats, a scalar."""
    loss, state = model.loss(batch.inputs, batch.targets, batch.state, generator=batch.generator)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    batch.state = tuple(part.detach() for part in state)
    return loss.detach()


def make_optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba, 2015) or AdamW (Loshchilov & Hutter, 2019) as configured, in its fused form."""
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True
        )
    # Biases and the embedding are not products' weights, and decay does them no good.
    decayed = [weight for name, weight in model.weights.items() if weight.ndim > 1 and name != "embedding_weight"]
    spared = [weight for name, weight in model.weights.items() if weight.ndim <= 1 or name == "embedding_weight"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def fit(
    model: LanguageModel,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    train_step: TrainStep = train_step,
    optimizer: torch.optim.Optimizer | None = None,
    validate: Callable[[LanguageModel], Evaluation] | None = None,
    sample: Callable[[LanguageModel], str] | None = None,
    save: Callable[[Snapshot], None] | None = None,
    resume: Snapshot | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    spent_s: float = 0.0,
) -> Iterator[Event]:
    """Train `model` on `dataset` until the budget of `config` is spent; yields events and prints nothing.

    A run whose loss is no number any more, or forgets half of what was learned, goes back to its last good state and on
    from there with a lower learning rate.

    Args:
        model: trained in place; in the end it holds its last weights (averaged, where they are), and the best ones
            have gone to `save`.
        dataset: where batches come from.
        config: the budget and how to spend it.
        train_step: what is done with a batch; gradients are clipped whenever it calls `optimizer.step()`.
        optimizer: one of your own; its learning rates follow the schedule in proportion.
        validate: measures the model at the end of an epoch, and inside one that is long.
        sample: lets the model write at the same time.
        save: keeps a snapshot, at the end of each epoch and every `checkpoint_minutes`.
        resume: a snapshot to go on from; the same bits come out as if training had never stopped.
        should_stop: asked after each step; a reason ends training, with everything saved.
        clock: seconds from anywhere.
        spent_s: seconds of the budget that were gone before: for reading the text, say.

    Raises:
        UsageError: when the configuration has no budget.
        DivergedError: when training diverges whatever the learning rate.
    """
    keep_memory()
    optimizer = optimizer or make_optimizer(model, config)
    trainer = Trainer(model, dataset, config, train_step, optimizer, resume, clock, spent_s)
    helpers = Helpers(validate, sample, save)
    position = trainer.position
    yield trainer.started(resumed=resume is not None)
    reason = None
    with trainer.clipping(), trainer.own_threads():
        while not (reason or position.done):
            try:
                reason = yield from trainer.train_epoch(helpers, should_stop)
            except DivergedError as error:
                yield trainer.roll_back(error)
    trainer.leave_average()
    yield End(position.step, trainer.pace.time_s, reason or "done", position.best_loss, position.best_step)

"""The training loop: `train_step` trains on one batch and can be replaced; `fit` runs the loop and yields events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from charwright.arguments import require
from charwright.config import TrainingConfig
from charwright.data.sequences import Dataset, Pair
from charwright.errors import DivergedError, UsageError
from charwright.evaluation.evaluation import Evaluation
from charwright.model.compute import keep_memory
from charwright.model.language_model import LanguageModel
from charwright.model.native_network import freeing_memory
from charwright.training.batch import Batch, TrainStep, checked_loss, make_batch, make_part
from charwright.training.budget import Budget, remaining_batches, steady
from charwright.training.capture import initial_state
from charwright.training.cuda_graph import fastest_step
from charwright.training.events import End, Event
from charwright.training.optimizer import (
    clipped_gradients,
    descends_by_rows,
    optimizer_for,
    scheduled_rates,
    set_learning_rate,
)
from charwright.training.ranks import ALONE, Ranks
from charwright.training.reports import Callbacks, Reporter
from charwright.training.rollback import KEEP_EVERY, LastGoodState
from charwright.training.schedule import learning_rate_factor
from charwright.training.sharing import Agreement, part_of, rows_of, share_weights, summed_gradients
from charwright.training.snapshot import Snapshot
from charwright.training.threads import training_threads


def train_step(model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
    """Forward, backward, update; returns the mean loss of the batch in nats per token, a scalar."""
    with model.collecting_ngram_gradients(descends_by_rows(optimizer)):
        optimizer.zero_grad()
        loss, batch.state = model.differentiate(
            batch.inputs, batch.targets, batch.state, generator=batch.generator, masks=batch.masks
        )
        optimizer.step()
    return loss


_OWN_STEP = train_step


def _check_arguments(model: LanguageModel, dataset: Dataset, config: TrainingConfig) -> None:
    if not hasattr(model, "named_weights"):  # A compiled one has them too.
        raise UsageError(f"fit trains a LanguageModel, not {type(model).__name__}")
    require(config, TrainingConfig, "the configuration of training is a TrainingConfig", "TrainingConfig(...)")
    if not hasattr(dataset, "batches"):
        raise UsageError(f"fit reads Windows, Streams, Excerpts or RecordStreams, not {type(dataset).__name__}")


def fit(  # noqa: PLR0915  (one loop, in one place)
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
    clock: Callable[[], float] = time.perf_counter,
    spent_s: float = 0.0,
    ranks: Ranks = ALONE,
    pretrained: bool = False,
) -> Iterator[Event]:
    """Train `model` on `dataset` until the budget of `config` is spent; yields events and prints nothing.

    A run that diverges rolls back to its last good state and continues with a lower learning rate.

    Args:
        model: trained in place; at the end it holds its last weights, or their EMA. The best ones went to `save`.
            With an EMA, it holds that at the events of an evaluation too, and its last weights when the loop goes on.
        dataset: the source of the batches.
        config: the budget, and how to spend it.
        train_step: trains on one batch; gradients are clipped whenever it calls `optimizer.step()`.
        optimizer: a custom optimizer; its learning rates follow the schedule in proportion until the end.
        validate: evaluates the model at the end of each epoch, and within long ones.
        sample: generates text at the same times.
        save: stores a snapshot, at the end of each epoch and every `checkpoint_minutes`.
        resume: the snapshot to continue from; the result has the same bits as an uninterrupted run.
        should_stop: called after each step; returns a reason to stop after saving, or None.
        clock: a monotonic clock, in seconds.
        spent_s: seconds of the budget that are already spent, for example on reading the text.
        ranks: the processes that share the rows of each batch; all call `fit` with the same arguments, and rank 0 alone
            gives `sample` and `save`.
        pretrained: the weights were trained before; they are validated before the first step, and are the best until
            others are better.

    Raises:
        UsageError: when an argument is something else, the configuration has no budget, a batch has fewer rows than
            there are ranks, `train_step` does not return the loss, `validate` no Evaluation, or the optimizer trains
            no part of the model.
        RankError: when another rank ends, or no longer answers.
        DivergedError: when training diverges at every learning rate.
    """
    _check_arguments(model, dataset, config)
    keep_memory()
    clock = steady(clock)
    own = optimizer is None and train_step is _OWN_STEP
    optimizer = optimizer_for(model, config, dataset.batch * dataset.seq_length, optimizer)
    part = part_of(dataset.batch, ranks)
    rows = rows_of(dataset, part)
    share_weights(model, ranks)
    state = initial_state(model, optimizer, config, resume, ranks, part)
    train_step = fastest_step(train_step, state.device) if own and part is None else train_step
    agreement = Agreement(ranks, clock, should_stop)
    position = state.position
    budget = Budget(config, position, dataset.steps_per_epoch, agreement.now, spent_s)
    position.done = resume is not None and budget.nothing_left()
    last_good = LastGoodState(state, budget.time_s)
    reporter = Reporter(state, dataset, budget, Callbacks(validate, sample, save), last_good, agreement)
    yield from reporter.start(resumed=resume is not None, pretrained=pretrained)

    reason: str | None = None
    batches: Iterator[Pair] | None = None
    with (
        summed_gradients(model, optimizer, ranks, part),
        clipped_gradients(model, optimizer, config.clip_norm),
        scheduled_rates(optimizer),
        training_threads(config, state.device, clock, ranks) as threads,
        freeing_memory(model),
    ):
        while reason is None and not position.done:
            try:
                batches = remaining_batches(rows, budget, state.device) if batches is None else batches
                pair = next(batches, None)
                if pair is not None:
                    # Learning rate: the schedule, and what rollbacks have left of it.
                    factor = learning_rate_factor(config, position.step, budget.warmup, budget.fraction)
                    set_learning_rate(optimizer, factor * position.rate_scale)

                    # Batch: token ids (T, B), the carried hidden state, and this step's random generator.
                    hidden, step = state.hidden, position.step
                    batch = (
                        make_batch(pair, hidden, config, step, state.device)
                        if part is None
                        else make_part(pair, hidden, config, step, model, part)
                    )

                    # Step: forward, backward, update.
                    model.train()
                    with threads.timed():
                        state.unread.append(checked_loss(train_step(model, batch, optimizer)))
                        carried = batch.state if dataset.carries else None
                        state.hidden = None if carried is None else tuple(part.detach() for part in carried)

                        # Count: the position, and the average of the weights.
                        budget.count_step()
                        if state.ema is not None:
                            state.ema.update(position.step)

                    # Report: a step event now and then, and a good state to roll back to.
                    if position.step % config.log_every == 0:
                        yield reporter.step()
                    if position.step % KEEP_EVERY == 0:
                        last_good.keep_if_healthy(state, budget.time_s)

                    # Save: before a stop, and within an epoch that is long.
                    reason = agreement.stop()
                    continues = reporter.within_epoch and budget.fraction < 1
                    if reason or (continues and budget.checkpoint_due and not budget.report_due_within_epoch):
                        yield from reporter.checkpoint()
                    elif continues and budget.report_due_within_epoch:
                        reason = yield from reporter.report()
                    if reason or continues:
                        continue

                # The end of an epoch, or of the budget: validate, sample and save.
                batches = None
                position.done = budget.fraction >= 1
                position.done_minutes = config.minutes if position.done else position.done_minutes
                if position.done or budget.report_due:
                    reason = (yield from reporter.report(epoch_ends=True)) or agreement.stop()
                    continue
                yield reporter.quiet_validation() if budget.validation_due else reporter.end_epoch(validate=False)
                reason = agreement.stop()
                if reason or budget.checkpoint_due:
                    yield from reporter.checkpoint()
            except DivergedError as error:
                yield last_good.roll_back(state, error, budget.time_s, config.learning_rate)
                batches = None
    if state.ema is not None:
        state.ema.swap()  # The model keeps the weights to use.
    yield End(position.step, budget.time_s, reason or "done", position.best_loss, position.best_step)

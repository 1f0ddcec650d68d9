"""What training reports: the events, and the validations, samples and checkpoints behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from charwright.arguments import require
from charwright.data.sequences import Dataset
from charwright.evaluation.evaluation import Evaluation
from charwright.model.compute import choose_core
from charwright.model.language_model import LanguageModel
from charwright.training.budget import Budget
from charwright.training.capture import take_snapshot
from charwright.training.divergence import diverged_error
from charwright.training.early_stopping import record_validation, stop_reason
from charwright.training.events import Checkpoint, Epoch, Event, Resume, Sample, Start, Step, Validation
from charwright.training.optimizer import learning_rate_of
from charwright.training.rollback import LastGoodState
from charwright.training.sharing import Agreement
from charwright.training.snapshot import Snapshot
from charwright.training.state import TrainingState


@dataclass(frozen=True)
class Callbacks:
    """The functions that the caller of `fit` provides; each may be None."""

    validate: Callable[[LanguageModel], Evaluation] | None
    sample: Callable[[LanguageModel], str] | None
    save: Callable[[Snapshot], None] | None


class Reporter:
    """Builds the events of a run and calls the callbacks."""

    def __init__(
        self,
        state: TrainingState,
        dataset: Dataset,
        budget: Budget,
        callbacks: Callbacks,
        last_good: LastGoodState,
        agreement: Agreement,
    ) -> None:
        self.state, self.dataset, self.budget = state, dataset, budget
        self.callbacks, self.last_good, self.agreement = callbacks, last_good, agreement

    @property
    def within_epoch(self) -> bool:
        """Whether the epoch has batches left."""
        return self.state.position.step_in_epoch < self.dataset.steps_per_epoch

    def start(self, *, resumed: bool, pretrained: bool) -> Iterator[Event]:
        """The first event; and a validation of pretrained weights, which are kept if nothing becomes better."""
        state, model = self.state, self.state.model
        compute = model.compute
        yield (Resume if resumed else Start)(
            step=state.position.step,
            time_s=self.budget.time_s,
            parameters=sum(weight.numel() for weight in model.parameters()),
            steps_per_epoch=self.dataset.steps_per_epoch,
            batch=self.dataset.batch,
            seq_length=self.dataset.seq_length,
            device=str(state.device),
            precision=compute.precision_name,
            core=choose_core(compute.core, state.device, compute.precision, compute.kernel),
            threads=torch.get_num_threads(),
        )
        if pretrained and self.callbacks.validate is not None and not state.position.step and not state.best:
            yield self._validation()

    def step(self) -> Step:
        """A step event, with the mean loss since the previous one."""
        state, position = self.state, self.state.position
        state.read_losses()
        losses, state.unreported = state.unreported, []
        per_step_s = self.budget.seconds_per_step()
        return Step(
            step=position.step,
            time_s=self.budget.time_s,
            epoch=position.epoch,
            loss=sum(losses) / max(1, len(losses)),
            learning_rate=learning_rate_of(state.optimizer),
            chars_per_s=self.dataset.batch * self.dataset.seq_length / max(per_step_s, 1e-9),
            fraction=min(1.0, self.budget.fraction),
            remaining_s=self.budget.remaining_s(per_step_s),
        )

    def report(self, *, epoch_ends: bool = False) -> Generator[Event, None, str | None]:
        """Validate the EMA weights, sample from them and save; returns the reason to stop, if there is one."""
        state, began_s = self.state, self.budget.time_s
        with state.ema.applied() if state.ema else nullcontext():
            yield self.end_epoch(validate=True) if epoch_ends else self._validation()
            if self.callbacks.sample:
                yield Sample(state.position.step, self.budget.time_s, self.callbacks.sample(state.model))
        self.last_good.keep_if_healthy(state, self.budget.time_s)
        reason = stop_reason(state.position, self.budget.config)
        yield from self.checkpoint()
        self.budget.reported(began_s)
        return reason

    def quiet_validation(self) -> Epoch:
        """End an epoch with a validation of the EMA weights alone, which early stopping does not count as worse."""
        state, began_s, worse = self.state, self.budget.time_s, self.state.position.worse
        with state.ema.applied() if state.ema else nullcontext():
            event = self.end_epoch(validate=True)
        if not event.best:
            state.position.worse = worse
        self.budget.validated(began_s)
        return event

    def end_epoch(self, *, validate: bool) -> Epoch:
        """The event of an epoch that ends; the next one begins."""
        state, position = self.state, self.state.position
        state.read_losses()
        self.budget.update_epoch_time()  # Reading the losses has waited for a GPU.
        characters = position.loss_count * self.dataset.batch * self.dataset.seq_length
        event = Epoch(
            step=position.step,
            epoch=position.epoch,
            train_loss=position.loss_sum / max(1, position.loss_count),
            **self._validated(validate=validate),
            chars_per_s=characters / max(position.epoch_s, 1e-9),
            elapsed_s=position.epoch_s,
        )
        if position.step_in_epoch >= self.dataset.steps_per_epoch:
            position.epoch += 1
            position.step_in_epoch = 0
            state.hidden = None
        position.loss_sum, position.loss_count, position.epoch_s = 0.0, 0, 0.0
        state.since_report = []
        return event

    def checkpoint(self) -> Iterator[Checkpoint]:
        """Pass a snapshot to the `save` callback."""
        if self.callbacks.save is not None or self.state.part is not None:
            snapshot = take_snapshot(self.state, self.budget.time_s)  # All ranks take it, and rank 0 saves it.
            if self.callbacks.save is not None:
                self.callbacks.save(snapshot)
            self.agreement.tick()
            yield Checkpoint(self.state.position.step, self.budget.time_s)
        self.budget.saved()

    def _validation(self) -> Validation:
        """The event of a validation within an epoch."""
        state = self.state
        state.read_losses()
        losses, state.since_report = state.since_report, []
        return Validation(
            step=state.position.step,
            epoch=state.position.epoch,
            train_loss=math.fsum(losses) / len(losses) if losses else None,
            **self._validated(validate=True),
        )

    def _validated(self, *, validate: bool) -> dict[str, Any]:
        """The validation fields of an event; the best weights so far are kept.

        Raises:
            DivergedError: when the validation loss is not finite.
        """
        state = self.state
        result = self.callbacks.validate(state.model) if validate and self.callbacks.validate else None
        self.agreement.tick()
        if result is not None:
            require(result, Evaluation, "validate returns an Evaluation, as charwright.evaluate does")
        if result is not None and not math.isfinite(result.nats_per_char):
            raise diverged_error(state.position.step, learning_rate_of(state.optimizer))
        best = result is not None and record_validation(state.position, result)
        if best:
            state.best = state.model.arrays()
        return {
            "time_s": self.budget.time_s,
            "validation_loss": result.nats_per_char if result else None,
            "bits_per_char": result.bits_per_char if result else None,
            "best": best,
        }

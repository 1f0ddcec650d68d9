"""What `fit` does between two events: steps, validations, snapshots, and the way back from a fall."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from charwright.config import TrainingConfig
from charwright.data.sequences import Dataset, Pair, prefetch
from charwright.errors import DivergedError
from charwright.evaluate import Evaluation
from charwright.model.cells import State
from charwright.model.language_model import Arrays, LanguageModel
from charwright.model.recurrent import choose_core
from charwright.training.averaging import Average
from charwright.training.batch import Batch, TrainStep, batch_generator
from charwright.training.divergence import LOWER, MOST_FALLS, Watch
from charwright.training.events import (
    Checkpoint,
    Epoch,
    Event,
    Resume,
    Rollback,
    Sample,
    Start,
    Step,
    Validation,
)
from charwright.training.pace import Pace
from charwright.training.snapshot import (
    Position,
    Snapshot,
    all_finite,
    load_optimizer,
    load_state,
    optimizer_arrays,
    state_arrays,
)
from charwright.training.threads import Threads
from charwright.training.verdict import judge, why_to_stop

GOOD_EVERY = 250  # steps between two states that are kept in memory to go back to


@dataclass(frozen=True)
class Helpers:
    """What `fit` was given to measure, to let write and to save with."""

    validate: Callable[[LanguageModel], Evaluation] | None
    sample: Callable[[LanguageModel], str] | None
    save: Callable[[Snapshot], None] | None


class Trainer:
    """A model in training: all that `fit` holds between two events."""

    def __init__(
        self,
        model: LanguageModel,
        dataset: Dataset,
        config: TrainingConfig,
        train_step: TrainStep,
        optimizer: torch.optim.Optimizer,
        resume: Snapshot | None,
        clock: Callable[[], float],
        spent_s: float,
    ) -> None:
        self.model, self.dataset, self.config, self.train_step = model, dataset, config, train_step
        self.device = model.weight("head.bias").device
        self.optimizer = optimizer
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.position = Position()
        self.state: State | None = None
        self.best: Arrays = {}
        self.average = Average(model, config.averaging) if config.averaging else None
        if resume is not None:
            self.best = resume.best
            self.position = copy.copy(resume.position)
            self._load(resume)
        self.pace = Pace(config, self.position, dataset.steps_per_epoch, clock, spent_s)
        # A finished run goes on when its budget has been raised; one whose budget was cut has nothing left to tell,
        # unless it stands in the middle of an epoch.
        told = self.position.done or self.position.loss_count == 0
        self.position.done = resume is not None and told and self.pace.spent_before()
        self.pending: list[Tensor] = []  # losses not yet read back from the device
        self.unsaid: list[float] = []  # losses that no step event has told yet
        self.watch = Watch(model.vocabulary_size)
        # With a budget in epochs or steps, no bit of the weights depends on the clock.
        by_clock = config.minutes is not None and self.device.type == "cpu"
        self.threads = Threads(clock) if by_clock else None
        self.falls = 0
        self.good = self.snapshot()

    @contextmanager
    def clipping(self) -> Iterator[None]:
        """Clip the gradients whenever the optimizer steps; afterwards it is its owner's again, as it was."""
        if self.config.clip_norm is None:
            yield
            return
        hook = self.optimizer.register_step_pre_hook(self._clip)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """Inside, training may use fewer threads than PyTorch was told to."""
        try:
            yield
        finally:
            if self.threads is not None:
                self.threads.give_back()

    def train_epoch(
        self, helpers: Helpers, should_stop: Callable[[], str | None]
    ) -> Generator[Event, None, str | None]:
        """The rest of the current epoch and what is due at its end; returns why training stops, if it does."""
        pace, position = self.pace, self.position
        for pair in self.remaining_pairs():
            self.step(pair)
            if position.step % self.config.log_every == 0:
                yield self.stepped()
            if position.step % GOOD_EVERY == 0:
                self._keep_if_good()
            if stopped := should_stop():  # The epoch is finished and told by the resume.
                yield from self.checkpoint(helpers.save)
                return stopped
            if pace.fraction >= 1:
                break
            if self.inside_epoch and pace.report_due_inside:
                if reason := (yield from self.report(helpers)):  # Saved; a resume goes on inside the epoch.
                    return reason
            elif self.inside_epoch and pace.checkpoint_due:
                yield from self.checkpoint(helpers.save)

        position.done = pace.fraction >= 1
        if position.done:
            position.done_minutes = self.config.minutes
        if position.done or pace.report_due:
            return (yield from self.report(helpers, epoch_ends=True)) or should_stop()
        yield self.end_epoch(None)
        stopped = should_stop()
        if stopped or pace.checkpoint_due:
            yield from self.checkpoint(helpers.save)
        return stopped

    def report(self, helpers: Helpers, *, epoch_ends: bool = False) -> Generator[Event, None, str | None]:
        """Measure and let write the averaged weights, and save all; returns why training stops, if it does."""
        began_s = self.pace.time_s
        with self.averaged():
            yield self.end_epoch(helpers.validate) if epoch_ends else self.measured(helpers.validate)
            if helpers.sample:
                yield Sample(self.position.step, self.pace.time_s, helpers.sample(self.model))
        self._keep_if_good()
        reason = why_to_stop(self.position, self.config)
        yield from self.checkpoint(helpers.save)
        self.pace.reported(began_s)
        return reason

    def remaining_pairs(self) -> Iterator[Pair]:
        """The batches of this epoch that are still to do, made ahead by a thread."""
        self.pace.begin_epoch()
        # Stopped after the budget's last step, before the end of its epoch was told. Without any step there would be no
        # loss to tell: one is done, even where starting took all the time.
        if self.position.step and self.pace.spent_before():
            return iter(())
        return prefetch(self.dataset.batches(self.position.epoch, self.position.step_in_epoch))

    def step(self, pair: Pair) -> None:
        """One batch: set the rate, train, count."""
        self.model.train()
        factor = self.pace.learning_rate_factor * self.position.rate_scale
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        generator = batch_generator(self.config.seed, self.position.step, self.device)
        inputs, targets = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in pair)
        batch = Batch(inputs, targets, self._begun(generator), generator)
        began = self.pace.clock()
        # Whoever wrote the step need not know that a graph which is kept keeps all its memory.
        self.pending.append(self.train_step(self.model, batch, self.optimizer).detach())
        carried = batch.state if self.dataset.carries else None
        self.state = None if carried is None else tuple(part.detach() for part in carried)
        self.pace.count_step()
        if self.average is not None:
            self.average.count_step(self.position.step)
        if self.threads is not None:
            self.threads.step_took(self.pace.clock() - began)

    def _begun(self, generator: torch.Generator) -> State | None:
        """The state that a batch goes on from, with some of its rows begun anew.

        Streams that only ever go on would never see the zero state, which is what every prompt is read from.
        """
        if self.state is None or self.config.zero_state == 0:
            return self.state
        kept = torch.rand(self.dataset.batch, generator=generator, device=self.device) >= self.config.zero_state
        return tuple(part * kept[None, :, None] for part in self.state)

    def started(self, *, resumed: bool) -> Start:
        """The first event."""
        return (Resume if resumed else Start)(
            step=self.position.step,
            time_s=self.pace.time_s,
            parameters=sum(weight.numel() for weight in self.model.parameters()),
            steps_per_epoch=self.dataset.steps_per_epoch,
            batch=self.dataset.batch,
            seq_length=self.dataset.seq_length,
            device=str(self.device),
            precision="bf16" if self.model.precision == torch.bfloat16 else "f32",
            core=choose_core(self.model.core, self.device, self.model.precision),
            threads=torch.get_num_threads(),
        )

    def stepped(self) -> Step:
        """A step event, with the mean loss since the last one."""
        self._read_losses()
        losses, self.unsaid = self.unsaid, []
        position, per_step_s = self.position, self.pace.seconds_per_step()
        return Step(
            step=position.step,
            time_s=self.pace.time_s,
            epoch=position.epoch,
            loss=sum(losses) / max(1, len(losses)),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            chars_per_s=self.dataset.batch * self.dataset.seq_length / max(per_step_s, 1e-9),
            fraction=min(1.0, self.pace.fraction),
            remaining_s=self.pace.remaining_s(per_step_s),
        )

    @property
    def inside_epoch(self) -> bool:
        """Whether the epoch has batches left; at its end it is told and saved as a whole."""
        return self.position.step_in_epoch < self.dataset.steps_per_epoch

    def checkpoint(self, save: Callable[[Snapshot], None] | None) -> Iterator[Checkpoint]:
        """Hand a snapshot to `save`, if there is one, and say so."""
        if save is not None:
            save(self.snapshot())
            yield Checkpoint(self.position.step, self.pace.time_s)
        self.pace.saved()

    def end_epoch(self, validate: Callable[[LanguageModel], Evaluation] | None) -> Epoch:
        """Measure, keep the weights if they are the best so far, and begin the next epoch."""
        position = self.position
        self._read_losses()
        self.pace.count_time()  # A GPU has done its work only now.
        characters = position.loss_count * self.dataset.batch * self.dataset.seq_length
        event = Epoch(
            step=position.step,
            epoch=position.epoch,
            train_loss=position.loss_sum / max(1, position.loss_count),
            **self._validated(validate),
            chars_per_s=characters / max(position.epoch_s, 1e-9),
            elapsed_s=position.epoch_s,
        )
        if position.step_in_epoch >= self.dataset.steps_per_epoch:
            position.epoch += 1
            position.step_in_epoch = 0
            self.state = None
        position.loss_sum, position.loss_count, position.epoch_s = 0.0, 0, 0.0
        return event

    def measured(self, validate: Callable[[LanguageModel], Evaluation] | None) -> Validation:
        """The same inside an epoch, which goes on."""
        self._read_losses()
        return Validation(
            step=self.position.step,
            epoch=self.position.epoch,
            train_loss=self.watch.smoothed,
            **self._validated(validate),
        )

    def _validated(self, validate: Callable[[LanguageModel], Evaluation] | None) -> dict[str, Any]:
        """What an event tells of the model as it is now; the best one so far is kept.

        Raises:
            DivergedError: when its loss is no finite number.
        """
        result = validate(self.model) if validate else None
        if result is not None and not math.isfinite(result.nats_per_char):
            raise DivergedError(self._diverged_message())
        best = result is not None and judge(self.position, result)
        if best:
            self.best = self.model.arrays()
        return {
            "time_s": self.pace.time_s,
            "validation_loss": result.nats_per_char if result else None,
            "bits_per_char": result.bits_per_char if result else None,
            "best": best,
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, if there are any."""
        with self.average.in_place() if self.average else nullcontext():
            yield

    def leave_average(self) -> None:
        """Training is over: the model keeps the weights that are for use."""
        if self.average is not None:
            self.average.swap()

    def snapshot(self) -> Snapshot:
        """Everything that a resume needs, copied.

        Raises:
            DivergedError: when a number in it is not finite, so that no such number is ever saved.
        """
        self._read_losses()
        self.position.elapsed_s = self.pace.time_s
        snapshot = Snapshot(
            position=copy.copy(self.position),
            weights=self.model.arrays(),
            optimizer=optimizer_arrays(self.model, self.optimizer),
            state=state_arrays(self.state),
            average=self.average.arrays() if self.average else {},
            best=self.best,
        )
        kept = (snapshot.weights, snapshot.optimizer, snapshot.state, snapshot.average)
        if not all(map(all_finite, kept)):
            raise DivergedError(self._diverged_message())
        return snapshot

    def roll_back(self, error: DivergedError) -> Rollback:
        """Go back to the last good state, with a lower learning rate from now on.

        Raises:
            DivergedError: the one that was given, when that has been tried often enough.
        """
        self.falls += 1
        if self.falls > MOST_FALLS:
            raise error
        position, good = self.position, self.good.position
        fallen = position.step
        for name in ("epoch", "step_in_epoch", "step", "loss_sum", "loss_count", "epoch_s"):
            setattr(position, name, getattr(good, name))
        position.rate_scale *= LOWER
        position.worse, position.done = 0, False
        self.pending, self.unsaid = [], []
        self.watch = Watch(self.model.vocabulary_size)
        self.optimizer.state.clear()  # It may have been good before it remembered anything.
        self._load(self.good)
        rate = self.config.learning_rate * position.rate_scale
        return Rollback(position.step, self.pace.time_s, diverged_step=fallen, learning_rate=rate)

    def _keep_if_good(self) -> None:
        """Remember the state of now as one to go back to."""
        self._read_losses()
        if self.watch.healthy:
            self.good = self.snapshot()

    def _load(self, snapshot: Snapshot) -> None:
        """Take the weights and all that goes with them; the position is the caller's."""
        self.model.load_arrays(snapshot.weights)
        load_optimizer(self.model, self.optimizer, snapshot.optimizer)
        self.state = load_state(snapshot.state, self.device)
        if self.average is not None:
            self.average.load(snapshot.average or snapshot.weights)

    def _read_losses(self) -> None:
        """Fetch the losses since the last call, add them to the epoch's, and see that they are no fall."""
        losses = [float(loss) for loss in self.pending]
        self.pending = []
        self.unsaid += losses
        for loss in losses:
            self.position.loss_sum += loss
            self.position.loss_count += 1
            if self.watch.lost(loss):
                raise DivergedError(self._diverged_message())

    def _diverged_message(self) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"training diverges near step {self.position.step:,} whatever the learning rate (the last was {rate:.2g}); "
            "what was saved before is whole; try a much smaller --learning-rate"
        )

    def _clip(self, *_: object) -> None:
        """Before each optimizer step: scale the gradients down to the norm (Pascanu et al., 2013)."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)

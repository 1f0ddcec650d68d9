"""The training loop: `train_step` does one batch and may be replaced, `fit` does the rest and yields events."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from charwright.config import TrainingConfig
from charwright.data.sequences import Dataset, Pair, prefetch
from charwright.errors import DivergedError
from charwright.evaluate import Evaluation
from charwright.model.cells import State
from charwright.model.language_model import Arrays, LanguageModel
from charwright.model.machine import keep_memory
from charwright.model.recurrent import choose_core
from charwright.training.events import Checkpoint, End, Epoch, Event, Resume, Sample, Start, Step
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


@dataclass
class Batch:
    """One batch for `train_step`.

    `state` is what the batch starts from (None is zero); a step that wants it carried on leaves the last state here.
    `generator` is this batch's own randomness, for dropout and the like: a function of the seed and the step alone.
    """

    inputs: Tensor  # (T, B) int64
    targets: Tensor  # (T, B) int64
    state: State | None
    generator: torch.Generator


TrainStep = Callable[[LanguageModel, Batch, torch.optim.Optimizer], Tensor]


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
) -> Iterator[Event]:
    """Train `model` on `dataset` until the budget of `config` is spent; yields events and prints nothing.

    Args:
        model: trained in place; its last weights stay in it, the best ones go to `save`.
        dataset: where batches come from.
        config: the budget and how to spend it.
        train_step: what is done with a batch; gradients are clipped whenever it calls `optimizer.step()`.
        optimizer: one of your own; its learning rates follow the schedule in proportion.
        validate: measures the model at the end of an epoch.
        sample: lets the model write at the end of an epoch.
        save: keeps a snapshot, at the end of each epoch and every `checkpoint_minutes`.
        resume: a snapshot to go on from; the same bits come out as if training had never stopped.
        should_stop: asked after each step; a reason ends training, with everything saved.
        clock: seconds from anywhere.

    Raises:
        UsageError: when the configuration has no budget.
        DivergedError: when the loss is no longer a finite number.
    """
    keep_memory()
    loop = _Loop(model, dataset, config, train_step, optimizer, resume, clock)
    pace, position = loop.pace, loop.position
    yield loop.started(resumed=resume is not None)
    stopped = None
    with loop.clipping():
        while not (stopped or position.done):
            # The batches of an epoch, until the budget is spent or somebody asks to stop.
            for pair in loop.remaining_pairs():
                loop.step(pair)
                if position.step % config.log_every == 0:
                    yield loop.stepped()
                stopped = should_stop()
                if stopped or pace.fraction >= 1:
                    break
                if loop.inside_epoch and pace.checkpoint_due:
                    yield from loop.checkpoint(save)
            if stopped:  # The epoch is finished and told by the resume.
                yield from loop.checkpoint(save)
                break

            # Its end: measure, let the model write, save.
            done = pace.fraction >= 1
            report = done or pace.report_due
            yield loop.end_epoch(validate if report else None)
            if report and sample:
                yield Sample(position.step, pace.time_s, sample(model))
            position.done = done
            stopped = should_stop()
            if stopped or report or pace.checkpoint_due:
                yield from loop.checkpoint(save)
            if report:
                pace.reported()
    yield End(position.step, pace.time_s, stopped or "done", position.best_loss, position.best_step)


class _Loop:
    """What `fit` holds between two events."""

    def __init__(
        self,
        model: LanguageModel,
        dataset: Dataset,
        config: TrainingConfig,
        train_step: TrainStep,
        optimizer: torch.optim.Optimizer | None,
        resume: Snapshot | None,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.dataset, self.config, self.train_step = model, dataset, config, train_step
        self.device = model.weight("head.bias").device
        self.optimizer = optimizer or make_optimizer(model, config)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.position = Position()
        self.state: State | None = None
        self.best: Arrays = {}
        if resume is not None:
            self._load(resume)
        self.pace = Pace(config, self.position, dataset.steps_per_epoch, clock)
        # A finished run goes on when its budget has been raised; one whose budget was cut has nothing left to tell,
        # unless it stands in the middle of an epoch.
        told = self.position.done or self.position.loss_count == 0
        self.position.done = resume is not None and told and self.pace.spent_before()
        self.pending: list[Tensor] = []  # losses not yet read back from the device
        self.unsaid: list[float] = []  # losses that no step event has told yet

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

    def remaining_pairs(self) -> Iterator[Pair]:
        """The batches of this epoch that are still to do, made ahead by a thread."""
        self.pace.begin_epoch()
        if self.pace.spent_before():  # Stopped after the budget's last step, before the end of its epoch was told.
            return iter(())
        return prefetch(self.dataset.batches(self.position.epoch, self.position.step_in_epoch))

    def step(self, pair: Pair) -> None:
        """One batch: set the rate, train, count."""
        self.model.train()
        factor = self.pace.learning_rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        generator = torch.Generator(self.device).manual_seed(_mixed(self.config.seed, self.position.step))
        inputs, targets = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in pair)
        batch = Batch(inputs, targets, self._begun(generator), generator)
        # Whoever wrote the step need not know that a graph which is kept keeps all its memory.
        self.pending.append(self.train_step(self.model, batch, self.optimizer).detach())
        carried = batch.state if self.dataset.carries else None
        self.state = None if carried is None else tuple(part.detach() for part in carried)
        self.pace.count_step()

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
        self._read_losses()
        position = self.position
        self.pace.count_time()  # A GPU has done its work only now.
        result = validate(self.model) if validate else None
        if result is not None and not math.isfinite(result.nats_per_char):
            raise DivergedError(self._diverged_message())
        best = result is not None and (position.best_loss is None or result.nats_per_char < position.best_loss)
        if best and result is not None:
            position.best_loss, position.best_step = result.nats_per_char, position.step
            self.best = self.model.arrays()
        characters = position.loss_count * self.dataset.batch * self.dataset.seq_length
        event = Epoch(
            step=position.step,
            time_s=self.pace.time_s,
            epoch=position.epoch,
            train_loss=position.loss_sum / max(1, position.loss_count),
            validation_loss=result.nats_per_char if result else None,
            bits_per_char=result.bits_per_char if result else None,
            chars_per_s=characters / max(position.epoch_s, 1e-9),
            elapsed_s=position.epoch_s,
            best=best,
        )
        if position.step_in_epoch >= self.dataset.steps_per_epoch:
            position.epoch += 1
            position.step_in_epoch = 0
            self.state = None
        position.loss_sum, position.loss_count, position.epoch_s = 0.0, 0, 0.0
        return event

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
            best=self.best,
        )
        if not all(map(all_finite, (snapshot.weights, snapshot.optimizer, snapshot.state))):
            raise DivergedError(self._diverged_message())
        return snapshot

    def _load(self, snapshot: Snapshot) -> None:
        self.model.load_arrays(snapshot.weights)
        load_optimizer(self.model, self.optimizer, snapshot.optimizer)
        self.state = load_state(snapshot.state, self.device)
        self.best = snapshot.best
        self.position = copy.copy(snapshot.position)

    def _read_losses(self) -> None:
        """Fetch the losses since the last call, add them to the epoch's, and see that they are numbers."""
        losses = [float(loss) for loss in self.pending]
        self.pending = []
        self.unsaid += losses
        for loss in losses:
            self.position.loss_sum += loss
            self.position.loss_count += 1
        if not all(map(math.isfinite, losses)):
            raise DivergedError(self._diverged_message())

    def _diverged_message(self) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"training diverged near step {self.position.step:,}: the loss is no longer a number (learning rate "
            f"{rate:.2g}); what was saved before is whole; try a smaller --learning-rate"
        )

    def _clip(self, *_: object) -> None:
        """Before each optimizer step: scale the gradients down to the norm (Pascanu et al., 2013)."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)


def _mixed(seed: int, step: int) -> int:
    """One 63-bit seed from two numbers (the finalizer of splitmix64), so that neighbours have nothing in common."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1

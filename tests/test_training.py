"""The training loop: its events, its snapshots, divergence, early stopping, and resumes that change no bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import charwright as cw
from charwright import kernels
from charwright.data.sequences import Dataset, make_dataset
from charwright.errors import DivergedError, UsageError
from charwright.evaluation.evaluation import Evaluation
from charwright.model.compute import Compute
from charwright.planning.recipes import find_recipe
from charwright.training import events
from charwright.training.batch import Batch
from charwright.training.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = 12
STEPS = 5  # in an epoch of the dataset below


def make_data(order: str = "streams", seed: int = 1) -> Dataset:
    """Five batches of 4 x 10 from ids that advance in random steps of 1 and 2: easy to learn, but not regular."""
    ids = np.cumsum(np.random.default_rng(0).integers(1, 3, 4 * 11 * STEPS + 3)) % (VOCABULARY - 1) + 1
    config = cw.SequenceConfig(order=order, batch=4, seq_length=10)
    dataset = make_dataset(ids, config, seed)
    assert dataset.steps_per_epoch == STEPS
    return dataset


def make_model(**options: Any) -> cw.LanguageModel:
    config = cw.ModelConfig(**({"units": 8, "embedding_size": 6, "layers": 1} | options))
    return cw.LanguageModel(config, VOCABULARY, seed=1, embedding_range=0.05)


def settings_for(**options: Any) -> cw.TrainingConfig:
    return cw.TrainingConfig(**({"learning_rate": 0.01, "log_every": 2, "warmup": 0} | options))


class Clock:
    """A clock that advances by one second per training step."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now, self.step_s = 1000.0, step_s

    def __call__(self) -> float:
        return self.now

    def train_step(self, model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        self.now += self.step_s
        return cw.train_step(model, batch, optimizer)


def validation_losses(*losses: float) -> Callable[[cw.LanguageModel], Evaluation]:
    """A `validate` callback that returns these losses in order."""
    left = iter(losses)

    def validate(_: cw.LanguageModel) -> Evaluation:
        loss = next(left)
        return Evaluation(loss, loss / math.log(2), 100, 0, "carried")

    return validate


def real_loss(model: cw.LanguageModel) -> Evaluation:
    vocabulary = cw.Vocabulary("abcdefghijk")
    return cw.evaluate(model, vocabulary, "abcegikabdfhjkbcdfgikac" * 3)


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


# Events.


def test_events_come_in_order() -> None:
    names = [
        event.to_json()["event"]
        for event in cw.fit(
            make_model(),
            make_data(),
            settings_for(epochs=2),
            validate=validation_losses(2.0, 1.0),
            sample=lambda _: "text",
            save=lambda _: None,
        )
    ]
    first, second = ["step"] * 2, ["step"] * 3  # after steps 2, 4 and 6, 8, 10
    rest = ["epoch", "sample", "checkpoint"]
    assert names == ["start", *first, *rest, *second, *rest, "end"]


def test_events_have_the_figures_of_the_run() -> None:
    clock = Clock()
    seen = list(
        cw.fit(
            make_model(),
            make_data(),
            settings_for(epochs=2, schedule="constant"),
            train_step=clock.train_step,
            validate=validation_losses(1.5, 2.5),
            sample=lambda _: "some text",
            clock=clock,
        )
    )
    start = seen[0]
    assert isinstance(start, events.Start)
    assert (start.steps_per_epoch, start.batch, start.seq_length) == (STEPS, 4, 10)
    assert start.parameters == sum(weight.numel() for weight in make_model().parameters())
    epochs = [event for event in seen if isinstance(event, events.Epoch)]
    assert [(event.epoch, event.step, event.elapsed_s, event.chars_per_s) for event in epochs] == [
        (1, 5, 5.0, 40.0),
        (2, 10, 5.0, 40.0),
    ]
    assert [(event.validation_loss, event.best) for event in epochs] == [(1.5, True), (2.5, False)]
    assert epochs[0].bits_per_char == pytest.approx(1.5 / math.log(2))
    steps = [event for event in seen if isinstance(event, events.Step)]
    assert [(event.step, event.epoch, event.fraction) for event in steps] == [
        (2, 1, 0.2),
        (4, 1, 0.4),
        (6, 2, 0.6),
        (8, 2, 0.8),
        (10, 2, 1.0),
    ]
    assert [event.remaining_s for event in steps] == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0])
    assert all(event.chars_per_s == pytest.approx(40.0) for event in steps)
    assert [event.text for event in seen if isinstance(event, events.Sample)] == ["some text"] * 2
    end = seen[-1]
    assert isinstance(end, events.End)
    assert (end.step, end.time_s, end.reason, end.best_loss, end.best_step) == (10, 10.0, "done", 1.5, 5)


def test_step_losses_are_means_since_the_previous_step_event() -> None:
    losses = iter(range(1, 11))

    def counting(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        return torch.tensor(float(next(losses)))

    config = settings_for(epochs=2, checkpoint_minutes=1e-9)
    seen = list(cw.fit(make_model(), make_data(), config, train_step=counting, save=lambda _: None))
    assert [event.loss for event in seen if isinstance(event, events.Step)] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert [event.train_loss for event in seen if isinstance(event, events.Epoch)] == [3.0, 8.0]


def test_losses_of_validations_are_means_since_the_previous_report() -> None:
    """Also within epochs, where a loss of all steps so far would look like a jump."""
    clock, losses = Clock(), iter(range(100, 0, -1))

    def falling(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        clock.now += 1.0
        return torch.tensor(float(next(losses)))

    config = settings_for(minutes=0.25, log_every=1)
    seen = list(cw.fit(make_model(), make_data(), config, train_step=falling, clock=clock, validate=real_loss))
    since_epoch, since_report, within = [], [], 0
    for event in seen:
        if isinstance(event, events.Step):
            since_epoch.append(event.loss)
            since_report.append(event.loss)
        elif isinstance(event, events.Epoch):
            assert event.train_loss == pytest.approx(np.mean(since_epoch))
            since_epoch, since_report = [], []
        elif isinstance(event, events.Validation):
            assert event.train_loss == pytest.approx(np.mean(since_report))
            since_report, within = [], within + 1
    assert within >= 3


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("order", ["windows", "streams"])
def test_training_lowers_the_loss(cell: str, order: str) -> None:
    seen = list(cw.fit(make_model(cell=cell), make_data(order), settings_for(epochs=12, learning_rate=0.03)))
    losses = [event.train_loss for event in seen if isinstance(event, events.Epoch)]
    assert losses[0] > 2.2, "ln 12 is 2.48"
    assert losses[-1] < 1.3


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    list(cw.fit(make_model(), make_data(), settings_for(epochs=1), validate=real_loss, save=lambda _: None))
    assert capfd.readouterr() == ("", "")


def test_the_global_random_state_is_unchanged() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(cw.fit(make_model(dropout=0.4), make_data("windows"), settings_for(epochs=1), validate=real_loss))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


# Custom training steps and optimizers.


def test_train_step_can_be_replaced() -> None:
    seen = []

    def half_rate(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        seen.append((tuple(batch.inputs.shape), torch.equal(batch.inputs[1:], batch.targets[:-1]), batch.state))
        logits, batch.state = model(batch.inputs, batch.state)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        (0.5 * loss).backward()
        optimizer.step()
        return loss  # Not detached, and neither is the state: `fit` must detach both.

    *_, end = cw.fit(make_model(), make_data(), settings_for(epochs=2), train_step=half_rate)
    assert [shape for shape, _, _ in seen] == [(10, 4)] * 10
    assert all(shifted for _, shifted, _ in seen)
    assert [state is None for _, _, state in seen] == ([True] + [False] * 4) * 2, "each epoch starts from a zero state"
    assert all(state is None or not state[0].requires_grad for _, _, state in seen)
    assert isinstance(end, events.End)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_some_streams_are_reset_to_the_zero_state(share: float) -> None:
    """A model that never sees the zero state in training generates poorly from a prompt."""
    reset: list[list[bool]] = []

    def watching(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        if batch.state is not None:
            reset.append([bool((row == 0).all()) for row in batch.state[0][0]])
            assert all((row != 0).any() or new for row, new in zip(batch.state[0][0], reset[-1], strict=True))
        return cw.train_step(model, batch, optimizer)

    def train() -> list[list[bool]]:
        reset.clear()
        list(cw.fit(make_model(), make_data(), settings_for(epochs=12, state_reset=share), train_step=watching))
        return list(reset)

    first = train()
    rows = [new for batch in first for new in batch]
    assert sum(rows) / len(rows) == pytest.approx(share, abs=0.12)
    assert train() == first, "the choice is a function of the seed and the step"
    if share == 0.3:
        assert len({tuple(batch) for batch in first}) > 3


def test_windows_start_from_a_zero_state() -> None:
    states = []

    def watching(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        states.append(batch.state)
        return cw.train_step(model, batch, optimizer)

    list(cw.fit(make_model(), make_data("windows"), settings_for(epochs=1), train_step=watching))
    assert states == [None] * STEPS


def test_gradients_are_clipped_during_training_only() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.arrays()
    config = settings_for(steps=1, clip_norm=1e-3, schedule="constant")
    list(cw.fit(model, make_data(), config, optimizer=optimizer))
    moved = math.sqrt(sum(float(((model.arrays()[name] - before[name]) ** 2).sum()) for name in before))
    assert moved == pytest.approx(1e-3, rel=1e-3)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert float(next(iter(model.parameters())).grad.max()) == 1.0, "no longer clipped"


def test_gradients_of_all_parameters_of_the_optimizer_are_clipped_together_and_no_others() -> None:
    class Scaled(cw.LanguageModel):
        """With a parameter of its own, whose gradient is much larger than all others."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.extra = torch.nn.Parameter(torch.ones(()))

        def forward(self, *arguments: Any, **options: Any) -> Any:
            logits, state = super().forward(*arguments, **options)
            return logits * (1 + 1000 * (self.extra - 1)), state

    config = settings_for(steps=1, clip_norm=1e-3, schedule="constant")
    model = Scaled(make_model().config, make_model().vocabulary_size)
    before = [weight.detach().clone() for weight in model.parameters()]
    list(cw.fit(model, make_data(), config, optimizer=torch.optim.SGD(model.parameters(), lr=1.0)))
    moved = [now.detach() - then for now, then in zip(model.parameters(), before, strict=True)]
    assert math.sqrt(sum(float((part**2).sum()) for part in moved)) == pytest.approx(1e-3, rel=1e-3)

    model = make_model()
    head = model.weight("head.weight")
    for weight in model.parameters():  # As after steps whose optimizer has not reset these.
        weight.grad = torch.full_like(weight, 1e3)
    then = head.detach().clone()
    list(cw.fit(model, make_data(), config, optimizer=torch.optim.SGD([head], lr=1.0)))
    assert float((head.detach() - then).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_an_abandoned_fit_removes_its_hook_from_the_optimizer() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training = cw.fit(model, make_data(), settings_for(epochs=1, log_every=1), optimizer=optimizer)
    assert [next(training).name for _ in range(3)] == ["start", "step", "step"]
    training.close()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert float(next(iter(model.parameters())).grad.max()) == 1.0


def test_weight_decay_applies_to_neither_biases_nor_the_embedding() -> None:
    model = make_model()
    optimizer = cw.make_optimizer(model, settings_for(epochs=1, weight_decay=0.3))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    decayed = {name for name in model.config.weight_shapes(VOCABULARY) if decay[id(model.weight(name))]}
    assert decayed == {"recurrent.0.weight_ih", "recurrent.0.weight_hh", "head.weight"}


# Budgets and learning rates.


def test_a_budget_in_steps_may_end_within_an_epoch() -> None:
    seen = list(cw.fit(make_model(), make_data(), settings_for(steps=7), validate=validation_losses(3.0, 2.0)))
    epochs = [event for event in seen if isinstance(event, events.Epoch)]
    assert [(event.epoch, event.step, event.validation_loss) for event in epochs] == [(1, 5, 3.0), (2, 7, 2.0)]
    assert seen[-1].step == 7


def test_a_budget_in_epochs() -> None:
    assert list(cw.fit(make_model(), make_data(), settings_for(epochs=3)))[-1].step == 3 * STEPS


def test_a_budget_in_minutes_follows_the_clock() -> None:
    clock = Clock()
    config = settings_for(minutes=0.5, log_every=1)
    seen = list(cw.fit(make_model(), make_data(), config, train_step=clock.train_step, clock=clock))
    assert seen[-1].step == 30, "half a minute, one step per second"
    steps = [event for event in seen if isinstance(event, events.Step)]
    assert [event.remaining_s for event in steps] == pytest.approx([max(0, 28.7 - i) for i in range(30)], abs=0.01)
    rates = [event.learning_rate for event in steps]
    # The last 0.3 s of the budget are reserved for the exit of the process.
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 29.7)) for i in range(30)])


def test_a_budget_in_minutes_is_not_spent_on_validation() -> None:
    clock, calls = Clock(), []

    def slow(model: cw.LanguageModel) -> Evaluation:
        calls.append(clock.now)
        return validation_losses(2.0)(model)

    config = settings_for(minutes=10)
    list(cw.fit(make_model(), make_data(), config, train_step=clock.train_step, clock=clock, validate=slow))
    assert len(calls) < 60, "there are 120 epochs"
    assert calls[-1] == 1600.0, "the last weights are validated"


@pytest.mark.parametrize("cost_s", [0.0, 0.2])
def test_a_short_text_is_validated_between_the_reports(cost_s: float) -> None:
    """Its best weights may come and go within a second; but no more than a twentieth of the time goes into that."""
    clock, saved = Clock(step_s=0.001), []

    def timed(model: cw.LanguageModel) -> Evaluation:
        clock.now += cost_s
        return validation_losses(2.0 if not saved else 3.0)(model)

    config = settings_for(minutes=0.1, patience=2)
    model = make_model()
    seen = list(
        cw.fit(model, make_data(), config, train_step=clock.train_step, clock=clock, validate=timed, save=saved.append)
    )
    validated = [event.step for event in seen if isinstance(event, events.Epoch) and event.validation_loss is not None]
    if cost_s:
        assert len(validated) < 6, "each takes as long as forty epochs"
    else:
        assert validated[:3] == [10 * STEPS, 20 * STEPS, 30 * STEPS], "after ten passes"
        before_the_report = [step for step in validated if 10 * 7 * STEPS <= step < 1900]
        assert all(later - one >= 0.15 * later for one, later in pairwise(before_the_report)), "then less often"
        assert len(validated) < 60
    assert seen[-1].step > 2000, "what comes between the reports is not counted for early stopping"


def test_a_reason_to_stop_may_be_a_truth_value() -> None:
    stopped = list(cw.fit(make_model(), make_data(), settings_for(epochs=1), should_stop=lambda: False))[-1]  # type: ignore[arg-type, return-value]
    assert (stopped.reason, stopped.step) == ("done", STEPS)
    stopped = list(cw.fit(make_model(), make_data(), settings_for(epochs=1), should_stop=lambda: True))[-1]  # type: ignore[arg-type, return-value]
    assert (stopped.reason, stopped.step) == ("stopped", 1)


def test_one_step_is_trained_even_if_the_preparation_took_the_whole_budget() -> None:
    clock = Clock()
    settings = settings_for(minutes=0.05)
    seen = list(cw.fit(make_model(), make_data(), settings, train_step=clock.train_step, clock=clock, spent_s=4.0))
    [epoch] = [event for event in seen if isinstance(event, events.Epoch)]
    assert epoch.step == 1
    assert epoch.train_loss > 0, "the loss of a step, not an empty sum"


def test_a_budget_is_required() -> None:
    with pytest.raises(UsageError, match="`epochs`"):
        list(cw.fit(make_model(), make_data(), settings_for()))


def test_the_cosine_schedule_rollbacks_from_the_peak_to_nearly_zero() -> None:
    config = settings_for(epochs=20, log_every=1)
    seen = list(cw.fit(make_model(), make_data(), config))
    rates = [event.learning_rate for event in seen if isinstance(event, events.Step)]
    assert rates[0] == 0.01
    assert rates[50] == pytest.approx(0.005)
    assert 0 < rates[-1] < 0.01 * 0.001
    assert rates == sorted(rates, reverse=True)


def test_the_trapezoid_is_held_and_falls_to_zero_in_a_line() -> None:
    config = settings_for(epochs=20, log_every=1, schedule="trapezoid")
    seen = list(cw.fit(make_model(), make_data(), config))
    rates = [event.learning_rate for event in seen if isinstance(event, events.Step)]
    assert rates[:41] == [0.01] * 41
    assert rates[70] == pytest.approx(0.005)
    assert 0 < rates[-1] < 0.01 * 0.02
    assert np.diff(rates[41:]) == pytest.approx(np.full(58, -0.01 / 60))


def test_the_learning_rates_of_a_custom_optimizer_follow_the_schedule() -> None:
    model = make_model()
    weights = list(model.parameters())
    groups = [{"params": weights[:1], "lr": 0.4}, {"params": weights[1:], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    seen = []

    def watching(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return cw.train_step(model, batch, optimizer)

    list(cw.fit(model, make_data(), settings_for(steps=10), train_step=watching, optimizer=optimizer))
    assert seen[0] == [0.4, 0.2]
    assert seen[5] == pytest.approx([0.2, 0.1])


def test_the_recipe_tutorial_has_the_options_of_the_tutorial() -> None:
    recipe = find_recipe("tutorial")
    assert (recipe.sequences.order, recipe.sequences.batch, recipe.sequences.seq_length) == ("windows", 64, 100)
    assert recipe.split.val_fraction == 0
    training = recipe.training
    assert (training.optimizer, training.learning_rate, training.epsilon) == ("adam", 1e-3, 1e-7)
    assert (training.beta1, training.beta2) == (0.9, 0.999)
    assert (training.schedule, training.clip_norm, training.epochs) == ("constant", None, 10)
    with pytest.raises(UsageError, match="tutorial"):
        find_recipe("tutorail")


# Snapshots.


def test_logging_validating_sampling_and_saving_change_no_weight() -> None:
    def weights(**how: Any) -> dict[str, np.ndarray]:
        model = make_model(dropout=0.3)
        config = settings_for(epochs=3, log_every=how.pop("log_every"), checkpoint_minutes=how.pop("minutes", 10.0))
        list(cw.fit(model, make_data(), config, **how))
        return model.arrays()

    def sample(model: cw.LanguageModel) -> str:
        return cw.Generator.of(model, cw.Vocabulary("abcdefghijk")).generate("ab", length=5, seed=1)[0].continuation

    plain = weights(log_every=1000)
    assert same(plain, weights(log_every=1))
    assert same(plain, weights(log_every=3, validate=real_loss))
    assert same(plain, weights(log_every=2, sample=sample))
    assert same(plain, weights(log_every=1, minutes=1e-9, validate=real_loss, sample=sample, save=lambda _: None))


def test_the_weights_to_use_are_the_best_by_validation_loss() -> None:
    taken: list[Snapshot] = []
    model = make_model()
    list(
        cw.fit(
            model,
            make_data(),
            settings_for(epochs=4),
            validate=validation_losses(3.0, 1.0, 2.0, 1.5),
            save=taken.append,
        )
    )
    assert same(taken[3].to_use, taken[1].weights)
    assert same(taken[3].weights, model.arrays())
    assert not same(taken[3].to_use, taken[3].weights)
    assert (taken[3].position.best_loss, taken[3].position.best_step) == (1.0, 2 * STEPS)


def test_the_best_weights_survive_a_resume() -> None:
    taken: list[Snapshot] = []
    config = settings_for(epochs=2)
    list(cw.fit(make_model(), make_data(), settings_for(epochs=1), validate=validation_losses(1.0), save=taken.append))
    best = taken[-1]
    list(cw.fit(make_model(), make_data(), config, validate=validation_losses(2.0), save=taken.append, resume=best))
    assert taken[-1].position.step == 2 * STEPS
    assert same(taken[-1].to_use, best.weights)
    assert taken[-1].position.best_step == STEPS


def test_every_batch_has_its_own_random_generator() -> None:
    """A function of the seed and the step: different dropout masks in each epoch and for each seed."""

    def seeds(seed: int) -> list[int]:
        seen = []

        def watching(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
            seen.append(batch.generator.initial_seed())
            return cw.train_step(model, batch, optimizer)

        list(cw.fit(make_model(), make_data(), settings_for(epochs=3, seed=seed), train_step=watching))
        return seen

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 6 * STEPS


def test_without_validation_the_weights_to_use_are_the_last() -> None:
    taken: list[Snapshot] = []
    model = make_model()
    list(cw.fit(model, make_data(), settings_for(epochs=2), save=taken.append))
    assert same(taken[-1].to_use, model.arrays())


def test_a_snapshot_is_a_copy() -> None:
    taken: list[Snapshot] = []
    list(cw.fit(make_model(), make_data(), settings_for(epochs=3), save=taken.append))
    assert [snapshot.position.step for snapshot in taken] == [5, 10, 15]
    for group in ("weights", "optimizer"):
        assert not same(getattr(taken[0], group), getattr(taken[1], group))


@pytest.mark.parametrize(
    ("minutes", "budget", "expected"),
    [
        (2 / 60, {"epochs": 2}, [2, 4, 5, 7, 9, 10]),
        (1 / 60, {"epochs": 1}, [1, 2, 3, 4, 5]),
        (60, {"epochs": 2}, [5, 10]),
        (5 / 60, {"minutes": 9 / 60}, [2, 4, 6, 8, 9]),  # a validation every two seconds, within epochs too
        (4 / 60, {"minutes": 300 / 60}, None),  # too long to validate every epoch
    ],
)
def test_checkpoints_follow_the_clock(minutes: float, budget: dict[str, float], expected: list[int] | None) -> None:
    clock, taken = Clock(), []
    seen = list(
        cw.fit(
            make_model(),
            make_data(),
            settings_for(checkpoint_minutes=minutes, **budget),
            train_step=clock.train_step,
            clock=clock,
            save=lambda snapshot: taken.append(snapshot.position.step),
        )
    )
    if expected is None:
        assert max(np.diff(taken)) <= 4
        assert min(np.diff(taken)) >= 1
    else:
        assert taken == expected, "each step is saved once"
    assert [event.step for event in seen if isinstance(event, events.Checkpoint)] == taken


# Divergence and rollback.


def finite(snapshot: Snapshot) -> bool:
    groups = (snapshot.weights, snapshot.optimizer, snapshot.state, snapshot.average, snapshot.best)
    return all(bool(np.isfinite(array).all()) for group in groups for array in group.values())


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_learning_rate_a_million_times_too_high(cell: str, log_every: int) -> None:
    """No value that is not finite is saved, and training ends with a good model or with an error."""
    taken: list[Snapshot] = []
    rate = 0.01 * 1e6
    config = settings_for(
        epochs=40, learning_rate=rate, log_every=log_every, checkpoint_minutes=1e-9, schedule="constant"
    )
    model = make_model(cell=cell)
    rates = []
    with suppress(DivergedError):
        for event in cw.fit(model, make_data(), config, save=taken.append):
            if isinstance(event, events.Rollback):
                rates.append(event.learning_rate)
        assert real_loss(model).nats_per_char < math.log(VOCABULARY)
    assert rates == pytest.approx([rate * 0.3**number for number in range(1, len(rates) + 1)])
    assert rates
    assert all(map(finite, taken))


def test_a_learning_rate_a_hundred_times_too_high_is_lowered() -> None:
    model = make_model(units=32)
    seen = list(cw.fit(model, make_data(), settings_for(epochs=60, learning_rate=1.0)))
    rollbacks = [event for event in seen if isinstance(event, events.Rollback)]
    assert rollbacks
    assert all(event.step < event.diverged_step for event in rollbacks)
    assert isinstance(seen[-1], events.End)
    assert seen[-1].step == 60 * STEPS, "steps undone by a rollback are repeated"
    good = make_model(units=32)
    list(cw.fit(good, make_data(), settings_for(epochs=60)))
    assert real_loss(model).nats_per_char < real_loss(good).nats_per_char + 0.5


class Broken:
    """A training step that sets a weight to a value that is not finite, at one step or from then on."""

    def __init__(self, bad: float, at: int, *, always: bool = False) -> None:
        self.bad, self.at, self.always, self.steps = bad, at, always, 0

    def train_step(self, model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        self.steps += 1
        loss = cw.train_step(model, batch, optimizer)
        if self.steps == self.at or (self.always and self.steps > self.at):
            with torch.no_grad():
                model.weight("recurrent.0.weight_hh")[0, 0] = self.bad
        return loss


@pytest.mark.parametrize(
    ("bad", "at"), [*((math.nan, step) for step in range(1, 11)), *((math.inf, step) for step in (1, 5, 8))]
)
def test_weights_that_are_not_finite_are_never_saved(bad: float, at: int) -> None:
    """At whichever step the weights break, and however far away the next step event is."""
    taken: list[Snapshot] = []
    config = settings_for(epochs=2, log_every=1000, checkpoint_minutes=1e-9)
    broken = Broken(bad, at, always=True)
    with pytest.raises(DivergedError, match="earlier checkpoints are intact"):
        list(cw.fit(make_model(), make_data(), config, train_step=broken.train_step, save=taken.append))
    assert all(map(finite, taken))


def test_a_rollback_continues_from_the_last_good_state() -> None:
    seen = list(cw.fit(make_model(), make_data(), settings_for(epochs=2), train_step=Broken(math.nan, 7).train_step))
    [rollback] = [event for event in seen if isinstance(event, events.Rollback)]
    assert (rollback.step, rollback.diverged_step) == (5, 8)
    assert rollback.learning_rate == pytest.approx(0.003, rel=1e-6)
    epochs = [event.step for event in seen if isinstance(event, events.Epoch)]
    assert epochs == [5, 10], "the last good state is the end of the first epoch"
    assert all(math.isfinite(event.train_loss) for event in seen if isinstance(event, events.Epoch))


def test_steps_repeated_after_a_rollback_do_not_cause_early_stopping() -> None:
    """The rollback goes back past the best validation, at step 10, so the next validation is worse."""
    losses = [blocks(loss) for loss in (2.0, 1.0, 2.0, 1.9, 1.8, 1.7, 1.6)]
    left, broken = iter(losses), Broken(math.nan, at=12)
    settings = settings_for(steps=4 * STEPS, patience=3)
    fit = cw.fit(make_model(), make_data(), settings, train_step=broken.train_step, validate=lambda _: next(left))
    *seen, end = fit
    assert any(isinstance(event, events.Rollback) for event in seen)
    assert isinstance(end, events.End)
    assert (end.reason, end.step) == ("done", 4 * STEPS)


def test_a_resume_keeps_the_learning_rate_that_a_rollback_has_lowered() -> None:
    taken: list[Snapshot] = []
    broken = Broken(math.nan, 3)
    config = settings_for(epochs=1, schedule="constant", log_every=1)
    list(cw.fit(make_model(), make_data(), config, train_step=broken.train_step, save=taken.append))
    assert taken[-1].position.rate_scale == pytest.approx(0.3)
    more = settings_for(epochs=2, schedule="constant", log_every=1)
    seen = list(cw.fit(make_model(), make_data(), more, resume=taken[-1]))
    rates = [event.learning_rate for event in seen if isinstance(event, events.Step)]
    assert rates == pytest.approx([0.003] * STEPS)


def test_an_optimizer_state_that_is_not_finite_is_never_saved() -> None:
    """Gradients whose squares overflow freeze Adam while the weights stay finite."""

    def breaking(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        loss = cw.train_step(model, batch, optimizer)
        optimizer.state[model.weight("head.bias")]["exp_avg_sq"].fill_(math.inf)
        return loss

    taken: list[Snapshot] = []
    with pytest.raises(DivergedError):
        list(cw.fit(make_model(), make_data(), settings_for(epochs=1), train_step=breaking, save=taken.append))
    assert not taken


def test_a_validation_loss_that_is_not_finite_is_divergence() -> None:
    with pytest.raises(DivergedError):
        list(cw.fit(make_model(), make_data(), settings_for(epochs=1), validate=validation_losses(*[math.nan] * 20)))


def test_rough_first_steps_are_not_divergence() -> None:
    """Adam's first steps may be too large for a wide model, which recovers by itself."""
    bumpy = iter([2.4, 2.3, 6.5, 6.0, 4.5, 4.0, 3.5, 3.0, 2.9, 2.8, 2.7, *[2.4] * 90])
    train = lambda model, batch, optimizer: torch.tensor(next(bumpy))  # noqa: E731
    seen = list(cw.fit(make_model(), make_data(), settings_for(steps=100), train_step=train))
    assert not [event for event in seen if isinstance(event, events.Rollback)]


def test_losing_half_of_the_progress_is_divergence() -> None:
    losses = iter([*[2.4] * 50, *[0.5] * 300, *[2.3] * 200, *[0.5] * 1000])
    train = lambda model, batch, optimizer: torch.tensor(next(losses))  # noqa: E731
    seen = list(cw.fit(make_model(), make_data(), settings_for(steps=600), train_step=train))
    [rollback] = [event for event in seen if isinstance(event, events.Rollback)]
    assert 350 <= rollback.step < rollback.diverged_step <= 500, "the last good state"


def test_the_learning_rate_warms_up() -> None:
    config = settings_for(epochs=6, warmup=3, schedule="constant", log_every=1)
    seen = cw.fit(make_model(), make_data(), config)
    rates = [event.learning_rate for event in seen if isinstance(event, events.Step)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, *[0.01] * 27])


# EMA.


def test_the_ema_window_is_a_fraction_of_the_steps() -> None:
    """A weight equal to the step number: its mean over the last fifth lags by a tenth to a fifth."""

    def counting(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        with torch.no_grad():
            model.weight("head.bias").add_(1.0)
        return torch.tensor(1.0)

    taken: list[Snapshot] = []
    config = settings_for(epochs=100, ema=0.2)
    model = make_model()
    list(cw.fit(model, make_data(), config, train_step=counting, save=taken.append))
    last = taken[-1]
    assert last.weights["head.bias"][0] == pytest.approx(500)
    assert 400 < last.average["head.bias"][0] < 440
    assert np.array_equal(last.to_use["head.bias"], last.average["head.bias"])
    assert np.array_equal(model.arrays()["head.bias"], last.average["head.bias"]), "the model ends with the average"


def test_without_an_ema_the_last_weights_are_used() -> None:
    taken: list[Snapshot] = []
    list(cw.fit(make_model(), make_data(), settings_for(epochs=1, ema=0.0), save=taken.append))
    assert taken[-1].average == {}
    assert taken[-1].to_use is taken[-1].weights


# Early stopping.


def blocks(loss: float, noise: float = 0.0) -> Evaluation:
    """An evaluation with eight blocks around its loss."""
    parts = tuple(loss + (noise if i % 2 else -noise) for i in range(8))
    return Evaluation(loss, loss / math.log(2), 100, 0, "carried", parts)


def stop_of(losses: list[Evaluation], **options: Any) -> tuple[str, int, Snapshot]:
    """The reason and the epoch at which a run of at most ten epochs with these validation losses ends."""
    left, taken = iter(losses), []
    config = settings_for(epochs=10, **options)
    *_, end = cw.fit(make_model(), make_data(), config, validate=lambda _: next(left), save=taken.append)
    assert isinstance(end, events.End)
    return end.reason, end.step // STEPS, taken[-1]


def test_training_stops_when_the_validation_loss_keeps_rising() -> None:
    losses = [blocks(2.0), blocks(1.0), *(blocks(1.5) for _ in range(8))]
    reason, epoch, last = stop_of(losses, patience=3)
    assert (reason, epoch) == ("early_stopping", 5)
    assert (last.position.best_step, last.position.best_loss) == (2 * STEPS, 1.0)
    assert last.best, "the weights to use are the best ones"


def test_differences_within_the_noise_do_not_stop_training() -> None:
    """The same differences, smaller than those between the blocks."""
    losses = [blocks(2.0), blocks(1.0), *(blocks(1.05, noise=0.2) for _ in range(8))]
    assert stop_of(losses, patience=3)[:2] == ("done", 10)
    steady = [blocks(2.0), blocks(1.0), *(blocks(1.05) for _ in range(8))]
    assert stop_of(steady, patience=3)[:2] == ("early_stopping", 5)


def test_a_better_validation_restarts_the_count() -> None:
    losses = [blocks(1.0), blocks(1.5), blocks(1.5), blocks(0.9), blocks(1.5), blocks(1.5), *[blocks(0.8)] * 4]
    assert stop_of(losses, patience=3)[:2] == ("done", 10)


def test_training_stops_at_the_target_loss() -> None:
    assert stop_of([blocks(2.0), blocks(1.2), blocks(0.9)], target_loss=1.2)[:2] == ("target", 2)


@pytest.mark.parametrize(
    ("options", "reason", "step"), [({"target_loss": 1.2}, "target", 4), ({"patience": 2}, "early_stopping", 8)]
)
def test_training_may_stop_within_an_epoch(options: dict[str, Any], reason: str, step: int) -> None:
    """A validation every two seconds, in epochs of five."""
    clock, taken = Clock(), []
    left = iter([blocks(2.0), blocks(1.0), *(blocks(1.5) for _ in range(20))])
    seen = list(
        cw.fit(
            make_model(),
            make_data(),
            settings_for(minutes=1.0, **options),
            train_step=clock.train_step,
            clock=clock,
            validate=lambda _: next(left),
            save=taken.append,
        )
    )
    end = seen[-1]
    assert isinstance(end, events.End)
    assert (end.reason, end.step, end.best_step) == (reason, step, 4)
    assert taken[-1].position.step == step, "a resume continues from the last step"
    last = [event for event in seen if isinstance(event, events.Epoch | events.Validation)][-1]
    assert (last.step, last.validation_loss is None) == (step, False)


# Stop and resume.


@dataclasses.dataclass
class Run:
    """A training run over several sessions: its last snapshot, and its losses by epoch and step."""

    snapshot: Snapshot | None = None
    epochs: list[tuple[int, int, float, float | None, bool]] = dataclasses.field(default_factory=list)
    reason: str = ""

    def session(
        self,
        order: str,
        model_options: dict[str, Any],
        stop_at: int | None = None,
        *,
        after_epoch: bool = False,
        sgd: bool = False,
        **options: Any,
    ) -> Run:
        """Train in one session, from the last snapshot, with a stop requested during step `stop_at`."""
        model, asked = make_model(dropout=0.3, **model_options), []
        step = self.snapshot.position.step if self.snapshot else 0
        custom = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9) if sgd else None

        def counting(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
            nonlocal step
            step += 1
            return cw.train_step(model, batch, optimizer)

        def should_stop() -> str | None:
            if step == stop_at:
                asked.append(step)
            return "SIGINT" if len(asked) > after_epoch else None

        for event in cw.fit(
            model,
            make_data(order),
            settings_for(**({"epochs": 3} | options)),
            train_step=counting,
            optimizer=custom,
            validate=real_loss,
            save=self._take,
            resume=self.snapshot,
            should_stop=should_stop,
        ):
            if isinstance(event, events.Epoch):
                self.epochs.append((event.epoch, event.step, event.train_loss, event.validation_loss, event.best))
            if isinstance(event, events.End):
                self.reason = event.reason
        return self

    def _take(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def same_as(self, other: Run) -> bool:
        mine, theirs = self.snapshot, other.snapshot
        assert mine is not None
        assert theirs is not None
        assert mine.position.done
        assert theirs.position.done
        assert self.epochs == other.epochs
        assert mine.position.best_loss == theirs.position.best_loss
        groups = ("weights", "optimizer", "state", "best", "to_use")
        return all(same(getattr(mine, group), getattr(theirs, group)) for group in groups)


KINDS = [
    pytest.param(order, {"cell": cell, "layers": layers}, id=f"{order}-{cell}-{layers}")
    for order in ("windows", "streams")
    for cell, layers in (("gru", 2), ("lstm", 1), ("rnn", 1))
]
KINDS += [pytest.param("streams", {"ngram_bits": 8}, id="streams-ngrams")]


@pytest.mark.parametrize(("order", "model"), KINDS)
def test_resume_at_any_step_equals_never_stopping(order: str, model: dict[str, Any]) -> None:
    whole = Run().session(order, model)
    for step in range(1, 3 * STEPS + 1):
        stopped = Run().session(order, model, stop_at=step)
        assert stopped.reason == "SIGINT"
        assert stopped.snapshot is not None
        assert stopped.snapshot.position.step == step
        assert stopped.session(order, model).same_as(whole), f"stopped at step {step}"


def test_resume_keeps_the_steps_at_which_n_grams_decay() -> None:
    options = {"epochs": None, "steps": 40, "ngram_decay": 0.01}
    model = {"ngram_bits": 8, "ngram_order": 6}
    whole = Run().session("streams", model, **options)
    for step in (1, 15, 16, 17, 33):
        stopped = Run().session("streams", model, stop_at=step, **options)
        assert stopped.session("streams", model, **options).same_as(whole), f"stopped at step {step}"


@pytest.mark.parametrize("step", [STEPS, 2 * STEPS, 3 * STEPS])
def test_a_stop_requested_during_the_report_of_an_epoch(step: int) -> None:
    whole = Run().session("streams", {})
    stopped = Run().session("streams", {}, stop_at=step, after_epoch=True)
    assert stopped.reason == "SIGINT"
    assert stopped.epochs == whole.epochs[: step // STEPS]
    assert stopped.session("streams", {}).same_as(whole)


@settings(max_examples=5, deadline=None)
@given(stops=st.sets(st.integers(1, 3 * STEPS - 1), min_size=2, max_size=5), budget=st.sampled_from([12, 13, 15]))
def test_any_number_of_stops_equals_none(stops: set[int], budget: int) -> None:
    options = {"epochs": None, "steps": budget}
    run = Run()
    for stop in sorted(stops):
        run.session("streams", {}, stop_at=stop, **options)
    assert run.session("streams", {}, **options).same_as(Run().session("streams", {}, **options))


def test_a_custom_optimizer_resumes_too() -> None:
    whole = Run().session("windows", {}, sgd=True)
    assert Run().session("windows", {}, stop_at=7, sgd=True).session("windows", {}, sgd=True).same_as(whole)


def test_the_carried_hidden_state_is_part_of_a_snapshot() -> None:
    stopped = Run().session("streams", {}, stop_at=7)
    assert stopped.snapshot is not None
    assert stopped.snapshot.state
    forgetful = Run(dataclasses.replace(stopped.snapshot, state={}), list(stopped.epochs))
    whole = Run().session("streams", {})
    forgetful.session("streams", {})
    assert forgetful.epochs != whole.epochs


def test_a_resume_of_a_finished_run_changes_nothing() -> None:
    finished = Run().session("streams", {})
    before, epochs = finished.snapshot, list(finished.epochs)
    finished.session("streams", {})
    assert finished.snapshot is before
    assert finished.epochs == epochs
    assert finished.reason == "done"


def test_a_larger_budget_continues_and_a_smaller_one_ends() -> None:
    constant = {"schedule": "constant"}
    longer = Run().session("streams", {}, epochs=2, **constant).session("streams", {}, **constant)
    assert longer.same_as(Run().session("streams", {}, **constant))
    shorter = Run().session("streams", {}, stop_at=2 * STEPS, after_epoch=True)
    epochs = list(shorter.epochs)
    shorter.session("streams", {}, epochs=1)
    assert shorter.epochs == epochs, "an epoch without a step is not reported"


def test_time_includes_all_sessions() -> None:
    taken: list[Snapshot] = []
    for resume, steps in ((None, 4), (0, 8)):
        clock = Clock()
        seen = list(
            cw.fit(
                make_model(),
                make_data(),
                settings_for(steps=steps),
                train_step=clock.train_step,
                clock=clock,
                save=taken.append,
                resume=None if resume is None else taken[-1],
            )
        )
    assert isinstance(seen[0], events.Resume)
    assert (seen[0].step, seen[0].time_s) == (4, 4.0)
    assert seen[-1].time_s == 8.0
    assert [event.elapsed_s for event in seen if isinstance(event, events.Epoch)] == [1.0, 3.0]


def test_optimizer_state_of_an_unknown_weight_is_refused() -> None:
    taken: list[Snapshot] = []
    list(cw.fit(make_model(), make_data(), settings_for(steps=1), save=taken.append))
    odd = dataclasses.replace(taken[0], optimizer={"exp_avg.nothing": np.zeros(1, np.float32)})
    with pytest.raises(cw.CharwrightError, match="nothing"):
        list(cw.fit(make_model(), make_data(), settings_for(steps=2), resume=odd))


# What users write themselves.


class OneMore(cw.LanguageModel):
    """A model with a parameter of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.temperature = torch.nn.Parameter(torch.ones(1))

    def loss(self, *arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        loss, state = super().loss(*arguments, **options)
        return loss * self.temperature.sum(), state


def test_the_default_optimizer_trains_all_parameters_or_none() -> None:
    model = OneMore(cw.ModelConfig(units=8, embedding_size=6), VOCABULARY)
    with pytest.raises(UsageError, match="the model's parameter temperature is not a weight"):
        list(cw.fit(model, make_data(), settings_for(steps=2)))
    for _ in cw.fit(model, make_data(), settings_for(steps=2), optimizer=torch.optim.SGD(model.parameters(), 0.1)):
        pass
    assert model.temperature.item() != 1.0


def test_a_second_training_begins_with_the_rate_that_was_set() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    list(cw.fit(model, make_data(), settings_for(steps=9), optimizer=optimizer))
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = 0.125
    rates = [
        event.learning_rate
        for event in cw.fit(model, make_data(), settings_for(steps=9, log_every=1), optimizer=optimizer)
        if isinstance(event, events.Step)
    ]
    assert max(rates) == 0.125


@pytest.mark.parametrize(
    ("returned", "message"), [(1.5, "not float"), (None, "not NoneType"), (torch.ones(2), r"not \(2,\)")]
)
def test_a_training_step_returns_the_loss(returned: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"a train_step returns the mean loss .* {message}"):
        list(cw.fit(make_model(), make_data(), settings_for(steps=2), train_step=lambda *_: returned))


@pytest.mark.skipif(not kernels.available(), reason="the C kernels were not built here")
def test_a_seed_gives_the_same_model_with_any_number_of_threads() -> None:
    """The kernels add up in one order, and initial weights are made on one thread."""
    kept = torch.get_num_threads()

    def trained(threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        config = cw.ModelConfig(units=256, embedding_size=32, multiplicative=True, ngram_bits=8, recurrent_dropout=0.1)
        model = cw.LanguageModel(config, VOCABULARY, compute=Compute.choose("cpu", "native", "f32"))
        ids = np.random.default_rng(0).integers(0, VOCABULARY, 1200)
        data = make_dataset(ids, cw.SequenceConfig(batch=32, seq_length=8), seed=1)
        list(cw.fit(model, data, settings_for(epochs=None, steps=3, ema=0.5, clip_norm=0.5)))
        return {"threads": torch.get_num_threads(), **model.arrays()}

    try:
        first, *others = [trained(threads) for threads in (1, 2, 3)]
    finally:
        torch.set_num_threads(kept)
    for number, other in enumerate(others, 2):
        assert other.pop("threads") == number
        assert all(np.array_equal(first[name], array) for name, array in other.items())

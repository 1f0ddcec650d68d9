"""The step as a CUDA graph: with a recorder that does the work again on the CPU, and with CUDA's where there is one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import charwright as cw
from charwright.data.sequences import Dataset, make_dataset
from charwright.model.compute import Compute
from charwright.model.dropout import Dropout, draw_masks, empty_masks
from charwright.training import events, loop
from charwright.training.batch import Batch, TrainStep, make_batch
from charwright.training.cautious import CautiousAdamW
from charwright.training.cuda_graph import CudaRecorder, GraphedStep, fastest_step
from charwright.training.optimizer import (
    NgramDescent,
    clipped_gradients,
    learning_rate_of,
    make_optimizer,
    set_learning_rate,
)
from charwright.training.snapshot import Snapshot
from ramps import fill_with_ramps, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CPU = torch.device("cpu")
VOCABULARY = 12
RATE = 2.0**-6  # exact in float32, the type of a learning rate on the device


class Again:
    """A recorder whose replay is the work itself, on the memory that the optimizer had when it was recorded."""

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.warm_ups = self.recordings = self.replays = 0
        self.optimizer = optimizer

    def memory(self) -> list[int]:
        states = self.optimizer.state.values() if self.optimizer else ()
        return [id(tensor) for state in states for tensor in state.values()]

    def capturable(self) -> list[bool]:
        return [group["capturable"] for group in self.optimizer.param_groups] if self.optimizer else []

    def warm_up(self, work: Callable[[], None]) -> None:
        assert not any(self.capturable()), "PyTorch warns of a capturable optimizer that is not recorded"
        for _ in range(3):
            work()
        self.warm_ups += 1

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        assert all(self.capturable()), "PyTorch refuses to record other optimizers"
        memory = self.memory()
        self.recordings += 1

        def replay() -> None:
            assert self.memory() == memory
            self.replays += 1
            work()
            assert self.memory() == memory

        return replay


class Failing(Again):
    """A recorder that fails, after it has done some of the work."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def warm_up(self, work: Callable[[], None]) -> None:
        super().warm_up(work)
        if self.at == "warm-up":
            raise RuntimeError("CUDA error: first line\nsecond line")

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        raise RuntimeError("CUDA error: first line\nsecond line")


def make_model(device: torch.device = CPU, precision: torch.dtype = torch.float32, **options: Any) -> cw.LanguageModel:
    shape = {"units": 8, "embedding_size": 6, "layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2}
    model = cw.LanguageModel(
        cw.ModelConfig(**(shape | options)), VOCABULARY, compute=Compute(device=device, precision=precision)
    )
    return fill_with_ramps(model)


@pytest.fixture(params=[torch.optim.AdamW, CautiousAdamW], ids=["adamw", "cautious"], autouse=True)
def adamw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer that `make_adamw` makes."""
    monkeypatch.setattr(sys.modules[__name__], "KIND", request.param)


KIND: type[torch.optim.AdamW] = torch.optim.AdamW


def make_adamw(model: cw.LanguageModel) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    return KIND(groups, lr=RATE, fused=True)


def make_data(order: str = "streams") -> Dataset:
    ids = np.cumsum(np.random.default_rng(0).integers(1, 3, 4 * 11 * 5 + 3)) % (VOCABULARY - 1) + 1
    return make_dataset(ids, cw.SequenceConfig(order=order, batch=4, seq_length=10), 1)


def settings_for(**options: Any) -> cw.TrainingConfig:
    defaults = {"learning_rate": RATE, "log_every": 2, "warmup": 0, "schedule": "constant", "epochs": 2}
    return cw.TrainingConfig(**(defaults | options))


def some_batch(step: int, model: cw.LanguageModel, *, rows: int = 4, carried: bool = True) -> Batch:
    ids = some_ids(11, rows, VOCABULARY).roll(step, 0).numpy()
    state = tuple(part + 0.1 * step for part in model.zero_state(rows)) if carried else None
    config = settings_for(state_reset=0.25)
    return make_batch((ids[:-1], ids[1:]), state, config, step, model.weight("head.bias").device)


def steps_of(step: TrainStep, model: cw.LanguageModel, optimizer: torch.optim.Optimizer, count: int = 6) -> list[Any]:
    """The losses, last states, weights and optimizer's state of some steps; the first batch has no state."""
    found: list[Any] = []
    model.train()
    with clipped_gradients(model, optimizer, 0.05):
        for number in range(count):
            set_learning_rate(optimizer, 0.5**number)
            batch = some_batch(number, model, carried=number > 0)
            found += [step(model, batch, optimizer), batch.state]
            found.append([weight.detach().clone() for weight in model.parameters()])
            found.append([value.clone() for state in optimizer.state.values() for value in state.values()])
    return found


def assert_same(ours: Any, expected: Any, **bounds: float) -> None:
    torch.testing.assert_close(ours, expected, **({"rtol": 0, "atol": 0} | bounds))


# The graphed step on the CPU.


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_graphed_steps_have_the_bits_of_plain_ones(cell: str, trained_before: bool) -> None:
    found = []
    for graphed in (False, True):
        model = make_model(cell=cell)
        optimizer = make_adamw(model)
        if trained_before:
            steps_of(cw.train_step, model, optimizer, 2)
        recorder = Again(optimizer)
        step = GraphedStep(cw.train_step, recorder) if graphed else cw.train_step
        found.append(steps_of(step, model, optimizer))
        if graphed:
            assert (recorder.warm_ups, recorder.recordings, recorder.replays) == (1, 1, 6)
    assert_same(found[1], found[0])


def test_n_grams_descend_in_graphed_steps_too() -> None:
    """At the learning rate of the replay, not at that of the recording."""
    found, began = [], make_model(ngram_bits=6).weight("ngrams.weight").detach().clone()
    for graphed in (False, True):
        model = make_model(ngram_bits=6)
        array = model.weight("ngrams.weight")
        others = [weight for weight in model.parameters() if weight is not array]
        optimizer = KIND(others, lr=RATE, fused=True)
        optimizer.register_step_post_hook(NgramDescent(model, 4.0, 2.0**-10))
        step = GraphedStep(cw.train_step, Again(optimizer)) if graphed else cw.train_step
        found.append(steps_of(step, model, optimizer))
        assert not torch.equal(array, began)
    assert_same(found[1], found[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["streams", "windows"])
def test_a_graphed_run_has_the_bits_of_a_plain_one(order: str) -> None:
    snapshots: list[Snapshot] = []
    for graphed in (False, True):
        model = make_model()
        optimizer = make_adamw(model)
        step = GraphedStep(cw.train_step, Again(optimizer)) if graphed else cw.train_step
        config = settings_for(ema=0.2, state_reset=0.25, clip_norm=0.1)
        seen = cw.fit(model, make_data(order), config, train_step=step, optimizer=optimizer, save=snapshots.append)
        losses = [event.loss for event in seen if isinstance(event, events.Step)]
        assert losses[0] > losses[-1]
    plain, graph = snapshots[1], snapshots[3]
    assert plain.position.step == graph.position.step == 10
    for group in ("weights", "optimizer", "state", "average"):
        for name, value in getattr(plain, group).items():
            assert np.array_equal(value, getattr(graph, group)[name]), (group, name)


def test_a_resumed_graphed_run_equals_an_uninterrupted_one() -> None:
    snapshots: dict[str, list[Snapshot]] = {"whole": [], "stopped": []}
    for kind, stops in (("whole", [10]), ("stopped", [3, 10])):
        for steps in stops:
            model = make_model()
            optimizer = make_adamw(model)
            step = GraphedStep(cw.train_step, Again(optimizer))
            config = settings_for(epochs=None, steps=steps, ema=0.2, state_reset=0.25)
            taken = snapshots[kind]
            resume = taken[-1] if taken else None
            list(
                cw.fit(
                    model, make_data(), config, train_step=step, optimizer=optimizer, save=taken.append, resume=resume
                )
            )
    whole, stopped = snapshots["whole"][-1], snapshots["stopped"][-1]
    for group in ("weights", "optimizer", "average"):
        for name, value in getattr(whole, group).items():
            assert np.array_equal(value, getattr(stopped, group)[name]), (group, name)


def test_a_rollback_during_a_graphed_run() -> None:
    """It gives the optimizer other tensors, or none; the recorder asserts that those of the recording are used."""
    runs = []
    for graphed in (False, True):
        model = make_model()
        optimizer = make_adamw(model)
        step = GraphedStep(cw.train_step, Again(optimizer)) if graphed else cw.train_step
        found = steps_of(step, model, optimizer, 2)
        for kept in ({}, {key: {n: v + 0.25 for n, v in state.items()} for key, state in optimizer.state.items()}):
            optimizer.state.clear()
            optimizer.state.update(kept)
            found += steps_of(step, model, optimizer, 2)
        runs.append(found)
    assert_same(runs[1], runs[0])


def test_a_batch_of_another_shape_is_trained_by_the_plain_step() -> None:
    runs = []
    for graphed in (False, True):
        model = make_model()
        optimizer = make_adamw(model)
        recorder = Again(optimizer)
        step = GraphedStep(cw.train_step, recorder) if graphed else cw.train_step
        model.train()
        losses = [step(model, some_batch(i, model, rows=rows), optimizer) for i, rows in enumerate((4, 3, 4, 5, 4))]
        runs.append([losses, list(model.parameters())])
        assert recorder.replays == 3 * graphed
    assert_same(runs[1], runs[0])


def test_results_stay_when_the_next_step_is_replayed() -> None:
    model = make_model()
    optimizer = make_adamw(model)
    step = GraphedStep(cw.train_step, Again())
    model.train()
    first, second = some_batch(1, model), some_batch(2, model)
    loss = step(model, first, optimizer)
    kept = loss.clone(), tuple(part.clone() for part in first.state or ())
    step(model, second, optimizer)
    assert_same((loss, first.state), kept)
    assert not torch.equal((first.state or ())[0], (second.state or ())[0])


@pytest.mark.parametrize("at", ["warm-up", "recording"])
def test_a_failed_recording_changes_nothing_but_the_speed(at: str) -> None:
    runs = []
    for failing in (False, True):
        model = make_model()
        optimizer = make_adamw(model)
        steps_of(cw.train_step, model, optimizer, 1)
        if failing:
            recorder = Failing(at)
            with pytest.warns(RuntimeWarning, match="CUDA error: first line$") as caught:
                runs.append(steps_of(GraphedStep(cw.train_step, recorder), model, optimizer))
            assert len(caught) == 1
            assert recorder.warm_ups == 1, "it is tried once"
        else:
            runs.append(steps_of(cw.train_step, model, optimizer))
        for group in optimizer.param_groups:
            assert group["capturable"] is False
            assert isinstance(group["lr"], float)
    assert_same(runs[1], runs[0])


def test_learning_rates_are_tensors_within_the_recording_alone() -> None:
    model = make_model()
    optimizer = make_adamw(model)
    rates: list[tuple[Any, ...]] = []
    optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(tuple(group["lr"] for group in optimizer.param_groups))
    )
    model.train()
    GraphedStep(cw.train_step, Again(optimizer))(model, some_batch(0, model), optimizer)
    assert len(rates) == 3 + 1, "three steps of warm-up and a replay"
    for step in rates:
        for rate, first in zip(step, rates[0], strict=True):
            assert isinstance(rate, Tensor)
            assert rate is first
            assert rate.dtype == torch.float32
    assert all(group["capturable"] is False for group in optimizer.param_groups)
    assert learning_rate_of(optimizer) == RATE


# What is drawn and set outside of it.


@pytest.mark.parametrize("rates", [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2), (0.0, 0.0)])
def test_masks_drawn_ahead_are_those_that_the_layers_draw(rates: tuple[float, float]) -> None:
    config = cw.ModelConfig(units=16, layers=3, dropout=rates[0], recurrent_dropout=rates[1])
    like, x = torch.zeros(5, 16), torch.ones(7, 5, 16)
    masks = empty_masks(config, 5, like)
    draw_masks(config, masks, torch.Generator().manual_seed(3))
    lazy, ready = Dropout(config, torch.Generator().manual_seed(3)), Dropout(config, None, masks)
    for _ in range(config.layers):
        drawn = lazy.state_mask(like)
        assert_same(ready.state_mask(like), drawn)
        assert (drawn is None) == (rates[1] == 0)
        assert_same(ready.output_mask(x), lazy.output_mask(x))
    assert len(masks) == config.layers * sum(rate > 0 for rate in rates)


def test_a_learning_rate_that_is_a_tensor_keeps_its_memory() -> None:
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=rate)
    for factor, expected in ((0.5, 0.25), (0.25, 0.125), (1.0, 0.5)):
        set_learning_rate(optimizer, factor)
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == learning_rate_of(optimizer) == expected


# When it is used.


def test_the_graph_is_for_cuda() -> None:
    assert fastest_step(cw.train_step, CPU) is cw.train_step
    assert fastest_step(cw.train_step, torch.device("mps")) is cw.train_step
    assert isinstance(fastest_step(cw.train_step, torch.device("cuda")), GraphedStep)


def test_only_the_librarys_own_step_and_optimizer_are_graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[TrainStep, torch.device]] = []

    def choose(step: TrainStep, device: torch.device) -> TrainStep:
        asked.append((step, device))
        return step

    def custom(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        return cw.train_step(model, batch, optimizer)

    monkeypatch.setattr(loop, "fastest_step", choose)
    list(cw.fit(make_model(), make_data(), settings_for(epochs=None, steps=1), train_step=custom))
    model = make_model()
    list(cw.fit(model, make_data(), settings_for(epochs=None, steps=1), optimizer=make_adamw(model)))
    assert asked == []
    list(cw.fit(make_model(), make_data(), settings_for(epochs=None, steps=1)))
    list(cw.fit(make_model(), make_data(), settings_for(epochs=None, steps=1), train_step=cw.train_step))
    assert asked == [(cw.train_step, CPU)] * 2


# On a GPU.


def cuda_run(step: TrainStep, precision: torch.dtype, **options: Any) -> list[Any]:
    device = torch.device("cuda")
    model = make_model(device, precision, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="RNN module weights")  # cuDNN copies them in each call
        return steps_of(step, model, make_optimizer(model, settings_for()), 12)


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.0}, {"dropout": 0.0}, {"layers": 1}], ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_graphed_steps_equal_plain_ones_on_cuda(cell: str, options: dict[str, Any]) -> None:
    graphed = GraphedStep(cw.train_step, CudaRecorder(torch.device("cuda")))
    ours = cuda_run(graphed, torch.float32, cell=cell, **options)
    plain = cuda_run(cw.train_step, torch.float32, cell=cell, **options)
    assert_same(ours, plain, rtol=1e-3, atol=1e-5)


@needs_cuda
def test_a_run_on_cuda_resumes_where_it_stopped() -> None:
    ends = []
    for stops in ([10], [3, 10]):
        taken: list[Snapshot] = []
        for steps in stops:
            config = settings_for(epochs=None, steps=steps, ema=0.2, state_reset=0.25)
            model = make_model(torch.device("cuda"))
            list(cw.fit(model, make_data(), config, save=taken.append, resume=taken[-1] if taken else None))
        ends.append(taken[-1])
    for group in ("weights", "optimizer", "average"):
        for name, value in getattr(ends[0], group).items():
            np.testing.assert_allclose(getattr(ends[1], group)[name], value, rtol=1e-4, atol=1e-6)


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_steps_do_not_wait_for_the_gpu() -> None:
    device = torch.device("cuda")
    model = make_model(device)
    optimizer = make_optimizer(model, settings_for())
    step = GraphedStep(cw.train_step, CudaRecorder(device))
    model.train()
    with clipped_gradients(model, optimizer, 1.0):
        for plain_or_graphed in (cw.train_step, step):
            plain_or_graphed(model, some_batch(0, model), optimizer)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for number in range(3):
                    plain_or_graphed(model, some_batch(number, model), optimizer)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_a_step_that_cannot_be_recorded_on_cuda_is_trained_plainly() -> None:
    class Waiting(cw.LanguageModel):
        def loss(self, *args: Any, **options: Any) -> Any:
            loss, state = super().loss(*args, **options)
            float(loss.detach())
            return loss, state

    model = fill_with_ramps(
        Waiting(cw.ModelConfig(units=8, embedding_size=6), VOCABULARY, compute=Compute(device=torch.device("cuda")))
    )
    optimizer = make_optimizer(model, settings_for())
    step = GraphedStep(cw.train_step, CudaRecorder(torch.device("cuda")))
    model.train()
    with pytest.warns(RuntimeWarning, match="not recorded as a CUDA graph"):
        losses = [float(step(model, some_batch(number, model), optimizer)) for number in range(5)]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert losses[-1] < losses[0]

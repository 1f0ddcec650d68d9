"""Timing and planning on a GPU, where the step is a graph and more rows may cost no time; the devices are fakes."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charwright.config import ModelConfig, SequenceConfig
from charwright.data.sequences import make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.model.compute import Compute, Wanted
from charwright.model.features import Features
from charwright.planning import calibration, measurement
from charwright.planning.batches import BATCHES, batch_for, batches_within, rate_factor, steps_needed
from charwright.planning.calibration import plan_here
from charwright.planning.measurement import Deadline, Workload, brief_speed, mean_speed, step_times, training_step
from charwright.planning.plan import USABLE, make_plan
from charwright.planning.profile import TextProfile
from charwright.planning.speeds import speed_at
from charwright.planning.survey import survey
from charwright.training import loop
from charwright.training.batch import TrainStep
from charwright.training.cuda_graph import GraphedStep

pytestmark = pytest.mark.usefixtures("one_thread")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = Compute(torch.device("cuda"), "torch")  # never used
WORK = Workload(ModelConfig(units=8, recurrent_dropout=0.1), 9, SequenceConfig(batch=2, seq_length=5))


# The time of a step.


class Steps:
    """Steps that take the given seconds, and the clock that they move; reading a loss is a wait for the device."""

    def __init__(self, seconds: list[float], patch: pytest.MonkeyPatch) -> None:
        self.now, self.taken, self.waits = 0.0, 0, list[int]()
        """`waits` has the number of steps taken before each."""
        self.seconds = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        patch.setattr(measurement, "training_step", lambda *_: self.step)

    def step(self) -> Steps:
        self.taken += 1
        self.now += next(self.seconds)
        return self

    def __float__(self) -> float:
        self.waits.append(self.taken)
        return 1.0

    def limit(self, seconds: float = 100.0) -> Deadline:
        return Deadline(lambda: self.now, self.now + seconds)


def test_steps_of_a_graph_are_timed_in_chunks_after_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps([5.0, 0.04, *[0.02] * 5, *[0.04] * 5, 0.01], monkeypatch)
    times = step_times(WORK, CUDA, lambda: steps.now)
    assert [next(times) for _ in range(3)] == pytest.approx([0.04, 0.03, 0.01])
    assert steps.waits == [1, 2, 12, 22]


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_elsewhere_each_step_is_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps([0.5, 0.03, 0.01], monkeypatch)
    times = step_times(WORK, Compute(torch.device(kind)), lambda: steps.now)
    assert [next(times) for _ in range(3)] == pytest.approx([0.5, 0.03, 0.01])
    assert steps.waits == [1, 2, 3]


def test_the_recording_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a speed, nor where a candidate that is hopeless beside the best is abandoned."""
    good, bad, best = [5.0, 0.014, 0.0125], [5.0, 0.04], 1000.0  # The best takes 0.01 s for 10 characters.
    steps = Steps(good, monkeypatch)
    assert brief_speed(WORK, CUDA, best, steps.limit()) == pytest.approx(800)
    assert steps.waits == [1, 2, 12], "one chunk takes all of the time"
    steps = Steps(bad, monkeypatch)
    assert brief_speed(WORK, CUDA, best, steps.limit()) == pytest.approx(250)
    assert steps.waits == [1, 2], "abandoned after the second step"
    steps = Steps(good, monkeypatch)
    assert mean_speed(WORK, CUDA, steps.limit(), each_s=0.3) == pytest.approx(800)
    assert steps.waits == [1, 2, 12, 22, 32]
    steps = Steps(good, monkeypatch)
    assert mean_speed(WORK, CUDA, steps.limit(5.0)) == pytest.approx(800)
    assert steps.waits == [1, 2, 12], "the time is over"


class Again:
    """A recorder that does the work again."""

    recordings = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        return work


def test_the_step_is_the_one_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One function decides, for `fit` and for the measurement; a real step goes through a graph."""
    asked, recorder = list[tuple[TrainStep, torch.device]](), Again()

    def choose(plain: TrainStep, device: torch.device) -> TrainStep:
        asked.append((plain, device))
        return GraphedStep(plain, recorder)

    assert vars(measurement)["fastest_step"] is vars(loop)["fastest_step"]
    monkeypatch.setattr(measurement, "fastest_step", choose)
    compute = Compute(core="fused")
    step = training_step(WORK, compute)
    first, second = float(step()), float(step())
    assert asked == [(loop.train_step, compute.device)]
    assert recorder.recordings == 1
    assert second < first


def test_the_survey_uses_the_same_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps([5.0, 0.012, 0.01], monkeypatch)
    monkeypatch.setattr("charwright.planning.survey.every_candidate", lambda _: [CUDA])
    [found] = survey("cuda", WORK, clock=lambda: steps.now)
    assert found.speed == pytest.approx(1000)


def test_a_failed_recording_warns_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Again):
        def warm_up(self, work: Callable[[], None]) -> None:
            raise RuntimeError("no memory")

    monkeypatch.setattr(measurement, "has_graphs", lambda _: True)
    monkeypatch.setattr(measurement, "fastest_step", lambda plain, _: GraphedStep(plain, Failing()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_speed(WORK, Compute(core="fused"), Deadline(lambda: 0.0, -1.0)) > 0


# The batch.

SECONDS = st.fixed_dictionaries(
    {32: st.floats(1e-4, 1)}, optional={batch: st.floats(1e-4, 1) for batch in BATCHES if batch > 32}
)
UNITS = st.integers(1, 4096)
TOKENS = st.integers(2, 10**8)
LENGTHS = st.integers(1, 512)
STEPS = st.floats(1, 1e7)


@given(SECONDS, UNITS, STEPS, TOKENS, LENGTHS)
def test_the_largest_batch_within_the_limits(
    seconds: dict[int, float], units: int, steps: float, tokens: int, seq_length: int
) -> None:
    batch = batch_for(seconds, units=units, steps=steps, tokens=tokens, seq_length=seq_length)
    budget_s = steps * seconds[32]

    def within(one: int) -> bool:
        quick = seconds[one] / seconds[32] <= 1.25
        trained = budget_s / seconds[one] * 512**2 >= 2800 * units**2
        return quick and trained and tokens // one >= 20 * (seq_length + 1)

    assert batch == 32 or within(batch)
    assert not [one for one in seconds if one > batch and within(one)]


@given(SECONDS, UNITS, STEPS, TOKENS, LENGTHS, st.floats(1, 100))
def test_more_text_and_more_time_never_make_it_smaller(
    seconds: dict[int, float], units: int, steps: float, tokens: int, seq_length: int, times: float
) -> None:
    def chosen(**more: Any) -> int:
        given = {"units": units, "steps": steps, "tokens": tokens, "seq_length": seq_length}
        return batch_for(seconds, **given | more)

    assert chosen(tokens=int(tokens * times)) >= chosen()
    assert chosen(steps=steps * times) >= chosen()
    assert chosen(units=math.ceil(units * times)) <= chosen()


@given(st.integers(2, 2_000_000), st.integers(1, 200), st.sampled_from(["streams", "windows"]))
def test_a_pass_has_twenty_steps(tokens: int, seq_length: int, order: str) -> None:
    """And `shrink_to_fit` has nothing to shrink."""
    for batch in batches_within(tokens, seq_length):
        if batch > 32:
            sequences = SequenceConfig(order=order, batch=batch, seq_length=seq_length)
            assert shrink_to_fit(tokens, sequences) == (sequences, None)
            assert make_dataset(np.zeros(tokens, np.uint16), sequences, seed=1).steps_per_epoch >= 20


@pytest.mark.parametrize(("seconds", "batch"), [(0.01, 512), (1.25, 512), (1.26, 64)])
def test_a_step_may_take_a_quarter_longer(seconds: float, batch: int) -> None:
    measured = {32: 1.0, 64: 1.0, 512: seconds}
    assert batch_for(measured, units=64, steps=1e9, tokens=10**9, seq_length=64) == batch


def test_without_a_measurement_the_batch_is_32() -> None:
    assert batch_for({}, units=64, steps=1e9, tokens=10**9, seq_length=64) == 32
    assert batch_for({64: 1e-9}, units=64, steps=1e9, tokens=10**9, seq_length=64) == 32


@pytest.mark.parametrize(("batch", "factor"), [(32, 1.0), (64, math.sqrt(2)), (128, math.sqrt(2))])
def test_the_learning_rate_follows_the_batch(batch: int, factor: float) -> None:
    assert rate_factor(batch) == pytest.approx(factor)


# The plan for a batch.

TEXT = TextProfile(50_000_000, 66, "Latin", 50_000_000)
OPTIONS = {"minutes": 5.0}
SPEEDS = {256: 4e6, 512: 2e6, 1024: 1e6, 2048: 5e5}


def test_a_larger_batch_changes_what_depends_on_it() -> None:
    """With the same speed there are fewer steps, and the text is read as often."""
    small, large = (make_plan(TEXT, OPTIONS | {"units": 512}, SPEEDS, batch) for batch in (32, 128))
    assert (small.recipe.sequences.batch, large.recipe.sequences.batch) == (32, 128)
    assert large.passes == pytest.approx(small.passes)
    assert large.speed == pytest.approx(small.speed) == pytest.approx(2e6)
    assert (small.recipe.training.learning_rate, large.recipe.training.learning_rate) == (0.006, 0.0085)
    assert large.reasons["batch"] == "the device trains 128 rows in about the time of 32"
    free, wide = (make_plan(TEXT, {"minutes": 1.0}, SPEEDS, batch).recipe.model.units for batch in (512, 32))
    assert free < wide, "fewer steps train a narrower layer"


def test_a_batch_given_by_hand_is_kept() -> None:
    by_hand = OPTIONS | {"batch": 48}
    assert make_plan(TEXT, by_hand, SPEEDS, 512) == make_plan(TEXT, by_hand, SPEEDS)
    assert make_plan(TEXT, by_hand, SPEEDS).recipe.sequences.batch == 48


def test_a_short_text_shrinks_any_batch() -> None:
    short = TextProfile(1000, 30, "Latin", 1000)
    planned = make_plan(short, OPTIONS, SPEEDS, 512)
    assert planned.speed == pytest.approx(make_plan(short, OPTIONS, SPEEDS).speed)


# The procedure.


class FakeDevice:
    """A device with its own clock: a step takes `flat_s` for up to `rows` rows, then more in proportion."""

    def __init__(self, patch: pytest.MonkeyPatch, *, flat_s: float = 0.002, rows: int = 128) -> None:
        self.now, self.flat_s, self.rows, self.recording_s = 0.0, flat_s, rows, 0.1
        self.fails_from = 10**9
        self.planned = 1.0
        """The factor of the time on the planned model in f32."""
        self.seen: list[tuple[int, int, float]] = []
        """Width, batch and recurrent dropout of what was measured."""
        patch.setattr(calibration, "mean_speed", lambda work, compute, *_: self.speed(work, compute, 31))
        patch.setattr(calibration, "brief_speed", lambda work, compute, *_: self.speed(work, compute, 31))

    def clock(self) -> float:
        return self.now

    def step_s(self, units: int, batch: int) -> float:
        return self.flat_s * (units / 512) ** 0.5 * max(1.0, batch / self.rows)

    def speed(self, work: Workload, compute: Compute, steps: int) -> float:
        batch = work.sequences.batch
        self.seen.append((work.model.units, batch, work.model.recurrent_dropout))
        if batch >= self.fails_from:
            raise RuntimeError("CUDA out of memory")
        seconds = self.step_s(work.model.units, batch)
        if compute.precision == torch.float32:
            seconds *= 1.3 * (self.planned if work.model.dropout != calibration.DROPOUT else 1.0)
        self.now += self.recording_s + steps * seconds
        return work.characters / seconds

    def batches(self) -> set[int]:
        return {batch for _, batch, _ in self.seen}


@pytest.fixture
def gpu(machine: Callable[[Features], None]) -> None:
    machine(Features("cuda", flags=frozenset({"bf16"})))


@pytest.mark.usefixtures("gpu")
def test_a_gpu_trains_as_many_rows_as_cost_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    plan, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=device.clock)
    assert plan.recipe.sequences.batch == 128
    assert plan.reasons["batch"] == "the device trains 128 rows in about the time of 32"
    assert choice.compute.label == "torch bf16"
    compared = device.seen.index((512, 256, 0.1))
    assert {(units, batch) for units, batch, _ in device.seen[3:compared]} == {(512, 32), (512, 64), (512, 128)}
    assert {batch for _, batch, _ in device.seen[compared + 1 :]} == {128}, "all that follows is for this batch"
    assert all(recurrent_dropout > 0 for *_, recurrent_dropout in device.seen)
    assert {256, 512, 1024} <= set(plan.speeds)
    for units, speed in plan.speeds.items():
        assert speed == pytest.approx(128 * 64 / device.step_s(units, 128))
    units = plan.recipe.model.units
    assert plan.recipe.training.learning_rate == pytest.approx(0.0085 * min(1, (1024 / units) ** 0.5), rel=0.01)
    assert plan.recipe == make_plan(TEXT, OPTIONS, plan.speeds, 128).recipe
    assert device.now < 3


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_more_rows_slow_down_keeps_32(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch, rows=32)
    plan, _ = plan_here(TEXT, OPTIONS, Wanted(), clock=device.clock)
    assert device.batches() == {32, 64}, "larger ones need not be measured"
    assert plan.recipe == make_plan(TEXT, OPTIONS, plan.speeds).recipe
    assert plan.speeds[512] == pytest.approx(32 * 64 / device.step_s(512, 32))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("tokens", "largest"), [(60_000, 32), (100_000, 64), (200_000, 128), (1_000_000, 512)])
def test_a_batch_that_the_text_is_too_short_for_is_not_measured(
    tokens: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice(monkeypatch, rows=512)
    plan, _ = plan_here(TextProfile(tokens, 66, "Latin", tokens), OPTIONS, Wanted(), clock=device.clock)
    assert plan.recipe.sequences.batch == max(device.batches()) == largest


@pytest.mark.usefixtures("gpu")
def test_a_batch_that_does_not_fit_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch, rows=512)
    device.fails_from = 256
    assert plan_here(TEXT, OPTIONS, Wanted(), clock=device.clock)[0].recipe.sequences.batch == 128
    assert 512 not in device.batches()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("options", [{"batch": 32}, {"batch": 100}, {"minutes": None, "steps": 90}])
def test_what_is_given_by_hand_is_not_measured(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    plan, _ = plan_here(TEXT, OPTIONS | options, Wanted(), clock=device.clock)
    batch = options.get("batch", 32)
    assert device.batches() <= {batch}
    assert plan.recipe.sequences.batch == batch
    assert plan.recipe == make_plan(TEXT, OPTIONS | options, plan.speeds).recipe


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("slack", "batch"), [(1.1, 32), (1.3, 512)])
def test_a_batch_does_not_cost_width(slack: float, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that has just enough steps in batches of 32 gets no slower ones."""
    device = FakeDevice(monkeypatch)
    monkeypatch.setattr(device, "step_s", lambda _, batch: 0.002 * (1.0 if batch == 32 else 1.2))
    speed = speed_at({512: 2048 / 0.002}, 2048)
    enough = steps_needed(2048) * 2048 / speed / 60 / USABLE
    plan, _ = plan_here(TEXT, {"units": 2048, "minutes": slack * enough}, Wanted(), clock=device.clock)
    assert plan.recipe.sequences.batch == batch


@pytest.mark.usefixtures("gpu")
def test_the_plan_that_the_planned_model_changes_keeps_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch, flat_s=0.001)
    device.planned = 0.5
    plan, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=device.clock)
    assert choice.compute.label == "torch f32"
    assert plan.recipe == make_plan(TEXT, OPTIONS, plan.speeds, 128).recipe
    assert plan.speeds[512] == pytest.approx(128 * 64 / device.step_s(512, 128) / 0.65)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("flat_s", "recording_s", "seen"), [(0.001, 0.5, {(256, 32), (512, 32)}), (0.05, 0.0, {(256, 32)})]
)
def test_what_cannot_be_finished_is_not_started(
    flat_s: float, recording_s: float, seen: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a batch, where the recording takes long, nor a width, where the steps do."""
    device = FakeDevice(monkeypatch, flat_s=flat_s)
    device.recording_s = recording_s
    plan, _ = plan_here(TEXT, OPTIONS, Wanted(precision="bf16"), clock=device.clock)
    assert {(units, batch) for units, batch, _ in device.seen if units <= 512} == seen
    assert plan.recipe.sequences.batch == 32


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_elsewhere_the_batch_stays(
    kind: str, machine: Callable[[Features], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(Features(kind))
    device = FakeDevice(monkeypatch, rows=10_000)
    plan, _ = plan_here(TEXT, OPTIONS, Wanted(), clock=device.clock)
    assert device.batches() == {32}
    assert plan.recipe == make_plan(TEXT, OPTIONS, plan.speeds).recipe


@pytest.mark.usefixtures("gpu")
@given(
    flat_s=st.floats(1e-4, 2.0),
    rows=st.integers(16, 1024),
    recording_s=st.floats(0, 2),
    minutes=st.floats(0.01, 600),
    tokens=st.integers(2, 10**9),
)
def test_the_limits_hold_on_any_gpu(flat_s: float, rows: int, recording_s: float, minutes: float, tokens: int) -> None:
    """One measurement may end after the limit; the others of the next width are not started."""
    with pytest.MonkeyPatch.context() as patch:
        device = FakeDevice(patch, flat_s=flat_s, rows=rows)
        device.recording_s = recording_s
        plan, _ = plan_here(
            TextProfile(tokens, 66, "Latin", tokens), {"minutes": minutes}, Wanted(), clock=device.clock
        )
    batch = plan.recipe.sequences.batch
    assert batch in BATCHES
    if batch > 32:
        assert device.step_s(512, batch) <= 1.2501 * device.step_s(512, 32)
        assert tokens // (batch * 64) >= 20
        units = plan.recipe.model.units
        steps = plan.passes * tokens / (batch * 64)
        assert steps >= 2800 * (units / 512) ** 2
    limit, longest = min(3.0, 3 * minutes), max(device.step_s(2048, size) for size in device.batches())
    first = recording_s + 31 * 1.3 * device.step_s(256, 32)
    assert device.now <= 1e-9 + max(first, limit + recording_s + 31 * 1.3 * longest)


# On a GPU.


@needs_cuda
def test_a_gpu_is_measured_and_planned_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="RNN module weights")
        plan, choice = plan_here(TEXT, {"minutes": 1.0}, Wanted("cuda"))
    assert choice.compute.device.type == "cuda"
    assert plan.recipe.sequences.batch in BATCHES
    assert all(speed > 0 for speed in plan.speeds.values())

"""How a machine computes: the written rule, the candidates, and the choice among them by measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charwright import kernels
from charwright.config import ModelConfig, Recipe, SequenceConfig
from charwright.errors import UsageError
from charwright.model import features as features_module
from charwright.model.compute import CORES, Compute, Wanted
from charwright.model.features import AMD, Features, by_features
from charwright.model.language_model import LanguageModel
from charwright.planning import calibration, measurement
from charwright.planning.calibration import choose_here, plan_here
from charwright.planning.choice import candidates, every_candidate, fastest, ranking
from charwright.planning.measurement import Deadline, Workload, brief_speed, mean_speed
from charwright.planning.plan import make_plan
from charwright.planning.profile import TextProfile
from charwright.run_config import PRECISIONS, RUN_CORES
from ramps import some_ids

pytestmark = pytest.mark.usefixtures("one_thread")

INTEL = "GenuineIntel"
X86 = ("avx512", "avx2", "portable")
BF16 = ("avx512bf16", *X86)
AMX = ("amx", *BF16)
HERE = kernels.available()
needs_kernels = pytest.mark.skipif(not HERE, reason="the C kernels were not built here")


# The written rule.


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (Features("cpu", AMX, INTEL, frozenset({"amx", "avx512_bf16"})), ("native", "bf16", "amx")),
        (Features("cpu", BF16, AMD, frozenset({"avx512_bf16"})), ("native", "bf16", "avx512bf16")),
        (Features("cpu", BF16, INTEL, frozenset({"avx512_bf16"})), ("native", "f32", "avx512bf16")),
        (Features("cpu", BF16, INTEL, frozenset({"amx", "avx512_bf16"})), ("native", "f32", "avx512bf16")),
        (Features("cpu", BF16, None, frozenset({"avx512_bf16"})), ("native", "f32", "avx512bf16")),
        (Features("cpu", X86, AMD), ("native", "f32", "avx512")),
        (Features("cpu", ("avx2",), AMD, frozenset({"avx512_bf16"})), ("native", "f32", "avx2")),
        (Features("cpu", ("portable",)), ("native", "f32", "portable")),
        (Features("cpu", (), INTEL, frozenset({"amx"})), ("fused", "bf16", None)),
        (Features("cpu", (), AMD, frozenset({"avx512_bf16"})), ("fused", "bf16", None)),
        (Features("cpu", (), INTEL, frozenset({"avx512_bf16"})), ("fused", "f32", None)),
        (Features("cpu"), ("fused", "f32", None)),
        (Features("cuda", flags=frozenset({"bf16"})), ("torch", "bf16", None)),
        (Features("cuda"), ("torch", "f32", None)),
        (Features("mps"), ("torch", "f32", None)),
    ],
)
def test_the_rule_by_features(features: Features, expected: tuple[str, str, str | None]) -> None:
    assert by_features(features) == expected


def test_the_rule_keeps_what_is_asked_for() -> None:
    amd = Features("cpu", BF16, AMD, frozenset({"avx512_bf16"}))
    assert by_features(amd, "auto", "f32") == ("native", "f32", "avx512bf16")
    assert by_features(amd, "fused") == ("fused", "bf16", None)
    assert by_features(amd, "plain") == ("plain", "f32", None)
    assert by_features(Features("cpu", BF16, INTEL), "auto", "bf16") == ("native", "bf16", "avx512bf16")
    assert by_features(Features("cuda", flags=frozenset({"bf16"})), "fused", "f32") == ("fused", "f32", None)


def test_the_vendor_is_read_where_linux_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    for path, vendor in ((tmp_path / "cpuinfo", AMD), (tmp_path / "none", None)):
        monkeypatch.setattr(features_module, "CPUINFO", path)
        assert features_module._vendor.__wrapped__() == vendor


# The candidates.


def labels(pool: list[Compute]) -> list[str]:
    return [compute.label for compute in pool]


INTEL_AMX = Features("cpu", AMX, INTEL, frozenset({"amx", "avx512_bf16"}))


def test_the_candidates_of_a_processor(machine: Callable[[Features], None]) -> None:
    machine(INTEL_AMX)
    native_bf16 = ["native bf16 amx", "native bf16 avx512bf16", "native bf16 avx512", "native bf16 avx2"]
    expected = ["native f32 amx", "native f32 avx2", *native_bf16, "fused f32", "fused bf16"]
    found = labels(candidates(Wanted(), masked=True))
    assert sorted(found) == sorted(expected)
    assert found[:3] == ["native bf16 amx", "fused bf16", "native f32 amx"], "the likely ones first"
    assert set(labels(candidates(Wanted(), masked=False))) - set(found) == {"torch f32", "torch bf16"}
    machine(Features("cpu", ("portable",)))
    assert labels(candidates(Wanted(), masked=True))[0] == "native f32 portable"


def test_bfloat16_in_a_plain_loop_is_a_candidate_only_on_request(machine: Callable[[Features], None]) -> None:
    machine(Features("cpu", ("avx2", "portable"), AMD, frozenset({"plain_bf16"})))
    assert labels(candidates(Wanted(), masked=True)) == ["native f32 avx2", "native bf16 avx2", "fused f32"]
    assert labels(candidates(Wanted(precision="bf16"), masked=True)) == ["native bf16 avx2", "fused bf16"]
    assert labels(candidates(Wanted(core="fused"), masked=True)) == ["fused f32"]
    machine(Features("cpu", ("avx2", "portable"), AMD))
    assert "fused bf16" in labels(candidates(Wanted(), masked=True))


def test_options_restrict_the_candidates(machine: Callable[[Features], None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(INTEL_AMX)
    assert labels(candidates(Wanted(core="fused"), masked=True)) == ["fused bf16", "fused f32"]
    assert labels(candidates(Wanted(core="torch", precision="f32"), masked=True)) == ["torch f32"]
    assert labels(candidates(Wanted(core="plain"), masked=True)) == ["plain f32"]
    assert {one.precision for one in candidates(Wanted(precision="f32"), masked=False)} == {torch.float32}
    assert {one.threads for one in candidates(Wanted(threads=3), masked=False)} == {3}
    monkeypatch.setenv("CHARWRIGHT_CORE", "fused")
    assert labels(candidates(Wanted(), masked=False)) == ["fused bf16", "fused f32"]


@needs_kernels
def test_the_variable_restricts_the_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARWRIGHT_CORE", raising=False)
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "portable")
    assert {one.kernel for one in candidates(Wanted("cpu"), masked=True)} == {"portable", None}
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "none")
    assert {one.core for one in candidates(Wanted("cpu"), masked=True)} == {"fused"}
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "avx1024")
    with pytest.raises(UsageError, match="CHARWRIGHT_KERNELS=avx1024: this machine runs"):
        candidates(Wanted("cpu"), masked=True)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "features", [INTEL_AMX, Features("cpu"), Features("cuda"), Features("mps")], ids=["amx", "cpu", "cuda", "mps"]
)
def test_no_candidate_is_the_reference(features: Features, masked: bool, machine: Callable[[Features], None]) -> None:
    machine(features)
    found = candidates(Wanted(), masked=masked)
    assert found[0] == Wanted().by_rule()
    assert {one.device.type for one in found} == {features.device}
    assert {one.core for one in found} <= {"native", "fused", "torch"}
    assert len(set(found)) == len(found)
    if features.device != "cpu":
        assert {one.core for one in found} == ({"torch"} if masked else {"torch", "fused"})


def test_every_candidate_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARWRIGHT_KERNELS", raising=False)
    found = labels(every_candidate("cpu"))
    others = [f"{core} {name}" for core in ("fused", "torch") for name in PRECISIONS]
    variants = [variant for variant in HERE if variant != "emulated"]
    assert found == [*(f"native {name} {variant}" for variant in variants for name in PRECISIONS), *others]
    monkeypatch.setattr(kernels, "available", lambda: ["avx2", "portable", "emulated"])
    native = [f"native {name} {variant}" for variant in ("avx2", "portable") for name in PRECISIONS]
    assert labels(every_candidate("cpu")) == [*native, *others], "not the variant for tests"
    assert set(RUN_CORES) == set(CORES) - {"auto"}


@needs_kernels
@pytest.mark.parametrize(("variable", "variants"), [("portable", ["portable"]), ("none", [])])
def test_the_variable_restricts_every_candidate(
    variable: str, variants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS", variable)
    found = [one.kernel for one in every_candidate("cpu") if one.core == "native"]
    assert found == [variant for variant in variants for _ in PRECISIONS]


# The fastest.


class Clock:
    """A clock that only measurements move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


POOL = every_candidate("cpu")
LATER = Deadline(lambda: 0.0, 1.0)
SPEEDS = st.lists(st.floats(1, 1e9), min_size=len(POOL), max_size=len(POOL))


@given(SPEEDS, st.sets(st.integers(0, len(POOL) - 1), max_size=len(POOL) - 1))
def test_the_fastest_that_works_is_chosen(speeds: list[float], failing: set[int]) -> None:
    table = dict(zip(POOL, speeds, strict=True))
    broken = {POOL[index] for index in failing}

    def measure(compute: Compute, best: float) -> float:
        if compute in broken:
            raise RuntimeError("not enough memory")
        assert best == max([0.0, *(table[one] for one in POOL[: POOL.index(compute)] if one not in broken)])
        return table[compute]

    working = {one: speed for one, speed in table.items() if one not in broken}
    assert table[fastest(POOL, measure, LATER)] == max(working.values())
    assert ranking(POOL, measure, LATER) == working
    assert list(ranking(POOL, measure, LATER).values()) == sorted(working.values(), reverse=True)


def test_the_error_of_the_only_candidate_is_raised() -> None:
    def measure(compute: Compute, _: float) -> float:
        raise RuntimeError(f"no {compute.label}")

    with pytest.raises(RuntimeError, match=f"no {POOL[0].label}"):
        fastest(POOL, measure, LATER)


@pytest.mark.parametrize(
    "failure", [RuntimeError("a"), MemoryError("b"), NotImplementedError("c"), torch.OutOfMemoryError("d")], ids=repr
)
def test_a_candidate_that_fails_is_dropped(failure: Exception) -> None:
    def measure(compute: Compute, _: float) -> float:
        if compute == POOL[0]:
            raise failure
        return 1.0

    assert POOL[0] not in ranking(POOL, measure, LATER)


@pytest.mark.parametrize("mistake", [TypeError, KeyError, AssertionError])
def test_a_mistake_in_the_code_is_not_a_failure_of_a_candidate(mistake: type[Exception]) -> None:
    def measure(compute: Compute, _: float) -> float:
        if compute == POOL[-1]:
            raise mistake
        return 1.0

    with pytest.raises(mistake):
        ranking(POOL, measure, LATER)


@given(st.integers(0, 20))
def test_the_time_limit_ends_the_ranking(limit: int) -> None:
    clock = Clock()

    def measure(compute: Compute, _: float) -> float:
        clock.now += 1
        return 1.0 + POOL.index(compute)

    found = ranking(POOL, measure, Deadline(clock, limit))
    assert len(found) == min(len(POOL), max(1, limit))


def test_a_hopeless_candidate_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def steps(seconds: list[float]) -> float:
        def times(*_: object) -> Any:
            for one in seconds:
                taken.append(one)
                yield one

        taken.clear()
        monkeypatch.setattr(measurement, "step_times", times)
        return brief_speed(work, Compute(), 1000.0, LATER)

    work = Workload(ModelConfig(), 9, SequenceConfig(batch=2, seq_length=5))  # The best takes 0.01 s.
    assert steps([0.04, 0.01]) == 250.0
    assert taken == [0.04], "abandoned after the first step"
    assert steps([0.02, 0.017, 0.01]) == pytest.approx(10 / 0.017)
    assert taken == [0.02, 0.017], "abandoned after the second"
    assert steps([0.02, 0.012, 0.011, 0.009, 0.001]) == pytest.approx(10 / 0.009)
    assert len(taken) == 4


def test_real_steps_are_timed() -> None:
    work = Workload(ModelConfig(units=8, recurrent_dropout=0.1), 9, SequenceConfig(batch=2, seq_length=4))
    for compute in (Compute(core="fused"), Compute.choose("cpu")):
        assert mean_speed(work, compute, Deadline(lambda: 0.0, -1.0)) > 0
    clock = iter(range(10_000))
    limit = Deadline(lambda: float(next(clock)), 6.0)
    assert mean_speed(work, Compute(), limit) == 8.0


# The procedure.


TEXT = TextProfile(1_000_000, 66, "Latin", 1_000_000)
OPTIONS = {"minutes": 5.0}


class Fake:
    """Measurements by a table: seconds per step of 2048 characters at 512 units, by label, and what was measured."""

    def __init__(self, table: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.table, self.clock, self.seen = table, Clock(), []
        self.planned: dict[str, float] = {}
        """Factors of the time on the planned model, which has another embedding than the one for ranking."""
        monkeypatch.setattr(calibration, "mean_speed", lambda work, compute, _: self.speed(work, compute, 5))
        monkeypatch.setattr(calibration, "brief_speed", lambda work, compute, *_: self.speed(work, compute, 4))

    def speed(self, work: Workload, compute: Compute, steps: int) -> float:
        if (seconds := self.table.get(compute.label, 0.02)) < 0:
            raise NotImplementedError(compute.label)
        planned = work.model.dropout != calibration.DROPOUT
        seconds *= (work.model.units / 512) ** 1.5 * (self.planned.get(compute.label, 1.0) if planned else 1.0)
        self.seen.append((compute.label, work.model.units, planned))
        self.clock.now += steps * seconds
        return work.characters / seconds


@pytest.fixture
def here(machine: Callable[[Features], None]) -> None:
    machine(INTEL_AMX)


LABELS = ["native bf16 amx", "fused bf16", "native f32 amx", "fused f32", "native bf16 avx512", "native f32 avx2"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("best", LABELS)
def test_a_plan_is_for_the_fastest(best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({label: 0.008 if label == best else 0.012 for label in LABELS}, monkeypatch)
    plan, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=fake.clock)
    assert choice.compute.label == best
    assert choice.measured is not None
    assert choice.measured[best] == max(choice.measured.values())
    assert len(choice.measured) == 8
    assert plan.speeds[512] == pytest.approx(2048 / 0.008)
    assert fake.clock.now < 3


EVERY = [*LABELS, "native bf16 avx2", "native bf16 avx512bf16"]


@pytest.mark.usefixtures("here")
@given(st.lists(st.floats(0.002, 0.02), min_size=len(EVERY), max_size=len(EVERY)))
def test_nobody_is_more_than_5_percent_slower_than_the_best(seconds: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fake = Fake(dict(zip(EVERY, seconds, strict=True)), patch)
        plan, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=fake.clock)
    assert fake.table[choice.compute.label] <= 1.05 * min(seconds)
    assert plan.speeds[512] == pytest.approx(2048 / fake.table[choice.compute.label])
    assert fake.clock.now < 3


@pytest.mark.usefixtures("here")
def test_the_planned_model_decides_and_the_plan_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates that are near each other on one model may change places on another."""
    fake = Fake({"native bf16 amx": 0.010, "fused bf16": 0.011, "fused f32": 0.020}, monkeypatch)
    fake.planned = {"fused bf16": 0.5}
    plan, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=fake.clock)
    assert choice.compute.label == "fused bf16"
    before = {512: 2048 / 0.010}
    assert plan.speeds[512] == pytest.approx(before[512] * 0.010 / 0.0055)
    assert plan.recipe == make_plan(TEXT, OPTIONS, plan.speeds).recipe
    assert {label for label, _, planned in fake.seen if planned} == {"native bf16 amx", "fused bf16"}
    assert choice.measured is not None
    assert choice.measured["fused f32"] < choice.measured["native bf16 amx"] < choice.measured["fused bf16"]


@pytest.mark.usefixtures("here")
def test_candidates_that_fail_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({"native bf16 amx": -1.0, "fused bf16": -1.0, "native f32 amx": 0.010}, monkeypatch)
    _, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=fake.clock)
    assert choice.compute.label == "native f32 amx"
    with pytest.raises(NotImplementedError, match="fused bf16"):
        plan_here(TEXT, OPTIONS, Wanted(core="fused", precision="bf16"), clock=fake.clock)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("options", [{"minutes": 0.01}, {"minutes": 0.05, "units": 2048}])
def test_a_tiny_budget_measures_the_first_alone(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({"native bf16 amx": 0.1, "fused bf16": 0.001}, monkeypatch)
    _, choice = plan_here(TEXT, options, Wanted(), clock=fake.clock)
    assert fake.seen == [("native bf16 amx", 256, False)]
    assert (choice.compute, choice.measured) == (Wanted().by_rule(), None)


@pytest.mark.usefixtures("here")
def test_a_model_too_large_for_the_time_left_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({"native bf16 amx": 0.010, "fused bf16": 0.011}, monkeypatch)
    _, choice = plan_here(TEXT, OPTIONS | {"units": 8192}, Wanted(), clock=fake.clock)
    recipe = Recipe().with_options({"minutes": 5, "units": 8192, "recurrent_dropout": 0.2})
    assert choice.compute.label == choose_here(recipe, 66, Wanted(), clock=fake.clock).compute.label
    assert max(units for _, units, _ in fake.seen) <= 2048
    assert choice.measured is not None


@pytest.mark.usefixtures("here")
def test_a_clock_that_jumps_measures_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, ticks = Fake({}, monkeypatch), iter(range(1000))
    _, choice = plan_here(TEXT, OPTIONS, Wanted(), clock=lambda: 5.0 * next(ticks))
    assert len(fake.seen) == 1
    assert choice.compute == Wanted().by_rule()


@pytest.mark.usefixtures("here")
@given(
    st.lists(st.floats(0.0005, 2.0), min_size=len(LABELS), max_size=len(LABELS)),
    st.floats(0.01, 60),
    st.sampled_from([64, 512, 2048, None]),
)
def test_the_limit_holds_for_any_machine(seconds: list[float], minutes: float, units: int | None) -> None:
    """At most one measurement, which is never longer than that of a candidate at the ranked width, goes beyond it."""
    with pytest.MonkeyPatch.context() as patch:
        fake = Fake(dict(zip(LABELS, seconds, strict=True)), patch)
        fake.table |= dict.fromkeys(("native bf16 avx2", "native bf16 avx512bf16"), max(seconds))
        options = {"minutes": minutes, **({"units": units} if units else {})}
        plan_here(TEXT, options, Wanted(), clock=fake.clock)
    first = 5 * seconds[0] * 0.5**1.5
    limit = min(3.0, 0.05 * 60 * minutes)
    assert fake.clock.now <= 1e-9 + max(first, limit + 5 * max(seconds) * (1 if len(fake.seen) > 1 else 0))


@pytest.mark.usefixtures("here")
def test_a_given_recipe_is_measured_if_its_budget_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({"native bf16 amx": 0.010, "fused bf16": 0.011, "torch f32": 0.007}, monkeypatch)
    recipe = Recipe().with_options({"minutes": 5, "units": 640, "recurrent_dropout": 0.2})
    assert choose_here(recipe, 66, Wanted(), clock=fake.clock).compute.label == "native bf16 amx"
    unmasked = recipe.with_options({"recurrent_dropout": 0.0})
    assert choose_here(unmasked, 66, Wanted(), clock=fake.clock).compute.label == "torch f32"
    assert ("torch f32", 640, True) in fake.seen
    fake.seen.clear()
    for other in (recipe.with_options({"steps": 5}), recipe.with_options({"epochs": 1})):
        assert choose_here(other, 66, Wanted(), clock=fake.clock).compute == Wanted().by_rule()
    one = Wanted(core="fused", precision="f32")
    assert choose_here(recipe, 66, one, clock=fake.clock).measured is None
    assert not fake.seen


@pytest.mark.usefixtures("here")
def test_a_budget_in_steps_is_planned_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake({}, monkeypatch)
    _, choice = plan_here(TEXT, {"steps": 100}, Wanted(), clock=fake.clock)
    assert (choice.compute, choice.measured, fake.seen) == (Wanted().by_rule(), None, [])


# The variant reaches the kernels.


@needs_kernels
@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize(("vocabulary", "large"), [(30, False), (600, False), (600, True)])
def test_a_model_uses_the_variant_it_was_given(
    variant: str, precision: str, vocabulary: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`large`: whether it computes the output layer of a large vocabulary, or the loss between PyTorch's products."""
    monkeypatch.setattr("charwright.model.loss.LARGE_HEADS", frozenset({variant} if large else ()))
    of_head = {"head"} if large or vocabulary == 30 else {"cross_entropy", "outer"}
    seen: dict[str, set[str]] = {}
    for name in ("forward", "backward", "cross_entropy", "outer", "head"):
        original = getattr(kernels.Kernels, name)

        def counting(self: kernels.Kernels, *args: Any, _name: str = name, _run: Any = original, **options: Any) -> Any:
            seen.setdefault(_name, set()).add(self.name)
            return _run(self, *args, **options)

        monkeypatch.setattr(kernels.Kernels, name, counting)
    compute = dataclasses.replace(Compute.choose("cpu", "native", precision), kernel=variant)
    model = LanguageModel(ModelConfig(units=32, layers=2, embedding_size=8, dropout=0.2), vocabulary, compute=compute)
    ids = some_ids(6, 4, vocabulary)
    loss, _ = model.loss(ids, ids, generator=torch.Generator().manual_seed(1))
    loss.backward()
    assert seen == {name: {variant} for name in {"forward", "backward", *of_head}}

"""Adam in the C kernels against PyTorch's: values, clipping, state, hooks, and what the kernels leave to PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import charwright as cw
from charwright import kernels
from charwright.model.compute import Compute
from charwright.training import without_compiler
from charwright.training.cautious import CautiousAdamW
from charwright.training.native_adam import NativeAdam, NativeAdamW, NativeCautiousAdamW, NativeStep
from charwright.training.optimizer import clipped_gradients
from ramps import fill_with_ramps, ramp

HERE = kernels.available()
pytestmark = [
    pytest.mark.skipif(kernels.load() is None, reason="the C kernels were not built here, or are not wanted"),
    pytest.mark.usefixtures("one_thread"),
]

# No vector width divides these, and the last ones are longer than a chunk of the kernels.
SHAPES = ((1,), (3,), (7, 5), (67,), (33, 31), (71, 83), (131, 137))
LIBRARY = {NativeAdam: torch.optim.Adam, NativeAdamW: torch.optim.AdamW, NativeCautiousAdamW: CautiousAdamW}
OPTIONS: dict[str, Any] = {"lr": 0.01, "betas": (0.85, 0.98), "eps": 1e-5, "fused": True}
WITHOUT_KERNELS = {NativeAdam: without_compiler.Adam, NativeAdamW: without_compiler.AdamW}

KINDS = pytest.mark.parametrize("kind", LIBRARY)


@pytest.fixture
def two_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_parameters() -> list[Tensor]:
    shapes = enumerate(SHAPES)
    return [torch.nn.Parameter(ramp(*shape, phase=number, dtype=torch.float32)) for number, shape in shapes]


def made(kind: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """An optimizer; one of ours has the kernels that CHARWRIGHT_KERNELS selects."""
    native = isinstance(kind, type) and issubclass(kind, NativeStep)
    return kind(*arguments, **options, **({"loaded": kernels.load()} if native else {}))


def groups_of(parameters: list[Tensor], decay: float) -> list[dict[str, Any]]:
    """Two groups, of which one has weight decay, and the other a learning rate of its own."""
    return [
        {"params": parameters[::2], "weight_decay": decay},
        {"params": parameters[1::2], "weight_decay": 0.0, "lr": 0.003},
    ]


def set_gradients(parameters: list[Tensor], step: int, scale: float = 1.0) -> None:
    for number, parameter in enumerate(parameters):
        parameter.grad = ramp(*parameter.shape, scale=scale, phase=10 * step + number, dtype=torch.float32)


def total_norm(parameters: list[Tensor]) -> float:
    return sum(float(parameter.grad.double().square().sum()) for parameter in parameters) ** 0.5


def train(
    optimizer: torch.optim.Optimizer, steps: range, scale: float = 1.0, max_norm: float | None = None
) -> list[Tensor]:
    """Steps with gradients that are a function of the step; returns the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters.sort(key=Tensor.numel)
    for step in steps:
        set_gradients(parameters, step, scale)
        if max_norm is not None and not isinstance(optimizer, NativeStep):
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return parameters


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 3e-6) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def assert_same_state(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """The same keys, types and shapes, and nearly the same numbers."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys()
    for key, state in mine["state"].items():
        assert list(state) == list(other["state"][key]) == ["step", "exp_avg", "exp_avg_sq"]
        for name, value in state.items():
            expected = other["state"][key][name]
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@KINDS
def test_many_steps_agree_with_pytorch(
    kind: type[NativeStep], decay: float, max_norm: float | None, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS", variant)
    ours = made(kind, groups_of(make_parameters(), decay), **OPTIONS)
    theirs = LIBRARY[kind](groups_of(make_parameters(), decay), **OPTIONS)
    ours.max_norm = max_norm
    assert_close(train(ours, range(60), max_norm=max_norm), train(theirs, range(60), max_norm=max_norm))
    assert_same_state(ours, theirs)


def test_clipping_divides_all_gradients_by_one_norm() -> None:
    """From the definition: with a large epsilon, the first step from zero is minus the clipped gradient."""
    ours = made(NativeAdam, [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES], lr=1e4, eps=1e4, fused=True)
    parameters = ours.param_groups[0]["params"]
    set_gradients(parameters, 1, scale=1000.0)
    norm = total_norm(parameters)
    gradients = [parameter.grad.clone() for parameter in parameters]
    with ours.clipping(2.0):
        ours.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter, -gradient * (2 / norm), rtol=1e-4, atol=1e-7)
        assert torch.equal(parameter.grad, gradient), "the step leaves .grad as it is"
    assert ours.max_norm is None


@KINDS
def test_the_number_of_threads_changes_no_bit(kind: type[NativeStep], two_threads: Callable[[int], None]) -> None:
    results = []
    for threads in (1, 2, 3):
        two_threads(threads)
        optimizer = made(kind, groups_of(make_parameters(), 0.3), **OPTIONS)
        optimizer.max_norm = 0.7
        results.append(train(optimizer, range(5)))
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


@pytest.mark.parametrize("native_first", [True, False])
@KINDS
def test_either_optimizer_continues_from_the_others_state(kind: type[NativeStep], native_first: bool) -> None:
    kinds = (kind, LIBRARY[kind]) if native_first else (LIBRARY[kind], kind)
    whole = LIBRARY[kind](groups_of(make_parameters(), 0.3), **OPTIONS)
    first = made(kinds[0], groups_of(make_parameters(), 0.3), **OPTIONS)
    parameters = train(first, range(6))
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    second = made(kinds[1], groups_of(copies, 0.3), **OPTIONS)
    second.load_state_dict(first.state_dict())
    assert_close(train(second, range(6, 12)), train(whole, range(12)))
    assert_same_state(*((second, whole) if native_first else (whole, second)))


def test_a_stop_and_a_resume_change_no_bit() -> None:
    whole = made(NativeAdamW, groups_of(make_parameters(), 0.3), **OPTIONS)
    first = made(NativeAdamW, groups_of(make_parameters(), 0.3), **OPTIONS)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in train(first, range(5))]
    second = made(NativeAdamW, groups_of(copies, 0.3), **OPTIONS)
    second.load_state_dict(first.state_dict())
    assert all(map(torch.equal, train(second, range(5, 9)), train(whole, range(9))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_gradients_that_are_not_finite_do_as_in_pytorch(value: float, max_norm: float | None) -> None:
    found = []
    for kind in (NativeAdamW, torch.optim.AdamW):
        optimizer = made(kind, make_parameters(), **OPTIONS)
        if isinstance(optimizer, NativeStep):
            optimizer.max_norm = max_norm
        parameters = optimizer.param_groups[0]["params"]
        set_gradients(parameters, 1)
        parameters[3].grad[5] = value
        if max_norm is not None and kind is torch.optim.AdamW:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        found.append(parameters)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert torch.isnan(found[0][3][5])
    assert bool(torch.isnan(found[0][0]).all()) == (max_norm is not None and value != value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cautious_weights_show_a_gradient_that_is_not_a_number(value: float) -> None:
    for size in (1, 16, 100):
        weight = torch.nn.Parameter(torch.ones(size))
        optimizer = made(NativeCautiousAdamW, [weight], **OPTIONS)
        weight.grad = torch.full((size,), value)
        optimizer.step()
        assert torch.isnan(weight).all()


def test_parameters_without_a_gradient_stay_and_count_no_step() -> None:
    optimizer = made(NativeAdam, make_parameters(), **OPTIONS)
    parameters = optimizer.param_groups[0]["params"]
    set_gradients(parameters, 1)
    parameters[2].grad = None
    before = parameters[2].detach().clone()
    optimizer.step()
    assert torch.equal(parameters[2], before)
    assert parameters[2] not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()  # without any gradient
    assert float(optimizer.state[parameters[0]]["step"]) == 1


def test_a_gradient_in_another_order_of_memory() -> None:
    results = []
    for turned in (False, True):
        optimizer = made(NativeAdam, [torch.nn.Parameter(ramp(71, 83, dtype=torch.float32))], **OPTIONS)
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = ramp(71, 83, phase=2.0, dtype=torch.float32)
        if turned:
            parameter.grad = parameter.grad.T.contiguous().T
            assert not parameter.grad.is_contiguous()
        optimizer.step()
        results.append(parameter)
    assert torch.equal(*results)


def test_hooks_run_once_and_a_closure_computes_the_loss() -> None:
    torch.optim.Adam(make_parameters())  # PyTorch wraps the step of each class at its first use.
    for options in ({}, {"amsgrad": True}):
        optimizer = made(NativeAdam, make_parameters(), **OPTIONS, **options)
        calls: list[str] = []
        optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("after"))
        set_gradients(optimizer.param_groups[0]["params"], 1)
        assert optimizer.step(torch.is_grad_enabled) is True
        assert calls == ["before", "after"]


def test_hooks_of_all_optimizers_run() -> None:
    optimizer = made(NativeAdam, make_parameters(), **OPTIONS)
    calls: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda which, *_: calls.append(which))
    optimizer.step()
    hook.remove()
    optimizer.step()
    assert calls == [optimizer]


def test_a_learning_rate_scheduler_counts_the_steps() -> None:
    optimizer = made(NativeAdam, make_parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for expected in (0.01, 0.005, 0.0025):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()


def test_a_parameter_that_a_graph_still_needs_is_reported() -> None:
    """PyTorch notices a change in place by a counter, which the kernels must advance."""
    weight = torch.nn.Parameter(ramp(5, 5, dtype=torch.float32))
    optimizer = made(NativeAdam, [weight], **OPTIONS)
    loss = (weight @ weight).sum()
    weight.grad = ramp(5, 5, dtype=torch.float32)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# What the kernels leave to PyTorch.


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("max_norm", [None, 0.5])
@KINDS
def test_other_options_are_pytorchs(kind: type[NativeStep], options: dict[str, Any], max_norm: float | None) -> None:
    ours = made(kind, groups_of(make_parameters(), 0.3), **OPTIONS, **options)
    theirs = LIBRARY[kind](groups_of(make_parameters(), 0.3), **OPTIONS, **options)
    ours.max_norm = max_norm
    mine, other = train(ours, range(4), max_norm=max_norm), train(theirs, range(4), max_norm=max_norm)
    assert_close(mine, other)


def test_other_types_are_pytorchs() -> None:
    results = []
    for kind in (NativeAdam, torch.optim.Adam):
        optimizer = made(kind, [torch.nn.Parameter(ramp(7, 5))], **OPTIONS)
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = ramp(7, 5, phase=3.0)
        optimizer.step()
        results.append(parameter)
    assert results[0].dtype == torch.float64
    assert torch.equal(*results)


def test_a_state_of_another_size_is_not_read() -> None:
    optimizer = made(NativeAdam, make_parameters(), **OPTIONS)
    parameters = train(optimizer, range(1))
    optimizer.state[parameters[-1]]["exp_avg"] = torch.zeros(3)
    set_gradients(parameters, 2)
    with pytest.raises(RuntimeError, match="another model"):
        optimizer.step()


def test_make_optimizer_uses_the_kernels_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARWRIGHT_CORE", raising=False)
    model = cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 12)
    for name, kind in (("adam", NativeAdam), ("adamw", NativeAdamW)):
        config = cw.TrainingConfig(steps=1, optimizer=name)
        assert type(cw.make_optimizer(model, config)) is kind
        assert type(cw.make_optimizer(model.double(), config)) is WITHOUT_KERNELS[kind]
        model.float()
        with monkeypatch.context() as patch:
            patch.setenv("CHARWRIGHT_KERNELS", "none")
            assert type(cw.make_optimizer(model, config)) is WITHOUT_KERNELS[kind]


@pytest.mark.parametrize("core", ["plain", "fused", "torch"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_model_of_another_core_has_pytorchs_optimizer(core: str, name: str) -> None:
    """A reference that the kernels update would not be independent of them."""
    model = cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 12, compute=Compute(core=core))
    config = cw.TrainingConfig(steps=1, optimizer=name)
    assert not isinstance(cw.make_optimizer(model, config), NativeStep)


@pytest.mark.parametrize("variant", HERE)
def test_the_step_is_in_the_variant_of_the_model(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    for name in ("norm", "adam"):
        original = getattr(kernels.Kernels, name)

        def noting(self: kernels.Kernels, *arguments: Any, _original: Any = original) -> Any:
            seen.add(self.name)
            return _original(self, *arguments)

        monkeypatch.setattr(kernels.Kernels, name, noting)
    compute = Compute(core="native", kernel=variant)
    model = fill_with_ramps(cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 12, compute=compute))
    optimizer = cw.make_optimizer(model, cw.TrainingConfig(steps=1))
    set_gradients(list(model.parameters()), 1)
    with clipped_gradients(model, optimizer, 0.1):
        optimizer.step()
    assert seen == {variant}


def test_a_copy_steps_as_pytorch_does() -> None:
    """A copy has the state and the options, but no library."""
    ours = made(NativeAdam, make_parameters(), **OPTIONS)
    copied = copy.deepcopy(ours)
    assert copied.loaded is None
    assert_close(train(copied, range(2)), train(ours, range(2)))


@pytest.mark.parametrize("variant", ["none", *HERE])
def test_training_clips_with_and_without_kernels(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam ignores the size of gradients, but not that one step's gradients are ten times larger than the last."""
    monkeypatch.setenv("CHARWRIGHT_KERNELS", variant)
    model = fill_with_ramps(cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 12))
    reference = fill_with_ramps(cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 12))
    config = cw.TrainingConfig(steps=1, learning_rate=0.01)
    optimizer = cw.make_optimizer(model, config)
    plain = torch.optim.AdamW(
        cw.make_optimizer(reference, config).param_groups,
        lr=0.01, betas=(config.beta1, config.beta2), eps=config.epsilon,
    )  # fmt: skip
    with clipped_gradients(model, optimizer, 0.1):
        for step in range(3):
            for each in (model, reference):
                set_gradients(list(each.parameters()), step, scale=10.0**step)
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
            plain.step()
    assert_close(list(model.parameters()), list(reference.parameters()))
    set_gradients(list(model.parameters()), 9, scale=100.0)
    set_gradients(list(reference.parameters()), 9, scale=100.0)
    optimizer.step()
    plain.step()  # neither is clipped after the block
    assert_close(list(model.parameters()), list(reference.parameters()), tolerance=1e-4)

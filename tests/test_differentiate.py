"""The gradients that a model computes without autograd, against `loss` and `backward`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from charwright import kernels
from charwright.config import GATES, ModelConfig, SequenceConfig, TrainingConfig
from charwright.data.sequences import make_dataset
from charwright.model import native_network
from charwright.model.cells import State
from charwright.model.compute import Compute
from charwright.model.dropout import draw_masks, empty_masks
from charwright.model.language_model import LanguageModel
from charwright.model.native import native_layer
from charwright.model.recurrent import Tokens, run_layer
from charwright.training.loop import fit

needs_kernels = pytest.mark.skipif(kernels.load() is None, reason="the kernels are not built")

VOCABULARY, STEPS, BATCH = 19, 13, 6
BITS = [torch.float32, torch.bfloat16]


def shape(**options: Any) -> ModelConfig:
    return ModelConfig(**{"units": 32, "embedding_size": 16} | options)


def model_of(
    config: ModelConfig, vocabulary: int = VOCABULARY, precision: torch.dtype = torch.float32
) -> LanguageModel:
    model = LanguageModel(config, vocabulary, seed=3, compute=Compute(precision=precision))
    if config.ngram_bits:
        with torch.no_grad():
            array = model.weight("ngrams.weight")
            array.copy_(torch.randn(array.shape, generator=torch.Generator().manual_seed(5)))
    return model.train()


def batch_of(vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    ids = torch.randint(vocabulary, (STEPS + 1, BATCH), generator=torch.Generator().manual_seed(2))
    return ids[:-1], ids[1:]


def state_of(model: LanguageModel) -> State:
    draw = torch.Generator().manual_seed(4)
    state = [torch.randn(part.shape, generator=draw) for part in model.zero_state(BATCH)]
    if model.config.ngram_bits:  # the tokens before
        state[-1] = torch.randint(VOCABULARY + 1, state[-1].shape, generator=draw).float()
    return tuple(state)


def by_autograd(model: LanguageModel, state: State | None, ids: Tensor, targets: Tensor) -> tuple[Tensor, State]:
    loss, after = model.loss(ids, targets, state, generator=torch.Generator().manual_seed(7))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), tuple(part.detach() for part in after)


def directly(model: LanguageModel, state: State | None, ids: Tensor, targets: Tensor) -> tuple[Tensor, State]:
    return model.differentiate(ids, targets, state, generator=torch.Generator().manual_seed(7))


def everything(
    way: Callable[..., tuple[Tensor, State]], model: LanguageModel, state: State | None
) -> dict[str, Tensor]:
    """The loss, the state after it and all gradients."""
    with model.collecting_ngram_gradients():
        loss, after = way(model, state, *batch_of(model.vocabulary_size))
        rows = list(model.ngram_gradients or [])
    found = {"loss": loss, **{f"state {i}": part for i, part in enumerate(after)}}
    found |= {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    for i, row in enumerate(rows):
        found |= {f"offsets {i}": row.offsets, f"d_logits {i}": row.d_logits}
    return found


def same_bits(config: ModelConfig, precision: torch.dtype, *, carried: bool) -> int:
    """See that both ways give the same bits; returns the number of results."""
    one, other = model_of(config, precision=precision), model_of(config, precision=precision)
    state = state_of(one) if carried else None
    wanted, found = everything(by_autograd, one, state), everything(directly, other, state)
    assert list(found) == list(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert not any(part.requires_grad for part in found.values())
    return len(found)


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forbid autograd from the call on."""

    def forbid() -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("autograd was used")

        monkeypatch.setattr(Tensor, "backward", fail)

    return forbid


@needs_kernels
@pytest.mark.parametrize("precision", BITS, ids=str)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", GATES)
def test_both_ways_give_the_same_bits(cell: str, layers: int, precision: torch.dtype) -> None:
    assert same_bits(shape(cell=cell, layers=layers), precision, carried=True) > 3 * layers


@needs_kernels
@pytest.mark.parametrize("precision", BITS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.3, "recurrent_dropout": 0.2, "layers": 2},
        {"cell": "igru", "multiplicative": True, "recurrent_dropout": 0.2},
        {"ngram_bits": 10, "ngram_order": 4, "dropout": 0.1},
        {"tied": True, "units": 16},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("carried", [False, True], ids=["zero", "carried"])
def test_so_they_do_for_all_that_a_network_may_have(
    options: dict[str, Any], precision: torch.dtype, carried: bool
) -> None:
    same_bits(shape(**options), precision, carried=carried)


@needs_kernels
def test_a_native_network_needs_no_graph(no_graph: Callable[[], None]) -> None:
    model = model_of(shape(ngram_bits=10, ngram_order=3))
    no_graph()
    everything(directly, model, None)
    with torch.no_grad():  # nor does it ask whether there may be one
        everything(directly, model, None)


@needs_kernels
def test_gradients_are_added_to_those_before() -> None:
    model = model_of(shape(layers=2))
    first = {name: part.clone() for name, part in everything(directly, model, None).items()}
    second = everything(directly, model, None)
    for name, _ in model.named_parameters():
        assert torch.equal(second[name], first[name] * 2), name


def full_shape() -> ModelConfig:
    return shape(cell="igru", multiplicative=True, ngram_bits=10, ngram_order=3, dropout=0.2, recurrent_dropout=0.2)


@needs_kernels
def test_steps_share_no_results() -> None:
    """The working memory of a network is used again, and what a step returns is not part of it."""
    model = model_of(full_shape())
    first = everything(directly, model, state_of(model))
    copies = {name: part.clone() for name, part in first.items()}
    model.zero_grad()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    second = everything(directly, model, None)
    assert [name for name in first if not torch.equal(first[name], copies[name])] == []
    assert [name for name in first if torch.equal(first[name], second[name])] == ["state 1"]  # the last tokens


@needs_kernels
def test_the_state_that_is_given_is_left_as_it_is() -> None:
    model = model_of(shape(cell="lstm", layers=2))
    state = state_of(model)
    copies = [part.clone() for part in state]
    transposed = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in state)
    first, second = directly(model, state, *batch_of()), directly(model, transposed, *batch_of())
    assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


@needs_kernels
def test_batches_of_several_shapes_and_numbers_of_threads_follow_each_other() -> None:
    model = model_of(full_shape())
    before = torch.get_num_threads()
    ids, targets = batch_of()
    try:
        for rows, threads in ((6, 2), (3, 2), (6, 1), (5, 3), (6, 2)):
            torch.set_num_threads(threads)
            model.zero_grad()
            loss, after = directly(model, None, ids[:, :rows], targets[:, :rows])
            again = model_of(full_shape())
            expected, expected_after = by_autograd(again, None, ids[:, :rows], targets[:, :rows])
            assert torch.equal(loss, expected)
            assert all(torch.equal(one, other) for one, other in zip(after, expected_after, strict=True))
            assert torch.equal(model.weight("embedding.weight").grad, again.weight("embedding.weight").grad)
    finally:
        torch.set_num_threads(before)


@contextmanager
def wide_numbers() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@needs_kernels
@pytest.mark.parametrize("way", [by_autograd, directly])
@pytest.mark.parametrize("default", [wide_numbers, lambda: torch.device("meta")], ids=["float64", "meta"])
def test_the_default_type_and_device_do_not_matter(way: Callable[..., Any], default: Callable[[], Any]) -> None:
    config = shape(layers=2, ngram_bits=10, ngram_order=3)
    models = [model_of(config), model_of(config)]
    wanted, batch = everything(way, models[0], None), batch_of()
    with models[1].collecting_ngram_gradients(), default():
        loss, after = way(models[1], None, *batch)
    assert torch.equal(loss, wanted["loss"])
    assert all(torch.equal(part, wanted[f"state {i}"]) for i, part in enumerate(after))
    for name, weight in models[1].named_parameters():
        assert name not in wanted or torch.equal(weight.grad, wanted[name]), name


@needs_kernels
@pytest.mark.parametrize("precision", BITS, ids=str)
def test_a_step_in_inference_mode_does_not_disturb_the_next(precision: torch.dtype) -> None:
    model = model_of(shape(), precision=precision)
    with torch.inference_mode():
        first, _ = model.differentiate(*batch_of())
    model.zero_grad()
    second, _ = model.differentiate(*batch_of())
    assert float(first) == float(second)


@pytest.mark.parametrize("core", ["plain", "fused"])
def test_nor_does_it_matter_to_autograd(core: str) -> None:
    model = LanguageModel(shape(), VOCABULARY, seed=3, compute=Compute(core=core))
    wanted, _ = model.differentiate(*batch_of(), model.zero_state(BATCH))
    with torch.inference_mode():
        found, _ = model.differentiate(*batch_of(), model.zero_state(BATCH))
    assert float(found) == float(wanted)


@needs_kernels
def test_gradients_of_tied_weights_add_up_as_with_autograd() -> None:
    models = [model_of(shape(tied=True, units=16)) for _ in range(2)]
    for _ in range(3):
        wanted, found = everything(by_autograd, models[0], None), everything(directly, models[1], None)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@needs_kernels
def test_training_leaves_no_working_memory_behind() -> None:
    model = model_of(shape())
    directly(model, None, *batch_of())
    assert model in native_network._idle
    dataset = make_dataset(
        torch.arange(2000).remainder(VOCABULARY).int().numpy(), SequenceConfig(batch=4, seq_length=20), 1
    )
    for _ in fit(model, dataset, TrainingConfig(steps=2)):
        pass
    assert model not in native_network._idle


@needs_kernels
def test_a_model_can_be_copied_and_pickled_after_a_step() -> None:
    model = model_of(shape(layers=2))
    wanted, _ = directly(model, None, *batch_of())
    for other in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(directly(other, None, *batch_of())[0], wanted)


@needs_kernels
def test_models_in_several_threads_do_not_disturb_each_other() -> None:
    def steps(seed: int) -> list[float]:
        model = LanguageModel(shape(layers=2), VOCABULARY, seed=seed).train()
        losses = []
        for _ in range(20):
            losses.append(float(directly(model, None, *batch_of())[0]))
            with torch.no_grad():
                for weight in model.parameters():
                    assert weight.grad is not None
                    weight.sub_(0.1 * weight.grad)
        return losses

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(steps, (1, 2, 1, 2)))
    assert found[:2] == found[2:] == [steps(1), steps(2)]


@needs_kernels
def test_more_logits_than_one_array_holds_are_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charwright.model.language_model.MOST_LOGITS_BYTES", 1000)
    monkeypatch.setattr("charwright.model.loss.MOST_LOGITS_BYTES", 1000)
    wanted, found = everything(by_autograd, model_of(shape()), None), everything(directly, model_of(shape()), None)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@needs_kernels
def test_in_evaluation_nothing_is_dropped_and_no_generator_is_needed() -> None:
    model = model_of(shape(dropout=0.5)).eval()
    loss, _ = model.differentiate(*batch_of())
    expected, _ = model.loss(*batch_of())
    assert float(loss) == float(expected.detach())
    model.train()
    with pytest.raises(ValueError, match="generator"):
        model.differentiate(*batch_of())


@needs_kernels
def test_they_are_added_where_they_are() -> None:
    """An optimizer may have views of one array as the gradients of all weights."""
    model = model_of(shape())
    kept = {weight: torch.ones_like(weight) for weight in model.parameters()}
    for weight, gradient in kept.items():
        weight.grad = gradient
    directly(model, None, *batch_of())
    assert all(weight.grad is gradient and float(gradient.std()) > 0 for weight, gradient in kept.items())


def drawn_masks(model: LanguageModel, dtype: torch.dtype) -> list[Tensor]:
    masks = empty_masks(model.config, BATCH, torch.empty((), dtype=dtype))
    draw_masks(model.config, masks, torch.Generator().manual_seed(9))
    return masks


@needs_kernels
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", BITS, ids=str)
def test_masks_that_are_drawn_already_have_any_type(precision: torch.dtype, kind: torch.dtype) -> None:
    """As the ranks of one training get them; those of the state are float32 always."""
    config = shape(layers=2, dropout=0.4)
    masks = drawn_masks(model_of(config), kind)

    def by_loss(model: LanguageModel, state: State | None, ids: Tensor, targets: Tensor) -> tuple[Tensor, State]:
        loss, after = model.loss(ids, targets, state, masks=masks)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), tuple(part.detach() for part in after)

    def without(model: LanguageModel, state: State | None, ids: Tensor, targets: Tensor) -> tuple[Tensor, State]:
        return model.differentiate(ids, targets, state, masks=masks)

    found = [everything(way, model_of(config, precision=precision), None) for way in (by_loss, without)]
    for name, part in found[0].items():
        distance = float((found[1][name].double() - part.double()).norm())
        assert distance <= 1e-2 * float(part.double().norm()), name


@needs_kernels
def test_masks_are_not_misread() -> None:
    model = model_of(shape(dropout=0.5))
    mask = (torch.arange(BATCH * 32).remainder(3) > 0).float().view(1, BATCH, 32)
    wanted, _ = model.differentiate(*batch_of(), masks=[mask])
    turned = mask.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(model.differentiate(*batch_of(), masks=[turned])[0], wanted)
    for wrong in (mask[:, :2], mask[..., :16]):
        with pytest.raises(RuntimeError):
            model.differentiate(*batch_of(), masks=[wrong])


@needs_kernels
def test_weights_need_not_be_contiguous() -> None:
    one, other = model_of(shape()), model_of(shape())
    for name in ("head.weight", "recurrent.0.weight_ih", "recurrent.0.weight_hh", "embedding.weight"):
        weight = other.weight(name)
        weight.data = weight.data.T.contiguous().T
    other.weight("head.bias").data = other.weight("head.bias").data.repeat_interleave(2)[::2]
    wanted, found = everything(directly, one, None), everything(directly, other, None)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


class Doubled(LanguageModel):
    """A model with a loss of its own."""

    def loss(self, *args: Any, **options: Any) -> tuple[Tensor, State]:
        """Twice the loss."""
        loss, state = super().loss(*args, **options)
        return 2 * loss, state


def watched(model: LanguageModel) -> None:
    model.weight("head.bias").register_hook(lambda gradient: gradient * 0)


def frozen(model: LanguageModel) -> None:
    model.weight("recurrent.0.weight_hh").requires_grad_(False)


class Half(torch.nn.Module):
    """A weight that is computed from another one."""

    def forward(self, weight: Tensor) -> Tensor:
        """Half of it."""
        return weight / 2


def computed(model: LanguageModel) -> None:
    torch.nn.utils.parametrize.register_parametrization(model.weights, "head_weight", Half())


@needs_kernels
@pytest.mark.parametrize("prepare", [watched, frozen, computed])
def test_what_only_autograd_does_is_left_to_it(prepare: Callable[[LanguageModel], None]) -> None:
    models = [model_of(shape()), model_of(shape())]
    for model in models:
        prepare(model)
    wanted, found = everything(by_autograd, models[0], None), everything(directly, models[1], None)
    assert list(found) == list(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@needs_kernels
def test_a_loss_of_a_subclass_counts() -> None:
    model = Doubled(shape(), VOCABULARY, seed=3)
    loss, _ = model.differentiate(*batch_of())
    expected, _ = model_of(shape()).differentiate(*batch_of())
    assert float(loss) == pytest.approx(2 * float(expected))


@needs_kernels
@pytest.mark.parametrize("name", ["loss", "forward"])
def test_so_do_a_loss_and_logits_of_this_model_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(shape())
    original, before = getattr(model, name), float(model.differentiate(*batch_of())[0])

    def doubled(*args: Any, **options: Any) -> tuple[Tensor, State]:
        result, state = original(*args, **options)
        return 2 * result, state

    monkeypatch.setattr(model, name, doubled)
    expected, _ = model.loss(*batch_of())
    assert float(model.differentiate(*batch_of())[0]) == float(expected.detach()) != before


@needs_kernels
def test_a_state_that_wants_a_gradient_gets_it() -> None:
    model = model_of(shape())
    state = tuple(part.requires_grad_() for part in state_of(model))
    _, after = directly(model, state, *batch_of())
    assert state[0].grad is not None
    assert not after[0].requires_grad


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("core", ["plain", "fused"])
def test_other_cores_have_the_same_gradients(core: str, cell: str) -> None:
    config = shape(cell=cell, layers=2, multiplicative=True)
    model = LanguageModel(config, VOCABULARY, seed=3, compute=Compute(core=core))
    with torch.no_grad():  # as with the kernels, gradients are made all the same
        loss, _ = directly(model, None, *batch_of())
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    wanted = everything(directly, model_of(config), None)
    torch.testing.assert_close(loss, wanted["loss"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize(
    ("units", "embedding", "vocabulary"), [(30, 16, 19), (32, 10, 19), (32, 16, 700), (32, 16, 30)]
)
def test_sizes_that_the_kernels_pad_or_leave_to_pytorch(units: int, embedding: int, vocabulary: int) -> None:
    """The last vocabulary has more than a quarter of the tokens of the batch."""
    config = shape(units=units, embedding_size=embedding)
    wanted = everything(by_autograd, model_of(config, vocabulary), None)
    found = everything(directly, model_of(config, vocabulary), None)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@needs_kernels
@pytest.mark.parametrize("which", [0, 1])
def test_ids_outside_of_the_vocabulary_are_refused(which: int) -> None:
    pair = [part.clone() for part in batch_of()]
    pair[which][2, 1] = VOCABULARY
    with pytest.raises(ValueError, match=f"must be from 0 to {VOCABULARY - 1}"):
        model_of(shape()).differentiate(*pair)


@needs_kernels
def test_n_grams_outside_of_a_collecting_block_have_their_gradient_in_grad() -> None:
    model = model_of(shape(ngram_bits=10, ngram_order=3))
    model.differentiate(*batch_of())
    gradient = model.weight("ngrams.weight").grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


@needs_kernels
@pytest.mark.parametrize("changed", ["embedding", "mask", "weight_ih", "weight_mx"])
def test_a_change_before_the_backward_pass_is_noticed(changed: str) -> None:
    model = model_of(shape(multiplicative=True))
    embedding, mask = model.weight("embedding.weight"), torch.ones(BATCH, 32)
    state = (torch.zeros(BATCH, 32),)
    weights = model._layer(0)
    ids = batch_of()[0]
    outputs, _ = run_layer("native", "gru", Tokens(ids, embedding), state, weights, torch.float32, mask)
    part = {"embedding": embedding, "mask": mask, **weights._asdict()}[changed]
    with torch.no_grad():
        part.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()  # type: ignore[no-untyped-call]


@needs_kernels
def test_a_multiplicative_layer_has_ids_and_weights_of_its_size() -> None:
    loaded, model = kernels.load(), model_of(shape(multiplicative=True))
    assert loaded is not None
    embedding, weights, state = model.weight("embedding.weight"), model._layer(0), (torch.zeros(BATCH, 32),)
    assert weights.weight_mx is not None
    vectors = embedding[batch_of()[0]]
    wrong = weights._replace(weight_mx=weights.weight_mx[:16])
    for x, ids, of_it in ((vectors, None, weights), (embedding, batch_of()[0], wrong)):
        with pytest.raises(ValueError, match="a multiplicative layer has ids"):
            native_layer(loaded, "gru", x, ids, state, of_it, torch.float32, None)

"""The language model: parameters, initial weights, dropout, and the outputs of real Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch.nn.utils import parametrize

from charwright import kernels
from charwright.config import GATES, PRODUCTS, ModelConfig
from charwright.errors import ConfigError
from charwright.model.compute import Compute
from charwright.model.initialization import start_from_frequencies
from charwright.model.language_model import LanguageModel
from charwright.planning.recipes import TUTORIAL
from ramps import fill_with_ramps, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**options: Any) -> ModelConfig:
    return ModelConfig(**({"units": 12, "embedding_size": 6} | options))


def random_ids(steps: int, batch: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (steps, batch), generator=torch.Generator().manual_seed(1))


def test_the_tutorials_model_has_the_tutorials_parameters() -> None:
    model = LanguageModel(TUTORIAL.model, 66)
    counts = {name: model.weight(name).numel() for name in TUTORIAL.model.weight_shapes(66)}
    assert counts["embedding.weight"] == 16_896
    assert sum(count for name, count in counts.items() if name.startswith("recurrent.")) == 3_938_304
    assert counts["head.weight"] + counts["head.bias"] == 67_650
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 4_022_850


def test_the_tutorials_untrained_model_predicts_every_character_alike() -> None:
    model = LanguageModel(TUTORIAL.model, 66, embedding_range=0.05)
    ids = random_ids(101, 8, 66)
    with torch.no_grad():
        logits, _ = model(ids[:-1])
    assert logits.shape == (100, 8, 66)
    assert logits.dtype == torch.float32
    assert abs(float(F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())) - math.log(66)) < 0.02


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("vocabulary", [3, 66, 3000])
@pytest.mark.parametrize("tied", [False, True])
def test_untrained_loss_is_the_logarithm_of_the_vocabulary(cell: str, vocabulary: int, tied: bool) -> None:
    config = ModelConfig(cell=cell, layers=2, units=64, embedding_size=64, tied=tied)
    ids = random_ids(65, 16, vocabulary)
    with torch.no_grad():
        logits, _ = LanguageModel(config, vocabulary, embedding_range=0.05)(ids[:-1])
    # An orthogonal recurrence without gates forgets nothing, so its logits grow over the sequence.
    bound = 0.1 if cell == "rnn" else 0.02
    assert abs(float(F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())) - math.log(vocabulary)) < bound


@pytest.mark.parametrize("cell", GATES)
def test_initial_weights_are_those_of_keras(cell: str) -> None:
    config = ModelConfig(cell=cell, layers=2, units=40, embedding_size=30)
    model, rows = LanguageModel(config, 50, embedding_range=0.05), 40 * GATES[cell]
    limits = {
        "embedding.weight": 0.05,
        "recurrent.0.weight_ih": math.sqrt(6 / (30 + rows)),
        "recurrent.1.weight_ih": math.sqrt(6 / (40 + rows)),
        "head.weight": math.sqrt(6 / (40 + 50)),
    }
    for name, limit in limits.items():
        weight = model.weight(name).detach()
        assert 0.95 * limit < float(weight.abs().max()) <= limit, name
        # The standard deviation of a uniform distribution is its limit divided by the root of 3.
        assert float(weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.05), name
        assert abs(float(weight.mean())) < 0.1 * limit, name
    for layer in range(2):
        recurrent = model.weight(f"recurrent.{layer}.weight_hh").detach()
        torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(40), rtol=0, atol=1e-5)
        forget = [0.0] * 40 + [1.0] * 40 + [0.0] * 80
        assert model.weight(f"recurrent.{layer}.bias_ih").tolist() == (forget if cell == "lstm" else [0.0] * rows)
        if cell in ("gru", "igru"):
            assert model.weight(f"recurrent.{layer}.bias_hh").tolist() == [0.0] * 40 * PRODUCTS[cell]
    assert not model.weight("head.bias").any()


def test_initial_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (LanguageModel(small(), 9, seed=seed).arrays() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before), "the global random state is unchanged"
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["embedding.weight"], other["embedding.weight"])


def test_an_output_bias_from_frequencies_predicts_them_at_the_zero_state() -> None:
    model = LanguageModel(ModelConfig(units=16, embedding_size=8), 5)
    counts = np.array([0, 7, 1, 0, 90])
    start_from_frequencies(model.weight("head.bias"), counts)
    bias = model.weight("head.bias").detach()
    # At the zero state the logits are the biases.
    assert_allclose(F.softmax(bias, dim=0), (counts + 1) / 103, rtol=1e-5)
    assert abs(float(bias.mean())) < 1e-6


def test_a_tied_model_has_one_matrix_for_input_and_output() -> None:
    model = LanguageModel(small(embedding_size=12, tied=True), 9)
    assert "head.weight" not in model.arrays()
    ids = torch.zeros(1, 1, dtype=torch.int64)
    gradient = torch.autograd.grad(model(ids)[0].sum(), model.weight("embedding.weight"))[0]
    assert gradient[1:].any(), "rows that are not in the input take part in the output"
    logits, state = model(ids)
    torch.testing.assert_close(
        logits[0, 0], model.weight("embedding.weight") @ state[0][-1, 0] + model.weight("head.bias")
    )


def test_dropout_needs_a_generator_and_is_a_function_of_it() -> None:
    model = fill_with_ramps(LanguageModel(small(layers=2, dropout=0.5), 9))
    ids = some_ids(5, 3, 9)
    with pytest.raises(ValueError, match="generator"):
        model(ids)

    def logits(seed: int) -> torch.Tensor:
        result: torch.Tensor = model(ids, generator=torch.Generator().manual_seed(seed))[0]
        return result

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    model.eval()
    assert torch.equal(model(ids)[0], logits(1)), "no dropout in evaluation mode"


def test_dropout_zeroes_its_fraction_and_keeps_the_mean() -> None:
    """With an identity matrix as the head, the logits are the outputs of the last layer."""
    model = fill_with_ramps(LanguageModel(ModelConfig(units=50, embedding_size=4, dropout=0.3), 50))
    with torch.no_grad():
        model.weight("head.weight").copy_(torch.eye(50))
        model.weight("head.bias").zero_()
    ids = some_ids(20, 20, 50)
    dropped, state = model(ids, generator=torch.Generator().manual_seed(1))
    plain, plain_state = model.eval()(ids)
    zeroed = dropped == 0
    assert float(zeroed.float().mean()) == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(dropped[~zeroed], plain[~zeroed] / 0.7)
    torch.testing.assert_close(state, plain_state), "the carried state has no dropout"


def test_arrays_round_trip() -> None:
    model = fill_with_ramps(LanguageModel(small(layers=2), 9))
    arrays = model.arrays()
    again = LanguageModel.from_arrays(model.config, arrays)
    ids = some_ids(5, 3, 9)
    assert torch.equal(model(ids)[0], again(ids)[0])
    arrays["head.bias"] += 1
    assert np.abs(again.arrays()["head.bias"] - arrays["head.bias"]).min() > 0.9, "arrays are copies"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": None}, "head.bias"),
        ({"extra": np.zeros(1, np.float32)}, "extra"),
        ({"head.weight": np.zeros((9, 11), np.float32)}, r"head.weight.*\(9, 11\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: Mapping[str, Any], message: str) -> None:
    model = LanguageModel(small(), 9)
    arrays = {name: array for name, array in (model.arrays() | change).items() if array is not None}
    with pytest.raises(ConfigError, match=message):
        model.load_arrays(arrays)


# The outputs of real Keras, from `golden.npz`.

KERAS2 = {"keras2-gru": ("gru", 1), "keras2-gru2": ("gru", 2), "keras2-lstm": ("lstm", 1)}


def reordered(gates: np.ndarray, cell: str) -> np.ndarray:
    """Keras's gates, side by side, in our order: z, r, n -> r, z, n; the LSTM's order is the same."""
    if cell == "lstm":
        return gates
    z, r, n = np.split(gates, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1)


def from_keras(cell: str, weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Keras's list of weights (embedding; kernel, recurrent kernel and bias of each layer; head) by our names."""
    embedding, *layers, head, head_bias = weights
    arrays = {"embedding.weight": embedding, "head.weight": head.T, "head.bias": head_bias}
    for layer in range(len(layers) // 3):
        kernel, recurrent, bias = (reordered(array, cell) for array in layers[3 * layer : 3 * layer + 3])
        arrays[f"recurrent.{layer}.weight_ih"] = kernel.T
        arrays[f"recurrent.{layer}.weight_hh"] = recurrent.T
        arrays |= {
            f"recurrent.{layer}.bias_{which}": row
            for which, row in zip(("ih", "hh"), np.atleast_2d(bias), strict=False)
        }
    return arrays


def check_golden(
    cell: str, layers: int, weights: list[np.ndarray], golden: Mapping[str, np.ndarray], state: list[np.ndarray]
) -> None:
    """Compare logits and state with the recorded ones, within 1e-5, for the whole sequence and in pieces."""
    embedding = weights[0]
    config = ModelConfig(cell=cell, layers=layers, embedding_size=embedding.shape[1], units=len(weights[-2]))
    model = LanguageModel.from_arrays(config, from_keras(cell, weights))
    ids = torch.from_numpy(golden["ids"].T.copy())
    for cuts in [(0, 64), (0, 1, 20, 21, 64)]:
        pieces, carried = [], None
        with torch.no_grad():
            for begin, end in pairwise(cuts):
                logits, carried = model(ids[begin:end], carried)
                pieces.append(logits)
        assert np.abs(torch.cat(pieces).numpy() - golden["logits"].transpose(1, 0, 2)).max() < 1e-5
        assert carried is not None
        for ours, theirs in zip(carried, state, strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_the_tutorials_code_under_keras_3_gives_the_same_outputs(shared: Path) -> None:
    golden = np.load(shared / "fixtures" / "tutorial-small" / "golden.npz")
    names = ["embedding", "gru_kernel", "gru_recurrent_kernel", "gru_bias", "dense_kernel", "dense_bias"]
    check_golden("gru", 1, [golden[name] for name in names], golden, [golden["state"][None]])


@pytest.mark.parametrize("fixture", KERAS2)
def test_keras_2_gives_the_same_outputs(shared: Path, fixture: str) -> None:
    golden = np.load(shared / "fixtures" / fixture / "golden.npz")
    cell, layers = KERAS2[fixture]
    weights = [golden[f"weight_{i}"] for i in range(3 * layers + 3)]
    parts = [
        np.stack([golden[f"state_{layer}_{part}"] for layer in range(layers)]) for part in range(1 + (cell == "lstm"))
    ]
    check_golden(cell, layers, weights, golden, parts)


@pytest.mark.parametrize("core", ["plain", "fused", *(["native"] if kernels.load() else [])])
def test_targets_that_are_no_ids_of_the_positions_are_refused(core: str) -> None:
    """The kernels would read and write outside of their arrays."""
    model = LanguageModel(ModelConfig(units=16, embedding_size=8), 10, compute=Compute(core=core))
    ids = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"integers, not torch\.float32"):
        model.loss(ids, ids.float())
    for wrong in (ids[:2], ids[:, :1]):
        with pytest.raises(ValueError, match=r"targets must be int64 \(3, 2\)"):
            model.loss(ids, wrong)
    for outside in (-1, 10):
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            model.loss(ids, torch.full_like(ids, outside))


@pytest.mark.skipif(kernels.load() is None, reason="the kernels are not built")
def test_a_mask_of_another_type_or_shape_is_not_misread() -> None:
    model = LanguageModel(ModelConfig(units=16, embedding_size=8, dropout=0.5), 10, compute=Compute(core="native"))
    ids = torch.arange(12).remainder(10).view(3, 4)
    mask = torch.arange(4 * 16).remainder(3).view(1, 4, 16).float()
    wanted = float(model.loss(ids, ids, masks=[mask])[0].detach())
    assert float(model.loss(ids, ids, masks=[mask.double()])[0].detach()) == pytest.approx(wanted)
    assert float(model.loss(ids, ids, masks=[mask > 0])[0].detach()) == pytest.approx(
        float(model.loss(ids, ids, masks=[(mask > 0).float()])[0].detach())
    )
    with pytest.raises(RuntimeError):
        model.loss(ids, ids, masks=[mask[:, :2]])


# What users do with a model.


class Sharper(LanguageModel):
    """A model whose logits are larger."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        logits, state = super().forward(*arguments, **options)
        return 4 * logits, state


def test_the_loss_of_a_model_that_overrides_forward_is_that_of_its_logits() -> None:
    model, ids = Sharper(small(), 7), random_ids(11, 4, 7)
    fill_with_ramps(model)
    logits, _ = model(ids[:-1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())
    for compute in (model.loss, model.differentiate):
        assert_allclose(compute(ids[:-1], ids[1:])[0].item(), expected.item(), rtol=1e-6)


@pytest.mark.parametrize("core", ["native", "fused", "torch", "plain"])
def test_a_gradient_without_a_gradient_of_its_own_says_so(core: str) -> None:
    if core == "native" and kernels.load() is None:
        pytest.skip("the C kernels are not built")
    model, ids = LanguageModel(small(), 7, compute=Compute(core=core)), random_ids(11, 4, 7)
    loss, _ = model.loss(ids[:-1], ids[1:])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, [model.weight("head.weight")], create_graph=True)
    loss = F.cross_entropy(model(ids[:-1])[0].flatten(0, 1), ids[1:].flatten())
    if core in {"native", "fused"}:
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, [model.weight("embedding.weight")], create_graph=True)
    else:
        (gradient,) = torch.autograd.grad(loss, [model.weight("embedding.weight")], create_graph=True)
        assert gradient.requires_grad


@pytest.mark.parametrize("core", ["auto", "fused", "torch", "plain"])
def test_autocast_leaves_the_loss_alone(core: str) -> None:
    """The precision of products is that of `Compute`."""
    model, ids = LanguageModel(small(), 7, compute=Compute(core=core)), random_ids(11, 4, 7)
    expected = model.loss(ids[:-1], ids[1:])[0].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_allclose(float(model.loss(ids[:-1], ids[1:])[0].detach()), expected, rtol=1e-2)


def test_ids_are_integers_of_any_size() -> None:
    model, ids = LanguageModel(small(ngram_bits=6), 7), random_ids(11, 4, 7)
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(model(ids.to(kind))[0], model(ids)[0])
        assert model.loss(ids[:-1].to(kind), ids[1:].to(kind))[0] == model.loss(ids[:-1], ids[1:])[0]
    for wrong, name in ((ids.float(), "torch.float32"), (ids > 2, "torch.bool"), (ids.numpy(), "int64")):
        with pytest.raises(ValueError, match=f"ids must be a tensor of integers, not {name}"):
            model(wrong)


@pytest.mark.parametrize("cell", GATES)
def test_a_state_of_other_shapes_is_refused(cell: str) -> None:
    model, ids = LanguageModel(small(cell=cell), 7), random_ids(5, 4, 7)
    for state in (
        model.zero_state(1),
        model.zero_state(4) * 2,
        tuple(part.repeat(2, 1, 1) for part in model.zero_state(4)),
    ):
        with pytest.raises(ValueError, match="the state of 4 rows has the shapes"):
            model(ids, state)


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = LanguageModel(small(), 7)
    before, other = model.arrays(), LanguageModel(small(), 7, seed=2).arrays()
    with pytest.raises(ConfigError, match=r"'head\.bias' has shape"):
        model.load_arrays({**other, "head.bias": np.zeros(3, np.float32)})
    assert all(np.array_equal(before[name], array) for name, array in model.arrays().items())
    with pytest.raises(ConfigError, match=r"'head\.bias' is missing"):
        LanguageModel.from_arrays(small(), {name: array for name, array in other.items() if name != "head.bias"})
    parametrize.register_parametrization(model.weights, "head_weight", torch.nn.Tanh())
    with pytest.raises(ConfigError, match=r"'head\.weight' has a parametrization"):
        model.load_arrays(other)

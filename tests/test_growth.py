"""Growing the vocabulary of a trained model: old weights are unchanged, new rows are initialized."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from charwright.config import ModelConfig
from charwright.model.growth import grow_arrays
from charwright.model.language_model import LanguageModel
from ramps import ramp

OLD, NEW = 7, 12
COUNTS = np.array([0, 40, 30, 20, 0, 5, 0, 50, 9, 1, 0, 100])

CONFIGS = [
    ModelConfig(cell="gru", units=6, embedding_size=4),
    ModelConfig(cell="lstm", units=6, embedding_size=4, layers=2),
    ModelConfig(cell="gru", units=6, embedding_size=6, tied=True),
    ModelConfig(cell="gru", units=6, embedding_size=4, multiplicative=True),
    ModelConfig(cell="gru", units=6, embedding_size=4, ngram_bits=7),
    ModelConfig(cell="igru", units=6, embedding_size=4, layers=2, multiplicative=True),
    ModelConfig(cell="rnn", units=3, embedding_size=4, ngram_bits=3, ngram_order=8),
]


def weights(config: ModelConfig) -> dict[str, np.ndarray]:
    shapes = config.weight_shapes(OLD)
    return {name: ramp(*shape, phase=i, dtype=torch.float32).numpy() for i, (name, shape) in enumerate(shapes.items())}


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.mark.parametrize("config", CONFIGS)
def test_old_weights_are_unchanged(config: ModelConfig) -> None:
    before = weights(config)
    grown = grow_arrays(before, COUNTS, generator())
    assert {name: array.shape for name, array in grown.items()} == config.weight_shapes(NEW)
    for name, array in grown.items():
        assert array.dtype == np.float32
        assert np.array_equal(array[: len(before[name])], before[name])
        assert np.isfinite(array).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_grown_model_predicts_old_text_as_before(config: ModelConfig) -> None:
    """The same logits and state; the relative probabilities of the old characters are the same."""
    before = weights(config)
    old = LanguageModel.from_arrays(config, before)
    grown = LanguageModel.from_arrays(config, grow_arrays(before, COUNTS, generator()))
    ids = torch.arange(20).reshape(10, 2) % OLD
    with torch.no_grad():
        (wanted, state), (found, state_after) = old(ids), grown(ids)
    torch.testing.assert_close(found[..., :OLD], wanted, rtol=1e-6, atol=1e-6)
    for part, after in zip(state, state_after, strict=True):
        assert torch.equal(part, after)
    probability = found.softmax(-1)[..., :OLD]
    torch.testing.assert_close(
        probability / probability.sum(-1, keepdim=True), wanted.softmax(-1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_the_initial_probability_of_new_characters_is_their_frequency(config: ModelConfig) -> None:
    bias = grow_arrays(weights(config), COUNTS, generator())["head.bias"].astype(np.float64)
    probability = np.exp(bias - np.logaddexp.reduce(bias))
    wanted = (COUNTS + 1) / (COUNTS + 1).sum()
    np.testing.assert_allclose(probability[OLD:], wanted[OLD:], rtol=1e-5)
    np.testing.assert_allclose(probability[:OLD].sum(), wanted[:OLD].sum(), rtol=1e-5)


def test_new_embeddings_are_distributed_as_the_old_and_head_rows_are_their_mean() -> None:
    config, many = CONFIGS[0], 4000
    before = weights(config)
    grown = grow_arrays(before, np.ones(OLD + many, dtype=int), generator())
    old, new = before["embedding.weight"], grown["embedding.weight"][OLD:]
    np.testing.assert_allclose(new.mean(0), old.mean(0), atol=0.1 * old.std(0).max())
    np.testing.assert_allclose(new.std(0), old.std(0), rtol=0.1)
    np.testing.assert_allclose(grown["head.weight"][OLD:], np.tile(before["head.weight"].mean(0), (many, 1)), rtol=1e-5)


def test_new_rows_of_a_tied_model_are_near_the_mean_and_distinct() -> None:
    before = weights(CONFIGS[2])
    old, new = before["embedding.weight"], grow_arrays(before, COUNTS, generator())["embedding.weight"][OLD:]
    assert len(np.unique(new, axis=0)) == NEW - OLD
    assert np.abs(new - old.mean(0)).max() < 0.5 * old.std(0).max()


def test_new_rows_are_a_function_of_the_seed() -> None:
    first, again, other = (grow_arrays(weights(CONFIGS[0]), COUNTS, generator(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["embedding.weight"], other["embedding.weight"])


def test_growing_by_nothing_copies_and_shrinking_is_refused() -> None:
    before = weights(CONFIGS[0])
    grown = grow_arrays(before, COUNTS[:OLD], generator())
    assert all(np.array_equal(grown[name], before[name]) for name in before)
    grown["head.bias"][0] = 99
    assert before["head.bias"][0] != 99
    with pytest.raises(ValueError, match="cannot grow to 3"):
        grow_arrays(before, COUNTS[:3], generator())

"""The search for neurons: it finds the one that counts brackets, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brackets import bracket_text

import charwright as cw
from charwright.config import ModelConfig
from charwright.explanation import neurons
from charwright.explanation.features import Feature, features_of
from charwright.explanation.inside import Network
from charwright.explanation.results import NeuronSearch

pytestmark = pytest.mark.usefixtures("one_thread")
HELD_OUT = bracket_text(16_000, 2)


def search(model: cw.LanguageModel, vocabulary: cw.Vocabulary, text: str = HELD_OUT) -> NeuronSearch:
    network = Network(model.config, model.arrays())
    usual = cw.TrainingConfig.embedding_range
    return neurons.search_neurons(model.config, network, vocabulary, text, "a text", embedding_range=usual)


def test_the_bracket_neuron_is_found(bracket_run: cw.Run, explained: cw.Explanation) -> None:
    best = explained.neurons.found[0]
    assert best.feature == "inside ( )"
    assert abs(best.confirmed) > 0.9
    assert best.confirmed == pytest.approx(best.correlation, abs=0.05)
    assert best.p_value <= 0.01
    assert best.untrained < 0.5
    assert np.sign(best.inside - best.outside) == np.sign(best.confirmed)
    # It is the first of those that the page has, and its track follows the brackets of the shown text.
    shown = explained.activations
    assert (shown.layers[0], shown.units[0]) == (best.layer, best.unit)
    [inside] = [f.values for f in features_of(explained.text) if f.name == "inside ( )"]
    assert abs(np.corrcoef(shown.values[0], inside)[0, 1]) > 0.9


@pytest.mark.parametrize("cell", ["gru", "igru", "lstm", "rnn"])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_network_has_none(cell: str, seed: int) -> None:
    """Its neurons do correlate with what was read last, strongly: they must not count."""
    vocabulary = cw.Vocabulary.from_text(HELD_OUT)
    model = cw.LanguageModel(ModelConfig(cell=cell, layers=2, units=16, embedding_size=8), len(vocabulary), seed=seed)
    found = search(model, vocabulary)
    assert found.found == ()
    assert max(tested.best for tested in found.tested) > 0.15


def test_features_of_another_text_have_none(bracket_run: cw.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = bracket_text(16_000, 3)
    monkeypatch.setattr(neurons, "features_of", lambda text: features_of(other[: len(text)]))
    model = cw.LanguageModel.from_arrays(bracket_run.model, bracket_run.weights())
    assert search(model, bracket_run.vocabulary).found == ()


def test_a_neuron_that_the_second_half_does_not_confirm_is_not_found(
    bracket_run: cw.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_in_the_first_half(text: str) -> list[Feature]:
        other = features_of(bracket_text(16_000, 3)[: len(text)])
        middle = len(text) // 2
        return [
            Feature(real.name, real.meaning, np.concatenate([real.values[:middle], wrong.values[middle:]]), False)
            for real, wrong in zip(features_of(text), other, strict=True)
        ]

    monkeypatch.setattr(neurons, "features_of", only_in_the_first_half)
    model = cw.LanguageModel.from_arrays(bracket_run.model, bracket_run.weights())
    found = search(model, bracket_run.vocabulary)
    assert found.found == ()
    assert max(tested.best for tested in found.tested) > 0.9


def random_walks(random: np.random.Generator, steps: int, count: int, memory: float = 0.9) -> np.ndarray:
    """Tracks whose values are alike for about ten steps."""
    tracks = np.zeros((steps, count))
    for step in range(1, steps):
        tracks[step] = memory * tracks[step - 1] + random.normal(size=count)
    return tracks.astype(np.float32)


def test_regularity_is_not_taken_for_a_connection() -> None:
    """Independent tracks that vary slowly correlate by chance far more than independent observations do."""
    random = np.random.Generator(np.random.Philox(4))
    offsets = neurons._offsets(4000, 99, 0)
    discoveries = naive = 0
    for _ in range(20):
        tracks, values = random_walks(random, 4000, 20), random_walks(random, 4000, 5)
        half = neurons._joined([neurons._correlated(torch.from_numpy(tracks), values, offsets)])
        discoveries += bool(half.p_values().min() <= 0.01)
        # What a test for independent observations would say, at the level 0.01 divided by 100 pairs (|z| > 3.9).
        naive += bool(np.abs(half.correlations).max() * np.sqrt(4000) > 3.9)
    assert naive == 20
    assert discoveries <= 1


def test_correlations_under_shifts_are_those_of_numpy() -> None:
    random = np.random.Generator(np.random.Philox(5))
    tracks, values = random.normal(size=(50, 3)).astype(np.float32), random.normal(size=(50, 2)).astype(np.float32)
    plain, shifted = neurons._correlated(torch.from_numpy(tracks), values, range(1, 40))
    for unit in range(3):
        for column in range(2):
            assert plain[unit, column] == pytest.approx(np.corrcoef(tracks[:, unit], values[:, column])[0, 1], abs=1e-5)
            for number, offset in enumerate(range(1, 40)):
                expected = np.corrcoef(tracks[:, unit], np.roll(values[:, column], offset))[0, 1]
                assert shifted[number, unit, column] == pytest.approx(expected, abs=1e-5)


def test_streams_give_the_activations_of_one_reading(bracket_run: cw.Run) -> None:
    network = Network(bracket_run.model, bracket_run.weights())
    text = HELD_OUT[:3500]
    ids = torch.from_numpy(bracket_run.vocabulary.encode(text).astype(np.int64))
    whole = network.read(ids[:, None])[0].activations[:, 0]
    [streamed] = neurons._activations(network, bracket_run.vocabulary, text)
    assert streamed.shape == (3500, 16)
    # A stream begins 100 characters early; what it misses has been forgotten by most neurons.
    assert float((streamed - whole).abs().mean()) < 0.01
    assert torch.allclose(streamed[:1000], whole[:1000], atol=1e-5)


def test_a_short_text_is_not_searched(bracket_run: cw.Run) -> None:
    model = cw.LanguageModel.from_arrays(bracket_run.model, bracket_run.weights())
    found = search(model, bracket_run.vocabulary, HELD_OUT[:1900])
    assert found.found == ()
    assert {tested.reason for tested in found.tested} == {"the text has fewer than 2000 characters"}


def test_the_search_is_reproducible(bracket_run: cw.Run) -> None:
    model = cw.LanguageModel.from_arrays(bracket_run.model, bracket_run.weights())
    first, second = (search(model, bracket_run.vocabulary, HELD_OUT[:6000]) for _ in range(2))
    assert repr(first) == repr(second)

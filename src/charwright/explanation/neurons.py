"""Find the neurons that follow a feature of the text, among thousands that do not.

A pair of a neuron and a feature is found if it passes three tests:

1. On the first half of the text its correlation is larger than chance explains. Neighbouring characters are alike, so
   N characters are far fewer than N observations: the null distribution comes from shifting the feature along the text,
   in a circle, which keeps all that is alike within the neurons and within the feature, and breaks only what ties them
   together. Each correlation is divided by its spread over the shifts, and compared with the largest such value of
   *all* pairs under each shift (the max-statistic of Westfall & Young, 1993). The probability of a single false
   discovery among all pairs, however they depend on each other, is then about the level; it is larger for features
   that change so slowly that the half has few of their turns.
2. The second half, which had no part in the choice, confirms it: the same sign, and again beyond the largest value of
   all pairs that passed the first test.
3. Untrained networks of the same shape do not have it. A random network echoes the last characters, so many of its
   neurons do correlate with `digit` or `after a newline`; that is not learned. The correlation of the second half has
   to be larger than the largest of all neurons of yet another untrained network would be: beyond the mean of these
   maxima over ten networks by six standard deviations, after Fisher's transformation. On either half it also has to
   be 0.2 or more: what explains less than 4 % of a neuron's variance does not say what the neuron is for.

T is the number of characters, U of neurons, F of features, S of shifts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.config import ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.explanation.features import Feature, features_of
from charwright.explanation.inside import Network
from charwright.explanation.results import FEWEST_CHARACTERS, Neuron, NeuronSearch, Tested
from charwright.explanation.surprise import last_steps
from charwright.model.language_model import LanguageModel
from charwright.schema import SEEDS
from charwright.webpage.sentence import Sentence

MOST_CHARACTERS = 40_000
MOST_VALUES = 40_000_000
"""Activations of one layer that are held at once, at most."""
SHIFTS = 199
LEVEL = 0.01
UNTRAINED = 10
"""Untrained networks to compare with."""
ECHO = 10_000
"""Characters that they read, at most."""
BEYOND = 6
"""Standard deviations of their maxima. Student's t of 9 degrees of freedom exceeds 6 / sqrt(1 + 1/10) with a
probability of 0.00014: 0.004 for 30 features."""
WEAKEST = 0.2
STREAM = 1000
TOGETHER = 16
"""Shifts of one product."""
WARM_UP = 100
"""Characters that a stream reads before the first that counts."""

Floats = npt.NDArray[np.floating]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Half:
    """Correlations (U, F) on one half of the text, and their values under each shift, divided by their spread."""

    correlations: Matrix
    scores: Matrix  # (U, F): correlation / spread over the shifts
    largest: Matrix  # (S,): the largest |score| of the considered pairs under each shift

    def p_values(self) -> Matrix:
        """The probability (U, F) that the largest of all scores is as large by chance."""
        at_least = (self.largest[:, None, None] >= np.abs(self.scores)).sum(axis=0)
        values: Matrix = (at_least + 1) / (len(self.largest) + 1)
        return values


def search_neurons(
    config: ModelConfig,
    network: Network,
    vocabulary: Vocabulary,
    text: str,
    source: str,
    *,
    embedding_range: float,
    seed: int = 0,
    level: float = LEVEL,
    shifts: int = SHIFTS,
    progress: Callable[[str], None] = lambda _: None,
) -> NeuronSearch:
    """Search all neurons for those that follow a feature of `text`, which the network has not been trained on.

    Args:
        config: the network's.
        network: whose neurons are searched.
        vocabulary: the network's.
        text: its first 40,000 characters are read, fewer for a very wide network.
        source: what the text is, for the reader.
        embedding_range: that of the initial weights, for the untrained networks.
        seed: of the shifts and of the untrained networks.
        level: the probability of a false discovery in each of the tests.
        shifts: at least 2 / level - 1, so that a p-value can be small enough.
        progress: called with a line before each long part.
    """
    text = text[: max(FEWEST_CHARACTERS, min(MOST_CHARACTERS, MOST_VALUES // config.units))]
    features = features_of(text)
    middle = len(text) // 2
    halves = [(0, middle), (middle, len(text))]
    reasons = {
        feature.name: next((why for half in halves if (why := feature.part(*half).too_rare())), "")
        for feature in features
    }
    if len(text) < FEWEST_CHARACTERS:
        few = Sentence("the text has fewer than {least} characters", least=FEWEST_CHARACTERS)
        reasons = {feature.name: few for feature in features}
    usable = [feature for feature in features if not reasons[feature.name]]
    total = config.units * config.layers
    if not usable:
        tested = tuple(Tested(f.name, f.meaning, 0.0, 0.0, 0, reasons[f.name]) for f in features)
        return NeuronSearch((), tested, source, len(text), total, level)

    values = np.stack([feature.values for feature in usable], axis=1)
    offsets = _offsets(middle, shifts, seed)
    progress("correlating neurons with features")
    first, second, inside_and_outside = [], [], []
    for layer in _activations(network, vocabulary, text):
        first.append(_correlated(layer[:middle], values[:middle], offsets))
        second.append(_correlated(layer[middle:], values[middle:], offsets))
        inside_and_outside.append(_means(layer, values))
    progress("comparing with untrained networks")
    echoes = _echoes(config, vocabulary, text, values, middle, embedding_range, seed)
    chosen = _joined(first)
    p_first = chosen.p_values()
    candidates = p_first <= level
    confirmed = _joined(second, candidates)
    same_sign = np.sign(chosen.correlations) == np.sign(confirmed.correlations)
    strength = np.abs(confirmed.correlations)
    weaker = np.minimum(np.abs(chosen.correlations), strength)
    learned = (_fisher(strength) > _bound(echoes)) & (weaker >= WEAKEST)
    passed = candidates & same_sign & (confirmed.p_values() <= level) & learned
    means = np.concatenate(inside_and_outside, axis=1)
    found = tuple(
        Neuron(
            layer=row // config.units + 1,
            unit=row % config.units + 1,
            feature=usable[column].name,
            correlation=float(chosen.correlations[row, column]),
            confirmed=float(confirmed.correlations[row, column]),
            p_value=float(p_first[row, column]),
            untrained=float(echoes[:, column].max()),
            inside=float(means[0, row, column]) if usable[column].is_binary else float("nan"),
            outside=float(means[1, row, column]) if usable[column].is_binary else float("nan"),
        )
        for row, column in np.argwhere(passed).tolist()
    )
    return NeuronSearch(
        tuple(sorted(found, key=lambda neuron: -abs(neuron.confirmed))),
        _tested(features, usable, reasons, chosen.correlations, echoes, passed),
        source,
        len(text),
        total,
        level,
    )


def _tested(
    features: Sequence[Feature],
    usable: Sequence[Feature],
    reasons: dict[str, str],
    correlations: Matrix,
    echoes: Matrix,
    passed: npt.NDArray[np.bool_],
) -> tuple[Tested, ...]:
    columns = {feature.name: column for column, feature in enumerate(usable)}
    rows = []
    for feature in features:
        column = columns.get(feature.name)
        if column is None:
            rows.append(Tested(feature.name, feature.meaning, 0.0, 0.0, 0, reasons[feature.name]))
            continue
        best, echo = (float(np.abs(matrix[:, column]).max()) for matrix in (correlations, echoes))
        rows.append(Tested(feature.name, feature.meaning, best, echo, int(passed[:, column].sum())))
    return tuple(rows)


# Reading.


def _activations(network: Network, vocabulary: Vocabulary, text: str) -> Iterator[Tensor]:
    """The activations (T, H) of each layer after each character.

    The text is read in streams of about 1,000 characters, which is fast. Each begins 100 characters early, so that its
    state is not that of a beginning.
    """
    streams = max(1, len(text) // STREAM)
    edges = [len(text) * i // streams for i in range(streams + 1)]
    pieces = [text[max(0, begin - WARM_UP) : end] for begin, end in pairwise(edges)]
    longest = max(len(vocabulary.encode(piece)) for piece in pieces)
    ids = torch.zeros(longest, streams, dtype=torch.int64)
    rows, columns = [], []
    for column, (piece, (begin, end)) in enumerate(zip(pieces, pairwise(edges), strict=True)):
        encoded = vocabulary.encode(piece)
        ids[: len(encoded), column] = torch.from_numpy(encoded.astype(np.int64))
        rows.append(torch.from_numpy(last_steps(piece, vocabulary)[-(end - begin) :]))
        columns.append(torch.full((end - begin,), column))
    picked = torch.cat(rows), torch.cat(columns)
    for layer in network.read(ids, gates=False):
        yield layer.activations[picked]


def _echoes(
    config: ModelConfig,
    vocabulary: Vocabulary,
    text: str,
    values: Floats,
    middle: int,
    embedding_range: float,
    seed: int,
) -> Matrix:
    """The largest |r| (10, F) of all neurons of each of ten untrained networks, on the beginning of the second half."""
    part = slice(middle, middle + ECHO)
    standard = _standardized(torch.from_numpy(np.ascontiguousarray(values[part])))
    config = dataclasses.replace(config, ngram_bits=0)  # N-grams change no neuron.
    rows = []
    for number in range(UNTRAINED):
        # Seeds that no run is likely to have been trained with.
        own = (2**31 + seed * UNTRAINED + number) % SEEDS
        model = LanguageModel(config, len(vocabulary), seed=own, embedding_range=embedding_range)
        layers = _activations(Network(config, model.arrays()), vocabulary, text[part])
        largest = [(_standardized(layer).T @ standard).abs().amax(dim=0).numpy() for layer in layers]
        rows.append(np.max(largest, axis=0))
    return np.array(rows, dtype=np.float64)


# Statistics.


def _offsets(length: int, shifts: int, seed: int) -> list[int]:
    """Distances to shift a feature by, none of which is short: 5 % of the text at least, in either direction."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 1], dtype=np.uint64)))
    margin = max(1, length // 20)
    offsets: list[int] = random.integers(margin, length - margin, size=shifts).tolist()
    return offsets


def _standardized(values: Tensor) -> Tensor:
    """Columns with mean 0 and length 1, so that products of two are correlations; 0 for a constant."""
    centred = values - values.mean(dim=0)
    lengths = centred.norm(dim=0)
    return centred / torch.where(lengths > 1e-6, lengths, torch.inf)


def _correlated(activations: Tensor, values: Floats, offsets: Sequence[int]) -> tuple[Matrix, Matrix]:
    """The correlations (U, F) of neurons (T, U) with features (T, F), and those under each shift (S, U, F)."""
    neurons = _standardized(activations)
    features = _standardized(torch.from_numpy(np.ascontiguousarray(values)))
    shifted = []
    for begin in range(0, len(offsets), TOGETHER):
        # One wide product reads the neurons once for several shifts.
        part = [torch.roll(features, offset, dims=0) for offset in offsets[begin : begin + TOGETHER]]
        products = (neurons.T @ torch.cat(part, dim=1)).numpy()
        shifted.append(products.reshape(len(products), len(part), -1).swapaxes(0, 1))
    return (neurons.T @ features).numpy().astype(np.float64), np.concatenate(shifted)


def _joined(layers: Sequence[tuple[Matrix, Matrix]], considered: npt.NDArray[np.bool_] | None = None) -> _Half:
    """All layers of one half; only the `considered` pairs (U, F) enter into the largest scores."""
    correlations = np.concatenate([found for found, _ in layers])
    shifted = np.concatenate([under for _, under in layers], axis=1)
    # The text as it is counts as one of the shifts: if nothing ties the two together, it is like the others. A spread
    # of zero belongs to a neuron that never changes, whose correlations are all zero.
    squares = (shifted**2).sum(axis=0) + correlations**2
    spread = np.maximum(np.sqrt(squares / (len(shifted) + 1)), 1e-12)
    scores = np.abs(shifted / spread)
    if considered is not None:
        scores = scores * considered
    return _Half(correlations, correlations / spread, scores.max(axis=(1, 2)).astype(np.float64))


def _bound(echoes: Matrix) -> Matrix:
    """Fisher's z (F,) of the correlation that the neurons of an untrained network do not reach."""
    maxima = _fisher(echoes)
    bound: Matrix = maxima.mean(axis=0) + BEYOND * maxima.std(axis=0, ddof=1)
    return bound


def _fisher(correlations: Matrix) -> Matrix:
    return np.arctanh(np.clip(correlations, -0.999999, 0.999999))


def _means(activations: Tensor, values: Floats) -> Matrix:
    """The mean activations (2, U, F) where each feature is not zero, and where it is."""
    held = torch.from_numpy((values != 0).astype(np.float32))
    inside, everything = activations.T @ held, activations.sum(dim=0)[:, None]
    counts = held.sum(dim=0)
    # A number may never be zero; its means are not shown.
    outside = (everything - inside) / (len(values) - counts).clamp(min=1)
    return torch.stack([inside / counts.clamp(min=1), outside]).numpy().astype(np.float64)

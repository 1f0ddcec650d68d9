"""What an explanation consists of: plain values, typed, without the network.

N is the number of characters of the shown text, P the number of neurons, V the vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.webpage.sentence import Sentence

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

FEWEST_CHARACTERS = 2000
"""Of a text in which neurons are searched."""

Choices = tuple[tuple[str, float], ...]
"""The most likely characters at one position with the probability of each, the likeliest first."""


@dataclass(frozen=True)
class Surprise:
    """The surprise of each character in bits, and what the model would have written instead.

    The first character is predicted from nothing: its surprise is NaN, and it has no choices.
    """

    bits: Float64s  # (N,)
    choices: tuple[Choices, ...]  # N

    @property
    def bits_per_char(self) -> float:
        """The mean over the characters that are predicted."""
        return float(np.nanmean(self.bits))


@dataclass(frozen=True)
class Neuron:
    """A neuron that follows a feature of the text.

    `correlation` is Pearson's r on the first half of the held-out text, `confirmed` that on the second half.
    `p_value` is that of the first half, corrected for all neurons and features. `untrained` is the largest |r| of any
    neuron of untrained networks of this shape. `inside` and `outside` are the mean activations where a yes-or-no
    feature holds and where it does not; NaN for a feature that is a number.
    """

    layer: int  # from 1
    unit: int  # from 1
    feature: str
    correlation: float
    confirmed: float
    p_value: float
    untrained: float
    inside: float
    outside: float


@dataclass(frozen=True)
class Tested:
    """A feature that was tested: its best neuron, found or not, and how many were found."""

    feature: str
    meaning: str
    best: float  # the largest |r| on the first half
    untrained: float
    found: int
    reason: str = ""  # why it was not tested


@dataclass(frozen=True)
class NeuronSearch:
    """The neurons that follow a feature, the strongest first, and how they were found."""

    found: tuple[Neuron, ...]
    tested: tuple[Tested, ...]
    text: str  # which text was searched
    characters: int
    neurons: int
    level: float  # the probability of a false discovery, corrected for all neurons and features

    @property
    def unsearched(self) -> str:
        """Why the neurons were not searched, as a sentence; empty if they were."""
        if not all(tested.reason for tested in self.tested):
            return ""
        if self.characters < FEWEST_CHARACTERS:
            number = f"{self.characters:,}"
            counted = (
                Sentence("1 character") if self.characters == 1 else Sentence("{number} characters", number=number)
            )
            return Sentence(
                "The neurons were not searched: the text has {counted}, and {least} are needed; name a longer text "
                "after the run.",
                counted=counted,
                least=f"{FEWEST_CHARACTERS:,}",
            )
        return "The neurons were not searched: every feature is too rare in the text."


@dataclass(frozen=True)
class Activations:
    """The activations of neurons along the shown text, in [-1, 1]: h of a GRU or RNN, tanh(c) of an LSTM."""

    layers: tuple[int, ...]  # P, from 1
    units: tuple[int, ...]  # P, from 1
    values: Float32s  # (P, N): after each character
    total: int  # neurons of the network


@dataclass(frozen=True)
class Memory:
    """How much the character k back matters: the mean divergence in bits of the prediction when it is another one."""

    lags: tuple[int, ...]  # k, from 1
    bits: Float64s  # as many
    errors: Float64s  # standard errors of the means
    positions: int
    unit: str  # character or byte

    @property
    def half(self) -> int | None:
        """The first lag after the largest effect with at most half of it; None if there is more up to the last lag."""
        top = int(self.bits.argmax())
        below = np.flatnonzero(self.bits[top:] <= self.bits[top] / 2)
        return self.lags[top + below[0]] if below.size else None

    @property
    def reach(self) -> int | None:
        """The last lag up to which the effect stays above a hundredth of a bit; None if it does up to the last."""
        below = np.flatnonzero(self.bits < 0.01)
        return None if not below.size else (self.lags[below[0] - 1] if below[0] else 0)

    def in_words(self, lag: int | None) -> str:
        """`half` or `reach` with its unit: `1 character`, `12 bytes`, `more than 256 characters`."""
        if lag == 1:
            return Sentence(f"1 {self.unit}")
        counted = Sentence(f"{{number}} {self.unit}s", number=self.lags[-1] if lag is None else lag)
        return Sentence("more than {counted}", counted=counted) if lag is None else counted


@dataclass(frozen=True)
class EmbeddingMap:
    """The embeddings of the most frequent tokens in two dimensions, and the neighbours of each among all tokens."""

    tokens: tuple[str, ...]
    points: Float64s  # (tokens, 2): the first two principal components
    explained: tuple[float, float]  # the fraction of the variance along each
    neighbours: tuple[tuple[str, ...], ...]  # by cosine, the closest first


@dataclass(frozen=True)
class Gate:
    """A gate of one layer, averaged over its units and the shown text."""

    layer: int
    name: str
    meaning: str
    mean: float
    closed: float  # the fraction of values below 0.1
    open: float  # the fraction of values above 0.9


@dataclass(frozen=True)
class Temperatures:
    """What the temperature does to the prediction of one character of the shown text."""

    position: int
    before: str  # the text before it
    tokens: tuple[str, ...]  # the likeliest, and the rest together
    temperatures: tuple[float, ...]
    shares: Float64s  # (temperatures, tokens + 1): the last column is the rest
    choices: tuple[float, ...]  # e to the entropy: how many equally likely characters are as uncertain


@dataclass(frozen=True)
class Findings:
    """Everything that was found about a network by letting it read a text."""

    name: str
    network: str
    text: str  # the shown text, N characters
    source: str  # what the shown text is
    unknown: tuple[int, ...]  # positions of characters outside the vocabulary
    level: str  # of the vocabulary: character or byte
    surprise: Surprise
    neurons: NeuronSearch
    activations: Activations
    memory: Memory
    embedding: EmbeddingMap
    gates: tuple[Gate, ...]  # empty for a plain recurrent network
    temperatures: Temperatures
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, without the activations."""
        bits = [None if np.isnan(value) else round(float(value), 4) for value in self.surprise.bits]
        return {
            "name": self.name,
            "network": self.network,
            "source": self.source,
            "notes": list(self.notes),
            "bits_per_char": self.surprise.bits_per_char,
            "unknown_chars": len(self.unknown),
            "characters": [
                {"character": character, "bits": cost, "choices": [[token, round(p, 6)] for token, p in choices]}
                for character, cost, choices in zip(self.text, bits, self.surprise.choices, strict=True)
            ],
            "neurons": [_without_nan(vars(neuron)) for neuron in self.neurons.found],
            "features": [_without_nan(vars(tested)) for tested in self.neurons.tested],
            "searched": {
                "text": self.neurons.text,
                "characters": self.neurons.characters,
                "neurons": self.neurons.neurons,
                "level": self.neurons.level,
            },
            "memory": {
                "unit": self.memory.unit,
                "positions": self.memory.positions,
                "lags": list(self.memory.lags),
                "bits": self.memory.bits.tolist(),
                "standard_errors": self.memory.errors.tolist(),
                "half": self.memory.half,
                "reach": self.memory.reach,
            },
            "embedding": {
                "tokens": list(self.embedding.tokens),
                "points": self.embedding.points.tolist(),
                "explained": list(self.embedding.explained),
                "neighbours": [list(row) for row in self.embedding.neighbours],
            },
            "gates": [vars(gate) for gate in self.gates],
            "temperatures": {
                "position": self.temperatures.position,
                "before": self.temperatures.before,
                "tokens": list(self.temperatures.tokens),
                "temperatures": list(self.temperatures.temperatures),
                "shares": self.temperatures.shares.tolist(),
                "choices": list(self.temperatures.choices),
            },
        }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}

"""How far back a network remembers: replace one character, and see for how long its predictions differ.

At some positions of the text, spread evenly, the character is replaced by another one of the text, and the network
reads on. k characters later its prediction is compared with the one that it makes without the replacement; the
difference is the Kullback-Leibler divergence in bits, averaged over the positions. One reading gives all k at once.

Ablation rather than the gradient of the loss with respect to the embedding (Madsen, 2019, "Visualizing memorization in
RNNs"): a divergence is in bits and holds for the actual change of a character, so that networks can be compared; the
size of a gradient depends on the scale of the embedding, and is zero where a gate is saturated, which is how a gated
network remembers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from charwright.explanation.inside import Layer, Network
from charwright.explanation.results import Memory
from charwright.model.votes import contexts_of

POSITIONS = 256
MOST_LAGS = 256
STEPS = 32
"""Steps of one reading, whose logits are compared together."""


def memory_of(network: Network, layers: list[Layer], ids: Tensor, *, unit: str, seed: int = 0) -> Memory:
    """The effect of replacing a character, for every lag k up to 256 or a quarter of the text.

    Args:
        network: the network.
        layers: what its reading left in each layer.
        ids: (T,) int64, the text that was read.
        unit: character or byte, whatever an id is.
        seed: of the characters that replace others.
    """
    lags = min(MOST_LAGS, len(ids) // 4)
    places = np.unique(np.linspace(1, len(ids) - lags, POSITIONS).round().astype(np.int64)) if lags else np.zeros(0)
    if len(places) < 2 or len(torch.unique(ids)) < 2:
        return Memory((1,), np.zeros(1), np.zeros(1), 0, unit)
    where = torch.from_numpy(places)
    states = [layer.state_after(where - 1) for layer in layers]
    read = ids[where[None, :] + torch.arange(lags)[:, None]]  # (lags, P)
    read[0] = _others(ids, where, seed)
    contexts = contexts_of(ids[:, None], network.config.ngram_order)[:, 0]  # (T, order)
    changed_contexts = contexts_of(read, network.config.ngram_order, contexts[where - 1])  # (lags, P, order)
    hidden, effects = layers[-1].hidden[:, 0], []
    rows = max(1, min(STEPS, network.rows_at_once() // len(where)))
    for begin in range(0, lags, rows):
        part = read[begin : begin + rows]
        inside = network.read(part, states, gates=False)
        states = [_last(layer) for layer in inside]
        changed = network.log_probabilities(
            inside[-1].hidden.flatten(0, 1), changed_contexts[begin : begin + len(part)].flatten(0, 1)
        )
        steps = (where[None, :] + torch.arange(begin, begin + len(part))[:, None]).flatten()
        usual = network.log_probabilities(hidden[steps], contexts[steps])
        divergence = (usual.exp() * (usual - changed)).sum(dim=1)
        effects.append(divergence.clamp(min=0).view(len(part), -1).double())
    bits = torch.cat(effects).numpy() / math.log(2)
    errors = bits.std(axis=1, ddof=1) / math.sqrt(bits.shape[1])
    return Memory(tuple(range(1, lags + 1)), bits.mean(axis=1), errors, len(places), unit)


def _others(ids: Tensor, where: Tensor, seed: int) -> Tensor:
    """For each position another id than its own, as frequent ones as in the text."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 2], dtype=np.uint64)))
    text = ids.numpy()
    others = []
    for own in text[where.numpy()]:
        drawn = text[random.integers(len(text), size=64)]
        different = drawn[drawn != own]
        others.append(int(different[0]) if len(different) else int(text[text != own][0]))
    return torch.tensor(others)


def _last(layer: Layer) -> tuple[Tensor, ...]:
    return (layer.hidden[-1],) if layer.cell is None else (layer.hidden[-1], layer.cell[-1])

"""The parts of an explanation that need no search: the map of the embedding, the gates, the temperatures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.explanation.inside import Layer, Network
from charwright.explanation.results import EmbeddingMap, Gate, Temperatures
from charwright.model.votes import contexts_of

MOST_TOKENS = 200
NEIGHBOURS = 5
TEMPERATURES = (0.2, 0.5, 0.8, 1.0, 1.5, 2.0)
SHOWN_TOKENS = 6
BEFORE = 60
MEANINGS = {
    "reset": "how much of the state enters into the new candidate",
    "update": "how much of the state is kept",
    "input": "how much of the new candidate is written into the cell",
    "forget": "how much of the cell is kept",
    "output": "how much of the cell is let through",
}
INPUT_RESET = f"{MEANINGS['reset']}, as the input alone decides"
"""The reset gate of an input-reset GRU: of its first layer, each character has one."""


def embedding_map(network: Network, vocabulary: Vocabulary, ids: Tensor) -> EmbeddingMap:
    """The embeddings of the 200 tokens that are most frequent in `ids`, projected on their principal components.

    The components are those of all tokens of the text, by a singular value decomposition; neighbours are by cosine.
    Their signs are such that the largest coordinate along each is positive.
    """
    counts = Counter(ids.tolist())
    del counts[UNKNOWN_ID]
    frequent = [i for i, _ in counts.most_common(MOST_TOKENS)]
    names = tuple(token_name(vocabulary, i) for i in frequent)
    if len(frequent) < 3:
        return EmbeddingMap(names, np.zeros((len(names), 2)), (0.0, 0.0), ((),) * len(names))
    rows = network.embedding[torch.tensor(frequent)].double().numpy()
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(rows), 2))
    wide = min(2, len(sizes))
    points[:, :wide] = left[:, :wide] * sizes[:wide]
    points *= np.where(points[np.abs(points).argmax(axis=0), range(2)] < 0, -1, 1)
    shares = [*(sizes**2 / max(float((sizes**2).sum()), 1e-300)), 0.0][:2]
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines = (rows / lengths) @ (rows / lengths).T
    np.fill_diagonal(cosines, -np.inf)
    closest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]
    neighbours = tuple(tuple(names[i] for i in row) for row in closest.tolist())
    return EmbeddingMap(names, points, (float(shares[0]), float(shares[1])), neighbours)


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """A token as it is shown: a character, or a byte as the ASCII character that it is or in hexadecimal."""
    if vocabulary.level == "byte" and 0x20 <= token - 1 < 0x7F:
        return chr(token - 1)
    if vocabulary.level == "byte" and token - 1 in (9, 10):
        return chr(token - 1)
    return vocabulary.tokens[token]


def gates_of(layers: list[Layer], cell: str) -> tuple[Gate, ...]:
    """The averages of each gate, over all units and steps; none for a plain recurrent network."""
    meanings = MEANINGS | ({"reset": INPUT_RESET} if cell == "igru" else {})
    return tuple(
        Gate(
            number,
            name,
            meanings[name],
            float(values.mean()),
            float((values < 0.1).float().mean()),
            float((values > 0.9).float().mean()),
        )
        for number, layer in enumerate(layers, 1)
        for name, values in layer.gates.items()
    )


def temperatures_of(
    network: Network, layers: list[Layer], vocabulary: Vocabulary, text: str, ids: Tensor
) -> Temperatures:
    """What several temperatures do to one prediction: the one whose entropy is closest to 2 bits.

    [UNK] is left out, because it is never written. For a vocabulary of bytes, tokens are bytes.
    """
    contexts = contexts_of(ids[:, None], network.config.ngram_order)[:, 0]
    step = _undecided(network, layers, contexts)
    logits = network.log_probabilities(layers[-1].hidden[step], contexts[step][None])[0, 1:].double()
    best = logits.argsort(descending=True, stable=True)[: min(SHOWN_TOKENS, len(logits))]
    rows, choices = [], []
    for temperature in TEMPERATURES:
        shares = torch.softmax(logits / temperature, dim=0)
        rows.append([*shares[best].tolist(), max(0.0, 1 - float(shares[best].sum()))])
        choices.append(float(torch.special.entr(shares).sum().exp()))
    before = vocabulary.decode(ids[: step + 1].numpy()) if vocabulary.level == "byte" else text[: step + 1]
    tokens = tuple(token_name(vocabulary, i + 1) for i in best.tolist())
    return Temperatures(step + 1, before[-BEFORE:], tokens, TEMPERATURES, np.array(rows), tuple(choices))


def _undecided(network: Network, layers: list[Layer], contexts: Tensor) -> int:
    """The step whose prediction has the entropy closest to 2 bits; the first ones are too close to the beginning."""
    hidden = layers[-1].hidden[:, 0]
    first = min(50, len(hidden) // 2)
    closest, found = float("inf"), first
    for begin in range(first, len(hidden), network.rows_at_once()):
        rows = slice(begin, begin + network.rows_at_once())
        part = network.log_probabilities(hidden[rows], contexts[rows])
        entropies = torch.special.entr(part.exp()).sum(dim=1) / np.log(2)
        distances = (entropies - 2).abs()
        at = int(distances.argmin())
        if float(distances[at]) < closest:
            closest, found = float(distances[at]), begin + at
    return found

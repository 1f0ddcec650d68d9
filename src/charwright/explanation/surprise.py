"""The surprise of each character, and what the model would have written instead.

For a vocabulary of bytes a character is several tokens: its surprise is the sum over its bytes, and the likeliest
characters are found by a beam search over bytes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright.data.code_points import utf8_sizes
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.explanation.inside import Layer, Network
from charwright.explanation.results import Choices, Surprise
from charwright.model.votes import contexts_of

CHOICES = 5
BEAMS = 8
"""Prefixes of characters that are followed at each position of a text of bytes."""

Steps = npt.NDArray[np.int64]


def last_steps(text: str, vocabulary: Vocabulary) -> Steps:
    """The step (N,) at which each character of a text has been read: its own index, or that of its last byte."""
    if vocabulary.level != "byte":
        return np.arange(len(text))
    steps: Steps = np.cumsum(utf8_sizes(text)) - 1
    return steps


def surprise_of(text: str, vocabulary: Vocabulary, network: Network, layers: list[Layer], ids: Tensor) -> Surprise:
    """The surprise of a text, given what its reading left in each layer; ids: (T,) int64."""
    last = last_steps(text, vocabulary)
    hidden, contexts = layers[-1].hidden[:, 0], contexts_of(ids[:, None], network.config.ngram_order)[:, 0]
    nats = np.full(len(ids), np.nan)
    picked: list[Choices] = [()]
    for begin in range(0, len(ids) - 1, network.rows_at_once()):
        rows = slice(begin, min(begin + network.rows_at_once(), len(ids) - 1))
        part = network.log_probabilities(hidden[rows], contexts[rows])
        after = ids[begin + 1 : begin + 1 + len(part)]
        nats[begin + 1 : begin + 1 + len(part)] = -part.gather(1, after[:, None])[:, 0].numpy()
        if vocabulary.level != "byte":
            picked += _likeliest(part, vocabulary)
    nats += np.where(ids.numpy() == UNKNOWN_ID, vocabulary.unknown_nats, 0.0)
    if vocabulary.level == "byte":
        picked += _beamed(network, layers, contexts, torch.from_numpy(last[:-1]))
        first = np.concatenate([[0], last[:-1] + 1])
        nats = np.add.reduceat(nats, first)
    return Surprise(nats / math.log(2), tuple(picked))


def _likeliest(log_probabilities: Tensor, vocabulary: Vocabulary) -> list[Choices]:
    """The likeliest characters of each row; [UNK] is none, because it is never written."""
    count = min(CHOICES, len(vocabulary) - 1)
    best, ids = log_probabilities[:, 1:].topk(count, dim=1)
    rows = zip(ids.tolist(), best.exp().tolist(), strict=True)
    return [tuple((vocabulary.tokens[i + 1], p) for i, p in zip(*row, strict=True)) for row in rows]


# Bytes.


def _beamed(network: Network, layers: list[Layer], contexts: Tensor, steps: Tensor) -> list[Choices]:
    """The likeliest characters after each of some steps (N,), by a beam search over their bytes.

    The search is not exhaustive: a character whose first byte is not among the 8 likeliest is not found.
    """
    found: list[list[tuple[float, bytes]]] = [[] for _ in steps]
    states, contexts = [layer.state_after(steps) for layer in layers], contexts[steps]
    owners = torch.arange(len(steps))
    prefixes = [(0.0, b"")] * len(steps)
    for _ in range(4):
        grown = _grown(network, states[-1][0], contexts, owners.tolist(), prefixes)
        rows, taken, prefixes = [], [], []
        for owner, candidates in grown.items():
            best = sorted([*((*item, -1) for item in found[owner]), *candidates], reverse=True)[:BEAMS]
            found[owner] = [(score, data) for score, data, _ in best if _missing(data) == 0]
            for score, data, row in best:
                if _missing(data):
                    rows.append(row)
                    taken.append(owner)
                    prefixes.append((score, data))
        if not rows:
            break
        last = torch.tensor([data[-1] + 1 for _, data in prefixes])
        picked = torch.tensor(rows)
        states = network.step(last, [tuple(part[picked] for part in state) for state in states])
        contexts = contexts_of(last[None], network.config.ngram_order, contexts[picked])[0]
        owners = torch.tensor(taken)
    return [_characters(candidates) for candidates in found]


def _grown(
    network: Network, hidden: Tensor, contexts: Tensor, owners: list[int], prefixes: list[tuple[float, bytes]]
) -> dict[int, list[tuple[float, bytes, int]]]:
    """For each position: its prefixes with one more byte, the score of each and the row that it continues."""
    grown: dict[int, list[tuple[float, bytes, int]]] = {}
    for begin in range(0, len(owners), network.rows_at_once()):
        taken = slice(begin, begin + network.rows_at_once())
        part = network.log_probabilities(hidden[taken], contexts[taken])[:, 1:]
        rows = range(begin, begin + len(part))
        first = torch.tensor([not prefixes[row][1] for row in rows])
        allowed = torch.zeros(2, 256, dtype=torch.bool)
        allowed[0, 0x80:0xC0] = True  # bytes that continue a character
        allowed[1, :0x80] = allowed[1, 0xC2:0xF5] = True  # bytes that begin one
        scores, data = part.masked_fill(~allowed[first.long()], -math.inf).topk(BEAMS, dim=1)
        for row, more, values in zip(rows, scores.tolist(), data.tolist(), strict=True):
            score, prefix = prefixes[row]
            grown.setdefault(owners[row], []).extend(
                (score + s, prefix + bytes([value]), row) for s, value in zip(more, values, strict=True)
            )
    return grown


def _missing(data: bytes) -> int:
    """How many bytes a prefix of one character lacks."""
    lead = data[0]
    return (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) - len(data)


def _characters(candidates: list[tuple[float, bytes]]) -> Choices:
    shown = []
    for score, data in sorted(candidates, reverse=True):
        try:
            shown.append((data.decode("utf-8"), math.exp(score)))
        except UnicodeDecodeError:  # a surrogate, or too long a form
            continue
    return tuple(shown[:CHOICES])

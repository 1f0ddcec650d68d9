"""How well a model predicts a text: nats and bits per character, summed over characters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.data.vocabulary import UNICODE_SIZE, UNKNOWN_ID, Vocabulary
from charwright.errors import CorpusError, UsageError
from charwright.model.cells import State
from charwright.model.language_model import LanguageModel

MOST_STREAMS = 64
SHORTEST_STREAM = 1000
CHUNK = 128  # time steps evaluated at once, fewer where their logits would take more than 64 MB; changes no figure
MOST_LOGITS = 2**24


@dataclass(frozen=True)
class Evaluation:
    """The code length of a text under a model, per character, and how it was measured."""

    nats_per_char: float
    bits_per_char: float
    chars: int
    unknown_chars: int
    protocol: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def evaluate(model: LanguageModel, vocabulary: Vocabulary, text: str, protocol: str = "carried") -> Evaluation:
    """Measure the loss of `model` on `text`, with the arithmetic of its `precision`; see `measure`."""
    return measure(partial(_total_nats, model), vocabulary, text, protocol)


TotalNats = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], float]
"""The sum of -ln p over targets (T, B) that are not negative, given inputs (T, B), each column from a zero state."""


def measure(total_nats: TotalNats, vocabulary: Vocabulary, text: str, protocol: str = "carried") -> Evaluation:
    """Measure the loss on `text` of whatever predicts it: a model, or the engine (`Engine.total_nats`).

    Protocols: `carried` is one pass with the state carried, in at most 64 contiguous streams of 1,000 ids or more;
    `windows-N` takes the text's whole windows of N, each from a zero state.

    A character outside the vocabulary costs -ln p([UNK]) + ln(1,114,112 - V): naming which of all the others it was.

    Raises:
        UsageError: when the protocol is no protocol.
        CorpusError: when the text is too short for it.
    """
    ids = vocabulary.encode(text)
    if len(text) < 2:  # One character may be several bytes, but there is none after it.
        raise CorpusError("the text to evaluate on has fewer than two characters")
    inputs, targets = _carried(ids) if protocol == "carried" else _windows(ids, protocol)
    nats = total_nats(inputs, targets)
    counted = targets >= 0
    unknown = int((targets == UNKNOWN_ID).sum())
    nats += unknown * math.log(UNICODE_SIZE - len(vocabulary))
    # Bytes are fewer characters than ids; the share of the text that was predicted is the same.
    chars = round(int(counted.sum()) * (len(text) - 1) / (len(ids) - 1))
    return Evaluation(nats / chars, nats / chars / math.log(2), chars, unknown, protocol)


def parse_protocol(protocol: str) -> int | None:
    """The N of `windows-N`, or None for `carried`.

    Raises:
        UsageError: when it is neither.
    """
    if protocol == "carried":
        return None
    kind, _, number = protocol.partition("-")
    if kind != "windows" or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--protocol must be carried or windows-N (windows-256, say), not {protocol!r}")
    return int(number)


def _carried(ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets (T, B), streams as equal as can be; a target of -1 does not count."""
    predicted = len(ids) - 1
    streams = max(1, min(MOST_STREAMS, predicted // SHORTEST_STREAM))
    length = -(-predicted // streams)
    inputs = np.zeros((streams, length), dtype=np.int64)
    targets = np.full((streams, length), -1, dtype=np.int64)
    for row, (begin, end) in enumerate(pairwise(predicted * i // streams for i in range(streams + 1))):
        inputs[row, : end - begin] = ids[begin:end]
        targets[row, : end - begin] = ids[begin + 1 : end + 1]
    return inputs.T, targets.T


def _windows(ids: npt.NDArray[np.int32], protocol: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets (N, windows)."""
    length = parse_protocol(protocol) or 1
    count = (len(ids) - 1) // length
    if count < 1:
        raise CorpusError(f"the text has {len(ids):,} ids, too few for one window of {length}")
    inputs = ids[: count * length].reshape(count, length)
    targets = ids[1 : count * length + 1].reshape(count, length)
    return inputs.T.astype(np.int64), targets.T.astype(np.int64)


@torch.no_grad()
def _total_nats(model: LanguageModel, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> float:
    """The sum of -ln p over all targets that are not negative; columns 64 at a time, time in chunks."""
    device = model.weight("head.bias").device
    was_training = model.training
    model.eval()
    total = 0.0
    chunk = max(1, min(CHUNK, MOST_LOGITS // (MOST_STREAMS * model.vocabulary_size)))
    for column in range(0, inputs.shape[1], MOST_STREAMS):
        state: State | None = None
        for begin in range(0, len(inputs), chunk):
            piece = (slice(begin, begin + chunk), slice(column, column + MOST_STREAMS))
            x, y = _tensor(inputs[piece], device), _tensor(targets[piece], device)
            logits, state = model(x, state)
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
            total += float(losses.cpu().double().sum())
    model.train(was_training)
    return total


def _tensor(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)

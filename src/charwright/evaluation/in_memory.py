"""Evaluation of a text in memory: all of its ids are read at once."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.carried import stream_bounds
from charwright.data.code_points import utf8_sizes
from charwright.data.vocabulary import UNKNOWN_ID, Ids, Vocabulary
from charwright.errors import CorpusError
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.protocols import block_cuts, parse_protocol
from charwright.evaluation.readers import TargetNats


def evaluate_string(
    target_nats: TargetNats, vocabulary: Vocabulary, text: str, protocol: str = "carried"
) -> Evaluation:
    """The loss on `text` by a protocol of `evaluate`; `target_nats` is that of a `Reader`.

    Raises:
        UsageError: when there is no such protocol.
        CorpusError: when the text is too short for it.
    """
    ids = vocabulary.encode(text)
    if len(text) < 2:  # One character may be several bytes, but none follows it.
        raise CorpusError("the text to evaluate has fewer than two characters")
    inputs, targets = _carried(ids) if protocol == "carried" else _windows(ids, protocol)
    # In the order of the text: stream after stream, window after window.
    nats = target_nats(inputs, targets).T[targets.T >= 0]
    return evaluation_of(nats, ids, vocabulary, text, protocol)


def evaluation_of(
    nats: npt.NDArray[np.floating[Any]], ids: Ids, vocabulary: Vocabulary, text: str, protocol: str
) -> Evaluation:
    """The evaluation from -ln p (N,) of the N ids that follow the first of the ids of `text`."""
    unknown = ids[1 : len(nats) + 1] == UNKNOWN_ID
    exact = nats.astype(np.float64) + unknown * vocabulary.unknown_nats
    # A byte-level text has fewer characters than ids; the predicted fraction is the same.
    chars = round(len(exact) * (len(text) - 1) / (len(ids) - 1))
    mean = float(exact.sum()) / chars
    blocks = _blocks(exact, vocabulary, text[: chars + 1])
    return Evaluation(mean, mean / math.log(2), chars, int(unknown.sum()), protocol, blocks)


def _blocks(nats: npt.NDArray[np.float64], vocabulary: Vocabulary, text: str) -> tuple[float, ...]:
    """The nats per character of each block of the text, whose first character is not predicted.

    Blocks are cut at characters, so that byte-level and character-level models have the same ones. With 16 streams or
    more, `carried` streams are the blocks.
    """
    cuts = block_cuts(len(text) - 1)
    sizes = np.cumsum(utf8_sizes(text)) if vocabulary.level == "byte" else np.arange(1, len(text) + 1)
    ends = sizes[np.array(cuts[1:]) - 1] - 1  # The first id is not predicted.
    ends[-1] = len(nats)
    sums = np.diff(np.concatenate([[0.0], np.cumsum(nats)[np.minimum(ends, len(nats)) - 1]]))
    lengths = np.diff(cuts)
    lengths[0] -= 1
    return tuple((sums / lengths).tolist())


def _carried(ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets (T, B) in streams of nearly equal length; a target of -1 is ignored."""
    bounds = stream_bounds(len(ids) - 1)
    streams, length = len(bounds) - 1, max(np.diff(bounds))
    inputs = np.zeros((streams, length), dtype=np.int64)
    targets = np.full((streams, length), -1, dtype=np.int64)
    for row, (begin, end) in enumerate(pairwise(bounds)):
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

"""Evaluation of a text on disk: read in pieces and summed on the way, so that its size does not matter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.data.carried import MOST_STREAMS, stream_bounds
from charwright.data.mapped_text import MappedText
from charwright.data.sequences import taken
from charwright.data.texts import ids_of
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import CorpusError
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.protocols import block_cuts, parse_protocol
from charwright.evaluation.readers import CHUNK, ContinuedNats

Array = npt.NDArray[np.int64]


def evaluate_mapped(
    continued_nats: ContinuedNats, vocabulary: Vocabulary, text: MappedText, protocol: str = "carried"
) -> Evaluation:
    """The loss on a text on disk by a protocol of `evaluate`; `continued_nats` is that of a `Reader`."""
    if len(text) < 2:
        raise CorpusError("the text to evaluate has fewer than two characters")
    ids = ids_of(text, vocabulary)
    begins, ends = _columns(len(ids), protocol)
    predicted = int(ends[-1])
    chars = round(predicted * (len(text) - 1) / (len(ids) - 1))
    cuts = block_cuts(chars)
    # The first id of the text is not predicted.
    last = np.array([len(ids_of(text.part([(0, cut)]), vocabulary)) - 1 for cut in cuts[1:-1]] + [predicted])
    sums, unknown = np.zeros(len(last)), 0
    for group in range(0, len(begins), MOST_STREAMS):
        columns = slice(group, group + MOST_STREAMS)
        state: Any = None
        for positions in _pieces(begins[columns], ends[columns]):  # (T + 1, B)
            found = taken(ids, positions)
            targets = np.where(positions[1:] <= ends[columns], found[1:], -1)
            nats, state = continued_nats(found[:-1], targets, state)
            missed = targets == UNKNOWN_ID
            costs = nats.astype(np.float64) + missed * vocabulary.unknown_nats
            blocks = np.searchsorted(last, positions[:-1].ravel(), side="right").clip(max=len(last) - 1)
            sums += np.bincount(blocks, weights=costs.ravel(), minlength=len(last))
            unknown += int(missed.sum())
    lengths = np.diff(cuts)
    lengths[0] -= 1
    mean = math.fsum(sums) / chars
    return Evaluation(mean, mean / math.log(2), chars, unknown, protocol, tuple((sums / lengths).tolist()))


def _columns(ids: int, protocol: str) -> tuple[Array, Array]:
    """Where the columns of a protocol begin and end in the text, as positions of inputs: (B,) each."""
    length = parse_protocol(protocol)
    if length is None:
        edges = np.array(stream_bounds(ids - 1), dtype=np.int64)
    else:
        edges = np.arange(0, ids, length, dtype=np.int64)
        if len(edges) < 2:
            raise CorpusError(f"the text has {ids:,} ids, too few for one window of {length}")
    return edges[:-1], edges[1:]


def _pieces(begins: Array, ends: Array) -> Iterator[Array]:
    """Positions (T + 1, B) of columns, a chunk of time after the other; the last of one are the first of the next."""
    longest = int((ends - begins).max())
    for first, last in pairwise([*range(0, longest, CHUNK), longest]):
        yield begins + np.arange(first, last + 1)[:, None]

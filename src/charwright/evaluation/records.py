"""Evaluation record by record: each is read from a zero state, behind the end of a record and its own label."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from charwright.data.carried import MOST_STREAMS
from charwright.data.records import Records
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import CorpusError
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.readers import TargetNats

Array = npt.NDArray[np.int64]

AT_ONCE = 8 * MOST_STREAMS
"""Records of similar length that are read side by side."""
MOST_POSITIONS = 2**22
"""The positions of records that are read side by side, with their padding."""


def evaluate_records(target_nats: TargetNats, vocabulary: Vocabulary, records: Records) -> Evaluation:
    """The loss on records, in any order: that of every character and of the end, but not of the label.

    `target_nats` is that of a `Reader`. A character outside the vocabulary costs what it does in `evaluate`. The blocks
    are equal in records to within one.

    Raises:
        CorpusError: when there are no records, or the model has labels and the records have none.
    """
    if vocabulary.labels and records.labels is None:
        raise CorpusError("the model has labels, and the records have none: divide the text with a column of labels")
    if not records.count:
        raise CorpusError("there are no records to evaluate")
    ids, stops = records.ids(vocabulary)
    begins = np.concatenate([[0], stops[:-1]])
    before = vocabulary.encode(records.end)
    given = len(before) + (records.labels is not None)
    lengths = stops - begins
    costs, unknown = np.zeros(records.count), 0
    order = np.argsort(-lengths, kind="stable")
    for chosen in _side_by_side(order, lengths + len(before)):
        rows = _rows(ids, begins[chosen], lengths[chosen], before)
        # Padding is read as [UNK], and nothing of it is predicted.
        nats = target_nats(np.maximum(rows[:-1], 0), rows[1:])[given - 1 :]
        missed = rows[given:] == UNKNOWN_ID
        costs[chosen] = (nats.astype(np.float64) + missed * vocabulary.unknown_nats).sum(axis=0)
        unknown += int(missed.sum())
    mean = float(costs.sum()) / len(records)
    return Evaluation(
        mean, mean / math.log(2), len(records), unknown, "records", _blocks(costs, records), records.count
    )


def _side_by_side(order: Array, lengths: Array) -> Iterator[Array]:
    """Records in groups, longest first: one that is much longer than the others is not read beside many of them."""
    first = 0
    while first < len(order):
        count = min(AT_ONCE, max(1, MOST_POSITIONS // int(lengths[order[first]])))
        yield order[first : first + count]
        first += count


def _rows(ids: npt.NDArray[np.int32], begins: Array, lengths: Array, before: npt.NDArray[np.int32]) -> Array:
    """The ids (T, B) of records behind what comes before each of them, and -1 after their ends."""
    rows = np.full((len(before) + int(lengths.max()), len(begins)), -1, dtype=np.int64)
    rows[: len(before)] = before[:, None]
    within = np.arange(int(lengths.max()))[:, None]
    positions = np.minimum(begins + within, len(ids) - 1)
    rows[len(before) :] = np.where(within < lengths, ids[positions], -1)
    return rows


def _blocks(costs: npt.NDArray[np.float64], records: Records) -> tuple[float, ...]:
    """The nats per character of each block of records."""
    count = min(MOST_STREAMS, records.count)
    edges = np.arange(count) * records.count // count
    chars = np.diff(records.stops, prepend=0)
    return tuple((np.add.reduceat(costs, edges) / np.add.reduceat(chars, edges)).tolist())

"""Streams over records: each epoch reads all of them in a new order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from charwright.data.sequences import AnyIds, Array, Pair, Streams, epoch_generator, taken
from charwright.errors import CorpusError


class RecordStreams(Streams):
    """Contiguous streams over records that are shuffled for each epoch; the hidden state is carried across them.

    A record begins behind the end of another one that has nothing to do with it, so the network learns to forget there.
    The order is a function of (seed, epoch).
    """

    def __init__(self, ids: AnyIds, stops: Array, seq_length: int, batch: int, seed: int = 1) -> None:
        """Spread `batch` streams over ids (N,), in which records end before the positions `stops` (R,).

        Raises:
            CorpusError: when the text is shorter than one batch, or these are not the ends of records.
        """
        super().__init__(ids, seq_length, batch, seed)
        if not len(stops) or stops[-1] != len(ids) or (np.diff(stops, prepend=0) < 0).any():
            raise CorpusError(f"the ends of records must rise to {len(ids):,}, the end of the text")
        self._lengths = np.diff(stops, prepend=0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield the batches of an epoch from step `start`: inputs (T, B) and targets (T, B)."""
        order = epoch_generator(self.seed, epoch).permutation(len(self._lengths))
        lengths = self._lengths[order]
        stops = np.cumsum(lengths)
        # From positions in the order of this epoch to positions in the text.
        shifts = (np.cumsum(self._lengths) - self._lengths)[order] - (stops - lengths)
        begins = self.span * np.arange(self.batch)[self._rows]  # (B,)
        for step in range(start, self.steps_per_epoch):
            within = step * self.seq_length + np.arange(self.seq_length + 1)  # (T + 1,)
            positions = (within[:, None] + begins) % len(self.ids)  # (T + 1, B)
            pieces = taken(self.ids, positions + shifts[np.searchsorted(stops, positions, side="right")])
            yield pieces[:-1], pieces[1:]

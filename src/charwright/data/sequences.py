"""Ids become batches of (input, target) pairs; the target is the input shifted by one character.

`Windows` cuts the text into pieces, shuffles them and starts each from a zero state, as in the TensorFlow tutorial.
`Streams` reads the text in parallel contiguous streams and carries the hidden state from batch to batch (truncated
backpropagation through time). `Excerpts` are streams of excerpts from all over the text. All yield arrays (T, B) int64.
The order is a function of (seed, epoch), so any batch of any epoch can be reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright.config import SequenceConfig
from charwright.data.mapped_ids import MappedIds
from charwright.data.shuffling import shuffled
from charwright.errors import ConfigError, CorpusError
from charwright.schema import SEEDS, checked_number

Array = npt.NDArray[np.int64]
Pair = tuple[Array, Array]
AnyIds = npt.NDArray[Any] | MappedIds

EXCERPT = 256
"""The ids of an excerpt, at most."""


class Dataset(Protocol):
    """The interface of all of them; with `carries`, each batch begins with the state that the last one left."""

    carries: bool
    batch: int
    seq_length: int
    steps_per_epoch: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield the batches of an epoch from step `start`: inputs (T, B) and targets (T, B)."""


class Windows:
    """Shuffled pieces of `seq_length + 1` ids, each split into input and target; remainders are dropped."""

    carries = False

    def __init__(self, ids: AnyIds, seq_length: int, batch: int, seed: int = 1) -> None:
        """Cut ids (N,) into pieces.

        Raises:
            CorpusError: when there are too few pieces for one batch.
            ConfigError: when a size is no whole number above 0, or the ids are not an array of integers.
        """
        seq_length, batch, seed = _checked(ids, seq_length, batch, seed)
        self.seq_length, self.batch, self.seed = seq_length, batch, seed
        count = len(ids) // (seq_length + 1)
        if count < batch:
            raise CorpusError(
                f"{len(ids):,} ids make {count} sequences of {seq_length + 1}, too few for a batch of {batch}"
            )
        self.ids, self.count = ids, count
        self.steps_per_epoch = count // batch
        self._rows = slice(batch)

    def __repr__(self) -> str:
        return _described(self)

    def part(self, rows: slice) -> Windows:
        """Return a dataset of these rows of each batch; the others are not read."""
        part = copy(self)
        part._rows = rows
        return part

    def pair(self, index: int) -> Pair:
        """Return piece `index` of the text as input (T,) and target (T,).

        Raises:
            IndexError: when there is no such piece.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"piece {index} of {self.count:,}, which are counted from 0")
        piece = self._pieces(np.array([index]))[:, 0]
        return piece[:-1], piece[1:]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield the batches of an epoch from step `start`: inputs (T, B) and targets (T, B)."""
        order = shuffled(self.count, epoch_generator(self.seed, epoch))
        for step in range(start, self.steps_per_epoch):
            chosen = order[step * self.batch : (step + 1) * self.batch][self._rows]
            pieces = self._pieces(chosen)  # (T + 1, B)
            yield pieces[:-1], pieces[1:]

    def _pieces(self, chosen: Array) -> Array:
        """Return the pieces (T + 1, B) of the numbers (B,)."""
        length = self.seq_length + 1
        return taken(self.ids, np.arange(length)[:, None] + chosen * length)


class Streams:
    """`batch` contiguous streams, spread evenly over the text, read `seq_length` characters at a time.

    The text is a ring that each epoch enters at a different offset: over several epochs every character is read, and
    the boundaries between streams move. Row b of a batch continues row b of the previous batch.
    """

    carries = True

    def __init__(self, ids: AnyIds, seq_length: int, batch: int, seed: int = 1) -> None:
        """Spread `batch` streams over ids (N,).

        Raises:
            CorpusError: when the text is shorter than one batch.
            ConfigError: when a size is no whole number above 0, or the ids are not an array of integers.
        """
        seq_length, batch, seed = _checked(ids, seq_length, batch, seed)
        self.ids, self.seq_length, self.batch, self.seed = ids, seq_length, batch, seed
        self.span = len(ids) // batch
        self.steps_per_epoch = self.span // seq_length
        if len(ids) < 2 or self.steps_per_epoch < 1:
            raise CorpusError(f"{len(ids):,} ids are too few for a batch of {batch} x {seq_length}")
        self._rows = slice(batch)

    def __repr__(self) -> str:
        return _described(self)

    def part(self, rows: slice) -> Streams:
        """Return a dataset of these rows of each batch; the others are not read."""
        part = copy(self)
        part._rows = rows
        return part

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield the batches of an epoch from step `start`: inputs (T, B) and targets (T, B)."""
        offset = int(epoch_generator(self.seed, epoch).integers(len(self.ids)))
        begins = offset + self.span * np.arange(self.batch)[self._rows]  # (B,)
        for step in range(start, self.steps_per_epoch):
            pieces = self._pieces(begins + step * self.seq_length)
            yield pieces[:-1], pieces[1:]

    def _pieces(self, begins: Array) -> Array:
        """Return the ids (T + 1, B) from positions (B,) of the ring on."""
        return taken(self.ids, np.arange(self.seq_length + 1)[:, None] + begins)


class Excerpts(Streams):
    """Streams that read their parts of the text in excerpts of up to `EXCERPT` ids, in a random order.

    The order is the same for all parts, but each stream begins at another place of it, and goes on at its beginning.
    A part of an epoch has seen something of the whole text, where `Streams` have seen a few long stretches of it. Row b
    of a batch continues row b of the previous one, or begins another excerpt with the state that it left.
    """

    def __init__(self, ids: AnyIds, seq_length: int, batch: int, seed: int = 1) -> None:
        """Divide ids (N,) into excerpts.

        Raises:
            CorpusError: when the text is shorter than one batch.
        """
        super().__init__(ids, seq_length, batch, seed)
        self.steps_per_excerpt = max(1, min(EXCERPT, self.span) // seq_length)
        self.steps_per_epoch = self.steps_per_epoch // self.steps_per_excerpt * self.steps_per_excerpt

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield the batches of an epoch from step `start`: inputs (T, B) and targets (T, B)."""
        generator = epoch_generator(self.seed, epoch)
        offset = int(generator.integers(len(self.ids)))
        count = self.steps_per_epoch // self.steps_per_excerpt
        order = shuffled(count, generator)
        first = generator.integers(count, size=self.batch)[self._rows]  # (B,)
        parts = offset + self.span * np.arange(self.batch)[self._rows]  # (B,)
        begins = parts
        for step in range(start, self.steps_per_epoch):
            turn, within = divmod(step, self.steps_per_excerpt)
            if step == start or not within:
                excerpts = np.concatenate([order[at : at + 1] for at in (first + turn) % count])
                begins = parts + excerpts * self.steps_per_excerpt * self.seq_length
            pieces = self._pieces(begins + within * self.seq_length)
            yield pieces[:-1], pieces[1:]


def _described(dataset: Windows | Streams) -> str:
    sizes = f"seq_length={dataset.seq_length}, batch={dataset.batch}, seed={dataset.seed}"
    steps = f"{dataset.steps_per_epoch:,} steps per epoch"
    return f"<{type(dataset).__name__} of {len(dataset.ids):,} ids, {sizes}: {steps}>"


def _checked(ids: AnyIds, seq_length: int, batch: int, seed: int) -> tuple[int, int, int]:
    """The three numbers, as Python's own."""
    if not isinstance(ids, MappedIds) and not (isinstance(ids, np.ndarray) and ids.dtype.kind in "iu"):
        found = f"one of {ids.dtype}" if isinstance(ids, np.ndarray) else type(ids).__name__
        raise ConfigError(f"ids must be a NumPy array of integers, as Vocabulary.encode returns, not {found}")
    return (
        checked_number("seq_length", seq_length, minimum=1),
        checked_number("batch", batch, minimum=1),
        checked_number("seed", seed, minimum=0, maximum=SEEDS - 1),
    )


def taken(ids: AnyIds, indices: Array) -> Array:
    """Return the ids at indices (T, B); the text is a ring, and its ids may be on disk."""
    found = ids.take(indices) if isinstance(ids, MappedIds) else np.take(ids, indices, mode="wrap")
    return found.astype(np.int64)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the random generator that orders one epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


def make_dataset(ids: AnyIds, config: SequenceConfig, seed: int) -> Dataset:
    """Build the dataset that a configuration describes."""
    kinds: dict[str, type[Windows] | type[Streams]] = {"windows": Windows, "excerpts": Excerpts, "streams": Streams}
    return kinds[config.order](ids, config.seq_length, config.batch, seed)

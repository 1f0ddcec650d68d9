"""Ids become batches of (input, target) pairs: the target is the input, one character on.

`Windows` cuts the text into pieces, shuffles them and lets each start from a zero state (the tutorial's way).
`Streams` reads the text in parallel contiguous streams, so that the hidden state is carried from batch to batch
(truncated backpropagation through time). Both give arrays (T, B) int64, and the order is a function of
(seed, epoch), so that any batch of any epoch can be made again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from charwright.config import SequenceConfig
from charwright.errors import CorpusError

Array = npt.NDArray[np.int64]
Pair = tuple[Array, Array]
Item = TypeVar("Item")


class Dataset(Protocol):
    """What the training loop asks of `Windows` and `Streams`.

    `carries` says whether a batch goes on where the one before it ended.
    """

    carries: bool
    batch: int
    seq_length: int
    steps_per_epoch: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """The batches of an epoch from step `start` on: inputs (T, B) and targets (T, B)."""


class Windows:
    """Pieces of `seq_length + 1`, split into input and target, shuffled, batched; remainders are dropped."""

    carries = False

    def __init__(self, ids: npt.NDArray[Any], seq_length: int, batch: int, seed: int = 1) -> None:
        """Cut ids (N,) into pieces.

        Raises:
            CorpusError: when there are fewer pieces than a batch needs.
        """
        self.seq_length, self.batch, self.seed = seq_length, batch, seed
        count = len(ids) // (seq_length + 1)
        if count < batch:
            raise CorpusError(
                f"{len(ids):,} ids make {count} sequences of {seq_length + 1}, too few for a batch of {batch}"
            )
        self.pieces = ids[: count * (seq_length + 1)].reshape(count, seq_length + 1)
        self.steps_per_epoch = count // batch

    def pair(self, index: int) -> Pair:
        """Piece `index` of the text as input (T,) and target (T,)."""
        piece = self.pieces[index].astype(np.int64)
        return piece[:-1], piece[1:]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """The batches of an epoch from step `start` on: inputs (T, B) and targets (T, B)."""
        order = epoch_generator(self.seed, epoch).permutation(len(self.pieces))
        for step in range(start, self.steps_per_epoch):
            chosen = order[step * self.batch : (step + 1) * self.batch]
            pieces = self.pieces[chosen].T.astype(np.int64)  # (T + 1, B)
            yield pieces[:-1], pieces[1:]


class Streams:
    """`batch` contiguous streams, spread evenly over the text, read `seq_length` characters at a time.

    The text is treated as a ring that each epoch enters at another place, so that no character is left out and
    the seams lie elsewhere every time. Row b of a batch goes on where row b of the batch before it ended.
    """

    carries = True

    def __init__(self, ids: npt.NDArray[Any], seq_length: int, batch: int, seed: int = 1) -> None:
        """Lay `batch` streams over ids (N,).

        Raises:
            CorpusError: when the text is shorter than one batch.
        """
        self.ids, self.seq_length, self.batch, self.seed = ids, seq_length, batch, seed
        self.span = len(ids) // batch
        self.steps_per_epoch = self.span // seq_length
        if len(ids) < 2 or self.steps_per_epoch < 1:
            raise CorpusError(f"{len(ids):,} ids are too few for a batch of {batch} x {seq_length}")

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """The batches of an epoch from step `start` on: inputs (T, B) and targets (T, B)."""
        offset = int(epoch_generator(self.seed, epoch).integers(len(self.ids)))
        begins = offset + self.span * np.arange(self.batch)  # (B,)
        for step in range(start, self.steps_per_epoch):
            within = step * self.seq_length + np.arange(self.seq_length + 1)  # (T + 1,)
            pieces = np.take(self.ids, within[:, None] + begins, mode="wrap").astype(np.int64)  # (T + 1, B)
            yield pieces[:-1], pieces[1:]


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The random generator of one epoch's order."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


def shrink_to_fit(length: int, config: SequenceConfig) -> tuple[SequenceConfig, str | None]:
    """The batch and, if need be, the sequence made small enough for a text of `length` ids, and a word about it.

    Raises:
        CorpusError: when there is no second character to predict.
    """
    if length < 2:
        raise CorpusError(f"the training text has {length} characters; at least two are needed")
    seq_length = min(config.seq_length, length - 1)
    per_row = seq_length + 1 if config.order == "windows" else seq_length
    batch = max(1, min(config.batch, length // per_row))
    if (batch, seq_length) == (config.batch, config.seq_length):
        return config, None
    word = (
        f"the training text has {length:,} characters only: "
        f"batches of {batch} x {seq_length} instead of {config.batch} x {config.seq_length}"
    )
    return SequenceConfig(order=config.order, batch=batch, seq_length=seq_length), word


def make_dataset(ids: npt.NDArray[Any], config: SequenceConfig, seed: int) -> Dataset:
    """The dataset that a configuration asks for."""
    kind = Windows if config.order == "windows" else Streams
    return kind(ids, config.seq_length, config.batch, seed)


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, up to `depth` of them made ahead by a thread while the current one is in use."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(message: tuple[str, Any]) -> None:
        while not stopped.is_set():
            try:
                ready.put(message, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(("item", item))
                if stopped.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # handed over to the thread that asks
            put(("error", error))

    thread = threading.Thread(target=work, name="charwright-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()

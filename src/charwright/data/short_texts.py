"""Batch sizes for short texts."""

from __future__ import annotations

from charwright.config import SequenceConfig
from charwright.errors import CorpusError


def shrink_to_fit(length: int, config: SequenceConfig) -> tuple[SequenceConfig, str | None]:
    """Reduce the batch, and if necessary the sequence length, to fit a text of `length` ids.

    Returns:
        The sizes to use, and a notice when they differ from `config`.

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
    notice = (
        f"the training text has only {length:,} characters: "
        f"using batches of {batch} x {seq_length} instead of {config.batch} x {config.seq_length}"
    )
    return SequenceConfig(order=config.order, batch=batch, seq_length=seq_length), notice

"""Split a text into a training part and a validation part."""

from __future__ import annotations

from itertools import pairwise
from typing import overload

from charwright.arguments import require
from charwright.config import SplitConfig
from charwright.data.mapped_ids import Range
from charwright.data.records import Records, split_records
from charwright.data.texts import Text, in_memory, joined

READ_UP_TO = 1 << 22
"""A validation text of at most this many characters is read into memory."""


@overload
def split_corpus(text: str, config: SplitConfig | None = None) -> tuple[str, str]: ...


@overload
def split_corpus(text: Records, config: SplitConfig | None = None) -> tuple[Records, Records | str]: ...


def split_corpus(text: str | Records, config: SplitConfig | None = None) -> tuple[Text, Text]:
    """Return the training text and the validation text ("" when there is none); of records, both as records.

    Raises:
        UsageError: when the text or the configuration is something else.
    """
    require(
        text, (str, Records), "a text to split is a str or Records", "pass its text" if hasattr(text, "text") else ""
    )
    config = SplitConfig.of(config, {})
    training, validation = split_text(text, config)
    return (training, validation) if isinstance(text, Records) else (in_memory(training), in_memory(validation))


def split_text(text: Text, config: SplitConfig) -> tuple[Text, Text]:
    """Return the training text and the validation text ("" when there is none), on disk if the text is.

    A short validation text is in memory.

    `blocks` holds out the end of each of up to 20 equal sections, `tail` the end of the whole text. Records are held
    out whole, by `records.split_records`.
    """
    if isinstance(text, Records):
        kept, held_out = split_records(text, config)
        return kept, held_out or ""
    # The published split of tiny shakespeare rounds the training part down, not the validation part.
    cut = int(len(text) * (1 - config.val_fraction))
    if config.val_limit is not None:
        cut = max(cut, len(text) - config.val_limit)
    wanted = len(text) - cut
    if wanted < 2 or cut < 2:
        return text, ""
    if config.val_split == "tail":
        return joined(text, [(0, cut)]), _held_out(text, [(cut, len(text))])
    blocks = max(1, min(20, wanted // 100))
    edges = [len(text) * i // blocks for i in range(blocks + 1)]
    shares = [wanted * i // blocks for i in range(blocks + 1)]
    training, validation = [], []
    for (begin, end), (before, after) in zip(pairwise(edges), pairwise(shares), strict=True):
        cut = end - (after - before)
        training.append((begin, cut))
        validation.append((cut, end))
    return joined(text, training), _held_out(text, validation)


def _held_out(text: Text, ranges: list[Range]) -> Text:
    held_out = joined(text, ranges)
    return in_memory(held_out) if len(held_out) <= READ_UP_TO else held_out

"""Split a text into a training part and a validation part."""

from __future__ import annotations

import re
from typing import overload

from charwright.arguments import require
from charwright.config import SplitConfig
from charwright.data.mapped_ids import Range
from charwright.data.records import Records, split_records
from charwright.data.texts import Text, in_memory, joined

BOUNDARIES = tuple(map(re.compile, (r"\n+", r"[.!?。！？…][\"'”’」』）)]*\s*", r"\s+")))
"""The ends of lines, of sentences and of words: where a text is cut if there is one close by."""
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

    `blocks` holds out the end of each of up to 20 equal sections, `tail` the end of the whole text. `lines` is `blocks`
    with cuts at the nearest ends of lines, else of sentences or words: behind a cut within a word a model cannot
    foresee the next few characters, which on a short text are a third of the loss. Records are held out whole, by
    `records.split_records`.
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
    training, validation = _blocks(text, wanted, whole_lines=config.val_split == "lines")
    return joined(text, training), _held_out(text, validation)


def _blocks(text: Text, wanted: int, *, whole_lines: bool) -> tuple[list[Range], list[Range]]:
    """Where the parts of the training text and of the validation text are, which take turns."""
    blocks = max(1, min(20, wanted // 100))
    ends = [len(text) * (i + 1) // blocks for i in range(blocks)]
    shares = [wanted * (i + 1) // blocks - wanted * i // blocks for i in range(blocks)]
    training, validation, begin = [], [], 0
    for edge, share in zip(ends, shares, strict=True):
        moves = whole_lines and edge < len(text)
        end = _near(text, edge, (edge - share // 2, edge + share // 2)) if moves else edge
        cut = end - share
        if whole_lines:
            cut = _near(text, cut, (max(begin + 2, cut - share), cut + share // 2))
        training.append((begin, cut))
        validation.append((cut, end))
        begin = end
    return training, validation


def _near(text: Text, position: int, within: Range) -> int:
    """The boundary nearest to a position, of the best kind that is within a range; the position if there is none."""
    first, last = within
    if first >= last:
        return position
    # What precedes the first boundary, and what tells where the last one ends, is part of the window.
    window = in_memory(joined(text, [(max(0, first - 1), min(len(text), last + 1))]))
    offset = max(0, first - 1)
    for boundary in BOUNDARIES:
        found = [offset + match.end() for match in boundary.finditer(window)]
        if inside := [end for end in found if first <= end <= last]:
            return min(inside, key=lambda end: abs(end - position))
    return position


def _held_out(text: Text, ranges: list[Range]) -> Text:
    held_out = joined(text, ranges)
    return in_memory(held_out) if len(held_out) <= READ_UP_TO else held_out

"""Split a text into a training part and a validation part."""

from __future__ import annotations

from itertools import pairwise

from charwright.config import SplitConfig
from charwright.data.texts import Text, in_memory, joined


def split_corpus(text: str, config: SplitConfig) -> tuple[str, str]:
    """Return the training text and the validation text ("" when there is none)."""
    training, validation = split_text(text, config)
    return in_memory(training), validation


def split_text(text: Text, config: SplitConfig) -> tuple[Text, str]:
    """Return the training text, on disk if the text is, and the validation text ("" when there is none).

    `blocks` holds out the end of each of up to 20 equal sections, `tail` the end of the whole text.
    """
    # The published split of tiny shakespeare rounds the training part down, not the validation part.
    cut = int(len(text) * (1 - config.val_fraction))
    if config.val_limit is not None:
        cut = max(cut, len(text) - config.val_limit)
    wanted = len(text) - cut
    if wanted < 2 or cut < 2:
        return text, ""
    if config.val_split == "tail":
        return joined(text, [(0, cut)]), text[cut:]
    blocks = max(1, min(20, wanted // 100))
    edges = [len(text) * i // blocks for i in range(blocks + 1)]
    shares = [wanted * i // blocks for i in range(blocks + 1)]
    training, validation = [], []
    for (begin, end), (before, after) in zip(pairwise(edges), pairwise(shares), strict=True):
        cut = end - (after - before)
        training.append((begin, cut))
        validation.append((cut, end))
    return joined(text, training), in_memory(joined(text, validation))

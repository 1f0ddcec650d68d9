"""The scores of characters, from those of ids: ln p of a prompt's characters, and the alternatives by name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from charwright.data.code_points import utf8_sizes
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.generation.streams import Alternatives, Ids, Stream

Choices = tuple[tuple[str, float], ...]
"""The most likely tokens at one position with ln p of each, the likeliest first; empty where nothing was predicted."""


def named_choices(vocabulary: Vocabulary, alternatives: Alternatives, part: slice) -> list[Choices]:
    """The alternatives of some positions, with the text of each token; `[UNK]` for all unknown characters together."""
    rows = zip(alternatives.ids[part].tolist(), alternatives.scores[part].tolist(), strict=True)
    tokens = vocabulary.tokens
    return [tuple(zip([tokens[i] for i in ids], scores, strict=True)) for ids, scores in rows]


class PromptScores:
    """ln p of each character of a prompt, collected while a stream reads it from its beginning.

    The stream drops what it has read long ago, so this has to take in the scores after every call.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: str, ids: Ids, before: int = 0) -> None:
        """Start with the first id of the prompt, which has no score unless the stream reads `before` ids first."""
        self._vocabulary, self._prompt, self._ids, self._before = vocabulary, prompt, ids, before
        self._scores = np.full(len(ids), np.nan)
        self._known = 0 if before else 1  # ids whose scores are known, or that have none
        self.choices: list[Choices] = [()] * self._known
        """The alternatives to each id so far, if the stream has them."""

    @property
    def complete(self) -> bool:
        """Whether every id of the prompt has its score."""
        return self._known == len(self._ids)

    def take_in(self, stream: Stream) -> None:
        """Collect the scores that the stream has added."""
        assert stream.scores is not None
        dropped = stream.forgotten - self._before
        end = min(dropped + stream.at + 1, len(self._ids))
        if end <= self._known:
            return
        part = slice(self._known - dropped, end - dropped)
        self._scores[self._known : end] = stream.scores[part]
        if stream.alternatives is not None:
            self.choices += named_choices(self._vocabulary, stream.alternatives, part)
        self._known = end

    def logprobs(self) -> list[float]:
        """The ln p of each character given all ids before it: the sum over its bytes, and NaN where there are none."""
        unknown = self._ids == UNKNOWN_ID
        exact = self._scores - unknown * self._vocabulary.unknown_nats
        if self._vocabulary.level == "byte":
            exact = np.add.reduceat(exact, first_bytes(self._prompt))
        result: list[float] = exact.tolist()
        return result


def first_bytes(text: str) -> npt.NDArray[np.int64]:
    """The position of each character (N,) of a text in its UTF-8."""
    sizes = utf8_sizes(text)
    starts: npt.NDArray[np.int64] = np.cumsum(sizes) - sizes
    return starts

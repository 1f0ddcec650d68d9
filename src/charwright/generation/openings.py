"""What a model of records reads before a record: the end of another one, as in training, and a label."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from charwright.data.labels import label_id, label_ids
from charwright.data.vocabulary import Vocabulary
from charwright.generation.engine import Engine
from charwright.generation.sampling import Float64s, choose, probabilities, uniform
from charwright.generation.streams import Ids

LABEL_DRAW = 2**62
"""The index of the random number that chooses a label: no text is so long that it comes to this one."""


@dataclass(frozen=True, eq=False)
class Opening:
    """The ids (C,) that come before a text, and the label among them if there is one."""

    ids: Ids
    label: str | None = None


@dataclass(eq=False)
class Openings:
    """The openings of a model's texts; empty unless it was trained on records, or a label is asked for."""

    engine: Engine
    vocabulary: Vocabulary
    record_end: str | None
    _weights: Float64s | None = field(default=None, init=False, repr=False)  # (V,), of the labels

    def of(self, label: str | None = None, *, seed: int = 0, stream: int = 0) -> Opening:
        """The opening of a text.

        In training every record of a model with labels has one. Where none is asked for, it is drawn with the
        probabilities that the model gives to its labels, by a random number of the text's own.

        Raises:
            UsageError: when there is no such label.
        """
        end = self.vocabulary.encode(self.record_end or "")
        if label is not None:
            chosen = label_id(self.vocabulary, label)
        elif self.vocabulary.labels and self.record_end:
            chosen = choose(self._label_weights(end), uniform(seed, stream, LABEL_DRAW))
        else:
            return Opening(end)
        name = self.vocabulary.labels[chosen - label_ids(self.vocabulary).start]
        return Opening(np.append(end, np.int32(chosen)), name)

    def _label_weights(self, end: Ids) -> Float64s:
        """The probabilities of the labels after the end of a record, up to a common factor; 0 for other ids."""
        if self._weights is None:
            state, logits = self.engine.zero_state(1), np.zeros((1, self.engine.vocabulary_size))
            for index in end:
                logits = self.engine.step(np.array([index]), state)
            masked = np.ones(len(self.vocabulary), dtype=np.bool_)
            masked[label_ids(self.vocabulary)] = False
            self._weights = probabilities(logits[0], masked=masked)
        return self._weights

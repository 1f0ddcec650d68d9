"""The result of an evaluation, and how two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from charwright import notebook


@dataclass(frozen=True)
class Evaluation:
    """The code length of a text under a model, per character, and the protocol.

    `blocks` are the nats per character of contiguous parts of the text, equal in length to within one character, for
    `standard_error_of_difference`. There are 16 to 64, fewer for a very short text. `records` is how many records the
    text has under the protocol `records`, whose blocks are equal in records.
    """

    nats_per_char: float
    bits_per_char: float
    chars: int
    unknown_chars: int
    protocol: str
    blocks: tuple[float, ...] = field(default=(), repr=False)
    records: int | None = None

    @property
    def nats_per_record(self) -> float | None:
        """The code length of a record and its end, on average; None if the text has no records."""
        return None if self.records is None else self.nats_per_char * self.chars / self.records

    def to_json(self) -> dict[str, Any]:
        """Plain values without the blocks, ready for JSON."""
        values = {name: value for name, value in asdict(self).items() if name not in {"blocks", "records"}}
        of_records = {"records": self.records, "nats_per_record": self.nats_per_record}
        return values | ({} if self.records is None else of_records)

    def _repr_html_(self) -> str:
        rows = [
            ("nats per character", f"{self.nats_per_char:.4f}"),
            ("bits per character", f"{self.bits_per_char:.4f}"),
            ("characters", f"{self.chars:,}"),
            ("of them outside the vocabulary", f"{self.unknown_chars:,}"),
            ("protocol", self.protocol),
        ]
        if self.records is not None:
            rows += [("records", f"{self.records:,}"), ("nats per record", f"{self.nats_per_record:.4f}")]
        return notebook.facts("Evaluation", rows)


def standard_error_of_difference(a: Evaluation, b: Evaluation) -> float:
    """The standard error of `a.nats_per_char - b.nats_per_char`, paired over the blocks of the text.

    Blocks that are hard for one model are hard for the other, so the difference is much more precise than either loss.
    Infinite with fewer than two blocks.

    Raises:
        ValueError: when the two differ in text length or protocol.
    """
    if (a.chars, a.protocol, len(a.blocks)) != (b.chars, b.protocol, len(b.blocks)):
        raise ValueError("only evaluations of the same text with the same protocol can be compared")
    return paired_error(a.blocks, b.blocks)


def paired_error(a: Sequence[float], b: Sequence[float]) -> float:
    """The standard error of the mean difference between paired blocks; infinite with fewer than two."""
    if min(len(a), len(b)) < 2:
        return math.inf
    differences = np.subtract(a, b)
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))

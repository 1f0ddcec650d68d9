"""Which ids may be sampled: never [UNK] or a label, and only those that the options allow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.labels import label_ids
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import UsageError

Mask = npt.NDArray[np.bool_]

SHOWN = 40
"""Characters of an option that a message shows, at most."""


def allowed(vocabulary: Vocabulary, config: GenerationConfig, record_end: str | None = None) -> Mask:
    """The ids (V,) that may be sampled: those of `only`, if given, without `ban`, [UNK] and labels.

    What ends a record is no part of it, and needs no place in `only`.

    Raises:
        UsageError: if no id is left.
    """
    if len(vocabulary) < 2 + len(vocabulary.labels):
        raise UsageError("this model's vocabulary has no characters to generate")
    mask = np.ones(len(vocabulary), dtype=np.bool_)
    mask[label_ids(vocabulary)] = False
    if config.only is not None:
        mask[:] = False
        mask[_ids_of(vocabulary, config.only, "--only")] = True
        mask[UNKNOWN_ID] = False
        if not mask.any():
            raise UsageError(f"--only: the model knows none of the characters in {_shown(config.only)}")
        mask[vocabulary.encode(record_end or "")] = True
    mask[_ids_of(vocabulary, config.ban, "--ban")] = False
    mask[UNKNOWN_ID] = False
    if not mask.any():
        raise UsageError(
            f"{'--only and --ban leave' if config.only else '--ban leaves'} the model no character to generate"
        )
    return mask


def _ids_of(vocabulary: Vocabulary, characters: str, flag: str) -> npt.NDArray[np.int32]:
    if vocabulary.level == "byte" and not characters.isascii():
        raise UsageError(
            f"{flag}: this model generates bytes; {_shown(characters)} has characters of more than one byte"
        )
    return vocabulary.encode(characters)


def _shown(characters: str) -> str:
    return repr(characters[:SHOWN]) + (" ..." if len(characters) > SHOWN else "")

"""Which ids may be sampled: never [UNK] or a label, and only those that the options allow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig
from charwright.data.labels import label_ids
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import OptionError, UsageError

Mask = npt.NDArray[np.bool_]

SHOWN = 40
"""Characters of an option that a message shows, at most."""


def allowed(vocabulary: Vocabulary, config: GenerationConfig, record_end: str | None = None) -> Mask:
    """The ids (V,) that may be sampled: those of `only`, if given, without `ban`, [UNK] and labels.

    What ends a record is no part of it, and needs no place in `only`.

    Raises:
        OptionError: if no id is left, or the model generates bytes and an option has characters of several.
        UsageError: if the model has no characters.
    """
    if len(vocabulary) < 2 + len(vocabulary.labels):
        raise UsageError("this model's vocabulary has no characters to generate")
    mask = np.ones(len(vocabulary), dtype=np.bool_)
    mask[label_ids(vocabulary)] = False
    if config.only is not None:
        if not config.only:
            raise OptionError("must name at least one character", "only")
        mask[:] = False
        mask[_ids_of(vocabulary, config.only, "only")] = True
        mask[UNKNOWN_ID] = False
        if not mask.any():
            raise OptionError(f"the model knows none of the characters in {_shown(config.only)}", "only")
        mask[vocabulary.encode(record_end or "")] = True
    mask[_ids_of(vocabulary, config.ban, "ban")] = False
    mask[UNKNOWN_ID] = False
    if not mask.any():
        raise OptionError("the model has no character left to generate", *(["only"] if config.only else []), "ban")
    return mask


def _ids_of(vocabulary: Vocabulary, characters: str, option: str) -> npt.NDArray[np.int32]:
    if vocabulary.level == "byte" and not characters.isascii():
        raise OptionError(
            f"this model generates bytes; {_shown(characters)} has characters of more than one byte", option
        )
    return vocabulary.encode(characters)


def _shown(characters: str) -> str:
    return repr(characters[:SHOWN]) + (" ..." if len(characters) > SHOWN else "")

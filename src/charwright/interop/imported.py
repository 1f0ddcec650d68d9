"""A model of another program, whatever file it came from, and the vocabulary that its rows belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig
from charwright.data.vocabulary import UNKNOWN, Vocabulary
from charwright.errors import DamagedRunError, ForeignModelError, VocabularyError
from charwright.interop import keras_files, keras_layout, tensorflow_files
from charwright.storage import read_json

Arrays = dict[str, npt.NDArray[np.float32]]

ROWS = ("embedding.weight", "head.weight", "head.bias")
"""The weights that have a row for each token."""
UNHEARD_OF = 20.0
"""How many nats a new row for [UNK] lies below the least likely token: it was never seen, and is never drawn."""


@dataclass(frozen=True)
class Imported:
    """A network and its weights for `tokens` rows, and the vocabulary where the file itself tells it."""

    config: ModelConfig
    weights: Arrays
    vocabulary: Vocabulary | list[str] | None

    @property
    def tokens(self) -> int:
        """How many rows the weights have."""
        return len(self.weights["head.bias"])


def read_model(path: Path, *, with_vocabulary: bool = True) -> Imported:
    """Read a model: a file of Keras 3 or 2, a checkpoint of TensorFlow, or the folder of a SavedModel.

    `with_vocabulary` is False for who knows the characters already; else they are looked for where they may be.

    Raises:
        ForeignModelError: when it is none of these, is damaged, or is a network that charwright does not have.
        MissingExtraError: when what reads it is not installed.
    """
    vocabulary: Vocabulary | list[str] | None = None
    try:
        if path.is_file() and keras_files.is_zip(path):
            layers = keras_files.read_keras(path)
        elif path.is_file() and keras_files.is_hdf5(path):
            layers = keras_files.read_h5(path)
        elif (prefix := tensorflow_files.checkpoint_prefix(path)) is not None:
            layers = tensorflow_files.read_checkpoint(prefix)
            if with_vocabulary and (path / "saved_model.pb").is_file():
                vocabulary = tensorflow_files.read_tokens(path)
        else:
            raise ForeignModelError(_unreadable(path))
    except OSError as error:
        raise ForeignModelError(f"cannot read {path}: {error.strerror or error}") from error
    config, weights = keras_layout.from_keras(layers, str(path))
    return Imported(config, weights, vocabulary)


def _unreadable(path: Path) -> str:
    kinds = "a .weights.h5, .h5 or .keras file, a TensorFlow checkpoint or the folder of a SavedModel"
    if not path.exists():
        return f"there is no {path}; name {kinds}"
    if path.is_dir():
        return f"{path} is no SavedModel and has no checkpoint in it; name {kinds}"
    return f"{path} is no model that can be imported; name {kinds}"


def read_vocabulary(path: Path) -> Vocabulary | list[str]:
    """A vocabulary file: that of a run, or a JSON list of tokens in the order of their ids, as Keras gives it.

    Raises:
        VocabularyError: when it is neither.
    """
    try:
        values = read_json(path)
    except DamagedRunError as error:
        raise VocabularyError(f"{error}; a vocabulary is a JSON list of characters") from error
    if isinstance(values, dict):
        try:
            return Vocabulary.from_json(values)
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error
    if not isinstance(values, list) or not all(isinstance(token, str) for token in values):
        raise VocabularyError(f"{path} is no vocabulary: a JSON list of characters, or a run's vocabulary.json")
    for token in values:
        if len(token) != 1 and token not in {"", UNKNOWN}:
            raise VocabularyError(f"{path}: the token {json.dumps(token)[:40]} is no single character")
    return values


def fit_rows(model: Imported, tokens: Vocabulary | list[str], told: str) -> tuple[Vocabulary, Arrays, str | None]:
    """The model's rows in the order of a vocabulary of ours, whose id 0 is [UNK].

    Keras's StringLookup has a mask (an empty text) and [UNK] before the characters, or [UNK] alone; the first models of
    the tutorial had neither. A list of tokens without them stands for any of the three, which the number of rows tells.

    Args:
        model: as it was read.
        tokens: the characters in the order of their ids, with or without [UNK] and mask before them; or a vocabulary
            that is taken as it is.
        told: what the tokens came from, for messages.

    Returns:
        The vocabulary, all weights for it, and what was done about rows that are missing or too many, in words.

    Raises:
        VocabularyError: when there are more or fewer rows than that, or tokens in another order.
    """
    if isinstance(tokens, Vocabulary):
        if model.tokens != len(tokens):
            raise VocabularyError(_sizes(model, told, f"{len(tokens):,} tokens"))
        return tokens, model.weights, None
    special = [token for token in tokens if token in {"", UNKNOWN}]
    characters = tokens[len(special) :]
    if special not in ([], [UNKNOWN], ["", UNKNOWN]) or {"", UNKNOWN} & set(characters):
        raise VocabularyError(f"{told}: {UNKNOWN} and the mask must come before all characters, each once")
    vocabulary = Vocabulary("".join(characters))
    before = model.tokens - len(characters)
    if before not in ({0, 1, 2} if not special else {len(special)}):
        listed = f"{len(tokens):,} tokens" if special else f"{len(characters):,} characters, {UNKNOWN} apart"
        raise VocabularyError(_sizes(model, told, listed))
    if before == 1:
        return vocabulary, model.weights, None
    if before == 2:
        dropped = {name: array[1:] if name in ROWS else array for name, array in model.weights.items()}
        return vocabulary, dropped, "the model's first row, that of the mask, is left out"
    return vocabulary, _with_unknown(model.weights), f"the model has no row for {UNKNOWN}: one is put in, never drawn"


def _sizes(model: Imported, told: str, listed: str) -> str:
    return f"the model has {model.tokens:,} tokens and {told} has {listed}: they do not fit together"


def _with_unknown(weights: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """A row more before the others: the mean character to read, and next to impossible to draw."""
    bias = weights["head.bias"]
    first = {
        "embedding.weight": weights["embedding.weight"].mean(axis=0, keepdims=True),
        "head.weight": weights["head.weight"].mean(axis=0, keepdims=True),
        "head.bias": np.array([bias.min() - UNHEARD_OF], dtype=np.float32),
    }
    return {name: np.concatenate([first[name], array]) if name in first else array for name, array in weights.items()}

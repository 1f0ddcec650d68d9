"""Read a foreign model from any supported format and match its token rows to a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig, RecordsConfig
from charwright.data.labels import LabelledVocabulary
from charwright.data.vocabularies import vocabulary_from_json
from charwright.data.vocabulary import UNKNOWN, Vocabulary
from charwright.errors import DamagedRunError, ForeignModelError, VocabularyError
from charwright.interop import keras_files, keras_weights, tensorflow_import
from charwright.interop.model_card import find_card, labels_of, records_of
from charwright.storage import read_json

Arrays = dict[str, npt.NDArray[np.float32]]

TOKEN_WEIGHTS = ("embedding.weight", "head.weight", "head.bias")
"""The weights that have one row per token."""
UNKNOWN_GAP = 20.0
"""Nats between an added [UNK] row and the least likely token, so that [UNK] is practically never sampled."""


@dataclass(frozen=True)
class ForeignModel:
    """A network, its weights for `tokens` rows, and its vocabulary if the file contains one.

    `records` is how the text of a model of records is divided, and what ends each, if the file says it.
    """

    config: ModelConfig
    weights: Arrays
    vocabulary: Vocabulary | list[str] | None
    records: tuple[RecordsConfig, str] | None = None

    @property
    def tokens(self) -> int:
        """The number of token rows in the weights."""
        return len(self.weights["head.bias"])


def read_model(path: Path, *, with_vocabulary: bool = True) -> ForeignModel:
    """Read a Keras 3 or Keras 2 file, a TensorFlow checkpoint, or a SavedModel folder.

    Args:
        path: the file, the folder, or the prefix of a checkpoint.
        with_vocabulary: search a SavedModel for its vocabulary.

    Raises:
        ForeignModelError: when the format is unknown, the file is damaged, or the network is not supported.
        MissingExtraError: when the package that reads this format is not installed.
    """
    vocabulary: Vocabulary | list[str] | None = None
    card: Mapping[str, Any] = {}
    try:
        if path.is_file() and keras_files.is_keras(path):
            layers = keras_files.read_keras(path)
        elif path.is_file() and keras_files.is_hdf5(path):
            layers = keras_files.read_h5(path)
        elif (prefix := tensorflow_import.checkpoint_prefix(path)) is not None:
            layers = tensorflow_import.read_checkpoint(prefix)
            if (path / "saved_model.pb").is_file():
                constants = tensorflow_import.read_strings(path)
                card = find_card(text for constant in constants for text in constant)
                vocabulary = _vocabulary(constants, card, path) if with_vocabulary else None
        else:
            raise ForeignModelError(_unreadable(path))
    except OSError as error:
        raise ForeignModelError(f"cannot read {path}: {error.strerror or error}") from error
    config, weights = keras_weights.from_keras(layers, str(path))
    return ForeignModel(config, weights, vocabulary, records_of(card))


def _vocabulary(
    constants: Sequence[Sequence[bytes]], card: Mapping[str, Any], path: Path
) -> Vocabulary | list[str] | None:
    """The vocabulary of a SavedModel, with the labels of its card, whose ids are behind those of the characters."""
    tokens, labels = tensorflow_import.find_tokens(constants, path), labels_of(card)
    return LabelledVocabulary("".join(tokens), labels) if labels and isinstance(tokens, list) else tokens


def _unreadable(path: Path) -> str:
    formats = "give a .weights.h5, .h5 or .keras file, a TensorFlow checkpoint or a SavedModel folder"
    if not path.exists():
        return f"{path} does not exist; {formats}"
    if path.suffix in (".onnx", ".npz", ".html") or (path / "step.onnx").is_file():
        return f"{path} cannot be imported; if it is an export of charwright, its run folder has the model: copy that"
    if path.is_dir():
        return f"{path} is not a SavedModel and contains no checkpoint; {formats}"
    return f"{path} is not a model that can be imported; {formats}"


def read_vocabulary(path: Path) -> Vocabulary | list[str]:
    """Read a vocabulary file: a run's `vocabulary.json`, or a JSON list of tokens in id order, as Keras exports it.

    Raises:
        VocabularyError: when the file is neither.
    """
    try:
        values = read_json(path)
    except DamagedRunError as error:
        if not path.is_file():
            raise
        raise VocabularyError(f"{path} is not JSON, and a vocabulary is a JSON list of characters") from error
    if isinstance(values, dict):
        try:
            return vocabulary_from_json(values)
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error.for_shell}") from error
    if not isinstance(values, list) or not all(isinstance(token, str) for token in values):
        raise VocabularyError(f"{path} is not a vocabulary: give a JSON list of characters or a run's vocabulary.json")
    for token in values:
        if len(token) != 1 and token not in {"", UNKNOWN}:
            raise VocabularyError(f"{path}: the token {json.dumps(token)[:40]} is not a single character")
    return values


def fit_rows(model: ForeignModel, tokens: Vocabulary | list[str], source: str) -> tuple[Vocabulary, Arrays, str | None]:
    """Match the model's token rows to a vocabulary whose id 0 is [UNK].

    Keras's StringLookup puts a mask token (an empty string) and [UNK] before the characters, or [UNK] alone; the first
    version of the tutorial had neither. For a list of plain characters, the number of rows decides which.

    Args:
        model: the model as read.
        tokens: a vocabulary, used as it is, or the tokens in id order, with or without the mask and [UNK].
        source: where the tokens come from, for messages.

    Returns:
        The vocabulary, all weights with matching rows, and a note when a row was added or removed.

    Raises:
        VocabularyError: when the number of rows does not match, or the tokens are in another order.
    """
    if isinstance(tokens, Vocabulary):
        if model.tokens != len(tokens):
            raise VocabularyError(_mismatch(model, source, f"{len(tokens):,} tokens"))
        return tokens, model.weights, None
    special = [token for token in tokens if token in {"", UNKNOWN}]
    characters = tokens[len(special) :]
    if special not in ([], [UNKNOWN], ["", UNKNOWN]) or {"", UNKNOWN} & set(characters):
        raise VocabularyError(f"{source}: the mask and {UNKNOWN} must come before all characters, each at most once")
    vocabulary = Vocabulary("".join(characters))
    before = model.tokens - len(characters)
    if before not in ({0, 1, 2} if not special else {len(special)}):
        listed = f"{len(tokens):,} tokens" if special else f"{len(characters):,} characters, not counting {UNKNOWN}"
        raise VocabularyError(_mismatch(model, source, listed))
    if before == 1:
        return vocabulary, model.weights, None
    if model.config.ngram_bits:  # Their offsets are of the ids that the model was trained with.
        raise VocabularyError(f"{source}: the model has n-grams, and so needs the vocabulary that it was trained with")
    if before == 2:
        dropped = {name: array[1:] if name in TOKEN_WEIGHTS else array for name, array in model.weights.items()}
        return vocabulary, dropped, "dropped the model's first row, which is the mask token's"
    return (
        vocabulary,
        _with_unknown(model.weights),
        f"the model has no row for {UNKNOWN}: added one that is not sampled",
    )


def _mismatch(model: ForeignModel, source: str, listed: str) -> str:
    return f"the model has {model.tokens:,} tokens but {source} has {listed}"


def _with_unknown(weights: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """Add a first row for [UNK]: the mean embedding as input, a very small probability as output."""
    bias = weights["head.bias"]
    first = {
        "embedding.weight": weights["embedding.weight"].mean(axis=0, keepdims=True),
        "head.weight": weights["head.weight"].mean(axis=0, keepdims=True),
        "head.bias": np.array([bias.min() - UNKNOWN_GAP], dtype=np.float32),
    }
    return {name: np.concatenate([first[name], array]) if name in first else array for name, array in weights.items()}

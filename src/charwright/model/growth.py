"""Vocabulary growth: rows for new characters in the weights of a trained model.

V is the size of the old vocabulary, W that of the larger one, whose first V ids are the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from charwright.arrays import Arrays


def grow_arrays(
    arrays: Mapping[str, npt.NDArray[np.float32]], counts: npt.NDArray[np.integer], generator: np.random.Generator
) -> Arrays:
    """The weights of the same model with a larger vocabulary.

    The embedding of a new character is drawn with the mean and standard deviation of the old ones, so that the layers
    above receive inputs in their usual range. Its output row is the mean of the old rows (Hewitt, 2021, "Initializing
    New Word Embeddings for Pretrained Language Models"), and its bias gives it its share of the text at the zero state.
    The logits of old characters stay the same, bit for bit.

    Args:
        arrays: the weights, by their names in `ModelConfig.weight_shapes`.
        counts: (W,) how often each id occurs in the text to come.
        generator: the source of the new embedding rows.

    Returns:
        All weights; those with a row per character have W rows, of which the first V are the old ones.

    Raises:
        ValueError: when the new vocabulary is smaller.
    """
    old = len(arrays["head.bias"])
    new = len(counts) - old
    if new < 0:
        raise ValueError(f"a vocabulary of {old} cannot grow to {len(counts)}")
    grown = {name: array.copy() for name, array in arrays.items()}
    if new == 0:
        return grown
    spread = generator.standard_normal((new, arrays["embedding.weight"].shape[1]))  # (W - V, E)
    if "head.weight" in arrays:
        grown["head.weight"] = _with_rows(arrays["head.weight"], np.zeros((new, 1)))
    else:
        spread *= TIED_SPREAD
    grown["embedding.weight"] = _with_rows(arrays["embedding.weight"], spread)
    grown["head.bias"] = np.concatenate([arrays["head.bias"], _biases(arrays["head.bias"], counts)])
    if "ngrams.weight" in arrays:  # The last row of its array becomes longer.
        grown["ngrams.weight"] = np.pad(arrays["ngrams.weight"], (0, new))
    return grown


TIED_SPREAD = 0.1
"""A tied embedding is also the output layer, where spread is noise in the logits; a little is enough to differ."""


def _with_rows(rows: npt.NDArray[np.float32], spread: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """`rows` (V, N) followed by new ones: the mean plus `spread` (W - V, N or 1) standard deviations."""
    mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    return np.concatenate([rows, (mean + spread * deviation).astype(np.float32)])


def _biases(old: npt.NDArray[np.float32], counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """The biases of the new characters (W - V,).

    At the zero state the logits are the biases, so the new characters' shares of the text are exact there. Each count
    is increased by one, so that every character has a positive probability (Laplace).
    """
    shares = (counts + 1.0) / (counts + 1.0).sum()
    known = shares[: len(old)].sum()
    total = np.logaddexp.reduce(old.astype(np.float64))
    biases: npt.NDArray[np.float32] = (total + np.log(shares[len(old) :] / known)).astype(np.float32)
    return biases

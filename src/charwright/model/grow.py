"""More characters for a model that is trained already: rows for the new ones, and all that was there as it was.

V is the size of the old vocabulary, W that of the larger one, whose first V ids are the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.float32]]


def grow_arrays(
    arrays: Mapping[str, npt.NDArray[np.float32]], counts: npt.NDArray[np.integer], generator: np.random.Generator
) -> Arrays:
    """The weights of the same model with a larger vocabulary.

    A new character begins as any other: its embedding is drawn with the mean and the spread that the old ones have, so
    that the layers above meet nothing unheard of. Its head row is the old rows' mean (Hewitt, 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"), and its bias gives it, at the zero state, the share of the text
    that its count says. So old characters keep their logits, bit for bit, and their odds among themselves.

    Args:
        arrays: the weights, by their names in `ModelConfig.weight_shapes`.
        counts: (W,) how often each id occurs in the text to come.
        generator: where the new embedding rows come from.

    Returns:
        All weights; those that have a row for each character have W rows now, of which the first V are the old ones.

    Raises:
        ValueError: when the larger vocabulary is the smaller one.
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
    return grown


TIED_SPREAD = 0.1
"""A tied embedding is the head's rows too, where spread is noise in the logits: a little tells new ones apart."""


def _with_rows(rows: npt.NDArray[np.float32], spread: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """`rows` (V, N), and below them new ones: the mean, and so many standard deviations (W - V, N or 1) from it."""
    mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    return np.concatenate([rows, (mean + spread * deviation).astype(np.float32)])


def _biases(old: npt.NDArray[np.float32], counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """The biases of the new characters (W - V,).

    Where the state is zero the logits are the biases, so that the new ones' shares of the text are exact there.
    Adding one to each count leaves no character without a chance (Laplace).
    """
    shares = (counts + 1.0) / (counts + 1.0).sum()
    known = shares[: len(old)].sum()
    total = np.logaddexp.reduce(old.astype(np.float64))
    biases: npt.NDArray[np.float32] = (total + np.log(shares[len(old) :] / known)).astype(np.float32)
    return biases

"""Convert between Keras layers and charwright weights: the same numbers in another layout and gate order.

Keras stores a matrix as (inputs, outputs) and a GRU's gates as z, r, n; charwright as (outputs, inputs) and r, z, n.
Both store an LSTM's gates as i, f, g, o. A GRU with `reset_after` has two bias rows in both: input and recurrent.

This module reorders the gates for every Keras and TensorFlow format. Two other modules know a foreign gate order:
`onnx_layers.py` reorders the gates for ONNX, and `saved_model_export.py` computes with the layers that `to_keras`
returns, in Keras's order. charwright's own order is defined in `ModelConfig.weight_shapes`.

V is the vocabulary size, E the embedding size, H the number of units, G the number of gates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charwright.config import GATES, ModelConfig
from charwright.errors import ConfigError, ForeignModelError
from charwright.generation.layout import as_gru

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]

CELL_OF_GATES = {GATES[cell]: cell for cell in ("gru", "lstm", "rnn")}
"""The cell of Keras's layer for each number of gates; it has no input-reset GRU, which has as many as a GRU."""
GATE_ORDER = {"gru": (1, 0, 2)}
"""Keras's position of each charwright gate where the two differ; the permutation is its own inverse."""

NGRAMS = "ngrams"
"""The name of the n-grams in a SavedModel, and their kind of layer."""
SCALE = "scale_kernel"
"""The variable of a multiplicative layer in a SavedModel, beside those of Keras's layer."""


@dataclass(frozen=True)
class KerasLayer:
    """The weights of a layer by their Keras names.

    An embedding has `embeddings` (V, E); a recurrent layer `kernel` (E, G * H), `recurrent_kernel` (H, G * H) and
    `bias`; a dense layer `kernel` (H, V) and `bias` (V). The n-grams of a SavedModel, which Keras does not have, have
    `weight` (2^bits + V) and `order` (1), the number of tokens in the longest. The first recurrent layer of a
    SavedModel has `scale_kernel` (E, H) if it is multiplicative, which no layer of Keras is.
    """

    name: str  # its path in the file, for messages
    arrays: Mapping[str, Array] = field(repr=False)

    @property
    def kind(self) -> str:
        """The kind of layer, inferred from the names of its weights: embedding, recurrent, dense, ngrams or unknown."""
        names = set(self.arrays)
        if names == {"weight", "order"} and self.name.rpartition("/")[2] == NGRAMS:
            return NGRAMS
        if names == {"embeddings"}:
            return "embedding"
        if {"kernel", "recurrent_kernel"} <= names <= {"kernel", "recurrent_kernel", "bias", SCALE}:
            return "recurrent"
        return "dense" if {"kernel"} <= names <= {"kernel", "bias"} else "unknown"

    @property
    def multiplicative(self) -> bool:
        """Whether this is a recurrent layer whose inputs scale the state."""
        return self.kind == "recurrent" and SCALE in self.arrays


def from_keras(layers: Sequence[KerasLayer], where: str) -> tuple[ModelConfig, Arrays]:
    """Convert an embedding, recurrent layers in order, a dense layer, and n-grams if there are any.

    Args:
        layers: the layers; only the recurrent ones must be in order.
        where: the file, for messages.

    Returns:
        The network and all weights by their `ModelConfig.weight_shapes` names, for the V tokens of the layers.

    Raises:
        ForeignModelError: when the layers are not such a network.
    """
    embedding, recurrent, dense = (_of_kind(layers, kind, where) for kind in ("embedding", "recurrent", "dense"))
    for layer in layers:
        if layer.kind == "unknown":
            raise ForeignModelError(unknown_layer(layer, where))
    for kind, found in (("embedding", embedding), ("dense", dense)):
        if len(found) != 1:
            raise ForeignModelError(f"{where} has {len(found) or 'no'} {kind} layers; expected exactly one")
    if not recurrent:
        raise ForeignModelError(f"{where} has no recurrent layer")
    table = _matrix(embedding[0], "embeddings", where)
    kernels = [_matrix(layer, "recurrent_kernel", where) for layer in recurrent]
    cell, units = _cell(recurrent[0], kernels[0], where), len(kernels[0])
    ngrams = _of_kind(layers, NGRAMS, where)
    bits, order = _bits_and_order(ngrams, len(table), where) if ngrams else (0, ModelConfig.ngram_order)
    try:
        config = ModelConfig(
            cell=cell,
            layers=len(recurrent),
            units=units,
            embedding_size=table.shape[1],
            ngram_bits=bits,
            ngram_order=order,
            multiplicative=recurrent[0].multiplicative,
        )
    except ConfigError as error:
        raise ForeignModelError(f"{where}: {error.for_shell}") from error
    weights: Arrays = {"embedding.weight": table}
    for index, layer in enumerate(recurrent):
        weights |= _recurrent_weights(config, index, layer, where)
    head = _matrix(dense[0], "kernel", where)
    weights["head.weight"] = np.ascontiguousarray(head.T)
    weights["head.bias"] = dense[0].arrays.get("bias", np.zeros(head.shape[1], dtype=np.float32))
    if ngrams:
        weights["ngrams.weight"] = ngrams[0].arrays["weight"]
    _check_shapes(config, weights, where)
    return config, weights


def to_keras(config: ModelConfig, weights: Mapping[str, Array]) -> list[KerasLayer]:
    """Return the embedding, the recurrent layers, the dense layer, and the n-grams of a model that has them.

    Tied weights are in the embedding and in the dense layer. An input-reset GRU becomes the equal GRU.
    """
    config, weights = as_gru(config, weights)
    table = weights["embedding.weight"]
    layers = [KerasLayer("embedding", {"embeddings": table})]
    for index in range(config.layers):
        of_layer = {name: weights[f"recurrent.{index}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih")}
        bias = _reorder_gates(config.cell, of_layer["bias_ih"])
        if config.cell == "gru":
            bias = np.stack([bias, _reorder_gates(config.cell, weights[f"recurrent.{index}.bias_hh"])])
        arrays: Arrays = {
            "kernel": np.ascontiguousarray(_reorder_gates(config.cell, of_layer["weight_ih"]).T),
            "recurrent_kernel": np.ascontiguousarray(_reorder_gates(config.cell, of_layer["weight_hh"]).T),
            "bias": bias,
        }
        if config.multiplicative and index == 0:
            arrays[SCALE] = np.ascontiguousarray(weights["recurrent.0.weight_mx"].T)
        layers.append(KerasLayer(numbered(keras_name(config.cell), index), arrays))
    head = table if config.tied else weights["head.weight"]
    layers.append(KerasLayer("dense", {"kernel": np.ascontiguousarray(head.T), "bias": weights["head.bias"]}))
    if config.ngram_bits:
        order = np.array([config.ngram_order], dtype=np.float32)
        layers.append(KerasLayer(NGRAMS, {"weight": weights["ngrams.weight"], "order": order}))
    return layers


def keras_name(cell: str) -> str:
    """Return Keras's layer name for a cell."""
    return "simple_rnn" if cell == "rnn" else cell


def numbered(name: str, index: int) -> str:
    """Number layers of one kind as Keras does: gru, gru_1, gru_2."""
    return f"{name}_{index}" if index else name


def natural_key(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts gru_2 before gru_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def order_recurrent(layers: Sequence[KerasLayer], names: Sequence[str], where: str) -> list[KerasLayer]:
    """Put recurrent layers in the order of the data flow, by the names that they had in the model.

    Files sort attributes by name. But Keras numbers unnamed layers in creation order (gru, gru_1), and the layers of a
    list by position.

    Raises:
        ForeignModelError: when the names have no numbers and the embedding size does not identify the first layer.
    """
    if len(layers) < 2:
        return list(layers)
    if len({re.sub(r"[_-]?\d+$", "", name) for name in names}) == 1:
        return [layer for _, layer in sorted(zip(names, layers, strict=True), key=lambda pair: natural_key(pair[0]))]
    reads_layer = [len(layer.arrays["kernel"]) == len(layer.arrays["recurrent_kernel"]) for layer in layers]
    if sorted(reads_layer) != [False, True]:
        listed = ", ".join(layer.name for layer in layers)
        raise ForeignModelError(
            f"{where}: cannot determine which of the recurrent layers {listed} comes first; save a Sequential model of "
            "the same layers"
        )
    return list(layers)[:: -1 if reads_layer[0] else 1]


def unknown_layer(layer: KerasLayer, where: str) -> str:
    """Return the error message for a layer of unknown kind."""
    return f"{where}: {layer.name} is not an embedding, recurrent or dense layer"


def _of_kind(layers: Sequence[KerasLayer], kind: str, where: str) -> list[KerasLayer]:
    found = [layer for layer in layers if layer.kind == kind]
    for layer in found:
        for name, array in layer.arrays.items():
            if not np.isfinite(array).all():
                raise ForeignModelError(f"{where}: {name!r} of {layer.name} has a value that is not finite")
    return found


def _matrix(layer: KerasLayer, name: str, where: str) -> Array:
    array = layer.arrays[name]
    if array.ndim != 2:
        raise ForeignModelError(f"{where}: {name!r} of {layer.name} has shape {array.shape}; expected a matrix")
    return array


def _cell(layer: KerasLayer, kernel: Array, where: str) -> str:
    """Infer the cell from the shape of a recurrent kernel (H, G * H)."""
    units, columns = kernel.shape
    if units == 0 or columns % units or columns // units not in CELL_OF_GATES:
        known = "a GRU has three columns per row, an LSTM four, a simple RNN one"
        raise ForeignModelError(f"{where}: the recurrent kernel of {layer.name} has shape {kernel.shape}; {known}")
    return CELL_OF_GATES[columns // units]


def _bits_and_order(found: Sequence[KerasLayer], tokens: int, where: str) -> tuple[int, int]:
    """Infer the bits from the array (2^bits + V) of the n-grams, and read their order."""
    array, order = found[0].arrays["weight"], found[0].arrays["order"]
    bits = max(1, array.size - tokens).bit_length() - 1
    if len(found) > 1:
        raise ForeignModelError(f"{where} has {len(found)} arrays of n-grams; expected at most one")
    if bits < 1 or array.shape != ((1 << bits) + tokens,):
        raise ForeignModelError(
            f"{where}: the array of the n-grams has shape {array.shape}; expected a power of two and {tokens:,} more"
        )
    if order.shape != (1,) or order[0] != int(order[0]):
        raise ForeignModelError(f"{where}: the order of the n-grams is {order.tolist()}; expected one whole number")
    return bits, int(order[0])


def _recurrent_weights(config: ModelConfig, index: int, layer: KerasLayer, where: str) -> Arrays:
    kernel = _matrix(layer, "kernel", where)
    recurrent = _matrix(layer, "recurrent_kernel", where)
    cell = _cell(layer, recurrent, where)
    if cell != config.cell or len(recurrent) != config.units:
        raise ForeignModelError(
            f"{where}: {layer.name} is a {cell.upper()} of {len(recurrent)} units, the first recurrent layer a "
            f"{config.cell.upper()} of {config.units}; all recurrent layers must be the same"
        )
    rows = 2 if cell == "gru" else 1
    bias = layer.arrays.get("bias", np.zeros((rows, recurrent.shape[1]), dtype=np.float32))
    if cell == "gru" and bias.shape == (recurrent.shape[1],):
        raise ForeignModelError(
            f"{where}: {layer.name} is a GRU with reset_after=False, which is not supported; only reset_after=True, "
            "Keras's default since TensorFlow 2.0, can be imported"
        )
    if bias.size != rows * recurrent.shape[1]:
        raise ForeignModelError(f"{where}: the bias of {layer.name} has shape {bias.shape}, which does not fit {cell}")
    biases = bias.reshape(rows, -1)
    names = ("bias_ih", "bias_hh")[:rows]
    weights = {f"recurrent.{index}.{name}": _reorder_gates(cell, row) for name, row in zip(names, biases, strict=True)}
    weights[f"recurrent.{index}.weight_ih"] = _reorder_gates(cell, np.ascontiguousarray(kernel.T))
    weights[f"recurrent.{index}.weight_hh"] = _reorder_gates(cell, np.ascontiguousarray(recurrent.T))
    if layer.multiplicative and index > 0:
        raise ForeignModelError(f"{where}: {layer.name} is multiplicative; only the first recurrent layer can be")
    if layer.multiplicative:
        weights["recurrent.0.weight_mx"] = np.ascontiguousarray(_matrix(layer, SCALE, where).T)
    return weights


def _reorder_gates(cell: str, rows: Array) -> Array:
    """Reorder the gates of rows (G * H, ...) from Keras's order to charwright's, or back."""
    if cell not in GATE_ORDER:
        return rows
    blocks = rows.reshape(GATES[cell], -1, *rows.shape[1:])
    return np.ascontiguousarray(blocks[list(GATE_ORDER[cell])]).reshape(rows.shape)


def _check_shapes(config: ModelConfig, weights: Arrays, where: str) -> None:
    for name, shape in config.weight_shapes(len(weights["embedding.weight"])).items():
        if weights[name].shape != shape:
            raise ForeignModelError(
                f"{where}: the layer shapes do not match: {name!r} is {weights[name].shape}, and the other layers "
                f"require {shape}"
            )

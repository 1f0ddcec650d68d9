"""The layers of Keras and those of charwright: the same numbers in another order.

Keras keeps a matrix as (inputs, outputs) and a GRU's gates as z, r, n; charwright as (outputs, inputs) and r, z, n. An
LSTM's gates lie as i, f, g, o in both. A GRU with `reset_after` has two rows of biases, the input's and the recurrent
one, as it has here.

V is the number of tokens, E the embedding, H the units, G the gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charwright.config import GATES, ModelConfig
from charwright.errors import ConfigError, ForeignModelError

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]

CELLS = {gates: cell for cell, gates in GATES.items()}
"""The cell with so many gates."""
REORDERED = {"gru": (1, 0, 2)}
"""Keras's place of each of our gates, where it is not our own; the two gates change places, so it serves both ways."""


@dataclass(frozen=True)
class KerasLayer:
    """A layer's weights, by the names that Keras gives them.

    An embedding has `embeddings` (V, E); a recurrent layer `kernel` (E, G * H), `recurrent_kernel` (H, G * H) and
    `bias`; a dense layer `kernel` (H, V) and `bias` (V).
    """

    name: str  # where it stands in its file, for messages
    arrays: Mapping[str, Array] = field(repr=False)

    @property
    def kind(self) -> str:
        """What the layer is, by what it has."""
        names = set(self.arrays)
        if names == {"embeddings"}:
            return "embedding"
        if {"kernel", "recurrent_kernel"} <= names <= {"kernel", "recurrent_kernel", "bias"}:
            return "recurrent"
        return "dense" if {"kernel"} <= names <= {"kernel", "bias"} else "unknown"


def from_keras(layers: Sequence[KerasLayer], where: str) -> tuple[ModelConfig, Arrays]:
    """A network and its weights, from an embedding, recurrent layers in their order, and a dense layer.

    Returns:
        The network and all weights by the names of `ModelConfig.weight_shapes`, for the V tokens that the layers have.

    Raises:
        ForeignModelError: when the layers are not such a network; `where` names the file in messages.
    """
    embedding, recurrent, dense = (_of_kind(layers, kind, where) for kind in ("embedding", "recurrent", "dense"))
    for layer in layers:
        if layer.kind == "unknown":
            raise ForeignModelError(f"{where}: {layer.name} is no embedding, no recurrent and no dense layer")
    for kind, found in (("embedding", embedding), ("dense", dense)):
        if len(found) != 1:
            raise ForeignModelError(f"{where} has {_counted(len(found), kind)} layers; a model has just one")
    if not recurrent:
        raise ForeignModelError(f"{where} has no recurrent layer")
    table = _matrix(embedding[0], "embeddings", where)
    kernels = [_matrix(layer, "recurrent_kernel", where) for layer in recurrent]
    cell, units = _cell(recurrent[0], kernels[0], where), len(kernels[0])
    try:
        config = ModelConfig(cell=cell, layers=len(recurrent), units=units, embedding=table.shape[1])
    except ConfigError as error:
        raise ForeignModelError(f"{where}: {error}") from error
    weights: Arrays = {"embedding.weight": table}
    for index, layer in enumerate(recurrent):
        weights |= _recurrent_weights(config, index, layer, where)
    head = _matrix(dense[0], "kernel", where)
    weights["head.weight"] = np.ascontiguousarray(head.T)
    weights["head.bias"] = dense[0].arrays.get("bias", np.zeros(head.shape[1], dtype=np.float32))
    _check(config, weights, where)
    return config, weights


def to_keras(config: ModelConfig, weights: Mapping[str, Array]) -> list[KerasLayer]:
    """The layers of `from_keras`: embedding, recurrent ones, dense. Tied weights stand in both places."""
    table = weights["embedding.weight"]
    layers = [KerasLayer("embedding", {"embeddings": table})]
    for index in range(config.layers):
        of_layer = {name: weights[f"recurrent.{index}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih")}
        bias = _in_order(config.cell, of_layer["bias_ih"])
        if config.cell == "gru":
            bias = np.stack([bias, _in_order(config.cell, weights[f"recurrent.{index}.bias_hh"])])
        arrays = {
            "kernel": np.ascontiguousarray(_in_order(config.cell, of_layer["weight_ih"]).T),
            "recurrent_kernel": np.ascontiguousarray(_in_order(config.cell, of_layer["weight_hh"]).T),
            "bias": bias,
        }
        layers.append(KerasLayer(numbered(keras_name(config.cell), index), arrays))
    head = table if config.tied else weights["head.weight"]
    return [*layers, KerasLayer("dense", {"kernel": np.ascontiguousarray(head.T), "bias": weights["head.bias"]})]


def keras_name(cell: str) -> str:
    """What Keras calls a layer of such cells in its files."""
    return "simple_rnn" if cell == "rnn" else cell


def numbered(name: str, index: int) -> str:
    """How Keras tells layers of one kind apart: gru, gru_1, gru_2."""
    return f"{name}_{index}" if index else name


def _of_kind(layers: Sequence[KerasLayer], kind: str, where: str) -> list[KerasLayer]:
    found = [layer for layer in layers if layer.kind == kind]
    for layer in found:
        for name, array in layer.arrays.items():
            if not np.isfinite(array).all():
                raise ForeignModelError(f"{where}: {layer.name} has a number in {name!r} that is not finite")
    return found


def _counted(count: int, kind: str) -> str:
    return f"{count or 'no'} {kind}"


def _matrix(layer: KerasLayer, name: str, where: str) -> Array:
    array = layer.arrays[name]
    if array.ndim != 2:
        raise ForeignModelError(f"{where}: {name!r} of {layer.name} has the shape {array.shape}, not that of a matrix")
    return array


def _cell(layer: KerasLayer, kernel: Array, where: str) -> str:
    """Which cell has a recurrent kernel (H, G * H) like this."""
    units, columns = kernel.shape
    if units == 0 or columns % units or columns // units not in CELLS:
        known = "a GRU has three columns for each row, an LSTM four, a simple RNN one"
        raise ForeignModelError(f"{where}: {layer.name} has a recurrent kernel of shape {kernel.shape}; {known}")
    return CELLS[columns // units]


def _recurrent_weights(config: ModelConfig, index: int, layer: KerasLayer, where: str) -> Arrays:
    kernel = _matrix(layer, "kernel", where)
    recurrent = _matrix(layer, "recurrent_kernel", where)
    cell = _cell(layer, recurrent, where)
    if cell != config.cell or len(recurrent) != config.units:
        raise ForeignModelError(
            f"{where}: {layer.name} is {cell.upper()} of {len(recurrent)} units and the first recurrent layer is "
            f"{config.cell.upper()} of {config.units}; here all layers are the same"
        )
    rows = 2 if cell == "gru" else 1
    bias = layer.arrays.get("bias", np.zeros((rows, recurrent.shape[1]), dtype=np.float32))
    if cell == "gru" and bias.shape == (recurrent.shape[1],):
        raise ForeignModelError(
            f"{where}: {layer.name} is a GRU with reset_after=False, which is another network; only the variant with "
            "reset_after=True, Keras's default since TensorFlow 2.0, can be imported"
        )
    if bias.size != rows * recurrent.shape[1]:
        raise ForeignModelError(f"{where}: the bias of {layer.name} has the shape {bias.shape}, which fits no {cell}")
    biases = bias.reshape(rows, -1)
    names = ("bias_ih", "bias_hh")[:rows]
    weights = {f"recurrent.{index}.{name}": _in_order(cell, row) for name, row in zip(names, biases, strict=True)}
    weights[f"recurrent.{index}.weight_ih"] = _in_order(cell, np.ascontiguousarray(kernel.T))
    weights[f"recurrent.{index}.weight_hh"] = _in_order(cell, np.ascontiguousarray(recurrent.T))
    return weights


def _in_order(cell: str, rows: Array) -> Array:
    """Gates (G * H, ...) from Keras's order to ours, or back."""
    if cell not in REORDERED:
        return rows
    blocks = rows.reshape(GATES[cell], -1, *rows.shape[1:])
    return np.ascontiguousarray(blocks[list(REORDERED[cell])]).reshape(rows.shape)


def _check(config: ModelConfig, weights: Arrays, where: str) -> None:
    """See that the layers fit together."""
    for name, shape in config.weight_shapes(len(weights["embedding.weight"])).items():
        if weights[name].shape != shape:
            found = f"{name!r} has the shape {weights[name].shape}, and the others call for {shape}"
            raise ForeignModelError(f"{where}: the layers do not fit together: {found}")

"""The loss of a batch and all its gradients in one call of the C kernels, which compute the whole network.

After a batch the caches hold the kernels' arrays, so that a line of Python costs several times what it costs in a loop
of its own. The descriptions of all layers and their working memory are therefore made once for each shape of batch; a
step fills in the addresses of what it reads and writes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from charwright.config import GATES, GRUS, PRODUCTS, ModelConfig
from charwright.kernels import CELL_CODES, Kernels, Layer, Linear, Network, NetworkLayer, OutputLayer
from charwright.model.cells import State
from charwright.model.kernel_calls import free_borrowed, fresh
from charwright.model.native import SLOTS
from charwright.model.votes import RowGradient
from charwright.model.weights import WeightedModule

LINE = 64
"""Parts of the working memory begin at a cache line."""


@dataclass(frozen=True)
class NetworkShape:
    """What a `NativeNetwork` is made for."""

    kernels: Kernels
    config: ModelConfig
    vocabulary_size: int
    steps: int
    batch: int
    dtype: torch.dtype  # of the products
    threads: int
    state_masks: bool
    output_masks: bool

    @property
    def size(self) -> int:
        """The bytes of a number in storage."""
        return self.dtype.itemsize

    @property
    def positions(self) -> int:
        """The number of time steps times rows."""
        return self.steps * self.batch


class Made(NamedTuple):
    """What a step computes."""

    loss: float  # the sum over all positions, in nats
    gradients: list[tuple[str, Tensor]]  # of the mean loss, by the names of the weights
    rows: RowGradient | None  # that of the n-grams


class Place(NamedTuple):
    """Fields of a structure for the addresses of a weight and of its gradient."""

    weight: str
    structure: ctypes.Structure
    field: str | None  # None for the embedding, whose address is that of a copy
    gradient_field: str


class NativeNetwork:
    """The kernels' description of a network, and its working memory."""

    def __init__(self, shape: NetworkShape, memory: Tensor | None = None) -> None:
        """Describe the network; `memory` is that of an earlier one, used if it is large enough."""
        self.shape = shape
        layers = (NetworkLayer * shape.config.layers)()
        self._network = Network(layers=shape.config.layers, layer=layers)
        self._parts = list(layers)
        for number, part in enumerate(self._parts):
            _describe(part, number, shape)
        self._head = self._network.head
        _describe_head(self._head, shape)
        self._ngrams = self._network.ngrams
        if shape.config.ngram_bits:
            self._network.ngram_order, self._network.ngram_bits = shape.config.ngram_order, shape.config.ngram_bits
            self._ngrams.count = shape.config.ngram_order - 1
            self._head.ngrams = ctypes.pointer(self._ngrams)
        # In bfloat16 the kernels read a copy of the embedding.
        low = shape.dtype != torch.float32
        with torch.inference_mode(False):  # Later steps may be outside of it.
            self._low = fresh(shape.vocabulary_size, shape.config.embedding_size, dtype=shape.dtype) if low else None
        self.memory = self._lay_out(memory)
        self._places = self._find_places()

    def differentiate(
        self,
        weights: Mapping[str, Tensor],
        ids: Tensor,
        targets: Tensor,
        state: State,
        state_masks: Sequence[Tensor],
        output_masks: Sequence[Tensor],
    ) -> Made:
        """The loss of a batch and the gradients of the mean loss; the state is overwritten with that after the batch.

        All tensors are contiguous. `weights` has all of them by name, float32, in the shapes of the configuration; ids
        and targets (T, B) int64 are ids of the vocabulary; the state is that of `LanguageModel.forward`, float32; the
        masks are (B, H) float32, one for each layer, or none.

        Raises:
            MemoryError: if the working memory cannot be allocated.
        """
        network, head, first = self._network, self._head, self._parts[0]
        embedding = weights["embedding.weight"]
        first.input.x = first.scale.x = (embedding if self._low is None else self._low.copy_(embedding)).data_ptr()
        gradients = []
        for name, structure, field, gradient_field in self._places:
            weight = weights[name]
            gradient = torch.empty_like(weight)
            gradients.append((name, gradient))
            if field is not None:
                setattr(structure, field, weight.data_ptr())
            setattr(structure, gradient_field, gradient.data_ptr())
        first.scale.d_x = first.input.d_x
        first.layer.ids = network.ids = ids.data_ptr()
        head.targets = targets.data_ptr()
        self._give_masks(state_masks, output_masks)
        self._give_state(state)
        rows = None
        if self.shape.config.ngram_bits:
            array = weights["ngrams.weight"]
            rows = self._row_gradient()
            self._ngrams.array, self._ngrams.size, self._ngrams.offsets = (
                array.data_ptr(), len(array), rows.offsets.data_ptr(),
            )  # fmt: skip
            head.d_logits = rows.d_logits.data_ptr()
            network.tokens = state[-1].data_ptr()
        total = self.shape.kernels.differentiate(network)
        if self.shape.config.tied:
            gradients[-2][1].add_(gradients.pop()[1])
        return Made(total, gradients, rows)

    def _give_state(self, state: State) -> None:
        """The state (L, B, H) that the layers overwrite."""
        numbers = 4 * self.shape.batch * self.shape.config.units
        h, c = state[0].data_ptr(), state[1].data_ptr() if self.shape.config.cell == "lstm" else None
        for number, part in enumerate(self._parts):
            part.layer.state_h = h + number * numbers
            if c is not None:
                part.layer.state_c = c + number * numbers

    def _give_masks(self, state_masks: Sequence[Tensor], output_masks: Sequence[Tensor]) -> None:
        for part, mask in zip(self._parts, state_masks, strict=False):
            part.layer.mask = mask.data_ptr()
        if output_masks:
            for part, mask in zip(self._parts[:-1], output_masks, strict=False):
                part.output_mask = mask.data_ptr()
            self._head.mask = output_masks[-1].data_ptr()

    def _row_gradient(self) -> RowGradient:
        """Memory for that of the n-grams, which outlives the step."""
        shape = self.shape
        offsets = fresh(shape.config.ngram_order - 1, shape.positions, dtype=torch.int64)
        return RowGradient(offsets, fresh(shape.positions, shape.vocabulary_size, dtype=shape.dtype))

    def _find_places(self) -> list[Place]:
        config, places = self.shape.config, []
        for number, part in enumerate(self._parts):
            prefix = f"recurrent.{number}"
            places += [
                Place(f"{prefix}.weight_ih", part.input, "weight", "d_weight"),
                Place(f"{prefix}.weight_hh", part, "weights", "d_weights"),
                Place(f"{prefix}.bias_ih", part.input, "bias", "d_bias"),
            ]
            if config.cell in GRUS:
                places.append(Place(f"{prefix}.bias_hh", part.layer, "bias", "d_bias"))
        if config.multiplicative:
            places.append(Place("recurrent.0.weight_mx", self._parts[0].scale, "weight", "d_weight"))
        matrix = "embedding.weight" if config.tied else "head.weight"
        places += [Place("head.bias", self._head, "bias", "d_bias"), Place(matrix, self._head, "weight", "d_weight")]
        # The last two are those of the same weight, if it is tied.
        return [*places, Place("embedding.weight", self._parts[0].input, None, "d_x")]

    def _lay_out(self, memory: Tensor | None) -> Tensor:
        """Give each array a part of the memory; returns the memory."""
        shape, config = self.shape, self.shape.config
        units, size, table = config.units, shape.size, 4 * shape.vocabulary_size * config.units
        outputs, gates = shape.positions * units * size, GATES[config.cell]
        wanted: list[tuple[int, list[tuple[ctypes.Structure, str]]]] = []  # bytes, and the fields with the address
        # One array for what only one layer needs at a time: its table or inputs, and later the gradient of those.
        inputs = max(gates * table, gates * outputs if config.layers > 1 else 0)
        parts = self._parts
        wanted.append((inputs, [(parts[0].layer, "table"), (parts[0].layer, "d_table")]))
        wanted[-1][1].extend((part.input, field) for part in parts for field in ("y", "d_y"))
        wanted[-1][1].extend((part.layer, "inputs") for part in parts[1:])
        packed = shape.kernels.packed_bytes(config.cell, units, size == 2)
        wanted.append((packed, [(part.layer, "packed") for part in parts]))
        gradient: list[tuple[ctypes.Structure, str]] = [(part.layer, "d_outputs") for part in parts]
        gradient += [(part.input, "d_x") for part in parts[1:]]
        wanted.append((outputs, [*gradient, (self._head, "d_x")]))
        wanted.append((self._scratch_bytes(), [(self._head, "scratch")]))
        wanted[-1][1].extend((one, "scratch") for part in parts for one in (part, part.input, part.scale))
        if config.multiplicative:
            scale = parts[0].scale
            wanted.append((table, [(scale, "y"), (parts[0].layer, "scale")]))
            wanted.append((table, [(scale, "d_y"), (parts[0].layer, "d_scale")]))
        wanted.append((4 * shape.positions, [(self._head, "losses")]))
        if not config.ngram_bits:
            wanted.append((shape.positions * shape.vocabulary_size * size, [(self._head, "d_logits")]))
        wanted += self._kept(outputs + shape.batch * units * size, outputs)
        needed = sum(-(-count // LINE) * LINE for count, _ in wanted)
        if memory is None or memory.numel() < needed:
            memory = fresh(needed, dtype=torch.uint8)
        at = memory.data_ptr()
        for count, fields in wanted:
            for structure, field in fields:
                setattr(structure, field, at)
            at += -(-count // LINE) * LINE
        self._connect()
        return memory

    def _kept(self, states: int, outputs: int) -> list[tuple[int, list[tuple[ctypes.Structure, str]]]]:
        """What each layer keeps for its backward pass: the states of all steps, or the outputs."""
        cell, found = self.shape.config.cell, []
        for number, part in enumerate(self._parts):
            found.append((states, [(part.layer, "hidden")]))
            found.append((SLOTS[cell] * outputs, [(part.layer, "gates")]))
            if self.shape.state_masks or (self.shape.config.multiplicative and number == 0):
                found.append((states, [(part.layer, "masked")]))
            if cell == "lstm":
                found.append((states, [(part.layer, "cells")]))
            if self.shape.output_masks and part is not self._parts[-1]:
                found.append((outputs, [(part, "masked_outputs")]))
        return found

    def _connect(self) -> None:
        """Each layer reads the outputs of the one before, or those times its mask."""
        state = self.shape.batch * self.shape.config.units * self.shape.size
        for part, reader in zip(self._parts, [*self._parts[1:], None], strict=True):
            x = part.masked_outputs or part.layer.hidden + state
            (self._head if reader is None else reader.input).x = x

    def _scratch_bytes(self) -> int:
        """The size of the working memory that the calls use in turn."""
        shape, kernels = self.shape, self.shape.kernels
        units, rows = shape.config.units, PRODUCTS[shape.config.cell] * shape.config.units
        needed = [kernels.outer_bytes(shape.positions, rows, units, bf16=shape.size == 2, threads=shape.threads)]
        linear = [part.input for part in self._parts] + [self._parts[0].scale] * shape.config.multiplicative
        needed += [kernels.linear_bytes(one, backward=backward) for one in linear for backward in (False, True)]
        # Only whether these two are NULL counts here; a step fills in their addresses.
        self._head.d_bias, self._head.mask = 1, 1 if shape.output_masks else None
        return max(*needed, kernels.head_bytes(self._head))


def _describe(part: NetworkLayer, number: int, shape: NetworkShape) -> None:
    """The sizes of a layer."""
    config, bf16, threads = shape.config, int(shape.dtype == torch.bfloat16), shape.threads
    units, first = config.units, number == 0
    part.layer = Layer(
        cell=CELL_CODES[config.cell], bf16=bf16, steps=shape.steps, batch=shape.batch, units=units, threads=threads,
        tokens=shape.vocabulary_size if first else 0,
    )  # fmt: skip
    part.input = Linear(
        bf16=bf16, threads=threads, wide=int(first), rows=shape.vocabulary_size if first else shape.positions,
        inputs=config.embedding_size if first else units, outputs=GATES[config.cell] * units,
    )  # fmt: skip
    if first and config.multiplicative:
        part.scale = Linear(
            bf16=bf16, threads=threads, wide=1, curved=1, adding=1, rows=shape.vocabulary_size,
            inputs=config.embedding_size, outputs=units,
        )  # fmt: skip


def _describe_head(head: OutputLayer, shape: NetworkShape) -> None:
    """The sizes of the output layer."""
    head.bf16, head.threads = int(shape.dtype == torch.bfloat16), shape.threads
    head.rows, head.batch, head.units = shape.positions, shape.batch, shape.config.units
    head.vocabulary, head.scale = shape.vocabulary_size, 1 / shape.positions


# The network of each model's last step, except while a step uses it.
_idle: WeakKeyDictionary[WeightedModule, NativeNetwork] = WeakKeyDictionary()


def take_network(model: WeightedModule, shape: NetworkShape) -> NativeNetwork:
    """That of the last step, or a new one; `leave_network` gives it back."""
    network = _idle.pop(model, None)
    if network is not None and network.shape == shape:
        return network
    return NativeNetwork(shape, None if network is None else network.memory)


def leave_network(model: WeightedModule, network: NativeNetwork) -> None:
    """Keep a network for the next step."""
    _idle[model] = network


@contextmanager
def freeing_memory(model: WeightedModule) -> Iterator[None]:
    """Free the working memory of a model's steps after the block."""
    try:
        yield
    finally:
        _idle.pop(model, None)
        free_borrowed()

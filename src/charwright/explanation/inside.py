"""The inside of a network while it reads: the states and gates of every layer at every step.

The outputs of a layer come from the fast core. Its gates follow from them without a loop: at every step they are a
function of the input and of the state before, scaled by the input in a multiplicative layer, which are known by then.
T is time, B the batch, H the units.

The n-grams of a model are no part of its layers: they add to the logits what depends on the last few tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.config import GRUS, STATES, ModelConfig
from charwright.model.cells import State, Weights, as_gru, scaled_state
from charwright.model.compute import CPU, choose_core
from charwright.model.recurrent import LayerInput, Tokens, run_layer
from charwright.model.votes import offsets_of

CHUNK = 2**24
"""Logits computed at once, at most."""


@dataclass(frozen=True)
class Layer:
    """One layer at every step: h, and c and the gates where the cell has them, each (T, B, H)."""

    hidden: Tensor
    cell: Tensor | None = None
    gates: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def activations(self) -> Tensor:
        """The neurons, in [-1, 1]: tanh(c) for an LSTM, whose h is only what its output gate lets through; else h."""
        return self.hidden if self.cell is None else torch.tanh(self.cell)

    def state_after(self, steps: Tensor) -> State:
        """The state (S of (N, H)) of the only row of the batch after some steps (N,)."""
        parts = (self.hidden,) if self.cell is None else (self.hidden, self.cell)
        return tuple(part[steps, 0] for part in parts)


class Network:
    """The weights of a model, whose layers are run one by one on the CPU in float32."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take weights named as in `ModelConfig.weight_shapes`; they are not changed."""
        self.config = config
        self._weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
        self._core = choose_core("auto", CPU)
        self.embedding = self._weights["embedding.weight"]
        self._head = self.embedding if config.tied else self._weights["head.weight"]
        array = self._weights.get("ngrams.weight")
        self._rows = None if array is None else array.unfold(0, len(self.embedding), 1)  # a view, with a row per offset

    def zero_state(self, batch: int) -> list[State]:
        """The state of each layer before the first character."""
        zeros = torch.zeros(batch, self.config.units)
        return [(zeros,) * STATES[self.config.cell] for _ in range(self.config.layers)]

    @torch.no_grad()
    def read(self, ids: Tensor, states: list[State] | None = None, *, gates: bool = True) -> list[Layer]:
        """All layers while reading ids (T, B) int64, from a zero state or the given ones (S of (B, H) per layer).

        Without `gates`, none are kept: they take several times the memory of the states.
        """
        x: LayerInput = Tokens(ids, self.embedding)
        layers = []
        for index, state in enumerate(states or self.zero_state(ids.shape[1])):
            weights = self._layer(index)
            hidden, _ = run_layer(self._core, self.config.cell, x, state, weights, torch.float32)
            given = x.embedded() if isinstance(x, Tokens) else x
            before = torch.cat([state[0][None], hidden[:-1]])
            wanted = gates or self.config.cell == "lstm"
            layer = self._inside(given, before, hidden, state, weights) if wanted else Layer(hidden)
            layers.append(layer if gates else Layer(hidden, layer.cell))
            x = hidden
        return layers

    @torch.no_grad()
    def step(self, ids: Tensor, states: list[State]) -> list[State]:
        """The states after one more id per row, ids (B,)."""
        x: LayerInput = Tokens(ids[None], self.embedding)
        after = []
        for index, state in enumerate(states):
            x, last = run_layer(self._core, self.config.cell, x, state, self._layer(index), torch.float32)
            after.append(last)
        return after

    @torch.no_grad()
    def log_probabilities(self, hidden: Tensor, contexts: Tensor) -> Tensor:
        """The natural logarithm of p (N, V) of the next token.

        Args:
            hidden: (N, H), outputs of the last layer.
            contexts: (N, order), rows of `contexts_of` for the same steps.
        """
        logits = F.linear(hidden, self._head, self._weights["head.bias"])
        if self._rows is not None:
            for offsets in offsets_of(contexts, self.config.ngram_bits):
                logits += self._rows[offsets]
        return torch.log_softmax(logits, dim=-1)

    def rows_at_once(self) -> int:
        """How many rows of `log_probabilities` fit into memory comfortably."""
        return max(1, CHUNK // len(self.embedding))

    def _layer(self, index: int) -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_mx")
        found = (self._weights.get(f"recurrent.{index}.{name}") for name in names)
        return Weights(*found)  # type: ignore[arg-type]

    def _inside(self, x: Tensor, before: Tensor, hidden: Tensor, state: State, weights: Weights) -> Layer:
        if self.config.cell == "rnn":
            return Layer(hidden)
        if self.config.cell == "igru":
            weights = as_gru(weights)
        before = scaled_state(x, before, weights)
        # Products of whole sequences, gate by gate: all at once would take G times the memory.
        units = self.config.units

        def gate(number: int) -> Tensor:
            rows = slice(number * units, (number + 1) * units)
            bias = weights.bias_ih[rows] + (0 if weights.bias_hh is None else weights.bias_hh[rows])
            return F.linear(x, weights.weight_ih[rows], bias) + F.linear(before, weights.weight_hh[rows])

        if self.config.cell in GRUS:
            return Layer(hidden, None, {"reset": torch.sigmoid(gate(0)), "update": torch.sigmoid(gate(1))})
        gates = {name: torch.sigmoid(gate(number)) for name, number in (("input", 0), ("forget", 1), ("output", 3))}
        new = gates["input"] * torch.tanh(gate(2))
        cell, steps = state[1], []
        for forget, more in zip(gates["forget"], new, strict=True):
            cell = forget * cell + more
            steps.append(cell)
        return Layer(hidden, torch.stack(steps), gates)

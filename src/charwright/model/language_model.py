"""Embedding -> recurrent layers -> head: ids in, logits out, and the state between."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from charwright.config import STATES, ModelConfig
from charwright.errors import ConfigError
from charwright.model.cells import State, Weights
from charwright.model.loss import head_loss
from charwright.model.recurrent import LayerInput, Tokens, choose_core, linear, run_layer

Arrays = dict[str, npt.NDArray[np.float32]]


class LanguageModel(nn.Module):
    """A recurrent character model.

    >>> model = LanguageModel(ModelConfig(units=8, embedding=4), vocabulary_size=10, seed=1)
    >>> logits, state = model(torch.zeros(5, 2, dtype=torch.int64))
    >>> logits.shape, state[0].shape
    (torch.Size([5, 2, 10]), torch.Size([1, 2, 8]))
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        *,
        seed: int = 1,
        embedding_range: float = 0.05,
        precision: torch.dtype = torch.float32,
        core: str = "auto",
    ) -> None:
        """Make the weights and fill them as Keras would, from `seed`.

        The embedding begins between `-embedding_range` and `embedding_range`. `precision` is the type of the matrix
        products; the weights themselves stay in float32. `core` is one of `charwright.model.recurrent.CORES`.
        """
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.precision, self.core = precision, core
        self.weights = nn.ParameterDict(
            {_key(name): torch.empty(shape) for name, shape in config.weight_shapes(vocabulary_size).items()}
        )
        self._initialise(torch.Generator().manual_seed(seed), embedding_range)

    def forward(
        self, ids: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Logits for the character after each position.

        Args:
            ids: (T, B) int64.
            state: (h,) or (h, c), each (L, B, H) float32; None is zero.
            generator: where the dropout masks come from; needed while training with dropout.

        Returns:
            logits (T, B, V) float32, and the state after the last position.
        """
        x, state = self._recurrent(ids, state, generator)
        return linear(x, self._head, self.weight("head.bias"), self.precision), state

    def loss(
        self, ids: Tensor, targets: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """The mean cross-entropy of a batch, and the state after it.

        The same as `cross_entropy` of the logits, without ever holding all of them: faster, and much smaller for a
        large vocabulary. Arguments as for `forward`; targets: (T, B) int64.
        """
        x, state = self._recurrent(ids, state, generator)
        core = choose_core(self.core, ids.device, self.precision)
        return head_loss(x, self._head, self.weight("head.bias"), targets, self.precision, core), state

    def _recurrent(self, ids: Tensor, state: State | None, generator: torch.Generator | None) -> tuple[Tensor, State]:
        """All recurrent layers: ids (T, B) -> the last one's outputs (T, B, H), and the state after."""
        state = self.zero_state(ids.shape[1]) if state is None else state
        core = choose_core(self.core, ids.device, self.precision)
        noise = Noise(self.config, generator) if self.training else None
        x: LayerInput = Tokens(ids, self.weight("embedding.weight"))
        last = []
        for layer in range(self.config.layers):
            weights, mask = self._layer(layer), None
            if noise is not None:
                weights = weights._replace(weight_hh=noise.connections(weights.weight_hh))
                mask = noise.state(state[0][layer])
            before = tuple(part[layer] for part in state)
            x, after = run_layer(core, self.config.cell, x, before, weights, self.precision, mask)
            x = noise.outputs(x) if noise is not None else x
            last.append(after)
        assert isinstance(x, Tensor)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    @property
    def _head(self) -> Tensor:
        return self.weight("embedding.weight" if self.config.tied else "head.weight")

    def zero_state(self, batch: int) -> State:
        """The state before the first character: zeros (L, B, H)."""
        like = self.weight("head.bias")
        shape = (self.config.layers, batch, self.config.units)
        return tuple(like.new_zeros(shape) for _ in range(STATES[self.config.cell]))

    def weight(self, name: str) -> Tensor:
        """One weight by its name in `ModelConfig.weight_shapes`."""
        weight: Tensor = self.weights[_key(name)]
        return weight

    def arrays(self) -> Arrays:
        """A copy of all weights as float32 arrays, by their names in `ModelConfig.weight_shapes`."""
        return {
            name: self.weight(name).detach().to("cpu", torch.float32).numpy().copy()
            for name in self.config.weight_shapes(self.vocabulary_size)
        }

    def load_arrays(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take the weights from arrays.

        Raises:
            ConfigError: when a name is missing or unknown, or a shape does not fit.
        """
        expected = self.config.weight_shapes(self.vocabulary_size)
        if set(arrays) != set(expected):
            odd = sorted(set(arrays) ^ set(expected))[0]
            raise ConfigError(f"the weights do not fit the model: {odd!r} is missing or unknown")
        with torch.no_grad():
            for name, shape in expected.items():
                if arrays[name].shape != shape:
                    raise ConfigError(f"the weight {name!r} has shape {arrays[name].shape}, not {shape}")
                self.weight(name).copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))

    @classmethod
    def from_arrays(cls, config: ModelConfig, arrays: Mapping[str, npt.NDArray[np.float32]]) -> LanguageModel:
        """A model with the given weights: `LanguageModel.from_arrays(run.model, run.weights())`."""
        model = cls(config, len(arrays["head.bias"]))
        model.load_arrays(arrays)
        return model

    def _layer(self, layer: int) -> Weights:
        prefix = f"recurrent.{layer}."
        bias_hh = self.weight(prefix + "bias_hh") if self.config.cell == "gru" else None
        return Weights(
            self.weight(prefix + "weight_ih"),
            self.weight(prefix + "weight_hh"),
            self.weight(prefix + "bias_ih"),
            bias_hh,
        )

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator, embedding_range: float) -> None:
        """Keras's defaults: uniform embedding, Glorot input and head, orthogonal recurrence, zero biases."""
        for name in self.config.weight_shapes(self.vocabulary_size):
            weight = self.weight(name)
            if name == "embedding.weight":
                weight.uniform_(-embedding_range, embedding_range, generator=generator)
            elif name.endswith("weight_hh"):
                nn.init.orthogonal_(weight, generator=generator)
            elif name.endswith("weight_ih") or name == "head.weight":
                limit = math.sqrt(6 / sum(weight.shape))  # Glorot & Bengio, 2010, equation 16
                weight.uniform_(-limit, limit, generator=generator)
            else:
                weight.zero_()
            if self.config.cell == "lstm" and name.endswith("bias_ih"):
                weight[self.config.units : 2 * self.config.units] = 1  # remember at first (Jozefowicz et al., 2015)


class Noise:
    """What training silences at random; each kind has its own option, and 0 leaves everything as it is."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        """Draw from `generator`; it may be None where nothing is silenced.

        Raises:
            ValueError: when something has to be drawn and there is no generator.
        """
        if generator is None and (config.dropout or config.state_dropout or config.weight_dropout):
            raise ValueError("training with dropout draws its masks from a generator; pass generator=...")
        self._config, self._generator = config, generator

    def outputs(self, x: Tensor) -> Tensor:
        """A layer's outputs (T, B, H), one mask for a row's whole sequence (Gal & Ghahramani, 2016)."""
        mask = self._mask(x[:1], self._config.dropout)
        return x if mask is None else x * mask

    def state(self, h: Tensor) -> Tensor | None:
        """One mask (B, H) for a row's whole sequence, inside the recurrent product (Gal & Ghahramani, 2016)."""
        return self._mask(h, self._config.state_dropout)

    def connections(self, weights: Tensor) -> Tensor:
        """Recurrent weights (G * H, H), one mask for the batch (DropConnect: Merity et al., 2018)."""
        mask = self._mask(weights, self._config.weight_dropout)
        return weights if mask is None else weights * mask

    def _mask(self, like: Tensor, rate: float) -> Tensor | None:
        if rate == 0:
            return None
        mask = torch.empty_like(like, requires_grad=False).bernoulli_(1 - rate, generator=self._generator)
        return mask.div_(1 - rate)


def _key(name: str) -> str:
    """ParameterDict takes no dots in its keys."""
    return name.replace(".", "_")

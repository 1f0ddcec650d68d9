"""The weights of a model as float32 arrays, by the names of `ModelConfig.weight_shapes`."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from charwright.arguments import require
from charwright.arrays import Arrays
from charwright.config import ModelConfig
from charwright.errors import ConfigError, UsageError


class WeightedModule(nn.Module):
    """A module whose weights have the names of `ModelConfig.weight_shapes`, and convert to and from arrays."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        """Allocate the weights, uninitialized.

        Raises:
            UsageError: when the configuration is something else, or the size is no whole number above 0.
        """
        super().__init__()
        require(config, ModelConfig, "the configuration of a model is a ModelConfig", "ModelConfig(units=...)")
        require(vocabulary_size, numbers.Integral, "the size of a vocabulary is a whole number", "pass its len()")
        if vocabulary_size < 1 or isinstance(vocabulary_size, bool):
            raise UsageError(f"a vocabulary has at least one token, not {vocabulary_size}")
        self.config, self.vocabulary_size = config, vocabulary_size
        self._shapes = config.weight_shapes(vocabulary_size)
        self.weights = nn.ParameterDict({_key(name): torch.empty(shape) for name, shape in self._shapes.items()})

    def weight(self, name: str) -> Tensor:
        """One weight by its name in `ModelConfig.weight_shapes`."""
        key = _key(name)
        # A training step asks 30 times, and PyTorch's own way takes ten times as long as a dictionary.
        weight = self._modules["weights"]._parameters.get(key)  # type: ignore[union-attr]
        return weight if weight is not None else self.weights[key]  # one that is parametrized, for example

    def named_weights(self) -> dict[str, Tensor]:
        """All weights by name, in order."""
        return {name: self.weight(name) for name in self._shapes}

    def arrays(self) -> Arrays:
        """A copy of all weights."""
        return {
            name: weight.detach().to("cpu", torch.float32).numpy().copy()
            for name, weight in self.named_weights().items()
        }

    def load_arrays(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Copy the weights from arrays.

        Raises:
            ConfigError: when a name is missing or unknown, a shape is wrong, or a weight is parametrized; no weight has
                changed then.
        """
        if set(arrays) != set(self._shapes):
            odd = sorted(set(arrays) ^ set(self._shapes))[0]
            problem = "unknown" if odd in arrays else "missing"
            raise ConfigError(f"the weights do not fit the model: {odd!r} is {problem}")
        for name, shape in self._shapes.items():
            if arrays[name].shape != shape:
                raise ConfigError(f"the weight {name!r} has shape {arrays[name].shape}, not {shape}")
            if not isinstance(self.weight(name), nn.Parameter):
                raise ConfigError(f"the weight {name!r} has a parametrization; remove that first")
        with torch.no_grad():
            for name in self._shapes:
                self.weight(name).copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))


@cache
def _key(name: str) -> str:
    """The key of a weight: ParameterDict does not allow dots."""
    return name.replace(".", "_")

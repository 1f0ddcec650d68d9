"""The language model: embedding -> recurrent layers -> output layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charwright import kernels
from charwright.config import GRUS, STATES, ModelConfig, TrainingConfig
from charwright.model import native_loss
from charwright.model.cells import State, Weights
from charwright.model.compute import Compute, choose_core
from charwright.model.dropout import Dropout
from charwright.model.initialization import initialize
from charwright.model.loss import head_loss
from charwright.model.recurrent import LayerInput, Tokens, linear, run_layer
from charwright.model.votes import RowGradient, Votes, contexts_of, offsets_of, summed_votes
from charwright.model.weights import WeightedModule


class LanguageModel(WeightedModule):
    """A recurrent character model.

    >>> model = LanguageModel(ModelConfig(units=8, embedding_size=4), vocabulary_size=10, seed=1)
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
        embedding_range: float = TrainingConfig.embedding_range,
        compute: Compute | None = None,
    ) -> None:
        """Initialize the weights from `seed` as Keras does, and move them to the device of `compute`.

        The embedding is uniform between `-embedding_range` and `embedding_range`. The default `compute` is the CPU in
        float32. Weights are float32 whatever the precision of the products.
        """
        super().__init__(config, vocabulary_size)
        self.compute = compute or Compute()
        self.ngram_gradients: list[RowGradient] | None = None
        """Those that `collecting_ngram_gradients` has collected so far; None outside of it."""
        initialize(config, self.named_weights(), torch.Generator().manual_seed(seed), embedding_range)
        self.to(self.compute.device)

    def forward(
        self, ids: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Logits for the token after each position.

        Args:
            ids: (T, B) int64.
            state: (h,) or (h, c), each (L, B, H) float32, and with n-grams (1, B, order - 1), the tokens before: 1 +
                the id of each, the last one first, and 0 for none; None is zero.
            generator: the source of the dropout masks; required in training mode with dropout.

        Returns:
            logits (T, B, V) float32, and the state after the last position.
        """
        x, after = self._recurrent(ids, state, Dropout(self.config, generator) if self.training else None)
        logits = linear(x, self._head, self.weight("head.bias"), self.compute.precision)
        votes, after = self._votes(ids, state, after)
        if votes is None:
            return logits, after
        return logits + summed_votes(votes, self.vocabulary_size).view_as(logits), after

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        generator: torch.Generator | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """The mean cross-entropy of a batch in nats, and the state after it.

        Equal to `cross_entropy` of the logits, but faster and without all logits in memory at once, which matters for a
        large vocabulary; with n-grams their gradients are kept until the backward pass. Arguments as for `forward`;
        targets: (T, B) int64; masks: those of dropout, drawn already.
        """
        dropout = Dropout(self.config, generator, masks) if self.training else None
        x, mask, after = self._layers(ids, state, dropout)
        votes, after = self._votes(ids, state, after)
        bias, precision, kernel = self.weight("head.bias"), self.compute.precision, self.compute.kernel
        core = self._core(ids.device)
        return head_loss(x, self._head, bias, targets, precision, core, kernel, votes, mask), after

    @contextmanager
    def collecting_ngram_gradients(self, collecting: bool = True) -> Iterator[None]:
        """In the block, backward passes leave the gradient of the n-grams' array in `ngram_gradients`, not in `grad`.

        There it would be an array of zeros with a few rows, which takes longer to make and to read than all else. The
        optimizers of `make_optimizer` read both. Without `collecting`, it is left in `grad` in the block too.
        """
        before, self.ngram_gradients = self.ngram_gradients, [] if collecting else None
        try:
            yield
        finally:
            self.ngram_gradients = before

    def _votes(self, ids: Tensor, before: State | None, after: State) -> tuple[Votes | None, State]:
        """The votes of the n-grams at all positions, if there are any, and the state after with the last tokens."""
        if not self.config.ngram_bits:
            return None, after
        tokens = self.zero_state(ids.shape[1])[-1] if before is None else before[-1]
        shape, core = (1, ids.shape[1], self.config.ngram_order - 1), self._core(ids.device)
        if core == "native" and (ids.dtype, tokens.dtype, tokens.shape) == (torch.int64, torch.float32, shape):
            loaded = kernels.load(self.compute.kernel)
            assert loaded is not None
            offsets, last = native_loss.contexts(loaded, ids, tokens[0], self.config.ngram_bits)
        else:
            contexts = contexts_of(ids, self.config.ngram_order, tokens[0])
            offsets = offsets_of(contexts, self.config.ngram_bits).flatten(1)
            last = contexts[-1, :, :-1].to(tokens.dtype)
        return Votes(self.weight("ngrams.weight"), offsets, self.ngram_gradients), (*after, last[None])

    def _recurrent(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, State]:
        """All recurrent layers: ids (T, B) -> outputs of the last one (T, B, H), and the state of all after."""
        x, mask, after = self._layers(ids, state, dropout)
        return _masked(x, mask), after

    def _layers(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, Tensor | None, State]:
        """As `_recurrent`, with the mask (1, B, H) or None by which dropout has yet to multiply the outputs."""
        state = (self.zero_state(ids.shape[1]) if state is None else state)[: STATES[self.config.cell]]
        core, precision = self._core(ids.device), self.compute.precision
        x: LayerInput = Tokens(ids, self.weight("embedding.weight"))
        output_mask: Tensor | None = None
        last = []
        for layer in range(self.config.layers):
            mask = dropout.state_mask(state[0][layer]) if dropout is not None else None
            before = tuple(part[layer] for part in state)
            weights, kernel = self._layer(layer), self.compute.kernel
            x = x if isinstance(x, Tokens) else _masked(x, output_mask)
            x, after = run_layer(core, self.config.cell, x, before, weights, precision, mask, kernel)
            output_mask = dropout.output_mask(x) if dropout is not None else None
            last.append(after)
        assert isinstance(x, Tensor)
        return x, output_mask, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def zero_state(self, batch: int) -> State:
        """The state before the first character: zeros of the shapes that `forward` has."""
        like = self.weight("head.bias")
        shapes = [(self.config.layers, batch, self.config.units)] * STATES[self.config.cell]
        shapes += [(1, batch, self.config.ngram_order - 1)] if self.config.ngram_bits else []
        return tuple(like.new_zeros(shape) for shape in shapes)

    @property
    def _head(self) -> Tensor:
        return self.weight("embedding.weight" if self.config.tied else "head.weight")

    def _layer(self, layer: int) -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", *(("bias_hh",) if self.config.cell in GRUS else ()))
        scale = self.weight("recurrent.0.weight_mx") if self.config.multiplicative and layer == 0 else None
        return Weights(*(self.weight(f"recurrent.{layer}.{name}") for name in names))._replace(weight_mx=scale)

    def _core(self, device: torch.device) -> str:
        return choose_core(self.compute.core, device, self.compute.precision, self.compute.kernel)

    @classmethod
    def from_arrays(
        cls, config: ModelConfig, arrays: Mapping[str, npt.NDArray[np.float32]], compute: Compute | None = None
    ) -> LanguageModel:
        """A model with the given weights: `LanguageModel.from_arrays(run.model, run.weights())`."""
        model = cls(config, len(arrays["head.bias"]), compute=compute)
        model.load_arrays(arrays)
        return model


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask

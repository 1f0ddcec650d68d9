"""The language model: embedding -> recurrent layers -> output layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright import kernels
from charwright.config import GRUS, STATES, ModelConfig, TrainingConfig
from charwright.kernels import UNITS_MULTIPLE, Kernels
from charwright.model import native_loss
from charwright.model.cells import State, Weights
from charwright.model.compute import Compute, choose_core
from charwright.model.dropout import Dropout
from charwright.model.initialization import initialize
from charwright.model.kernel_calls import check_ids, share_threads
from charwright.model.loss import MOST_LOGITS_BYTES, check_targets, has_head, head_loss
from charwright.model.native_network import NetworkShape, leave_network, take_network
from charwright.model.recurrent import LayerInput, Tokens, linear, run_layer
from charwright.model.votes import RowGradient, Votes, contexts_of, offsets_of, summed_votes
from charwright.model.weights import WeightedModule

# What observes how autograd makes a gradient. The names are private; with a PyTorch that lacks one, autograd makes all.
WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


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
        seed: int | None = 1,
        embedding_range: float = TrainingConfig.embedding_range,
        compute: Compute | None = None,
    ) -> None:
        """Initialize the weights from `seed` as Keras does, and move them to the device of `compute`.

        The embedding is uniform between `-embedding_range` and `embedding_range`. Without a seed (None) the weights
        hold anything until `load_arrays`. The default `compute` is the CPU in float32. Weights are float32 whatever the
        precision of the products.
        """
        super().__init__(config, vocabulary_size)
        self.compute = compute or Compute()
        self.ngram_gradients: list[RowGradient] | None = None
        """Those that `collecting_ngram_gradients` has collected so far; None outside of it."""
        if seed is not None:
            initialize(config, self.named_weights(), torch.Generator().manual_seed(int(seed)), embedding_range)
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

        Raises:
            ValueError: when the ids are not integers (T, B), or the state does not have these shapes.
        """
        ids = _int64(ids)
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
        large vocabulary; with n-grams their gradients are kept until the backward pass. A subclass that overrides
        `forward` has the loss of its own logits. Arguments as for `forward`; targets: (T, B) int64; masks: those of
        dropout, drawn already.
        """
        ids, targets = _int64(ids), _int64(targets)
        if getattr(self.forward, "__func__", None) is not _OWN_FORWARD:
            if masks:
                raise ValueError("a model that overrides forward draws its masks itself")
            logits, after = self(ids, state, generator=generator)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), after
        dropout = Dropout(self.config, generator, masks) if self.training else None
        x, mask, after = self._layers(ids, state, dropout)
        votes, after = self._votes(ids, state, after)
        bias, precision, kernel = self.weight("head.bias"), self.compute.precision, self.compute.kernel
        core = self._core(ids.device)
        return head_loss(x, self._head, bias, targets, precision, core, kernel, votes, mask), after

    def differentiate(
        self,
        ids: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        generator: torch.Generator | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """The `loss` and the state after it, both detached; the gradients are added to the `grad` of the weights.

        Equal to `loss` and its `backward`. Where the C kernels compute the whole network, it is one call of them,
        without autograd, which saves a sixth of a step of 256 units. Hooks of the weights are called; those of the
        nodes of a graph are not, since there is none.
        """
        ids, targets = _int64(ids), _int64(targets)
        loaded = kernels.load(self.compute.kernel) if self._core(ids.device) == "native" else None
        weights = self.named_weights()
        if loaded is not None and self._is_native_throughout(loaded, weights, ids, state):
            dropout = Dropout(self.config, generator, masks) if self.training else None
            with torch.no_grad():
                return self._differentiate(loaded, weights, ids, targets, state, dropout)
        with torch.inference_mode(False), torch.enable_grad():
            ids, targets = _recordable(ids), _recordable(targets)
            state = None if state is None else tuple(map(_recordable, state))
            loss, after = self.loss(ids, targets, state, generator=generator, masks=masks)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), tuple(part.detach() for part in after)

    def _is_native_throughout(
        self, loaded: Kernels, weights: Mapping[str, Tensor], ids: Tensor, state: State | None
    ) -> bool:
        """Whether the kernels compute the whole network as it is, and all its gradients are wanted and unobserved."""
        shape = self.config
        logits_bytes = ids.numel() * self.vocabulary_size * self.compute.precision.itemsize
        return (
            type(self) is LanguageModel
            and getattr(self.loss, "__func__", None) is _OWN_LOSS
            and getattr(self.forward, "__func__", None) is _OWN_FORWARD
            and not torch.is_anomaly_enabled()
            and shape.units % UNITS_MULTIPLE == shape.embedding_size % UNITS_MULTIPLE == 0
            and self.vocabulary_size <= ids.numel() // 4
            and has_head(loaded, self.vocabulary_size)
            and logits_bytes <= MOST_LOGITS_BYTES
            and ids.dim() == 2
            and (not shape.ngram_bits or self.ngram_gradients is not None)
            and all(map(_is_unobserved_leaf, weights.values(), self._shapes.values()))
            and not any(part.requires_grad or not isinstance(part, torch.FloatTensor) for part in state or ())
        )

    def _differentiate(
        self,
        loaded: Kernels,
        weights: Mapping[str, Tensor],
        ids: Tensor,
        targets: Tensor,
        state: State | None,
        dropout: Dropout | None,
    ) -> tuple[Tensor, State]:
        """As `differentiate`, by the kernels alone."""
        check_ids(loaded, ids, self.vocabulary_size)
        check_targets(targets, ids, self.vocabulary_size, loaded)
        batch = ids.shape[1]
        if state is None:
            after = self.zero_state(batch)
        else:
            before = self._checked_state(state, batch)
            after = tuple(part.clone(memory_format=torch.contiguous_format) for part in before)
        state_masks, output_masks = dropout.all_masks(batch, ids.device) if dropout is not None else ([], [])
        shape = NetworkShape(
            loaded, self.config, self.vocabulary_size, len(ids), batch, self.compute.precision,
            torch.get_num_threads(), bool(state_masks), bool(output_masks),
        )  # fmt: skip
        read = {name: weight.contiguous() for name, weight in weights.items()}
        share_threads(loaded)
        network = take_network(self, shape)
        made = network.differentiate(read, ids.contiguous(), targets.contiguous(), after, state_masks, output_masks)
        leave_network(self, network)
        if made.rows is not None and self.ngram_gradients is not None:
            self.ngram_gradients.append(made.rows)
        for name, gradient in made.gradients:
            weight = weights[name]
            if weight.grad is None:
                weight.grad = gradient
            else:
                weight.grad.add_(gradient)
        return torch.scalar_tensor(made.loss / ids.numel(), dtype=torch.float32, device=ids.device), after

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
        state = self.zero_state(ids.shape[1]) if state is None else self._checked_state(state, ids.shape[1])
        state = state[: STATES[self.config.cell]]
        x: LayerInput = Tokens(ids, self.weight("embedding.weight"))
        output_mask: Tensor | None = None
        last = []
        for layer in range(self.config.layers):
            mask = dropout.state_mask(state[0][layer]) if dropout is not None else None
            x = x if isinstance(x, Tokens) else _masked(x, output_mask)
            x, after = self._run_layer(layer, x, tuple(part[layer] for part in state), mask)
            output_mask = dropout.output_mask(x) if dropout is not None else None
            last.append(after)
        assert isinstance(x, Tensor)
        stacked = tuple(parts[0][None] if len(parts) == 1 else torch.stack(parts) for parts in zip(*last, strict=True))
        return x, output_mask, stacked

    def _run_layer(self, layer: int, x: LayerInput, before: State, mask: Tensor | None) -> tuple[Tensor, State]:
        core, cell, precision = self._core(self.weight("head.bias").device), self.config.cell, self.compute.precision
        return run_layer(core, cell, x, before, self._layer(layer), precision, mask, self.compute.kernel)

    def zero_state(self, batch: int) -> State:
        """The state before the first character: zeros of the shapes that `forward` has."""
        like = self.weight("head.bias")
        return tuple(like.new_zeros(shape) for shape in self._state_shapes(batch))

    def _state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = [(self.config.layers, batch, self.config.units)] * STATES[self.config.cell]
        return shapes + ([(1, batch, self.config.ngram_order - 1)] if self.config.ngram_bits else [])

    def _checked_state(self, state: State, batch: int) -> State:
        found, shapes = [tuple(part.shape) for part in state], self._state_shapes(batch)
        if found != shapes:
            raise ValueError(f"the state of {batch} rows has the shapes {shapes}, not {found}")
        return state

    @property
    def _head_name(self) -> str:
        return "embedding.weight" if self.config.tied else "head.weight"

    @property
    def _head(self) -> Tensor:
        return self.weight(self._head_name)

    def _layer(self, layer: int) -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", *(("bias_hh",) if self.config.cell in GRUS else ()))
        scale = self.weight("recurrent.0.weight_mx") if self.config.multiplicative and layer == 0 else None
        return Weights(*(self.weight(f"recurrent.{layer}.{name}") for name in names))._replace(weight_mx=scale)

    def _core(self, device: torch.device) -> str:
        return choose_core(self.compute.core, device, self.compute.precision, self.compute.kernel)

    @classmethod
    def from_arrays(
        cls, config: ModelConfig, arrays: Mapping[str, npt.NDArray[np.float32]], compute: Compute | None = None
    ) -> Self:
        """A model with the given weights: `LanguageModel.from_arrays(run.model, run.weights())`.

        Raises:
            ConfigError: when they are not those of such a model.
        """
        tokens = len(arrays["head.bias"]) if "head.bias" in arrays else 1  # load_arrays says what is missing.
        # With 1024 units initial weights take a fifth of a second. A subclass may not know that it can be without.
        model = (
            cls(config, tokens, seed=None, compute=compute)
            if cls is LanguageModel
            else cls(config, tokens, compute=compute)
        )
        model.load_arrays(arrays)
        return model


def _is_unobserved_leaf(weight: Tensor, shape: tuple[int, ...]) -> bool:
    first, second = WEIGHT_HOOKS
    return (
        isinstance(weight, torch.FloatTensor)
        and weight.shape == shape
        and weight.requires_grad
        and weight.is_leaf
        and not (getattr(weight, first, True) or getattr(weight, second, True))
    )


def _recordable(tensor: Tensor) -> Tensor:
    """A copy that autograd may keep, of a tensor from inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)


def _int64(ids: Tensor) -> Tensor:
    if isinstance(ids, Tensor) and ids.dim() != 2:
        raise ValueError(f"ids must be (T, B), time first, not of shape {tuple(ids.shape)}")
    if isinstance(ids, torch.LongTensor):
        return ids
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be a tensor of integers, not {getattr(ids, 'dtype', type(ids).__name__)}")
    return ids.long()


_OWN_LOSS, _OWN_FORWARD = LanguageModel.loss, LanguageModel.forward

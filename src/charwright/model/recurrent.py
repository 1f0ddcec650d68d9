"""One recurrent layer over a whole sequence, by one of four cores.

- `plain`: the cells in a loop, on any device. Slow and simple: the reference for the others.
- `native`: the C kernels, on a CPU.
- `fused`: the same optimizations in PyTorch alone, on any device.
- `torch`: PyTorch's own layers, which use cuDNN on CUDA; with recurrent dropout, or a multiplicative layer, the same as
  `fused`.

The input product of the first layer is a table, embedding x W_ih + b_ih, with one row per token; so is the scale of a
multiplicative one, 1 + tanh(embedding x P).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright import kernels
from charwright.model.cells import State, Weights, as_gru
from charwright.model.fused import fused_layer
from charwright.model.native import native_layer
from charwright.model.plain import unroll

# Up to this many tokens the gradient of a lookup is a product with one-hot rows; above it, a scatter-add.
ONE_HOT_LIMIT = 512


@dataclass(frozen=True)
class Tokens:
    """The input of the first layer: token ids (T, B) int64 and the embedding (V, E)."""

    ids: Tensor
    embedding: Tensor

    def embedded(self) -> Tensor:
        """The embedded tokens (T, B, E)."""
        return F.embedding(self.ids, self.embedding)


LayerInput = Tensor | Tokens


def run_layer(
    core: str,
    cell: str,
    x: LayerInput,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    kernel: str | None = None,
) -> tuple[Tensor, State]:
    """One recurrent layer over a sequence.

    Args:
        core: plain, native, fused or torch.
        cell: gru, igru, lstm or rnn.
        x: (T, B, E), or the tokens of the first layer, which alone may be multiplicative.
        state: (h,) or (h, c), each (B, H).
        weights: the layer's weights.
        dtype: the type of the matrix products.
        mask: (B, H), multiplied with the state inside the recurrent product (Gal & Ghahramani, 2016).
        kernel: the variant of the C kernels; None is as CHARWRIGHT_KERNELS says, or the best.

    Returns:
        outputs (T, B, H), in float32 or `dtype`, and the last state in float32.
    """
    if core == "plain":
        return unroll(cell, _plain(x), state, weights, mask)
    if core == "torch" and mask is None and weights.weight_mx is None:
        cell, weights = ("gru", as_gru(weights)) if cell == "igru" else (cell, weights)
        return _library_layer(cell, _plain(x), state, weights, dtype)
    if core == "native":
        loaded = kernels.load(kernel)
        assert loaded is not None
        if isinstance(x, Tokens):
            embedding, ids = _occurring(x)
            return native_layer(loaded, cell, embedding, ids, state, weights, dtype, mask)
        return native_layer(loaded, cell, x, None, state, weights, dtype, mask)
    # PyTorch's layers have no mask or scale on the state: with one, the core `torch` computes as `fused` does.
    return fused_layer(cell, *_project(x, weights, dtype), state, weights, dtype, mask)


def _plain(x: LayerInput) -> Tensor:
    return x.embedded() if isinstance(x, Tokens) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """X W^T + b, with the product in `dtype` and the result in the type of the bias."""
    if dtype == bias.dtype:
        return F.linear(x.to(dtype), weight, bias)
    return F.linear(x.to(dtype), weight.to(dtype)).to(bias.dtype) + bias


def _occurring(x: Tokens) -> tuple[Tensor, Tensor]:
    """The embedding of each token that occurs, or of all, (U, E), and the row of each position (T, B)."""
    embedding, ids = x.embedding, x.ids
    # In a small vocabulary nearly all tokens occur. A GPU has to be waited for to count those that do.
    if len(embedding) > ids.numel() // 4 and not ids.is_cuda:
        occurring, ids = torch.unique(ids, return_inverse=True)
        embedding = F.embedding(occurring, embedding)
    return embedding, ids


def _table(x: Tensor, weights: Weights, dtype: torch.dtype) -> Tensor:
    """The gate inputs (..., G * H) of inputs (..., E)."""
    return linear(x, weights.weight_ih, weights.bias_ih, dtype)


def _scale(x: Tensor, weights: Weights, dtype: torch.dtype) -> Tensor | None:
    """The scale (..., H) of the state for inputs (..., E), in a multiplicative layer."""
    if weights.weight_mx is None:
        return None
    return 1 + torch.tanh(F.linear(x.to(dtype), weights.weight_mx.to(dtype)).to(weights.weight_mx.dtype))


def _project(x: LayerInput, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The gate inputs at each position (T, B, G * H), and the scale of the state (T, B, H) or None."""
    if isinstance(x, Tokens) and x.ids.is_cuda and len(x.embedding) > x.ids.numel():
        x = x.embedded()  # A table of all tokens would have more rows than there are positions.
    if not isinstance(x, Tokens):
        return _table(x, weights, dtype), _scale(x, weights, dtype)
    embedding, ids = _occurring(x)
    gates, scale = _table(embedding, weights, dtype), _scale(embedding, weights, dtype)
    looked_up: Any = _Lookup.apply(gates, ids, dtype)  # type: ignore[no-untyped-call]
    return looked_up, None if scale is None else _Lookup.apply(scale, ids, dtype)  # type: ignore[no-untyped-call]


class _Lookup(torch.autograd.Function):
    """table (V, N) and ids (T, B) -> rows (T, B, N)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.size, ctx.dtype = len(table), dtype
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ids,), rows = ctx.saved_tensors, grads[0].flatten(0, 1)
        if ctx.size > ONE_HOT_LIMIT:
            table = rows.new_zeros(ctx.size, rows.shape[1])
            return table.index_add_(0, ids.flatten(), rows), None, None
        one_hot = torch.zeros(ids.numel(), ctx.size, dtype=ctx.dtype, device=ids.device)
        one_hot.scatter_(1, ids.flatten()[:, None], 1)
        return (one_hot.T @ rows.to(ctx.dtype)).to(rows.dtype), None, None


def _contiguous(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors one after the other in memory, as cuDNN uses them; otherwise it copies them and warns."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _library_layer(cell: str, x: Tensor, state: State, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, State]:
    """PyTorch's own layer, which uses cuDNN on CUDA and Metal on a Mac."""
    bias_hh = weights.bias_hh if weights.bias_hh is not None else torch.zeros_like(weights.bias_ih)
    params = [tensor.to(dtype) for tensor in (weights.weight_ih, weights.weight_hh, weights.bias_ih, bias_hh)]
    if x.is_cuda:
        params = _contiguous(params)
    states = [part[None].to(dtype).contiguous() for part in state]
    # Arguments: has_biases, layers, dropout, training, bidirectional, batch_first.
    rest = (params, True, 1, 0.0, torch.is_grad_enabled(), False, False)
    x = x.to(dtype)
    if cell == "lstm":
        outputs, h, c = torch.lstm(x, states, *rest)
        last: State = (h, c)
    else:
        outputs, h = (torch.gru if cell == "gru" else torch.rnn_tanh)(x, states[0], *rest)
        last = (h,)
    wide = weights.weight_hh.dtype
    return outputs.to(wide), tuple(part[0].to(wide) for part in last)

"""The head and the cross-entropy in one: no more than a slice of the logits exists at any time.

For a vocabulary of thousands, the logits of a batch are larger than everything else in the step. Here they are made a
slice at a time, in the forward pass, and turned into gradients at once (as in Wijmans et al., 2024, "Cut your losses in
large-vocabulary language models", arXiv:2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits in a slice: 8 MB in float32, about what stays in a processor's cache.
SLICE = 2**21


def head_loss(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean cross-entropy in nats of softmax(x W^T + b) against targets.

    x: (T, B, H); weight: (V, H); bias: (V,); targets: (T, B) int64; products in `dtype`. A scalar.
    """
    result: Any = _HeadLoss.apply(x.flatten(0, 1), weight, bias, targets.flatten(), dtype)  # type: ignore[no-untyped-call]
    return result  # type: ignore[no-any-return]


class _HeadLoss(torch.autograd.Function):
    """x (N, H), weight (V, H), bias (V,), targets (N,) -> the mean loss; gradients are made on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        low = weight.to(dtype)
        wanted = any(ctx.needs_input_grad)
        d_x = torch.empty_like(x, dtype=dtype) if wanted else x
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        total = bias.new_zeros(())
        size = max(64, SLICE // len(weight))
        for begin in range(0, len(x), size):
            rows = x[begin : begin + size].to(dtype)
            wanted_ids = targets[begin : begin + size, None]
            logits = F.linear(rows, low).to(bias.dtype).add_(bias)
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted_ids)).sum()
            if not wanted:
                continue
            d_logits = logits.sub_(log_sum).exp_()
            d_logits.scatter_add_(1, wanted_ids, d_logits.new_full(wanted_ids.shape, -1.0)).div_(len(x))
            d_bias += d_logits.sum(dim=0)
            d_low = d_logits.to(dtype)
            torch.mm(d_low, low, out=d_x[begin : begin + size])
            d_weight += d_low.T @ rows
        ctx.save_for_backward(d_x.to(x.dtype), d_weight, d_bias)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        made: tuple[Tensor, ...] = ctx.saved_tensors
        # A loss that is used as it is has the gradient 1; asking costs nothing where no device has to answer.
        if scale.device.type == "cpu" and float(scale) == 1.0:
            return (*made, None, None)
        return (*(gradient * scale for gradient in made), None, None)

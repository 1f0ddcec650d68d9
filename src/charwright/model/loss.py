"""Output layer and cross-entropy in one, without all logits of a batch in memory.

With a vocabulary of thousands, the logits of a batch are larger than everything else in the step. Here they are
computed some rows at a time in the forward pass, and turned into gradients immediately (as in Wijmans et al., 2024,
"Cut your losses in large-vocabulary language models", arXiv:2411.09009).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright import kernels
from charwright.kernels import UNITS_MULTIPLE, Kernels
from charwright.model import native_loss
from charwright.model.compute import refuse_second_derivatives
from charwright.model.kernel_calls import ids_fit
from charwright.model.votes import RowGradient, Votes

# The most bytes of logits in an array: malloc takes up to 32 MB from memory that it keeps (see `keep_memory`). Larger
# arrays get fresh pages from the system, which takes a quarter of the time of the product that fills them.
MOST_LOGITS_BYTES = 31 * 2**20
# Without the kernels; PyTorch alone needs several float32 copies of the logits.
MOST_LOGITS_PLAIN = 2**21
FEWEST_ROWS = 64

# Above this vocabulary size PyTorch's product is faster; it rounds the sums to bfloat16.
MOST_NATIVE_COLUMNS = 2048
# Above this vocabulary size the logits of a few rows do not stay in the cache. In these variants the kernels still
# compute the output layer faster than PyTorch (benchmarks/output_layer.py); with tiles and on Arm it is not measured.
MOST_HEAD_COLUMNS = 512
LARGE_HEADS = frozenset({"avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16"})


def head_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    core: str,
    kernel: str | None = None,
    votes: Votes | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The mean cross-entropy in nats of softmax(x W^T + b + votes) against targets.

    x: (T, B, H); weight: (V, H); bias: (V,); targets: (T, B) int64; products in `dtype`, by the C kernels
    where `core` is native, in their variant `kernel`; votes: those of n-grams at all positions; mask: (1, B, H), that
    of dropout, multiplied with x. A scalar.

    Raises:
        ValueError: if the targets do not have the shape of the positions, or are not ids of the vocabulary.
    """
    if torch.is_autocast_enabled(x.device.type):  # Its products are in `dtype` already.
        with torch.autocast(x.device.type, enabled=False):
            return head_loss(x, weight, bias, targets, dtype, core, kernel, votes, mask)
    loaded = kernels.load(kernel) if core == "native" and bias.dtype == torch.float32 else None
    check_targets(targets, x, len(weight) if loaded else None, loaded)
    array = None if votes is None else votes.array
    wanted = torch.is_grad_enabled()  # Within a function of autograd it never is.
    result: Any
    if loaded and _fits_head(loaded, x, weight, bias, mask, dtype):
        result = _NativeHead.apply(x, weight, bias, array, votes, targets, mask, loaded, wanted)  # type: ignore[no-untyped-call]
    else:
        rows = (x if mask is None else x * mask.to(x.dtype)).flatten(0, 1)
        result = _HeadLoss.apply(rows, weight, bias, array, votes, targets.flatten(), dtype, loaded, wanted)  # type: ignore[no-untyped-call]
    return result  # type: ignore[no-any-return]


def check_targets(targets: Tensor, x: Tensor, vocabulary: int | None, loaded: Kernels | None = None) -> None:
    """Check that targets have the shape of the positions of x (T, B, H), and with `vocabulary` are ids of it.

    Raises:
        ValueError: if not.
    """
    if targets.dtype != torch.int64 or targets.shape != x.shape[:2]:
        raise ValueError(f"targets must be int64 {tuple(x.shape[:2])}, not {targets.dtype} {tuple(targets.shape)}")
    if vocabulary is not None and targets.numel() and not ids_fit(loaded, targets, vocabulary):
        raise ValueError(f"targets must be from 0 to {vocabulary - 1}, the ids of the vocabulary")


def has_head(loaded: Kernels, vocabulary: int) -> bool:
    """Whether the kernels compute an output layer with so many tokens faster than PyTorch."""
    return vocabulary <= MOST_HEAD_COLUMNS or loaded.name in LARGE_HEADS


def _fits_head(
    loaded: Kernels, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> bool:
    """Whether the kernels compute this output layer together with its loss."""
    if weight.shape[1] % UNITS_MULTIPLE or not has_head(loaded, len(weight)):
        return False
    if weight.shape[1] != x.shape[-1] or bias.shape != weight.shape[:1]:
        return False  # PyTorch says what is wrong.
    if mask is not None and (mask.dtype not in (torch.float32, x.dtype) or mask.shape != (1, *x.shape[1:])):
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    return x.dtype == dtype and weight.dtype == bias.dtype == torch.float32


class _OutputGradients(NamedTuple):
    """What `_native_head` computes beside the losses."""

    x: Tensor  # (T, B, H), in the type of x
    weight: Tensor  # (V, H)
    bias: Tensor  # (V,)
    rows: list[RowGradient]  # of the n-grams, if there are any


def _native_head(
    loaded: Kernels,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    votes: Votes | None,
    *,
    wanted: bool,
) -> tuple[float, _OutputGradients | None]:
    """The sum of the losses of x (T, B, H), and if they are wanted the gradients of the mean loss.

    The mask is (B, H) or None. The kernels compute some steps at a time, whose logits have at most `MOST_LOGITS_BYTES`.
    """
    (steps, batch), total = targets.shape, 0.0
    d_x: list[Tensor] = []
    sums: tuple[Tensor, Tensor] | None = None  # the gradients of the weight and the bias
    rows: list[RowGradient] = []
    for some in _parts(steps, batch * len(weight) * x.element_size()):
        here = None if votes is None else votes.part(slice(some.start * batch, some.stop * batch))
        loss, made = native_loss.head(
            loaded, x[some].flatten(0, 1), weight, bias, targets[some].flatten(), 1 / targets.numel(), mask=mask,
            votes=here, wanted=wanted,
        )  # fmt: skip
        total += loss
        if made is None:
            continue
        d_x.append(made.x)
        sums = (made.weight, made.bias) if sums is None else (sums[0].add_(made.weight), sums[1].add_(made.bias))
        if here is not None:
            rows.append(RowGradient(here.offsets, made.logits))
    if sums is None:
        return total, None
    whole = d_x[0] if len(d_x) == 1 else torch.cat(d_x)
    return total, _OutputGradients(whole.view_as(x), *sums, rows)


def _parts(steps: int, step_bytes: int) -> list[slice]:
    """About equal parts of the steps, of at most `MOST_LOGITS_BYTES` each if a step is not larger."""
    parts = -(-steps // max(1, MOST_LOGITS_BYTES // step_bytes))
    at_once = -(-steps // parts)
    return [slice(begin, min(begin + at_once, steps)) for begin in range(0, steps, at_once)]


class _NativeHead(torch.autograd.Function):
    """As `_HeadLoss`, all of it in the C kernels: x (T, B, H), targets (T, B) and the mask (1, B, H) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        _array: Tensor | None,
        votes: Votes | None,
        targets: Tensor,
        mask: Tensor | None,
        loaded: Kernels,
        wanted: bool,
    ) -> Tensor:
        wanted = wanted and any(ctx.needs_input_grad)
        one_mask = None if mask is None else mask[0]
        total, made = _native_head(loaded, x, weight, bias, targets, one_mask, votes, wanted=wanted)
        ctx.votes, ctx.d_votes = votes, []
        if made is not None:
            ctx.save_for_backward(made.x, made.weight, made.bias)
            ctx.d_votes = made.rows
        return bias.new_tensor(total / targets.numel())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grads[0])


class _HeadLoss(torch.autograd.Function):
    """x (N, H), weight (V, H), bias (V,), the array of n-grams and their votes or None, targets (N,) -> the mean loss;
    computes the gradients in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        _array: Tensor | None,
        votes: Votes | None,
        targets: Tensor,
        dtype: torch.dtype,
        loaded: Kernels | None,
        wanted: bool,
    ) -> Tensor:
        wanted = wanted and any(ctx.needs_input_grad)
        low, inputs, targets = weight.to(dtype), x.to(dtype).contiguous(), targets.contiguous()
        rows = _rows_at_once(len(x), len(weight), MOST_LOGITS_BYTES // dtype.itemsize if loaded else MOST_LOGITS_PLAIN)
        d_x = torch.empty_like(inputs) if wanted else inputs
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias) if wanted else None
        d_votes: list[RowGradient] = []
        total: float | Tensor = 0.0
        for begin in range(0, len(x), rows):
            some = slice(begin, begin + rows)
            logits = F.linear(inputs[some], low)
            here = None if votes is None else votes.part(some)
            if loaded:
                total += native_loss.cross_entropy(loaded, logits, bias, targets[some], 1 / len(x), d_bias, here)
            else:
                total += _cross_entropy(logits, bias, targets[some], 1 / len(x), d_bias, here)
            if wanted:
                torch.mm(logits, low, out=d_x[some])
                d_weight = _add_outer(d_weight, loaded, logits, inputs[some], weight.dtype)
                if here is not None:
                    d_votes.append(RowGradient(here.offsets, logits))
        ctx.save_for_backward(d_x.to(x.dtype), d_weight, d_bias)
        ctx.votes, ctx.d_votes = votes, d_votes
        mean = total / len(x)
        return mean if isinstance(mean, Tensor) else bias.new_tensor(mean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grads[0])


def _gradients(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
    """Those that the forward pass has computed, `scale` times."""
    refuse_second_derivatives()
    made: tuple[Tensor | None, ...] = ctx.saved_tensors
    d_votes: list[RowGradient] = ctx.d_votes
    # The gradient of a loss is usually 1; reading it is free on the CPU.
    if not (scale.device.type == "cpu" and float(scale) == 1.0):
        made = tuple(None if gradient is None else gradient * scale for gradient in made)
        d_votes = [part.times(scale) for part in ctx.d_votes]
    d_array = _array_gradient(ctx.votes, d_votes) if ctx.needs_input_grad[3] else None
    return (*made, d_array, None, None, None, None, None)


def _array_gradient(votes: Votes | None, parts: list[RowGradient]) -> Tensor | None:
    """The gradient of the n-grams' array; None if its parts are collected."""
    if votes is None:
        return None
    if votes.gradients is not None:
        votes.gradients.extend(parts)
        return None
    gradient = torch.zeros_like(votes.array)
    for part in parts:
        part.add_to(gradient)
    return gradient


def _rows_at_once(rows: int, columns: int, most: int) -> int:
    """The rows of a part, of about equal ones with at most `most` logits each."""
    parts = -(-rows * columns // most)
    return max(FEWEST_ROWS, -(-rows // max(parts, 1)))


def _add_outer(
    before: Tensor | None, loaded: Kernels | None, d_logits: Tensor, inputs: Tensor, wide: torch.dtype
) -> Tensor:
    """The gradient of the head's weights, d_logits (N, V) transposed times inputs (N, H), in the type `wide`, and that
    of rows before.
    """
    if loaded and inputs.shape[1] % UNITS_MULTIPLE == 0 and d_logits.shape[1] <= MOST_NATIVE_COLUMNS:
        more = native_loss.outer(loaded, d_logits, inputs)
    elif before is not None and d_logits.dtype == wide:
        return before.addmm_(d_logits.T, inputs)
    else:
        more = (d_logits.T @ inputs).to(wide)
    return more if before is None else before.add_(more)


def _cross_entropy(
    logits: Tensor, bias: Tensor, targets: Tensor, scale: float, d_bias: Tensor | None, votes: Votes | None
) -> Tensor:
    """The sum of the losses; as in `native_loss.cross_entropy`, the logits are overwritten with their gradients."""
    full = logits.to(bias.dtype) + bias
    if votes is not None:
        votes.add_to(full)
    log_sum = full.logsumexp(dim=1, keepdim=True)
    loss = (log_sum - full.gather(1, targets[:, None])).sum()
    if d_bias is not None:
        d_logits = full.sub_(log_sum).exp_()
        d_logits.scatter_add_(1, targets[:, None], d_logits.new_full((len(targets), 1), -1.0)).mul_(scale)
        d_bias += d_logits.sum(dim=0)
        logits.copy_(d_logits)
    return loss

"""Optimizers that the library does not have, for experiments/untried.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Optimizer):
    """AdamW, `cautious` (only updates that agree with the gradient) or with second moments `rounded` to bfloat16.

    With `rounded_mean` the first moments are rounded too. With `cautious_decay` a weight decays only while the update
    makes it smaller too; with `nesterov` the update is one step of the mean ahead (Dozat, 2016); with `touched` a
    cautious step is as long as the moving ones among the numbers that have a gradient make it, and not among all.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        cautious: bool = False,
        rounded: bool = False,
        rounded_mean: bool = False,
        cautious_decay: bool = False,
        nesterov: bool = False,
        touched: bool = False,
        beta1: float = 0.9,
        beta2: float = 0.98,
        epsilon: float = 1e-8,
    ) -> None:
        """The constants are those of the library."""
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay})
        self.cautious, self.rounded, self.rounded_mean = cautious, rounded, rounded_mean
        self.cautious_decay = cautious_decay
        self.nesterov, self.touched = nesterov, touched
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient, state = weight.grad, self.state[weight]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
                    if self.rounded:
                        state["square"] = state["square"].bfloat16()
                    if self.rounded_mean:
                        state["mean"] = state["mean"].bfloat16()
                state["step"] += 1
                mean = state["mean"].float().lerp_(gradient, 1 - self.beta1)
                state["mean"] = mean.bfloat16() if self.rounded_mean else mean
                square = state["square"].float().mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
                state["square"] = square.bfloat16() if self.rounded else square
                size = (square / (1 - self.beta2 ** state["step"])).sqrt_().add_(self.epsilon)
                ahead = gradient.lerp(mean, self.beta1) if self.nesterov else mean
                update = ahead / (1 - self.beta1 ** state["step"]) / size
                if self.cautious:
                    kept = (update * gradient > 0).float()
                    among = (gradient != 0).float().mean().clamp_(min=1e-3) if self.touched else 1.0
                    update *= kept / (kept.mean() / among).clamp_(min=1e-3)
                decay = group["lr"] * group["weight_decay"]
                if self.cautious_decay:
                    weight.sub_(weight * (update * weight > 0), alpha=decay)
                else:
                    weight.mul_(1 - decay)
                weight.add_(update, alpha=-group["lr"])


class RowAdam(torch.optim.Optimizer):
    """Adam for tables of which a step uses a few rows: only those have moments that move."""

    def __init__(self, params: Iterable[Tensor], *, lr: float, beta2: float = 0.98, epsilon: float = 1e-8) -> None:
        """RMSProp by row and column, without momentum: a row is seldom seen twice in a row."""
        super().__init__(list(params), {"lr": lr})
        self.beta2, self.epsilon = beta2, epsilon

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the rows that have gradients."""
        for group in self.param_groups:
            for table in group["params"]:
                gradient, state = table.grad.coalesce(), self.state[table]
                rows, values = gradient.indices()[0], gradient.values()
                if not state:
                    state.update(square=torch.zeros_like(table), seen=torch.zeros(len(table)))
                seen = state["seen"][rows] + 1
                state["seen"][rows] = seen
                # A mean over all visits at first, over the last ones later.
                share = torch.clamp(1 / seen, min=1 - self.beta2)[:, None]
                square = state["square"][rows]
                square = square + share * (values.square() - square)
                state["square"][rows] = square
                table[rows] -= group["lr"] * values / (square.sqrt() + self.epsilon)


class Adagrad(torch.optim.Optimizer):
    """Steps that shrink with the sum of squared gradients, which begins at `prior` squares of one wrong prediction.

    Without momentum, so that a weight moves only in steps that have a gradient for it. A `prior` of 0 is plain descent.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, prior: float, scale: float) -> None:
        """`scale` is the number of predictions of which a loss is the mean."""
        super().__init__(list(params), {"lr": lr})
        self.prior, self.scale = prior, scale

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient = weight.grad * self.scale
                if self.prior:
                    sums = self.state[weight].setdefault("sums", torch.full_like(weight, self.prior))
                    gradient = gradient / sums.addcmul_(gradient, gradient).sqrt()
                weight.sub_(gradient, alpha=group["lr"])


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by Newton-Schulz iterations; the gates of a layer are separate square matrices."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, weight_decay: float, rounds: int = 5, momentum: float = 0.95
    ) -> None:
        """The rate is Adam's: updates have the size of Adam's."""
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay})
        self.rounds, self.momentum = rounds, momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - self.momentum)
                ahead = weight.grad.lerp(mean, self.momentum)
                gates = 3 if len(weight) % 3 == 0 and len(weight) >= 3 * 64 else 1
                update = orthogonal(ahead.unflatten(0, (gates, -1)), self.rounds)
                update *= 0.2 * max(update.shape[-2:]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.flatten(0, 1), alpha=-group["lr"])


def orthogonal(x: Tensor, rounds: int) -> Tensor:
    """The nearest orthogonal matrices to x (N, R, C), roughly: singular values between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x


class ByGram(torch.optim.Optimizer):
    """An optimizer with Gram matrices of the gradients, beside Adam's moments."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        every: int = 10,
        memory: float = 0.95,
        beta1: float = 0.9,
        beta2: float = 0.98,
        epsilon: float = 1e-8,
    ) -> None:
        """What comes from the Gram matrices is renewed every `every` steps; `memory` is theirs."""
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay})
        self.every, self.memory, self.beta1, self.beta2, self.epsilon = every, memory, beta1, beta2, epsilon


class Soap(ByGram):
    """Adam on gradients that are rotated into the eigenbasis of their Gram matrix over the columns.

    The basis is renewed by one iteration of the power method.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights; the first step only sets the basis."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient, state = weight.grad, self.state[weight]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
                    state["gram"] = gradient.T @ gradient
                    state["basis"] = torch.linalg.eigh(state["gram"])[1].flip(1).contiguous()
                    continue
                state["step"] += 1
                basis = state["basis"]
                mean = state["mean"].lerp_(gradient, 1 - self.beta1)
                turned = gradient @ basis
                square = state["square"].mul_(self.beta2).addcmul_(turned, turned, value=1 - self.beta2)
                size = (square / (1 - self.beta2 ** state["step"])).sqrt_().add_(self.epsilon)
                update = ((mean @ basis) / size) @ basis.T
                rate = group["lr"] / (1 - self.beta1 ** state["step"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
                state["gram"].lerp_(gradient.T @ gradient, 1 - self.memory)
                if state["step"] % self.every == 0:
                    state["basis"] = torch.linalg.qr(state["gram"] @ basis)[0]


class Shampoo(ByGram):
    """The mean gradient between roots of its Gram matrices over rows and over columns, L^(-1/4) G R^(-1/4).

    The gates of a layer are separate matrices. Each update has the norm that Adam's would have.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights."""
        for group in self.param_groups:
            for weight in group["params"]:
                gates = 3 if len(weight) % 3 == 0 and len(weight) >= 3 * 64 else 1
                gradient, state = weight.grad.unflatten(0, (gates, -1)), self.state[weight]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
                    state.update(left=gradient @ gradient.mT, right=gradient.mT @ gradient)
                state["step"] += 1
                mean = state["mean"].lerp_(gradient, 1 - self.beta1)
                square = state["square"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
                state["left"].lerp_(gradient @ gradient.mT, 1 - self.memory)
                state["right"].lerp_(gradient.mT @ gradient, 1 - self.memory)
                if state["step"] % self.every == 1:
                    state["roots"] = fourth_root(state["left"]), fourth_root(state["right"])
                left, right = state["roots"]
                size = (square / (1 - self.beta2 ** state["step"])).sqrt_().add_(self.epsilon)
                adam = mean / (1 - self.beta1 ** state["step"]) / size
                update = left @ mean @ right
                update *= norm(adam) / norm(update).clamp_(min=1e-12)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.flatten(0, 1), alpha=-group["lr"])


def norm(x: Tensor) -> Tensor:
    """The norm of each matrix of x (N, R, C), as (N, 1, 1)."""
    return torch.linalg.matrix_norm(x, keepdim=True)


def fourth_root(gram: Tensor) -> Tensor:
    """The inverse fourth roots of positive matrices (N, S, S), with a floor for eigenvalues near zero."""
    values, vectors = torch.linalg.eigh(gram)
    roots = values.clamp(min=0).add(1e-6 * values[..., -1:].clamp(min=1e-30)).pow(-0.25)
    return (vectors * roots[..., None, :]) @ vectors.mT

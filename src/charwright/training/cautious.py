"""Cautious AdamW: only those weights move whose mean gradient agrees in sign with the present one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from charwright.training.without_compiler import AdamW

LEAST_SHARE = 1e-3
"""The share of moving weights counts as at least this, so that no step is a thousand times longer."""


class CautiousAdamW(AdamW):
    """AdamW (Loshchilov & Hutter, 2019) that is cautious (Liang et al., 2024, arXiv:2411.16085, algorithm 2).

    A weight whose mean gradient m points against the present gradient g stays where it is, apart from weight decay. The
    others of its tensor move further, by the number of all divided by that of the moving ones. State and parameter
    groups are PyTorch's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; returns what `closure` returns. Nothing waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        step, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        step += 1
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        moving = (mean * gradient > 0).to(parameter.dtype)
        share = moving.mean().clamp_(min=LEAST_SHARE)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(mean / size * moving * (group["lr"] / (share * (1 - beta1**step))))

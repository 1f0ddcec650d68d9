"""PyTorch's optimizers without its compiler, whose import takes a second."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class WithoutCompiler(torch.optim.Optimizer):
    """For a class before one of PyTorch's: the wrappers that import the compiler are left out."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's own."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero; PyTorch's own takes longer to forget them."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _step_of(kind: type[torch.optim.Optimizer]) -> Any:
    """PyTorch's step without the wrapper that marks it for the compiler and switches gradients off."""
    return torch.no_grad()(inspect.unwrap(kind.step))


class Adam(WithoutCompiler, torch.optim.Adam):
    """Adam (Kingma & Ba, 2015)."""

    step = _step_of(torch.optim.Adam)


class AdamW(WithoutCompiler, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, 2019)."""

    step = _step_of(torch.optim.AdamW)

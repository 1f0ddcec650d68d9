"""PyTorch's optimizers without its compiler, whose import takes a second."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch


class Descent(Protocol):
    """What moves an array that is in no parameter group: that of n-grams."""

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Move the array, after a step of the optimizer."""

    def forget(self) -> None:
        """Forget the gradient of the array."""


class WithoutCompiler(torch.optim.Optimizer):
    """For a class before one of PyTorch's: the wrappers that import the compiler are left out.

    A step may end with a descent, which copies of the optimizer have too, also pickled ones.
    """

    ngram_descent: Descent | None = None

    def end_steps_with(self, descent: Descent) -> None:
        """Call `descent` after each step."""
        self.ngram_descent = descent
        self.register_step_post_hook(descent)

    def __getstate__(self) -> dict[str, Any]:
        """As PyTorch's own, and the descent."""
        return {**super().__getstate__(), "ngram_descent": self.ngram_descent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The hook is not among what PyTorch copies."""
        super().__setstate__(state)
        if self.ngram_descent is not None:
            self.end_steps_with(self.ngram_descent)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's own."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero; PyTorch's own takes longer to forget them."""
        if self.ngram_descent is not None:
            self.ngram_descent.forget()
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

"""The optimizer: makes it, sets its learning rate by the schedule, and clips gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from charwright.config import TrainingConfig
from charwright.model.language_model import LanguageModel
from charwright.training.cautious import CautiousAdamW
from charwright.training.native_adam import NativeAdam, NativeAdamW, NativeCautiousAdamW, NativeStep, kernels_for


def make_optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba, 2015), AdamW (Loshchilov & Hutter, 2019) or cautious AdamW (Liang et al., 2024) as configured.

    A model that the C kernels compute is updated by them, in the same variant; any other by PyTorch's fused step.
    """
    loaded = kernels_for(model)
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "fused": True,
    }
    if config.optimizer == "adam":
        if loaded is not None:
            return NativeAdam(model.parameters(), loaded=loaded, **options)
        return torch.optim.Adam(model.parameters(), **options)
    # Weight decay applies to the weights of products, not to biases and the embedding.
    decayed = [weight for name, weight in model.weights.items() if weight.ndim > 1 and name != "embedding_weight"]
    spared = [weight for name, weight in model.weights.items() if weight.ndim <= 1 or name == "embedding_weight"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if config.optimizer == "cautious-adamw":
        if loaded is not None:
            return NativeCautiousAdamW(groups, loaded=loaded, **options)
        return CautiousAdamW(groups, **options)
    if loaded is not None:
        return NativeAdamW(groups, loaded=loaded, **options)
    return torch.optim.AdamW(groups, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times its initial one; a tensor keeps its memory."""
    for group in optimizer.param_groups:
        rate = group["lr"]
        if isinstance(rate, torch.Tensor):
            rate.copy_(group.setdefault("initial_lr", rate.clone()) * factor)
        else:
            group["lr"] = group.setdefault("initial_lr", rate) * factor


def learning_rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The present learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


@contextmanager
def clipped_gradients(model: LanguageModel, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Iterator[None]:
    """Clip the gradients to `max_norm` before each optimizer step (Pascanu et al., 2013); None clips nothing."""
    if max_norm is None:
        yield
        return
    if isinstance(optimizer, NativeStep):
        with optimizer.clipping(max_norm):
            yield
        return

    def clip(*_: object) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    hook = optimizer.register_step_pre_hook(clip)
    try:
        yield
    finally:
        hook.remove()

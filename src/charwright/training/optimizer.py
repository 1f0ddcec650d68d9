"""The optimizer: makes it, sets its learning rate by the schedule, and clips gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from charwright.arguments import require
from charwright.config import SequenceConfig, TrainingConfig
from charwright.errors import UsageError
from charwright.model import native_loss
from charwright.model.language_model import LanguageModel
from charwright.model.votes import RowGradient
from charwright.training.cautious import CautiousAdamW
from charwright.training.native_adam import NativeAdam, NativeAdamW, NativeCautiousAdamW, NativeStep, kernels_for
from charwright.training.without_compiler import Adam, AdamW, WithoutCompiler

PREDICTIONS = SequenceConfig.batch * SequenceConfig.seq_length
DECAY_EVERY = 16


def make_optimizer(model: LanguageModel, config: TrainingConfig, predictions: int = PREDICTIONS) -> WithoutCompiler:
    """Adam (Kingma & Ba, 2015), AdamW (Loshchilov & Hutter, 2019) or cautious AdamW (Liang et al., 2024) as configured.

    A model that the C kernels compute is updated by them, in the same variant; any other by PyTorch's fused step. The
    array of n-grams is in no parameter group: it moves after each step, as in `NgramDescent`. `predictions` are those
    of a batch, T * B, of which the loss is the mean. Parameters that a subclass adds need a group of their own:
    `optimizer.add_param_group`.

    Raises:
        UsageError: when the configuration is something else.
    """
    require(config, TrainingConfig, "the configuration of training is a TrainingConfig", "TrainingConfig(...)")
    optimizer = _make_adam(model, config)
    if model.config.ngram_bits:
        optimizer.end_steps_with(NgramDescent(model, config.ngram_rate * predictions, config.ngram_decay))
    return optimizer


def descends_by_rows(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer moves the array of n-grams by what a model collects; others read the array's `grad`."""
    return getattr(optimizer, "ngram_descent", None) is not None


class NgramDescent:
    """Stochastic gradient descent for the array of n-grams, whose rate follows that of an optimizer in proportion.

    Without momentum and without averages of squares, a number moves only in steps that have a gradient for it, as far
    as that one says: most n-grams are seen a few times. So a step touches only the rows of its contexts. Weight decay
    pulls all numbers to zero; on a CPU it does so every `DECAY_EVERY` steps, since it has to read the whole array, and
    on a GPU, to which that is nothing, in each.
    """

    def __init__(self, model: LanguageModel, rate: float, decay: float) -> None:
        """Move the model's array by `rate` times its gradient and `decay` times itself, at the peak of the schedule."""
        self._model, self._array = model, model.weight("ngrams.weight")
        self._rate, self._decay = rate, decay
        self._loaded = kernels_for(model)
        self._step = 0

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Move the array, and forget its gradient."""
        group = optimizer.param_groups[0]
        rate = self._rate * group["lr"] / group.get("initial_lr", group["lr"])  # A graph reads it when it is replayed.
        if self._decay:
            self._shrink(optimizer, rate)
        if self._array.grad is not None:  # of losses outside of `collecting`
            self._array.sub_(self._array.grad * rate)
            self._array.grad = None
        gradients = self._model.ngram_gradients or []
        for gradient in gradients:
            self._descend(gradient, rate)
        gradients.clear()

    def forget(self) -> None:
        """Forget the array's gradient, as an optimizer does with those of its parameters."""
        self._array.grad = None
        if self._model.ngram_gradients:
            self._model.ngram_gradients.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the kernels, which cannot be copied."""
        return {**self.__dict__, "_loaded": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the kernels again."""
        self.__dict__.update(state)
        self._loaded = kernels_for(self._model)

    def _descend(self, gradient: RowGradient, rate: float | Tensor) -> None:
        if self._loaded is not None:
            native_loss.descend(self._loaded, self._array, gradient, float(rate))
        else:
            gradient.add_to(self._array, -rate)

    def _count(self, step: int) -> int:
        """The number of this step: PyTorch's own count is a float32, which ends at 2^24."""
        self._step = step if step < 2**24 else max(step, self._step + 1)
        return self._step

    def _shrink(self, optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
        if self._array.device.type != "cpu":
            kept = 1 - rate * self._decay
            self._array.mul_(kept.clamp(min=0.0) if isinstance(kept, Tensor) else max(0.0, kept))
            return
        state: dict[str, Any] | None = next(iter(optimizer.state.values()), None)  # None before any gradient
        if state is not None and self._count(int(state["step"])) % DECAY_EVERY == 0:
            self._array.mul_(max(0.0, 1 - float(rate) * self._decay) ** DECAY_EVERY)


def optimizer_for(
    model: LanguageModel, config: TrainingConfig, predictions: int, given: torch.optim.Optimizer | None
) -> torch.optim.Optimizer:
    """The optimizer that is given, or that of `make_optimizer` for a model all of whose parameters it trains.

    Raises:
        UsageError: if a subclass has further ones, or what is given does not train the model.
    """
    if given is not None:
        _check_optimizer(model, given)
        return given
    known = set(map(id, model.named_weights().values()))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise UsageError(
                f"the model's parameter {name} is not a weight of a LanguageModel, and the default optimizer would not "
                "train it; pass an optimizer that has it"
            )
    return make_optimizer(model, config, predictions)


def _check_optimizer(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer trains the model, or a part of it.

    Raises:
        UsageError: if it is none, or has the parameters of another model.
    """
    require(optimizer, torch.optim.Optimizer, "an optimizer is of torch.optim or of make_optimizer")
    own = set(map(id, model.parameters()))
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UsageError("the optimizer has no parameter of this model: make it with model.parameters()")


def _make_adam(model: LanguageModel, config: TrainingConfig) -> WithoutCompiler:
    loaded = kernels_for(model)
    weights = {name: weight for name, weight in model.named_weights().items() if name != "ngrams.weight"}
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "fused": True,
    }
    if config.optimizer == "adam":
        if loaded is not None:
            return NativeAdam(weights.values(), loaded=loaded, **options)
        return Adam(weights.values(), **options)
    # Weight decay applies to the weights of products, not to biases and the embedding.
    decayed = [weight for name, weight in weights.items() if weight.ndim > 1 and name != "embedding.weight"]
    spared = [weight for name, weight in weights.items() if weight.ndim <= 1 or name == "embedding.weight"]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if config.optimizer == "cautious-adamw":
        if loaded is not None:
            return NativeCautiousAdamW(groups, loaded=loaded, **options)
        return CautiousAdamW(groups, **options)
    if loaded is not None:
        return NativeAdamW(groups, loaded=loaded, **options)
    return AdamW(groups, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times its initial one; a tensor keeps its memory."""
    for group in optimizer.param_groups:
        rate = group["lr"]
        if isinstance(rate, Tensor):
            rate.copy_(group.setdefault("initial_lr", rate.clone()) * factor)
        else:
            group["lr"] = group.setdefault("initial_lr", rate) * factor


@contextmanager
def scheduled_rates(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """In the block, `set_learning_rate` sets the learning rates; after it they are the initial ones again."""
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            initial = group.pop("initial_lr", group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(initial)
            else:
                group["lr"] = initial


def learning_rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The present learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


@contextmanager
def clipped_gradients(model: LanguageModel, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Iterator[None]:
    """Clip the gradients to `max_norm` before each optimizer step (Pascanu et al., 2013); None clips nothing.

    The norm is that of all parameters of the optimizer together, but for an array of n-grams, which is not clipped.
    """
    if max_norm is None:
        yield
        return
    if isinstance(optimizer, NativeStep):
        with optimizer.clipping(max_norm):
            yield
        return

    def clip(*_: object) -> None:
        array = model.named_weights().get("ngrams.weight")
        moved = [weight for group in optimizer.param_groups for weight in group["params"] if weight is not array]
        torch.nn.utils.clip_grad_norm_(moved, max_norm)

    hook = optimizer.register_step_pre_hook(clip)
    try:
        yield
    finally:
        hook.remove()

"""Adam, AdamW and its cautious variant with the step in the C kernels: PyTorch's optimizers in every other respect.

State, parameter groups and hooks are PyTorch's, so either can continue from the other's checkpoint. The bits of a step
do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as library

from charwright import kernels
from charwright.kernels import Kernels, Parameter
from charwright.model.compute import CPU, choose_core
from charwright.model.kernel_calls import share_threads
from charwright.model.language_model import LanguageModel
from charwright.training.cautious import CautiousAdamW
from charwright.training.without_compiler import Adam, AdamW, Descent, WithoutCompiler

# Options of PyTorch's Adam that the kernels do not have.
UNKNOWN = ("amsgrad", "maximize", "capturable", "differentiable")
# The hooks around a step: one optimizer's, and those of all. The names are private; with a PyTorch that lacks one,
# every step takes the way with hooks.
HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_HOOKS = tuple(getattr(library, f"_global_optimizer_{when}_hooks", True) for when in ("pre", "post"))


def kernels_for(model: LanguageModel) -> Kernels | None:
    """The variant of the kernels that computes a model, if it can also update its parameters; otherwise None."""
    compute = model.compute
    if not all(map(_plain, model.parameters())):
        return None
    if choose_core(compute.core, CPU, compute.precision, compute.kernel) != "native":
        return None
    return kernels.load(compute.kernel)


class NativeStep(WithoutCompiler):
    """The step in the kernels, or PyTorch's own for what the kernels cannot compute, and in a copy of the optimizer."""

    decoupled: bool
    cautious = False
    loaded: Kernels | None = None
    max_norm: float | None = None

    def __init__(self, params: Iterable[Any], *, loaded: Kernels, **options: Any) -> None:
        """Arguments as for PyTorch's optimizer, and the kernels that do the step."""
        super().__init__(params, **options)
        self.loaded = loaded

    def end_steps_with(self, descent: Descent) -> None:
        """Call `descent` after each step; PyTorch's way to run a hook takes longer than that of a small network."""
        self.ngram_descent = descent

    @contextmanager
    def clipping(self, max_norm: float) -> Iterator[None]:
        """Clip the gradients to `max_norm` in each step of the block, all together.

        The step multiplies each gradient as it reads it; `.grad` keeps what the backward pass computed.
        """
        before, self.max_norm = self.max_norm, max_norm
        try:
            yield
        finally:
            self.max_norm = before

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; returns what `closure` returns, which computes the loss and the gradients anew."""
        if any(GLOBAL_HOOKS) or any(getattr(self, name, True) for name in HOOKS):
            return self._step_with_hooks(closure)
        return self._step(closure)

    # PyTorch adds a wrapper that runs hooks to each step without this mark.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.loaded is None or not self._native_step(self.loaded):
            self._library_step()
        if self.ngram_descent is not None:
            self.ngram_descent(self)
        return loss

    _step_with_hooks = torch.optim.Optimizer.profile_hook_step(_step)

    def _native_step(self, loaded: Kernels) -> bool:
        """Update the parameters in the kernels; False, with all of them as they were, if that is not possible."""
        if getattr(self, "grad_scale", None) is not None:
            return False
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []  # The kernels read them, so copies must live until the end.
        described: list[Parameter] = []
        for group in self.param_groups:
            if any(group.get(name) for name in UNKNOWN):
                return False
            terms = self._terms(group)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if isinstance(gradient, torch.FloatTensor):
                    gradient = gradient.contiguous()
                state = self._state_of(parameter)
                mean, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
                if not _fit(parameter, mean, square, gradient, step):
                    return False
                parameters.append(parameter)
                gradients.append(gradient)
                described.append(
                    Parameter(
                        parameter.data_ptr(), mean.data_ptr(), square.data_ptr(), gradient.data_ptr(), step.data_ptr(),
                        parameter.numel(), *terms,
                    )
                )  # fmt: skip
        if described:
            self._run(loaded, (Parameter * len(described))(*described))
            torch.autograd.graph.increment_version(parameters)
        return True

    def _terms(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The last fields of `Parameter`, which the parameters of a group share."""
        beta1, beta2 = group["betas"]
        decoupled = group.get("decoupled_weight_decay", self.decoupled)
        kind = (int(decoupled), int(self.cautious))
        return float(group["lr"]), float(beta1), float(beta2), group["eps"], group["weight_decay"], *kind

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _run(self, loaded: Kernels, parameters: ctypes.Array[Parameter]) -> None:
        share_threads(loaded)
        threads = torch.get_num_threads()
        scale = 1.0
        if self.max_norm is not None:
            # As in `clip_grad_norm_`; a norm that is not a number makes every weight so, and the loss shows it.
            share = self.max_norm / (loaded.norm(parameters, threads) + 1e-6)
            scale = 1.0 if share > 1.0 else share
        loaded.adam(parameters, threads, scale)

    def _library_step(self) -> None:
        if self.max_norm is not None:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        step: Any = super().step
        if getattr(step, "hooked", False):  # PyTorch runs the hooks around our step already.
            step = step.__wrapped__.__get__(self)
        step()


class NativeAdam(NativeStep, Adam):
    """Adam (Kingma & Ba, 2015)."""

    decoupled = False


class NativeAdamW(NativeStep, AdamW):
    """AdamW (Loshchilov & Hutter, 2019)."""

    decoupled = True


class NativeCautiousAdamW(NativeStep, CautiousAdamW):
    """Cautious AdamW (Liang et al., 2024)."""

    decoupled = True
    cautious = True


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is float32 numbers in a row, in the memory of the CPU."""
    return isinstance(tensor, torch.FloatTensor) and tensor.is_contiguous()


def _fit(parameter: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, step: Tensor) -> bool:
    count = parameter.numel()
    if not (mean.numel() == square.numel() == gradient.numel() == count and step.numel() == 1):
        raise RuntimeError("the optimizer's state does not have the sizes of the parameters; it is another model's")
    return _plain(parameter) and _plain(mean) and _plain(square) and _plain(gradient) and _plain(step)

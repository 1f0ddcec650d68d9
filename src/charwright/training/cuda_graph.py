"""The training step as a CUDA graph: recorded once, then launched as a whole.

A step is about a thousand small kernels, and a GPU finishes them faster than Python can launch them. A graph repeats
kernels on the same memory, so the batch, the masks of dropout and the learning rates are copied into it before each
step, and the loss and the last hidden state out of it after.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from charwright.model.cells import State
from charwright.model.dropout import draw_masks, empty_masks
from charwright.model.language_model import LanguageModel
from charwright.training.batch import Batch, TrainStep
from charwright.training.optimizer import descends_by_rows

WARM_UP_STEPS = 3


class Recorder(Protocol):
    """Records work on a device, so that it can be repeated."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, so that everything that is allocated once exists."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work without doing it; the result does it, each time on the same memory."""


class CudaRecorder:
    """A recorder that makes CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def warm_up(self, work: Callable[[], None]) -> None:
        """On a stream other than the default one, as PyTorch asks of the work before a recording."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    work()
            torch.cuda.current_stream().wait_stream(stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record a graph; the result launches it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph):
                    work()
            finally:
                torch.cuda.set_stream(stream)  # If a recording fails, its own stream is still the current one.
        return graph.replay


def has_graphs(device: torch.device) -> bool:
    """Whether the library's own step is a graph on this device."""
    return device.type == "cuda"


def fastest_step(plain: TrainStep, device: torch.device) -> TrainStep:
    """The library's own step, as a graph where the device has graphs."""
    return GraphedStep(plain, CudaRecorder(device)) if has_graphs(device) else plain


class GraphedStep:
    """`train_step` by a graph, for batches of the shape of the first one; for others, `train_step` itself.

    It is for the optimizers of `make_optimizer`: fused, with a state that begins as zeros.
    """

    def __init__(self, plain: TrainStep, recorder: Recorder) -> None:
        """`plain` is the library's own `train_step`."""
        self._plain, self._recorder = plain, recorder
        self._recording: _Recording | None = None
        self._failed = False

    def __call__(self, model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """Train on one batch; the first call records."""
        if self._recording is None and not self._failed:
            self._recording = self._record(model, batch, optimizer)
        if self._recording is None or not self._recording.fits(model, batch, optimizer):
            return self._plain(model, batch, optimizer)
        return self._recording.replay(batch)

    def _record(self, model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> _Recording | None:
        try:
            return _Recording(model, batch, optimizer, self._recorder)
        except RuntimeError as error:
            self._failed = True
            optimizer.zero_grad()  # The gradients are memory of the recording.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"the training step was not recorded as a CUDA graph, so training takes longer: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None


class _Recording:
    """A recorded step and its memory."""

    def __init__(
        self, model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer, recorder: Recorder
    ) -> None:
        """Record a step on batches like `batch`, and change nothing else."""
        self._model, self._optimizer = model, optimizer
        rows = batch.inputs.shape[1]
        self._inputs, self._targets = (ids.clone(memory_format=torch.contiguous_format) for ids in _ids(batch))
        self._state, self._last = model.zero_state(rows), model.zero_state(rows)
        self._loss = self._state[0].new_zeros(())
        self._masks = [mask.fill_(1.0) for mask in empty_masks(model.config, rows, self._state[0])]
        self._rates = [self._loss.new_tensor(group["lr"], dtype=torch.float32) for group in optimizer.param_groups]
        with _unchanged(model, optimizer):
            recorder.warm_up(self._step)
            # PyTorch refuses to record an optimizer that does not say so, and warns of one that does elsewhere.
            with _replaced(optimizer, "capturable", [True] * len(self._rates)):
                self._replay = recorder.record(self._step)
        self._own = {weight: dict(state) for weight, state in optimizer.state.items()}

    def _step(self) -> None:
        """What `train_step` does, with masks already drawn; the results go to memory that stays."""
        with self._model.collecting_ngram_gradients(descends_by_rows(self._optimizer)):
            loss, last = self._model.loss(self._inputs, self._targets, self._state, masks=self._masks)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            with _replaced(self._optimizer, "lr", self._rates):
                self._optimizer.step()
        self._loss.copy_(loss.detach())
        _copy(self._last, tuple(part.detach() for part in last))

    def fits(self, model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the recording is of these, and of batches of this shape."""
        same = model is self._model and optimizer is self._optimizer and model.training
        return same and batch.inputs.shape == self._inputs.shape

    def replay(self, batch: Batch) -> Tensor:
        """Train on one batch; nothing here waits for the device."""
        _copy((self._inputs, self._targets), _ids(batch))
        _copy(self._state, batch.state)
        draw_masks(self._model.config, self._masks, batch.generator)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._return_to_own_memory()
        self._replay()
        batch.state = tuple(part.clone() for part in self._last)
        return self._loss.clone()

    def _return_to_own_memory(self) -> None:
        """A rollback gives the optimizer other tensors; the recording knows only its own."""
        for weight, quantities in self._own.items():
            state = self._optimizer.state[weight]
            for name, own in quantities.items():
                if state.get(name) is not own:
                    _copy((own,), (state[name],) if name in state else None)
                    state[name] = own


def _ids(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.inputs, batch.targets


def _copy(to: State, values: State | None) -> None:
    """Copy tensors into others; None is zeros."""
    for i, tensor in enumerate(to):
        if values is None:
            tensor.zero_()
        else:
            tensor.copy_(values[i])


@contextmanager
def _unchanged(model: LanguageModel, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restore the weights and the optimizer's state after the block, in place; state that is new becomes zero."""
    weights = [(weight, weight.detach().clone()) for weight in model.parameters()]
    before = {
        weight: {name: value.clone() for name, value in state.items()} for weight, state in optimizer.state.items()
    }
    try:
        yield
    finally:
        for weight, copied in weights:
            weight.detach().copy_(copied)
        for key, state in optimizer.state.items():
            for name, value in state.items():
                known = before.get(key, {})
                _copy((value,), (known[name],) if name in known else None)


@contextmanager
def _replaced(optimizer: torch.optim.Optimizer, key: str, values: Sequence[Any]) -> Iterator[None]:
    """Replace an option of each parameter group during the block."""
    kept = [group[key] for group in optimizer.param_groups]
    try:
        for group, value in zip(optimizer.param_groups, values, strict=True):
            group[key] = value
        yield
    finally:
        for group, value in zip(optimizer.param_groups, kept, strict=True):
            group[key] = value

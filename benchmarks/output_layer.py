"""The output layer and its loss, forward and backward: in the C kernels and in PyTorch.

    python benchmarks/output_layer.py                      # float32 and bfloat16, with and without dropout
    python benchmarks/output_layer.py --kernels avx512bf16 # in another variant of the kernels

Three sides take turns in one run, on the same positions: the kernels, which do all in one call; PyTorch's products
around the kernels' cross-entropy; and PyTorch alone. Times are medians of the rounds in
milliseconds; a ratio is how many times longer than the kernels a side takes, the median of the rounds' ratios, with
minimum and maximum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright import kernels
from charwright.model import loss
from charwright.model.compute import keep_memory
from charwright.model.loss import _HeadLoss, head_loss
from machine import describe_machine, ratio_and_spread, take_turns


class Work(NamedTuple):
    """The positions of a step."""

    name: str
    units: int
    batch: int
    steps: int
    vocabulary: int = 66


WORKS = (
    Work("gru-512", 512, 32, 64),
    Work("tutorial", 1024, 64, 100),
    Work("vocabulary of 300", 512, 32, 64, 300),
    Work("vocabulary of 1,500", 512, 32, 64, 1500),
    Work("vocabulary of 6,000", 512, 32, 64, 6000),
)
PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


class Layer:
    """An output layer, its inputs and what it predicts, and the sides."""

    def __init__(self, work: Work, dtype: torch.dtype, variant: str, *, dropout: bool) -> None:
        draw = torch.Generator().manual_seed(1)
        shape = (work.steps, work.batch, work.units)
        self.dtype, self.variant, self.loaded = dtype, variant, kernels.load(variant)
        self.x = torch.randn(shape, generator=draw).to(dtype).requires_grad_()
        self.weight = (torch.randn(work.vocabulary, work.units, generator=draw) / 16).requires_grad_()
        self.bias = torch.zeros(work.vocabulary, requires_grad=True)
        self.targets = torch.randint(work.vocabulary, shape[:2], generator=draw)
        self.mask = (torch.rand(1, *shape[1:], generator=draw) > 0.1).float() / 0.9 if dropout else None

    def in_kernels(self) -> Tensor:
        """All in one call."""
        return head_loss(
            self.x, self.weight, self.bias, self.targets, self.dtype, "native", self.variant, None, self.mask
        )  # fmt: skip

    def in_pytorchs_products(self) -> Tensor:
        """The products in PyTorch, the loss in the kernels."""
        rows, targets = self.masked().flatten(0, 1), self.targets.flatten()
        result: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            rows, self.weight, self.bias, None, None, targets, self.dtype, self.loaded, True
        )  # fmt: skip
        return result

    def in_pytorch(self) -> Tensor:
        """As one would write it."""
        rows = self.masked().flatten(0, 1).to(self.dtype)
        logits = F.linear(rows, self.weight.to(self.dtype), self.bias.to(self.dtype))
        return F.cross_entropy(logits.float(), self.targets.flatten())

    def masked(self) -> Tensor:
        """The inputs times the mask."""
        return self.x if self.mask is None else self.x * self.mask

    def milliseconds(self, side: Callable[[], Tensor], seconds: float) -> float:
        """Of one pass forward and backward, the mean of those in `seconds`, at least one."""
        count, spent, begin = 0, 0.0, time.perf_counter()
        while not count or spent < seconds:
            for part in (self.x, self.weight, self.bias):
                part.grad = None
            side().backward()  # type: ignore[no-untyped-call]
            count, spent = count + 1, time.perf_counter() - begin
        return 1000 * spent / count


def compare(label: str, layer: Layer, rounds: int, seconds: float) -> None:
    """Measure all sides in turn and print a row."""
    sides = (layer.in_kernels, layer.in_pytorchs_products, layer.in_pytorch)
    found = take_turns({side: partial(layer.milliseconds, side) for side in sides}, rounds, seconds)
    ours, *others = found.values()
    row = [f"{statistics.median(times):.2f}" for times in (ours, *others)]
    for times in others:
        ratio, least, most = ratio_and_spread(times, ours)
        row.append(f"{ratio:.2f} ({least:.2f} to {most:.2f})")
    print(f"| {label} | {' | '.join(row)} |", flush=True)


def main() -> None:
    """Print a row for each work, precision and with or without dropout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", choices=kernels.available(), default=kernels.available()[0])
    parser.add_argument("--precision", nargs="*", choices=tuple(PRECISIONS), default=tuple(PRECISIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="per side and round")
    options = parser.parse_args()
    keep_memory()
    loss.LARGE_HEADS = frozenset({options.kernels})  # also where training uses PyTorch's products
    torch.set_num_threads(options.threads)
    print(f"{describe_machine()}\n{options.threads} threads, kernels {options.kernels}\n")
    print("| work | kernels, ms | PyTorch's products | PyTorch | PyTorch's products, ratio | PyTorch, ratio |")
    print("|---|---|---|---|---|---|")
    for work in WORKS:
        for precision in options.precision:
            for dropout in (False, True):
                layer = Layer(work, PRECISIONS[precision], options.kernels, dropout=dropout)
                label = f"{work.name}, {precision}{', dropout' if dropout else ''}"
                compare(label, layer, options.rounds, options.seconds)


if __name__ == "__main__":
    main()

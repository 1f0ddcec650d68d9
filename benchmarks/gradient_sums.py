"""Ways to add up gradients between the ranks of one machine, compared in one group of processes, in turn.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/gradient_sums.py [--units 512] [--rounds 7]

- none: no sum at all, the limit;
- flat: all gradients in one buffer, through gloo over loopback, when the backward pass is done;
- overlapped: each gradient as soon as the backward pass has it, through gloo, while the rest is computed;
- shared: each rank writes its gradients to memory that all share, and adds up those of all.

The last is what charwright does on one machine, and flat what it does on several.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, distributed

import charwright as cw
from charwright.model.compute import keep_memory
from charwright.training.batch import make_part
from charwright.training.loop import train_step
from charwright.training.optimizer import clipped_gradients, make_optimizer
from charwright.training.ranks import join
from charwright.training.sharing import Part, part_of, rows_of, share_weights, summed_gradients
from machine import describe_machine
from ranks import ROWS, make_dataset, make_model

STEPS, WARM_UP = 20, 3


@contextmanager
def overlapped(model: cw.LanguageModel, optimizer: torch.optim.Optimizer, part: Part) -> Iterator[None]:
    """Send each gradient when it is complete, and wait for all before the optimizer's step."""
    sent: list[distributed.Work] = []

    def send(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(part.share)
        work = distributed.all_reduce(weight.grad, async_op=True)
        assert work is not None
        sent.append(work)

    def wait(*_: object) -> None:
        for work in sent:
            work.wait()
        sent.clear()

    hooks = [weight.register_post_accumulate_grad_hook(send) for weight in model.parameters()]
    hooks.append(optimizer.register_step_pre_hook(wait))
    yield
    for hook in hooks:
        hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    ranks = join(os.environ)
    part = part_of(ROWS, ranks)
    if part is None:
        raise SystemExit("start this with torchrun, on two ranks or more")
    model, config = make_model(options.units), cw.TrainingConfig(steps=10**9, warmup=0, learning_rate=1e-3)
    share_weights(model, ranks)
    optimizer = make_optimizer(model, config)
    pairs = list(rows_of(make_dataset(ROWS), part).batches(1))

    def summed(*, one_machine: bool) -> AbstractContextManager[None]:
        ranks.one_machine = one_machine
        return summed_gradients(model, optimizer, ranks, part)

    def step_ms(way: Callable[[], AbstractContextManager[None]]) -> float:
        with way(), clipped_gradients(model, optimizer, config.clip_norm):
            for step in range(WARM_UP + STEPS):
                if step == WARM_UP:
                    began = time.perf_counter()
                batch = make_part(pairs[step % len(pairs)], None, config, step, model, part)
                train_step(model, batch, optimizer)
            return 1e3 * (time.perf_counter() - began) / STEPS

    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "none": nullcontext,
        "flat": partial(summed, one_machine=False),
        "overlapped": partial(overlapped, model, optimizer, part),
        "shared": partial(summed, one_machine=True),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(step_ms(way))
    if ranks.rank == 0:
        print(describe_machine())
        print(f"PyTorch {torch.__version__}, GRU {options.units}, {ROWS} rows on {ranks.size} ranks of 1 thread\n")
        print("| gradients | ms per step, median | lowest | highest |\n|---|---|---|---|")
        for name, times in found.items():
            print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} | {max(times):.1f} |")
    ranks.leave()


if __name__ == "__main__":
    main()

"""What a training step consists of: the time in each of the C kernels, and the rest, which is Python and PyTorch.

    python benchmarks/step_parts.py
    python benchmarks/step_parts.py --units 256 --threads 1

The steps are those of the training loop, with all that a plan turns on: a multiplicative layer, n-grams, dropout,
cautious AdamW, clipping, an average of the weights, and streams of which some begin anew. The ids are random. Each
figure is the median of the steps, in milliseconds; the first steps are left out.

A step has one call for the network. Its parts are those of further steps, in which Python makes the calls that
`network.c` consists of; the step, the kernels together and the rest are measured without that.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import charwright as cw
from cells import planned
from charwright import kernels
from charwright.config import SequenceConfig
from charwright.data.sequences import make_dataset
from charwright.model.compute import Compute
from machine import describe_machine

UNITS = (256, 640)
LENGTH = 1_000_000
WARMUP = 30
PARTS = ("cw_pack", "cw_linear", "cw_forward", "cw_head", "cw_backward", "cw_weight_gradient", "cw_adam", "cw_descend")


class Clock:
    """A library of kernels that notes how long each call takes; `apart`: each of those that a network consists of."""

    def __init__(self, library: Any, *, apart: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._library, self._apart = library, apart

    def __getattr__(self, name: str) -> Any:
        if name == "cw_differentiate" and self._apart:
            return self._differentiate
        call = getattr(self._library, name)

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = call(*arguments)
            self.seconds[name] += time.perf_counter() - began
            return result

        setattr(self, name, timed)
        return timed

    def _differentiate(self, variant: int, network: Any, total: Any) -> int:
        """The calls of `network.c` for a network of one layer."""
        whole = network._obj
        assert whole.layers == 1
        part = whole.layer[0]
        layer, weights, packed = part.layer, ctypes.c_void_p(part.weights), ctypes.c_void_p(part.layer.packed)
        sizes = (variant, layer.cell, layer.units, layer.bf16)
        self.cw_linear_forward(variant, ctypes.byref(part.scale))
        self.cw_linear_forward(variant, ctypes.byref(part.input))
        self.cw_pack(*sizes, 0, layer.threads, weights, packed)
        self.cw_forward(variant, ctypes.byref(layer))
        self.cw_contexts(
            layer.steps, layer.batch, whole.ngram_order, whole.ngram_bits, ctypes.c_void_p(whole.ids),
            ctypes.c_void_p(whole.tokens), ctypes.c_void_p(whole.ngrams.offsets), ctypes.c_void_p(whole.tokens),
        )  # fmt: skip
        ctypes.memset(whole.head.d_bias, 0, ctypes.sizeof(ctypes.c_float) * whole.head.vocabulary)
        total._obj.value = self.cw_head(variant, ctypes.byref(whole.head))
        self.cw_pack(*sizes, 1, layer.threads, weights, packed)
        self.cw_backward(variant, ctypes.byref(layer))
        scratch, gradient = ctypes.c_void_p(part.scratch), ctypes.c_void_p(part.d_weights)
        self.cw_weight_gradient(variant, ctypes.byref(layer), scratch, gradient)
        self.cw_linear_backward(variant, ctypes.byref(part.input))
        self.cw_linear_backward(variant, ctypes.byref(part.scale))
        return 0


def measure(units: int, vocabulary: int, steps: int, *, apart: bool) -> list[dict[str, float]]:
    """Seconds of each step, as a whole and in each kernel."""
    loaded = kernels.load()
    if loaded is None:
        raise SystemExit("the C kernels are not built; reinstall charwright where a C compiler is")
    clock = Clock(loaded.library, apart=apart)
    timed = replace(loaded, library=clock)  # type: ignore[arg-type]
    original, kernels.load = kernels.load, lambda variant=None: timed  # noqa: ARG005
    ids = (np.random.Generator(np.random.Philox(1)).zipf(1.3, LENGTH) % vocabulary).astype(np.int32)
    model = cw.LanguageModel(planned("igru", units, dropout=0.1), vocabulary, compute=Compute.choose(device="cpu"))
    config = cw.TrainingConfig(minutes=60, optimizer="cautious-adamw", ngram_rate=0.12, checkpoint_minutes=60)
    found: list[dict[str, float]] = []
    last = time.perf_counter()

    def step_ended() -> str | None:
        nonlocal last
        now = time.perf_counter()
        found.append({"step": now - last} | clock.seconds)
        clock.seconds.clear()
        last = now
        return "measured" if len(found) == WARMUP + steps else None

    dataset = make_dataset(ids, SequenceConfig(order="excerpts", batch=32, seq_length=64), seed=1)
    for _ in cw.fit(model, dataset, config, should_stop=step_ended):
        pass
    kernels.load = original
    return found[WARMUP:]


def median_ms(steps: list[dict[str, float]], part: str) -> float:
    """The median of the time in all kernels whose names begin so; `cw_` is all of them."""
    return 1e3 * statistics.median(sum(s for name, s in step.items() if name.startswith(part)) for step in steps)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="*", default=UNITS)
    parser.add_argument("--vocabulary", type=int, default=66)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{describe_machine()}\n{options.threads} threads, kernels {kernels.available()[0]}\n")
    columns = ["units", "step", "kernels", "rest", "of the step", *(part.removeprefix("cw_") for part in PARTS)]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for units in options.units:
        steps = measure(units, options.vocabulary, options.steps, apart=False)
        parts = measure(units, options.vocabulary, options.steps, apart=True)
        whole, inside = median_ms(steps, "step"), median_ms(steps, "cw_")
        rest = 1e3 * statistics.median(
            step["step"] - sum(seconds for name, seconds in step.items() if name != "step") for step in steps
        )
        times = [f"{whole:.2f}", f"{inside:.2f}", f"{rest:.2f}", f"{100 * rest / whole:.0f} %"]
        times += [f"{median_ms(parts, part):.2f}" for part in PARTS]
        print(f"| {units} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()

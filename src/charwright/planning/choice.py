"""How a model computes is chosen by measurement: the candidates of a machine, and the fastest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from charwright.model.compute import CPU, PRECISIONS, Compute, Wanted, asked_core, choose_device
from charwright.model.features import features_of, usable_variants
from charwright.planning.measurement import Deadline

SAME = {
    "f32": (("amx", "avx512bf16", "avx512vnni", "avx512"), ("avx2vnni", "avx2")),
    "bf16": (("avx512vnni", "avx512"), ("avx2vnni", "avx2")),
}
"""Variants whose code for training is the same in a precision: those with VNNI differ in 8-bit generation."""

FOR_TESTS = "emulated"
"""The variant that computes tiles without the instructions for them; it is only in the library of a test."""

Measure = Callable[[Compute, float], float]
"""Characters per second of a candidate, given the best speed so far (0: none)."""

FAILURES = (RuntimeError, MemoryError)
"""How a candidate fails: PyTorch's lack of memory, or of an operation on a device, is a kind of RuntimeError."""


@dataclass(frozen=True)
class Choice:
    """How a run computes; `measured` are characters per second by label, or None if nothing was compared."""

    compute: Compute
    measured: Mapping[str, int] | None = None


def candidates(wanted: Wanted, *, masked: bool) -> list[Compute]:
    """What could be the fastest within what the user asks for, the likely ones first.

    The reference core is one only if it is asked for. Left out is what cannot win: code without the processor's vector
    instructions (`portable`), code for tests (`emulated`), PyTorch's bfloat16 where it is a plain loop (one step of it
    can take half a second), and equal code under another name. `avx2` stays: where wide vectors lower the clock of the
    processor, it can be faster than they are. Where something multiplies the state in the product (`masked`), recurrent
    dropout or a multiplicative layer, the core `torch` computes as `fused` does.
    """
    rule = wanted.by_rule()
    features = features_of(rule.device)
    if asked_core(wanted.core) != "auto":
        cores = [rule.core]
    elif rule.device.type == "cpu":
        cores = [*(["native"] if features.variants else []), "fused", *([] if masked else ["torch"])]
    else:
        cores = ["torch", *([] if masked else ["fused"])]
    names = list(PRECISIONS) if wanted.precision == "auto" and rule.core != "plain" else [rule.precision_name]

    slow = {"bf16"} if "plain_bf16" in features.flags and len(names) > 1 else set()
    found = [
        Compute(rule.device, core, PRECISIONS[name], wanted.threads, variant)
        for core in cores
        for name in names
        if core == "native" or name not in slow
        for variant in (_different(features.variants, name) if core == "native" else [None])
    ]

    def unlikely(candidate: Compute) -> tuple[bool, int]:
        if candidate.core == "native":
            order = 1 if candidate.kernel == features.variants[0] else 3
        elif candidate.precision == torch.bfloat16:
            order = 0 if features.fast_bfloat16 else 4
        else:
            order = 2
        return candidate != rule, order

    return sorted(found, key=unlikely)


def _different(variants: Iterable[str], precision: str) -> list[str | None]:
    """The variants worth comparing in a precision, best first."""
    kept = list(variants)
    for group in SAME[precision]:
        same = [variant for variant in kept if variant in group]
        kept = [variant for variant in kept if variant not in same[1:]]
    return [variant for variant in kept if variant not in ("portable", FOR_TESTS) or len(kept) == 1]


def every_candidate(device: str = "auto") -> list[Compute]:
    """Every way in which a device can compute: each variant of the kernels, each core, each precision.

    Not among them are the reference core, the variant for tests, and variants that CHARWRIGHT_KERNELS excludes.
    """
    place = choose_device(device)
    dtypes = PRECISIONS.values()
    usable = usable_variants() if place.type == CPU.type else ()
    native = [variant for variant in usable if variant != FOR_TESTS]
    return [
        *(Compute(place, "native", dtype, kernel=variant) for variant in native for dtype in dtypes),
        *(Compute(place, core, dtype) for core in ("fused", "torch") for dtype in dtypes),
    ]


def ranking(pool: Iterable[Compute], measure: Measure, deadline: Deadline) -> dict[Compute, float]:
    """The speeds of the candidates that could be measured in time, fastest first.

    They are measured in order. A candidate that fails, for want of memory or of an operation on its device, is dropped;
    without a deadline to spare only the first that works is measured.

    Raises:
        RuntimeError: (or MemoryError) of the first candidate, when all have failed.
    """
    speeds: dict[Compute, float] = {}
    failure: Exception | None = None
    for candidate in pool:
        if speeds and deadline.left_s <= 0:
            break
        try:
            speeds[candidate] = measure(candidate, max(speeds.values(), default=0.0))
        except FAILURES as error:
            failure = failure or error
    if failure is not None and not speeds:
        raise failure
    return dict(sorted(speeds.items(), key=lambda item: -item[1]))


def fastest(pool: Iterable[Compute], measure: Measure, deadline: Deadline) -> Compute:
    """The fastest candidate by `ranking`; of two that are equal, the first."""
    return next(iter(ranking(pool, measure, deadline)))

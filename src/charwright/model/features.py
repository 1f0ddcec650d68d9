"""What a processor or GPU offers, and the rule that decides by it how to compute when nothing is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from charwright import kernels

AMD = "AuthenticAMD"
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Features:
    """What decides how a model computes on a device.

    `variants` are those of the C kernels, best first; `vendor` is the processor's, if known. `flags` has `amx` and
    `avx512_bf16` if PyTorch can use these instructions of the processor, `plain_bf16` if it multiplies bfloat16 in a
    plain loop there, a hundred times slower than float32, and `bf16` if a GPU multiplies bfloat16.
    """

    device: str = "cpu"
    variants: tuple[str, ...] = ()
    vendor: str | None = None
    flags: frozenset[str] = frozenset()

    @property
    def fast_bfloat16(self) -> bool:
        """Whether PyTorch multiplies bfloat16 faster than float32.

        On Intel's processors `vdpbf16ps` is slower than float32, and only the tiles of AMX are faster.
        """
        return bool(self.flags & {"amx", "bf16"}) or ("avx512_bf16" in self.flags and self.vendor == AMD)


def by_features(features: Features, core: str = "auto", precision: str = "auto") -> tuple[str, str, str | None]:
    """The core, the precision and the variant of the C kernels (or None); names other than `auto` are kept."""
    if core == "auto":
        core = "torch" if features.device != "cpu" else "native" if features.variants else "fused"
    if core != "native" or not features.variants:
        fast = features.fast_bfloat16 and core != "plain"
        return core, _named(precision, bf16=fast), None
    best = features.variants[0]
    fast = best == "amx" or (best == "avx512bf16" and features.vendor == AMD)
    return core, _named(precision, bf16=fast), best


def _named(precision: str, *, bf16: bool) -> str:
    return precision if precision != "auto" else "bf16" if bf16 else "f32"


def features_of(device: torch.device) -> Features:
    """What a device of this machine offers."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Features("cuda", flags=frozenset({"bf16"} if native else ()))
    if device.type != "cpu":
        return Features(device.type)
    return Features("cpu", usable_variants(), _vendor(), _flags())


def usable_variants() -> tuple[str, ...]:
    """The variants of the C kernels to choose from, best first; CHARWRIGHT_KERNELS limits them to one, or none.

    Raises:
        UsageError: when the variable names a variant that does not run here.
    """
    if os.environ.get("CHARWRIGHT_KERNELS"):
        loaded = kernels.load()
        return () if loaded is None else (loaded.name,)
    return tuple(kernels.available())


@cache
def _vendor() -> str | None:
    """The vendor of the processor as Linux reports it, or None."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            found = next((line for line in lines if line.startswith("vendor_id")), None)
    except OSError:
        return None
    return found.partition(":")[2].strip() if found else None


@cache
def _flags() -> frozenset[str]:
    # PyTorch exposes the CPU's features only under private names.
    probes = {"amx": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    found = {flag: getattr(torch.cpu, name, None) for flag, name in probes.items()}
    flags = {flag for flag, probe in found.items() if probe is not None and probe()}
    return frozenset(flags | ({"plain_bf16"} if _multiplies_in_a_loop() else set()))


def _multiplies_in_a_loop() -> bool:
    """Whether oneDNN, the library behind PyTorch's products, leaves those of bfloat16 to a loop on this processor."""
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and not probe()

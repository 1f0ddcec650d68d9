"""Load the C kernels. `charwright_kernels.h` documents them.

The library is built at installation if a C compiler is available. Without it everything works, more slowly, and `load`
returns None.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from charwright.errors import UsageError
from charwright.kernels.structures import (
    Layer,
    Linear,
    Matrix,
    Model,
    Network,
    NetworkLayer,
    Ngrams,
    OutputLayer,
    Parameter,
    Sampler,
    StreamBuffers,
)

__all__ = [
    "Kernels",
    "Layer",
    "Layout",
    "Linear",
    "Matrix",
    "Model",
    "Network",
    "NetworkLayer",
    "Ngrams",
    "OutputLayer",
    "Parameter",
    "Sampler",
    "StreamBuffers",
    "available",
    "load",
]

ABI = 19
CELL_CODES = {"gru": 0, "lstm": 1, "rnn": 2, "igru": 3}
UNITS_MULTIPLE = 16
"""The kernels require a number of units that is a multiple of this; callers pad with zeros."""

STORAGES = {"f32": 0, "bf16": 1, "q8": 2}

VARIANTS = ("amx", "avx512bf16", "avx512vnni", "avx512", "avx2vnni", "avx2", "portable", "emulated")


@dataclass(frozen=True)
class Layout:
    """A variant's layout of packed weights for single steps; see `cw_matrix` and `cw_layout`."""

    lanes: int
    layer_blocks: int
    head_panel: int
    offset: int
    swapped: bool


@dataclass(frozen=True)
class Kernels:
    """A loaded library, and its variant in use."""

    library: ctypes.CDLL
    variant: int
    name: str

    def packed_bytes(self, cell: str, units: int, bf16: bool) -> int:
        """The size of the packed recurrent weights in bytes."""
        return int(self.library.cw_packed_bytes(self.variant, CELL_CODES[cell], units, int(bf16)))

    def pack(self, cell: str, units: int, *, bf16: bool, backward: bool, threads: int, weights: int, to: int) -> None:
        """Pack float32 weights (P * H, H) from address `weights` to address `to`."""
        self.library.cw_pack(
            self.variant, CELL_CODES[cell], units, int(bf16), int(backward), threads, ctypes.c_void_p(weights),
            ctypes.c_void_p(to),
        )  # fmt: skip

    def forward(self, layer: Layer) -> None:
        """Run a layer's forward pass over its sequence.

        Raises:
            MemoryError: if the working memory cannot be allocated.
        """
        if self.library.cw_forward(self.variant, ctypes.byref(layer)):
            raise MemoryError(f"not enough memory for a layer of {layer.units} units")

    def backward(self, layer: Layer) -> None:
        """Run a layer's backward pass over its sequence.

        Raises:
            MemoryError: if the working memory cannot be allocated.
        """
        if self.library.cw_backward(self.variant, ctypes.byref(layer)):
            raise MemoryError(f"not enough memory for the gradients of a layer of {layer.units} units")

    def input_gradient(self, layer: Layer, to: int) -> None:
        """After `backward`: the gradient of the inputs (T, B, G * H), to an address, in storage."""
        self.library.cw_input_gradient(self.variant, ctypes.byref(layer), ctypes.c_void_p(to))

    def weight_gradient(self, layer: Layer, scratch: int, to: int) -> None:
        """After `backward`: the gradient of the recurrent weights (P * H, H) float32. Scratch of `outer_bytes`."""
        self.library.cw_weight_gradient(
            self.variant, ctypes.byref(layer), ctypes.c_void_p(scratch), ctypes.c_void_p(to)
        )  # fmt: skip

    def outer_bytes(self, n: int, m: int, columns: int, *, bf16: bool, threads: int) -> int:
        """The size of the scratch memory of `outer` in bytes."""
        return int(self.library.cw_outer_bytes(self.variant, int(bf16), threads, n, m, columns))

    def outer(
        self, n: int, m: int, columns: int, *, bf16: bool, threads: int, a: int, a_row: int, b: int, b_row: int,
        scratch: int, c: int,
    ) -> None:  # fmt: skip
        """C (m, columns) float32 = a (n, m) transposed times b (n, columns). Addresses; row strides in elements."""
        self.library.cw_outer(
            self.variant, int(bf16), threads, n, m, columns, ctypes.c_void_p(a), ctypes.c_size_t(a_row),
            ctypes.c_void_p(b), ctypes.c_size_t(b_row), ctypes.c_void_p(scratch), ctypes.c_void_p(c),
        )  # fmt: skip

    def linear_bytes(self, layer: Linear, *, backward: bool) -> int:
        """The size of the scratch memory of a linear layer in bytes."""
        return int(self.library.cw_linear_bytes(self.variant, ctypes.byref(layer), int(backward)))

    def linear(self, layer: Linear, *, backward: bool) -> None:
        """Compute a linear layer, or its gradients."""
        run = self.library.cw_linear_backward if backward else self.library.cw_linear_forward
        run(self.variant, ctypes.byref(layer))

    def contexts(
        self, steps: int, batch: int, order: int, bits: int, *, ids: int, before: int, offsets: int, after: int
    ) -> None:
        """The offsets of n-grams after each of ids (T, B), and the tokens before the next. Addresses."""
        self.library.cw_contexts(
            steps, batch, order, bits, ctypes.c_void_p(ids), ctypes.c_void_p(before), ctypes.c_void_p(offsets),
            ctypes.c_void_p(after),
        )  # fmt: skip

    def ids_fit(self, ids: int, count: int, vocabulary: int) -> bool:
        """Whether all ids from an address on are from 0 to `vocabulary` - 1."""
        return bool(self.library.cw_ids_fit(ctypes.c_void_p(ids), ctypes.c_int64(count), ctypes.c_int64(vocabulary)))

    def cross_entropy(
        self, rows: int, vocabulary: int, *, bf16: bool, threads: int, logits: int, bias: int, targets: int,
        scale: float, losses: int, d_bias: int | None, scratch: int, ngrams: Ngrams | None = None,
    ) -> float:  # fmt: skip
        """The losses of logits + bias against targets, and their sum. With d_bias, gradients replace the logits."""
        total: float = self.library.cw_cross_entropy(
            self.variant, int(bf16), threads, rows, vocabulary, ctypes.c_void_p(logits), ctypes.c_void_p(bias),
            None if ngrams is None else ctypes.byref(ngrams), ctypes.c_void_p(targets), ctypes.c_float(scale),
            ctypes.c_void_p(losses), ctypes.c_void_p(d_bias), ctypes.c_void_p(scratch),
        )  # fmt: skip
        return total

    def head_bytes(self, layer: OutputLayer) -> int:
        """The size of the scratch memory of `head` in bytes."""
        return int(self.library.cw_head_bytes(self.variant, ctypes.byref(layer)))

    def head(self, layer: OutputLayer) -> float:
        """The losses of an output layer, and their sum. With d_bias, also the gradients."""
        return float(self.library.cw_head(self.variant, ctypes.byref(layer)))

    def differentiate(self, network: Network) -> float:
        """The sum of the losses of a batch, and all gradients.

        Raises:
            MemoryError: if the working memory cannot be allocated.
        """
        total = ctypes.c_double()
        if self.library.cw_differentiate(self.variant, ctypes.byref(network), ctypes.byref(total)):
            raise MemoryError(f"not enough memory for a layer of {network.head.units} units")
        return total.value

    def descend(
        self, rows: int, vocabulary: int, *, bf16: bool, threads: int, ngrams: Ngrams, d_logits: int, rate: float
    ) -> None:
        """Subtract `rate` times the gradients of logits (rows, vocabulary) from the n-grams' array, row by row."""
        self.library.cw_descend(
            self.variant, int(bf16), threads, rows, vocabulary, ctypes.byref(ngrams), ctypes.c_void_p(d_logits),
            ctypes.c_float(rate),
        )  # fmt: skip

    def norm(self, parameters: ctypes.Array[Parameter], threads: int) -> float:
        """The Euclidean norm of all gradients together."""
        scratch = ctypes.create_string_buffer(self.library.cw_norm_bytes(parameters, len(parameters)))
        return math.sqrt(self.library.cw_norm(self.variant, threads, parameters, len(parameters), scratch))

    def adam(self, parameters: ctypes.Array[Parameter], threads: int, scale: float) -> None:
        """One step of Adam for all parameters, with gradients times `scale`."""
        scratch = None
        if any(parameter.cautious for parameter in parameters):
            scratch = ctypes.create_string_buffer(self.library.cw_norm_bytes(parameters, len(parameters)))
        self.library.cw_adam(self.variant, threads, parameters, len(parameters), ctypes.c_float(scale), scratch)

    def layout(self, storage: str, cell: str) -> Layout:
        """The layout of weights that `write` requires."""
        out = (ctypes.c_int32 * 5)()
        self.library.cw_layout(self.variant, STORAGES[storage], CELL_CODES[cell], out)
        return Layout(out[0], out[1], out[2], out[3], bool(out[4]))

    def write(self, model: Model, threads: int, streams: ctypes.Array[StreamBuffers], steps: int) -> None:
        """Run steps of all streams together.

        Raises:
            MemoryError: if the scratch memory cannot be allocated.
        """
        if self.library.cw_write(
            self.variant, ctypes.byref(model), threads, streams, len(streams), ctypes.c_int64(steps)
        ):  # fmt: skip
            raise MemoryError(f"not enough memory for {len(streams)} streams at once")

    def draw(self, sampler: Sampler, logits: int, vocabulary: int, ids: int, length: int, scratch: int) -> int:
        """Sample an id from logits (V,) float64, as `write` does. Addresses; scratch of `draw_bytes`."""
        return int(
            self.library.cw_draw(
                self.variant, ctypes.byref(sampler), ctypes.c_void_p(logits), vocabulary, ctypes.c_void_p(ids),
                ctypes.c_int64(length), ctypes.c_void_p(scratch),
            )
        )  # fmt: skip

    def draw_bytes(self, vocabulary: int) -> int:
        """The size of the scratch memory of `draw` in bytes."""
        return int(self.library.cw_draw_bytes(vocabulary))

    def use_openmp(self, runtime: ctypes.CDLL) -> None:
        """Run on the threads of an OpenMP runtime in this process, instead of the library's own threads."""
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        self.library.cw_use_openmp(*(ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in names))


def load(variant: str | None = None) -> Kernels | None:
    """Load a variant of the kernels, by default the best one for this machine. None if they are not built.

    The environment variable CHARWRIGHT_KERNELS is the default for the whole process: a variant, or `none`. A variant
    that is named here overrides it.

    Raises:
        UsageError: if the variant does not exist or does not run on this machine.
    """
    wanted = variant or os.environ.get("CHARWRIGHT_KERNELS") or "best"
    if wanted == "none":
        return None
    return _load(wanted, by_variable=not variant)


def available() -> list[str]:
    """The variants that run on this machine, best first."""
    library = _library()
    return list(_variants(library)) if library else []


@cache
def _load(wanted: str, *, by_variable: bool) -> Kernels | None:
    library = _library()
    if library is None:
        return None
    names = _variants(library)
    name = next(iter(names)) if wanted == "best" else wanted
    if name not in names:
        here = f"this machine runs {', '.join(names)}"
        if by_variable:
            raise UsageError(f"CHARWRIGHT_KERNELS={name}: {here}; choose one of them, or none")
        raise UsageError(f"the kernel variant {name} does not run here: {here}")
    return Kernels(library, names[name], name)


@cache
def _library() -> ctypes.CDLL | None:
    """The library, if it exists and has the ABI of this module."""
    path = _library_path()
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # built for another architecture, for example
        warnings.warn(
            f"the C kernels in {path} cannot be loaded and are not used: {error}", RuntimeWarning, stacklevel=2
        )
        return None
    # This check comes first: another version may lack the functions below.
    if not hasattr(library, "cw_abi") or library.cw_abi() != ABI:
        warnings.warn(
            f"{path} holds no C kernels of this version and is not used; installing charwright again builds them",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    library.cw_variant_name.restype = ctypes.c_char_p
    library.cw_packed_bytes.restype = ctypes.c_size_t
    library.cw_outer_bytes.restype = ctypes.c_size_t
    library.cw_linear_bytes.restype = ctypes.c_size_t
    library.cw_head_bytes.restype = ctypes.c_size_t
    library.cw_head.restype = ctypes.c_double
    library.cw_draw_bytes.restype = ctypes.c_size_t
    library.cw_norm_bytes.restype = ctypes.c_size_t
    library.cw_norm.restype = ctypes.c_double
    library.cw_cross_entropy.restype = ctypes.c_double
    return library


def _variants(library: ctypes.CDLL) -> dict[str, int]:
    """The index of each variant that runs on this machine, by name, best first."""
    bits = library.cw_variants()
    runs_here = [index for index in range(bits.bit_length()) if bits >> index & 1]
    return {library.cw_variant_name(index).decode(): index for index in runs_here}


def _library_path() -> Path | None:
    """The path of the library: next to this file, or where an editable installation put it."""
    if override := os.environ.get("CHARWRIGHT_KERNELS_LIBRARY"):
        return Path(override)
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    for folder in __path__:
        path = Path(folder) / f"charwright_kernels{suffix}"
        if path.is_file():
            return path
    return None

"""The structures of the C kernels. `charwright_kernels.h` documents them."""

from __future__ import annotations

import ctypes


class Layer(ctypes.Structure):
    """`cw_layer` of charwright_kernels.h, field for field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("cell", "bf16", "steps", "batch", "units", "threads", "tokens")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "table",
                "ids",
                "inputs",
                "bias",
                "mask",
                "scale",
                "packed",
                "hidden",
                "masked",
                "gates",
                "cells",
                "state_h",
                "state_c",
                "d_outputs",
                "d_h",
                "d_c",
                "d_table",
                "d_scale",
                "d_bias",
            )
        ),
    )


class Matrix(ctypes.Structure):
    """`cw_matrix`, field for field."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("packed", "multipliers", "corrections", "bias"))


class Model(ctypes.Structure):
    """`cw_model`, field for field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("storage", "cell", "layers", "units", "vocabulary")),
        *((name, ctypes.c_void_p) for name in ("table", "recurrent", "inputs", "head", "tanh_table", "ngrams")),
        *((name, ctypes.c_int32) for name in ("ngram_bits", "ngram_order")),
        ("scale", ctypes.c_void_p),
    )


class Sampler(ctypes.Structure):
    """`cw_sampler`, field for field."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "penalty")),
        *((name, ctypes.c_int32) for name in ("top_k", "penalty_from", "penalty_window")),
        ("masked", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("seed", "stream", "drawn")),
    )


class StreamBuffers(ctypes.Structure):
    """`cw_text`, field for field."""

    _fields_ = (
        ("state", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("at", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
        ("likeliest", ctypes.c_void_p),
        ("likeliest_scores", ctypes.c_void_p),
        ("likeliest_count", ctypes.c_int32),
        ("drawing", ctypes.c_int32),
        ("logits", ctypes.c_void_p),
        ("sampler", Sampler),
    )


class Linear(ctypes.Structure):
    """`cw_linear` of charwright_kernels.h, field for field."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("bf16", "threads", "rows", "inputs", "outputs", "wide", "curved", "adding")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "weight", "bias", "y", "d_y", "d_x", "d_weight", "d_bias", "scratch")
        ),
    )


class Ngrams(ctypes.Structure):
    """`cw_ngrams`, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("array", "offsets")),
        ("size", ctypes.c_int64),
        ("count", ctypes.c_int32),
    )


class OutputLayer(ctypes.Structure):
    """`cw_output_layer`, field for field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bf16", "threads", "rows", "batch", "units", "vocabulary")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "mask", "weight", "bias")),
        ("ngrams", ctypes.POINTER(Ngrams)),
        *(
            (name, ctypes.c_void_p)
            for name in ("targets", "losses", "scratch", "d_logits", "d_x", "d_weight", "d_bias")
        ),
    )


class NetworkLayer(ctypes.Structure):
    """`cw_network_layer`, field for field."""

    _fields_ = (
        ("layer", Layer),
        ("input", Linear),
        ("scale", Linear),
        *((name, ctypes.c_void_p) for name in ("weights", "d_weights", "output_mask", "masked_outputs", "scratch")),
    )


class Network(ctypes.Structure):
    """`cw_network`, field for field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layers", "ngram_order", "ngram_bits")),
        ("layer", ctypes.POINTER(NetworkLayer)),
        ("head", OutputLayer),
        ("ngrams", Ngrams),
        *((name, ctypes.c_void_p) for name in ("tokens", "ids")),
    )


class Parameter(ctypes.Structure):
    """`cw_parameter`, field for field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "square", "gradient", "step")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "epsilon", "decay")),
        *((name, ctypes.c_int32) for name in ("decoupled", "cautious")),
    )

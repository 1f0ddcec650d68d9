"""The int8 engine, bit by bit: texts that must never change, and a reference in Python integers.

C in every variant, NumPy and the reference must agree on every number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from charwright import kernels, ngrams
from charwright.config import STATES, ModelConfig
from charwright.generation import native_backend as native
from charwright.generation import quantized
from charwright.generation.engine import Engine
from charwright.generation.sampling import Sampler
from charwright.generation.streams import Stream
from ramps import ramp_arrays

VARIANTS = [*kernels.available(), "none"]
CELLS = ["gru", "igru", "lstm", "rnn"]
Weights = Mapping[str, np.ndarray]


def engine_of(config: ModelConfig, weights: Weights, variant: str, threads: int = 1) -> Engine:
    engine = Engine(config, weights, "q8", variant=variant, threads=threads)
    if isinstance(engine._backend, native.NativeBackend):  # a fixed number of threads
        engine._backend._threads.counts = [threads]
    return engine


# --- The reference: docs/explanation/q8.md, one number at a time ---


@cache
def tanh_entries() -> list[int]:
    """The table of tanh, from 60 digits."""
    return [min(int((exact_tanh(i) * 2**15).to_integral_value("ROUND_HALF_EVEN")), 32767) for i in range(1026)]


def exact_tanh(i: int) -> Decimal:
    """The tanh of i / 128."""
    with localcontext() as context:
        context.prec = 60
        power = (Decimal(i) / 64).exp()
        return (power - 1) / (power + 1)


def slow_tanh_at(v: int) -> int:
    size = min(abs(v), 32767)
    index, part = size // 32, size % 32
    low, high = tanh_entries()[index], tanh_entries()[index + 1]
    size = low + ((high - low) * part + 16) // 32
    return -size if v < 0 else size


def slow_tanh(pre: int) -> int:
    return slow_tanh_at(2 * pre)


def slow_sigmoid(pre: int) -> int:
    return (32768 + slow_tanh_at(pre)) // 2


def half_up(number: int, bits: int) -> int:
    return (number + 2 ** (bits - 1)) // 2**bits


def within(number: int, limit: int) -> int:
    return max(-limit, min(limit, number))


def pre_of(number: int) -> int:
    return within(number, 32767)


class SlowMatrix:
    """A matrix with 8-bit rows."""

    def __init__(self, rows: np.ndarray, goal_bits: int) -> None:
        self.rows, self.multipliers = [], []
        unit = 2.0 ** (goal_bits + 20) / 127
        for row in rows.astype(float).tolist():
            largest = max(abs(weight) for weight in row)
            multiplier = within(max(1, math.ceil(largest / 127 * unit)), 2**31 - 1)
            self.multipliers.append(multiplier)
            self.rows.append([within(round(weight / (multiplier / unit)), 127) for weight in row])

    def times(self, state: list[int]) -> list[int]:
        activations = [half_up(127 * number, 15) for number in state]
        sums = [sum(a * w for a, w in zip(activations, row, strict=True)) for row in self.rows]
        return [
            within(half_up(total * multiplier, 20), 2**30 - 1)
            for total, multiplier in zip(sums, self.multipliers, strict=True)
        ]


def slow_fixed(values: np.ndarray, bits: int, limit: int = 2**30 - 1) -> list[int]:
    return [within(round(value * 2.0**bits), limit) for value in values.astype(float).tolist()]


def slow_sums(embedding: np.ndarray, weights: np.ndarray) -> list[list[float]]:
    def exact(values: np.ndarray) -> tuple[list[list[int]], float]:
        unit = 2.0 ** (math.frexp(float(np.abs(values).max()))[1] - 20) if values.any() else 1.0
        return [[round(value / unit) for value in row] for row in values.astype(float).tolist()], unit

    (left, left_unit), (right, right_unit) = exact(embedding), exact(weights)
    unit = left_unit * right_unit
    return [[sum(a * b for a, b in zip(x, w, strict=True)) * unit for w in right] for x in left]


def slow_table(embedding: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> list[list[int]]:
    added = bias.astype(float).tolist()
    return [
        [pre_of(round((x + c) * 2.0**11)) for x, c in zip(row, added, strict=True)]
        for row in slow_sums(embedding, weights)
    ]


def slow_scale(embedding: np.ndarray, weights: np.ndarray) -> list[list[int]]:
    """Half the scale of the state."""
    table = slow_table(embedding, weights, np.zeros(len(weights)))
    return [[(32768 + slow_tanh(pre)) >> 1 for pre in row] for row in table]


class SlowModel:
    """A model in Python integers, one stream at a time: a state is [layer][part][unit], and a row for n-grams."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, H = config, config.units
        self.recurrent, self.inputs, self.input_bias, self.candidate_bias = [], [], [], []
        self.scale = None
        if config.multiplicative:
            self.scale = slow_scale(weights["embedding.weight"], weights["recurrent.0.weight_mx"])
        for layer in range(config.layers):
            part = {name: weights.get(f"recurrent.{layer}.{name}") for name in ("weight_ih", "weight_hh", "bias_hh")}
            bias = weights[f"recurrent.{layer}.bias_ih"].copy()
            if config.cell in ("gru", "igru"):
                read = slice(2 * H) if config.cell == "gru" else slice(H, 2 * H)  # the gates but n that read the state
                bias[read] += part["bias_hh"][:-H]
                self.candidate_bias.append(slow_fixed(part["bias_hh"][-H:], 11))
            self.recurrent.append(SlowMatrix(part["weight_hh"] * (1 if layer or not self.scale else 2), 11))
            if layer:
                self.inputs.append(SlowMatrix(part["weight_ih"], 11))
                self.input_bias.append(slow_fixed(bias, 11))
            else:
                self.table = slow_table(weights["embedding.weight"], part["weight_ih"], bias)
        self.head = SlowMatrix(weights["embedding.weight" if config.tied else "head.weight"], 16)
        self.head_bias = slow_fixed(weights["head.bias"], 16)
        if config.ngram_bits:
            self.votes = slow_fixed(weights["ngrams.weight"], 11, 32767)

    def zero_state(self) -> list[list[list[int]]]:
        rows, parts = state_shape(self.config)
        return [[[0] * self.config.units for _ in range(parts)] for _ in range(rows)]

    def step(self, i: int, state: list[list[list[int]]]) -> list[int]:
        """Logits in 65,536ths; the state is changed in place."""
        fed, layers = self.table[i], self.config.layers
        for layer, parts in enumerate(state[:layers]):
            if layer:
                below = self.inputs[layer - 1].times(state[layer - 1][0])
                fed = [pre_of(a + b) for a, b in zip(below, self.input_bias[layer - 1], strict=True)]
            h = parts[0]
            if self.scale and not layer:
                h = [half_up(number * share, 15) for number, share in zip(h, self.scale[i], strict=True)]
            products = self.recurrent[layer].times(h)
            getattr(self, self.config.cell)(fed, products, parts, layer)
        logits = [a + b for a, b in zip(self.head.times(state[layers - 1][0]), self.head_bias, strict=True)]
        if self.config.ngram_bits:
            width = self.config.ngram_order - 1
            marks = [i + 1, *state[layers][0][:width]]
            for row in ngrams.MULTIPLIERS[:width]:
                total = sum(m * c for m, c in zip(row, marks, strict=False)) % 2**32
                complete = all(marks[: len(row)])
                offset = total // 2 ** (32 - self.config.ngram_bits) if complete else 2**self.config.ngram_bits
                logits = [logit + 32 * self.votes[offset + v] for v, logit in enumerate(logits)]
            state[layers][0][:width] = marks[:width]
        return logits

    def gru(self, fed: list[int], products: list[int], parts: list[list[int]], layer: int) -> None:
        H = self.config.units
        for j, h in enumerate(parts[0]):
            r, z = slow_sigmoid(pre_of(fed[j] + products[j])), slow_sigmoid(pre_of(fed[H + j] + products[H + j]))
            u = pre_of(products[2 * H + j] + self.candidate_bias[layer][j])
            n = slow_tanh(pre_of(fed[2 * H + j] + half_up(r * u, 15)))
            parts[0][j] = n + half_up(z * (h - n), 15)

    def igru(self, fed: list[int], products: list[int], parts: list[list[int]], layer: int) -> None:
        H = self.config.units
        for j, h in enumerate(parts[0]):
            r, z = slow_sigmoid(fed[j]), slow_sigmoid(pre_of(fed[H + j] + products[j]))
            u = pre_of(products[H + j] + self.candidate_bias[layer][j])
            n = slow_tanh(pre_of(fed[2 * H + j] + half_up(r * u, 15)))
            parts[0][j] = n + half_up(z * (h - n), 15)

    def lstm(self, fed: list[int], products: list[int], parts: list[list[int]], layer: int) -> None:
        H = self.config.units
        for j, c in enumerate(parts[1]):
            i, f, g, o = (pre_of(fed[gate * H + j] + products[gate * H + j]) for gate in range(4))
            cell = half_up(slow_sigmoid(f) * c + slow_sigmoid(i) * slow_tanh(g), 15)
            parts[1][j] = within(cell, 2**21 - 1)
            parts[0][j] = half_up(slow_sigmoid(o) * slow_tanh_at(half_up(parts[1][j], 3)), 15)

    def rnn(self, fed: list[int], products: list[int], parts: list[list[int]], layer: int) -> None:
        parts[0][:] = [slow_tanh(pre_of(a + b)) for a, b in zip(fed, products, strict=True)]


def state_shape(config: ModelConfig) -> tuple[int, int]:
    """The rows and parts of a state."""
    return config.layers + (config.ngram_bits > 0), STATES[config.cell]


def check_all_agree(
    config: ModelConfig, weights: Weights, ids: np.ndarray, start: np.ndarray | None = None, *, slow: bool = True
) -> np.ndarray:
    """Step ids (T, B) from a state (B, L, S, units) with every implementation; return the engine's final state."""
    units, states = config.units, []
    for variant, threads in [*product(VARIANTS[:-1], (1, 2)), ("none", 1)]:
        engine = engine_of(config, weights, variant, threads)
        state = engine.zero_state(ids.shape[1])
        if start is not None:
            state[..., :units] = start
        logits = np.stack([engine.step(row, state) for row in ids])
        if not states:
            expected = logits
        np.testing.assert_array_equal(logits, expected, err_msg=f"{variant}, {threads} threads")
        states.append(state)
        np.testing.assert_array_equal(state, states[0], err_msg=f"{variant}, {threads} threads")
        assert not state[..., units:].any()
    if slow:
        model = SlowModel(config, weights)
        for row in range(ids.shape[1]):
            mine = model.zero_state() if start is None else start[row].tolist()
            found = [model.step(i, mine) for i in ids[:, row].tolist()]
            np.testing.assert_array_equal(np.array(found), expected[:, row] * 65536)
            np.testing.assert_array_equal(np.array(mine), states[0][row, ..., :units])
    return states[0]


# --- Texts that must never change ---

SIZE = 23
LENGTH = 300
GOLDEN_KINDS = [
    ("gru", 1, False), ("lstm", 1, False), ("rnn", 1, False), ("gru", 2, False), ("igru", 2, False), ("lstm", 1, True)
]  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """The recorded text of one seed."""

    ids: list[int]
    """The first of them."""
    sha256: str
    """Of all of them as 32-bit numbers, the lowest byte first."""
    logits: list[int]
    """The last ones, in 65,536ths."""


GOLDEN = {
    ("gru", 1, False): Golden(
        [
            1, 2, 3, 10, 2, 2, 2, 2, 3, 2, 3, 2, 12, 10, 3, 2, 12, 3, 3, 2, 2, 3, 2, 2, 2, 2, 2, 3, 2, 2,
            21, 2, 2, 3, 2, 14, 2, 2, 16, 2, 2, 2, 19, 16, 8, 2, 2, 3, 21, 2, 13, 2, 18, 4, 3, 3, 3, 19, 2,
            3,
        ],
        "5fc58034487cee1bc924c5281fb85e001c60608937f3d70c5f932aa7588988f6",
        [
            -108624, -148, 228191, 194588, 35059, -145779, 85755, -99420, 19851, 61175, 71092, -69919,
            83111, -19373, 15336, 45445, -17736, -14450, -8285, 120211, -22452, 70454, 4858,
        ],
    ),
    ("lstm", 1, False): Golden(
        [
            1, 2, 3, 19, 3, 8, 8, 2, 15, 3, 13, 1, 19, 19, 10, 9, 19, 14, 16, 2, 10, 14, 7, 9, 3, 6, 2, 12,
            3, 4, 22, 4, 2, 8, 6, 18, 3, 0, 19, 9, 1, 4, 19, 22, 19, 4, 8, 13, 21, 6, 19, 2, 19, 16, 10,
            15, 10, 19, 3, 10,
        ],
        "0fe4b58f59ad0ca044c9fe9a50f6dfb44be07bf0f80506e1a3aa36c0d695085c",
        [
            -45331, -13684, 38968, 67411, 41511, -81881, 3095, -33797, 4970, 17095, 30245, -27839, -14592,
            -39783, 9272, 39553, -42061, -27035, -10495, 54747, 45588, -23546, -15240,
        ],
    ),
    ("rnn", 1, False): Golden(
        [
            1, 2, 3, 13, 3, 10, 14, 2, 13, 11, 11, 1, 14, 21, 13, 11, 15, 8, 16, 2, 12, 15, 3, 11, 12, 2,
            4, 11, 3, 8, 21, 5, 0, 9, 8, 15, 2, 0, 11, 6, 0, 1, 14, 20, 20, 12, 12, 12, 21, 8, 15, 2, 16,
            15, 8, 16, 9, 15, 2, 10,
        ],
        "13e2a9717a6ca236fcacede5f92c322d1e6f9d2ed9624ec2bfa73469e30f4594",
        [
            144366, 32030, -48599, -78347, 36352, -24178, -15062, -58301, -27249, 148078, 168651, 73883,
            -170117, -7816, 21481, 102895, -53185, -52284, -897, 121954, 4894, 130370, -48944,
        ],
    ),
    ("gru", 2, False): Golden(
        [
            1, 2, 3, 12, 2, 2, 2, 2, 11, 2, 12, 1, 14, 14, 8, 3, 15, 12, 14, 2, 12, 14, 11, 8, 3, 3, 2, 12,
            2, 3, 20, 4, 2, 10, 9, 16, 2, 1, 17, 11, 1, 2, 17, 20, 19, 4, 4, 11, 22, 2, 14, 2, 17, 14, 11,
            14, 11, 16, 2, 11,
        ],
        "a403efdc190551a891f9de6b75590581ec7ad3b09b0ba9350bdbdededfc1e07a",
        [
            -186276, 26524, 168945, 45146, 89767, -47275, -174953, -78054, 50791, -13672, -80153, 118819,
            113584, -2268, 100807, 83675, 38187, 43062, 39106, 70752, 34708, -73744, 34628,
        ],
    ),
    ("igru", 2, False): Golden(
        [
            1, 2, 3, 20, 3, 9, 4, 2, 20, 2, 18, 1, 18, 18, 6, 4, 20, 15, 18, 2, 18, 18, 11, 9, 3, 4,
            2, 17, 2, 2, 20, 2, 1, 12, 2, 18, 2, 1, 18, 3, 1, 2, 20, 20, 18, 3, 12, 16, 20, 3, 20,
            2, 20, 18, 15, 18, 15, 20, 2, 17,
        ],
        "ce9fcb06a3a27fc1fa1bbc433641dbd88996e8d064e97ed8359acdb5f89e8b5a",
        [
            -124550, 18420, 132379, 85121, 76656, -126028, -17385, -122091, -68104, -8067, -63035,
            -83334, -14581, 8279, 3728, 119061, 25826, 50651, 138028, -123605, 127964, -42691,
            -4397,
        ],
    ),
    ("lstm", 1, True): Golden(
        [
            1, 2, 3, 19, 3, 4, 4, 2, 11, 3, 8, 1, 14, 15, 8, 4, 15, 10, 14, 2, 6, 13, 4, 4, 4, 3, 2, 7, 3,
            3, 22, 3, 1, 5, 4, 15, 3, 0, 16, 5, 1, 3, 19, 20, 19, 4, 4, 10, 20, 3, 15, 1, 18, 14, 7, 14, 8,
            18, 2, 6,
        ],
        "38b7468671966f948f93da805136817ee0fa09407cbca94d0ad88e9f1c60a35f",
        [
            -69061, 12270, 67174, 78200, 69136, 27200, -24203, -2656, 8587, -6706, -11263, -67694, -703,
            -7065, 45761, 5971, -44218, -32986, 10521, -16498, 31243, -89232, 5727,
        ],
    ),
}  # fmt: skip


def golden_model(cell: str, layers: int, tied: bool) -> tuple[ModelConfig, Weights]:
    config = ModelConfig(cell=cell, layers=layers, units=40, embedding_size=40 if tied else 10, tied=tied)
    return config, ramp_arrays(config, SIZE, scale=3)


def new_stream(engine: Engine, number: int = 0) -> Stream:
    """Stream 0 is the golden one."""
    ids = np.array([1, 2, 3] if number == 0 else [number % SIZE] * (1 + number % 5), dtype=np.int32)
    sampler = Sampler(0.8, seed=7, stream=number)
    return Stream(engine.zero_state()[0], ids, len(ids), sampler=sampler, logits=np.zeros(SIZE))


def golden_of(stream: Stream) -> Golden:
    assert stream.logits is not None
    ids = stream.ids[: stream.length].astype("<i4")
    logits = (stream.logits * 2**16).astype(int).tolist()
    return Golden(ids[:60].tolist(), hashlib.sha256(ids.tobytes()).hexdigest(), logits)


@pytest.mark.parametrize(("variant", "threads"), [*product(VARIANTS[:-1], (1, 2)), ("none", 1)])
@pytest.mark.parametrize(("cell", "layers", "tied"), GOLDEN_KINDS)
def test_a_seeds_text_never_changes(cell: str, layers: int, tied: bool, variant: str, threads: int) -> None:
    """Alone, and among 63 others."""
    engine = engine_of(*golden_model(cell, layers, tied), variant, threads)
    alone = new_stream(engine)
    engine.advance([alone], LENGTH + 2)  # two steps only read
    assert golden_of(alone) == GOLDEN[cell, layers, tied]
    steps = LENGTH + 2 if variant != "none" else 59  # NumPy is slow
    many = [new_stream(engine, number) for number in range(64)]
    many = [*many[1:30], many[0], *many[30:]]
    engine.advance(many, steps)
    assert golden_of(many[29]).ids == GOLDEN[cell, layers, tied].ids
    assert golden_of(many[29]) == GOLDEN[cell, layers, tied] or variant == "none"


@pytest.mark.parametrize(("cell", "layers", "tied"), GOLDEN_KINDS)
def test_the_reference_writes_the_same_text(cell: str, layers: int, tied: bool) -> None:
    config, weights = golden_model(cell, layers, tied)
    model, sampler, ids = SlowModel(config, weights), Sampler(0.8, seed=7), [1, 2, 3]
    state = model.zero_state()
    for at in range(LENGTH + 2):
        logits = model.step(ids[at], state)
        if at >= 2:
            ids.append(sampler.draw(np.array(logits) / 2**16, np.array(ids, dtype=np.int32), at - 2))
    assert ids[:60] == GOLDEN[cell, layers, tied].ids
    assert hashlib.sha256(np.array(ids, dtype="<i4").tobytes()).hexdigest() == GOLDEN[cell, layers, tied].sha256
    assert logits == GOLDEN[cell, layers, tied].logits


# --- Steps from arbitrary states ---

NGRAMS = [(1, 4), (10, 8), (20, 2)]
"""Bits and orders."""


def some_ids(steps: int, streams: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, SIZE, (steps, streams))


def some_state(config: ModelConfig, streams: int, seed: int = 0) -> np.ndarray:
    """States (B, L, S, units) of numbers near their limits, near zero, and between; after any tokens."""
    random = np.random.Generator(np.random.Philox(seed))
    shape = (streams, config.layers, STATES[config.cell], config.units)
    limits = np.array([32767, 2**21 - 1][: STATES[config.cell]])[:, None]
    share = random.choice([1.0, -1.0, 0.0, 1e-4, 1 - 1e-4, 2.0], shape)
    layers = np.where(share == 2, random.integers(-limits, limits + 1, shape), np.rint(share * limits))
    state = np.zeros((streams, *state_shape(config), config.units), dtype=np.int32)
    state[:, : config.layers] = layers
    if config.ngram_bits:
        width = config.ngram_order - 1
        state[:, -1, 0, :width] = random.integers(0, 2**21, (streams, width))
    return state


@pytest.mark.parametrize(("cell", "layers", "tied"), list(product(CELLS, (1, 2), (False, True))))
def test_all_agree_on_every_bit(cell: str, layers: int, tied: bool) -> None:
    config = ModelConfig(cell=cell, layers=layers, units=18, embedding_size=18 if tied else 7, tied=tied)
    weights = ramp_arrays(config, SIZE, scale=2)
    check_all_agree(config, weights, some_ids(25, 3))
    check_all_agree(config, weights, some_ids(5, 9), some_state(config, 9))


@pytest.mark.parametrize(
    ("cell", "layers", "bits", "order"), [(*network, *of) for network in product(CELLS, (1, 2)) for of in NGRAMS]
)
def test_all_agree_on_every_bit_with_ngrams(cell: str, layers: int, bits: int, order: int) -> None:
    config = ModelConfig(cell=cell, layers=layers, units=7, embedding_size=7, ngram_bits=bits, ngram_order=order)
    weights = ramp_arrays(config, SIZE, scale=2)
    check_all_agree(config, weights, some_ids(25, 3))
    check_all_agree(config, weights, some_ids(5, 9), some_state(config, 9))


@pytest.mark.parametrize(("cell", "layers"), list(product(CELLS, (1, 2))))
@pytest.mark.parametrize("size", [0.01, 1, 40])
def test_all_agree_on_every_bit_of_a_multiplicative_layer(cell: str, layers: int, size: float) -> None:
    """With scales about 1, and with those of 0 and 2; with n-grams in one half."""
    config = ModelConfig(
        cell=cell, layers=layers, units=18, embedding_size=7, multiplicative=True, ngram_bits=10 * (layers - 1)
    )
    weights = ramp_arrays(config, SIZE, scale=2)
    weights["recurrent.0.weight_mx"] *= np.float32(size)
    check_all_agree(config, weights, some_ids(25, 3))
    check_all_agree(config, weights, some_ids(5, 9), some_state(config, 9))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_all_do_not_overflow(sign: int) -> None:
    """The head's product and its bias at their limits, and seven numbers of n-grams at theirs: more than 32 bits."""
    config = ModelConfig(cell="rnn", units=48, embedding_size=8, ngram_bits=6, ngram_order=8)
    weights = {name: np.full_like(array, sign * 1e6) for name, array in ramp_arrays(config, SIZE).items()}
    for name in ("embedding.weight", "recurrent.0.weight_ih", "recurrent.0.weight_hh", "recurrent.0.bias_ih"):
        weights[name] = np.abs(weights[name])
    check_all_agree(config, weights, some_ids(12, 2))
    engine = engine_of(config, weights, VARIANTS[0], 1)
    logits = engine.step(np.array([3]), engine.zero_state())
    assert (logits * 65536 == sign * (2 * (2**30 - 1) + 32 * 7 * 32767)).all()


EXTREMES = {
    "huge": lambda a: a * np.float32(1e4),
    "beyond all": lambda a: a * np.float32(1e15),
    "tiny": lambda a: a * np.float32(1e-6),
    "nearly nothing": lambda a: a * np.float32(1e-30),
    "nothing": lambda a: a * np.float32(0),
    "empty rows": lambda a: np.where((np.arange(len(a)) % 3 == 0).reshape(-1, *[1] * (a.ndim - 1)), np.float32(0), a),
    "all sizes": lambda a: a * 10.0 ** np.linspace(-8, 5, a.size, dtype=np.float32).reshape(a.shape),
    "one and the same": lambda a: np.full_like(a, 5.0),
    "least and most": lambda a: np.copysign(np.float32(16000), a),
}


@pytest.mark.parametrize("extreme", list(EXTREMES))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("multiplicative", [False, True])
def test_all_agree_with_extreme_weights(cell: str, extreme: str, multiplicative: bool) -> None:
    config = ModelConfig(
        cell=cell, layers=2, units=17, embedding_size=6, ngram_bits=6, ngram_order=8, multiplicative=multiplicative
    )
    weights = {name: EXTREMES[extreme](array) for name, array in ramp_arrays(config, SIZE).items()}
    check_all_agree(config, weights, some_ids(12, 2))
    check_all_agree(config, weights, some_ids(3, 3, seed=1), some_state(config, 3, seed=2))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("part", ["recurrent.0.weight_hh", "recurrent.1.weight_ih", "head.weight", "biases", "input"])
def test_all_agree_when_one_part_is_huge(cell: str, part: str) -> None:
    config = ModelConfig(cell=cell, layers=2, units=16, embedding_size=6)
    named = {"biases": "bias", "input": "embedding.weight"}.get(part, part)
    weights = {
        name: array * np.float32(3e4 if named in name else 1) for name, array in ramp_arrays(config, SIZE).items()
    }
    check_all_agree(config, weights, some_ids(8, 2))


@pytest.mark.parametrize("sign", [1, -1])
def test_all_agree_at_the_limit_of_a_gate(sign: int) -> None:
    """16 and -16 are the first numbers outside the range of a pre-activation; both are clipped, then added.

    So what is left depends on where exactly each was cut.
    """
    config = ModelConfig(cell="gru", layers=2, units=16, embedding_size=4)
    weights = ramp_arrays(config, SIZE, scale=1e-9)
    for layer in range(2):
        weights[f"recurrent.{layer}.bias_ih"] = np.repeat(np.array([40, 0.5, -16 * sign], dtype=np.float32), 16)
        weights[f"recurrent.{layer}.bias_hh"] = np.repeat(np.array([0, 0, 16 * sign], dtype=np.float32), 16)
    state = check_all_agree(config, weights, some_ids(4, 1))
    assert 0 < np.abs(state).max() < 100


def test_a_cell_state_stays_within_its_limits() -> None:
    """It grows by one per step while its gates are open, up to 64."""
    config = ModelConfig(cell="lstm", units=16, embedding_size=4)
    weights = ramp_arrays(config, SIZE, scale=0.1)
    weights["recurrent.0.bias_ih"] = np.repeat(np.array([30, 30, 30, 30], dtype=np.float32), 16)
    weights["recurrent.0.bias_ih"][40:48] = -30
    state = check_all_agree(config, weights, some_ids(80, 1))
    assert state[0, 0, 1].tolist() == [2**21 - 1] * 8 + [-(2**21) + 1] * 8


def test_all_agree_on_tanh_of_every_number() -> None:
    """Cell states that are kept as they are, but for the rounding of the forget gate, through open output gates."""
    config = ModelConfig(cell="lstm", units=512, embedding_size=2)
    weights = {name: np.zeros_like(array) for name, array in ramp_arrays(config, SIZE).items()}
    weights["recurrent.0.bias_ih"] = np.repeat(np.array([0, 30, 0, 30], dtype=np.float32), 512)
    cells = np.arange(-(2**18) - 2**13, 2**18 + 2**13, 4, dtype=np.int32).reshape(-1, 512)
    state = np.zeros((len(cells), 1, 2, 512), dtype=np.int32)
    state[:, 0, 1] = cells
    after = check_all_agree(config, weights, some_ids(1, len(cells)), state, slow=False)
    arguments = (after[:, 0, 1] + 4) >> 3
    assert set(range(-(2**15), 2**15 + 1)) <= set(arguments.ravel().tolist())
    np.testing.assert_array_equal(after[:, 0, 0], (32767 * quantized.tanh_at(arguments) + 2**14) >> 15)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("units", [16, 48, 80, 112, 272])
def test_all_agree_for_any_units(cell: str, units: int) -> None:
    """Panels of every number of vectors, without the slow reference."""
    for multiplicative in (False, True):
        config = ModelConfig(cell=cell, layers=2, units=units, embedding_size=6, multiplicative=multiplicative)
        for streams in (1, 3, 9):
            check_all_agree(config, ramp_arrays(config, SIZE), some_ids(4, streams), slow=False)


@pytest.mark.parametrize("size", [2, 15, 16, 17, 33, 48, 300])
def test_all_agree_for_any_vocabulary(size: int) -> None:
    config = ModelConfig(cell="gru", units=16, embedding_size=6)
    check_all_agree(config, ramp_arrays(config, size), some_ids(3, 11) % size, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_all_agree_on_sums_too_large_for_float32(cell: str) -> None:
    """With more than 1,040 units numpy has to add in float64."""
    config = ModelConfig(cell=cell, layers=1, units=1100, embedding_size=6)
    weights = {name: np.full_like(array, 0.01) for name, array in ramp_arrays(config, SIZE).items()}
    weights["head.weight"][:] = 1
    weights["head.weight"][:, 0] = 126 / 127  # an odd sum above 2^24
    check_all_agree(config, weights, some_ids(3, 2), np.full((2, 1, STATES[cell], 1100), 32767), slow=False)
    check_all_agree(config, ramp_arrays(config, SIZE), some_ids(3, 9), some_state(config, 9), slow=False)


# --- The parts ---

MATRICES = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-500, 500, width=32)
)


@settings(max_examples=200)
@given(
    MATRICES,
    st.sampled_from([1.0, 1e-3, 1e-9, 1e-30, 0.0]),
    st.sampled_from([quantized.PRE_BITS, quantized.LOGIT_BITS]),
)
def test_rounding_weights_costs_at_most_half_a_step(weights: np.ndarray, scale: float, goal_bits: int) -> None:
    weights = weights * np.float32(scale)
    found = quantized.quantize(weights, goal_bits)
    assert found.weights.dtype == np.int8
    assert found.multipliers.dtype == np.int32
    assert found.multipliers.min() >= 1
    assert np.abs(found.weights.astype(int)).max() <= 127
    step = found.multipliers[:, None] * 127.0 / 2.0 ** (goal_bits + quantized.SHIFT)
    assert (np.abs(found.weights * step - weights.astype(np.float64)) <= step * (0.5 + 1e-9)).all()
    # Steps are minimal: with one less, the row's largest weight would not fit.
    largest = np.abs(weights.astype(np.float64)).max(axis=1)
    assert (largest >= 127 * (step[:, 0] - 127 / 2.0 ** (goal_bits + quantized.SHIFT)) * (1 - 1e-12)).all()
    slow = SlowMatrix(weights, goal_bits)
    assert (found.weights.tolist(), found.multipliers.tolist()) == (slow.rows, slow.multipliers)


def test_zero_and_empty_weights() -> None:
    found = quantized.quantize(np.zeros((3, 4), dtype=np.float32), quantized.PRE_BITS)
    assert found.multipliers.tolist() == [1, 1, 1]
    assert not found.weights.any()
    assert quantized.quantize(np.zeros((2, 0), dtype=np.float32), quantized.PRE_BITS).weights.shape == (2, 0)


@pytest.mark.parametrize("rows", [127, 128, 129, 300])
def test_a_matrix_is_rounded_row_by_row(rows: int) -> None:
    """Regardless of the block size."""
    weights = np.sin(np.arange(rows * 5)).astype(np.float32).reshape(rows, 5)
    together = quantized.quantize(weights, quantized.PRE_BITS)
    for row in range(rows):
        alone = quantized.quantize(weights[row : row + 1], quantized.PRE_BITS)
        np.testing.assert_array_equal(together.weights[row : row + 1], alone.weights)
        np.testing.assert_array_equal(together.multipliers[row : row + 1], alone.multipliers)
    bias = np.array([0.1, -0.2], dtype=np.float32)
    table = quantized.input_table(weights, weights[:2], bias)
    assert table.dtype == np.int16
    assert table.tolist() == slow_table(weights, weights[:2], bias)


@settings(max_examples=100)
@given(st.integers(1, 40), st.sampled_from([1e-20, 1.0, 30.0, 1e6]), st.integers(0, 2**31))
def test_the_first_layers_table_does_not_depend_on_the_order_of_sums(inputs: int, scale: float, seed: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    embedding = (random.normal(size=(6, inputs)) * scale).astype(np.float32)
    weights, bias = random.normal(size=(5, inputs)).astype(np.float32), random.normal(size=5).astype(np.float32)
    table = quantized.input_table(embedding, weights, bias)
    for _ in range(4):
        order = random.permutation(inputs)
        np.testing.assert_array_equal(quantized.input_table(embedding[:, order], weights[:, order], bias), table)
    turned = quantized.input_table(np.asfortranarray(embedding), np.asfortranarray(weights), bias)
    np.testing.assert_array_equal(turned, table)
    assert table.tolist() == slow_table(embedding, weights, bias)


@settings(max_examples=100)
@given(st.integers(1, 40), st.sampled_from([0.0, 1e-20, 0.1, 30.0, 1e6]), st.integers(0, 2**31))
def test_the_scale_of_a_state_is_one_and_a_tanh(inputs: int, size: float, seed: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    embedding = (random.normal(size=(6, inputs)) * size).astype(np.float32)
    weights = random.normal(size=(5, inputs)).astype(np.float32)
    half = quantized.state_scale(embedding, weights)
    assert half.dtype == np.int16
    assert half.tolist() == slow_scale(embedding, weights)
    assert half.min() >= 0
    # To 20 bits of the factors, and the steps of the table.
    exact = 1 + np.tanh(embedding.astype(np.float64) @ weights.T)
    rounding = 2.0**-19 * inputs * np.abs(embedding).max() * np.abs(weights).max()
    np.testing.assert_allclose(half / 2.0**14, exact, atol=rounding + 5e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_layers_sums_are_exact_for_thousands_of_inputs(sign: int) -> None:
    """20-bit numbers close to their maximum."""
    inputs = 8000
    embedding = (1 - (np.arange(2 * inputs) % 5 == 0) * 2.0**-20).astype(np.float32).reshape(2, inputs)
    weights = sign * (1 - (np.arange(3 * inputs) % 7 == 0) * 2.0**-20).astype(np.float32).reshape(3, inputs)
    bias = np.array([-sign * 7999.5, 0, -sign * 8000.25], dtype=np.float32)
    assert quantized.input_table(embedding, weights, bias).tolist() == slow_table(embedding, weights, bias)


def test_any_math_library_gives_the_same_table_of_tanh() -> None:
    """No exact value is so close to the boundary between two integers that an error in the last bit could matter."""
    assert quantized.tanh_table().tolist() == tanh_entries()
    for i in range(1026):
        scaled = exact_tanh(i) * 2**15
        assert abs(scaled - int(scaled) - Decimal("0.5")) > Decimal("1e-9")


PRES = np.arange(-32767, 32768, dtype=np.int32)


def test_tanh_and_the_sigmoid_are_close_to_the_real_functions() -> None:
    real = PRES / 2.0**11
    np.testing.assert_allclose(quantized.tanh(PRES) / 2.0**15, np.tanh(real), atol=1e-4)
    np.testing.assert_allclose(quantized.sigmoid(PRES) / 2.0**15, 1 / (1 + np.exp(-real)), atol=1e-4)
    assert np.abs(quantized.tanh(PRES)).max() == 32767
    assert 0 <= quantized.sigmoid(PRES).min() <= quantized.sigmoid(PRES).max() == 32767


def test_tanh_and_the_sigmoid_are_symmetric_and_monotone() -> None:
    tanh, sigmoid = quantized.tanh(PRES), quantized.sigmoid(PRES)
    np.testing.assert_array_equal(tanh[::-1], -tanh)
    assert set(np.unique(sigmoid[::-1] + sigmoid)) <= {32767, 32768}  # a half is rounded down on both sides
    assert (np.diff(tanh) >= 0).all()
    assert (np.diff(sigmoid) >= 0).all()


def test_the_functions_equal_the_reference() -> None:
    assert quantized.tanh(PRES).tolist() == [slow_tanh(pre) for pre in PRES.tolist()]
    assert quantized.sigmoid(PRES).tolist() == [slow_sigmoid(pre) for pre in PRES.tolist()]
    assert quantized.activation(PRES).tolist() == [
        math.floor(Fraction(127 * s, 2**15) + Fraction(1, 2)) for s in PRES.tolist()
    ]
    assert np.abs(quantized.activation(PRES)).max() == 127
    for share in (32767, 12345, 1, 0):
        scaled = quantized.scaled_state(PRES, np.array(share, dtype=np.int16))
        assert scaled.tolist() == [half_up(pre * share, 15) for pre in PRES.tolist()]
    beyond = np.array([-(2**21), -70_000, -32_768, 32_768, 70_000, 2**18, 2**21 - 1], dtype=np.int32)
    assert quantized.tanh_at(beyond).tolist() == [slow_tanh_at(v) for v in beyond.tolist()]


@given(st.integers(-(2**31), 2**31), st.integers(0, 2**31 - 1))
def test_requantize(total: int, multiplier: int) -> None:
    """Round to the nearest, halves up, and clip to 30 bits."""
    found = quantized.requantize(np.array([[total]]), np.array([multiplier], dtype=np.int32))
    nearest = math.floor(Fraction(total * multiplier, 2**20) + Fraction(1, 2))
    assert found.tolist() == [[min(max(nearest, -(2**30) + 1), 2**30 - 1)]]

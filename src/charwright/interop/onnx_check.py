"""Compare ONNX graphs with the model that they were made from: `onnx_export.py` writes none that differs.

B is the number of texts, T the number of ids, V the vocabulary size, L the number of layers, S the number of arrays in
a state, H the number of units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import ModelConfig
from charwright.data.vocabulary import UNKNOWN_ID
from charwright.errors import ForeignModelError, MissingExtraError
from charwright.generation.engine import Engine

TOLERANCE = 1e-4
"""The largest accepted difference between an exported graph's logits and states and the model's."""
NUDGE = 1e-5
"""A change of the state as by rounding in dozens of steps: a graph may differ as much as a chaotic model by this."""
MOST = 1e-2
"""The largest difference that is accepted of any model."""
CHECKED_SIZES = ((1, 1), (3, 7), (2, 40))
"""The batch sizes and sequence lengths that the step graph is checked at."""
GREEDY_TEMPERATURE = 1e-6
"""Temperatures up to this take the most likely token."""
CHECKED_IDS = 40
"""The number of ids that the generator is checked with."""

Array = npt.NDArray[np.float32]


def check_graphs(
    files: Mapping[str, bytes], config: ModelConfig, weights: Mapping[str, Array], *, labels: int = 0
) -> None:
    """Run both graphs with onnxruntime at several sizes and compare them with the engine in float32.

    Raises:
        ForeignModelError: when a logit or state differs by more than `TOLERANCE`, and by more than the model does when
            its state is changed by `NUDGE`, or when a sampled id is wrong.
        MissingExtraError: when onnxruntime is not installed.
    """
    engine = Engine(config, weights, precision="f32")
    random = np.random.Generator(np.random.Philox(key=np.array([0, 0], dtype=np.uint64)))
    step, generate = (_session(files[name]) for name in ("step.onnx", "generate.onnx"))
    for sizes in CHECKED_SIZES:
        error, allowed = _step_error(step, engine, config, random, *sizes)
        if not error <= allowed:
            raise ForeignModelError(f"the ONNX step graph differs from the model by {error:.2g}")
    for temperature in (0.0, 1e-9, 0.8):
        error = _sampling_error(generate, engine, random, temperature, labels)
        if not error <= TOLERANCE:
            raise ForeignModelError(f"the ONNX generator samples differently from the model, by {error:.2g}")


def _session(graph: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("exporting to ONNX", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _step_error(
    session: Any, engine: Engine, config: ModelConfig, random: np.random.Generator, batch: int, time: int
) -> tuple[float, float]:
    """Return the largest difference of a logit or state after ids (batch, time) from a nonzero state, and the limit."""
    ids = random.integers(0, engine.vocabulary_size, (batch, time))
    state = engine.zero_state(batch)  # (B, L, S, H plus padding)
    state[..., : config.units] = random.uniform(-0.9, 0.9, (*state.shape[:3], config.units))
    names, given = ["logits", "next_state"], dict[str, npt.NDArray[Any]](ids=ids)
    before = config.ngram_order - 1
    if config.ngram_bits:
        names.append("next_context")
        given["context"] = _contexts(random, engine.vocabulary_size, batch, before)
        state[:, -1] = 0
        state[:, -1, 0, :before] = given["context"]
    given["state"] = _state_of(state, config)
    logits, after, *contexts = session.run(names, given)
    nudged = state.copy()
    nudged[:, : config.layers, :, : config.units] += NUDGE
    expected = np.stack([engine.step(column, state) for column in ids.T], axis=1)  # (B, T, V)
    drift = float(np.abs(np.stack([engine.step(column, nudged) for column in ids.T], axis=1) - expected).max())
    errors = [np.abs(logits - expected).max(), np.abs(after - _state_of(state, config)).max()]
    errors += [np.abs(context - state[:, -1, 0, :before]).max() for context in contexts]
    return float(np.max(errors)), min(max(TOLERANCE, drift), MOST)


def _contexts(random: np.random.Generator, tokens: int, batch: int, length: int) -> npt.NDArray[np.int64]:
    """Return the last tokens (batch, length) of texts of `length` tokens, of one less, and so on down to none."""
    contexts = random.integers(1, tokens + 1, (batch, length))
    contexts[np.arange(length) >= length - np.arange(batch)[:, None]] = 0
    return contexts


def _state_of(state: Array, config: ModelConfig) -> Array:
    """Return the step graph's state (L, S, B, H) for one of the engine."""
    return np.ascontiguousarray(state[:, : config.layers, :, : config.units].transpose(1, 2, 0, 3))


def _sampling_error(
    session: Any, engine: Engine, random: np.random.Generator, temperature: float, labels: int
) -> float:
    """Return the largest error of a sampled id, given its random number and the engine's logits for the ids before."""
    prompt = random.integers(1, engine.vocabulary_size, (2, 5))
    uniform = random.random((2, CHECKED_IDS), dtype=np.float32)
    (ids,) = session.run(
        ["ids"], {"prompt": prompt, "temperature": np.array(temperature, dtype=np.float32), "uniform": uniform}
    )
    worst = 0.0
    state = engine.zero_state(2)
    for column in prompt.T:
        logits = engine.step(column, state)
    for column, numbers in zip(ids.T, uniform.T, strict=True):
        for stream, (drawn, number) in enumerate(zip(column, numbers, strict=True)):
            scores = logits[stream] + mask_of(engine.vocabulary_size, labels)
            worst = max(worst, _sample_distance(scores, int(drawn), float(number), temperature))
        logits = engine.step(column, state)
    return worst


def _sample_distance(scores: npt.NDArray[np.float64], drawn: int, number: float, temperature: float) -> float:
    """Return the distance of the number from the id's interval of the cumulative distribution; if greedy, in logits.

    The scores (V,) are masked logits.
    """
    if temperature <= GREEDY_TEMPERATURE:
        return float(scores.max() - scores[drawn])
    exponentials = np.exp((scores - scores.max()) / temperature)
    ends = np.cumsum(exponentials) / exponentials.sum()
    return float(max(ends[drawn] - exponentials[drawn] / exponentials.sum() - number, number - ends[drawn], 0.0))


def mask_of(tokens: int, labels: int) -> Array:
    """Return the mask that is added to logits (V): minus infinity for [UNK], and for labels, which are the last ids."""
    mask = np.zeros(tokens, dtype=np.float32)
    mask[UNKNOWN_ID] = mask[tokens - labels :] = -np.inf
    return mask

"""The search space: which options a search varies, and in which ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from charwright.config import Recipe


def search_space(start: Recipe) -> dict[str, BaseDistribution]:
    """The distribution of each option, wide enough to contain the starting recipe.

    `state_reset` and `ema` are not searched: short trials cannot show what they do for prompts and late in training.
    N-grams and `multiplicative` are not either: they gain nearly everywhere.
    """
    model, sequences, training = start.model, start.sequences, start.training
    return {
        "cell": CategoricalDistribution(_including(["igru", "lstm"], model.cell)),
        "units": _integers(128, 1024, 64, model.units),
        "layers": _integers(1, 2, 1, model.layers),
        "embedding_size": _integers(32, 256, 32, model.embedding_size),
        "batch": CategoricalDistribution(_including([16, 32, 64], sequences.batch)),
        "seq_length": _integers(32, 128, 16, sequences.seq_length),
        "learning_rate": _logarithmic(5e-4, 2e-2, training.learning_rate),
        "dropout": FloatDistribution(0.0, 0.5, step=0.05),
        "recurrent_dropout": FloatDistribution(0.0, 0.5, step=0.05),
        "weight_decay": _logarithmic(1e-3, max(1.0, 2 * training.weight_decay), training.weight_decay),
    }


def _including(choices: list[Any], value: Any) -> list[Any]:
    return choices if value in choices else [*choices, value]


def _integers(low: int, high: int, step: int, value: int) -> IntDistribution:
    """Multiples of `step`, extended to contain `value`."""
    return IntDistribution(min(low, max(1, value // step) * step), max(high, -(-value // step) * step), step=step)


def _logarithmic(low: float, high: float, value: float) -> FloatDistribution:
    return FloatDistribution(min(low, value) if value > 0 else low, max(high, value), log=True)


def nearest_point(start: Recipe) -> dict[str, Any]:
    """The point of the space closest to a recipe: the first trial, as the estimator sees it."""
    values = {**start.model.to_json(), **start.sequences.to_json(), **start.training.to_json()}
    return {name: _nearest(values[name], distribution) for name, distribution in search_space(start).items()}


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    inside = min(max(value, distribution.low), distribution.high)
    if distribution.step is None:
        return inside
    steps = round((inside - distribution.low) / distribution.step)
    return type(value)(round(distribution.low + steps * distribution.step, 9))


def recipe_of_trial(start: Recipe, params: Mapping[str, Any]) -> Recipe:
    """The starting recipe with the options of a trial; floats are rounded to three significant digits."""
    options = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in params.items()}
    if start.model.tied:
        options["embedding_size"] = options["units"]
    return start.with_options(options)

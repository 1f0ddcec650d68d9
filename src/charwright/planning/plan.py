"""A plan: the recipe for one text, one machine and one budget, and the reasons behind it.

The rule is fitted to trials: `experiments/` has them, docs/explanation/trials.md explains them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from charwright import notebook
from charwright.config import BUDGETS, Recipe, RecordsConfig
from charwright.data.lists import divider_in_words
from charwright.data.short_texts import shrink_to_fit
from charwright.planning.batches import SMALLEST, batch_for, rate_factor, steps_needed
from charwright.planning.profile import TextProfile
from charwright.planning.recipes import DEFAULT
from charwright.planning.regularization import regularization, why_dropout, why_recurrent_dropout
from charwright.planning.repetition import TYPICAL
from charwright.planning.speeds import speed_at
from charwright.run_view import cell_in_words
from charwright.schema import flag

WIDTHS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
USABLE = 0.93  # the fraction of the time that is trained; the rest is start-up, validation and saving
FEWEST_FOR_NGRAMS = 2_000
"""Characters of a text whose n-grams tell something of those to come."""
BATCH_PREDICTIONS = SMALLEST * DEFAULT.sequences.seq_length
"""The predictions of the batch to which the rates of the rules below belong."""
MOST_CHANCE = 10
"""What occurs in a text more often than this is not chance, however often the text is read."""
LEAST_REPETITION = 0.01
MOST_DECAY = 0.1
"""The share of the n-grams that may decay in a step."""


@dataclass(frozen=True)
class NgramRule:
    """The n-grams of texts of `characters` or more: the bits of their array, the longest, and how fast they learn."""

    characters: int
    bits: int
    order: int
    rate: float


NGRAM_RULES = (
    NgramRule(400_000, 22, 8, 0.12),
    NgramRule(100_000, 20, 8, 0.12),
    NgramRule(FEWEST_FOR_NGRAMS, 18, 4, 0.03),
)
REPLANNED = ("learning_rate", "dropout", "recurrent_dropout", "weight_decay", "order")
"""The planned options that a run which continues from another takes from a plan for its own text."""
FULL_RATE_PASSES = 7
"""Over a text that is read more often, trained weights move more slowly."""
BY_HAND = "given by hand"
INHERITED = "as in the run that it continues from"
WIDE = 1024
"""The widest layer, in units, that takes the full learning rate."""


@dataclass(frozen=True)
class Plan:
    """A recipe for one text, one machine and one budget, and the reasons for its options.

    `passes` is how often the text is read; `speeds` are measured characters per second of one layer of the cell by
    units, empty if none were measured; `reasons` are by option.
    """

    recipe: Recipe
    text: TextProfile
    passes: float
    speeds: Mapping[int, float]
    reasons: Mapping[str, str]

    def with_records(self, records: RecordsConfig) -> Plan:
        """The same plan for a text that is found to be a list."""
        reasons = {**self.reasons, "records": "the text is a list: short lines of which hardly any are equal"}
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, records=records), reasons=reasons)

    def continuing(self, recipe: Recipe, inherited: Collection[str]) -> Plan:
        """The plan of a run that continues from another: `recipe`, except for the options of `REPLANNED`.

        The plan was made with all that the recipe gives, as if by hand; `inherited` is what comes from the other run.
        """
        planned = option_values(self.recipe)
        slower = math.sqrt(FULL_RATE_PASSES / max(FULL_RATE_PASSES, self.passes))
        planned["learning_rate"] = _rounded(planned["learning_rate"] * slower, most=1.0)
        chosen = {name: planned[name] for name in REPLANNED if self.reasons.get(name, BY_HAND) != BY_HAND}
        named = set(inherited).difference(REPLANNED)  # These were given by hand there.
        reasons = {name: INHERITED if name in named else reason for name, reason in self.reasons.items()}
        if "learning_rate" in chosen:
            reasons["learning_rate"] = f"the text is read {_times(self.passes)}; small steps keep what is known"
        return dataclasses.replace(self, recipe=recipe.with_options(chosen), reasons=reasons)

    def summary(self) -> tuple[str, ...]:
        """Two lines, and a third one for records: what was chosen, and why."""
        model, training = self.recipe.model, self.recipe.training
        amount, name = next((value, name) for name in BUDGETS if (value := getattr(training, name)))
        budget = f"{amount:g} {name.removesuffix('s') if amount == 1 else name}"
        layers = "1 layer" if model.layers == 1 else f"{model.layers} layers"
        ngrams = " and n-grams" if model.ngram_bits else ""
        beside = f"and {self.text.beside:,} more tokens (the teachers' text) " if self.text.beside else ""
        regularization = (
            f"dropout {model.dropout:g}, recurrent dropout {model.recurrent_dropout:g}, "
            f"weight decay {training.weight_decay:g}"
        )
        return (
            f"plan: {layers} of {model.units} {cell_in_words(model)} units{ngrams} for {budget}, learning rate "
            f"{training.learning_rate:g}, {regularization}",
            f"plan: {self.text.characters:,} characters ({self.text.script}, {self.text.vocabulary:,} tokens) "
            f"{beside}are read {_times(self.passes)}{self._speed()}",
            *self._records(),
        )

    def _records(self) -> list[str]:
        if not self.text.records:
            return []
        kind = self.recipe.records.records
        other = f"divided by {divider_in_words(kind)}"
        ends = {"line": "one per line", "blank": "divided by blank lines"}.get(kind, other)
        found = "; --records none takes them as running text" if "records" in self.reasons else ""
        return [f"plan: they are {self.text.records:,} records, {ends}, in a new order each time{found}"]

    def _speed(self) -> str:
        if not self.speeds:
            return ""
        # A byte-level vocabulary has more tokens than characters.
        speed = self.speed * self.text.characters / max(1, self.text.tokens)
        return f" at {float(f'{speed:.2g}'):,.0f} characters/s (measured)"

    @property
    def speed(self) -> float:
        """Tokens per second of this model, which may differ in cell and layers from those that were measured."""
        return (self.passes * self.text.read + self.text.once) / (USABLE * 60 * (self.recipe.training.minutes or 1))

    def explanation(self) -> list[tuple[str, str, str]]:
        """The flag, value and reason of every planned option; a flag that is on or off has no value."""
        values = option_values(self.recipe)
        return [(*_as_given(name, values[name]), reason) for name, reason in self.reasons.items()]

    def _repr_html_(self) -> str:
        values = option_values(self.recipe)
        rows = [(name, _shown(values[name]), reason) for name, reason in self.reasons.items()]
        table = notebook.grid("Plan", ("option", "value", "reason"), rows, align="left")
        return notebook.lines(self.summary()) + table

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text("\n".join([*self.summary(), *("  ".join(row) for row in self.explanation())]))

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "characters": self.text.characters,
            "tokens": self.text.tokens,
            "vocabulary": self.text.vocabulary,
            "script": self.text.script,
            "passes": round(self.passes, 3),
            "speeds": {str(units): round(speed) for units, speed in self.speeds.items()},
            "reasons": dict(self.reasons),
        }


def make_plan(
    text: TextProfile, options: Mapping[str, Any], speeds: Mapping[int, float], batch: int = SMALLEST
) -> Plan:
    """Plan a recipe for a text; `options` given by hand are kept as they are.

    `speeds` are measured characters per second of one layer of the cell by units, in batches of `batch` rows. Only a
    budget in minutes needs them; a plan for any other budget does not depend on the clock.
    """
    options = _with_one_width(options)
    rule = _Rule(text, options, speeds, batch)
    chosen = rule.choose()
    recipe = DEFAULT.with_options({name: value for name, (value, _) in chosen.items()} | dict(options))
    given = {name: BY_HAND for name in chosen if name in options}
    reasons = {name: reason for name, (_, reason) in chosen.items()} | given
    return Plan(recipe, text, rule.passes(recipe), dict(speeds), reasons)


def _as_given(name: str, value: Any) -> tuple[str, str]:
    """An option as the command line has it: the flag and its value."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}"), ""
    return flag(name), _shown(value)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def option_values(recipe: Recipe) -> dict[str, Any]:
    """The values of all options by name."""
    parts = (getattr(recipe, item.name) for item in dataclasses.fields(recipe))
    return {item.name: getattr(part, item.name) for part in parts for item in dataclasses.fields(part)}


def planned_batch(
    text: TextProfile, options: Mapping[str, Any], speeds: Mapping[int, float], seconds: Mapping[int, float]
) -> int:
    """The batch for a text, by the seconds of a step of each; a larger one does not make the layer narrower.

    `speeds` are by units, in batches of the smallest size.
    """
    return _Rule(text, _with_one_width(options), speeds).batch_by(seconds)


def planned_parts(text: TextProfile, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model for a text that depend on neither time nor speed: its n-grams, and what a token scales."""
    rule = _Rule(text, _with_one_width(options), {})
    planned = {"ngram_bits": rule.ngrams()[0], "ngram_order": rule.ngram_rule.order, "multiplicative": True}
    return {name: options.get(name, value) for name, value in planned.items()}


def _with_one_width(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tied weights given an embedding size are given a width."""
    if options.get("tied") and "embedding_size" in options:
        return {"units": options["embedding_size"], **options}
    return options


def starting_recipe(options: Mapping[str, Any]) -> Recipe:
    """The recipe a plan starts from: the defaults, and the options given by hand.

    Tied weights need two equal widths, so `tied` is left to the plan while one of them is still to be chosen.

    Raises:
        ConfigError: when an option is out of bounds, or two contradict each other.
    """
    widths_open = "units" not in options or "embedding_size" not in options
    kept = {name: value for name, value in options.items() if name != "tied" or not widths_open}
    return DEFAULT.with_options(kept)


class _Rule:
    """The rule that the trials led to: formulas in the length of the text and the number of passes over it."""

    def __init__(
        self, text: TextProfile, options: Mapping[str, Any], speeds: Mapping[int, float], batch: int = SMALLEST
    ) -> None:
        self.text, self.start, self.options, self.speeds = text, starting_recipe(options), options, speeds
        self.batch = SMALLEST if "batch" in options else batch
        sequences = self.start.sequences
        if "batch" not in options:
            sequences = dataclasses.replace(sequences, batch=batch)
        # A text shorter than a batch is trained in smaller batches.
        self.sequences, _ = shrink_to_fit(max(2, text.read), sequences)

    def choose(self) -> dict[str, tuple[Any, str]]:
        """The value and the reason of each option that is planned."""
        units, why = self._units()
        model = dataclasses.replace(self.start.model, units=self.options.get("units", units))
        passes = self.passes(dataclasses.replace(self.start, model=model))
        read = f"the text is read {_times(passes)}"
        sequences, training = DEFAULT.sequences, DEFAULT.training
        bits, why_ngrams = self.ngrams()
        model = dataclasses.replace(model, ngram_bits=self.options.get("ngram_bits", bits))
        rates = regularization(model, passes, self.text)
        descent = {
            "ngram_rate": (self._ngram_rate(), "n-grams are seen a few times, and have to learn from each"),
            "ngram_decay": (self._ngram_decay(passes), f"{read}; {self.text.repetition:.0%} of its passages recur"),
        }
        excerpts = {"order": ("excerpts", "neighbouring passages are alike; steps learn more from all over the text")}
        order = {"ngram_order": (self.ngram_rule.order, "the longest n-grams that recur in a text of this length")}
        return {
            "cell": (
                DEFAULT.model.cell,
                "a GRU whose reset gate reads the input alone: fewer products, about the same loss",
            ),
            "layers": (DEFAULT.model.layers, "one wide layer beats two narrow ones of the same speed"),
            "units": (units, why),
            "embedding_size": self._embedding(model.units),
            "multiplicative": (True, "each character has recurrent weights of its own, at nearly no cost"),
            "ngram_bits": (bits, why_ngrams),
            **(order if model.ngram_bits else {}),
            **({} if self.text.records or self.text.beside else excerpts),
            "batch": (self.batch, self._why_batch()),
            "seq_length": (
                sequences.seq_length,
                "longer sequences leave too few steps, shorter ones too little context",
            ),
            "optimizer": ("cautious-adamw", "weights move only where the mean gradient and the present one agree"),
            "learning_rate": (self._learning_rate(model.units), self._why_rate()),
            "dropout": (_rounded(rates.dropout), why_dropout(model, rates, read)),
            "recurrent_dropout": (_rounded(rates.recurrent_dropout), why_recurrent_dropout(rates)),
            "weight_decay": (_rounded(rates.weight_decay), f"{read}; weight decay keeps the weights small"),
            **(descent if model.ngram_bits else {}),
            "output_bias": ("frequencies", "a rare character's bias would take longer to fall than training lasts"),
            "ema": (training.ema, "an average over the last tenth of the steps is steadier than the last step"),
            "schedule": ("trapezoid", "the learning rate is held, and falls to zero as the budget ends"),
            "warmup": (training.warmup, "Adam's first steps are too large for a wide layer"),
            "state_reset": (training.state_reset, "some streams restart in each batch, as a prompt does"),
            "patience": (10, "a validation loss that keeps rising does not recover"),
        }

    def _units(self) -> tuple[int, str]:
        """The widest layer that the text supports and the time can train."""
        fits = [units for units in WIDTHS if units <= self._widest()] or [WIDTHS[0]]
        supported = f"as wide as {self.text.characters:,} characters support"
        if not self.speeds:
            return min(DEFAULT.model.units, fits[-1]), supported
        trained = [units for units in fits if self._steps(units) >= steps_needed(units)]
        units = trained[-1] if trained else WIDTHS[0]
        if units == fits[-1]:
            return units, supported
        return units, f"the widest layer that this time can train: {self._steps(units):,.0f} steps"

    def batch_by(self, seconds: Mapping[int, float]) -> int:
        """The batch, by the seconds of a step of each."""
        units = self.options.get("units", self._units()[0])
        return batch_for(
            seconds,
            units=units,
            steps=self._steps(units),
            tokens=self.text.tokens,
            seq_length=self.sequences.seq_length,
        )

    def _why_batch(self) -> str:
        if self.batch == SMALLEST:
            return "smaller batches are slower, larger ones leave too few steps"
        return f"the device trains {self.batch} rows in about the time of {SMALLEST}"

    def _embedding(self, units: int) -> tuple[int, str]:
        if self.options.get("tied"):
            return units, "tied weights are as wide as the layer"
        return DEFAULT.model.embedding_size, "larger embeddings change little"

    def ngrams(self) -> tuple[int, str]:
        """The bits of the n-grams' array."""
        if self.text.records:
            return 0, "the first characters of a record have no context, and a record has few more"
        if self.text.characters < FEWEST_FOR_NGRAMS:
            return 0, "a short text has too few n-grams to learn from"
        return self.ngram_rule.bits, "what the last characters say is learned from few examples; the network adds to it"

    @property
    def ngram_rule(self) -> NgramRule:
        """The rule for a text of this length."""
        return next((rule for rule in NGRAM_RULES if self.text.characters >= rule.characters), NGRAM_RULES[-1])

    def _ngram_rate(self) -> float:
        """In a larger batch a frequent n-gram is seen more often, and its steps add up."""
        larger = self.sequences.batch * self.sequences.seq_length / BATCH_PREDICTIONS
        return _rounded(self.ngram_rule.rate / math.sqrt(max(1.0, larger)), most=1.0)

    def _ngram_decay(self, passes: float) -> float:
        """A number that fewer than K occurrences speak for stays near zero.

        K grows with the passes; it is small for a text that repeats itself, whose n-grams hold elsewhere too.
        """
        in_a_step = self._ngram_rate() * self.sequences.batch * self.sequences.seq_length
        occurrences = 0.36 * passes * math.pow(TYPICAL / max(self.text.repetition, LEAST_REPETITION), 1.35)
        return _rounded(min(MOST_CHANCE, occurrences) / self.text.read, most=MOST_DECAY / in_a_step)

    def _widest(self) -> float:
        return 256 * math.pow(self.text.characters / 16_000, 0.34)

    def _learning_rate(self, units: int) -> float:
        rate = DEFAULT.training.learning_rate * rate_factor(self.batch)
        return _rounded(1.5 * rate * min(1.0, math.sqrt(WIDE / units)), most=1.0)

    def _why_rate(self) -> str:
        larger = "" if self.batch == SMALLEST else ", and a larger batch allows larger ones"
        return f"the same up to {WIDE:,} units; wider layers need smaller steps{larger}"

    def _speed(self, units: int) -> float:
        """Characters per second of a model of this width."""
        return speed_at(self.speeds, units) / (1 + 1.15 * (self.start.model.layers - 1))

    def _steps(self, units: int) -> float:
        sequences = self.sequences
        seconds = (self.start.training.minutes or 0) * 60 * USABLE
        tokens = max(0.0, self._speed(units) * seconds - self.text.once)
        return tokens / (sequences.batch * sequences.seq_length)

    def passes(self, recipe: Recipe) -> float:
        """How often the text is read."""
        training, sequences = recipe.training, self.sequences
        if training.epochs is not None:
            return float(training.epochs)
        steps = training.steps if training.steps is not None else self._steps(recipe.model.units)
        return steps * sequences.batch * sequences.seq_length / max(1, self.text.read)


def _times(passes: float) -> str:
    if passes < 0.05:
        return "less than 0.1 times"
    return f"{passes:,.0f} times" if passes >= 9.5 else f"{passes:.1f} times"


def _rounded(value: float, *, most: float = math.inf) -> float:
    """Two significant digits, which is all that the rule is good for."""
    return float(f"{min(value, most):.2g}")

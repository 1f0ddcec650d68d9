"""Recipes: the ones that have a name, and the plan that is made for a text, a machine and a time.

What the rule below knows, it knows from trials: `experiments/` holds them, docs/explanation/recipes.md tells of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from charwright.config import ModelConfig, Recipe, SequenceConfig, SplitConfig, TrainingConfig, flag
from charwright.data.sequences import shrink_to_fit
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError

TUTORIAL = Recipe(
    split=SplitConfig(val_fraction=0.0),
    sequences=SequenceConfig(order="windows", batch=64, seq_length=100),
    model=ModelConfig(cell="gru", layers=1, units=1024, embedding=256),
    training=TrainingConfig(
        epochs=10,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        epsilon=1e-7,
        clip_norm=None,
        zero_state=0.0,
        embedding_range=0.05,
        averaging=0.0,
    ),
)
"""TensorFlow's tutorial "Text generation with an RNN", option for option."""

DEFAULT = Recipe(training=TrainingConfig(minutes=5.0))
"""What the dataclasses say, for five minutes: what a plan starts from."""

PLANNED = "default"
"""The name of the recipe that is planned for its text."""

RECIPES = {PLANNED: DEFAULT, "tutorial": TUTORIAL}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: naming those that there are.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]


@dataclass(frozen=True)
class Text:
    """What a plan has to know of a text: the characters that are trained on, how many differ, and their script.

    `tokens` are the ids that they make, which are more where an id is a byte.
    """

    characters: int
    vocabulary: int
    script: str
    tokens: int

    @classmethod
    def of(cls, training_text: str, vocabulary: Vocabulary) -> Text:
        """Look at a text."""
        tokens = len(vocabulary.encode(training_text))
        return cls(len(training_text), len(vocabulary), script_of(training_text), tokens)


def script_of(text: str) -> str:
    """The script of most letters, as Unicode names it: Latin, Cyrillic, CJK, ..."""
    looked_at = text[:: max(1, len(text) // 20_000)]
    names = Counter(unicodedata.name(c, "unknown").split()[0] for c in looked_at if c.isalpha())
    if not names:
        return "no letters"
    [(name, _)] = names.most_common(1)
    return name if name == "CJK" else name.capitalize()


@dataclass(frozen=True)
class Plan:
    """A recipe for one text, one machine and one time, and why it is as it is.

    `passes` is how often the text will be read; `speeds` are the measured characters a second, by units, of one GRU
    layer, empty where none had to be measured; `reasons` go by option.
    """

    recipe: Recipe
    text: Text
    passes: float
    speeds: Mapping[int, float]
    reasons: Mapping[str, str]

    def summary(self) -> tuple[str, str]:
        """Two lines: what was chosen, and why."""
        model, training = self.recipe.model, self.recipe.training
        amount, name = next((value, name) for name in BUDGET_WORDS if (value := getattr(training, name)))
        budget = f"{amount:g} {name.removesuffix('s') if amount == 1 else name}"
        layers = "a layer" if model.layers == 1 else f"{model.layers} layers"
        against = f"dropout {model.dropout:g} and {model.state_dropout:g}, weight decay {training.weight_decay:g}"
        return (
            f"plan: {layers} of {model.units} {model.cell.upper()} units for {budget}, rate "
            f"{training.learning_rate:g}, {against}",
            f"plan: because {self.text.characters:,} characters ({self.text.script}, "
            f"{self.text.vocabulary:,} different) will be read {_times(self.passes)}{self._speed_words()}",
        )

    def _speed_words(self) -> str:
        if not self.speeds:
            return ""
        # That of this very model, which may be no GRU and have more layers than those that were measured.
        speed = self.passes * self.text.characters / (USABLE * 60 * (self.recipe.training.minutes or 1))
        return f" at {float(f'{speed:.2g}'):,.0f} characters/s, as measured"

    def explanation(self) -> list[tuple[str, str, str]]:
        """Every option that was thought about: its flag, its value and the reason."""
        values = {
            item.name: getattr(part, item.name)
            for part in (self.recipe.sequences, self.recipe.model, self.recipe.training)
            for item in dataclasses.fields(part)
        }
        shown = {name: "none" if value is None else str(value) for name, value in values.items()}
        return [(flag(name), shown[name], reason) for name, reason in self.reasons.items()]

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


BUDGET_WORDS = ("minutes", "epochs", "steps")


def _times(passes: float) -> str:
    return f"{passes:,.0f} times" if passes >= 9.5 else f"{passes:.1f} times"


SHAPE = {64: 400.0, 128: 350.0, 256: 220.0, 512: 100.0, 1024: 39.0}
"""How the speed goes with the width: thousands of characters a second on the machine that the trials were made on."""


def speed_at(speeds: Mapping[int, float], units: int) -> float:
    """Characters a second at any width: on a straight line between the logarithms of those that were measured.

    Beyond them it goes as on the machine of the trials, and wider than that, with the square of the width.
    """
    nearest = min(max(units, min(speeds)), max(speeds))
    return _between(speeds, nearest) * _shape(units) / _shape(nearest)


def _shape(units: int) -> float:
    widest, narrowest = max(SHAPE), min(SHAPE)
    return _between(SHAPE, min(max(units, narrowest), widest)) * min(1.0, widest / units) ** 2


def _between(speeds: Mapping[int, float], units: int) -> float:
    """The speed at a width that is none of the outermost's beyond."""
    if units in speeds:
        return speeds[units]
    above = min(width for width in speeds if width > units)
    below = max(width for width in speeds if width < units)
    share = math.log(units / below) / math.log(above / below)
    return math.exp((1 - share) * math.log(speeds[below]) + share * math.log(speeds[above]))


WIDTHS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048)
USABLE = 0.93  # of the time: the rest goes to starting, measuring and saving


def make_plan(text: Text, options: Mapping[str, Any], speeds: Mapping[int, float]) -> Plan:
    """The recipe for a text; `options` are those that were given by hand, which stand as they are.

    `speeds` are the characters a second of one GRU layer by its units, as measured on the machine; they are needed
    for a budget in minutes alone, and with any other the plan depends on no clock.
    """
    if options.get("tied") and "embedding" in options:
        options = {"units": options["embedding"], **options}
    rule = _Rule(text, start_of_plan(options), options, speeds)
    chosen = rule.choose()
    recipe = DEFAULT.with_options({name: value for name, (value, _) in chosen.items()} | dict(options))
    given = {name: "given by hand" for name in chosen if name in options}
    reasons = {name: reason for name, (_, reason) in chosen.items()} | given
    return Plan(recipe, text, rule.passes(recipe), dict(speeds), reasons)


def start_of_plan(options: Mapping[str, Any]) -> Recipe:
    """The recipe that a plan starts from: the defaults and what was given by hand.

    Tied weights come in with the plan, where one of the two widths that they need alike is still to be chosen.

    Raises:
        ConfigError: when what was given is out of bounds or contradicts itself.
    """
    follows = "units" not in options or "embedding" not in options
    kept = {name: value for name, value in options.items() if name != "tied" or not follows}
    return DEFAULT.with_options(kept)


class _Rule:
    """What the trials taught, as formulas in the length of the text and the times that it will be read."""

    def __init__(self, text: Text, start: Recipe, options: Mapping[str, Any], speeds: Mapping[int, float]) -> None:
        self.text, self.start, self.options, self.speeds = text, start, options, speeds
        # A text shorter than a batch is trained on in smaller ones.
        self.sequences, _ = shrink_to_fit(max(2, text.tokens), start.sequences)

    def choose(self) -> dict[str, tuple[Any, str]]:
        """Each option that depends on the text or the time: its value and the reason."""
        units, why = self._units()
        model = dataclasses.replace(self.start.model, units=self.options.get("units", units))
        passes = self.passes(dataclasses.replace(self.start, model=model))
        strain = self._strain(passes)
        read = f"the text is read {_times(passes)}"
        chosen: dict[str, tuple[Any, str]] = {
            "cell": ("gru", "a GRU learns more in a minute than an LSTM, on every text tried"),
            "layers": (1, "one wide layer beats two narrow ones of the same speed"),
            "units": (units, why),
            "embedding": self._embedding(model.units),
            "batch": (32, "fewer characters are slower, more make too few steps"),
            "seq_length": (64, "longer sequences make too few steps, shorter ones remember too little"),
            "learning_rate": (self._learning_rate(model.units), "wider layers want smaller steps"),
            "dropout": (
                _rounded(0.1 * strain, most=0.5),
                f"{read}: outputs that are silenced keep it from being learned by heart",
            ),
            "state_dropout": (_rounded(0.08 * strain, most=0.35), f"{read}: so does silence inside the state"),
            "weight_decay": (
                _rounded(0.2 * max(0.5, strain), most=1.2),
                f"{read}: weights forget what is not seen again",
            ),
            "averaging": (0.1, "the mean over the last tenth of the steps is steadier than the last step"),
            "schedule": ("cosine", "the rate falls to nothing as the budget ends"),
            "warmup": (20, "Adam's first steps are too long for a wide layer"),
            "zero_state": (0.02, "some streams begin anew in each batch, as a prompt does"),
            "patience": (10, "a validation loss that has turned does not come back"),
        }
        return chosen

    def _units(self) -> tuple[int, str]:
        """The widest layer that this text can fill and this time can train."""
        fits = [units for units in WIDTHS if units <= self._widest()] or [WIDTHS[0]]
        if not self.speeds:
            return min(512, fits[-1]), f"what a text of {self.text.characters:,} characters can fill"
        trained = [units for units in fits if self._steps(units) >= 2800 * (units / 512) ** 2]
        units = trained[-1] if trained else WIDTHS[0]
        if units == fits[-1]:
            return units, f"what a text of {self.text.characters:,} characters can fill"
        return units, f"the widest that can be trained in this time: {self._steps(units):,.0f} steps"

    def _embedding(self, units: int) -> tuple[int, str]:
        if self.options.get("tied"):
            return units, "tied weights have the width of the layer"
        return 128, "longer vectors change little"

    def _widest(self) -> float:
        return 256 * math.pow(self.text.characters / 16_000, 0.34)

    def _learning_rate(self, units: int) -> float:
        return _rounded(4e-3 * min(1.0, math.sqrt(640 / units)), most=1.0)

    def _strain(self, passes: float) -> float:
        """How hard it is not to learn the text by heart: 1 where it is read about seven times."""
        return math.sqrt(passes / 7)

    def _speed(self, units: int) -> float:
        """Characters a second of a model as wide as that."""
        model = self.start.model
        cell = {"gru": 1.0, "lstm": 1.2, "rnn": 0.4}[model.cell]
        return speed_at(self.speeds, units) / (cell * (1 + 1.15 * (model.layers - 1)))

    def _steps(self, units: int) -> float:
        sequences = self.sequences
        seconds = (self.start.training.minutes or 0) * 60 * USABLE
        return self._speed(units) * seconds / (sequences.batch * sequences.seq_length)

    def passes(self, recipe: Recipe) -> float:
        """How often the text will be read."""
        training, sequences = recipe.training, self.sequences
        if training.epochs is not None:
            return float(training.epochs)
        steps = training.steps if training.steps is not None else self._steps(recipe.model.units)
        return steps * sequences.batch * sequences.seq_length / max(1, self.text.tokens)


def _rounded(value: float, *, most: float) -> float:
    """Two digits: more would pretend to a knowledge that nobody has."""
    return float(f"{min(value, most):.2g}")

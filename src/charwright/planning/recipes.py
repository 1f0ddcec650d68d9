"""Named recipes: complete sets of training options."""

from __future__ import annotations

import difflib

from charwright.config import ModelConfig, Recipe, SequenceConfig, SplitConfig, TrainingConfig
from charwright.errors import UsageError

TUTORIAL = Recipe(
    split=SplitConfig(val_fraction=0.0),
    sequences=SequenceConfig(order="windows", batch=64, seq_length=100),
    model=ModelConfig(cell="gru", layers=1, units=1024, embedding_size=256),
    training=TrainingConfig(
        epochs=10,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        epsilon=1e-7,
        clip_norm=None,
        state_reset=0.0,
        embedding_range=0.05,
        ema=0.0,
    ),
)
"""TensorFlow's tutorial "Text generation with an RNN", option for option."""

DEFAULT = Recipe(model=ModelConfig(cell="igru"), training=TrainingConfig(minutes=5.0))
"""The defaults of the options, the cell of plans, and five minutes: the starting point of a plan."""

PLANNED = "default"
"""The name of the recipe that is planned for its text."""

RECIPES = {PLANNED: DEFAULT, "tutorial": TUTORIAL}


def find_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UsageError: listing the recipes that exist.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]
